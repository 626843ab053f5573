"""A file from an address: fetched under another name, checked, and only then given its own."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from .console import PlainConsole

CHUNK = 1 << 20


def check_digest(path: Path, expected: str, *, algorithm: str, fix: str) -> None:
    """Refuse a file whose digest is another.

    Args:
        path: The file.
        expected: Its digest in hexadecimal.
        algorithm: Of `hashlib`.
        fix: What to do about it.

    Raises:
        ValueError: It is another.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: expected {algorithm.upper()} {expected}, found {found}: truncated or "
            f"changed; {fix}"
        )


def fetch(url: str, target: Path, *, digest: str, algorithm: str, otherwise: str) -> None:
    """Download a file.

    Args:
        url: Its address.
        target: Where it goes; the folder is made if need be.
        digest: What it must have.
        algorithm: Of the digest.
        otherwise: How to get it where there is no network.

    Raises:
        ConnectionError: It cannot be downloaded.
        ValueError: It has another digest; nothing is kept of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    columns = (TextColumn(target.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with (
            urllib.request.urlopen(url, timeout=30) as source,
            partial.open("wb") as sink,
            Progress(*columns, console=PlainConsole(stderr=True), transient=True) as progress,
        ):
            size = source.headers.get("Content-Length")
            task = progress.add_task("", total=int(size) if size else None)
            while chunk := source.read(CHUNK):
                sink.write(chunk)
                progress.advance(task, len(chunk))
        fix = "the download went wrong or the checksum is another file's, try again"
        check_digest(partial, digest, algorithm=algorithm, fix=fix)
        partial.replace(target)
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        raise ConnectionError(f"could not download {url} ({error}); {otherwise}") from error
    finally:
        partial.unlink(missing_ok=True)
