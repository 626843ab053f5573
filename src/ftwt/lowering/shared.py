"""Which nodes of a graph share memory, so that an operation in place on one changes the others."""

from __future__ import annotations

from torch import fx, nn

from ..graph.operations import MOVING_NAMES
from ..graph.recognise import recognised
from ..graph.settle import changed
from .operations import CHANGE_THEIR_INPUT, IDENTITIES

COPIES = frozenset(
    "cat concat concatenate stack pad channel_shuffle pixel_shuffle pixel_unshuffle".split()
)
VIEWS = MOVING_NAMES - COPIES | set("contiguous detach float dropout dropout2d".split())
VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)


class SharedMemory:
    """Nodes by the memory that they show, as eval mode has it.

    Args:
        network: A traced network.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self._place = {node: place for place, node in enumerate(network.graph.nodes)}
        self._owner: dict[fx.Node, fx.Node] = {}
        self._sharers: dict[fx.Node, list[fx.Node]] = {}
        for node in network.graph.nodes:
            inputs = node.all_input_nodes
            shares = inputs and "info" not in node.meta and _shares(node, network)
            owner = self._owner[node] = self._owner[inputs[0]] if shares else node
            self._sharers.setdefault(owner, []).append(node)

    def sharing(self, source: fx.Node, *, after: fx.Node) -> list[fx.Node]:
        """Return the other nodes made so far that show the same memory and are read later.

        Args:
            source: What is changed in place.
            after: The node that changes it.
        """
        now = self._place[after]
        return [
            node
            for node in self._sharers[self._owner[source]]
            if node not in (source, after)
            and self._place[node] < now
            and any(self._place[user] > now for user in node.users)
        ]


def _shares(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a node's result lies in its first input's memory."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, VIEW_MODULES) or type(module).__name__ in IDENTITIES:
            return True
        return bool(getattr(module, "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target is changed:
        return True
    name = recognised(node, network)
    return name in VIEWS | CHANGE_THEIR_INPUT or bool(node.kwargs.get("inplace"))
