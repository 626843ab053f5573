"""How long each training of a sweep would take: images a second of one thread's own time.

    python benchmarks/paper_rows.py

The steps of `paper_rows.sweep` are taken on random images, as many before the cooldown as after it.
The processor's time is counted, not the clock's, so that other work on the machine hardly matters.
Trainings of one network, kind and mode are taken once. Writes `results/paper-rows.json`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ftwt import convert, models
from ftwt.cli import parse
from ftwt.config import RunConfig
from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.runs.sweep_file import read_sweep
from ftwt.training.learner import Learner
from ftwt.training.schedules import Schedule

IMAGES = 45_000  # to train on: CIFAR-10's without those held out
HOME = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", default=str(HOME / "paper_rows.sweep"))
    parser.add_argument("--steps", type=int, default=2, help="in each phase, after one to warm up")
    parser.add_argument("--output", default="results/paper-rows.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), []
    speeds: dict[tuple[Any, ...], float] = {}
    for line in read_sweep(given.sweep):
        config: RunConfig = parse("train", [line.recipe, *line.flags]).run  # type: ignore[attr-defined]
        mode = None if config.prune is None else config.prune.mode
        kind = "twin" if config.twin_of else "dense" if mode is None else "dynamic"
        key = (config.model, kind, mode, config.train.distillation)
        speeds[key] = speeds.get(key) or images_per_s(config, kind, given.steps)
        rows.append(
            {
                "run": Path(line.output).name,
                "recipe": line.recipe,
                "kind": kind,
                "epochs": config.train.epochs,
                "images_per_s": speeds[key],
                "hours": config.train.epochs * IMAGES / speeds[key] / 3600,
            }
        )
        print(rows[-1], flush=True)
    made = provenance(config=vars(given), duration_s=time.perf_counter() - began)
    write_json(given.output, {"rows": rows, "provenance": made})


def images_per_s(config: RunConfig, kind: str, steps: int) -> float:
    """Speed of a training, from steps of both of its phases."""
    dense = models.create(config.model)
    size = config.train.batch_size
    images, labels = torch.randn(size, 3, 32, 32), torch.randint(10, (size,))
    network: nn.Module = dense
    if config.prune is not None:
        dynamic = convert(dense, images[:8], **asdict(config.prune))
        network = dynamic.freeze([images]) if kind == "twin" else dynamic
    teacher = models.create(config.model) if config.train.distillation else None
    schedule = Schedule(config.train, IMAGES // size)
    learner = Learner(network, config.train, schedule, Accelerator(cpu=True), teacher)
    taken = 0.0
    for first in (schedule.warm_up + 1, schedule.cooldown_start + 1):
        for step in range(first, first + steps + 1):
            start = time.process_time()
            learner.learn(step, images, labels)
            taken += (time.process_time() - start) * (step > first)
    return 2 * steps * size / taken


if __name__ == "__main__":
    main()
