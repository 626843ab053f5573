"""An r for each unit: the least heatmap mass lost for a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor

from ..pruning.dynamic import DynamicModel
from ..pruning.macs import MaskedMacs
from ..pruning.method import entry, mass

SLOPE_IMAGES = 256  # enough for the slopes that steer an allocation; its result is counted in full
AT_ONCE = 2**12  # images, of several units, whose work is counted at once
SLOPE_STEP = 4  # points of the curve over which a slope is taken
ROUNDS = 3  # linearisations, each around the solution before
HALVINGS = 20  # of an interval: of r, of the logarithm of a price, of a share


@dataclass(frozen=True)
class Allocation:
    """A threshold for each unit that meets a budget; `r` is what `convert` takes.

    Args:
        r: Unit -> r.
        reduction: Executed reduction on the images of the estimate, predictors paid.
        lost: Lost heatmap mass, summed over units and averaged over images.
        single_r: The one r that meets the same budget.
        single_lost: What that r loses.
    """

    r: dict[str, float]
    reduction: float
    lost: float
    single_r: float
    single_lost: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("unit", title=f"r for a reduction of {self.reduction:.1%}")
        table.add_column("r", justify="right")
        for name, r in self.r.items():
            table.add_row(name, f"{r:.4f}")
        yield table
        yield (
            f"mass lost, summed over units: {self.lost:.3f}; "
            f"by r = {self.single_r:.4f} everywhere: {self.single_lost:.3f}"
        )


class Evidence:
    """What one pass saw: for each unit and image, when each filter enters, and its mass."""

    def __init__(self, dynamic: DynamicModel, saliencies: Mapping[str, Tensor]) -> None:
        self.dynamic = dynamic
        self.entry: dict[str, Tensor] = {}
        self.mass: dict[str, Tensor] = {}
        for name, strength in saliencies.items():
            gate = dynamic.gates[name]
            self.entry[name] = entry(strength, gate.variant)  # type: ignore[arg-type]
            self.mass[name] = mass(strength)

    def masks(self, r: Mapping[str, float], images: int | None = None) -> dict[str, Tensor]:
        """Target masks of (the first `images`) images at one r a unit."""
        return {name: self.entry[name][:images] < value for name, value in r.items()}

    def reduction(self, r: Mapping[str, float], images: int | None = None) -> float:
        """Mean executed reduction of these masks."""
        return float(self.work(self.masks(r, images)).reduction.mean())

    def work(self, masks: Mapping[str, Tensor]) -> MaskedMacs:
        """Count what masks of the gates leave, those of fixed units with them."""
        return self.dynamic.macs(self.dynamic.with_fixed(masks))

    def lost(self, name: str, r: float) -> float:
        """Mean share of a unit's mass that its masks lose at r."""
        return 1 - float((self.mass[name] * (self.entry[name] < r)).sum(1).mean())

    def lost_in_all(self, r: Mapping[str, float]) -> float:
        """Mass lost, summed over units."""
        return sum(self.lost(name, value) for name, value in r.items())


def allocate(
    evidence: Evidence,
    grid: np.ndarray,
    kept: np.ndarray,
    lost: np.ndarray,
    *,
    single: int,
    reduction: float,
) -> Allocation:
    """Choose an r of the grid for each unit; `Estimate.allocate` says by what objective.

    Args:
        evidence: What the pass saw.
        grid: (R,) ascending r.
        kept: (units, R) mean share of the filters that is kept at each.
        lost: (units, R) mean share of the mass that is lost at each.
        single: Index of the largest r of the grid that saves enough for all units alike.
        reduction: Executed reduction to reach.
    """
    names = list(evidence.entry)
    filters = np.array([evidence.entry[name].shape[1] for name in names])

    def everywhere(r: float) -> dict[str, float]:
        return dict.fromkeys(names, r)

    def enough(r: Mapping[str, float], images: int | None = None) -> bool:
        return evidence.reduction(r, images) >= reduction

    def refined(r: Mapping[str, float]) -> dict[str, float]:
        saved = _slopes(evidence, grid, r) * filters  # by a whole unit, if it kept nothing

        def cheapest(price: float) -> dict[str, float]:
            """Each unit's best r, where all MACs of the network together cost 10**price."""
            choice = (lost + 10**price * saved[:, None] * kept).argmin(1)
            return {name: float(grid[i]) for name, i in zip(names, choice, strict=True)}

        chosen = cheapest(_furthest(lambda p: enough(cheapest(p), SLOPE_IMAGES), 6.0, -6.0))
        return _losing(chosen, _furthest(lambda x: enough(_losing(chosen, x)), 1.0, 0.0))

    above = min(single + 1, len(grid) - 1)
    one_r = _furthest(lambda r: enough(everywhere(r)), float(grid[single]), float(grid[above]))
    best = current = everywhere(one_r)
    for _ in range(ROUNDS):
        current = refined(current)
        if enough(current):
            best = min(best, current, key=evidence.lost_in_all)
    return Allocation(
        r=best,
        reduction=evidence.reduction(best),
        lost=evidence.lost_in_all(best),
        single_r=one_r,
        single_lost=evidence.lost_in_all(everywhere(one_r)),
    )


def _furthest(holds: Callable[[float], bool], yes: float, no: float) -> float:
    """Go from `yes`, where `holds` is true, towards `no`, as far as it stays true."""
    for _ in range(HALVINGS):
        middle = (yes + no) / 2
        yes, no = (middle, no) if holds(middle) else (yes, middle)
    return yes


def _losing(r: Mapping[str, float], share: float) -> dict[str, float]:
    """Let each unit lose only a share of the mass that it loses at r."""
    return {name: 1 - share * (1 - value) for name, value in r.items()}


def _slopes(evidence: Evidence, grid: np.ndarray, r: Mapping[str, float]) -> np.ndarray:
    """Share of all MACs that the network saves for one filter less of each unit, around r."""
    here = evidence.masks(r, SLOPE_IMAGES)
    points = {n: min(int(np.searchsorted(grid, value)), len(grid) - 1) for n, value in r.items()}
    lower = {n: float(grid[max(point - SLOPE_STEP, 0)]) for n, point in points.items()}
    there = evidence.masks(lower, SLOPE_IMAGES)
    images = len(next(iter(here.values())))
    saved = -evidence.reduction(r, SLOPE_IMAGES)
    slopes: list[float] = []
    names = list(r)
    size = max(1, AT_ONCE // images)  # of a part, in units
    for first in range(0, len(names), size):
        part = names[first : first + size]
        masks = {  # one copy of all images for each unit of the part, which alone has its lower r
            name: torch.cat([(there if name == each else here)[name] for each in part])
            for name in here
        }
        more = saved + evidence.work(masks).reduction.view(len(part), images).mean(1)
        for name, each in zip(part, more.clamp(min=0).tolist(), strict=True):
            fewer = float(here[name].sum(1).float().mean() - there[name].sum(1).float().mean())
            slopes.append(each / fewer if fewer > 0 else 0.0)
    return np.array(slopes)
