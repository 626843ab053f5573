"""What the gates cost before they save anything: training steps, and the pass of an estimate.

    python benchmarks/overhead.py --output results/overhead.json

For each network and precision, dense and gated training steps of 128 images alternate, so that both
see the same machine; so do a plain forward pass over 2,048 images and `ftwt.estimate` on the same
ones. Medians over the rounds, and their ratio, are reported.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

import ftwt
from ftwt.config import TrainConfig
from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.models import create
from ftwt.training.learner import Learner
from ftwt.training.schedules import Schedule

NETWORKS = ("cifar10-resnet20", "cifar10-vgg16-bn")
BATCH = 128


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/overhead.json")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of steps")
    parser.add_argument("--passes", type=int, default=5, help="pairs of passes over 2,048 images")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    steps, passes = [], []
    for name in NETWORKS:
        for precision in ("fp32", "bf16"):
            steps.append(step_cost(name, precision, arguments.rounds))
            print(steps[-1])
        passes.append(pass_cost(name, arguments.passes))
        print(passes[-1])
    figures = {"training_step": steps, "estimate": passes, "batch_size": BATCH}
    write_json(arguments.output, figures | {"provenance": provenance(seed=0)})


def step_cost(name: str, precision: str, rounds: int) -> dict[str, object]:
    """Time a training step of 128 images, dense and gated (targets, mask loss, masks)."""
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    dense = create(name)
    gated = ftwt.convert(dense, images[:2], r=0.9)
    config = TrainConfig(epochs=1, cooldown=1.0, precision=precision, channels_last=True)  # type: ignore[arg-type]
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    ms = alternate(
        _step(copy.deepcopy(dense), config, accelerator, images, labels),
        _step(gated, config, accelerator, images, labels),
        rounds,
    )
    return {"network": name, "precision": precision} | ms


def pass_cost(name: str, rounds: int) -> dict[str, object]:
    """Time a forward pass over 2,048 images, and an estimate from the same images."""
    batches = [(torch.randn(256, 3, 32, 32), torch.zeros(256)) for _ in range(8)]
    model = create(name).eval()

    def forward() -> None:
        with torch.no_grad():
            for images, _ in batches:
                model(images)

    ms = alternate(forward, lambda: ftwt.estimate(model, batches), rounds)
    return {"network": name, "images": 2048} | ms


def alternate(
    dense: Callable[[], object], gated: Callable[[], object], rounds: int
) -> dict[str, object]:
    """Call both in turn; return medians in milliseconds, their ratio, and all times."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 2):  # the first two warm up
        for call, kept in zip((dense, gated), times, strict=True):
            start = time.perf_counter()
            call()
            if round_ >= 2:
                kept.append(1e3 * (time.perf_counter() - start))
    medians = [statistics.median(kept) for kept in times]
    return {
        "plain_ms": medians[0],
        "ftwt_ms": medians[1],
        "ratio": medians[1] / medians[0],
        "plain_all_ms": times[0],
        "ftwt_all_ms": times[1],
    }


def _step(
    model: nn.Module,
    config: TrainConfig,
    accelerator: Accelerator,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Callable[[], None]:
    learner = Learner(model, config, Schedule(config, steps_per_epoch=10**6), accelerator)
    learner.begin(1)
    return lambda: learner.learn(1, images, labels)


if __name__ == "__main__":
    main()
