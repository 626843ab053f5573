"""Samples of a layer: what it reads at some positions, and what it should give there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..graph.convolutions import zeros_around
from ..processes import summed
from .regression import Moments

HELD_OUT = 5  # every fifth image is held out: to choose a ridge by, or to say how good a fit is
POSITIONS = 64  # of an image, that a convolution is fitted to at most
AT_ONCE = 2**23  # numbers of unfolded inputs


def held_out(places: Tensor) -> Tensor:
    """Which images are held out, by their places among all."""
    return places % HELD_OUT == HELD_OUT - 1


def shape_of(module: nn.Module) -> tuple[int, int, int]:
    """Groups, inputs and outputs of the regressions of a layer."""
    if isinstance(module, nn.Conv2d):
        return module.groups, module.weight[0].numel(), module.out_channels // module.groups
    assert isinstance(module, nn.Linear)
    return 1, module.in_features, module.out_features


def add_samples(
    moments: Moments, module: nn.Module, x: Tensor, y: Tensor, mask: Tensor | None, index: Tensor
) -> None:
    """Add the samples of some images: up to `POSITIONS` of each, the same for all.

    Channels that are 0 throughout, as a fixed mask leaves them, are passed over.
    """
    groups, inputs, outputs = shape_of(module)
    if not len(index):
        return
    if isinstance(module, nn.Linear):
        moments.add(x[index].reshape(1, -1, inputs), y[index].reshape(1, -1, outputs))
        return
    assert isinstance(module, nn.Conv2d)
    high, wide = y.shape[2:]
    every = torch.arange(high * wide)
    if len(every) > POSITIONS:  # drawn without a seed of its own: the same in every pass
        generator = torch.Generator().manual_seed(0)
        every = torch.randperm(len(every), generator=generator)[:POSITIONS].sort().values
    starts = torch.stack((every // wide, every % wide)).to(x.device)
    rows, columns = (
        starts[axis, :, None] * module.stride[axis]
        + torch.arange(module.kernel_size[axis], device=x.device) * module.dilation[axis]
        for axis in (0, 1)
    )
    (up, left), (down, right) = zeros_around(module.padding, module.kernel_size, module.dilation)
    places = None
    if groups == 1:
        live = (x != 0).any((0, 2, 3)).nonzero()[:, 0]
        if 0 < len(live) < x.shape[1]:
            size = inputs // x.shape[1]  # weights of a kernel
            places = (live[:, None] * size + torch.arange(size, device=x.device)).flatten()
            x, inputs = x[:, live], len(places)
    for part in index.split(max(1, AT_ONCE // (groups * inputs * len(every)))):
        padded = nn.functional.pad(x[part], (left, right, up, down))
        patches = padded[:, :, rows[:, :, None], columns[:, None, :]]  # (B, C, P, kh, kw)
        patches = patches.view(len(part), groups, -1, *patches.shape[2:]).permute(1, 0, 3, 2, 4, 5)
        goals = y[part].flatten(2)[:, :, every.to(y.device)]
        goals = goals.view(len(part), groups, outputs, -1).permute(1, 0, 3, 2)
        weight = None
        if mask is not None:
            weight = mask[part].float().T[..., None].expand(-1, -1, len(every)).flatten(1)
        samples = goals.reshape(groups, -1, outputs)
        moments.add(patches.reshape(groups, -1, inputs), samples, weight, places)


def add_up(sums: list[Moments], count: int, accelerator: Any) -> int:
    """Add up the sums of all processes; return how many images they saw together."""
    for moments in sums:
        moments.replace(summed(moments.tensors(), accelerator=accelerator))
    return int(summed([torch.tensor(count)], accelerator=accelerator)[0])
