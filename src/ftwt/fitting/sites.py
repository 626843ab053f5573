"""Where a network can be repaired: layers that read masked channels, and what they should give."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from ..graph.operations import BatchNorm, ancestors

ADDS = (operator.add, operator.iadd, torch.add)
ADD_METHODS = ("add", "add_")
FUNCTIONS = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()
)
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Site:
    """A layer to refit.

    Args:
        name: The layer's name.
        layer: Its node.
        end: The node whose value is fitted: the batch norm that follows the layer, or the layer.
        norm: That batch norm's name.
        gate: The gate whose mask applies to a depthwise layer: where it is 0, nothing is asked.
        add: The sum that the end is a term of, whose value in the dense network is to be met.
        other: The other term of that sum.
    """

    name: str
    layer: fx.Node
    end: fx.Node
    norm: str | None
    gate: fx.Node | None
    add: fx.Node | None
    other: fx.Node | None

    @property
    def needs(self) -> list[str]:
        """Nodes of the masked network whose values the fit needs; the layer's input first."""
        extra = [node.name for node in (self.other, self.gate) if node is not None]
        return [self.layer.all_input_nodes[0].name, *extra]

    @property
    def goal(self) -> str:
        """The node of the dense network whose value is to be met."""
        return (self.add or self.end).name


def find_sites(network: fx.GraphModule) -> tuple[tuple[Site, ...], dict[str, str]]:
    """Find the layers of a gated network that read masked channels.

    Args:
        network: The graph of a `DynamicModel`.

    Returns:
        The sites in execution order, and layer (of a functional one, its node) -> reason for those
        that are left alone.
    """
    modules: Mapping[str, nn.Module] = dict(network.named_modules())
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    weights = Counter(
        id(p) for m in modules.values() for p in m._parameters.values() if p is not None
    )
    weights.update(
        id(operator.attrgetter(str(node.target))(network))
        for node in network.graph.nodes
        if node.op == "get_attr" and node.users
    )
    masked: set[fx.Node] = set()
    sites, left = [], {}
    for node in network.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if {"masked", "inherits"} & node.meta.keys():
            masked.add(node)
        elif "gate" in node.meta or "info" in node.meta:
            continue
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            if not masked.isdisjoint(node.all_input_nodes):
                reason = _unfit(module)
                if calls[str(node.target)] > 1 or any(
                    weights[id(p)] > 1 for p in module.parameters()
                ):
                    reason = "its weights are used more than once"
                if reason is None:
                    sites.append(_site(node, modules, calls))
                else:
                    left[str(node.target)] = reason
        elif getattr(node.target, "__name__", "") in FUNCTIONS:
            if not masked.isdisjoint(node.all_input_nodes):
                left[node.name] = "a function, not a torch.nn module"
        elif is_add(node):
            terms = node.all_input_nodes
            if terms and masked.issuperset(terms):
                masked.add(node)
        elif not masked.isdisjoint(node.all_input_nodes):
            masked.add(node)
    return tuple(sites), left


def _unfit(module: nn.Module) -> str | None:
    if is_parametrized(module):
        return (
            "its weights come from a parametrization; "
            "torch.nn.utils.parametrize.remove_parametrizations makes them plain"
        )
    if isinstance(module, nn.Linear):
        return None if type(module) is nn.Linear else f"a {type(module).__name__}"
    if type(module) is not nn.Conv2d:
        return f"a {type(module).__name__}; only 2-D convolutions are refitted"
    return None if module.padding_mode == "zeros" else f"its padding is {module.padding_mode}"


def is_add(node: fx.Node) -> bool:
    """Whether a node is a sum of two values."""
    if node.op == "call_function":
        return node.target in ADDS
    return node.op == "call_method" and node.target in ADD_METHODS


def _site(node: fx.Node, modules: Mapping[str, nn.Module], calls: Counter[str]) -> Site:
    """Follow a layer to its batch norm, its mask and the sum that it is a term of."""
    end, norm, unit = node, None, None
    follower = _only_user(end)
    module = None if follower is None else modules.get(str(follower.target))
    if (
        follower is not None
        and follower.op == "call_module"
        and isinstance(module, BatchNorm)
        and module.track_running_stats
        and calls[str(follower.target)] == 1
    ):
        end, norm = follower, str(follower.target)
    value = end
    while (follower := _only_user(value)) is not None:
        if "gate" in follower.meta:
            unit = follower.meta["gate"]
            value = next(user for user in follower.users if "masked" in user.meta)
        elif "inherits" in follower.meta:
            unit = follower.meta["inherits"]
            value = follower
        elif follower.op == "call_module" and isinstance(
            modules.get(str(follower.target)), PASSING
        ):
            value = follower
        else:
            break
    add = other = None
    if (
        follower is not None
        and is_add(follower)
        and len(follower.all_input_nodes) == 2
        and follower.kwargs.get("alpha", 1) == 1  # the other term is not scaled
    ):
        found = next(term for term in follower.all_input_nodes if term is not value)
        if found is not node and node not in ancestors(found):
            add, other = follower, found
    layer = modules[str(node.target)]
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels > 1
    unit = (unit or _mask_behind(value)) if depthwise else None
    gate = next((n for n in node.graph.nodes if n.meta.get("gate") == unit), None)
    return Site(str(node.target), node, end, norm, gate if unit else None, add, other)


def _mask_behind(value: fx.Node) -> str | None:
    """The unit whose mask is applied to a value after an activation, if any."""
    while (follower := _only_user(value)) is not None and len(follower.all_input_nodes) <= 2:
        for mark in ("gate", "inherits"):
            if mark in follower.meta:
                return str(follower.meta[mark])
        if len(follower.all_input_nodes) > 1:
            return None
        value = follower
    return None


def _only_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses a value, but for gates that read it to report on it."""
    users = [user for user in node.users if "info" not in user.meta]
    return users[0] if len(users) == 1 else None
