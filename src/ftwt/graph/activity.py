"""Which channels can be non-zero, and which are needed: one walk forward, one back.

A channel is *active* for a sample when it can be non-zero, and *needed* when something that is
computed later depends on it. A convolution must do the pairs of active inputs and needed outputs.
Each operation has one rule (`rules.py`, chosen in `operations.py`); one without makes its output
fully active, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .operations import Conv, Shaped, find_rule, natural_layout
from .recognise import operation
from .rules import Contract, Rule, Silence, join, per_channel
from .trace import cannot_take, evaluating
from .work import WorkCounter

PROBES = 2  # samples in the shape pass: enough to see an operation that mixes them


@dataclass(frozen=True)
class Layer:
    """Something that multiplies.

    Args:
        name: Qualified name of the module, with "(call 2)" for its second call; or the node's.
        kind: `conv`, `linear`, or the name of another operation, which is always counted in full.
        in_channels: Input channels (0 for other operations), and so on for the next two.
        out_channels: Output channels.
        groups: Groups of a convolution.
        positions: Multiply-accumulates for one sample and one pair of input and output channel.
        macs: Multiply-accumulates for one sample with every channel active.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    groups: int
    positions: int
    macs: int


@dataclass(frozen=True)
class Flow:
    """What masks leave to do.

    Args:
        macs: Layer name -> (N,) float64 multiply-accumulates for each sample.
        read: Unit name -> (N,) float64 input channels that are active where its gate reads.
    """

    macs: dict[str, Tensor]
    read: dict[str, Tensor]


class ChannelGraph:
    """The rules of one network for one input size, ready to be walked with any masks.

    Args:
        network: A traced network, gated or not. A gate's node carries `meta["gate"]`, a node that
            applies another unit's mask `meta["inherits"]`, those that hand out what a gate masked
            and decided `meta["masked"]` and `meta["info"]`, those that move a linear unit's
            channels to dimension 1 and back `meta["moved"]`; each names the unit.
        example: The inputs of one forward pass.

    Attributes:
        layers: All that multiplies, in execution order.
        unknown: Operations without a rule, as "node (operation)".
        uncounted: What has weights or multiplies maps and has no formula, in the same form: its
            work is part of no figure.
        shapes: Node name -> shape of its value for one sample.
        folded: Names of nodes whose value does not have one row for each sample.
    """

    def __init__(self, network: fx.GraphModule, example: tuple[Any, ...]) -> None:
        values, work, uncounted = _record(network, example)
        self.shapes = {n.name: v.shape[1:] for n, v in values.items() if isinstance(v, Shaped)}
        self.folded = frozenset(
            n.name for n, v in values.items() if isinstance(v, Shaped) and v.shape[:1] != (PROBES,)
        )
        self._rules: dict[str, Rule] = {}
        self._layers: dict[str, Layer] = {}
        self._results: tuple[str, ...] = ()
        layouts: dict[fx.Node, Any] = {}
        unknown = []
        batched: set[fx.Node] = set()  # what inputs, or how many there are, have a part in
        for node in network.graph.nodes:
            if node.op == "placeholder" or not batched.isdisjoint(node.all_input_nodes):
                batched.add(node)
            if node.op == "placeholder" and isinstance(value := values[node], Shaped):
                layouts[node] = natural_layout(value.shape)
            elif node.op == "output":
                self._results = tuple(n.name for n in node.all_input_nodes if "info" not in n.meta)
            elif "info" in node.meta:
                continue  # a gate's report: nothing that is computed depends on it
            elif node.op.startswith("call") and (
                found := find_rule(node, network, values, layouts)
            ):
                rule, known = found
                self._rules[node.name], layouts[node] = rule, rule.layout
                if not known:
                    unknown.append(f"{node.name} ({operation(node, network)})")
            if work.get(node) or isinstance(self._rules.get(node.name), Contract):
                count = work.get(node, 0) // (PROBES if node in batched else 1)
                self._layers[node.name] = self._layer(node, network, values, count)
        self.layers, self.unknown = tuple(self._layers.values()), tuple(unknown)
        self.uncounted = uncounted

    def walk(self, masks: Mapping[str, Tensor], readers: Collection[str]) -> Flow:
        """Follow activity forward and need back.

        Args:
            masks: Unit -> (N, C) bool mask; the gates of units that are not named are open.
            readers: Units whose gates read their input; those of a static twin do not.

        Returns:
            The work that is left in each layer for each of the N samples.
        """
        masks = {unit: mask.detach().cpu() for unit, mask in masks.items()}
        samples = len(next(iter(masks.values()))) if masks else 1
        active = self._activity(masks)
        needed: dict[str, Any] = dict.fromkeys(self._results)
        for node, rule in reversed(self._rules.items()):
            if node not in needed:
                continue
            given = [active.get(source) for source in rule.sources]
            wanted = rule.backward(needed[node], given, masks)
            unread = isinstance(rule, Silence) and rule.gate and rule.unit not in readers
            for source, part in list(zip(rule.sources, wanted, strict=True))[unread:]:
                needed[source] = join(needed[source], part) if source in needed else part

        def each(count: Any) -> Tensor:
            return torch.as_tensor(count, dtype=torch.float64).expand(samples)

        macs, read = {}, {}
        for node, layer in self._layers.items():
            work = self._rules.get(node)
            if not isinstance(work, Contract):
                macs[layer.name] = each(layer.macs)
            elif node not in needed:
                macs[layer.name] = each(0)
            else:
                pairs = work.pairs(active.get(work.sources[0]), needed[node])
                macs[layer.name] = each(pairs) * layer.positions
        for rule in self._rules.values():
            if isinstance(rule, Silence) and rule.gate and rule.unit in readers:
                activity, channels = active.get(rule.sources[0]), self.shapes[rule.sources[0]][0]
                count = None if activity is None else per_channel(activity, 1, channels).sum(1)
                read[rule.unit] = each(channels if count is None else count)
        return Flow(macs, read)

    def silenced(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tell which inputs of layers masks silence.

        Args:
            masks: As for `walk`.

        Returns:
            Layer name -> (N, C_in) bool, true where an input is zero; layers whose inputs can all
            be non-zero are left out.
        """
        active = self._activity({unit: mask.detach().cpu() for unit, mask in masks.items()})
        found = {}
        for node, layer in self._layers.items():
            rule = self._rules.get(node)
            if isinstance(rule, Contract):
                activity = active.get(rule.sources[0])
                if activity is not None:
                    found[layer.name] = ~per_channel(activity, rule.dim, rule.in_channels)
        return found

    def _activity(self, masks: Mapping[str, Tensor]) -> dict[str, Any]:
        """Node name -> which of its values can be non-zero; None for all."""
        active: dict[str, Any] = {}
        for node, rule in self._rules.items():
            active[node] = rule.forward([active.get(source) for source in rule.sources], masks)
        return active

    def _layer(
        self, node: fx.Node, network: fx.GraphModule, values: Mapping[fx.Node, Any], macs: int
    ) -> Layer:
        rule = self._rules.get(node.name)
        name = str(node.target) if node.op == "call_module" else node.name
        if calls := sum(layer.name.split(" (")[0] == name for layer in self._layers.values()):
            name = f"{name} (call {calls + 1})"
        if not isinstance(rule, Contract):
            return Layer(name, operation(node, network), 0, 0, 1, 0, macs)
        module = network.get_submodule(str(node.target))
        if isinstance(module, Conv):
            place = values[node.all_input_nodes[0] if module.transposed else node].shape
            kind, spatial = "conv", (*place[2:], *module.kernel_size)
        else:
            kind, place = "linear", values[node].shape
            spatial = place[1:-1]
        positions = place[0] * math.prod(spatial) // PROBES  # space may be folded into the batch
        channels = (rule.in_channels, rule.out_channels, rule.groups)
        macs = positions * rule.in_channels * rule.out_channels // rule.groups
        return Layer(name, kind, *channels, positions, macs)


def _record(
    network: fx.GraphModule, example: tuple[Any, ...]
) -> tuple[dict[fx.Node, Any], dict[fx.Node, int], tuple[str, ...]]:
    """Run the network once on two samples.

    Returns:
        The shapes of all values, each node's work, and what could not be counted.
    """
    values: dict[fx.Node, Any] = {}
    work: dict[fx.Node, int] = {}
    uncounted: list[str] = []

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            before, known = counter.macs, len(counter.uncounted)
            result = super().run_node(node)
            values[node], work[node] = _shaped(result), counter.macs - before
            unknown = counter.uncounted[known:]
            if node.op == "call_module" and "gate" not in node.meta:
                module = network.get_submodule(str(node.target))
                if not unknown and not counter.has_seen(module):
                    unknown = [type(module).__name__]
            name = node.target if node.op == "call_module" else node.name
            uncounted.extend(f"{name} ({function})" for function in dict.fromkeys(unknown))
            return result

    inputs = [_probe(value) for value in example]
    with evaluating(network), torch.no_grad(), WorkCounter() as counter:
        try:
            Recorder(network).run(*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the network's own code runs: anything may come out of it
            raise cannot_take(inputs, error) from error
    return values, work, tuple(uncounted)


def _shaped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shaped(tuple(value.shape), value.dtype)
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return tuple(_shaped(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    return {k: _shaped(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _probe(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value[:1].expand(PROBES, *value.shape[1:]).contiguous()
