"""Train and infer for a long time in one process, and fail if it comes to hold more and more.

    python tools/soak.py --minutes 30    # writes results/soak.json

Each round trains a small dynamic network under a budget, stops it in mid-epoch, resumes it, saves
it, loads it, evaluates it, compiles it, and runs its engines on batches of changing sizes. Between
rounds it notes its memory (its own, swapped out or not), the open files and the threads. After a
warm-up all three have to stay flat: memory is judged by its slope, files and threads by their most.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import ftwt
from ftwt import data, models, runtime
from ftwt.data import Batches
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.training.loop import Interrupted
from toys import Watched

NETWORK = "cifar10-mobilenet-v1-x0.25"
CONFIG = ftwt.TrainConfig(
    epochs=2,
    lr=0.02,
    target_reduction=0.3,
    predictor_warmup_steps=2,
    anneal_epochs=0.5,
    ema_decay=0.9,
)
IMAGES, BATCH = 96, 32  # of training; a round is then a second or two
WARM_UP = 0.2  # share of the time in which caches fill and the allocator settles
BOUND_MB_PER_HOUR = 60.0  # a megabyte a minute
SIZES = (1, 3, 16, 2, 7, 32, 1)


@dataclass(frozen=True)
class Sample:
    """What the process holds after a round."""

    seconds: float
    round: int
    memory_mb: float
    files: int
    threads: int
    objects: int


@dataclass(frozen=True)
class Judgement:
    """Whether what a process holds stayed flat after the warm-up.

    Args:
        samples: How many were judged.
        growth_mb_per_hour: Median of the slopes between all pairs of samples (Theil and Sen's).
        bound_mb_per_hour: The most that it may be.
        files: Most open files in the first and in the last third.
        threads: Likewise.
        faults: What grew; empty if nothing did.
    """

    samples: int
    growth_mb_per_hour: float
    bound_mb_per_hour: float
    files: tuple[int, int]
    threads: tuple[int, int]
    faults: tuple[str, ...]


def judge(samples: Sequence[Sample], *, bound: float = BOUND_MB_PER_HOUR) -> Judgement:
    """Judge samples of one process, the warm-up's left out.

    Raises:
        ValueError: Fewer than six remain: the run was too short to say anything.
    """
    end = samples[-1].seconds if samples else 0.0
    kept = [sample for sample in samples if sample.seconds >= WARM_UP * end]
    if len(kept) < 6:
        raise ValueError(f"{len(kept)} rounds after the warm-up, 6 are needed; give more --minutes")
    slopes = [
        (b.memory_mb - a.memory_mb) / (b.seconds - a.seconds) for a, b in combinations(kept, 2)
    ]
    growth = 3600 * statistics.median(slopes)
    third = len(kept) // 3
    files, threads = (
        (max(getattr(s, kind) for s in kept[:third]), max(getattr(s, kind) for s in kept[-third:]))
        for kind in ("files", "threads")
    )
    faults = []
    if growth > bound:
        faults.append(f"memory grows by {growth:.1f} MB an hour, more than {bound:g}")
    for kind, (first, last) in (("open files", files), ("threads", threads)):
        if last > first:
            faults.append(f"{kind} grew from {first} to {last}")
    return Judgement(len(kept), growth, bound, files, threads, tuple(faults))


class Soak:
    """The rounds; what they have done so far is in `done`."""

    def __init__(self) -> None:
        images = data.load("cifar10-embedded", None, train=True)
        rest, held = data.hold_out(images, count=IMAGES, seed=0)
        _, few = data.hold_out(rest, count=IMAGES, seed=0)
        self.train = Batches(few, batch_size=BATCH, train=True)
        self.held = Batches(held, batch_size=2 * BATCH)
        self.example, _ = next(iter(self.held))
        torch.manual_seed(0)
        self.dense = models.create(NETWORK)
        self.done = {"training_steps": 0, "resumes": 0, "engines": 0, "engine_runs": 0}

    def round(self, number: int) -> None:
        """Train, stop, resume, save, load, evaluate, compile and infer, once."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._learn(folder, number)
            self._infer(folder, number)

    def _learn(self, folder: Path, number: int) -> None:
        config = replace(CONFIG, seed=number)
        after = 1 + number % (CONFIG.epochs * len(self.train) - 1)
        options: dict[str, Any] = {"output": folder / "run", "progress": False}

        def network() -> ftwt.DynamicModel:
            return ftwt.convert(self.dense, self.example[:2], r=0.9)

        try:
            stopping = Watched(after, lambda: os.kill(os.getpid(), signal.SIGINT), self.train)
            ftwt.train(network(), stopping, self.held, config, **options)
        except Interrupted:
            self.done["resumes"] += 1
        model = network()
        ftwt.train(model, self.train, self.held, config, resume=True, **options)
        self.done["training_steps"] += config.epochs * len(self.train)
        ftwt.estimate(model, self.held, images=64)
        ftwt.evaluate(model, self.held)
        ftwt.save_pretrained(model, folder / "model", name=NETWORK)

    def _infer(self, folder: Path, number: int) -> None:
        model = ftwt.from_pretrained(folder / "model")
        assert isinstance(model, ftwt.DynamicModel)
        path = folder / "net.ftwt"
        eight = {"precision": "int8", "calibrate": [self.example]}
        for threads, given in ((1, {}), (2, eight)) if number % 2 else ((1, eight), (2, {})):
            with torch.no_grad():
                engine = ftwt.compile(model, threads=threads, **given)
            engine.save(path)
            engines = [engine, *(runtime.load(path, threads=threads) for _ in range(5))]
            for turn, one in enumerate(engines):
                for size in SIZES[turn % 2 :]:
                    one.run(self.example[:size])
                    self.done["engine_runs"] += 1
            self.done["engines"] += len(engines)


def soak(
    minutes: float, *, rounds: Callable[[int], None], show: Callable[[str], None] = print
) -> list[Sample]:
    """Repeat rounds for so many minutes; a sample after each.

    Args:
        minutes: How long.
        rounds: Does the round of a number, from 0 on.
        show: Is told of each tenth round.
    """
    process, began = psutil.Process(), time.monotonic()
    samples: list[Sample] = []
    while time.monotonic() - began < 60 * minutes:
        rounds(len(samples))
        gc.collect()
        memory = process.memory_full_info()
        sample = Sample(
            seconds=round(time.monotonic() - began, 2),
            round=len(samples),
            memory_mb=round((memory.uss + getattr(memory, "swap", 0)) / 2**20, 2),
            files=process.num_fds(),
            threads=process.num_threads(),
            objects=len(gc.get_objects()),
        )
        samples.append(sample)
        if sample.round % 10 == 0:
            show(json.dumps(asdict(sample)))
    return samples


def main() -> int:
    """Soak, judge, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", default="results/soak.json")
    parser.add_argument("--bound", type=float, default=BOUND_MB_PER_HOUR, help="MB per hour")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, work = Start(), Soak()
    samples = soak(arguments.minutes, rounds=work.round, show=lambda line: print(line, flush=True))
    found = judge(samples, bound=arguments.bound)
    every = max(1, len(samples) // 200)
    config = {"minutes": arguments.minutes, "network": NETWORK, "train": CONFIG.to_json()}
    origin = provenance(config=config, seed=0, since=began)
    result = {
        "kind": "soak",
        "rounds": len(samples),
        **work.done,
        **asdict(found),
        "history": [asdict(sample) for sample in samples[::every]],
        "provenance": origin,
    }
    write_json(arguments.output, result)
    print(json.dumps(asdict(found), indent=2))
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
