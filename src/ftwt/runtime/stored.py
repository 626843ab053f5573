"""Tensors in a safetensors file: written whole or not at all, read one at a time and verified.

The layout (https://github.com/huggingface/safetensors): eight bytes say how long the header is; the
header is JSON and gives each tensor's dtype, shape and place; then come the tensors, gapless. What
is allowed here is less than there: few dtypes, no empty tensors, a bounded header.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..files.atomic import replacing
from ..files.json import parse_json

MAX_HEADER = 2**23  # bytes
MAX_BYTES = 2**30  # of one tensor
MAX_AXES = 8
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "U8": np.dtype("u1"), "I8": np.dtype("i1")
}  # fmt: skip
TAGS = {dtype: tag for tag, dtype in DTYPES.items()}

Spec = tuple[np.dtype, tuple[int, ...]]


class Stored(Mapping[str, np.ndarray]):
    """The tensors of a file, each read from it, read-only, whenever it is asked for.

    Nothing is kept, so memory holds what the caller holds. The file stays open; to replace it by
    another is fine, to write into it is found by `checksums`, and an error.

    Args:
        path: The file.

    Attributes:
        metadata: The file's metadata, strings by name.
        specs: Name -> dtype and shape, without reading.
        checksums: Name -> CRC-32 of its bytes. Empty at first; what is in it is verified.
        close: Closes the file, which otherwise happens when this is no longer in use.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is no such file; every byte of the header, and the file's length, count.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        self._descriptor = os.open(self.path, flags)  # a pipe must not make us wait
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self.checksums: Mapping[str, int] = {}
        try:
            self.metadata, self._places = self._header()
        except BaseException:
            self.close()
            raise
        self.specs: dict[str, Spec] = {name: spec for name, (spec, _) in self._places.items()}

    def _header(self) -> tuple[dict[str, str], dict[str, tuple[Spec, int]]]:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._refuse("it is not a regular file")
        length = int.from_bytes(self._read(0, min(8, status.st_size)), "little")
        if not 2 <= length <= min(MAX_HEADER, status.st_size - 8):
            self._refuse(f"its header has {length} bytes, of {status.st_size} in all")
        try:
            header = parse_json(self._read(8, length).decode())
            metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
            if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
                raise ValueError("its header holds no metadata")
            return metadata, _places(header, 8 + length, status.st_size)
        except ValueError as error:
            self._refuse(str(error), error)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read a tensor."""
        (dtype, shape), start = self._places[name]
        data = self._read(start, math.prod(shape) * dtype.itemsize)
        if name in self.checksums and zlib.crc32(data) != self.checksums[name]:
            self._refuse(f"tensor {reprlib.repr(name)} was altered after it was written")
        return np.frombuffer(data, dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs  # without reading it

    def _read(self, start: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, start)
        if len(data) != count:
            self._refuse("it ends too soon")
        return data

    def _refuse(self, why: str, error: Exception | None = None) -> NoReturn:
        raise ValueError(f"{self.path} is damaged or no program: {why}; get it anew") from error


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata to one file.

    Args:
        path: The file; its folder is made if need be.
        tensors: C-contiguous arrays of the dtypes of `DTYPES`.
        metadata: Strings by name.

    Raises:
        OSError: The folder cannot be written or the disk is full; an older file survives.
        ValueError: The header is too long.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    wide_first = sorted(tensors.items(), key=lambda item: -item[1].itemsize)  # all stay aligned
    end = 0
    for name, tensor in wide_first:
        start, end = end, end + tensor.nbytes
        tag, shape = TAGS[tensor.dtype], tensor.shape
        header[name] = {"dtype": tag, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the header would have {len(text)} bytes, at most {MAX_HEADER} are read")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines((len(text).to_bytes(8, "little"), text))
        file.writelines(tensor.data for _, tensor in wide_first)


def _places(header: dict[str, Any], start: int, end: int) -> dict[str, tuple[Spec, int]]:
    """Spec and first byte of each tensor; they must follow one another without a gap to the end."""
    places: dict[str, tuple[Spec, int]] = {}
    for name, entry in header.items():
        called = f"tensor {reprlib.repr(name)}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{called} is not described by dtype, shape and data_offsets")
        tag, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(tag, str) or tag not in DTYPES:
            raise ValueError(f"{called} has dtype {reprlib.repr(tag)}, not {', '.join(DTYPES)}")
        if not _counts(shape, least=1) or len(shape) > MAX_AXES:
            raise ValueError(f"{called} has shape {reprlib.repr(shape)}")
        size = math.prod(shape) * DTYPES[tag].itemsize
        if not _counts(span, least=0) or len(span) != 2 or span[1] - span[0] != size > 0:
            raise ValueError(f"{called} of {size} bytes lies at {reprlib.repr(span)}")
        if size > MAX_BYTES:
            raise ValueError(f"{called} has {size} bytes, at most {MAX_BYTES} are read")
        places[name] = (DTYPES[tag], tuple(shape)), start + span[0]
    for name, (spec, first) in sorted(places.items(), key=lambda item: item[1][1]):
        if first != start:
            raise ValueError(f"tensor {reprlib.repr(name)} overlaps another or leaves a gap")
        start += math.prod(spec[1]) * spec[0].itemsize
    if start != end:
        raise ValueError(f"it has {end} bytes, its header speaks of {start}")
    return places


def _counts(value: Any, *, least: int) -> bool:
    return isinstance(value, list) and all(type(v) is int and least <= v < 2**48 for v in value)
