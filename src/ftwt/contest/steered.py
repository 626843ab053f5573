"""Our engine as a contestant, whose gates do as they are told at no cost to the timed run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..lowering.tuning import by_lot
from ..runtime import Engine, Predict, Program, SecondLookEngine, Stats
from .turns import Contestant

Masks = Mapping[int, np.ndarray]  # gate's number -> (B, C) uint8
DECIDE: Masks = {}  # the gates do it themselves


class Steered(Engine):
    """An engine that is given the masks of its next runs beforehand.

    The predictors still run and are counted; only what they say is replaced.
    """

    masks: Masks = DECIDE

    def _masks(self, masks: Mapping[str, Any], samples: int) -> dict[int, np.ndarray]:
        return dict(self.masks)


def steered(made: Engine, **options: Any) -> Engine:
    """The same engine under orders; a second look has no gates to be ordered."""
    looks = isinstance(made, SecondLookEngine)
    return made if looks else Steered(made.program, **options)


def draw(program: Program, keeps: np.ndarray, random: np.random.Generator) -> Masks:
    """Draw masks by lot, as `ftwt.compile` with `keep` does.

    Args:
        program: Gates that have a predictor get masks.
        keeps: (B,) share of its filters that each gate keeps for each sample, at least one.
        random: Where to draw from.
    """
    masks = {}
    for operation in program.operations:
        if isinstance(operation, Predict):
            filters = program.gates[operation.mask].channels
            masks[operation.mask] = by_lot(keeps, filters, random)
    return masks


def opened(program: Program, samples: int) -> Masks:
    """Masks that keep everything."""
    gates = enumerate(program.gates)
    return {index: np.ones((samples, gate.channels), np.uint8) for index, gate in gates}


def contestant(engine: Engine, batches: np.ndarray, masks: Sequence[Masks]) -> Contestant:
    """An engine that runs batches (N, B, C, H, W), each with masks of its own."""
    image = np.zeros_like(batches[0])

    def take(batch: int) -> None:
        np.copyto(image, batches[batch])
        _order(engine, masks[batch])

    how = engine.isa or "reference"
    how += ", int8" if engine.program.quantised else ""
    parts = f"{len(engine.program.gates)} gates"
    if isinstance(engine, SecondLookEngine):
        parts = f"{len(engine.passes)} passes"
    return Contestant(take, lambda: engine(image), f"{how}, {parts}")


def took(engine: Engine, batches: np.ndarray, masks: Sequence[Masks]) -> list[Stats]:
    """What each batch took under its masks."""
    stats = []
    for batch, ordered in zip(batches, masks, strict=True):
        _order(engine, ordered)
        stats.append(engine.run(batch)[1])
    return stats


def _order(engine: Engine, masks: Masks) -> None:
    if isinstance(engine, Steered):
        engine.masks = masks
