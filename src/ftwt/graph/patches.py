"""What torch.fx loses while it records, kept: gradients of one's own, and what is no tensor."""

from __future__ import annotations

import datetime
import functools
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace

from .settle import NO_GRADIENT
from .state import kept

CLOCKS = tuple(
    f"{clock}{unit}"
    for clock in ("time", "monotonic", "perf_counter", "process_time", "thread_time")
    for unit in ("", "_ns")
)  # of the module time
DATES = (datetime.datetime, datetime.date)
LATER = 12_345_678  # seconds: another day, hour and minute

_APPLY = torch.autograd.Function.__dict__["apply"]


class MarkingTracer(fx.Tracer):
    """A tracer that marks what is recorded under `torch.no_grad()`.

    Args:
        whole: Modules to record as a call, beside torch's own.
    """

    proxy_buffer_attributes = True  # what is computed from a buffer is computed again each time

    def __init__(self, whole: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called and not looked into."""
        if "forward" in vars(m):
            return False  # replaced on the object: its class does not say what it does
        if "_conv_forward" in vars(m):
            return m in self._whole  # what a convolution's forward calls
        return m in self._whole or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node."""
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled():
            node.meta[NO_GRADIENT] = True
        return node


def record(
    model: nn.Module, tracer: fx.Tracer, asked: set[str] | None = None, *, late: int = 0
) -> fx.GraphModule:
    """Trace a network, and leave nothing in it: what its forward caches would be stand-ins.

    Args:
        model: The network.
        tracer: That has traced nothing yet.
        asked: Is given the names of the clocks that its forward asks.
        late: By how many seconds these clocks are late.
    """
    clocks = _clocks(model, set() if asked is None else asked, late)
    with torch.enable_grad(), _whole_functions(model), kept(model), clocks:
        network = fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    for name, value in network.named_buffers(recurse=False):
        setattr(network, name, value.detach())  # of self.parameters(): what it lacks will show
    network.graph._tracer_cls = None  # or a pickled graph would be recorded by ours again
    return network


def refuse_time(network: fx.GraphModule, later: fx.GraphModule, asked: set[str]) -> None:
    """Refuse a network whose graph, recorded at another time, is another.

    Raises:
        ValueError: They differ; it names the clocks that were asked.
    """
    if _told(network) != _told(later):
        raise ValueError(
            f"it asks for the time ({', '.join(sorted(asked))}), which would stand still in what "
            "is made of it; give the time as an input"
        )


def _told(network: fx.GraphModule) -> list[Any]:
    """What a graph's nodes are, with the numbers in them."""
    nodes = [(n.op, str(n.target), repr((n.args, n.kwargs))) for n in network.graph.nodes]
    constants = (
        getattr(network, str(n.target)).tolist()
        for n in network.graph.nodes
        if n.op == "get_attr" and str(n.target).startswith("_tensor_constant")
    )
    return [*nodes, *constants]


@contextmanager
def _clocks(model: nn.Module, asked: set[str], late: int) -> Iterator[None]:
    """Note which clocks a network's code asks, and let them be late by so many seconds."""

    def stand(name: str, clock: Callable[[], Any]) -> Callable[[], Any]:
        def ask() -> Any:
            asked.add(f"time.{name}")
            return clock() + late * (10**9 if name.endswith("_ns") else 1)

        return ask

    clocks: dict[int, Any] = {
        id(clock): stand(name, clock) for name in CLOCKS if (clock := getattr(time, name))
    }
    clocks |= {id(kind): _dated(kind, asked, late) for kind in DATES}
    holders = [sys.modules.get(type(part).__module__) for part in model.modules()]
    holders = [each for each in (time, datetime, *holders) if each is not None]
    places = [
        (vars(holder), name, value)
        for holder in {id(each): each for each in holders}.values()
        for name, value in list(vars(holder).items())
        if id(value) in clocks
    ]
    for names, name, value in places:
        names[name] = clocks[id(value)]
    try:
        yield
    finally:
        for names, name, value in places:
            names[name] = value


def _dated(kind: Any, asked: set[str], late: int) -> Any:
    """A class of dates that notes when it is asked for today's, and is late by so many seconds."""

    def stand(name: str) -> Any:
        def ask(own: Any, *zone: Any, **named: Any) -> Any:
            asked.add(f"datetime.{name}")
            now = getattr(super(own, own), name)(*zone, **named)
            return now + datetime.timedelta(seconds=late)

        return classmethod(ask)

    names = [name for name in ("now", "today", "utcnow") if hasattr(kind, name)]
    return _Dates(kind.__name__, (kind,), {name: stand(name) for name in names})


class _Dates(type):
    """Takes any date for one of its own: some were made before."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.__mro__[1])


@contextmanager
def _whole_functions(model: nn.Module) -> Iterator[None]:
    """Let each autograd.Function be one node, and wrapped functions return what is no tensor."""
    places: list[tuple[dict[str, Any], str, Any]] = []
    files = {type(part).__module__ for part in model.modules()}
    for holder in (*filter(None, map(sys.modules.get, files)), *model.modules()):
        for name, value in list(vars(holder).items()):
            if isinstance(value, MethodType) and value.__func__ is _APPLY.__func__:
                places.append((vars(holder), name, value))  # under a name of its own
    wrap = _symbolic_trace._create_wrapped_func
    torch.autograd.Function.apply = classmethod(_apply)  # type: ignore[assignment]
    _symbolic_trace._create_wrapped_func = _wrapped  # type: ignore[assignment]
    for names, name, value in places:
        names[name] = MethodType(_apply, value.__self__)
    try:
        yield
    finally:
        torch.autograd.Function.apply = _APPLY  # type: ignore[method-assign]
        _symbolic_trace._create_wrapped_func = wrap
        for names, name, value in places:
            names[name] = value


def _apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand for `Function.apply` while a network is traced."""
    apply = MethodType(_APPLY.__func__, kind)
    if (stand := _stand_in((args, kwargs))) is None:
        return apply(*args, **kwargs)

    def whole(*given: Any, **named: Any) -> Any:
        return apply(*given, **named)

    whole.__name__, whole.__qualname__, whole.__module__ = (
        kind.__name__,
        kind.__name__,
        kind.__module__,
    )
    return stand.tracer.create_proxy("call_function", whole, args, kwargs)


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stand for a function that `torch.fx.wrap` was told of."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if (stand := _stand_in((args, kwargs))) is None:
            return function(*args, **kwargs)
        found = stand.tracer.create_proxy("call_function", function, args, kwargs)
        if isinstance(found, fx.Proxy):
            found.node.meta["is_wrapped"] = True
        return found

    return call


def _stand_in(value: Any) -> fx.Proxy | None:
    found: list[fx.Proxy] = []

    def look(part: Any) -> Any:
        if isinstance(part, fx.Proxy):
            found.append(part)
        return part

    fx.node.map_aggregate(value, look)
    return found[0] if found else None
