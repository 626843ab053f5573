"""Whether an engine computes what its network does: both are run on the same images.

Gates are held equal, since rounding may decide a filter near its threshold either way: the engine
is given PyTorch's masks, and what its own predictors decide is compared gate by gate. Where outputs
differ by more than is plainly rounding, each operation is looked at, beside PyTorch in float64. So
a deep network that amplifies rounding passes, and one that is computed wrongly is refused with the
name of the first operation that differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.trace import Ran, evaluating
from ..pruning.dynamic import DynamicModel
from ..pruning.method import Gate, GateOutput, hard_mask
from ..runtime import Engine, Predict, Program
from .differ import Closer, Masks, in_float32

TOLERANCE = 1e-4  # of the largest output: less is rounding without a closer look
LEAST_SPREAD = 0.1  # of an example's values; less is hidden by what a network adds
UNSURE = 1e-3  # of a gate's largest logit: so near to its threshold a filter is decided either way


@torch.no_grad()
def verify(
    engine: Engine,
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    ran: Ran | None = None,
) -> None:
    """Make sure that an engine computes what the network does.

    A plain network is run on the example's first image, and on a random one unless that has values
    of both signs; a dynamic one on a random one, under the masks that its gates predict, or under
    their targets where the predictors keep everything, as untrained ones do.

    Args:
        engine: Of the network's program, with all of its predictors.
        model: The network; it is run in eval mode and never changed.
        example: Input (B, C, H, W) of a plain network.
        ran: What the network gave already, while it was traced: it is not run again for that.

    Raises:
        ValueError: If they differ beyond rounding; it names the first operation that does.
    """
    network = in_float32(model)
    with evaluating(network), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noise = torch.randn(2, *engine.program.maps[0], dtype=torch.float32)
        if isinstance(network, DynamicModel):
            return _verify_dynamic(engine, network, noise)
        images, expected = _given(network, example, ran if network is model else None)
        looked_at = 1  # beside its mirror image, so that the network mixes no samples unseen
        if len(images) < 2 or not _telling(images):
            images = torch.cat([images[:1], noise[:1]])
            expected = torch.cat([expected[:1], network(noise[:1].clone())])
            looked_at = 2
        if not _close(engine(images[:looked_at]), expected[:looked_at]):
            Closer(engine, network, example, images, {}).look()


def _given(network: nn.Module, example: Any, ran: Ran | None) -> tuple[Tensor, Tensor]:
    """Images of the example, none if they are not finite, and what the network gives for them."""
    images = example[0] if isinstance(example, tuple) else cast(Tensor, example)
    if ran and len(ran[-1][1]) == 1 and images.device.type == "cpu":
        (images, *_), (expected,) = ran[-1]
        if images.dtype == expected.dtype == torch.float32:
            return _finite(images, expected)
    images = images[:1].float().cpu()
    return _finite(images, network(images.clone()))


def _finite(images: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    return (images, expected) if images.isfinite().all() else (images[:0], expected[:0])


def _telling(images: Tensor) -> bool:
    """Whether no operation hides behind images: they vary, with values of both signs."""
    return bool((images < 0).any() and (images > 0).any() and images.std() > LEAST_SPREAD)


def _verify_dynamic(engine: Engine, network: DynamicModel, noise: Tensor) -> None:
    """As predicted; and under targets, where predictors keep everything, as untrained ones do."""
    gates = engine.program.gates
    units = [gates[op.mask].unit for op in engine.program.operations if isinstance(op, Predict)]
    images = noise.split(1)
    if units and _always_open(engine.program):
        expected, decided = network(images[1], gates="target", return_gates=True)
        own = cast(dict[str, Gate], network.gates)
        predicted = (hard_mask(cast(Tensor, decided[u].logits), own[u].threshold) for u in units)
        if all(mask.all() for mask in predicted):
            return _compare(engine, network, images[1], _masks(decided, units), expected)
    for kind, image in zip(("predicted", "target"), images, strict=True):
        expected, decided = network(image, gates=kind, return_gates="masks")
        masks = _masks(decided, units)
        _compare(engine, network, image, masks, expected, own=kind == "predicted")
        if not all(mask.all() for mask in masks.values()) or not units:
            return


def _compare(
    engine: Engine,
    network: DynamicModel,
    image: Tensor,
    masks: Masks,
    expected: Tensor,
    *,
    own: bool = False,
) -> None:
    """Hold the engine to what the network gave under masks, which `own` gates have to decide."""
    closer = Closer(engine, network, None, image, masks)
    if own:
        found = _decided_alike(engine, network, image, masks, closer)
    else:
        found = engine.run(image, masks)[0]
    if not _close(found, expected):
        closer.look()


def _masks(decided: Mapping[str, GateOutput], units: Iterable[str]) -> Masks:
    return {unit: decided[unit].mask for unit in units}


def _always_open(program: Program) -> bool:
    """Whether a program's predictors keep all filters of any image, as those of `convert` do."""
    predictors = [op for op in program.operations if isinstance(op, Predict)]
    return not any(
        program.constants[op.weight].any() or (program.constants[op.bias] <= op.threshold).any()
        for op in predictors
    )


def _decided_alike(
    engine: Engine, network: DynamicModel, image: Tensor, masks: Masks, closer: Closer
) -> Tensor:
    """Let the engine's gates decide, and return its output once they decide as PyTorch's do.

    Behind a gate that decides otherwise, others see other maps: so one after the other is held,
    once it is explained.
    """
    held: Masks = {}
    logits: dict[str, Tensor] | None = None
    while True:
        output, stats = engine.run(image, held)
        odd = [u for u in masks if not np.array_equal(stats.masks[u], masks[u].numpy())]
        if not odd:
            return output
        if logits is None:
            decided = network(image, return_gates=True)[1]
            logits = {unit: decided[unit].logits for unit in masks}
        unit = odd[0]
        differ = torch.from_numpy(stats.masks[unit]) != masks[unit]
        threshold = cast(Gate, network.gates[unit]).threshold
        level = torch.minimum(threshold, logits[unit].amax(1, keepdim=True))
        unsure = (logits[unit] - level).abs() <= UNSURE * logits[unit].abs().amax()
        if not (unsure | ~differ).all():
            closer.look(unit, differ)
        held[unit] = masks[unit]


def _close(found: Tensor, expected: Tensor) -> bool:
    finite = expected.isfinite()
    if not finite.any():
        return True
    expected, found = expected[finite], found.reshape(expected.shape)[finite]
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
