"""Where the time of an eight-bit network goes, dense and with half of the filters by lot.

    python benchmarks/operations.py torchvision:resnet18 cifar10-resnet56  # on an idle machine

Each kind of operation: milliseconds of one image on one thread, and how many billions of the
multiply-accumulates that the masks leave it does a second. Beside them stands what one large layer
reaches, 1x1, without gates. Medians over runs in turns, each with masks of its own.
Writes `results/int8-operations.json`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ftwt
from ftwt.contest.steered import Steered, draw
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.runtime import Operation, Predict, Program, QConv

KEEP = 0.5
SMALL = 64  # positions of planes whose weights are much to read
STRAIGHT = (512, 28)  # channels and rows of the layer that nothing slows down


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--output", default="results/int8-operations.json", help="file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = Start()
    subjects = []
    for name in given.networks:
        network = ftwt.models.create(name).eval()
        size = 32 if name.startswith("cifar10") else 224
        subjects += [subject(name, network, size, keep) for keep in (None, KEEP)]
    channels, side = STRAIGHT
    straight = nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, 512, 1))
    subjects.append(subject("one layer", straight.eval(), side, None))
    for _ in range(given.runs):
        for one in subjects:  # in turns, so that all see the same machine
            one.run()
    rows = [row for one in subjects for row in one.rows()]
    for row in rows:
        print(row)
    told = provenance(config=vars(given) | {"output": None}, seed=0, since=began)
    most = max(row["gmacs"] for row in rows if row["network"] == "one layer")
    rows = [row for row in rows if row["network"] != "one layer"]
    write_json(Path(given.output), {"gmacs": most, "rows": rows, "provenance": told})


@dataclass
class Subject:
    """An engine, and what its runs took: milliseconds and MACs of each operation."""

    name: str
    keep: float | None
    engine: Steered
    image: np.ndarray
    times: list[np.ndarray] = field(default_factory=list)
    macs: list[np.ndarray] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def run(self) -> None:
        """Run once, with masks of this run's own."""
        if self.keep is not None:
            self.engine.masks = draw(self.engine.program, np.full(1, self.keep), self.random)
        _, stats = self.engine.run(self.image)
        self.times.append(self.engine.profile(self.image, runs=1))
        self.macs.append(stats.macs[0])

    def rows(self) -> list[dict[str, Any]]:
        """Each kind of operation, those that take longest first."""
        program = self.engine.program
        kinds = [kind(program, op) for op in program.operations]
        spent, done = np.median(self.times, axis=0), np.mean(self.macs, axis=0)
        rows = []
        for one in dict.fromkeys(kinds):
            among = np.array([other == one for other in kinds])
            taken, count = float(spent[among].sum()), int(among.sum())
            row = {"network": self.name, "keep": self.keep, "kind": one, "count": count}
            rows.append(row | {"ms": taken, "gmacs": float(done[among].sum()) / taken / 1e6})
        return sorted(rows, key=lambda row: -row["ms"])


def subject(name: str, network: nn.Module, size: int, keep: float | None) -> Subject:
    """Compile a network in eight bits."""
    images = torch.randn(8, 3, size, size)
    engine = ftwt.compile(
        network, images[:1], keep=keep, precision="int8", calibrate=[images], check=False
    )
    return Subject(name, keep, Steered(engine.program), images[:1].numpy())


def kind(program: Program, op: Operation) -> str:
    """What an operation is called in the table."""
    if isinstance(op, Predict):
        return "predictors"
    if not isinstance(op, QConv):
        return "pools, conversions"
    height, width = program.constants[op.weight].shape[2:]
    rows, columns = program.maps[op.out][1:]
    if op.groups > 1:
        return "depthwise"
    if op.x <= 2 and program.maps[op.x][0] <= 4:
        return "first layer"
    where = "small planes" if rows * columns <= SMALL else "larger planes"
    return f"{height}x{width}, {where}"


if __name__ == "__main__":
    main()
