"""What a name builds, without its weights: held to the weights before anything large is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from .. import models
from ..graph.trace import evaluating
from ..names import is_own

MAX_MAPS = 2**28  # numbers in what all layers make of one image: 1 GiB
LIKE_MAPS = 100  # as many images in numbers, where the layers cannot be asked
FEW = 32  # of anything that a file's arguments may ask for, however little its weights hold


def outline(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by name, without memory for its weights; your own code builds all of it."""
    if is_own(name):
        return models.create(name, **arguments)
    with init_empty_weights(include_buffers=True):
        return models.create(name, **arguments)


def refuse_unlike(
    built: nn.Module, tensors: Mapping[str, Tensor], *, source: str, cure: str, gated: bool = False
) -> None:
    """Refuse weights that are not those of a network, by names and shapes.

    Args:
        built: The network, or its outline.
        tensors: The weights.
        source: What the weights are of, for the message.
        cure: What to do about it, for the message.
        gated: The weights are of a dynamic network made of it: gates are left aside, and what the
            tracing left out or added.

    Raises:
        ValueError: They differ; the first differences are named.
    """
    state = {name: tuple(value.shape) for name, value in built.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if gated:
        found = {name.removeprefix("network."): shape for name, shape in found.items()}
        found = {name: shape for name, shape in found.items() if name in state}
        wanted = {name: state[name] for name, _ in built.named_parameters() if name in found}
        missing = [] if found else list(state)[:1]
    else:
        wanted, missing = state, [name for name in state if name not in found]
    differ = [f"missing: {name}" for name in missing]
    differ += [f"unexpected: {name}" for name in found if name not in state]
    differ += [
        f"{name} {found[name]} for {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if differ:
        more = f" and {len(differ) - 3} more" if differ[3:] else ""
        raise ValueError(
            f"{source} holds another architecture than {type(built).__name__} "
            f"({'; '.join(differ[:3])}{more}); {cure}"
        )


@torch.no_grad()
def refuse_large_maps(built: nn.Module, shape: tuple[int, ...], *, source: str) -> None:
    """Refuse images of a size at which an outline's layers would make huge maps.

    Raises:
        ValueError: It would; or, where the outline cannot run, the images themselves are large.
    """
    numbers = 0

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal numbers
        if isinstance(output, Tensor):
            numbers += output.numel()

    hooks = [
        module.register_forward_hook(look) for module in built.modules() if not [*module.children()]
    ]
    try:
        with evaluating(built):
            built(torch.zeros(1, *shape, device="meta"))
    except Exception:  # its forward computes with values, of which an outline has none
        numbers = max(numbers, LIKE_MAPS * math.prod(shape))
    finally:
        for hook in hooks:
            hook.remove()
    if numbers > MAX_MAPS:
        raise ValueError(
            f"{source}: input_shape is {list(shape)}, of which its layers make {numbers:,} "
            f"numbers; at most {MAX_MAPS:,} are allowed"
        )
