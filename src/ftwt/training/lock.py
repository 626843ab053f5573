"""A run's folder belongs to one run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from ..files.atomic import explaining, sweep
from ..processes import processes

LOCK = ".lock"  # in the folder; it stays there, and says nothing once its process is gone


@contextmanager
def held(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Hold a run's folder, so that no other run writes there meanwhile.

    The lock is the operating system's: it goes with the process, however that ends. All processes
    of one run share it, for its main process holds it; so do calls inside one another. What a
    killed run left half written in the folder is removed.

    Args:
        folder: The folder, made if need be; None holds nothing.

    Raises:
        ValueError: Its name is empty or that of a file, or another run holds it; raised in all
            processes of this one.
        OSError: The folder cannot be written.
    """
    if folder is None:
        yield
        return
    if not str(folder):
        raise ValueError("the folder's name is empty; name one, or leave it out to write nothing")
    state, lock, refused = processes(), None, ""
    if state.is_main_process:
        lock, refused = _take(Path(folder))
    verdict = [refused]
    if state.num_processes > 1:
        broadcast_object_list(verdict)
    if verdict[0]:
        raise ValueError(verdict[0])
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def holder(folder: str | os.PathLike[str]) -> int | None:
    """The number of the process that holds a folder; None if none does."""
    path = Path(folder) / LOCK
    if not path.exists() or path.is_symlink():
        return None
    lock = FileLock(path.resolve(), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return _owner(path)
    lock.release()
    return None


def _owner(path: Path) -> int | None:
    """The process that a lock file names; None if it names none."""
    by = path.read_text(encoding="utf-8", errors="replace").strip()
    return int(by) if by.isdecimal() else None


def _take(folder: Path) -> tuple[FileLock | None, str]:
    path = folder / LOCK
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder (--output, output=)")
    with explaining(path):
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():  # what it leads to is somebody's file
            raise ValueError(f"{path} is a symbolic link, not a lock of ours; remove it")
        # A singleton knows that this thread has it already: `run` holds it around `train`.
        lock = FileLock(path.resolve(), blocking=False, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            by = _owner(path)
            whom = "another process" if by is None else f"process {by}"
            return None, (
                f"{folder} is in use by {whom}: wait until that run ends, stop it, or choose "
                f"another folder (--output, output=)"
            )
        path.write_text(f"{os.getpid()}\n", encoding="utf-8")
    for place in (folder, *(inside for inside in folder.iterdir() if inside.is_dir())):
        sweep(place)
    return lock, ""
