"""What masks would save, before any training: the curve r -> MACs from one pass."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from ..files.json import read_json, write_json
from ..files.provenance import provenance
from ..files.tables import Shown
from ..graph.trace import evaluating
from ..graph.wrappers import refuse_no_module
from ..processes import alone, first, gathered
from ..pruning.convert import UNNAMED_R, convert
from ..pruning.dynamic import DynamicModel, check_r
from ..records.curve import Curve, UnitCurve, read_curve
from ..records.fields import Fields
from .allocation import Allocation as Allocation
from .allocation import Evidence, allocate

GRID = tuple(1 - float(lost) for lost in np.geomspace(0.9, 0.001, 36)) + (1.0,)
"""The r at which the curve is counted: dense where the curve is steep, towards 1."""

AT_ONCE = 2**25  # mask entries that are counted in one walk: fewer walks cost less


@dataclass(frozen=True)
class Estimate(Curve, Shown):
    """The curve r -> reduction of a network, before any training.

    The masks are the target masks of the network as it is, gates open: what perfect predictors
    would choose. Training moves the network, so what it saves in the end differs; hold it to a
    budget with `TrainConfig(target_reduction=...)` and `ftwt.calibrate`.

    Args: as of `Curve`; `evidence` is the pass itself, which files do not hold.
    """

    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    def reduction_at(self, r: float | Mapping[str, float]) -> float:
        """Return the executed reduction at r.

        Args:
            r: One for all units: then read between the points of the curve, by straight lines. Or
                unit -> r, others being at 0.9 as in `convert`: then counted, for which the
                estimate needs the pass itself.

        Raises:
            ValueError: If r is not on the curve, a unit's r is out of range, there is no such unit,
                or the estimate was loaded from a file and has no pass.
        """
        if not isinstance(r, Mapping):
            if not self.r[0] <= r <= self.r[-1]:
                raise ValueError(
                    f"r={r!r} is not on the curve, which goes from {self.r[0]:g} to {self.r[-1]:g}"
                )
            return float(np.interp(r, self.r, self.reduction))
        if self.evidence is None:
            raise ValueError("r by unit needs the pass over images; make the estimate again")
        units = self.evidence.entry
        return self.evidence.reduction(dict.fromkeys(units, UNNAMED_R) | check_r(r, units))

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
        kept = np.array([unit.keep for unit in self.units])
        lost = np.array([unit.lost for unit in self.units])
        enough = max(i for i, saved in enumerate(self.reduction) if saved >= reduction)
        return allocate(
            self.evidence, np.array(self.r), kept, lost, single=enough, reduction=reduction
        )

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
            FileNotFoundError: No such file.
            ValueError: If the file is not an estimate; the message names the field.
        """
        curve = read_curve(Fields(Path(path), read_json(path), fix="`ftwt estimate`"))
        return cls(**{part.name: getattr(curve, part.name) for part in fields(curve)})

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
            table.add_row(f"{self.r[i]:.3f}", *(f"{share:z.1%}" for share in shares))
        yield table


@torch.no_grad()
def estimate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    images: int = 2048,
    accelerator: Any = None,
    **options: Any,
) -> Estimate:
    """Estimate r -> MACs from one pass over a few batches.

    Args:
        model: A trained network, or what `convert` made of it. It is not changed.
        batches: (images, labels), of which the labels are not used; or images alone.
        images: How many images to look at, at most, over all processes together.
        accelerator: An `accelerate.Accelerator` or `PartialState`, if each process holds its own
            part of the images: then all return the same, which is what one process gets from all.
        options: Of `convert`, for a plain network.

    Returns:
        The curve for all units and each of them.

    Raises:
        ValueError: If there is no image, no unit, or the images have another size.
    """
    if images < 1:
        raise ValueError(f"images={images}: look at one image or more; 2048 is usual")
    refuse_no_module(model)
    dynamic = model if isinstance(model, DynamicModel) else None
    device = next(model.parameters()).device
    parts: list[tuple[int, int, dict[str, Tensor]]] = []
    with evaluating(model):
        for place, batch in first(batches, images, accelerator=accelerator):
            if dynamic is None:
                example = gathered(batch[:2], accelerator=accelerator)[:2]
                dynamic = convert(model, example.to(device), **options)
            if len(batch):
                parts.append((place, len(batch), _saliencies(dynamic, batch.to(device))))
    if not alone(accelerator):
        parts = gather_object(parts)
    if dynamic is None or not parts:
        raise ValueError("no images to estimate from; give batches of images, or (images, labels)")
    found = [part for _, _, part in sorted(parts, key=lambda part: part[0])]
    if not found[0]:
        raise ValueError("the network has no gate to estimate; see summary() for the reasons")
    together = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return _curve(Evidence(dynamic, together), sum(count for _, count, _ in parts))


def _saliencies(dynamic: DynamicModel, images: Tensor) -> dict[str, Tensor]:
    """Unit -> (B, C) saliencies, on the CPU."""
    dynamic.check_input(images)
    _, gates = dynamic(images, gates="open", return_gates="saliency")
    found = {name: gate.saliency for name, gate in gates.items() if gate.saliency is not None}
    return {name: strength.float().cpu() for name, strength in found.items()}


def _curve(evidence: Evidence, images: int) -> Estimate:
    names = list(evidence.entry)
    macs: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    executed, published, dense = [], [], 0
    width = sum(entry.numel() for entry in evidence.entry.values())
    step = max(1, AT_ONCE // width)
    grid = torch.tensor(GRID)
    for rs in grid.split(step):
        masks = {name: (evidence.entry[name] < rs[:, None, None]).flatten(0, 1) for name in names}
        work = evidence.work(masks)

        def means(values: Tensor, count: int = len(rs)) -> list[float]:
            return values.reshape(count, -1).mean(1).tolist()

        dense = work.dense
        executed += means(work.reduction)
        published += means(work.published_reduction)
        for name in names:
            macs[name] += means(work.layers[name])
            costs[name] += means(work.predictors[name])
    units = []
    for name, entry in evidence.entry.items():
        first = torch.bucketize(entry, grid, right=True).flatten()  # r at which a filter enters
        shares = torch.bincount(first, minlength=len(grid) + 1)[:-1].cumsum(0) / entry.numel()
        held = torch.bincount(first, evidence.mass[name].flatten(), len(grid) + 1)[:-1].cumsum(0)
        lost = (1 - held / images).tolist()
        units.append(
            UnitCurve(
                name, tuple(shares.tolist()), tuple(lost), tuple(macs[name]), tuple(costs[name])
            )
        )
    return Estimate(
        r=GRID,
        reduction=tuple(executed),
        published_reduction=tuple(published),
        units=tuple(units),
        dense_macs=dense,
        images=images,
        provenance=provenance(config=dict(evidence.dynamic.config)),
        evidence=evidence,
    )
