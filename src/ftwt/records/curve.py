"""The curve r -> reduction of a network, before any training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .fields import Amount, Fields, Positive, Reduction, Share


@dataclass(frozen=True)
class UnitCurve:
    """One unit's part of the estimate, a value for each r of the curve.

    Args:
        name: The unit.
        keep: Mean share of its filters that the target masks keep.
        lost: Mean share of its heatmap mass that they lose.
        macs: Mean executed MACs of its convolution, all units being masked at the same r.
        predictor_macs: Mean MACs of its predictor.
    """

    name: str
    keep: tuple[float, ...]
    lost: tuple[float, ...]
    macs: tuple[Amount, ...]
    predictor_macs: tuple[Amount, ...]


@dataclass(frozen=True)
class Curve:
    """What masks would save at each r.

    Args:
        r: The r of the curve, ascending to 1.
        reduction: Mean share of all MACs not executed at each r, predictors paid.
        published_reduction: The same as the paper counts it, predictors free.
        units: Each unit's part.
        dense_macs: MACs of the dense network for one image.
        images: Images of the pass.
        provenance: Where the figures come from.
    """

    r: tuple[Share, ...]
    reduction: tuple[Reduction, ...]
    published_reduction: tuple[Reduction, ...]
    units: tuple[UnitCurve, ...]
    dense_macs: Positive
    images: Positive
    provenance: dict[str, Any] = field(default_factory=dict)


def read_curve(values: Fields) -> Curve:
    """Check and return a curve.

    Raises:
        ValueError: A field is missing or not what it must be, or lists differ in length.
    """
    found = values.read(Curve)
    if not found.r or list(found.r) != sorted(found.r):
        raise values.fault("r", "ascending numbers in [0, 1], one or more")
    for side in ("reduction", "published_reduction"):
        if len(getattr(found, side)) != len(found.r):
            raise values.fault(side, f"{len(found.r)} numbers, one for each r")
    return found
