"""Trace a network into a graph whose modules keep their names and their training behaviour."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .convolutions import is_convolution, is_linear
from .operations import FROZEN_NORMS
from .sized import SizedTracer, record

_DROPOUT = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}


def trace(model: nn.Module, example: tuple[Any, ...] | None = None) -> fx.GraphModule:
    """Trace a network; the graph's modules are the network's own.

    Branches on `self.training` are taken as in eval mode, so auxiliary heads are left out; dropout
    and other modules that read the flag stay modules (functional dropout becomes one) and behave in
    either mode as they did.

    A network whose forward computes with sizes (a padding, a loop over rows) can be traced for the
    sizes of an example alone; its graph then refuses inputs of other sizes. A graph that does not
    give what the network gives for the example is never returned.

    Args:
        model: Any network that `torch.fx` can trace, by itself or told the sizes of the example.
        example: Inputs of the network, (B, C, *spatial) each.

    Returns:
        A graph module in the training mode that `model` was in; `model` keeps its own.

    Raises:
        ValueError: If the network cannot be traced, with the reason and the line.
    """
    whole = {module for module in model.modules() if _is_whole(module)}  # before a tracer is about
    tracers: list[fx.Tracer] = [_Tracer(whole)]
    if example is not None:
        tracers.append(SizedTracer(example, whole))
    for tracer in tracers:
        try:
            with evaluating(model):
                network = record(model, tracer)
                if example is not None:
                    if isinstance(tracer, SizedTracer):
                        expect_sizes(network, example)
                    _compare(network, model, example)
            break
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a tracer runs the user's forward: anything may come out of it
            if tracer is tracers[-1]:
                _try(model, example)
                raise ValueError(
                    f"cannot trace {type(model).__name__}: {_reason(error)}. Its forward must not "
                    "branch on the values of tensors; rewrite that part, or convert the traceable "
                    "trunk alone"
                ) from error
    for name, module in network.named_modules():  # those that only hold others are new
        module.training = model.get_submodule(name).training
    _dropout_as_modules(network)
    return network


def cannot_take(inputs: Iterable[Any], error: Exception) -> ValueError:
    """Say that a network does not run on inputs of these shapes, and why."""
    shapes = ", ".join(str(tuple(value.shape)) for value in inputs if isinstance(value, Tensor))
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"the network cannot take an input of {shapes}: {why}")


@torch.no_grad()
def _try(model: nn.Module, example: tuple[Any, ...] | None) -> None:
    """Refuse an example that the network itself cannot take: no tracer is to blame for that."""
    if example is None:
        return
    try:
        with evaluating(model):
            model(*example)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise cannot_take(example, error) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into the mode it was in."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def expect_sizes(network: fx.GraphModule, example: tuple[Any, ...]) -> None:
    """Let a graph that holds for the sizes of an example alone refuse all others."""
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, example, strict=False):
        if isinstance(value, Tensor):
            with network.graph.inserting_after(inputs[-1]):
                network.graph.call_function(expect_size, (node, tuple(value.shape[1:])))
    network.recompile()


def expect_size(value: Tensor, size: tuple[int, ...]) -> None:
    """Refuse an input of other sizes than those that a graph was traced for."""
    if tuple(value.shape[1:]) != tuple(size):
        raise ValueError(
            f"an input of shape {tuple(value.shape[1:])} for a network that was traced for "
            f"{tuple(size)}, because its forward computes with sizes; resize the input, or trace "
            "or convert the network with an example of this size"
        )


fx.node.has_side_effect(expect_size)  # it has no users, and is to stay all the same


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from a buffer is computed again each time

    def __init__(self, whole: set[nn.Module]) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._whole or super().is_leaf_module(m, module_qualified_name)


def _is_whole(module: nn.Module) -> bool:
    """Whether a module that is not torch's is recorded as a call and not looked into."""
    frozen = type(module).__name__ in FROZEN_NORMS
    return frozen or _depends_on_training(module) or is_convolution(module) or is_linear(module)


@torch.no_grad()
def _compare(network: fx.GraphModule, model: nn.Module, example: tuple[Any, ...]) -> None:
    """Refuse a graph that computes something else than the network, for two images."""
    inputs = [
        part[:1].expand(2, *part.shape[1:]).contiguous() if isinstance(part, Tensor) else part
        for part in example
    ]
    outputs = []
    for each in (model, network):
        with torch.random.fork_rng():  # the same lots for a dropout that is always on
            torch.manual_seed(0)
            outputs.append(tree_leaves(each(*inputs)))
    for theirs, ours in zip(*outputs, strict=True):
        if isinstance(theirs, Tensor) and not _close(theirs, ours):
            raise ValueError("its graph computes something else than the network")


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if torch.equal(first, second) or not first.is_floating_point():
        return torch.equal(first, second)
    largest = float(first.abs().nan_to_num().max())  # a device may sum in another order each time
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)


def _reason(error: BaseException) -> str:
    """What an error says, on one line, and the line of the network's code that it came from."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        parts = Path(frame.filename).parts
        if not {"torch", "ftwt"} & set(parts) and Path(frame.filename).suffix == ".py":
            place = f" ({parts[-1]}, line {frame.lineno}, in {frame.name})"
    return said + place


def _depends_on_training(module: nn.Module) -> bool:
    """Whether a module without layers reads its training flag, as stochastic depth does."""
    code = getattr(type(module).forward, "__code__", None)
    reads = code is not None and "training" in code.co_names
    return reads and not any(
        isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)) for m in module.modules()
    )


def _dropout_as_modules(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUT:
            continue
        given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
        if given.get("training") is not False:
            continue  # it did not ask for the mode, and goes on in either
        name = f"{node.name}_module"
        dropout = _DROPOUT[node.target](given.get("p", 0.5))
        network.add_module(name, dropout.train(network.training))
        with network.graph.inserting_before(node):
            module = network.graph.call_module(name, (given["input"],))
        node.replace_all_uses_with(module)
        network.graph.erase_node(node)
    network.recompile()
