"""Files that are written whole or not at all, and JSON that is read strictly: no package needed."""

from __future__ import annotations

import glob
import json
import math
import os
import reprlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves there stays
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place if all went well.

    Contents reach the disk before the name does, and the name before this returns: neither a killed
    process nor a power failure leaves half a file under `path`. What a killed process leaves beside
    it, the next writer of `path` removes.

    Raises:
        OSError: The folder cannot be written or the disk is full; `path` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(temporary):
            sweep(path.parent, path.name)
            try:
                yield temporary
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
                _sync(path.parent)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Let an error of the operating system say what could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write {path} ({error.strerror or error}), what was there is unharmed"
        fix = "free space, get write permission, or choose another folder"
        raise type(error)(error.errno, f"{reason}; {fix}") from error


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Hold a lock on a temporary file while it is written; the system drops it with the process."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(temporary, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: nobody can claim it, or sweep there
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Args:
        folder: The folder; those inside it are left alone.
        name: Those of this file alone; None for those of all files.
    """
    if fcntl is None:
        return
    of = "*" if name is None else glob.escape(name)
    for left in Path(folder).glob(f".{of}.*.*.tmp"):
        with suppress(OSError):  # somebody else swept it, or may not be swept after
            descriptor = os.open(left, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is written
                left.unlink()
            finally:
                os.close(descriptor)


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
