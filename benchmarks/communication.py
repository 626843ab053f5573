"""What several processes send one another in a training step, with gates and without.

    python benchmarks/communication.py --output results/scaling/communication.json

Bytes are counted twice: from the parameters, and by a communication hook that sees each bucket of
gradients of a real step in two processes. Times are of these two processes, on the CPU, over gloo:
they say how a step divides on this machine, and nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ftwt
from ftwt.config import TrainConfig
from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.models import create
from ftwt.processes import leave, processes, without_gpu
from ftwt.training.learner import Learner
from ftwt.training.schedules import Schedule

NETWORKS = {  # name -> image size, images a process in a step
    "cifar10-resnet20": (32, 16),
    "cifar10-vgg16-bn": (32, 4),
    "timm:mobilenetv1_100": (224, 1),
    "torchvision:resnet50": (224, 1),
}
EPOCH = 1000  # steps: a network warms up in the first epoch, and cools down in the third
PHASES: dict[str, tuple[int, int | None] | None] = {  # the epoch, and the predictors' rank
    "dense": None,
    "warm-up": (0, None),
    "gated": (1, None),
    "gated, rank 16": (1, 16),
    "cooldown": (2, None),
}
PROCESSES = 2


def main() -> None:
    """Start the processes, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/scaling/communication.json")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each phase")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    arguments = parser.parse_args()
    if "RANK" in os.environ:  # one of the processes
        found = [
            measure(name, phase, arguments.steps) for name in arguments.networks for phase in PHASES
        ]
        if processes().is_main_process:
            Path(arguments.output).write_text(json.dumps(found), encoding="utf-8")
        leave()
        return
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        own = [f"--nproc-per-node={PROCESSES}", __file__, "--output", str(told)]
        rest = ["--steps", str(arguments.steps), "--networks", *arguments.networks]
        subprocess.run([*torchrun, *own, *rest], check=True)
        steps = json.loads(told.read_text(encoding="utf-8"))
    result = {"processes": PROCESSES, "backend": "gloo", "steps": steps}
    write_json(arguments.output, result | {"provenance": provenance(seed=0)})


def measure(name: str, phase: str, steps: int) -> dict[str, Any]:
    """Count and time the steps of one phase of a network's training."""
    side, count = NETWORKS[name]
    torch.manual_seed(0)
    images, labels = torch.randn(count, 3, side, side), torch.randint(0, 10, (count,))
    model = create(name)
    epoch, rank = PHASES[phase] or (0, None)
    if gated := PHASES[phase] is not None:
        model = ftwt.convert(model, images[:1], r=0.9, rank=rank)
    config = TrainConfig(
        epochs=3,
        batch_size=count * PROCESSES,
        predictor_warmup_steps=EPOCH * gated,
        cooldown=2 / 3,
    )
    schedule = Schedule(config, steps_per_epoch=EPOCH)
    accelerator = accelerate()
    learner = Learner(model, config, schedule, accelerator)
    first = EPOCH * epoch + 1  # of the phase; measurements of masks fall on other steps
    learner.begin(first)
    seen = Seen()
    learner.model.register_comm_hook(seen, average)
    whole = []
    for number in range(steps + 2):
        seen.bytes, seen.ms = [], 0.0
        dist.barrier()
        start = time.perf_counter()
        learner.learn(first, images, labels)
        if number >= 2:  # the first two warm up, and sort the parameters into buckets
            whole.append((1e3 * (time.perf_counter() - start), seen.ms))
    buffers = list(model.buffers())
    learns = [p for p in model.parameters() if p.requires_grad]
    print(name, phase, seen.bytes, flush=True)
    result = {
        "network": name,
        "phase": phase,
        "images_per_process": count,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gradient_bytes": sum(p.numel() * p.element_size() for p in learns),
        "buckets_bytes": seen.bytes,
        "buffer_bytes": sum(b.numel() * b.element_size() for b in buffers),
        "step_ms": statistics.median(ms for ms, _ in whole),
        "all_reduce_ms": statistics.median(ms for _, ms in whole),
    }
    learner.release()
    return result


def accelerate() -> Any:
    """What training itself shares gradients with."""
    from accelerate import Accelerator

    processes()
    return Accelerator(cpu=without_gpu())


class Seen:
    """What the buckets of a step were, and how long their averaging took."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.ms = 0.0


def average(seen, bucket):  # without annotations, which DDP would read as strings, and refuse
    """Average a bucket over all processes as DDP does, but waiting for it."""
    buffer = bucket.buffer()
    seen.bytes.append(buffer.numel() * buffer.element_size())
    start = time.perf_counter()
    dist.all_reduce(buffer.div_(dist.get_world_size()))
    seen.ms += 1e3 * (time.perf_counter() - start)
    done = torch.futures.Future()
    done.set_result(buffer)
    return done


if __name__ == "__main__":
    main()
