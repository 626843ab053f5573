"""A budget that is kept: `BudgetController` steers r in training, `calibrate` settles it after.

The estimate says which r saves how much on the network as it is; training then changes the network,
and predictors are not perfect. So the executed reduction is measured and fed back, twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from ..dynamic import DynamicModel
from ..graph.trace import evaluating
from ..method import Gate
from ..processes import alone, first

SLOPE = 0.2  # reduction gained when the lost mass grows e-fold, a typical network at moderate r
START = 0.005  # lost mass that a controller starts from where every r is 1
LEAST, MOST = 1e-4, 0.95  # bounds of the largest lost mass
MARGIN = 0.05  # how far the targets' own reduction may be led away from the budget
LARGEST_MOVE = 0.2  # of the logarithm of the lost mass, at one observation
FAR = 64.0  # logits: a threshold beyond which no mask changes any more


class BudgetController:
    """Steer r so that the measured executed reduction meets a target.

    A unit *loses* the mass 1 - r. All units' lost masses are multiplied by one factor exp(z), so
    that a mapping of unequal r keeps its shape (and r = 1 stays 1, unless it is 1 everywhere).
    Integral control: a reduction that was e short of its target for n steps adds
    n e / (0.2 horizon) to z; a gap closes to about a third in `horizon` steps.

    Predictors follow their targets late, and not exactly. An integral would meanwhile lead r far
    astray, so e is clipped such that the reduction that the *targets* themselves would give, which
    answers to r at once, stays within 0.05 of the budget. `calibrate` takes up the rest.

    Args:
        r: Each unit's r at the start.
        target: The executed reduction to hold, in (0, 1); None holds r where it is.
        horizon: Steps in which a gap closes to about a third.
    """

    def __init__(
        self, r: Mapping[str, float], *, target: float | None = None, horizon: int = 200
    ) -> None:
        self.target, self.horizon = target, horizon
        self.lost = {unit: 1 - value for unit, value in r.items()}
        if target is not None and not any(self.lost.values()):
            self.lost = dict.fromkeys(r, START)
        self.z = 0.0

    def r(self, progress: float = 1.0) -> dict[str, float]:
        """Each unit's r now; `progress` in [0, 1] says how far annealing has come from r = 1."""
        factor = math.exp(self.z) * progress
        return {unit: 1 - min(MOST, lost * factor) for unit, lost in self.lost.items()}

    def observe(self, executed: float, targets: float, *, steps: int = 1) -> None:
        """Take in what was measured over the last `steps` steps.

        Args:
            executed: The executed reduction of the predicted masks.
            targets: That of the target masks.
            steps: Steps since the last observation.
        """
        if self.target is None:
            return
        room = self.target - targets
        error = min(max(self.target - executed, room - MARGIN), room + MARGIN)
        move = steps * error / (SLOPE * self.horizon)
        largest = math.log(max(self.lost.values()))
        self.z += max(-LARGEST_MOVE, min(LARGEST_MOVE, move))
        self.z = max(math.log(LEAST) - largest, min(math.log(MOST) - largest, self.z))

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""
        return {"lost": self.lost, "z": self.z}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.lost, self.z = dict(state["lost"]), state["z"]


@dataclass(frozen=True)
class Calibration:
    """How far thresholds were shifted to meet a budget.

    `asked`, `achieved` and `before` are mean executed reductions on the `images` looked at;
    `offset` was added to every gate's threshold, in logits; `probes` counts passes over the images.
    """

    asked: float
    achieved: float
    before: float
    offset: float
    images: int
    probes: int


def calibrate(
    dynamic: DynamicModel,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    reduction: float,
    tolerance: float = 0.002,
    images: int = 2048,
    accelerator: Any = None,
) -> Calibration:
    """Shift all gates' thresholds by one offset, so that the mean executed reduction is the asked.

    A mask depends on those before it, so each offset that is tried costs a pass over the images.

    Args:
        dynamic: The network; its gates' `threshold` buffers are changed in place.
        batches: Images (B, C, *spatial), with or without labels; take validation images, not test
            images.
        reduction: Share of the dense MACs to save, by `executed` counting.
        tolerance: Accepted distance of the achieved reduction.
        images: Look at the first so many, over all processes together.
        accelerator: An `accelerate.Accelerator` or `PartialState`, if each process holds its own
            part of the images: then all settle on the same thresholds, those of one process alone.

    Raises:
        ValueError: No threshold gives that reduction (the message names the reachable range), or
            there are no images, or no gates with thresholds.
    """
    if not 0 <= reduction < 1:
        raise ValueError(f"reduction={reduction} is outside [0, 1); 0.3 saves 30% of the MACs")
    gates = [gate for gate in dynamic.gates.values() if isinstance(gate, Gate)]
    if not gates:
        raise ValueError("a static network has no thresholds; calibrate the dynamic one it is of")
    device = gates[0].threshold.device
    parts = [part for _, part in first(batches, images, accelerator=accelerator)]
    inputs = [part.to(device) for part in parts if len(part)]
    for batch in inputs:
        dynamic.check_input(batch)

    def total(*mine: float) -> list[float]:
        """Sum whole numbers over all processes: exactly."""
        values = torch.tensor(mine, dtype=torch.float64)
        return (values if alone(accelerator) else reduce(values.to(device), "sum")).tolist()

    (count,) = total(sum(map(len, inputs)))
    if not count:
        raise ValueError("there are no images to calibrate on; give validation batches")
    dense = sum(layer.macs for layer in dynamic.channels.layers)
    base = [gate.threshold.clone() for gate in gates]

    def shift(offset: float) -> None:
        for gate, threshold in zip(gates, base, strict=True):
            gate.threshold.copy_(threshold + offset)

    seen: dict[float, float] = {}

    def gap(offset: float) -> float:
        """Measure how much more is saved at an offset than asked."""
        shift(offset)
        executed = 0.0
        for batch in inputs:
            decided = dynamic(batch, return_gates="masks")[1]
            masks = {unit: gate.mask for unit, gate in decided.items()}
            executed += float(dynamic.macs(masks).executed.expand(len(batch)).sum())
        seen[offset] = 1 - total(executed)[0] / (count * dense)
        return seen[offset] - reduction

    def nearest() -> float:
        return min(seen, key=lambda offset: abs(seen[offset] - reduction))

    with evaluating(dynamic), torch.no_grad():
        low = high = 0.0  # offsets that save too little and too much, once found
        less = more = gap(0.0)
        while more < -tolerance and high < FAR:
            low, less, high = high, more, max(0.5, 2 * high)
            more = gap(high)
        while less > tolerance and low > -FAR:
            high, more, low = low, less, min(-0.5, 2 * low)
            less = gap(low)
        if more < -tolerance or less > tolerance:
            gap(-FAR if high == FAR else FAR)
            shift(0.0)
            raise ValueError(
                f"reduction={reduction} is out of reach of these gates; their thresholds give "
                f"{min(seen.values()):.3f} to {max(seen.values()):.3f}: train with another r"
            )
        while abs(seen[nearest()] - reduction) > tolerance and high - low > 1e-4:
            share = min(0.9, max(0.1, less / (less - more)))
            middle = low + share * (high - low)
            if (found := gap(middle)) < 0:
                low, less = middle, found
            else:
                high, more = middle, found
        best = nearest()
        shift(best)
    return Calibration(reduction, seen[best], seen[0.0], best, round(count), len(seen))
