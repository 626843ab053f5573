"""Find the units of a network: each convolution with the norm and the activation that follow it.

On request, hidden linear layers are units too: their channels are neurons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import fx, nn

from .operations import SUMS, Conv, ancestors, is_batch_norm
from .recognise import recognised

Kind = Literal["conv", "linear"]
Residual = Literal["before", "after"]
Depthwise = Literal["inherit", "gate"]

ACTIVATIONS = frozenset(
    "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardtanh Tanh Sigmoid "
    "Hardsigmoid Softplus relu relu_ relu6 leaky_relu elu selu celu gelu silu mish hardswish "
    "hardtanh tanh sigmoid hardsigmoid softplus".split()
)
LIFTING = frozenset("Sigmoid Hardsigmoid Softplus sigmoid hardsigmoid softplus".split())
"""Activations that turn zero into something else."""


@dataclass(frozen=True)
class Unit:
    """A layer whose filters, or neurons, are computed only where a mask says so.

    Args:
        name: Qualified name of the convolution or linear layer.
        kind: `conv` or `linear`, which says where its channels lie: in dimension 1, or the last.
        in_channels: Channels of its input; features, of a linear layer.
        out_channels: Its filters, or neurons.
        inherits: The unit whose mask this one takes (a depthwise convolution's producer); None for
            a unit with a gate of its own.
        layer: Graph node of the layer.
        end: Graph node whose value is masked.
    """

    name: str
    kind: Kind
    in_channels: int
    out_channels: int
    inherits: str | None
    layer: str
    end: str


def find_units(
    network: fx.GraphModule,
    *,
    residual: Residual = "before",
    depthwise: Depthwise = "inherit",
    linear: bool = False,
    skip: Mapping[str, str] = MappingProxyType({}),
) -> tuple[tuple[Unit, ...], dict[str, str]]:
    """Find all units of a traced network.

    Args:
        network: A traced network without gates.
        residual: Mask the last convolution of a residual branch `before` the add, or mask the block
            `after` the add and its activation.
        depthwise: A depthwise convolution takes its producer's mask (`inherit`) or has its own.
        linear: Hidden linear layers are units too: those that an activation with f(0) = 0 follows.
        skip: Layer to leave alone -> reason.

    Returns:
        The units in execution order, and for every other convolution (and, on request, linear
        layer) the reason why it is none.
    """
    units: list[Unit] = []
    reasons: dict[str, str] = {}
    masked: dict[fx.Node, str] = {}  # end of a unit -> the unit whose mask lies on it
    layers = [
        (node, module)
        for node in network.graph.nodes
        if isinstance(module := _module(node, network), Conv)
        or (linear and isinstance(module, nn.Linear))
    ]
    calls = Counter(str(node.target) for node, _ in layers)
    for node, layer in layers:
        name = str(node.target)
        end = _end(node, network)
        source = None
        if name in skip:
            reasons[name] = skip[name]
        elif calls[name] > 1:
            reasons[name] = f"called {calls[name]} times: one mask cannot serve them all"
        elif isinstance(layer, nn.Linear):
            if (reason := _why_not_hidden(end, network)) is not None:
                reasons[name] = reason
        elif layer.transposed:
            reasons[name] = "a transposed convolution"
        elif _reaches_output(end, network):
            reasons[name] = "its filters are the network's outputs"
        elif (add := _sum_after(end, network)) is not None and _is_shortcut(node, add, network):
            reasons[name] = "a shortcut: the main branch of its block has the gate"
        elif 1 < layer.groups == layer.in_channels and depthwise == "inherit":
            source = masked.get(_producer(node, network))
            if source is None or layer.out_channels != layer.in_channels:
                reasons[name] = "depthwise, and its producer has no gate"
        elif add is not None and residual == "after":
            end = add
            if (user := _only_user(end)) is not None and recognised(user, network) in ACTIVATIONS:
                end = user
            if end in masked:
                reasons[name] = f"its block's output has the gate of {masked[end]}"
        if name not in reasons:
            masked[end] = source or name
            units.append(Unit(name, *_channels(layer), source, node.name, end.name))
    return tuple(units), reasons | (_inside(network) if linear else {})


def _inside(network: fx.GraphModule) -> dict[str, str]:
    """Name the linear layers that no node calls, for a module around them is one operation."""
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    return {
        name: f"inside {whole}, which is traced as one operation"
        for name, module in network.named_modules()
        for whole in dict.fromkeys(called)
        if isinstance(module, nn.Linear) and name.startswith(f"{whole}.")
    }


def _channels(layer: nn.Module) -> tuple[Kind, int, int]:
    if isinstance(layer, Conv):
        return "conv", layer.in_channels, layer.out_channels
    assert isinstance(layer, nn.Linear)
    return "linear", layer.in_features, layer.out_features


def _why_not_hidden(end: fx.Node, network: fx.GraphModule) -> str | None:
    """Say why a linear layer that ends here is not a hidden one; None if it is."""
    if (activation := recognised(end, network)) not in ACTIVATIONS:
        return "not a hidden layer: no activation follows it alone"
    if activation in LIFTING:
        return f"its activation, {activation}, does not keep zero"
    if _reaches_output(end, network):
        return "its neurons are the network's outputs"
    return None


def _module(node: fx.Node, network: fx.GraphModule) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _follower(node: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """Return what alone uses a value, but for identities between."""
    user = _only_user(node)
    while user is not None and isinstance(_module(user, network), nn.Identity):
        user = _only_user(user)
    return user


def _end(layer: fx.Node, network: fx.GraphModule) -> fx.Node:
    """Follow a layer through its norm and its activation."""
    end = layer
    user = _follower(end, network)
    if user is not None and is_batch_norm(_module(user, network)):
        end, user = user, _follower(user, network)
    if user is not None and user.op != "output" and recognised(user, network) in ACTIVATIONS:
        end = user
    return end


def _sum_after(end: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """Return the residual add that is all that uses a unit's output, if that is so."""
    user = _only_user(end)
    if user is None or user.op not in ("call_function", "call_method"):
        return None
    return user if recognised(user, network) in SUMS and len(user.all_input_nodes) == 2 else None


def _is_shortcut(conv: fx.Node, add: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the other term of the add comes from further down the block than this convolution."""
    start = conv.all_input_nodes[0]
    others = [_last_conv(term, network) for term in add.all_input_nodes]
    return any(
        start in ancestors(other.all_input_nodes[0])
        for other in others
        if other is not None and other is not conv
    )


def _last_conv(node: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """Walk back through single-input nodes to the convolution that made a value."""
    while not isinstance(_module(node, network), Conv):
        if len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]
    return node


def _producer(conv: fx.Node, network: fx.GraphModule) -> fx.Node:
    """Return the node that made a depthwise convolution's input, whose channels are the same.

    Dropout may lie between, and zeros that are laid around a map.
    """
    node = conv.all_input_nodes[0]
    while _passes_on(node, network):
        node = node.all_input_nodes[0]
    return node


def _passes_on(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether each channel is one of the input's, zeros around it or not."""
    module = _module(node, network)
    if module is not None:
        if isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d):
            return module.value == 0
        return recognised(node, network).startswith(("Dropout", "Identity"))
    if recognised(node, network) != "pad":
        return False
    given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    sides, mode = given["pad"], given.get("mode", "constant")
    of_space = isinstance(sides, tuple | list) and len(sides) <= 4
    return of_space and mode == "constant" and not given.get("value")


def _reaches_output(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a value reaches the network's output without passing another layer."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        for user in stack.pop().users:
            if user.op == "output":
                return True
            if user not in seen and not isinstance(_module(user, network), Conv | nn.Linear):
                seen.add(user)
                stack.append(user)
    return False
