"""Put gates into a network: tracing instead of surgery on each architecture."""

from __future__ import annotations

import copy
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from ..graph.activity import ChannelGraph
from ..graph.inputs import inputs_of
from ..graph.operations import Conv
from ..graph.settle import without_gradients
from ..graph.trace import trace
from ..graph.units import Depthwise, Residual, Unit, find_units
from ..graph.wrappers import copied, refuse_no_module
from ..names import nearest
from .dynamic import ARGUMENTS, GATES, DynamicModel, FrozenGate, check_r
from .macs import warn_of_uncounted
from .method import Gate, Head, MaskPredictor, Mode, Pool, Saliency, Variant, silence
from .own import OwnHead, OwnPredictor, OwnSaliency, resolve_head, resolve_saliency

UNNAMED_R = 0.9  # of a unit that a mapping does not name, and of all if nothing is said
_TOO_DEAR = {
    "conv": "its predictor would cost as much as the convolution",
    "linear": "its predictor would cost as much as the layer; rank=16, say, makes it cheaper",
}


def convert(  # noqa: D417
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    r: float | Mapping[str, float] = UNNAMED_R,
    mode: Mode = "decoupled",
    saliency: Saliency | OwnSaliency | str = "peak",
    variant: Variant = "mass",
    pool: Pool = "mean",
    head: Head | OwnHead | str = "standardized",
    rank: int | None = None,
    straight_through: bool = False,
    residual: Residual = "before",
    depthwise: Depthwise = "inherit",
    linear: bool = False,
    skip: Iterable[str] | Callable[[str], bool] = (),
    min_gain: float | None = None,
) -> DynamicModel:
    """Make a network dynamic: find its units and give each a gate.

    Args:
        model: Any network that can be traced, if need be for the size of `example` alone. It is
            copied, never changed.
        example: Its input, (B, C, *spatial), or a tuple of its inputs. One sample is enough.
        r, mode, saliency, variant, straight_through: As `ftwt.PruneConfig` documents each. A
            saliency of your own maps (B, C, *spatial) outputs of a unit to (B, C) values from 0 on;
            it is given as the function, or as `module:function`.
        pool, head, rank: Likewise, of the predictors. A head of your own is called with the width
            of pooled features and the number of filters, and returns a module from (B, width) to
            (B, filters) logits.
        residual, depthwise, linear: Likewise, of where gates sit.
        skip: Likewise, or a predicate on the names of layers.
        min_gain: Likewise; it judges by the images of `example`.

    Returns:
        The dynamic network. Its predictors are untrained, and so its gates stand open.

    Raises:
        ValueError: If an option is invalid, `model` is dynamic already, or cannot be traced.

    Warns:
        UserWarning: If no unit was found (the reasons are in `reasons`), or if something that has
            weights or multiplies maps has no formula to be counted by.
    """
    for name, value, kind in (
        ("mode", mode, Mode),
        ("variant", variant, Variant),
        ("pool", pool, Pool),
        ("residual", residual, Residual),
        ("depthwise", depthwise, Depthwise),
    ):
        if value not in get_args(kind):
            raise ValueError(f"{name}={value!r}: use one of {', '.join(get_args(kind))}")
    rule, saliency_name = resolve_saliency(saliency)
    build_head, head_name = resolve_head(head)
    if build_head is not None and rank is not None:
        raise ValueError(f"rank={rank} is of ftwt's heads; a head of your own has its own form")
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: give a width of at least 1, or None for a full predictor")
    refuse_no_module(model)
    if any(isinstance(module, Gate | FrozenGate | DynamicModel) for module in model.modules()):
        raise ValueError(
            "the network is dynamic already; convert the one that it was made of: what restore() "
            "of a DynamicModel returns"
        )
    inputs = inputs_of(example)
    network = trace(copied(model), inputs, training=True)
    for parameter in without_gradients(network):
        parameter.requires_grad_(False)
    options = {
        "mode": mode,
        "saliency": rule,
        "variant": variant,
        "straight_through": straight_through,
    }
    form = {"pool": pool, "head": head_name, "rank": rank}
    place = {"residual": residual, "depthwise": depthwise, "linear": linear}

    def predictor(unit: Unit) -> MaskPredictor:
        if build_head is None:
            return MaskPredictor(unit.in_channels, unit.out_channels, **form)  # type: ignore[arg-type]
        sizes = (unit.in_channels, unit.out_channels)
        return OwnPredictor(*sizes, pool=pool, build=build_head, name=head_name)

    def build(left: Mapping[str, str]) -> DynamicModel:
        copied = copy.deepcopy(network)
        units, reasons = find_units(copied, **place, skip=left)  # type: ignore[arg-type]
        gated = [unit for unit in units if unit.inherits is None]
        values = check_r(r, [unit.name for unit in gated])
        gates = {
            unit.name: Gate(predictor(unit), r=values.get(unit.name, UNNAMED_R), **options)
            for unit in gated
        }
        dynamic = _insert(copied, units, gates, channels)
        told = options | {"saliency": saliency_name, "skip": sorted(left)}
        config = {"r": r if isinstance(r, int | float) else dict(r)} | told | form | place
        return DynamicModel(dynamic, units, reasons, inputs, config)

    left = dict.fromkeys(_chosen(skip, network, linear=linear), "skipped on request")
    channels = ChannelGraph(network, inputs)
    layers = {layer.name: layer for layer in channels.layers}
    for unit in find_units(network, **place, skip=left)[0]:  # type: ignore[arg-type]
        if unit.inherits is not None:
            continue
        if layers[unit.name].kind != unit.kind:
            left[unit.name] = "its input is the same for all images"
        elif {unit.layer, unit.end} & channels.folded:
            left[unit.name] = "its rows are not samples: something else is folded into the batch"
        elif layers[unit.name].positions == 1 and unit.kind == "conv":
            left[unit.name] = "sees a single position, as in squeeze-excitation"
        elif min_gain is None and _weights(predictor(unit)) >= layers[unit.name].macs:
            left[unit.name] = _TOO_DEAR[unit.kind]
    if min_gain is not None and min_gain > -math.inf:
        for name, gain in _gains(build(left), inputs).items():
            if gain < min_gain:
                left[name] = f"its gate saves {gain:.2%} of all MACs, below min_gain={min_gain:g}"
    dynamic = build(left)
    if not dynamic.units:
        why = "; ".join(f"{name}: {reason}" for name, reason in dynamic.reasons.items())
        message = f"no unit found in {type(model).__name__}: {why or 'it has no convolution'}"
        if not linear and any(isinstance(module, nn.Linear) for module in model.modules()):
            message += "; linear=True gates hidden linear layers"
        warnings.warn(message, stacklevel=2)
    warn_of_uncounted(channels.uncounted)
    dynamic.to(next((parameter.device for parameter in model.parameters()), torch.device("cpu")))
    dynamic.training = model.training  # the network's own modules have the modes of the original's
    dynamic.network.get_submodule(GATES).train(model.training)
    return dynamic


@torch.no_grad()
def _gains(dynamic: DynamicModel, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Share of all MACs that each gate saves by itself, with target masks, its predictor paid."""
    _, decided = dynamic.eval()(*inputs, gates="open", return_gates=True)
    result = {}
    for name, gate in decided.items():
        count = dynamic.macs({name: gate.target})
        left = sum(count.layers.values()) + count.predictors[name]
        result[name] = 1 - float(left.mean()) / count.dense
    return result


def _weights(predictor: MaskPredictor) -> int:
    if isinstance(predictor, OwnPredictor):
        return predictor.macs
    return sum(m.weight.numel() for m in predictor.modules() if isinstance(m, nn.Linear))


def _chosen(
    skip: Iterable[str] | Callable[[str], bool], network: nn.Module, *, linear: bool
) -> list[str]:
    """Names of the layers to skip, from names, prefixes or a predicate."""
    kinds = (Conv, nn.Linear) if linear else (Conv,)
    layers = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    if callable(skip):
        return [layer for layer in layers if skip(layer)]
    names = (skip,) if isinstance(skip, str) else tuple(skip)
    what = "convolution or linear layer" if linear else "convolution"
    for name in names:
        if not any(layer == name or layer.startswith(f"{name}.") for layer in layers):
            raise ValueError(f"skip names no {what}: {name!r}; {nearest(name, layers)}")
    return [x for x in layers if any(x == name or x.startswith(f"{name}.") for name in names)]


def _insert(
    network: fx.GraphModule,
    units: tuple[Unit, ...],
    gates: Mapping[str, Gate],
    channels: ChannelGraph,
) -> fx.GraphModule:
    """Write the gates into the graph; it then returns (output, {unit: GateOutput}).

    A gate takes channels in dimension 1. Those of a linear layer lie in the last, so they are moved
    to it and back; where that is the same dimension, nothing is moved.
    """
    graph = network.graph
    nodes = {node.name: node for node in graph.nodes}
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last_input):
        explain = graph.placeholder(ARGUMENTS[1], default_value=False)
        apply = graph.placeholder(ARGUMENTS[0], default_value="open")
    decided: dict[str, fx.Node] = {}
    network.add_module(GATES, nn.Module())

    def after(place: fx.Node, function: Callable[..., Any], *args: Any, **meta: str) -> fx.Node:
        with graph.inserting_after(place):
            node = graph.call_function(function, args)
        node.meta.update(meta)
        return node

    for unit in units:
        end = nodes[unit.end]
        if unit.inherits is not None:
            mask = after(end, operator.getitem, decided[unit.inherits], 0, info=unit.inherits)
            masked = reader = after(mask, silence, end, mask, inherits=unit.inherits)
        else:
            target = f"{GATES}.{unit.name}"
            network.add_submodule(target, gates[unit.name])
            inputs, outputs, moves = nodes[unit.layer].all_input_nodes[0], end, False
            if unit.kind == "linear" and len(channels.shapes[unit.end]) > 1:
                outputs, moves = after(end, torch.movedim, end, -1, 1, moved=unit.name), True
                inputs = after(outputs, torch.movedim, inputs, -1, 1, moved=unit.name)
            with graph.inserting_after(inputs if moves else end):
                gate = graph.call_module(target, (inputs, outputs, apply, explain))
            gate.meta["gate"] = unit.name
            masked = after(gate, operator.getitem, gate, 0, masked=unit.name)
            decided[unit.name] = after(masked, operator.getitem, gate, 1, info=unit.name)
            reader = outputs if moves else gate
            if moves:
                masked = after(masked, torch.movedim, masked, 1, -1, moved=unit.name)
        end.replace_all_uses_with(masked, delete_user_cb=lambda node, own=reader: node is not own)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((output.args[0], decided),)
    graph.lint()
    network.recompile()
    return network
