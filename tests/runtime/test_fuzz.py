"""The native engine is the reference engine, on random programs, masks and batches.

Further seeds than the suite's:

    python tests/runtime/test_fuzz.py FIRST COUNT
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mutations
from ftwt.runtime import Predict, Program, check
from ftwt.runtime.engine import build_native
from ftwt.runtime.reference import Network
from programs import MASKS, Builder, Shape, mask, random_program

PROGRAMS, MANY = 150, 3000
ALTERED, MANY_ALTERED = 60, 20_000
MARGIN = 1e-3  # a logit nearer to its threshold than this may be decided either way
WAYS = (("auto", 1), ("auto", 2), ("direct", 1), ("winograd", 1), ("dot", 1))


def natives(program: Program) -> Iterator[tuple[str, Any]]:
    """The native network on each instruction set, with one thread and two, by each algorithm."""
    native = pytest.importorskip("ftwt.runtime._native")
    for isa in native.isas():
        for algorithm, threads in WAYS:
            _, network = build_native(program, threads, isa, algorithm)
            yield f"{isa}, {algorithm}, {threads} threads", network


def close_calls(program: Program, x: np.ndarray) -> bool:
    """Whether predictors would decide otherwise if their thresholds were moved a little."""

    def masks(shift: float) -> list[np.ndarray]:
        moved = [
            dataclasses.replace(op, threshold=op.threshold + shift)
            if isinstance(op, Predict)
            else op
            for op in program.operations
        ]
        other = dataclasses.replace(program, operations=tuple(moved))
        return Network(other).run(x, {})[1]

    return not all(map(np.array_equal, masks(-MARGIN), masks(MARGIN)))


def compare(seed: int) -> None:
    program, rng = random_program(seed), np.random.default_rng([seed, 2])
    check(program)
    samples = int(rng.choice((1, 1, 2, 3, 5, 17)))
    x = rng.standard_normal((samples, *program.maps[0])).astype(np.float32)
    forced = {
        index: mask(str(rng.choice(MASKS)), samples, gate.channels, rng).astype(np.uint8)
        for index, gate in enumerate(program.gates)
    }
    cases: list[dict[int, np.ndarray]] = [forced]
    if not close_calls(program, x):
        cases.append({})
    reference = Network(program)
    wanted = [reference.run(x, given) for given in cases]
    for name, network in natives(program):
        for given, (output, masks, macs) in zip(cases, wanted, strict=True):
            where = f"seed {seed}, {name}, {'forced' if given else 'own'} masks"
            result, found, counted = network.run(x, given)
            assert np.array_equal(found, masks), f"{where}: masks"
            differ = np.flatnonzero((counted != macs).any(0))
            assert not differ.size, f"{where}: MACs of {program.operations[differ[0]]}"
            assert result.shape == output.shape and result.dtype == output.dtype
            error, scale = np.abs(result - output).max(), np.abs(output).max()
            assert error <= 1e-4 * max(scale, 1e-2), f"{where}: off by {error} of {scale}"


@pytest.mark.parametrize("start", range(0, PROGRAMS, 10))
def test_native_equals_reference(start):
    for seed in range(start, start + 10):
        compare(seed)


FAR: dict[str, tuple[Shape, dict[str, Any]]] = {
    "stride": ((2, 3, 40), {"filters": 2, "kernel": (3, 3), "stride": (1024, 1024)}),
    "dilation": ((2, 3, 40), {"filters": 2, "kernel": (1, 1), "dilation": (1024, 1024)}),
    "dilation, stride": (
        (1, 3, 5000), {"filters": 2, "kernel": (1, 5), "dilation": (1, 1024), "stride": (1024, 33)}
    ),
    "padding": (
        (2, 3, 4), {"filters": 2, "kernel": (3, 1), "padding": (1024,) * 4, "stride": (9, 7)}
    ),
    "wide padding": (
        (1, 3, 34),
        {"filters": 3, "kernel": (3, 34), "dilation": (1, 9), "padding": (1, 148, 1, 149)},
    ),
    "kernel": ((1, 300, 300), {"filters": 2, "kernel": (300, 300)}),
    "long": ((1, 1, 2**20), {"filters": 1, "kernel": (1, 1024), "stride": (1024, 1024)}),
    "pool": (
        (2, 3, 4),
        {"kind": "mean", "kernel": (2**13, 2**14), "padding": (2**13 - 1, 2**14 - 1),
         "stride": (2**24, 2**24)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAR)
def test_native_equals_reference_near_the_bounds(name):
    shape, fields = FAR[name]
    build = Builder(shape)
    build.pool(0, **fields) if name == "pool" else build.conv(0, **fields)
    program = build.program()
    check(program)
    x = np.ones((1, *shape), np.float32)
    wanted = Network(program).run(x, {})[0]
    for _, network in natives(program):
        np.testing.assert_allclose(network.run(x, {})[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_native_equals_reference_on_many_programs():
    for seed in range(PROGRAMS, MANY):
        compare(seed)


def test_random_programs_hold_everything():
    programs = [random_program(seed) for seed in range(PROGRAMS)]
    operations = [op for program in programs for op in program.operations]
    assert len({type(op) for op in operations}) == 10
    convs = [op for op in operations if type(op).__name__ == "Conv"]
    for field in ("mask", "add", "after"):
        assert sum(getattr(op, field) is not None for op in convs) > 30, field
    assert sum(op.groups > 1 for op in convs) > 30
    predictors = [op for op in operations if isinstance(op, Predict)]
    assert sum(op.softmax for op in predictors) > 30
    assert sum(op.reduce is not None for op in predictors) > 30


def test_close_calls_are_rare_and_noticed():
    calm = 0
    for seed in range(50):
        program = random_program(seed)
        x = np.random.default_rng(seed).standard_normal((2, *program.maps[0])).astype(np.float32)
        calm += not close_calls(program, x)
    assert calm > 25
    program = random_program(3)
    operations = [
        dataclasses.replace(op, threshold=0.0) if isinstance(op, Predict) else op
        for op in program.operations
    ]
    constants = dict(program.constants)
    for name, array in program.constants.items():
        if array.dtype == np.float32:
            constants[name] = 0 * array
    for op in operations:
        if isinstance(op, Predict):  # one logit is 1, the others are 0
            constants[op.bias] = np.eye(1, len(constants[op.bias]), dtype=np.float32)[0]
    still = dataclasses.replace(program, operations=tuple(operations), constants=constants)
    assert any(isinstance(op, Predict) for op in operations)
    assert close_calls(still, np.ones((2, *program.maps[0]), np.float32))


def test_altered_programs_run_as_in_the_reference_or_are_refused(tmp_path):
    pytest.importorskip("ftwt.runtime._native")
    outcomes = mutations.fuzz_programs(tmp_path, 0, ALTERED)
    assert outcomes["ran"] > 0.3 * ALTERED and outcomes["refused"] > 0.3 * ALTERED
    assert outcomes["of eight bits"] > 0.05 * ALTERED


def run_apart(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(mutations.__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_altered_programs():
    """In a process of its own, whose memory is bounded, and the time of each program."""
    pytest.importorskip("ftwt.runtime._native")
    done = run_apart(mutations.__file__, str(ALTERED), str(MANY_ALTERED), "programs")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["native", "sanitized"])
def test_the_record_of_altered_programs(name):
    """Of `tools/fuzz.py`, which writes nothing where one crashed, hung or differed."""
    path = Path(__file__).parents[2] / f"results/fuzz/{name}.json"
    record = json.loads(path.read_text())
    found, sanitized = record["outcomes"], name == "sanitized"
    assert record["programs"] >= (2_000 if sanitized else 20_000)
    assert record["sanitized"] is sanitized and found["slowest_s"] < mutations.SECONDS
    ends = ("refused", "ran", "built alone", "not made")
    assert sum(found.get(end, 0) for end in ends) == record["programs"]
    assert found["ran"] > record["programs"] / 4 and len(record["instruction_sets"]) >= 3


@pytest.mark.parametrize(
    ("what", "ended"),
    [
        ("while True: pass", -signal.SIGPROF),
        ("sum(range(10**11))", -signal.SIGPROF),  # one call, that no handler of Python's interrupts
        ("pass", 0),
    ],
)
def test_a_program_that_takes_too_long_ends_the_process(what, ended):
    code = f"import mutations\nwith mutations.bounded(0.2):\n  {what}"
    done = run_apart("-c", code)
    assert done.returncode == ended and ("<string>" in done.stderr) is (ended != 0)


if __name__ == "__main__":
    first, count = map(int, sys.argv[1:])
    for number in range(first, first + count):
        compare(number)
    print(f"{count} programs, no difference")
