"""Single convolutions of the engine, in float32 and in eight bits: all channels, and half of them.

    python benchmarks/convolutions.py --output results/convolutions.json
    python benchmarks/convolutions.py --isa avx2 --only 64,64,56,3

For each shape four programs run in turns on one thread, so that all see the same machine: float32
and u8, dense, and with half of the inputs active and half of the filters kept, by lot. Of each, the
least time of the rounds counts: what the convolution alone took. Whole networks are timed by
`ftwt bench --precision int8`.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.runtime import (
    Conv,
    Dequantize,
    Engine,
    Fixed,
    Gate,
    Program,
    QConv,
    Quantize,
    Silence,
)


class Shape(NamedTuple):
    """Inputs, filters, rows and columns of the input, side of the kernel, stride, groups."""

    inputs: int
    filters: int
    side: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def out(self) -> int:
        """Rows and columns of the output."""
        return (self.side - 1) // self.stride + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all pairs."""
        pairs = self.inputs * self.filters // self.groups
        return pairs * self.kernel**2 * self.out**2


SHAPES = (
    Shape(3, 64, 224, 7, 2), Shape(64, 64, 56, 3), Shape(128, 128, 28, 3), Shape(256, 256, 14, 3),
    Shape(512, 512, 7, 3), Shape(64, 128, 56, 3, 2), Shape(256, 64, 56, 1), Shape(64, 256, 56, 1),
    Shape(1024, 256, 14, 1), Shape(512, 1024, 28, 1, 2), Shape(16, 16, 32, 3),
    Shape(32, 32, 16, 3), Shape(64, 64, 8, 3), Shape(512, 512, 4, 3), Shape(512, 512, 2, 3),
    Shape(2048, 1000, 1, 1), Shape(32, 32, 112, 3, 1, 32), Shape(128, 128, 56, 3, 2, 128),
    Shape(512, 512, 14, 3, 1, 512),
)  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", help="a JSON file")
    parser.add_argument("--isa", help="instruction set; the best if not given")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", metavar="C,K,SIDE,KERNEL[,STRIDE[,GROUPS]]")
    given = parser.parse_args()
    shapes = SHAPES
    if given.only:
        shapes = tuple(Shape(*map(int, text.split(","))) for text in given.only)
    table = Table("convolution", "float32 µs", "int8 µs", "over", "half: float32", "int8", "over")
    found = []
    for shape in shapes:
        found.append(measure(shape, given.isa, given.rounds))
        us = [f"{found[-1][name]:.1f}" for name in ("f32", "int8", "half_f32", "half_int8")]
        over = [f"{found[-1][h + 'f32'] / found[-1][h + 'int8']:.2f}" for h in ("", "half_")]
        table.add_row(str(tuple(shape)), *us[:2], over[0], *us[2:], over[1])
    Console(width=120).print(table)
    if given.output:
        isa = given.isa or Engine(program(SHAPES[0], True, False)).isa
        figures = {"isa": isa, "rounds": given.rounds, "microseconds": found}
        write_json(given.output, figures | {"provenance": provenance(seed=0)})


def measure(shape: Shape, isa: str | None, rounds: int) -> dict[str, Any]:
    """Time one shape; microseconds."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, shape.inputs, shape.side, shape.side)).astype(np.float32)
    cases = {
        ("half_" if half else "") + ("int8" if small else "f32"): Engine(
            program(shape, small, half), isa=isa
        )
        for half in (False, True)
        for small in (False, True)
    }
    runs = int(np.clip(2e8 / shape.macs, 2, 200))
    least = dict.fromkeys(cases, np.inf)
    for _ in range(rounds):
        for name, engine in cases.items():
            ms = engine.profile(x, runs=runs)
            place = next(
                i for i, op in enumerate(engine.program.operations) if op.name == "convolution"
            )
            least[name] = min(least[name], 1e3 * float(ms[place]))
    return shape._asdict() | {"macs": shape.macs} | least


def program(shape: Shape, small: bool, half: bool) -> Program:
    """One convolution; `small`: of a u8 map, to one; `half`: of half the inputs and filters."""
    rng = np.random.default_rng(1)
    size = (shape.inputs, shape.side, shape.side)
    maps, types, scales = [size], ["f32"], [1.0]
    operations: list[Any] = []
    gates: list[Gate] = []
    constants: dict[str, np.ndarray] = {}

    def new(out: tuple[int, int, int], kind: str, scale: float) -> int:
        maps.append(out), types.append(kind), scales.append(float(np.float32(scale)))
        return len(maps) - 1

    if small:
        operations.append(Quantize(name="quantize", x=0, out=new(size, "u8", 0.02)))
    if half:
        for name, channels in (("inputs", shape.inputs), ("filters", shape.filters)):
            kept = rng.permutation(channels)[: max(1, channels // 2)]
            if shape.groups > 1 and name == "filters":
                kept = np.flatnonzero(constants["inputs"])
            constants[name] = np.isin(np.arange(channels), kept).astype(np.uint8)
            gates.append(Gate(unit=name, channels=channels, prior=channels))
            operations.append(Fixed(name=name, mask=len(gates) - 1, value=name))
        silent = new(size, types[-1], scales[-1])
        operations.append(Silence(name="silence", x=silent - 1, out=silent, mask=0))
    x = len(maps) - 1
    weight = (shape.filters, shape.inputs // shape.groups, shape.kernel, shape.kernel)
    constants["bias"] = np.zeros(shape.filters, np.float32)
    if small:
        constants["weight"] = rng.integers(-127, 128, weight).astype(np.int8)
        constants["scale"] = np.full(shape.filters, 1e-4, np.float32)
    else:
        constants["weight"] = rng.standard_normal(weight).astype(np.float32)
    out = new((shape.filters, shape.out, shape.out), "u8" if small else "f32", 0.05 if small else 1)
    border = shape.kernel // 2
    fields = {"weight": "weight", "bias": "bias"} | ({"scale": "scale"} if small else {})
    operations.append(
        (QConv if small else Conv)(
            name="convolution", x=x, out=out, stride=(shape.stride,) * 2, padding=(border,) * 4,
            groups=shape.groups, act="relu", mask=1 if half else None, **fields,
        )
    )  # fmt: skip
    if small:  # what comes out of a program is float32
        operations.append(Dequantize(name="out", x=out, out=new(maps[-1], "f32", 1.0)))
    return Program(
        tuple(maps), tuple(gates), tuple(operations), len(maps) - 1, constants, shape.macs,
        types=tuple(types), scales=tuple(scales),
    )  # fmt: skip


if __name__ == "__main__":
    main()
