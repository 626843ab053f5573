"""Run ImageNet recipes for an epoch on a small folder of generated images, stop and resume them.

    python tools/try_recipes.py                      # all of them
    python tools/try_recipes.py imagenet-resnet50 --train 40

Each recipe is run as it is but for the length, the batch and the weights, which are random: there
are 24 training images of 4 classes in batches of 8, cut at 224, or more (--train, of each class,
8 of all of which are held out). It is run once as a whole, and once stopped in mid-epoch and
resumed. What this shows is that a recipe works and loses nothing when it is stopped; accuracies and
reductions after three steps mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from make_image_folder import make_image_folder

from ftwt import recipes
from ftwt.config import RunConfig
from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.files.tensors import load_tensors
from ftwt.records.folder import METRICS
from ftwt.runs.run import run
from ftwt.training.loop import Interrupted

IMAGES = {"classes": 4, "train": 8, "val": 2, "side": 256}
VALIDATION = 8
ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "results" / "imagenet"


@dataclass(frozen=True)
class Trial:
    """What came of a recipe.

    Args:
        recipe: Its name.
        model: The network.
        steps: Training steps of the run.
        stopped_after: After which the other one was stopped, to be resumed.
        task_loss: Of the epoch, without that of the masks.
        asked_reduction: If there is a budget.
        predicted_reduction: By the estimate, before training; None for a dense network.
        reduction: Achieved on the images of `val`.
        same: Whether the resumed run's weights and figures are those of the whole one.
        seconds: Of the whole run's training, on a machine that did other things, too.
    """

    recipe: str
    model: str
    steps: int
    stopped_after: int
    task_loss: float
    asked_reduction: float | None
    predicted_reduction: float | None
    reduction: float
    same: bool
    seconds: float


def settings(name: str, images: Path) -> RunConfig:
    """The recipe's settings for an epoch on a few images."""
    config = recipes.get(name)
    data = replace(config.data, data_root=str(images), validation=VALIDATION, workers=1)
    warmup = min(1, config.train.predictor_warmup_steps)
    train = replace(config.train, epochs=1, batch_size=8, predictor_warmup_steps=warmup)
    return replace(config, weights=None, data=data, train=train)


def try_recipe(name: str, images: Path, folder: Path) -> Trial:
    """Run a recipe as a whole, and stopped and resumed.

    Args:
        name: The recipe.
        images: What `make_image_folder` made.
        folder: For both runs.
    """
    config, whole, parts = settings(name, images), folder / "whole", folder / "parts"
    result = run(config, output=whole)
    stopped_after = _run_until_stopped(config, parts)
    resumed = run(config, output=parts, resume=True)
    return Trial(
        recipe=name,
        model=config.model,
        steps=_steps(whole)[-1],
        stopped_after=stopped_after,
        task_loss=result.training.history[-1].task_loss,
        asked_reduction=config.train.target_reduction,
        predicted_reduction=result.predicted_reduction,
        reduction=result.test.reduction,
        same=_weights_are_same(whole, parts)
        and (result.test.top1, result.test.loss) == (resumed.test.top1, resumed.test.loss)
        and result.training.history[-1].loss == resumed.training.history[-1].loss,
        seconds=round(result.training.seconds, 1),
    )


def _run_until_stopped(config: RunConfig, folder: Path) -> int:
    """Run until the first step was told, and say after which one it stopped."""
    stopper = threading.Thread(target=_stop_after_a_step, args=(folder,), daemon=True)
    stopper.start()
    try:
        run(config, output=folder)
    except Interrupted:
        stopper.join()
        return _steps(folder)[-1]
    raise RuntimeError(f"{folder}: the run was over before it could be stopped")


def _stop_after_a_step(folder: Path) -> None:
    while not (folder / METRICS).exists() or not _steps(folder):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def _steps(folder: Path) -> list[int]:
    """The steps that a run told figures of."""
    text = (folder / METRICS).read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()  # without one that is being written
    told: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [line["step"] for line in told if line["kind"] == "step"]


def _weights_are_same(one: Path, other: Path) -> bool:
    ours, theirs = (
        load_tensors(folder / "model" / "model.safetensors")[0] for folder in (one, other)
    )
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def main() -> int:
    """Try the recipes that the command line names; write what came of them."""
    known = [name for name in recipes.names() if name.startswith("imagenet-")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="which; all by default")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for a file of each")
    parser.add_argument("--train", type=int, default=IMAGES["train"], help="images of each class")
    given = parser.parse_args()
    made, same = IMAGES | {"train": given.train}, True
    with tempfile.TemporaryDirectory() as folder:
        images = make_image_folder(Path(folder) / "images", **made)
        for name in given.recipes or known:
            trial = try_recipe(name, images, Path(folder) / name)
            print(trial, flush=True)
            same &= trial.same
            origin = provenance(config=made | {"validation": VALIDATION, "batch_size": 8})
            write_json(given.output / f"{name}.json", vars(trial) | {"provenance": origin})
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
