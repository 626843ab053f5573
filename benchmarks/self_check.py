"""What share of compiling the check takes that holds the engine to the network.

    python benchmarks/self_check.py

Each network is compiled several times: dense, and with gates. Those are traced when they are
converted, which is told beside it. Medians; the check is timed by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import nn

import ftwt
from ftwt.lowering import compile as compiling
from ftwt.models import create

NETWORKS = {"torchvision:resnet18": 224, "cifar10-resnet56": 32, "torchvision:mobilenet_v2": 224}


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for name, side in NETWORKS.items():
        example = torch.randn(1, 3, side, side)
        dense = create(name).eval()
        start = time.perf_counter()
        gated = ftwt.convert(dense, example, r=0.9)
        converted = time.perf_counter() - start
        for kind, network, before in (("dense", dense, 0.0), ("gated", gated, converted)):
            took, check = share(network, example, arguments.rounds)
            told = f" after {1e3 * before:.0f} ms of converting" if before else ""
            told += (
                f", of which the check {1e3 * check:.0f} ms: {check / (took + before):.1%} of all"
            )
            print(f"{name}, {kind}: {1e3 * took:.0f} ms{told}", flush=True)


def share(network: nn.Module, example: torch.Tensor, rounds: int) -> tuple[float, float]:
    """Compile a network several times.

    Returns:
        Seconds of compiling with the check, and of the check alone: medians.
    """
    checks: list[float] = []
    verify = compiling.verify

    def timed(*arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        verify(*arguments, **options)
        checks.append(time.perf_counter() - start)

    whole = []
    compiling.verify = timed
    try:
        for _ in range(rounds):
            start = time.perf_counter()
            ftwt.compile(network, None if isinstance(network, ftwt.DynamicModel) else example)
            whole.append(time.perf_counter() - start)
    finally:
        compiling.verify = verify
    return statistics.median(whole), statistics.median(checks)


if __name__ == "__main__":
    main()
