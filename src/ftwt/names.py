"""What names are, and what to say of one that does not exist."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FEW, MANY = 6, 40  # names that are listed beside near ones, and where none is near
LIBRARIES = ("torchvision", "timm")  # whose names are LIBRARY:NAME


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known names; list the known ones where they are few, or none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3)
    told = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    if close and len(names) > FEW:
        return told
    listed = ", ".join(names[:MANY]) + (f", ... ({len(names)} in all)" if names[MANY:] else "")
    return f"{told} Known: {listed}".lstrip()


def is_own(name: str) -> bool:
    """Whether a name is `module:function`, which is code, and not of a known library.

    Such a name may come from a person, never from a file.
    """
    module, colon, _ = name.partition(":")
    return bool(colon) and module not in LIBRARIES


def find_own(name: str) -> Callable[..., Any]:
    """Find a function or class by `module:function`.

    The module is one of the working folder, or one that is installed.

    Raises:
        ValueError: It is no such name, or the module has no such function.
        ImportError: There is no such module.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ValueError(f"{name!r} is no MODULE:FUNCTION, such as nets:small for small in nets.py")
    place, _, function = name.partition(":")
    module: Any = sys.modules["__main__"]  # a script that saves its own network runs but once
    if Path(getattr(module, "__file__", None) or "").stem != place:
        sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name != place.split(".")[0] and error.name != place:
                raise
            raise ImportError(
                f"there is no module {place!r} in this folder or installed; {name} is the "
                f"function {function} in {place.replace('.', '/')}.py"
            ) from error
        finally:
            sys.path.remove(os.getcwd())
    if not callable(found := getattr(module, function, None)):
        raise ValueError(f"{place} has no function {function!r}, which {name} names")
    return found


def own_name(function: Callable[..., Any]) -> str:
    """Name a function or class as `module:function`; `find_own` may not find it by that."""
    place = getattr(function, "__module__", None) or type(function).__module__
    if place == "__main__":
        place = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
    return f"{place}:{getattr(function, '__qualname__', type(function).__qualname__)}"
