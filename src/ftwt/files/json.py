"""JSON: written whole or not at all, read strictly. No package needed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import reprlib
from pathlib import Path
from typing import Any

from .atomic import replacing


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a dataclass or JSON value; the file is whole or, on an error, as it was before.

    Raises:
        OSError: The folder cannot be written or the disk is full.
        ValueError: The value holds a NaN or an infinity, which JSON has not.
    """
    text = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file cannot be read, is not JSON (empty, truncated, or another kind of
            file), or is JSON that `write_json` never writes: with a NaN, a key twice, or nested too
            deeply.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text, so it is not JSON ({error.reason})") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; expected JSON: write it again")
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); write it again") from error


def plain(value: Any) -> Any:
    """Turn a dataclass into JSON values; leave everything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def parse_json(text: str) -> Any:
    """Parse JSON strictly: a key comes once in its object, numbers are finite, text is Unicode.

    Raises:
        ValueError: It is no such JSON.
    """
    hooks: dict[str, Any] = {
        "parse_constant": _finite, "parse_float": _finite, "parse_int": _whole
    }  # fmt: skip
    try:
        value = json.loads(text, object_pairs_hook=_unique, **hooks)
        if "\\ud" in text or "\\uD" in text:  # half of a pair could be neither written nor shown
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"its JSON holds the number {reprlib.repr(text)}")
    return value


def _whole(text: str) -> int:
    _finite(text)  # no integer here is larger than a float can be, so all can be compared
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its JSON has a key twice in one object")
    return found
