"""Files of programs, damaged by chance and by malice: for tests, and by the thousand:

PYTHONPATH=tests/helpers python tests/helpers/mutations.py 0 100000
PYTHONPATH=tests/helpers python tests/helpers/mutations.py 0 20000 programs
"""

import collections
import copy
import faulthandler
import importlib.util
import json
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from damage import Chance, replace
from ftwt.runtime import Engine, Program, load, load_program, save
from ftwt.runtime.engine import build_native
from ftwt.runtime.limits import most_alive
from programs import ACTS, Builder, random_integer_program, random_program
from quantised import random_quantised

SECONDS = 5.0  # of the processor that one program may take: made, read, built and run on each set
WAITS = 120  # seconds by the clock, for a program that waits for ever
BYTES = 2 * 2**30  # that the process may take
SMALL = 2**22  # elements of maps that are alive: more is built, and not run


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

    def alter(self, rng: np.random.Generator) -> bytes:
        """A field of an operation or of a map, to a value of its kind, which may be valid."""
        content = copy.deepcopy(self.content)
        places: list[Any] = [*content["operations"], *content["operations"]]
        lists = ("gates", "maps", "types", "scales")
        places += [content[name] for name in lists if content.get(name)]
        parent: Any = places[rng.integers(len(places))]
        if isinstance(parent, list) and isinstance(parent[0], list | dict):
            parent = parent[rng.integers(len(parent))]
        keys = [key for key in parent if key not in ("operation", "name", "unit")]
        key = (
            keys[rng.integers(len(keys))] if isinstance(parent, dict) else rng.integers(len(parent))
        )
        parent[key] = self.near(parent[key], rng)
        return self.file(self.header, content, self.data)

    def near(self, value: Any, rng: np.random.Generator) -> Any:
        """Another value of the same kind."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, list):
            changed = list(value)
            if changed:
                at = rng.integers(len(changed))
                changed[at] = self.near(changed[at], rng)
            return changed
        if isinstance(value, float):
            return value * float(rng.choice((-1, 0, 0.5, 2, 1e6)))
        if isinstance(value, str):
            for kinds in (ACTS, ("max", "mean"), ("add", "mul"), ("f32", "u8", "s8")):
                if value in kinds:
                    return kinds[rng.integers(len(kinds))]
            names = list(self.content["checksums"])
            return names[rng.integers(len(names))]
        if value is None:
            return int(rng.integers(len(self.content["maps"])))
        return max(0, value + int(rng.choice((-2, -1, 1, 2)))) if rng.random() < 0.9 else None

    def describe(self, rng: np.random.Generator) -> bytes:
        """A value of the tensors' descriptions or of the metadata."""
        header = copy.deepcopy(self.header)
        replace(header, rng)
        return self.file(header, None, self.data)

    def weights(self, rng: np.random.Generator) -> bytes:
        """Bits of the constants, with checksums as if nothing had happened."""
        if not self.data:
            return self.edit(rng)
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


def fuzz_programs(folder: Path, start: int, count: int) -> collections.Counter[str]:
    """Alter random programs, float and of eight bits, and run them on all instruction sets.

    One in eight is as it was, five are altered in fields, one anywhere in its description, one in
    the bits of its constants, with digests as if nothing had happened. What loads must give what
    the reference gives: the MACs of each sample and operation, and, where constants are as they
    were, outputs to 1e-3 of the largest.

    Args:
        folder: For the file.
        start: The first seed; each makes one program and one mutant of it.
        count: How many.

    Raises:
        AssertionError: An engine raised something else than a ValueError, or differs.
    """
    from ftwt.runtime import _native  # the machine's instruction sets; tests ask first

    makers = (random_program, random_quantised, random_integer_program)
    path, outcomes = folder / "altered.ftwt", collections.Counter[str]()
    for seed in range(start, start + count):
        program = makers[seed % len(makers)](seed)
        try:
            save(program, path)
        except ValueError:  # a sum of eight bits that is too long, of few
            outcomes["not made"] += 1
            continue
        mutant, rng = Mutant(path.read_bytes()), np.random.default_rng([seed, 3])
        ways = (None, mutant.weights, mutant.edit, *[mutant.alter] * 5)
        way = ways[seed % len(ways)]
        if way is not None:
            path.write_bytes(way(rng))
        try:
            altered = load_program(path)
            outcomes["loaded"] += 1
            outcomes["of eight bits"] += altered.quantised
            outcomes[_run_all(altered, _native.isas(), rng, exact=way != mutant.weights)] += 1
        except ValueError:
            outcomes["refused"] += 1
            assert way is not None, f"program {seed}"
        except Exception as error:
            raise AssertionError(f"program {seed}") from error
    return outcomes


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """End this process, with a traceback, if what is inside takes longer of the processor.

    The clock of the wall would blame a program for a machine that has others to serve; it is for
    what waits and computes nothing.
    """
    faulthandler.register(signal.SIGPROF, chain=True)
    faulthandler.dump_traceback_later(WAITS, exit=True)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def fuzz_within_limits(
    folder: Path, start: int, count: int, *, memory: int | None = BYTES
) -> dict[str, Any]:
    """As `fuzz_programs`, each within `SECONDS`, for a process of its own.

    What takes more time ends the process; what takes more memory is an error of the program's.

    Args:
        folder: For the file.
        start: The first seed.
        count: How many.
        memory: Bytes that the process may take; None under the address sanitizer, which lays claim
            to more addresses than any machine has.

    Returns:
        The outcomes, and the program that took longest.
    """
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    outcomes, slowest = collections.Counter[str](), (0.0, start)
    for seed in range(start, start + count):
        began = time.process_time()
        with bounded():
            outcomes += fuzz_programs(folder, seed, 1)
        slowest = max(slowest, (time.process_time() - began, seed))
        if seed % 1000 == 999:
            print(f"{seed + 1}: {dict(outcomes)}", flush=True)
    return {**outcomes, "slowest_s": round(slowest[0], 3), "slowest_program": slowest[1]}


def _run_all(program: Program, isas: list[str], rng: np.random.Generator, *, exact: bool) -> str:
    ways = ("auto", "auto", "direct", "winograd", "dot")
    natives = {
        isa: build_native(program, int(rng.integers(1, 3)), isa, ways[rng.integers(len(ways))])[1]
        for isa in isas
    }
    if most_alive(program) > SMALL:
        return "built alone"
    x = rng.standard_normal((2, *program.maps[0])).astype(np.float32)
    with np.errstate(all="ignore"):
        wanted, stats = Engine(program, engine="reference").run(x)
    masks = [stats.masks[gate.unit] for gate in program.gates]
    forced = {i: np.ascontiguousarray(mask).view(np.uint8) for i, mask in enumerate(masks)}
    wanted = wanted.reshape(2, *program.maps[program.output])
    for isa, network in natives.items():
        network.run(x, {})
        found, _, counted = network.run(x, forced)
        assert np.array_equal(counted, stats.macs), f"{isa}: MACs"
        assert found.shape == wanted.shape and found.dtype == wanted.dtype, isa
        scale = np.abs(wanted).max()
        if exact and scale < 1e6:  # no overflow on the way, as far as can be seen
            off = np.abs(found - wanted).max()
            assert off <= 1e-3 * max(scale, 1e-2), f"{isa}: off by {off} of {scale}"
    return "ran"


if __name__ == "__main__":
    first, number = map(int, sys.argv[1:3])
    has_native = importlib.util.find_spec("ftwt.runtime._native") is not None
    with tempfile.TemporaryDirectory() as home:
        if sys.argv[3:] == ["programs"]:
            print(fuzz_within_limits(Path(home), first, number))
        else:
            print(dict(fuzz(Path(home), first, number, native=has_native)))
