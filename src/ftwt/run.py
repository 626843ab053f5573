"""A whole run from its configuration: data, network, gates, training, what came of it."""

from __future__ import annotations

from pathlib import Path

from . import data, models
from .config import DataConfig, RunConfig
from .data import Batches
from .train import TrainResult, train


def load_batches(
    config: DataConfig, *, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
) -> tuple[Batches, Batches]:
    """Load a training set and hold out its validation split.

    Returns:
        Batches to train on (augmented) and to validate on.
    """
    images = data.load(config.dataset, config.data_root or "data", train=True)
    fit, held = data.hold_out(images, count=config.validation, seed=config.split_seed)
    return (
        Batches(fit, batch_size=batch_size, train=True, seed=seed, shard=shard),
        Batches(held, batch_size=500, shard=shard),
    )


def run(config: RunConfig, *, output: str | Path, resume: bool = False) -> TrainResult:
    """Do a run and leave its files in `output`."""
    model = models.create(config.model, pretrained=config.weights == "pretrained")
    fit, held = load_batches(
        config.data, batch_size=config.train.batch_size, seed=config.train.seed
    )
    return train(model, fit, held, config.train, output=output, resume=resume)
