"""Which filters the next layers can do without: greedy column selection.

What a mask takes from a layer's input, the layer's other inputs make up for, as far as least
squares can. So a filter is worth what they cannot: the squared error that is left when it goes and
the readers of its unit are fitted anew. Filters go one by one, the least of them first; the inverse
of the inputs' covariance is brought up to date after each.

Source: Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain
Surgeon": the increase of a quadratic error when weights are set to zero and the others follow.

Among few samples almost any input is a sum of others, by chance, and any filter looks superfluous.
So covariances are then shrunk towards independent inputs of equal variance.

Source: Chen, Wiesel, Eldar and Hero 2010, "Shrinkage algorithms for MMSE covariance estimation":
the oracle approximating shrinkage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.trace import evaluating
from ..pruning.dynamic import DynamicModel, refuse_dense
from ..pruning.second_look import opened
from .masks import Ranking, inner_units, mean_saliency
from .passes import Passes, repeatable, shown
from .regression import Moments, covariances, mean_variance, solved
from .samples import add_samples, add_up, shape_of
from .sites import Site, find_sites

RIDGE = 1e-3  # of the mean variance of an input
SHRUNK = 0.8  # of the columns of a matrix: once fewer are left, it is made smaller
FEW = 4  # samples for each input; with fewer, covariances are shrunk


@torch.no_grad()
def rank_filters(
    dynamic: DynamicModel,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    images: int = 256,
    accelerator: Any = None,
) -> Ranking:
    """Rank each unit's filters by what least squares cannot make up for.

    Labels are not used. A unit that is added to a residual stream, none of whose readers can be
    fitted, or whose filters reach them mixed up, is ranked by its gate's saliency: the share of it
    that is gone counts as the error.

    Args:
        dynamic: A network with gates, and the weights of the dense one.
        batches: Images (B, C, *spatial), with or without labels; the same at each pass.
        images: How many to look at, at most, over all processes together.
        accelerator: As for `repair`.

    Returns:
        The ranking, for `fixed_masks`.

    Raises:
        ValueError: There are fewer than 2 images, or an activation is not finite.
    """
    refuse_dense(dynamic)
    whole, batches = opened(dynamic).eval(), repeatable(batches)
    sites = [site for site in find_sites(whole.network)[0] if site.gate is None]
    inner = inner_units(dynamic)
    readers = {n: readers_of(dynamic, n, sites) if n in inner else {} for n in dynamic.gates}

    passes = Passes(
        whole.network,
        whole.network,
        lambda: shown(dynamic, batches, images, accelerator=accelerator),
        sites,
        accelerator=accelerator,
    )
    ranked: dict[str, tuple[Tensor, Tensor]] = {}
    waiting: dict[str, list[_Reader]] = {name: [] for name in readers}
    with evaluating(whole):
        for site in sites:
            sums = _sum(whole, site, passes, accelerator)
            for name in [name for name in waiting if site.name in readers[name]]:
                waiting[name].append(_Reader(*sums, *readers[name][site.name]))
                if len(waiting[name]) == len(readers[name]):
                    ranked[name] = eliminate(waiting.pop(name))
    if waiting:
        saliency = mean_saliency(dynamic, batches, images=images, accelerator=accelerator)
        for name in waiting:
            rising = saliency[name].cpu().sort(stable=True)
            gone = rising.values.cumsum(0) - rising.values
            ranked[name] = rising.indices, gone / rising.values.sum().clamp(min=1e-30)
    return Ranking(
        {name: ranked[name][0] for name in dynamic.gates},
        {name: ranked[name][1] for name in dynamic.gates},
    )


def readers_of(
    dynamic: DynamicModel, unit: str, sites: list[Site]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers that read a unit: name -> the group and the columns of each of its filters.

    Empty where a layer that reads it cannot be fitted, or a filter has no columns of its own.
    """
    width = next(each.out_channels for each in dynamic.units if each.name == unit)
    one_off = ~torch.eye(width, dtype=torch.bool)
    found = {}
    for name, silent in dynamic.channels.silenced({unit: one_off}).items():
        if not silent.any():
            continue
        layer = next((site.name for site in sites if site.name == name), None)
        module = None if layer is None else dynamic.network.get_submodule(name)
        if module is None:
            if _is_masked_too(dynamic, name, unit):
                continue
            return {}
        groups, inputs, _ = shape_of(module)
        counts = silent.sum(1)
        if len(counts.unique()) > 1 or (silent.sum(0) > 1).any():
            return {}
        channels = silent.nonzero()[:, 1].view(width, -1)  # (C, inputs of the layer for each)
        each = silent.shape[1] // groups
        group = channels // each
        if (group != group[:, :1]).any():
            return {}
        size = inputs // each  # weights of a kernel
        columns = (channels % each)[..., None] * size + torch.arange(size)
        found[name] = group[:, 0], columns.flatten(1)
    return found


def _is_masked_too(dynamic: DynamicModel, layer: str, unit: str) -> bool:
    """Whether a layer takes a unit's mask, as depthwise ones do: nothing is asked of it there."""
    return any(each.name == layer and each.inherits == unit for each in dynamic.units)


def _sum(
    whole: DynamicModel, site: Site, passes: Passes, accelerator: Any
) -> tuple[Moments, float, bool]:
    """Sums over all images, the variance of what is to be met, and whether an offset is free."""
    module = whole.network.get_submodule(site.name)
    device = next(module.parameters()).device
    groups, inputs, outputs = shape_of(module)
    moments, goal = (
        Moments(groups, inputs, outputs, device),
        Moments(1, 1, groups * outputs, device),
    )
    count = 0
    for read in passes.values(site):
        index = torch.arange(read.count, device=device)
        add_samples(moments, module, read.inputs, read.own, None, index)
        values = read.target.movedim(1, -1) if isinstance(module, nn.Conv2d) else read.target
        flat = values.reshape(1, -1, groups * outputs)
        goal.add(flat.new_zeros(*flat.shape[:2], 1), flat)
        count += read.count
    if (images := add_up([moments, goal], count, accelerator)) < 2:
        raise ValueError(f"{images} images to rank filters on; give 2 or more, 256 are usual")
    free = site.norm is not None or getattr(module, "bias", None) is not None
    return moments, float(goal.variance().sum() / goal.weight[0]), free


def ridge_for(covariance: Tensor, samples: float) -> float:
    """Share of the mean variance to add to the diagonal of (groups, inputs, inputs) covariances."""
    inputs = covariance.shape[1]
    if samples >= FEW * inputs:
        return RIDGE
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    squares = covariance.square().sum((1, 2))
    above = (1 - 2 / inputs) * squares + trace**2
    below = (samples + 1 - 2 / inputs) * (squares - trace**2 / inputs)
    shrinkage = float((above / below.clamp(min=1e-30)).max())
    return max(RIDGE, shrinkage / max(1 - shrinkage, 1e-3))


class _Reader:
    """A layer fitted anew to what it gives, while filters that it reads go one by one.

    Args:
        moments: Sums over what it reads and gives.
        spread: Variance of what is to be met: errors are shares of it.
        free: Whether its offset may change.
        group: (C,) the group of the layer that each filter lies in.
        columns: (C, Q) the columns of each filter in the regression of that group.
    """

    def __init__(
        self, moments: Moments, spread: float, free: bool, group: Tensor, columns: Tensor
    ) -> None:
        covariance, cross = covariances(moments, free)
        ridge = ridge_for(covariance, float(moments.weight.max()))
        self.inverse = solved(covariance, ridge * mean_variance(covariance))
        self.weights = self.inverse @ cross
        self.scale = 1 / max(spread, 1e-30)
        self.group, self.columns = group.to(cross.device), columns.to(cross.device)
        self.left = self.weights.new_ones(self.weights.shape[1], dtype=torch.bool)
        self.there = torch.ones(len(group), dtype=torch.bool, device=cross.device)

    def losses(self) -> Tensor:
        """(C,): by how much the error grows if each filter goes, infinite where it is gone."""
        group, columns = self.group[self.there, None], self.columns[self.there]
        blocks = self.inverse[group[..., None], columns[:, :, None], columns[:, None, :]]
        weights = self.weights[group, columns]
        grown = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2)) * self.scale
        return grown.new_full(self.there.shape, torch.inf).masked_scatter(self.there, grown)

    def remove(self, filter: int) -> None:
        """Let a filter go, and the other weights follow."""
        group, columns = self.group[filter], self.columns[filter]
        inverse, weights = self.inverse[group], self.weights[group]
        both = torch.cat((inverse[columns], weights[columns]), 1)
        step = torch.linalg.solve(inverse[columns][:, columns], both)
        touched = inverse[:, columns]
        inverse.addmm_(touched, step[:, : len(inverse)], alpha=-1)
        weights.addmm_(touched, step[:, len(inverse) :], alpha=-1)
        inverse[columns] = inverse[:, columns] = weights[columns] = 0
        self.there[filter] = False
        if len(self.inverse) == 1:
            self.left[columns] = False
            if self.left.sum() < SHRUNK * len(self.left):
                self._shrink()

    def _shrink(self) -> None:
        """Take the columns that are gone out of the sums, which grow with their square."""
        at = self.left.nonzero()[:, 0]
        self.inverse, self.weights = self.inverse[:, at[:, None], at], self.weights[:, at]
        self.columns = (self.left.cumsum(0) - 1)[self.columns]
        self.left = self.left[at]


def eliminate(readers: list[_Reader]) -> tuple[Tensor, Tensor]:
    """Let all filters but one go, the least first: their order, and what is lost before each."""
    width = len(readers[0].there)
    order, lost = [], [0.0]
    for _ in range(width - 1):
        losses = torch.stack([reader.losses().cpu() for reader in readers]).sum(0)
        least = int(losses.argmin())
        order.append(least)
        lost.append(lost[-1] + float(losses[least]))
        for reader in readers:
            reader.remove(least)
    order.append(int(readers[0].there.nonzero()[0, 0]))
    return torch.tensor(order), torch.tensor(lost, dtype=torch.float64)
