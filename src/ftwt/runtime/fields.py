"""Whether the fields of a dataclass have the types of their annotations."""

from __future__ import annotations

import functools
import reprlib
import types
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

MAX_NAME = 1000


def refuse(place: str, field: str, value: Any, allowed: str) -> NoReturn:
    """Raise the error of all checks; long values are cut short."""
    raise ValueError(f"{place}: {field} is {reprlib.repr(value)}, must be {allowed}")


@functools.cache
def hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, by name."""
    return get_type_hints(kind)


def check_fields(value: Any, place: str) -> None:
    """Make sure that each field of a dataclass has the type of its annotation.

    Args:
        value: An instance of a dataclass.
        place: What to call it in the message.

    Raises:
        ValueError: A field has not; the message names it, its value and the type.
    """
    kind: Any = type(value)
    for name, hint in hints(kind).items():
        if not conforms(getattr(value, name), hint):
            literal = get_origin(hint) is Literal
            allowed = f"one of {', '.join(get_args(hint))}" if literal else f"of type {hint}"
            refuse(place, name, getattr(value, name), allowed)


def check_name(name: str, place: str, field: str) -> None:
    """Make sure that a name can be shown: no control characters, not endless.

    Raises:
        ValueError: It cannot.
    """
    if not name.isprintable() or len(name) > MAX_NAME:
        refuse(place, field, name, f"printable, of at most {MAX_NAME} characters")


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type: exactly, so that neither True nor 1 is a float."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return type(value) is str and value in arguments
    if origin is types.UnionType:
        return any(conforms(value, argument) for argument in arguments)
    if origin is tuple:
        if type(value) is not tuple:
            return False
        if arguments[-1] is Ellipsis:
            return all(conforms(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(conforms, value, arguments))
    if origin is not None:
        return isinstance(value, origin)  # a mapping
    return type(value) is hint if hint in (bool, int, float, str) else isinstance(value, hint)
