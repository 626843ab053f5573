"""Which rule each operation follows: the table behind the channel graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .recognise import frozen_affine, is_channelwise, is_known, recognised
from .rules import (
    Combine,
    Contract,
    Layout,
    Mix,
    Move,
    Reduce,
    Renew,
    Rule,
    Select,
    Silence,
)

Conv = nn.modules.conv._ConvNd
BatchNorm = nn.modules.batchnorm._BatchNorm

ZERO_KEEPING_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU,
    nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softsign, nn.Tanhshrink,
    nn.Softshrink, nn.Hardshrink,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # fmt: skip
POOLING_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool1d, nn.LPPool2d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
)  # fmt: skip
ZERO_KEEPING_NAMES = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu elu elu_ selu celu gelu silu mish hardswish "
    "tanh softsign dropout dropout1d dropout2d dropout3d alpha_dropout stochastic_depth "
    "abs neg sqrt square contiguous clone detach to float half bfloat16 "
    "StochasticDepth DropPath DropBlock2d".split()
)
POOLING_NAMES = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d boolean_dispatch "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d "
    "interpolate".split()
)
RENEWING_MODULES: tuple[type[nn.Module], ...] = (
    BatchNorm, nn.InstanceNorm2d, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus,
)  # fmt: skip
RENEWING_NAMES = frozenset(
    "hardtanh sigmoid hardsigmoid softplus exp batch_norm instance_norm".split()
)
MIXING_MODULES: tuple[type[nn.Module], ...] = (
    nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.Softmax, nn.MultiheadAttention, nn.RMSNorm,
)  # fmt: skip
MIXING_NAMES = frozenset("layer_norm group_norm softmax log_softmax LayerNorm2d".split())
MOVING_MODULES: tuple[type[nn.Module], ...] = (
    nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad2d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
MOVING_NAMES = frozenset(
    "flatten view reshape permute transpose chunk split tensor_split cat concat concatenate stack "
    "getitem pad unsqueeze squeeze expand narrow unbind unflatten movedim swapaxes "
    "channel_shuffle pixel_shuffle pixel_unshuffle".split()
)
MAXIMA = frozenset("max_pool1d max_pool2d max_pool3d MaxPool1d MaxPool2d MaxPool3d".split())
SUMS = frozenset("add add_ iadd sub sub_ isub".split())
PRODUCTS = frozenset("mul mul_ imul".split())
QUOTIENTS = frozenset("div div_ truediv itruediv".split())
POWERS = frozenset("pow pow_ ipow".split())
REDUCTIONS = frozenset("mean sum amax".split())
FIRST = 2**32  # number of the first channel that is moved: no constant in a network is as large


@dataclass(frozen=True)
class Shaped:
    """What the shape pass remembers of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def is_batch_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch norm, of torch or frozen, and stays one node of a graph."""
    if isinstance(module, BatchNorm):
        return is_known(type(module)) or is_channelwise(module, module.num_features)
    return module is not None and frozen_affine(module) is not None


def natural_layout(shape: tuple[int, ...]) -> Layout:
    """Layout of a value whose channels lie in dimension 1: (C, 1, 1) for a feature map."""
    return (*shape[1:2], *[1] * (len(shape) - 2))


def find_rule(
    node: fx.Node,
    network: fx.GraphModule,
    values: Mapping[fx.Node, Any],
    layouts: Mapping[fx.Node, Any],
) -> tuple[Rule, bool] | None:
    """Choose the rule of a node.

    Args:
        node: A node that computes something.
        network: The graph module it belongs to.
        values: What the shape pass saw: `Shaped`, tuples of these, or plain values.
        layouts: Layouts of the nodes before this one.

    Returns:
        The rule and whether the operation is known (if not, it mixes); None for a node whose value
        is no tensor (sizes and the like) or depends on none (weights).
    """
    value = values.get(node)
    inputs = [source for source in node.all_input_nodes if source in layouts]
    if not inputs or not _holds_tensor(value):
        return None
    sources = tuple(source.name for source in inputs)
    given = tuple(layouts[source] for source in inputs)
    name = recognised(node, network)
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]  # in place, the same
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None

    if (unit := node.meta.get("gate")) is not None:
        return Silence(sources, given, unit), True
    if (unit := node.meta.get("inherits")) is not None:
        return Silence(sources[:1], given[:1], unit), True
    if isinstance(module, Conv | nn.Linear) and isinstance(value, Shaped):
        return _contract(module, sources, given, value), True
    if module is not None and not is_known(type(module)):
        if name == "Identity":
            return Rule(sources, given), True
        if is_batch_norm(module):
            return Renew(sources[:1], given[:1]), True
        return Mix(sources, given, _unknown_layout(value, values, inputs, given)), False
    if isinstance(module, ZERO_KEEPING_MODULES) or (
        name in ZERO_KEEPING_NAMES and len(sources) == 1
    ):
        if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
            return Renew(sources, given), True
        return Rule(sources, given), True
    pools = isinstance(module, POOLING_MODULES) or (name in POOLING_NAMES and len(sources) == 1)
    if pools and isinstance(value, Shaped) and not any(size > 1 for size in given[0][1:]):
        return Rule(sources, given), True
    if isinstance(module, RENEWING_MODULES) or (name in RENEWING_NAMES and module is None):
        return Renew(sources[:1], given[:1]), True
    if name == "getitem" and isinstance(values[inputs[0]], tuple):
        return Select(sources, given, operator.index(node.args[1])), True  # type: ignore[arg-type]
    if isinstance(module, MOVING_MODULES) or (name in MOVING_NAMES and module is None):
        maxima = all(recognised(user, network) in MAXIMA for user in node.users)
        places = _places(node, module, values, layouts, maxima=maxima)
        if places is not None:
            return Move(sources, given, places), True
    if name in SUMS | PRODUCTS | QUOTIENTS | POWERS and module is None:
        if (rule := _arithmetic(node, name, values, inputs, given)) is not None:
            return rule, True
    if name in REDUCTIONS and module is None:
        if (rule := _reduction(node, values, inputs, given)) is not None:
            return rule, True
    layout = _unknown_layout(value, values, inputs, given)
    gathers = isinstance(value, dict | tuple) and isinstance(node.target, type)  # fills a dataclass
    known = isinstance(module, MIXING_MODULES) or name in MIXING_NAMES or gathers
    return Mix(sources, given, layout), known


def _holds_tensor(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(value, Shaped) or (
        isinstance(value, tuple | dict) and any(_holds_tensor(part) for part in parts)
    )


def _contract(
    module: Conv | nn.Linear, sources: tuple[str, ...], given: tuple[Any, ...], value: Shaped
) -> Contract:
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        layout = (*[1] * (len(value.shape) - 2), module.out_features)
        features = (module.in_features, module.out_features)
        return Contract(sources, given, *features, 1, bias, -1, layout)
    channels = (module.in_channels, module.out_channels, module.groups)
    return Contract(sources, given, *channels, bias, 1, natural_layout(value.shape))


def _arithmetic(
    node: fx.Node,
    name: str,
    values: Mapping[fx.Node, Any],
    inputs: list[fx.Node],
    given: tuple[Any, ...],
) -> Rule | None:
    sources = tuple(source.name for source in inputs)
    operands = list(node.args[:2])
    if len(operands) < 2:
        return None
    numbers = [values.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in operands]
    number = next((n for n in numbers if isinstance(n, int | float)), None)
    if name in POWERS:
        positive = operands[0] is inputs[0] and number is not None and number > 0
        return Rule(sources, given) if positive else None
    if len(sources) == 1 and number is not None:
        if name in SUMS:
            return Renew(sources, given) if number else Rule(sources, given)
        return Rule(sources, given) if operands[0] is inputs[0] or name in PRODUCTS else None
    if name in QUOTIENTS:
        return None
    if len(sources) == 1:  # with itself, or with weights: a layer scale, or a learned shift
        scales = name in PRODUCTS or operands[0] is operands[1]
        return Rule(sources, given) if scales else Renew(sources, given)
    if len({len(layout) for layout in given}) > 1:
        return None
    return Combine(sources, given, name in PRODUCTS)


def _reduction(
    node: fx.Node, values: Mapping[fx.Node, Any], inputs: list[fx.Node], given: tuple[Any, ...]
) -> Rule | None:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    keepdim = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    if dims is None or len(inputs) != 1 or not isinstance(values[inputs[0]], Shaped):
        return None
    rank = len(values[inputs[0]].shape)
    positive = sorted(dim % rank for dim in (dims if isinstance(dims, tuple | list) else (dims,)))
    if 0 in positive:
        return None
    return Reduce((inputs[0].name,), given, tuple(positive), bool(keepdim))


def _places(
    node: fx.Node,
    module: nn.Module | None,
    values: Mapping[fx.Node, Any],
    layouts: Mapping[fx.Node, Any],
    *,
    maxima: bool,
) -> Any:
    """Run a data movement on channel numbers and read off where each channel went.

    A border of -inf is one of zeros where `maxima` of windows are all that reads it: it wins none.
    Returns None if the numbers do not come out as whole channels, one set for every sample.
    """
    numbers: dict[fx.Node, Tensor] = {}
    start = FIRST
    for source in node.all_input_nodes:
        value, layout = values[source], layouts.get(source)
        if not _holds_tensor(value):
            continue  # a size
        if layout is None or not isinstance(value, Shaped):
            return None
        if len(layout) != len(value.shape) - 1:
            return None
        count = math.prod(layout)
        ids = torch.arange(start, start + count, dtype=torch.float64).reshape(1, *layout)
        numbers[source] = ids.expand(value.shape)
        start += count

    def given(source: fx.Node) -> Any:
        return numbers[source] if source in numbers else values[source]

    args, kwargs = fx.map_arg(node.args, given), fx.map_arg(node.kwargs, given)
    call: Callable[..., Any] = module if module is not None else node.target  # type: ignore[assignment]
    if node.op == "call_method":
        call = operator.methodcaller(str(node.target), *args[1:], **kwargs)
        args, kwargs = args[:1], {}
    try:
        moved = call(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None  # it moves no floating-point numbers
    if maxima and isinstance(moved, Tensor):
        moved = moved.where(moved != -torch.inf, 0)
    batch = next(iter(numbers.values())).shape[0]
    if isinstance(moved, tuple | list):
        parts = tuple(_whole_channels(part, batch) for part in moved)
        return None if any(part is None for part in parts) else parts
    return _whole_channels(moved, batch)


def _whole_channels(numbers: Tensor, batch: int) -> Tensor | None:
    """Reduce (B, ...) channel numbers to one sample's, size 1 where they do not vary."""
    if numbers.dim() < 2 or not numbers.numel():
        return None
    if numbers.shape[0] != batch or not torch.equal(numbers[0], numbers[-1]):
        return None
    if bool(((numbers != 0) & (numbers < FIRST)).any()):  # padding with something else than zero
        return None
    places = (numbers[0] - FIRST + 1).clamp(min=0)
    for dim in reversed(range(places.dim())):
        largest = places.amax(dim, keepdim=True)
        if bool(((places == largest) | (places == 0)).all()):  # zero: padding at a border
            places = largest
    return places.long()


def _unknown_layout(
    value: Any, values: Mapping[fx.Node, Any], inputs: list[fx.Node], given: tuple[Any, ...]
) -> Any:
    if isinstance(value, tuple):
        return tuple(
            natural_layout(part.shape) if isinstance(part, Shaped) else () for part in value
        )
    if isinstance(value, dict):
        return ()  # its parts have none either: whoever reads one is a mix
    for source, layout in zip(inputs, given, strict=True):
        if values[source] == value:
            return layout
    return natural_layout(value.shape)


def ancestors(node: fx.Node) -> set[fx.Node]:
    """All nodes that a node depends on, without itself."""
    found: set[fx.Node] = set()
    stack = list(node.all_input_nodes)
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            stack.extend(current.all_input_nodes)
    return found
