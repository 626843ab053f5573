"""A whole run from its configuration: data, network, gates, training, and what came of it."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from . import data, models
from .checkpoint import from_pretrained, save_pretrained
from .config import DataConfig, RunConfig
from .convert import convert
from .data import Batches
from .dynamic import DynamicModel
from .estimate import Estimate, estimate
from .evaluate import Evaluation, evaluate
from .results import provenance, write_json
from .train import TrainResult, shard, train

MODEL, RUN = "model", "run.json"  # of a run's folder

EVALUATION_BATCH = 500
ESTIMATE_IMAGES = 2048


@dataclass(frozen=True)
class Splits:
    """Batches of one dataset.

    Args:
        train: Augmented, shuffled, without the held-out images.
        plain: The same images as they are, in order: for estimates and for freezing.
        validation: The held-out images; all choices are made on these.
        test: The official test images; only reported on.
    """

    train: Batches
    plain: Batches
    validation: Batches
    test: Batches


@dataclass(frozen=True)
class RunResult:
    """What a run asked for, predicted, and achieved, on validation and test images.

    `predicted_reduction` is the estimate at the run's r, from the network that training started
    with; None for dense networks and static twins.
    """

    config: RunConfig
    predicted_reduction: float | None
    training: TrainResult
    validation: Evaluation
    test: Evaluation
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "config": self.config.to_json(),
            "asked_reduction": self.config.train.target_reduction,
            "predicted_reduction": self.predicted_reduction,
            "test": self.test.to_json(),
            "validation": self.validation.to_json(),
            "training": asdict(self.training),
            "provenance": self.provenance,
        }


def load_splits(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int = 0,
    channels_last: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Splits:
    """Load a dataset and split it; the official archive is downloaded if it is not there.

    Args:
        config: Which images, and which of them to hold out.
        batch_size: Images a training step, over all processes.
        seed: Decides order and augmentation.
        channels_last: Memory layout of the images.
        shard: This process's rank, and how many there are.
    """

    def read(train: bool) -> data.Images:
        return data.load(config.dataset, config.data_root, train=train, download=True)

    fit, held = data.hold_out(read(True), count=config.validation, seed=config.split_seed)

    def inspect(images: data.Images) -> Batches:
        return Batches(
            images, batch_size=EVALUATION_BATCH, channels_last=channels_last, shard=shard
        )

    return Splits(
        train=Batches(
            fit,
            batch_size=batch_size,
            train=True,
            seed=seed,
            channels_last=channels_last,
            shard=shard,
        ),
        plain=inspect(fit),
        validation=inspect(held),
        test=inspect(read(False)),
    )


def load_network(model: str, weights: str | None) -> nn.Module:
    """Create a network by name, or load it.

    Args:
        model: A name of `ftwt.models`.
        weights: A folder of `save_pretrained` or of a run, `pretrained`, or None for random ones.
    """
    if weights is None or ":" in model:
        return models.create(model, pretrained=weights is not None)
    if weights != "pretrained":
        return from_pretrained(folder_of(weights), model=models.create(model))
    if model in models.names() and model not in models.names(pretrained=True):
        raise ValueError(
            f"no trained weights of {model} come with ftwt; train them (`ftwt train "
            f"{model}-baseline`) and name that run's folder (--weights runs/{model}-baseline)"
        )
    return models.create(model, pretrained=True)


def folder_of(source: str) -> str | Path:
    """Return the folder that holds the network of a run, or the source itself."""
    inside = Path(source) / MODEL
    return inside if inside.is_dir() else source


def run(config: RunConfig, *, output: str | os.PathLike[str], resume: bool = False) -> RunResult:
    """Do a whole run: load, estimate, convert, train, evaluate; leave its files in `output`.

    Args:
        config: What to do.
        output: Folder for checkpoints, metrics, `model/` and `run.json`.
        resume: Go on with the run that is in the folder.

    Returns:
        Settings and figures, as in `run.json`.
    """
    rank, world = shard()
    splits = load_splits(
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        channels_last=config.train.channels_last,
        shard=(rank, world),
    )
    dense = load_network(config.model, config.weights)
    origin = provenance(config=config, seed=config.train.seed)
    network, predicted = dense, None
    if config.twin_of is not None:
        network = twin_of(config.twin_of, dense, splits.plain)
    elif config.prune is not None:
        network, predicted = gated(config, dense, splits.plain)
    teacher = copy.deepcopy(dense) if config.train.distillation else None
    trained = train(
        network,
        splits.train,
        splits.validation,
        config.train,
        output=output,
        resume=resume,
        teacher=teacher,
    )
    result = RunResult(
        config=config,
        predicted_reduction=predicted,
        training=trained,
        validation=evaluate(network, splits.validation, accelerator=PartialState()),
        test=evaluate(network, splits.test, accelerator=PartialState()),
        provenance=origin | {"duration_s": round(trained.seconds, 1)},
    )
    if rank == 0:
        save_pretrained(network, Path(output) / MODEL, name=config.model)
        write_json(Path(output) / RUN, result.to_json())
    return result


def gated(config: RunConfig, dense: nn.Module, batches: Batches) -> tuple[DynamicModel, float]:
    """Convert a network as a run asks, with the r that the estimate gives for a budget.

    Returns:
        The dynamic network, and the executed reduction that the estimate predicts for it.
    """
    assert config.prune is not None
    options = asdict(config.prune)
    r = options.pop("r")
    curve = estimate(dense, batches, images=ESTIMATE_IMAGES, **options)
    if config.train.target_reduction is not None:
        r = curve.r_for(reduction=config.train.target_reduction)
    example, _ = next(iter(batches))
    dynamic = convert(dense, example, r=r, **options)
    return dynamic, predicted(curve, dynamic)


def predicted(curve: Estimate, dynamic: DynamicModel) -> float:
    """Return the executed reduction that an estimate predicts for a network's r."""
    if curve.evidence is None:
        raise ValueError("the estimate was loaded from a file; make it again")
    return curve.evidence.reduction(dynamic.r)


def twin_of(folder: str, dense: nn.Module, batches: Batches) -> DynamicModel:
    """Build the static twin of a finished dynamic run, with the weights that the run began with.

    Args:
        folder: The run.
        dense: The network it began with.
        batches: Training images as they are, over which its masks are counted.
    """
    dynamic = from_pretrained(folder_of(folder))
    if not isinstance(dynamic, DynamicModel):
        raise ValueError(f"{folder} holds a plain network, which has no static twin")
    twin = dynamic.freeze(batches)
    state = twin.network.state_dict()
    twin.network.load_state_dict(state | dense.state_dict())
    return twin
