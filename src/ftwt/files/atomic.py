"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves there stays
    fcntl = None  # type: ignore[assignment]

_NUMBERS = itertools.count()  # of the temporary files of this process: no two have one name


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place if all went well.

    Contents reach the disk before the name does, and the name before this returns: neither a killed
    process nor a power failure leaves half a file under `path`. What a killed process leaves beside
    it, the next writer of `path` removes before it begins, so they do not add up.

    Raises:
        OSError: The folder cannot be written or the disk is full; `path` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_NUMBERS)}.tmp")
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        with _claimed(temporary):
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
    while True:
        descriptor = os.open(temporary, os.O_CREAT | os.O_RDWR, 0o666)
        with suppress(OSError):  # a file system without locks: nobody can claim it, or sweep there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            break
        os.close(descriptor)  # it was swept before it was locked
    try:
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
