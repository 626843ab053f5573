"""The main job in two minutes: prune a trained network on the images in the package."""

from __future__ import annotations

import copy
import io
import os
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import nn

from .config import DataConfig, TrainConfig
from .convert import convert
from .data import Batches
from .estimate import estimate
from .evaluate import Evaluation, evaluate
from .models import create
from .results import provenance, replacing, write_json
from .run import load_splits
from .train import train

MODEL = "cifar10-resnet20"
STEPS_TIMED = 12

TRAINING = TrainConfig(
    epochs=8,
    lr=0.004,
    predictor_warmup_steps=40,
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
    seconds: float
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"dense": self.dense.to_json(), "dynamic": self.dynamic.to_json()}

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
        yield table


def demo(
    *, reduction: float = 0.3, epochs: int = 8, output: str | os.PathLike[str] = "runs/demo"
) -> DemoResult:
    """Estimate, convert, train a few epochs and evaluate on real images.

    Args:
        reduction: Share of the multiply-accumulates to save.
        epochs: Epochs on the 1,600 training images (400 of the 2,000 settle the budget).
        output: Folder for `demo.json` and the page `index.html`.

    Returns:
        Accuracy and cost before and after.

    Raises:
        ValueError: If the reduction is out of reach.
    """
    console = Console(record=True)
    data = DataConfig(dataset="cifar10-embedded", validation=400)
    splits = load_splits(data, batch_size=128, channels_last=True)
    config = replace(TRAINING, epochs=epochs, target_reduction=reduction)

    console.rule("1. A trained network")
    dense = create(MODEL, pretrained=True)
    before = evaluate(dense, splits.test)
    console.print(before)

    console.rule("2. What r would save: one pass, before any training")
    curve = estimate(dense, splits.plain)
    console.print(curve)
    r = curve.r_for(reduction=reduction)
    console.print(f"r = {r:.3f} for a reduction of {reduction:.1%}")

    console.rule("3. Gates: a small predictor for each unit")
    example, _ = next(iter(splits.plain))
    dynamic = convert(dense, example, r=r)
    console.print(dynamic.summary())

    console.rule(f"4. Training, {epochs} epochs")
    dense_ms = _step_ms(dense, splits.train, replace(config, target_reduction=None))
    trained = train(dynamic, splits.train, splits.validation, config)
    after = evaluate(dynamic, splits.test)

    result = DemoResult(
        asked=reduction,
        r=r,
        predicted=curve.reduction_at(r),
        dense=before,
        dynamic=after,
        dense_step_ms=dense_ms,
        dynamic_step_ms=1e3 * config.batch_size / trained.images_per_s,
        seconds=trained.seconds,
        provenance=provenance(config=config, seed=config.seed, duration_s=trained.seconds),
    )
    folder = Path(output)
    write_json(folder / "demo.json", result.to_json())
    console.rule("5. What came of it")
    _write_page(folder / "index.html", result)
    console.print(f"figures: {folder / 'demo.json'}   page: {folder / 'index.html'}")
    return result


def _step_ms(model: nn.Module, batches: Batches, config: TrainConfig) -> float:
    """Time of one training step of a copy of the network, in milliseconds."""
    few = list(islice(batches, STEPS_TIMED))
    result = train(copy.deepcopy(model), few, few[:1], replace(config, epochs=1), progress=False)
    return 1e3 * config.batch_size / result.images_per_s


def _write_page(path: Path, result: DemoResult) -> None:
    """Write the result's tables as one HTML page without outside references."""
    console = Console(record=True, file=io.StringIO(), width=100)
    console.print(result)
    console.print(result.dynamic)
    units = Table("unit", title="what the gates do, over the test images")
    for column in (
        "filters",
        "computed, mean",
        "always",
        "never",
        "different masks",
        "mask accuracy",
    ):
        units.add_column(column, justify="right")
    for unit in result.dynamic.units:
        units.add_row(
            unit.name,
            str(unit.channels),
            f"{unit.keep:.1%} ± {unit.keep_std:.1%}",
            str(unit.always),
            str(unit.never),
            str(unit.distinct),
            f"{unit.mask_accuracy or 0:.1%}",
        )
    console.print(units)
    with replacing(path) as temporary:
        temporary.write_text(console.export_html(inline_styles=True), encoding="utf-8")
