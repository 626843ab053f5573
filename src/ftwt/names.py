"""What names are, and what to say of one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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
