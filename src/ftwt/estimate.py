"""What masks would save, before any training: the curve r -> MACs from one pass."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from .convert import convert
from .dynamic import DynamicModel, check_r
from .graph.trace import evaluating
from .method import entry, mass
from .results import provenance, read_json, write_json

GRID = tuple(1 - float(lost) for lost in np.geomspace(0.9, 0.001, 36)) + (1.0,)
"""The r at which the curve is counted: dense where the curve is steep, towards 1."""

SLOPE_IMAGES = 256  # enough for the slopes that steer an allocation; its result is counted in full


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
    macs: tuple[float, ...]
    predictor_macs: tuple[float, ...]


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
        return float(self.dynamic.macs(self.masks(r, images)).reduction.mean())

    def lost(self, name: str, r: float) -> float:
        """Mean share of a unit's mass that its masks lose at r."""
        return 1 - float((self.mass[name] * (self.entry[name] < r)).sum(1).mean())


@dataclass(frozen=True)
class Estimate:
    """The curve r -> reduction of a network, before any training.

    The masks are the target masks of the network as it is, gates open: what perfect predictors
    would choose. Training moves the network, so what it saves in the end differs; hold it to a
    budget with `TrainConfig(target_reduction=...)` and `DynamicModel.calibrate`.

    Args:
        r: The r of the curve, ascending to 1.
        reduction: Mean share of all MACs not executed at each r, predictors paid.
        published_reduction: The same as the paper counts it, predictors free.
        units: Each unit's part.
        dense_macs: MACs of the dense network for one image.
        images: Images of the pass.
        provenance: Where the figures come from.
    """

    r: tuple[float, ...]
    reduction: tuple[float, ...]
    published_reduction: tuple[float, ...]
    units: tuple[UnitCurve, ...]
    dense_macs: int
    images: int
    provenance: dict[str, Any] = field(default_factory=dict)
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    def reduction_at(self, r: float | Mapping[str, float]) -> float:
        """Return the executed reduction at r.

        Args:
            r: One for all units: then read between the points of the curve, by straight lines. Or
                unit -> r: then counted, units left out being open; this needs the pass itself.

        Raises:
            ValueError: If a unit's r is out of range, there is no such unit, or the estimate was
                loaded from a file and has no pass.
        """
        if not isinstance(r, Mapping):
            return float(np.interp(r, self.r, self.reduction))
        if self.evidence is None:
            raise ValueError("r by unit needs the pass over images; make the estimate again")
        return self.evidence.reduction(check_r(r, self.evidence.entry))

    def r_for(self, *, reduction: float) -> float:
        """Return the largest r that saves the asked share of all MACs.

        Args:
            reduction: Share of the dense network's MACs to save, predictors paid.

        Raises:
            ValueError: If no r of the curve reaches it; the message names the reachable range.
        """
        self._check(reduction)
        falling = np.array(self.reduction)
        best = len(falling) - 1 - int(np.argmax((falling >= reduction)[::-1]))
        if best == len(falling) - 1 or falling[best] == reduction:
            return self.r[best]
        share = (falling[best] - reduction) / (falling[best] - falling[best + 1])
        return float(self.r[best] + share * (self.r[best + 1] - self.r[best]))

    def allocate(self, *, reduction: float) -> Allocation:
        """Choose an r for each unit that meets the budget while losing the least heatmap mass.

        The objective is the mass lost, summed over units: sum_u (1 - mean mass kept by u), each
        unit's mass being 1; the constraint is the mean executed reduction, predictors paid. It is
        solved by Lagrange relaxation, each filter of a unit costing the MACs that the network saves
        per filter there, linearised anew around each solution. The single r for the same budget is
        one of the candidates, so the allocation never loses more than it.

        Args:
            reduction: Share of the dense network's MACs to save.

        Raises:
            ValueError: If the budget is out of reach, or the estimate was loaded from a file (it
                needs the pass itself).
        """
        self._check(reduction)
        if self.evidence is None:
            raise ValueError("allocate needs the pass over images; make the estimate again")
        return _allocate(self, self.evidence, reduction)

    def to_json(self) -> dict[str, Any]:
        """Return the curves (not the pass) as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "evidence"}
        return values | {"units": [asdict(unit) for unit in self.units]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the curves (not the pass) as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Estimate:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is not an estimate.
        """

        def tuples(record: dict[str, Any]) -> Any:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}

        values = read_json(path)
        try:
            units = [UnitCurve(**tuples(unit)) for unit in values["units"]]
            return cls(**tuples(values | {"units": units}))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not an estimate ({error}); make it with `ftwt estimate`"
            ) from error

    def _check(self, reduction: float) -> None:
        low, high = min(self.reduction), max(self.reduction)
        if not low <= reduction <= high:
            raise ValueError(
                f"reduction={reduction} is out of reach; r in [{self.r[0]:g}, 1] saves from "
                f"{low:.3f} to {high:.3f} of this network's MACs, predictors paid"
            )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            title=f"estimate from {self.images:,} images, {self.dense_macs / 1e6:,.2f} M MACs"
        )
        for column in ("r", "reduction, executed", "as published", "filters kept", "mass lost"):
            table.add_column(column, justify="right")
        for wanted in (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0):
            i = min(bisect.bisect_left(self.r, wanted), len(self.r) - 1)
            keep = np.mean([unit.keep[i] for unit in self.units])
            lost = np.mean([unit.lost[i] for unit in self.units])
            shares = (self.reduction[i], self.published_reduction[i], keep, lost)
            table.add_row(f"{self.r[i]:.3f}", *(f"{share:.1%}" for share in shares))
        yield table


@torch.no_grad()
def estimate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    images: int = 2048,
    **options: Any,
) -> Estimate:
    """Estimate r -> MACs from one pass over a few batches.

    Args:
        model: A trained network, or what `convert` made of it. It is not changed.
        batches: (images, labels); the labels are not used.
        images: How many images to look at, at most.
        options: Of `convert`, for a plain network.

    Returns:
        The curve for all units and each of them.

    Raises:
        ValueError: If there is no image, no unit, or the images have another size.
    """
    if images < 1:
        raise ValueError(f"images={images}: look at one image or more; 2048 is usual")
    dynamic = model if isinstance(model, DynamicModel) else None
    device = next(model.parameters()).device
    saliencies: dict[str, list[Tensor]] = {}
    seen = 0
    with evaluating(model):
        for batch, _ in batches:
            batch = batch[: images - seen].to(device)
            if dynamic is None:
                dynamic = convert(model, batch[:2], **options)
            dynamic.check_input(batch)
            _, gates = dynamic(batch, gates="open", return_gates=True)
            for name, gate in gates.items():
                if gate.saliency is not None:
                    saliencies.setdefault(name, []).append(gate.saliency.float().cpu())
            seen += len(batch)
            if seen >= images:
                break
    if dynamic is None:
        raise ValueError("no images to estimate from; give (images, labels) batches")
    if not saliencies:
        raise ValueError("the network has no gate to estimate; see summary() for the reasons")
    evidence = Evidence(dynamic, {name: torch.cat(parts) for name, parts in saliencies.items()})
    return _curve(evidence, seen)


def _curve(evidence: Evidence, images: int) -> Estimate:
    names = list(evidence.entry)
    keep, lost, macs, costs = ({name: [] for name in names} for _ in range(4))  # type: ignore[var-annotated]
    executed, published, dense = [], [], 0
    for r in GRID:
        masks = evidence.masks(dict.fromkeys(names, r))
        count = evidence.dynamic.macs(masks)
        dense = count.dense
        executed.append(float(count.reduction.mean()))
        published.append(float(count.published_reduction.mean()))
        for name in names:
            keep[name].append(float(masks[name].float().mean()))
            lost[name].append(evidence.lost(name, r))
            macs[name].append(float(count.layers[name].mean()))
            costs[name].append(float(count.predictors[name].mean()))
    units = tuple(
        UnitCurve(name, tuple(keep[name]), tuple(lost[name]), tuple(macs[name]), tuple(costs[name]))
        for name in names
    )
    return Estimate(
        r=GRID,
        reduction=tuple(executed),
        published_reduction=tuple(published),
        units=units,
        dense_macs=dense,
        images=images,
        provenance=provenance(config=dict(evidence.dynamic.config)),
        evidence=evidence,
    )


def _allocate(estimate: Estimate, evidence: Evidence, reduction: float) -> Allocation:
    """Find the thresholds of `Estimate.allocate`."""
    units = estimate.units

    def lost(r: Mapping[str, float]) -> float:
        return sum(evidence.lost(name, value) for name, value in r.items())

    def spread(r: float) -> dict[str, float]:
        return {unit.name: r for unit in units}

    enough = max(i for i, saved in enumerate(estimate.reduction) if saved >= reduction)
    single, above = estimate.r[enough], estimate.r[min(enough + 1, len(estimate.r) - 1)]
    for _ in range(10):  # between the points of the curve: it holds the budget exactly
        middle = (single + above) / 2
        if evidence.reduction(spread(middle)) >= reduction:
            single = middle
        else:
            above = middle
    best = spread(single)
    best_lost = single_lost = lost(best)
    kept = np.array([[k for k in unit.keep] for unit in units])
    losses = np.array([unit.lost for unit in units])
    filters = np.array([evidence.entry[unit.name].shape[1] for unit in units])

    def cheapest(price: float, slopes: np.ndarray) -> dict[str, float]:
        cost = losses + price * slopes[:, None] * kept * filters[:, None]
        return {u.name: estimate.r[i] for u, i in zip(units, cost.argmin(1), strict=True)}

    current = dict(best)
    for _ in range(3):
        slopes = _slopes(estimate, evidence, current)
        cheap, dear = 0.0, 1e6
        for _ in range(30):
            price = (cheap * dear) ** 0.5 if cheap > 0 else dear / 1e4
            if evidence.reduction(cheapest(price, slopes), SLOPE_IMAGES) >= reduction:
                dear = price
            else:
                cheap = price
            if cheap == 0 and dear < 1e-12:
                break
        current = cheapest(dear, slopes)
        if evidence.reduction(current) >= reduction and lost(current) < best_lost:
            best, best_lost = current, lost(current)
    return Allocation(best, evidence.reduction(best), best_lost, single, single_lost)


def _slopes(estimate: Estimate, evidence: Evidence, r: Mapping[str, float]) -> np.ndarray:
    """Share of all MACs that one filter less saves, for each unit, around thresholds r."""
    here = evidence.reduction(r, SLOPE_IMAGES)
    slopes = []
    for unit in estimate.units:
        i = bisect.bisect_left(estimate.r, r[unit.name])
        i = max(min(i, len(estimate.r) - 1), 4)
        lower = estimate.r[i - 4]
        there = evidence.reduction({**r, unit.name: lower}, SLOPE_IMAGES)
        kept = evidence.entry[unit.name][:SLOPE_IMAGES]
        fewer = float(
            (kept < r[unit.name]).sum(1).float().mean() - (kept < lower).sum(1).float().mean()
        )
        slopes.append(max(there - here, 0.0) / max(fewer, 1e-6))
    return np.array(slopes)
