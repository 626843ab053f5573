"""JSON read field by field: what is wrong is told by file, field and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...files.json import parse_json

NO_LIMIT = math.inf


class Fields:
    """An object of a JSON file, whose fields are checked as they are read.

    Args:
        path: The file, for messages.
        values: The object.
        at: Where in the file it stands, as `test.units[3]`; empty for the whole file.
        fix: What makes such a file, for messages.
    """

    def __init__(self, path: Path, values: Any, *, at: str = "", fix: str = "") -> None:
        self.path, self.at, self.fix = path, at, fix
        if not isinstance(values, dict):
            where = f"`{at}`" if at else "the file"
            raise ValueError(
                f"{path}: {where} is {_shown(values)}; expected an object{self._fix()}"
            )
        self.values: dict[str, Any] = values

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def fault(self, name: str, expected: str) -> ValueError:
        """The error of a field that is not what was expected."""
        where = f"{self.at}.{name}" if self.at else name
        found = f"is {_shown(self.values[name])}" if name in self.values else "is missing"
        return ValueError(f"{self.path}: `{where}` {found}; expected {expected}{self._fix()}")

    def number(self, name: str, low: float = -NO_LIMIT, high: float = NO_LIMIT) -> float:
        """A finite number in [low, high].

        Raises:
            ValueError: It is missing, is none, is not finite, or lies outside.
        """
        value = self.values.get(name)
        expected = "a number" + _span(low, high)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fault(name, expected)
        if not math.isfinite(value) or not low <= value <= high:
            raise self.fault(name, expected)
        return float(value)

    def number_or_none(
        self, name: str, low: float = -NO_LIMIT, high: float = NO_LIMIT
    ) -> float | None:
        """A number as above, or None where the field is null or not there."""
        return self.number(name, low, high) if name in self else None

    def whole(self, name: str, low: int = 0) -> int:
        """A whole number from `low` on.

        Raises:
            ValueError: It is missing, is none, or lies below.
        """
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self.fault(name, f"a whole number from {low} on")
        return value

    def text(self, name: str) -> str:
        """Text.

        Raises:
            ValueError: It is missing or something else.
        """
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.fault(name, "text")
        return value

    def numbers(
        self, name: str, low: float = -NO_LIMIT, high: float = NO_LIMIT
    ) -> tuple[float, ...]:
        """A list of finite numbers in [low, high].

        Raises:
            ValueError: It is missing, is no list, or a number of it is not as it must be.
        """
        values = self.values.get(name)
        if not isinstance(values, list):
            raise self.fault(name, "a list of numbers")
        named = {f"{name}[{i}]": value for i, value in enumerate(values)}
        held = Fields(self.path, named, at=self.at, fix=self.fix)
        return tuple(held.number(key, low, high) for key in named)

    def inside(self, name: str) -> Fields:
        """The object in a field.

        Raises:
            ValueError: It is missing or something else.
        """
        if name not in self.values:
            raise self.fault(name, "an object")
        return Fields(self.path, self.values[name], at=self._inside(name), fix=self.fix)

    def inside_or_none(self, name: str) -> Fields | None:
        """The object in a field, or None where it is null or not there."""
        return self.inside(name) if name in self else None

    def each(self, name: str) -> Iterator[Fields]:
        """The objects of a list.

        Raises:
            ValueError: The list is missing, or holds something else.
        """
        values = self.values.get(name)
        if not isinstance(values, list):
            raise self.fault(name, "a list")
        for number, value in enumerate(values):
            yield Fields(self.path, value, at=f"{self._inside(name)}[{number}]", fix=self.fix)

    def _inside(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def _fix(self) -> str:
        return f"; make the file again with {self.fix}" if self.fix else ""


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It is missing, empty, truncated or something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text, so it is not JSON ({error.reason})") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; expected JSON: write it again")
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); write it again") from error


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _span(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    left = "(-inf" if math.isinf(low) else f"[{low:g}"
    right = "inf)" if math.isinf(high) else f"{high:g}]"
    return f" in {left}, {right}"
