"""What a saved network gave for one test image, so that weights are not read into another network.

Weights go by their names. They also fit a network whose forward was altered since, or one of a
library that was: so what it computes with them is held to what was saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from ..graph.trace import evaluating
from ..pruning.dynamic import DynamicModel

VALUES = 8  # of an output, beside its norm
TOLERANCE, HALVED = 0.1, 0.25  # of the largest: GPUs round to ten bits; weights of sixteen bits


@torch.no_grad()
def answer(dynamic: DynamicModel) -> list[float] | None:
    """Return the norm and some values of a network's output for a test image, gates open.

    None if it draws random numbers, cannot take the image, or gives what is not finite.
    """
    held = next((p for p in dynamic.parameters() if p.is_floating_point()), torch.zeros(()))
    wave = torch.sin(0.7 * torch.arange(math.prod(dynamic.input_shape)))
    images = wave.reshape(1, *dynamic.input_shape).expand(2, *dynamic.input_shape).to(held)
    outputs = []
    devices = [held.device] if held.is_cuda else []
    with evaluating(dynamic), torch.random.fork_rng(devices=devices):
        for seed in (0, 1):
            torch.manual_seed(seed)
            buffers = {name: buffer.clone() for name, buffer in dynamic.named_buffers()}
            try:
                found = functional_call(dynamic, buffers, (images,), {"gates": "open"})
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError):
                return None
            outputs.append(tree_leaves(found)[0])
    first, second = outputs
    if not isinstance(first, Tensor) or not torch.equal(first, second):
        return None
    flat = first.detach().double().flatten()
    told = [float(flat.norm()), *flat[:: math.ceil(len(flat) / VALUES)].tolist()]
    return [float(f"{value:.4g}") for value in told] if all(map(math.isfinite, told)) else None


def refuse_another(
    built: DynamicModel, saved: Any, tensors: Mapping[str, Tensor], directory: Path
) -> None:
    """Refuse a network that gives something else than the one that was saved gave.

    Raises:
        ValueError: It does, or what was saved is no answer.
    """
    if saved is None:  # by an earlier ftwt, or it gave none
        return
    if not isinstance(saved, list) or not all(type(v) is float and math.isfinite(v) for v in saved):
        raise ValueError(
            f"{directory}: its answer is {saved!r}; it must be a list of finite numbers"
        )
    found = answer(built)
    if found is None:
        return
    halved = any(t.is_floating_point() and t.element_size() < 4 for t in tensors.values())
    allowed = (HALVED if halved else TOLERANCE) * max(map(abs, saved), default=0.0)
    if len(found) != len(saved) or any(
        abs(a - b) > allowed for a, b in zip(found, saved, strict=True)
    ):
        raise ValueError(
            f"{directory}: the weights fit this network, but it computes something else with them "
            "than the one that was saved: its forward, or the version of its library, is another; "
            "give the network as it was then"
        )
