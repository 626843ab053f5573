"""Put gates into a network: tracing instead of surgery on each architecture."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from .dynamic import ARGUMENTS, GATES, DynamicModel, FrozenGate, check_r
from .graph.activity import ChannelGraph
from .graph.operations import Conv
from .graph.trace import trace
from .graph.units import Depthwise, Residual, Unit, find_units
from .method import Gate, Head, MaskPredictor, Mode, Pool, Saliency, Variant, silence
from .names import nearest

UNNAMED_R = 0.9  # of a unit that a mapping does not name, and of all if nothing is said


def convert(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    r: float | Mapping[str, float] = UNNAMED_R,
    mode: Mode = "decoupled",
    saliency: Saliency = "peak",
    variant: Variant = "mass",
    pool: Pool = "mean",
    head: Head = "standardized",
    rank: int | None = None,
    straight_through: bool = False,
    residual: Residual = "before",
    depthwise: Depthwise = "inherit",
    skip: Iterable[str] | Callable[[str], bool] = (),
    min_gain: float | None = None,
) -> DynamicModel:
    """Make a network dynamic: find its units and give each a gate.

    Args:
        model: Any network that `torch.fx` can trace. It is copied, never changed.
        example: Its input, (B, C, *spatial), or a tuple of its inputs. One sample is enough, but
            `min_gain` judges by these images.
        r: Share of the heatmap mass that a target mask keeps, in (0, 1]; a mapping unit -> r names
            the units that differ from 0.9.
        mode: `decoupled`: the mask loss trains only the predictors; `joint`: the network too.
        saliency: What ranks filters: `peak` (published), `energy`, `norm` or `mean`.
        variant: `mass` keeps as many filters as reach r; `uniform` the same share r always.
        pool: How predictors pool their input: `max`, `mean` or `both`.
        head: `standardized`, which folds, or `softmax`, as published.
        rank: Width of the predictors' bottleneck; None for none.
        straight_through: Let the task loss reach the predictors through the 0/1 masks.
        residual: Mask a residual branch `before` the add (published) or `after` it.
        depthwise: A depthwise convolution takes its producer's mask (`inherit`) or has a `gate`.
        skip: Convolutions to leave alone: names (`layer1` includes `layer1.0.conv1`), or a
            predicate on names.
        min_gain: Build only gates that save, by themselves and on `example`, at least this share of
            the network's MACs after their predictor is paid (a negative share: gates that cost more
            than they save, too). None builds the gates whose predictor is cheaper than their
            convolution.

    Returns:
        The dynamic network. Its predictors are untrained, and so its gates stand open.

    Raises:
        ValueError: If an option is invalid, `model` is dynamic already, or cannot be traced.

    Warns:
        UserWarning: If no unit was found; the reasons are in `reasons`.
    """
    for name, value, kind in (
        ("mode", mode, Mode),
        ("saliency", saliency, Saliency),
        ("variant", variant, Variant),
        ("pool", pool, Pool),
        ("head", head, Head),
        ("residual", residual, Residual),
        ("depthwise", depthwise, Depthwise),
    ):
        if value not in get_args(kind):
            raise ValueError(f"{name}={value!r}: use one of {', '.join(get_args(kind))}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: give a width of at least 1, or None for a full predictor")
    if any(isinstance(module, Gate | FrozenGate | DynamicModel) for module in model.modules()):
        raise ValueError("the network is dynamic already; convert what its restore() returns")
    inputs = example if isinstance(example, tuple) else (example,)
    network = trace(copy.deepcopy(model))
    options = {
        "mode": mode,
        "saliency": saliency,
        "variant": variant,
        "straight_through": straight_through,
    }
    form = {"pool": pool, "head": head, "rank": rank}
    place = {"residual": residual, "depthwise": depthwise}

    def build(left: Mapping[str, str]) -> DynamicModel:
        copied = copy.deepcopy(network)
        units, reasons = find_units(copied, **place, skip=left)  # type: ignore[arg-type]
        gated = [unit for unit in units if unit.inherits is None]
        values = check_r(r, [unit.name for unit in gated])
        gates = {
            unit.name: Gate(_predictor(unit, form), r=values.get(unit.name, UNNAMED_R), **options)  # type: ignore[arg-type]
            for unit in gated
        }
        dynamic = _insert(copied, units, gates)
        config = {"r": r if isinstance(r, int | float) else dict(r)} | options | form | place
        return DynamicModel(dynamic, units, reasons, inputs, config | {"skip": sorted(left)})

    left = dict.fromkeys(_chosen(skip, network), "skipped on request")
    layers = {layer.name: layer for layer in ChannelGraph(network, inputs).layers}
    for unit in find_units(network, **place, skip=left)[0]:  # type: ignore[arg-type]
        if unit.inherits is not None:
            continue
        if layers[unit.name].kind != "conv":
            left[unit.name] = "its input is the same for all images"
        elif layers[unit.name].positions == 1:
            left[unit.name] = "sees a single position, as in squeeze-excitation"
        elif min_gain is None and _weights(_predictor(unit, form)) >= layers[unit.name].macs:
            left[unit.name] = "its predictor would cost as much as the convolution"
    if min_gain is not None:
        for name, gain in _gains(build(left), inputs).items():
            if gain < min_gain:
                left[name] = f"its gate saves {gain:.2%} of all MACs, below min_gain={min_gain:g}"
    dynamic = build(left)
    if not dynamic.units:
        why = "; ".join(f"{name}: {reason}" for name, reason in dynamic.reasons.items())
        message = f"no unit found in {type(model).__name__}: {why or 'it has no convolution'}"
        warnings.warn(message, stacklevel=2)
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


def _predictor(unit: Unit, form: Mapping[str, Any]) -> MaskPredictor:
    return MaskPredictor(unit.in_channels, unit.out_channels, **form)


def _weights(predictor: MaskPredictor) -> int:
    return sum(m.weight.numel() for m in predictor.modules() if isinstance(m, nn.Linear))


def _chosen(skip: Iterable[str] | Callable[[str], bool], network: nn.Module) -> list[str]:
    """Names of the convolutions to skip, from names, prefixes or a predicate."""
    convs = [name for name, module in network.named_modules() if isinstance(module, Conv)]
    if callable(skip):
        return [conv for conv in convs if skip(conv)]
    names = (skip,) if isinstance(skip, str) else tuple(skip)
    for name in names:
        if not any(conv == name or conv.startswith(f"{name}.") for conv in convs):
            raise ValueError(f"skip names no convolution: {name!r}; {nearest(name, convs)}")
    return [c for c in convs if any(c == name or c.startswith(f"{name}.") for name in names)]


def _insert(
    network: fx.GraphModule, units: tuple[Unit, ...], gates: Mapping[str, Gate]
) -> fx.GraphModule:
    """Write the gates into the graph; it then returns (output, {unit: GateOutput})."""
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
            masked = user = after(mask, silence, end, mask, inherits=unit.inherits)
        else:
            target = f"{GATES}.{unit.name}"
            network.add_submodule(target, gates[unit.name])
            arguments = (nodes[unit.conv].all_input_nodes[0], end, apply, explain)
            with graph.inserting_after(end):
                user = graph.call_module(target, arguments)
            user.meta["gate"] = unit.name
            masked = after(user, operator.getitem, user, 0, masked=unit.name)
            decided[unit.name] = after(masked, operator.getitem, user, 1, info=unit.name)
        end.replace_all_uses_with(masked, delete_user_cb=lambda node, own=user: node is not own)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((output.args[0], decided),)
    graph.lint()
    network.recompile()
    return network
