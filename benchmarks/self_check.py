"""What share of compiling the check takes that holds the engine to the network.

    python benchmarks/self_check.py --output results/self-check.json

Each network is compiled several times: dense; with gates as `convert` leaves them, which keep
everything; and with gates that decide. A network with gates was traced when it was converted, so
that stands beside it, and what one pass takes in PyTorch and in the engine: no check takes less.
Medians of one thread; the check is timed by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import ftwt
from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.lowering import compile as compiling
from ftwt.models import create

NETWORKS = {"torchvision:resnet18": 224, "cifar10-resnet56": 32, "torchvision:mobilenet_v2": 224}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/self-check.json")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, side in NETWORKS.items():
        example = torch.randn(1, 3, side, side)
        dense = create(name).eval()
        converted = milliseconds(lambda d=dense, x=example: ftwt.convert(d, x, r=0.9), 3)  # type: ignore[misc]
        gated = ftwt.convert(dense, example, r=0.9).eval()
        decided = ftwt.convert(dense, example, r=0.9).eval()
        decide(decided)
        for gates, network in (("none", dense), ("as converted", gated), ("that decide", decided)):
            before = 0.0 if network is dense else converted
            rows.append({"network": f"{name}, {side}", "gates": gates, "convert_ms": before})
            rows[-1] |= shares(network, example, arguments.rounds)
            print(rows[-1], flush=True)
    figures = {"rows": rows, "rounds": arguments.rounds, "provenance": provenance(seed=0)}
    write_json(arguments.output, figures)


def decide(dynamic: ftwt.DynamicModel) -> None:
    """Let each predictor keep about half of its filters, by lot, whatever it sees."""
    for predictor in dynamic.predictors.values():
        bias = predictor.linear.bias.detach()
        bias.copy_(torch.randint(0, 2, bias.shape) * 2.0 - 1)


def shares(network: nn.Module, example: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Compile a network several times; return medians in milliseconds, all times too."""
    checks: list[float] = []
    verify = compiling.verify

    def timed(*arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        verify(*arguments, **options)
        checks.append(1e3 * (time.perf_counter() - start))

    given = None if isinstance(network, ftwt.DynamicModel) else example
    whole: list[float] = []
    compiling.verify = timed
    try:
        for _ in range(rounds):
            whole.append(milliseconds(lambda: ftwt.compile(network, given), 1))
    finally:
        compiling.verify = verify
    engine, images = ftwt.compile(network, given, check=False), example.numpy()
    with torch.no_grad():
        in_torch = milliseconds(lambda: network(example), rounds)
    return {
        "compile_ms": statistics.median(whole),
        "check_ms": statistics.median(checks),
        "pass_in_torch_ms": in_torch,
        "pass_in_engine_ms": milliseconds(lambda: engine(images), rounds),
        "compile_all_ms": whole,
        "check_all_ms": checks,
    }


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main()
