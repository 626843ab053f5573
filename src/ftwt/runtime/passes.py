"""Several programs for one task, of growing cost: the next one looks where the last is unsure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fields import refuse
from .program import Program

MAX_PASSES = 3


@dataclass(frozen=True)
class Passes:
    """The programs of a second look, and when the next one is asked.

    Args:
        programs: Of growing cost; each maps the same images to the same classes. One alone is a
            network without a second look.
        thresholds: Of each but the last: an image whose margin is smaller goes to the next.
    """

    programs: tuple[Program, ...]
    thresholds: tuple[float, ...] = ()


def check_passes(programs: tuple[Program, ...], thresholds: Any) -> None:
    """Make sure that passes are of one task, with a threshold between each two.

    Args:
        programs: That pass `check` each.
        thresholds: Of any type.

    Raises:
        ValueError: They are not.
    """
    count = len(programs)
    if not 1 <= count <= MAX_PASSES:
        refuse("second look", "number of passes", count, f"1 to {MAX_PASSES}")
    numbers = isinstance(thresholds, tuple) and all(type(t) is float for t in thresholds)
    if not numbers or len(thresholds) != count - 1 or not all(map(math.isfinite, thresholds)):
        refuse("second look", "thresholds", thresholds, f"{count - 1} finite numbers")
    shapes = [(one.maps[0], one.maps[one.output]) for one in programs]
    for shape in shapes[1:]:
        if shape != shapes[0]:
            ours = f"{shapes[0][0]} -> {shapes[0][1]}, the shapes of the first pass"
            refuse("second look", "shapes of a pass", f"{shape[0]} -> {shape[1]}", ours)
    classes, *size = shapes[0][1]
    if count > 1 and (size != [1, 1] or classes < 2):
        refuse("second look", "output", shapes[0][1], "(classes, 1, 1), two classes or more")


def margin(outputs: np.ndarray) -> np.ndarray:
    """The distance between the two largest class probabilities, (B,), of (B, classes) logits.

    It is -1, below every threshold, where an output is not finite.
    """
    with np.errstate(invalid="ignore"):
        shares = np.exp(outputs - outputs.max(1, keepdims=True))
        shares.partition(-2, axis=1)  # the two largest come last
        found = (shares[:, -1] - shares[:, -2]) / shares.sum(1)
    found[np.isnan(found)] = -1.0
    return found
