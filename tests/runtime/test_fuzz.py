"""The native engine is the reference engine, on random programs, masks and batches."""

import dataclasses

import numpy as np
import pytest
from programs import MASKS, mask, random_program

from ftwt.runtime import Engine, Predict, Program

PROGRAMS, MANY = 150, 5000
MARGIN = 1e-3  # a logit nearer to its threshold than this may be decided either way


def engines(program: Program) -> list[Engine]:
    native = pytest.importorskip("ftwt.runtime._native")
    return [Engine(program, isa=isa, threads=n) for isa in native.isas() for n in (1, 2)]


def decided(program: Program, x: np.ndarray) -> dict[str, np.ndarray]:
    """The masks that the predictors decide if none of it is a close call; otherwise all of them.

    Close: another threshold nearby would have decided otherwise.
    """

    def masks(shift: float) -> dict[str, np.ndarray]:
        moved = [
            dataclasses.replace(op, threshold=op.threshold + shift)
            if isinstance(op, Predict)
            else op
            for op in program.operations
        ]
        other = dataclasses.replace(program, operations=tuple(moved))
        return Engine(other, engine="reference").run(x)[1].masks

    low, high = masks(-MARGIN), masks(MARGIN)
    return {} if all(np.array_equal(low[unit], high[unit]) for unit in low) else low


def compare(seed: int) -> None:
    program, rng = random_program(seed), np.random.default_rng([seed, 2])
    samples = int(rng.choice((1, 1, 2, 3, 5, 17)))
    x = rng.standard_normal((samples, *program.maps[0])).astype(np.float32)
    forced = {
        gate.unit: mask(str(rng.choice(MASKS)), samples, gate.channels, rng)
        for gate in program.gates
    }
    reference = Engine(program, engine="reference")
    cases = [given for given in (decided(program, x), forced) if given or given is not forced]
    wanted = [reference.run(x, given) for given in cases]
    for engine in engines(program):
        for given, (output, stats) in zip(cases, wanted, strict=True):
            result, found = engine.run(x, given)
            where = f"seed {seed}, {engine}, {'forced' if given else 'decided'} masks"
            for unit, expected in stats.masks.items():
                assert np.array_equal(found.masks[unit], expected), f"{where}: mask of {unit}"
            differ = np.flatnonzero((found.macs != stats.macs).any(0))
            assert not differ.size, f"{where}: MACs of {program.operations[differ[0]]}"
            assert result.shape == output.shape
            error, scale = np.abs(result - output).max(), np.abs(output).max()
            assert error <= 1e-4 * max(scale, 1e-2), f"{where}: {error} of {scale}"


@pytest.mark.parametrize("start", range(0, PROGRAMS, 10))
def test_native_equals_reference(start):
    for seed in range(start, start + 10):
        compare(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_native_equals_reference_on_many_programs():
    for seed in range(PROGRAMS, MANY):
        compare(seed)


def test_random_programs_hold_everything():
    programs = [random_program(seed) for seed in range(PROGRAMS)]
    operations = [op for program in programs for op in program.operations]
    kinds = {type(op).__name__ for op in operations}
    assert len(kinds) == 10
    convs = [op for op in operations if type(op).__name__ == "Conv"]
    for field in ("mask", "add", "after"):
        assert sum(getattr(op, field) is not None for op in convs) > 30, field
    assert sum(op.groups > 1 for op in convs) > 30
    predictors = [op for op in operations if isinstance(op, Predict)]
    assert sum(op.softmax for op in predictors) > 30
    assert sum(op.reduce is not None for op in predictors) > 30
