"""Settle a budget after training: shift all thresholds until the asked reduction is executed.

The estimate says which r saves how much on the network as it is; training then changes the network,
and predictors are not perfect. So the executed reduction is measured and fed back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..graph.trace import evaluating
from ..processes import first, summed
from ..pruning.dynamic import DynamicModel, refuse_dense
from ..pruning.method import Gate

FAR = 64.0  # logits: a threshold beyond which no mask changes any more


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

    Returns:
        The offset, and the reduction before and after.

    Raises:
        ValueError: No threshold gives that reduction (the message names the reachable range), or
            there are no images, or no gates with thresholds.
    """
    refuse_dense(dynamic)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance} is outside (0, 1); 0.002 is usual")
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
        return summed([values], accelerator=accelerator)[0].tolist()

    (count,) = total(sum(map(len, inputs)))
    if not count:
        raise ValueError("there are no images to calibrate on; give validation batches")
    dense = sum(layer.macs for layer in dynamic.channels.layers)
    base = [gate.threshold.clone() for gate in gates]

    def shift(offset: float) -> None:
        for gate, threshold in zip(gates, base, strict=True):
            gate.threshold.copy_(threshold + offset)

    saved: dict[float, float] = {}

    def gap(offset: float) -> float:
        """Measure how much more is saved at an offset than asked."""
        shift(offset)
        executed = 0.0
        for batch in inputs:
            decided = dynamic(batch, return_gates="masks")[1]
            masks = {unit: gate.mask for unit, gate in decided.items()}
            executed += float(dynamic.macs(masks).executed.expand(len(batch)).sum())
        saved[offset] = 1 - total(executed)[0] / (count * dense)
        return saved[offset] - reduction

    def nearest() -> float:
        return min(saved, key=lambda offset: abs(saved[offset] - reduction))

    with evaluating(dynamic), torch.no_grad(), _restoring(lambda: shift(0.0)):
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
            raise ValueError(
                f"reduction={reduction} is out of reach of these gates; their thresholds give "
                f"{min(saved.values()):.3f} to {max(saved.values()):.3f}: fit the predictors "
                "(ftwt.fit_predictors), or train with another r"
            )
        while abs(saved[nearest()] - reduction) > tolerance and high - low > 1e-4:
            share = min(0.9, max(0.1, less / (less - more)))
            middle = low + share * (high - low)
            if (found := gap(middle)) < 0:
                low, less = middle, found
            else:
                high, more = middle, found
        best = nearest()
        shift(best)
    return Calibration(reduction, saved[best], saved[0.0], best, round(count), len(saved))


@contextmanager
def _restoring(undo: Callable[[], None]) -> Iterator[None]:
    """Undo what was tried if anything stops it, Ctrl-C too."""
    try:
        yield
    except BaseException:
        undo()
        raise
