"""Files of a published archive: found, or fetched, and checked before they are used."""

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.download import CHUNK, check_digest, fetch


@dataclass(frozen=True)
class Archive:
    """A .tar.gz with an address, a checksum, and one folder in it."""

    url: str
    md5: str
    folder: str

    @property
    def name(self) -> str:
        """The archive's file name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Member:
    """A file of an archive, with what is known of it beforehand."""

    name: str
    size: int | None = None
    md5: str | None = None


def data_folder(root: str | os.PathLike[str] | None) -> Path:
    """Where datasets are: `root`, or $FTWT_DATA_ROOT, or else `data`."""
    return Path(os.environ.get("FTWT_DATA_ROOT", "data") if root is None else root)


def locate(
    archive: Archive, root: Path, members: Sequence[Member], *, download: bool
) -> list[Path]:
    """Find an archive's files under `root`, unpacking or downloading the archive if need be.

    Args:
        archive: what to look for: `root/<folder>/`, then `root/<name>.tar.gz`, then its address.
        root: the data folder.
        members: the files wanted.
        download: whether to go to the address.

    Returns:
        Where each member lies; each has the size and the MD5 that are known of it.

    Raises:
        FileNotFoundError: not there, and `download` is off.
        ValueError: the archive or a file is truncated or was changed.
        ConnectionError: the download failed.
    """
    folder, packed = root / archive.folder, root / archive.name
    paths = [folder / member.name for member in members]
    if not all(path.is_file() for path in paths):
        if not packed.is_file():
            if not download:
                raise FileNotFoundError(
                    f"no {archive.folder}{os.sep} and no {archive.name} in {root.resolve()}; name "
                    f"their folder (--data-root), or download=True (--download) fetches "
                    f"{archive.url}"
                )
            otherwise = (
                f"get {packed.name} some other way, put it into {root.resolve()}, or name the "
                "folder that has it (--data-root)"
            )
            fetch(archive.url, packed, digest=archive.md5, algorithm="md5", otherwise=otherwise)
        else:
            check_digest(
                packed, archive.md5, algorithm="md5", fix="delete it and download it again"
            )
        _unpack(packed, members, archive.folder, root)
    again = f"delete it and unpack or download {archive.name} again"
    for path, member in zip(paths, members, strict=True):
        size = path.stat().st_size
        if member.size is not None and size != member.size:
            raise ValueError(
                f"{path}: expected {member.size:,} bytes, found {size:,}: truncated or changed; "
                f"{again}"
            )
        if member.md5 is not None:
            check_digest(path, member.md5, algorithm="md5", fix=again)
    return paths


def _unpack(packed: Path, members: Sequence[Member], folder: str, root: Path) -> None:
    """Copy the members, by name alone: no path from inside the archive reaches the disk."""
    (root / folder).mkdir(exist_ok=True)
    with tarfile.open(packed) as tar:
        for member in members:
            source = tar.extractfile(f"{folder}/{member.name}")
            assert source is not None  # the archive's checksum was right
            partial = root / folder / f"{member.name}.{os.getpid()}.part"
            try:
                with source, partial.open("wb") as sink:
                    while chunk := source.read(CHUNK):
                        sink.write(chunk)
                partial.replace(root / folder / member.name)
            finally:
                partial.unlink(missing_ok=True)
