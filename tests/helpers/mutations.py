"""Files of programs, damaged by chance and by malice: for `test_file.py`, and by the thousand:

PYTHONPATH=tests/helpers python tests/helpers/mutations.py 0 100000
"""

import collections
import copy
import importlib.util
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from damage import Chance, replace
from ftwt.runtime import Program, load, save
from programs import Builder


def small_program() -> Program:
    """All kinds of operations, few and small."""
    build = Builder((2, 6, 5), seed=4)
    stem = build.conv(0, 4, (3, 3), padding=(1, 1, 1, 1), act="relu")
    vector = build.pool(stem, "max")
    gate = build.predict((vector, build.pool(stem, "mean")), 4, rank=2, softmax=True)
    other = build.predict((vector,), 4)
    fixed = build.fixed([1, 0, 1, 1])
    masks = {"mask": gate, "add": stem, "post": "relu", "after": fixed}
    x = build.conv(stem, 4, (3, 3), padding=(1, 1, 1, 1), groups=2, **masks)
    x = build.combine(x, vector, "mul", act="silu")
    x = build.silence(build.activate(build.affine(x), "hardswish"), other)
    x = build.gather((x, stem), [7, 0, 5, 4])
    x = build.pool(x, "mean", kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    build.conv(build.flatten(x), 3, act="tanh")
    return build.program(classes=("a", "b", "c"), notes={"made": ["for", {"tests": 1.5}]})


class Mutant(Chance):
    """Makes damaged copies of one file, each from its own seed."""

    def __init__(self, original: bytes) -> None:
        self.original = original
        length = int.from_bytes(original[:8], "little")
        self.header = json.loads(original[8 : 8 + length])
        self.content = json.loads(self.header["__metadata__"]["program"])
        self.data = original[8 + length :]
        self.ways = (self.flip, self.cut, self.splice, self.edit, self.edit, self.describe,
                     self.weights, self.length)  # fmt: skip

    def make(self, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return bytes(self.ways[seed % len(self.ways)](rng))

    def flip(self, rng: np.random.Generator) -> bytes:
        """Some bits, most of the time one; where it matters most, in the header."""
        damaged = bytearray(self.original)
        for _ in range(int(rng.geometric(0.6))):
            end = len(damaged) if rng.random() < 0.5 else len(damaged) - len(self.data)
            damaged[rng.integers(end)] ^= 1 << int(rng.integers(8))
        return damaged

    def edit(self, rng: np.random.Generator) -> bytes:
        """A value of the program, with a checksum as if nothing had happened."""
        content = copy.deepcopy(self.content)
        for _ in range(int(rng.geometric(0.7))):
            replace(content, rng)
        return self.file(self.header, content, self.data)

    def describe(self, rng: np.random.Generator) -> bytes:
        """A value of the tensors' descriptions or of the metadata."""
        header = copy.deepcopy(self.header)
        replace(header, rng)
        return self.file(header, None, self.data)

    def weights(self, rng: np.random.Generator) -> bytes:
        """Bits of the constants, with checksums as if nothing had happened."""
        data = bytearray(self.data)
        for _ in range(int(rng.geometric(0.3))):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        content = copy.deepcopy(self.content)
        for name in content["checksums"]:
            start, end = self.header[name]["data_offsets"]
            content["checksums"][name] = zlib.crc32(data[start:end])
        return self.file(self.header, content, bytes(data))

    def length(self, rng: np.random.Generator) -> bytes:
        """Another length of the header."""
        values = (0, 1, 7, 2**23, 2**23 + 1, 2**31, 2**63, 2**64 - 1, len(self.original))
        wrong = int(rng.integers(2 * len(self.original)))
        value = values[rng.integers(len(values))] if rng.random() < 0.5 else wrong
        return value.to_bytes(8, "little") + self.original[8:]

    @staticmethod
    def file(header: Any, content: Any, data: bytes) -> bytes:
        if content is not None:
            text = json.dumps(content)
            metadata = {"program": text, "crc32": f"{zlib.crc32(text.encode()):08x}"}
            header = {**header, "__metadata__": {**header["__metadata__"], **metadata}}
        packed = json.dumps(header).encode()
        return len(packed).to_bytes(8, "little") + packed + data


def fuzz(folder: Path, start: int, count: int, *, native: bool = False) -> collections.Counter[str]:
    """Load damaged files and run them; what is neither a result nor a ValueError escapes.

    Args:
        folder: For the file.
        start: The first mutation; each has a number and is always the same.
        count: How many.
        native: Whether what loads also runs on the native engine.
    """
    path, x = folder / "damaged.ftwt", np.ones((1, 2, 6, 5), np.float32)
    save(small_program(), path)
    mutant, outcomes = Mutant(path.read_bytes()), collections.Counter[str]()
    for seed in range(start, start + count):
        path.write_bytes(mutant.make(seed))
        try:
            engine = load(path, engine="reference")
        except ValueError:
            outcomes["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(f"mutation {seed}") from error
        outcomes["loaded"] += 1
        try:
            if engine.program.maps[0] == x.shape[1:]:
                engine(x)
                if native:
                    load(path)(x)
                outcomes["ran"] += 1
        except Exception as error:
            raise AssertionError(f"mutation {seed} loaded") from error
    return outcomes


if __name__ == "__main__":
    first, number = map(int, sys.argv[1:])
    has_native = importlib.util.find_spec("ftwt.runtime._native") is not None
    with tempfile.TemporaryDirectory() as home:
        print(dict(fuzz(Path(home), first, number, native=has_native)))
