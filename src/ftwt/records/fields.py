"""JSON read field by field: what is wrong is told by file, field and what was expected.

A result is a dataclass whose annotations say what its fields can be. The writer fills it, and
`Fields.read` makes it of a file again.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

NO_LIMIT = math.inf
T = TypeVar("T")


class Span(NamedTuple):
    """The least and the largest value of a number; the largest may be the name of a field."""

    low: float = -NO_LIMIT
    high: float | str = NO_LIMIT


Share = Annotated[float, Span(0, 1)]
Reduction = Annotated[float, Span(high=1)]
"""Of MACs: a share, below 0 where predictors cost more than they save."""
Amount = Annotated[float, Span(0)]
Count = Annotated[int, Span(0)]
Positive = Annotated[int, Span(1)]


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

    def whole(self, name: str, low: float = 0, high: float = NO_LIMIT) -> int:
        """A whole number in [low, high].

        Raises:
            ValueError: It is missing, is none, or lies outside.
        """
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            span = f" from {low:g} on" if high == NO_LIMIT else _span(low, high)
            raise self.fault(name, f"a whole number{span}")
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

    def read(self, kind: type[T]) -> T:
        """Make a result of the object: a dataclass, each of its fields as it is annotated.

        A field that is missing takes its default, where it has one.

        Raises:
            ValueError: A field is missing or not what it must be.
        """
        hints = get_type_hints(kind, include_extras=True)
        found = {}
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            required = field.default is field.default_factory is dataclasses.MISSING
            if field.init and (required or field.name in self.values):
                found[field.name] = self._read(field.name, hints[field.name])
        return kind(**found)

    def _read(self, name: str, hint: Any) -> Any:
        if get_origin(hint) in (Union, types.UnionType):  # of something and None
            return self._read(name, get_args(hint)[0]) if name in self else None
        hint, low, high = self._limited(hint)
        if hint is int:
            return self.whole(name, low, high)
        if hint is float:
            return self.number(name, low, high)
        if hint is str:
            return self.text(name)
        if get_origin(hint) is tuple:
            return self._read_tuple(name, *get_args(hint))
        if dataclasses.is_dataclass(hint):
            return self.inside(name).read(cast(type, hint))
        values = self.inside(name).values
        if dict in (hint, get_origin(hint)):
            return values
        raise TypeError(f"{name}: {hint} cannot be read from a file")

    def _read_tuple(self, name: str, item: Any, *others: Any) -> tuple[Any, ...]:
        if dataclasses.is_dataclass(item):
            return tuple(part.read(cast(type, item)) for part in self.each(name))
        item, low, high = self._limited(item)
        found = self.numbers(name, low, high)
        if others != (Ellipsis,) and len(found) != len(others) + 1:
            raise self.fault(name, f"{len(others) + 1} numbers")
        return tuple(int(number) for number in found) if item is int else found

    def _limited(self, hint: Any) -> tuple[Any, float, float]:
        """A type, and the least and the largest value that it can have here."""
        hint, span = get_args(hint) if get_origin(hint) is Annotated else (hint, Span())
        high = self.number(span.high) if isinstance(span.high, str) else span.high
        return hint, span.low, high

    def _inside(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def _fix(self) -> str:
        return f"; make the file again with {self.fix}" if self.fix else ""


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
