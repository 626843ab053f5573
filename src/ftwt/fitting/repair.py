"""Repair: refit the layers that read masked channels, so that they give what they gave before.

A mask takes terms out of the sums that the next layer computes. What is left can make up for most
of that: each such layer is fitted anew by ridge regression, under the very masks that the gates
decide, to what it gave in the dense network. A layer whose output is added to a residual stream is
fitted to the dense sum, so that it also makes up for what the stream has lost before it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, fx, nn

from ..files.tables import Shown
from ..graph.operations import BatchNorm
from ..graph.trace import evaluating
from ..pruning.dynamic import GATES, DynamicModel, refuse_dense
from .passes import Passes, repeatable, shown
from .regression import Fit, Moments, fit
from .samples import HELD_OUT, add_samples, add_up, held_out, shape_of
from .sites import Site, find_sites

FLAT = 1e-3  # a batch norm's slope below which it is given a slope of 1


@dataclass(frozen=True)
class RepairedLayer:
    """One layer's repair.

    Args:
        name: The layer.
        before: Squared error on held-out images without the repair, as a share of the variance of
            what the layer should give there; of its squares, if it gives one value throughout.
        after: The same with the repair, fitted without these images.
        ridge: The ridge chosen; None if the layer kept its weights, since no fit was better.
        unknowns: Weights to fit for each output.
        samples: Positions of all images that were fitted to.
    """

    name: str
    before: float
    after: float
    ridge: float | None
    unknowns: int
    samples: int


@dataclass(frozen=True)
class Repair(Shown):
    """What `repair` did.

    Args:
        layers: The layers that read masked channels, in execution order.
        left: Layer -> reason, where such a layer was left alone.
        images: Images looked at, over all processes together.
    """

    layers: tuple[RepairedLayer, ...]
    left: dict[str, str]
    images: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            "layer", title=f"repaired with {self.images:,} images: error on held-out images"
        )
        for column in ("before", "after", "ridge"):
            table.add_column(column, justify="right")
        for layer in self.layers:
            ridge = "as it was" if layer.ridge is None else f"{layer.ridge:g}"
            table.add_row(layer.name, f"{layer.before:.2%}", f"{layer.after:.2%}", ridge)
        for name, reason in self.left.items():
            table.add_row(name, "", "", f"left alone: {reason}")
        yield table


@torch.no_grad()
def repair(
    dynamic: DynamicModel,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    dense: nn.Module,
    images: int = 2048,
    accelerator: Any = None,
) -> Repair:
    """Refit, in place, every layer that reads masked channels to what the dense network gave.

    Layer by layer, in the order of the graph, by ridge regression: convolutions (grouped and
    depthwise too) and linear layers, with the batch norm that follows. Labels are not used. Between
    two layers the feature maps of as many batches are kept as fit into a quarter of the free memory
    where the network lies (of a machine's, 1 GiB at least, which its processes share); the other
    batches run from the start for each layer.

    Args:
        dynamic: A network with gates, or its static twin. Its masks decide as they are set.
        batches: Images (B, C, *spatial), with or without labels; the same at each pass.
        dense: The trained network that `dynamic` was made from. It is not changed.
        images: How many images to look at, at most, over all processes together. Every fifth is
            held out to choose each layer's ridge by.
        accelerator: An `accelerate.Accelerator` or `PartialState`, if each process holds its own
            part of the images: then all get the same weights.

    Returns:
        Each layer's error before and after. A layer that no fit makes better keeps its weights.

    Raises:
        ValueError: There are fewer than 5 images, an activation is not finite, or `dense` is
            another network. The network is then as it was.

    Warns:
        UserWarning: A layer has more unknowns than there are samples to fit to.
    """
    refuse_dense(dynamic)
    teacher, batches = _teacher(dynamic, dense), repeatable(batches)
    sites, left = find_sites(dynamic.network)
    passes = Passes(
        dynamic.network,
        teacher.network,
        lambda: shown(dynamic, batches, images, accelerator=accelerator),
        sites,
        accelerator=accelerator,
    )
    layers, count = [], 0
    with evaluating(dynamic), evaluating(teacher), _restoring(dynamic.network, sites):
        for site in sites:
            fitted, held, mine = _sum(dynamic.network, site, passes)
            count = add_up([fitted, held], mine, accelerator)
            if count < HELD_OUT:
                raise ValueError(f"{count} images to repair with; give {HELD_OUT} or more")
            layers.append(_refit(dynamic.network, site, fitted, held))
    _warn(layers)
    return Repair(tuple(layers), left, count)


def _teacher(dynamic: DynamicModel, dense: nn.Module) -> DynamicModel:
    """The dense network in the form of the dynamic one, whose gates are then left open."""
    teacher = copy.deepcopy(dynamic)
    own, given = teacher.network.state_dict(), dense.state_dict()
    fits = {name: value for name, value in given.items() if name in own}
    needed = (n for n, _ in teacher.network.named_parameters() if not n.startswith(f"{GATES}."))
    missing = [name for name in needed if name not in given] or [
        name for name, value in fits.items() if value.shape != own[name].shape
    ]
    if missing:
        raise ValueError(
            f"dense={type(dense).__name__} is another network: {missing[0]} does not fit; give the "
            "network that was converted, with the weights it had then"
        )
    teacher.network.load_state_dict(own | fits)
    return teacher


def _sum(network: fx.GraphModule, site: Site, passes: Passes) -> tuple[Moments, Moments, int]:
    """Sums over images to fit and over images held out, and how many images there were."""
    module = network.get_submodule(site.name)
    device = next(module.parameters()).device
    fitted, held = Moments(*shape_of(module), device), Moments(*shape_of(module), device)
    images = 0
    for read in passes.values(site):
        images += read.count
        mask = None if site.gate is None else read.found[site.gate.name][1].mask
        places = torch.arange(read.place, read.place + read.count, device=device)
        last = held_out(places)
        for moments, chosen in ((fitted, ~last), (held, last)):
            add_samples(moments, module, read.inputs, read.own, mask, chosen.nonzero()[:, 0])
    return fitted, held, images


def _refit(network: fx.GraphModule, site: Site, fitted: Moments, held: Moments) -> RepairedLayer:
    """Solve for a layer's weights and write them, with the batch norm behind it."""
    module, norm = _layer(network, site)
    found = solve(network, site, fitted, held)
    inputs = shape_of(module)[1]
    if found.ridge is not None:
        _write(module, norm, found.weights.mT.reshape(-1, inputs), found.offset.flatten())
    samples = int(fitted.weight.max() + held.weight.max())
    return RepairedLayer(site.name, found.before, found.after, found.ridge, inputs, samples)


def solve(network: fx.GraphModule, site: Site, fitted: Moments, held: Moments) -> Fit:
    """Fit a layer, with the batch norm behind it, to sums of what it reads and should give."""
    module, norm = _layer(network, site)
    groups, inputs, outputs = shape_of(module)
    slope, offset = _line(module, norm)
    now = module.weight.double().view(-1, inputs) * slope[:, None]
    return fit(
        fitted,
        held,
        now.view(groups, outputs, inputs).mT,
        offset.view(groups, outputs),
        free_offset=module.bias is not None or norm is not None,
    )


def _layer(network: fx.GraphModule, site: Site) -> tuple[nn.Conv2d | nn.Linear, BatchNorm | None]:
    """The layer of a site, and the batch norm behind it."""
    module = network.get_submodule(site.name)
    norm = None if site.norm is None else network.get_submodule(site.norm)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    assert norm is None or isinstance(norm, BatchNorm)
    return module, norm


def _line(module: nn.Conv2d | nn.Linear, norm: BatchNorm | None) -> tuple[Tensor, Tensor]:
    """What is done to a layer's sums: multiplied by a slope, and an offset added, (C,) float64."""
    bias = module.bias
    width = len(module.weight)
    slope = torch.ones(width, dtype=torch.float64, device=module.weight.device)
    offset = torch.zeros_like(slope) if bias is None else bias.double()
    if norm is not None:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None
        slope = (var.double() + norm.eps).rsqrt()
        if norm.affine:
            slope = slope * norm.weight.double()
        offset = (offset - mean.double()) * slope
        if norm.affine:
            offset = offset + norm.bias.double()
    return slope, offset


@contextmanager
def _restoring(network: fx.GraphModule, sites: Iterable[Site]) -> Iterator[None]:
    """Give all layers back what they had if anything stops the repair, Ctrl-C too."""
    tensors = [
        value
        for site in sites
        for module in _layer(network, site)
        if module is not None
        for value in (*module.parameters(), *module.buffers())
    ]
    before = [value.clone() for value in tensors]
    try:
        yield
    except BaseException:
        for value, was in zip(tensors, before, strict=True):
            value.copy_(was)
        raise


def _write(
    module: nn.Conv2d | nn.Linear, norm: BatchNorm | None, weights: Tensor, offset: Tensor
) -> None:
    """Give a layer weights, and an offset behind its batch norm, which keeps its slope."""
    if norm is not None:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None
        if norm.affine:  # a slope of nearly 0 would ask for weights without bounds
            flat = (var.double() + norm.eps).rsqrt() * norm.weight.double().abs() < FLAT
            norm.weight.copy_(torch.where(flat, (var.double() + norm.eps).sqrt(), norm.weight))
        slope, start = _line(module, norm)
        weights = weights / slope[:, None]
        mean.copy_(mean.double() - (offset - start) / slope)
    elif module.bias is not None:
        module.bias.copy_(offset)
    module.weight.copy_(weights.view_as(module.weight))


def _warn(layers: list[RepairedLayer]) -> None:
    few = [layer for layer in layers if layer.samples < layer.unknowns]
    if few:
        worst = max(few, key=lambda layer: layer.unknowns / layer.samples)
        warnings.warn(
            f"{worst.name} has {worst.unknowns:,} unknowns for each output and {worst.samples:,} "
            "samples: the ridge holds it, more images would repair it better",
            stacklevel=4,  # over torch.no_grad, to who calls repair
        )
