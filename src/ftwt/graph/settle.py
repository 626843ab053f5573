"""Make a traced graph say what depends on what: in-place changes, and values without gradients.

A graph that was traced reads a value by the name it had when it was made, also after something
changed it in place. Here whoever reads it later reads what the change returned. And what was
computed under `torch.no_grad()` leaves that block detached.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

NO_GRADIENT = "no_gradient"  # mark of a node that was traced under no_grad


def changed(value: Any, by: Any) -> Any:
    """Return a value that something else, which shares its memory, has changed in place."""
    return value


def detached(value: Any) -> Any:
    """Cut all tensors of a value from their gradients."""
    return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, value)


class _Place(NamedTuple):
    """Where a tensor lies in memory."""

    storage: int
    elements: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def marked(self) -> Tensor:
        marks = torch.zeros(self.elements, dtype=torch.bool)
        marks.as_strided(self.size, self.stride, self.offset).fill_(True)
        return marks

    def meets(self, other: _Place) -> bool:
        """Whether an element of one is an element of the other."""
        if self.storage != other.storage:
            return False
        if self.dtype != other.dtype:
            return True
        return bool((self.marked() & other.marked()).any())


class _Watched(fx.Interpreter):
    """Runs a graph and notes where values lie and which nodes change what lies there."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.values: dict[fx.Node, Any] = {}  # places, in the form of the value
        self.changes: list[tuple[fx.Node, list[_Place]]] = []

    def run_node(self, node: fx.Node) -> Any:
        given = self.fetch_args_kwargs_from_env(node) if node.op.startswith("call") else ()
        before = [(part, part._version) for part in tree_leaves(given) if isinstance(part, Tensor)]
        result = super().run_node(node)
        written = [_place(part) for part, version in before if part._version != version]
        if written:
            self.changes.append((node, written))
        self.values[node] = tree_map(
            lambda part: _place(part) if isinstance(part, Tensor) else None, result
        )
        return result


def settle(network: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
    """Rewrite a traced network so that each value is read in the state in which it was made.

    Inputs are copied before anything changes them: what runs on the same batch again, to calibrate
    or to compare, has to find it as it was.

    Args:
        network: A traced network, in eval mode. It is changed; what it computes is not.
        inputs: Its inputs. They may be changed in place, as the network would.
    """
    watched = _Watched(network)
    with torch.no_grad():
        watched.run(*inputs)
    places = watched.values
    order = {node: index for index, node in enumerate(network.graph.nodes)}
    for node, written in watched.changes:
        for earlier in [n for n in places if order[n] < order[node]]:
            later = [user for user in earlier.users if order[user] > order[node]]
            if not later or not any(p.meets(w) for p in _leaves(places[earlier]) for w in written):
                continue
            reader = node
            if places[earlier] != places[node]:
                with network.graph.inserting_after(node):
                    reader = network.graph.call_function(changed, (earlier, node))
                reader.meta.update(node.meta)
                places[reader], order[reader] = places[earlier], order[node]
            for user in later:
                user.replace_input_with(earlier, reader)
    _keep_inputs(network, places, [place for _, written in watched.changes for place in written])
    _detach(network, places)
    network.graph.lint()
    network.recompile()


def _keep_inputs(
    network: fx.GraphModule, places: dict[fx.Node, Any], written: list[_Place]
) -> None:
    """Let what changes an input in place change a copy of it."""
    for node in list(network.graph.find_nodes(op="placeholder")):
        if not any(place.meets(change) for place in _leaves(places[node]) for change in written):
            continue
        last = network.graph.find_nodes(op="placeholder")[-1]
        with network.graph.inserting_after(last):
            copy = network.graph.call_method("clone", (node,))
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)


def without_gradients(network: fx.GraphModule) -> list[nn.Parameter]:
    """Return the parameters that a traced network reads under `torch.no_grad()` alone."""
    still: dict[int, nn.Parameter] = {}
    moved: set[int] = set()
    for node in network.graph.nodes:
        for parameter in _parameters(node, network):
            if NO_GRADIENT in node.meta:
                still[id(parameter)] = parameter
            else:
                moved.add(id(parameter))
    return [parameter for key, parameter in still.items() if key not in moved]


def _parameters(node: fx.Node, network: fx.GraphModule) -> Iterator[nn.Parameter]:
    if node.op == "call_module":
        yield from network.get_submodule(str(node.target)).parameters()
    elif node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(network)
        if isinstance(value, nn.Parameter):
            yield value


def _detach(network: fx.GraphModule, places: dict[fx.Node, Any]) -> None:
    """Detach what was computed under `no_grad` where others read it."""
    for node in list(network.graph.nodes):
        if node.target is operator.getitem and NO_GRADIENT in node.args[0].meta:
            node.meta[NO_GRADIENT] = True
        if NO_GRADIENT not in node.meta or not node.op.startswith("call"):
            continue
        outside = [user for user in node.users if NO_GRADIENT not in user.meta]
        outside = [user for user in outside if user.target is not operator.getitem]
        if not outside or not _leaves(places.get(node)):
            continue
        with network.graph.inserting_after(node):
            if isinstance(places[node], _Place):
                cut = network.graph.call_method("detach", (node,))
            else:
                cut = network.graph.call_function(detached, (node,))
        for user in outside:
            user.replace_input_with(node, cut)


def _leaves(places: Any) -> list[_Place]:
    if isinstance(places, _Place):
        return [places]
    parts = places.values() if isinstance(places, dict) else places
    if not isinstance(places, dict | tuple | list):
        return []
    return [place for part in parts for place in _leaves(part)]


def _place(value: Tensor) -> _Place:
    memory = value.untyped_storage()
    elements = memory.nbytes() // max(1, value.element_size())
    form = (int(value.storage_offset()), tuple(value.shape), tuple(value.stride()))
    return _Place(memory._cdata, elements, *form, value.dtype)
