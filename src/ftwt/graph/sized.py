"""Trace a network whose forward asks for sizes: it is told those of an example.

`torch.fx` records what happens to stand-ins that know nothing, so a forward that loops over rows,
branches on a width or computes a padding cannot be recorded. Here each stand-in knows the shape
that its tensor would have, for batches of two lengths. A number that is the same for both is a
number; one that differs depends on how many images there are, and stays in the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from .patches import MarkingTracer

LENGTHS = (5040, 7560)  # of the two batches: multiples of what a forward may divide them by
META = torch.device("meta")  # tensors with shapes and without data: these batches cost nothing


class SizedTracer(MarkingTracer):
    """A tracer whose stand-ins know the shapes that their tensors have for images of one size.

    Args:
        example: Inputs of the network; dimension 0 of each tensor counts the images.
        whole: Modules to record as a call, beside torch's own.
    """

    def __init__(self, example: tuple[Any, ...], whole: Collection[nn.Module] = ()) -> None:
        super().__init__(whole)
        self.device = next((i.device for i in example if isinstance(i, Tensor)), META)
        self._inputs = [tuple(_batch(part, length) for part in example) for length in LENGTHS]
        self._values: dict[fx.Node, tuple[Any, Any]] = {}
        self._placeholders = 0
        self._runs = False  # a node: then nothing is recorded

    def proxy(self, node: fx.Node) -> Stand:
        """Return the stand-in for a node's value."""
        return Stand(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        """Record an operation; return its stand-in, or its value if that is but a number."""
        node = super().create_proxy(kind, target, args, kwargs, *more, **named).node
        self._runs = True
        try:
            with torch.no_grad():
                self._values[node] = (self._run(node, 0), self._run(node, 1))
        finally:
            self._runs = False
        self._placeholders += node.op == "placeholder"
        return self._settled(node)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace, and leave out the sizes that nobody computes with in the end."""
        graph = super().trace(root, concrete_args)
        for node in reversed(list(graph.nodes)):
            if not node.op.startswith("call_") or node.users:
                continue
            value = self.values(node)[0]
            if value is not None and not _holds_tensor(value):
                graph.erase_node(node)
        return graph

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a module's call, or what it does."""
        return (
            forward(*args, **kwargs)
            if self._runs
            else super().call_module(m, forward, args, kwargs)
        )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a stand-in for a module's weight."""
        if self._runs:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def values(self, node: fx.Node) -> tuple[Any, Any]:
        """What a node's value is for each of the two batches; a tensor's has no data."""
        if node not in self._values:  # the tracer makes those of constants by itself
            value = operator.attrgetter(str(node.target))(self.root)
            self._values[node] = (_without_data(value),) * 2
        return self._values[node]

    def varies(self, node: fx.Node) -> bool:
        """Whether a value is a number that depends on how many images there are."""
        first, second = self.values(node)
        return not _holds_tensor(first) and first != second

    def _settled(self, node: fx.Node) -> Any:
        first, second = self._values[node]
        if _holds_tensor(first):
            return self.proxy(node)
        decides = isinstance(first, bool) and any(map(self.varies, node.all_input_nodes))
        if first is None and second is None:
            return None  # the node stays, for it may change what it was given
        if _is_plain(first) and first == second and not decides:
            self.graph.erase_node(node)
            del self._values[node]
            return first
        if isinstance(first, tuple | list) and isinstance(second, tuple | list):
            if len(first) != len(second):
                raise ValueError("its forward computes as many values as there are images")
            return tuple(self._part(node, place) for place in range(len(first)))
        return self.proxy(node)

    def _part(self, node: fx.Node, place: int) -> Any:
        return self.create_proxy("call_function", operator.getitem, (self.proxy(node), place), {})

    def _run(self, node: fx.Node, batch: int) -> Any:
        """Run a node on one of the batches."""
        if node.op == "placeholder":
            inputs = self._inputs[batch]
            if str(node.target).startswith("*"):
                return () if str(node.target).count("*") == 1 else {}
            if self._placeholders < len(inputs):
                return inputs[self._placeholders]
            if not node.args:
                raise ValueError(
                    f"its forward takes {node.target}, which the example does not have"
                )
            return node.args[0]
        if node.op == "get_attr":
            return _without_data(operator.attrgetter(str(node.target))(self.root))
        args, kwargs = fx.node.map_aggregate(
            fx.map_arg((node.args, node.kwargs), lambda source: self.values(source)[batch]),
            lambda part: META if isinstance(part, torch.device) else part,
        )
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            given = {name: _without_data(value) for name, value in state.items()}
            result = functional_call(module, given, args, kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        return _without_data(result)


class Stand(fx.Proxy):
    """Stands in for a value while a network is traced, and knows its shape."""

    tracer: SizedTracer

    def __getattr__(self, k: str) -> Any:
        value = self._value
        if isinstance(value, Tensor):
            device = self.tracer.device
            known = {"device": device, "is_cuda": device.type == "cuda", "is_meta": False}
            if k in known:
                return known[k]
        if callable(getattr(value, k)):
            return fx.proxy.Attribute(self, k)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __len__(self) -> int:
        value = self._value
        if isinstance(value, Tensor):
            return operator.index(self.shape[0])
        return len(value)

    def __iter__(self) -> Iterator[Any]:
        return (self.tracer._part(self.node, place) for place in range(len(self)))

    def __bool__(self) -> bool:
        self._refuse("branches on")

    def __index__(self) -> int:
        self._refuse("computes with")

    def __int__(self) -> int:
        self._refuse("computes with")

    def __float__(self) -> float:
        self._refuse("computes with")

    def __setitem__(self, place: Any, value: Any) -> None:
        arguments = (self, place, value)
        self.node = self.tracer.create_proxy("call_function", written, arguments, {}).node

    @property
    def _value(self) -> Any:
        return self.tracer.values(self.node)[0]

    def _refuse(self, what: str) -> NoReturn:
        of = "the values of a tensor" if _holds_tensor(self._value) else "the number of images"
        raise ValueError(f"its forward {what} {of}")


def written(tensor: Tensor, place: Any, value: Any) -> Tensor:
    """Return a tensor with a part written anew: what `tensor[place] = value` leaves."""
    result = tensor.clone()
    result[place] = value
    return result


def _batch(part: Any, length: int) -> Any:
    if not isinstance(part, Tensor):
        return part
    return torch.empty((length, *part.shape[1:]), dtype=part.dtype, device=META)


def _without_data(value: Any) -> Any:
    """Put all tensors of a value on the device of shapes."""

    def moved(part: Any) -> Any:
        return part.detach().to(META) if isinstance(part, Tensor) else part

    return fx.node.map_aggregate(value, moved)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _is_plain(value: Any) -> bool:
    """Whether a value is a constant that can be written into a graph."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    kinds = (int, float, bool, str, torch.dtype, torch.device, torch.memory_format, torch.layout)
    return value is None or isinstance(value, kinds)
