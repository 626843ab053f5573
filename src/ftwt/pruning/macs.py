"""Multiply-accumulates: of a dense network, and of one whose filters are masked.

Two conventions, never mixed. `executed` counts what a runtime must do to get exactly the masked
network's output: each convolution's pairs of active input and needed output channel, every other
layer, and the predictors. `published` counts as the paper's tables do: gated units only, inputs as
sparse as the previous gated unit, predictors free; it exists for comparison with those tables.

One multiply-accumulate (MAC) is one multiplication with its addition.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from ..graph.activity import ChannelGraph, Layer
from ..graph.inputs import inputs_of
from ..graph.trace import trace
from ..graph.units import Unit
from ..names import nearest
from .method import MaskPredictor
from .own import OwnPredictor


@dataclass(frozen=True)
class MacCount:
    """The multiply-accumulates of one forward pass of a dense network for one sample.

    Args:
        layers: All that multiplies, in execution order.
        uncounted: What has weights or multiplies maps and has no formula: its work is not in here.
    """

    layers: tuple[Layer, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """MACs of all layers together."""
        return sum(layer.macs for layer in self.layers)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("layer", "kind", "channels", title=f"{self.total / 1e6:,.2f} M MACs")
        table.add_column("MACs", justify="right")
        table.add_column("share", justify="right")
        for layer in self.layers:
            channels = f"{layer.in_channels} -> {layer.out_channels}" if layer.in_channels else ""
            share = f"{layer.macs / self.total:.1%}"
            table.add_row(layer.name, layer.kind, channels, f"{layer.macs:,}", share)
        yield table
        yield from (f"not counted, no formula: {name}" for name in self.uncounted)


@dataclass(frozen=True)
class MaskedMacs:
    """The multiply-accumulates that masks leave, for each of N samples.

    Args:
        dense: MACs of the network without masks.
        layers: Layer -> (N,) executed MACs.
        predictors: Unit -> (N,) MACs of its predictor.
        published: (N,) MACs as the paper counts them.
    """

    dense: int
    layers: dict[str, Tensor]
    predictors: dict[str, Tensor]
    published: Tensor

    @property
    def executed(self) -> Tensor:
        """(N,) MACs of all layers and predictors."""
        return torch.stack([*self.layers.values(), *self.predictors.values()]).sum(0)

    @property
    def saved(self) -> Tensor:
        """(N,) dense MACs that the layers do not execute; predictors are not paid."""
        return self.dense - torch.stack([*self.layers.values()]).sum(0)

    @property
    def reduction(self) -> Tensor:
        """(N,) share of the dense MACs that is not executed; negative if predictors cost more."""
        return 1 - self.executed / self.dense

    @property
    def published_reduction(self) -> Tensor:
        """(N,) share of the dense MACs that the paper's convention saves."""
        return 1 - self.published / self.dense


def count_macs(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> MacCount:
    """Count the multiply-accumulates of a dense network, layer by layer.

    Args:
        model: Any network that can be traced; it is not changed.
        example: Its input, (B, C, *spatial), or a tuple of its inputs. Counted for one sample.

    Returns:
        MACs for each layer and in all.

    Raises:
        ValueError: If the network cannot be traced.

    Warns:
        UserWarning: If something has weights or multiplies maps and has no formula.
    """
    inputs = inputs_of(example)
    channels = ChannelGraph(trace(model, inputs), inputs)
    warn_of_uncounted(channels.uncounted)
    return MacCount(channels.layers, channels.uncounted)


def warn_of_uncounted(names: tuple[str, ...], *, stacklevel: int = 3) -> None:
    """Warn of what has no formula, if there is anything; it is part of no count."""
    if names:
        message = f"not counted, for there is no formula for it: {', '.join(names)}"
        warnings.warn(f"{message}; every count and reduction is of the rest", stacklevel=stacklevel)


def predictor_macs(predictor: MaskPredictor, active: Tensor | int) -> Tensor | int:
    """Count one prediction, as its head executes.

    Args:
        predictor: A gate's predictor.
        active: Input channels that can be non-zero. A standardized head folds into its linear layer
            and reads only these; a softmax head turns zeros into numbers and reads all, and so
            does one of your own.

    Returns:
        MACs, in the form of `active`.
    """
    if isinstance(predictor, OwnPredictor):
        return active * 0 + predictor.macs
    linear, reduce = predictor.linear, predictor.reduce
    width = (linear if reduce is None else reduce).in_features
    if reduce is not None:
        apart = reduce.weight.numel() + linear.weight.numel()
        if apart >= linear.out_features * width:
            reduce = None  # no bottleneck: the two matrices are multiplied beforehand
    inputs = active * (2 if predictor.pool == "both" else 1)
    if predictor.head == "softmax":
        inputs = inputs * 0 + width
    if reduce is None:
        return inputs * linear.out_features
    return inputs * reduce.out_features + linear.weight.numel()


def masked_macs(
    channels: ChannelGraph,
    units: tuple[Unit, ...],
    predictors: Mapping[str, MaskPredictor],
    masks: Mapping[str, Tensor],
) -> MaskedMacs:
    """Count what masks leave to do.

    Args:
        channels: The channel graph of the gated network.
        units: Its units in execution order.
        predictors: Unit -> predictor, for the units that have one.
        masks: Unit -> (N, C) bool; units that are not named compute all their filters.

    Returns:
        Counts in both conventions for each of the N samples.

    Raises:
        ValueError: If a mask names no unit, or has another shape or type.
    """
    _check_masks(units, masks)
    flow = channels.walk(masks, predictors)
    layers = {layer.name: layer for layer in channels.layers}
    samples = len(next(iter(flow.macs.values())))
    costs = {
        name: torch.as_tensor(predictor_macs(predictor, flow.read[name]))
        for name, predictor in predictors.items()
    }
    published, before = torch.zeros(samples, dtype=torch.float64), None
    for unit in units:
        layer = layers[unit.name]
        mask = masks.get(unit.inherits or unit.name)
        kept = torch.tensor(unit.out_channels) if mask is None else mask.sum(1).cpu()
        read = torch.tensor(unit.in_channels) if before is None else before
        published = published + kept * (read // layer.groups) * float(layer.positions)
        before = kept
    return MaskedMacs(sum(layer.macs for layer in channels.layers), flow.macs, costs, published)


def _check_masks(units: tuple[Unit, ...], masks: Mapping[str, Tensor]) -> None:
    known = {unit.name: unit for unit in units}
    samples = None
    for name, mask in masks.items():
        if name not in known:
            raise ValueError(f"masks name an unknown unit {name!r}; {nearest(name, known)}")
        if (source := known[name].inherits) is not None:
            raise ValueError(f"unit {name!r} takes the mask of {source!r}; give that one")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask of unit {name!r} is {kind}; give a tensor of bool")
        samples = len(mask) if samples is None and mask.dim() else samples
        if not mask.numel():
            raise ValueError(f"the mask of unit {name!r} is of no sample; give (N, C), N >= 1")
        if mask.shape != (samples, known[name].out_channels):
            raise ValueError(
                f"the mask of unit {name!r} has shape {tuple(mask.shape)}; give (N, C) = "
                f"({samples}, {known[name].out_channels}), N the same for all units"
            )
