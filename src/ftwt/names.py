"""What to say of a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW, MANY = 6, 40  # names that are listed beside near ones, and where none is near


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known names; list the known ones where they are few, or none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3)
    told = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    if close and len(names) > FEW:
        return told
    listed = ", ".join(names[:MANY]) + (f", ... ({len(names)} in all)" if names[MANY:] else "")
    return f"{told} Known: {listed}".lstrip()
