"""The main job in two minutes: prune a trained network on the images in the package."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import nn

from ..budget.estimate import estimate
from ..config import DataConfig, PruneConfig, RunConfig, TrainConfig
from ..data import Epochs
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.record import record
from ..files.json import write_json
from ..files.provenance import provenance
from ..lowering.compile import compile
from ..networks.sources import load_network
from ..networks.splits import load_splits
from ..pruning.convert import convert
from ..records.recording import RECORDING
from ..report.write import write_report
from ..training.lock import held
from ..training.loop import Epoch, train

MODEL = "cifar10-resnet20"
ROUNDS = 5  # of timing images on the engine
TIMED, TURNS = 4, 5  # steps of a timed epoch, one epoch of warm-up before it; turns of each network

TRAINING = TrainConfig(
    epochs=24,
    lr=0.02,
    predictor_warmup_steps=40,
    distillation=1.0,  # so few images teach little; the dense network knows more
    precision="bf16",
    channels_last=True,
)


@dataclass(frozen=True)
class DemoResult:
    """Before and after, on the 1,000 embedded test images.

    Args:
        asked: Share of the MACs to save.
        r: The threshold that the estimate gave for it.
        predicted: Executed reduction that the estimate gave for that r.
        dense: The network as it was.
        dynamic: The same network, pruned and trained.
        dense_step_ms: Time of one training step of 128 images, dense, in milliseconds.
        dynamic_step_ms: The same with gates.
        dense_image_ms: Time of one image on the native engine with one thread, dense; None where
            that engine was not built.
        dynamic_image_ms: The same of the pruned network, over the same images.
        history: What each epoch of the training came to.
        seconds: Time of the training.
        provenance: Where the figures come from.
    """

    asked: float
    r: float
    predicted: float
    dense: Evaluation
    dynamic: Evaluation
    dense_step_ms: float
    dynamic_step_ms: float
    dense_image_ms: float | None
    dynamic_image_ms: float | None
    history: tuple[Epoch, ...]
    seconds: float
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return asdict(self) | {"dense": self.dense.to_json(), "dynamic": self.dynamic.to_json()}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, after = self.dense, self.dynamic
        table = Table("", title=f"{MODEL} on {after.images:,} CIFAR-10 test images")
        table.add_column("dense", justify="right")
        table.add_column("dynamic", justify="right")
        table.add_row("top-1 accuracy", f"{before.top1:.1%}", f"{after.top1:.1%}")
        macs = [f"{e.executed_macs / 1e6:.2f} M" for e in (before, after)]
        table.add_row("MACs executed per image", *macs)
        table.add_row("reduction: asked", "", f"{self.asked:.1%}")
        table.add_row(f"reduction: predicted, r = {self.r:.3f}", "", f"{self.predicted:.1%}")
        spread = f"{after.reduction:.1%} ± {after.reduction_std:.1%}"
        table.add_row("reduction: achieved, over images", "", spread)
        table.add_row("reduction: achieved, as published", "", f"{after.published_reduction:.1%}")
        table.add_row("mask accuracy", "", f"{after.mask_accuracy or 0:.1%}")
        steps = [f"{ms:.0f} ms" for ms in (self.dense_step_ms, self.dynamic_step_ms)]
        table.add_row("training step of 128 images", *steps)
        if self.dense_image_ms and self.dynamic_image_ms:
            images = [f"{ms:.2f} ms" for ms in (self.dense_image_ms, self.dynamic_image_ms)]
            table.add_row("an image, native engine, one thread", *images)
        yield table


def demo(
    *,
    reduction: float = 0.3,
    epochs: int = TRAINING.epochs,
    output: str | os.PathLike[str] = "runs/demo",
    console: Console | None = None,
) -> DemoResult:
    """Estimate, convert, train a few epochs and evaluate on real images.

    Args:
        reduction: Share of the multiply-accumulates to save.
        epochs: Epochs on the 1,600 training images (400 of the 2,000 settle the budget).
        output: Folder for `demo.json`, `estimate.json`, `recording.safetensors` and the page
            `index.html`.
        console: Where to tell each step; standard output if not given.

    Returns:
        Accuracy and cost before and after.

    Raises:
        ValueError: If the reduction is out of reach, or another run is in the folder.
    """
    with held(output):
        return _demo(reduction, epochs, Path(output), console or Console())


def _demo(reduction: float, epochs: int, folder: Path, told: Console) -> DemoResult:
    data = DataConfig(dataset="cifar10-embedded", validation=400)
    splits = load_splits(data, batch_size=TRAINING.batch_size, channels_last=True)
    warmup = min(TRAINING.predictor_warmup_steps, epochs * len(splits.train) // 2)
    config = replace(
        TRAINING, epochs=epochs, target_reduction=reduction, predictor_warmup_steps=warmup
    )

    told.rule("1. A trained network")
    dense = load_network(MODEL, "pretrained")
    before = evaluate(dense, splits.test)
    told.print(before)

    told.rule("2. What r would save: one pass, before any training")
    curve = estimate(dense, splits.plain)
    told.print(curve)
    r = curve.r_for(reduction=reduction)
    told.print(f"r = {r:.3f} for a reduction of {reduction:.1%}")

    told.rule("3. Gates: a small predictor for each unit")
    example, _ = next(iter(splits.plain))
    dynamic = convert(dense, example, r=r)
    told.print(dynamic.summary())

    told.rule(f"4. Training, epochs: {epochs}")
    step_ms = _step_ms((dense, dynamic), splits.train)
    trained = train(dynamic, splits.train, splits.validation, config, teacher=copy.deepcopy(dense))

    image_ms = _image_ms(dense, dynamic, splits.test)
    whole = RunConfig(MODEL, "pretrained", data, PruneConfig(r=r), train=config)
    result = DemoResult(
        asked=reduction,
        r=r,
        predicted=curve.reduction_at(r),
        dense=before,
        dynamic=evaluate(dynamic, splits.test),
        dense_step_ms=step_ms[0],
        dynamic_step_ms=step_ms[1],
        dense_image_ms=image_ms[0],
        dynamic_image_ms=image_ms[1],
        history=trained.history,
        seconds=trained.seconds,
        provenance=provenance(config=whole, seed=config.seed, duration_s=trained.seconds),
    )
    told.rule("5. What came of it")
    told.print(result)
    files = [folder / name for name in ("demo.json", "estimate.json", RECORDING)]
    write_json(files[0], result.to_json())
    curve.save(files[1])
    record(dynamic, splits.test, network=MODEL, provenance=result.provenance).save(files[2])
    report = write_report(files, folder / "index.html")
    told.print(f"figures: {files[0]}   page, to open in a browser: {report.page}")
    return result


def _step_ms(networks: Sequence[nn.Module], batches: Epochs) -> list[float]:
    """Time of a training step of a copy of each network, in milliseconds: in turns, medians."""
    few = list(islice(batches, TIMED))
    config = replace(TRAINING, epochs=2, predictor_warmup_steps=0, distillation=0.0, cooldown=1)
    speeds = np.zeros((TURNS, len(networks)))
    for turn in speeds:
        for number, network in enumerate(networks):
            trained = train(copy.deepcopy(network), few, few[:1], config, progress=False)
            turn[number] = trained.history[-1].images_per_s
    return [1e3 * config.batch_size / float(speed) for speed in np.median(speeds, axis=0)]


def _image_ms(
    dense: nn.Module, dynamic: nn.Module, batches: Epochs
) -> tuple[float, float] | tuple[None, None]:
    """Time of one image on an engine of each network, in milliseconds: in turns, medians."""
    images, _ = next(iter(batches))
    images = images.float().contiguous()
    try:
        engines = (compile(dense, images[:1]), compile(dynamic))
    except RuntimeError:  # no native engine here
        return None, None
    taken = np.zeros((ROUNDS, len(images), len(engines)))
    for round_ in taken:
        for times, image in zip(round_, images, strict=True):
            for number, engine in enumerate(engines):
                start = time.perf_counter()
                engine(image[None])
                times[number] = time.perf_counter() - start
    dense_ms, dynamic_ms = 1e3 * np.median(taken, axis=0).mean(0)
    return float(dense_ms), float(dynamic_ms)
