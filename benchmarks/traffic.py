"""How near VGG16-BN's late layers come to the memory's speed: they are weight traffic.

    python benchmarks/traffic.py                      # on an otherwise idle machine

Half of the inputs and half of the filters, by lot, leave a quarter of the MACs; but weights come
in cache lines of sixteen inputs, and at least one of sixteen is active, so that half of the bytes
must be read. The bound is these bytes at the speed at which one layer, too large for any cache,
streams its weights through the same kernels in the same run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import ftwt
from ftwt.contest.steered import Steered, draw
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.runtime import Conv, Engine, Operation, Program, Stats

LARGE = 8192  # inputs and outputs of the layer that streams: 256 MiB
SMALL = 16  # positions of the planes that count as small


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="results/engine-traffic.json", help="file")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    began = Start()
    torch.manual_seed(0)
    network = ftwt.models.create("cifar10-vgg16-bn").eval()
    image = torch.randn(1, 3, 32, 32)
    program = ftwt.compile(network, image, keep=arguments.keep).program
    engine, stream = Steered(program), Engine(linear(LARGE))
    one = np.ones((1, LARGE, 1, 1), np.float32)
    random = np.random.default_rng(0)

    layers = [i for i, op in enumerate(program.operations) if is_small(program, op)]
    times, speeds, moved = [], [], []
    for _ in range(arguments.rounds):
        engine.masks = draw(program, np.full(1, arguments.keep), random)
        _, stats = engine.run(image.numpy())
        moved.append([traffic(program, program.operations[i], stats) for i in layers])
        times.append(engine.profile(image.numpy(), runs=1)[layers])
        speeds.append(4e-6 * LARGE**2 / stream.profile(one, runs=1).sum())
    milliseconds = np.median(times, axis=0)
    megabytes = np.mean(moved, axis=0) / 1e6
    bound = megabytes / np.median(speeds)
    result = {
        "network": "cifar10-vgg16-bn",
        "keep": arguments.keep,
        "stream_gb_per_s": float(np.median(speeds)),
        "layers": [
            {
                "name": program.operations[i].name,
                "megabytes": float(megabytes[k]),
                "bound_ms": float(bound[k]),
                "measured_ms": float(milliseconds[k]),
            }
            for k, i in enumerate(layers)
        ],
        "bound_ms": float(bound.sum()),
        "measured_ms": float(milliseconds.sum()),
        "reached": float(bound.sum() / milliseconds.sum()),
        "provenance": provenance(config=vars(arguments), seed=0, since=began),
    }
    write_json(Path(arguments.output), result)
    table = Table("layer", "MB", "bound, ms", "measured, ms")
    for layer in result["layers"]:
        values = (layer["megabytes"], layer["bound_ms"], layer["measured_ms"])
        table.add_row(layer["name"], *(f"{value:.3f}" for value in values))
    Console().print(table)
    print(f"{result['stream_gb_per_s']:.1f} GB/s; {result['reached']:.2f} of the bound")


def linear(width: int) -> Program:
    """One layer of width x width weights."""
    constants = {
        "weight": np.full((width, width, 1, 1), 1e-3, np.float32),
        "bias": np.zeros(width, np.float32),
    }
    layer = Conv(name="stream", x=0, out=1, weight="weight", bias="bias")
    return Program(((width, 1, 1),) * 2, (), (layer,), 1, constants, width**2)


def is_small(program: Program, operation: Operation) -> bool:
    """Whether an operation is a gated 3x3 convolution on a small plane."""
    if not isinstance(operation, Conv) or operation.mask is None:
        return False
    _, height, width = program.maps[operation.out]
    return height * width <= SMALL and program.constants[operation.weight].shape[2] == 3


def traffic(program: Program, operation: Operation, stats: Stats) -> int:
    """Bytes of weights: whole rows of the filters that are computed."""
    assert isinstance(operation, Conv) and operation.mask is not None
    filters = stats.masks[program.gates[operation.mask].unit].sum()
    return int(filters) * program.constants[operation.weight][0].nbytes


if __name__ == "__main__":
    main()
