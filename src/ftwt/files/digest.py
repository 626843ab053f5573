"""The checksum of tensors and text that saved networks and recordings carry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

Part = tuple[str, Any, tuple[int, ...], Any]  # name, dtype, shape, contiguous bytes


def digest(parts: Iterable[Part], text: str) -> str:
    """Return the SHA-256 of a text and of tensors, in the order of their names.

    Args:
        parts: Name, dtype (as it prints), shape and bytes of each tensor.
        text: What else the file says.
    """
    found = hashlib.sha256(text.encode())
    for name, dtype, shape, data in sorted(parts, key=lambda part: part[0]):
        found.update(f"{name} {dtype} {shape};".encode())
        found.update(data)
    return found.hexdigest()
