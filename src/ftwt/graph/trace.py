"""Trace a network into a graph whose modules keep their names and their training behaviour."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .compare import answers, close, compare, compare_training, mode, two_images
from .convolutions import is_convolution, is_linear
from .inputs import expect_sizes, expect_values, refuse_call
from .patches import LATER, MarkingTracer, record, refuse_time
from .recognise import frozen_affine
from .settle import settle
from .sized import SizedTracer
from .wrappers import changed_calls, hooked, refuse_wrapped, without_hooks

Ran = list[tuple[tuple[Any, ...], list[Any]]]  # inputs of two images, and parts of the outputs
_DROPOUT: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
    torch.dropout: nn.Dropout,
    torch.alpha_dropout: nn.AlphaDropout,
    torch.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
_BRANCH = (
    "Its forward must not branch on the values of tensors; rewrite that part, or convert the "
    "traceable trunk alone"
)


def trace(
    model: nn.Module,
    example: tuple[Any, ...] | None = None,
    *,
    training: bool = False,
    ran: Ran | None = None,
) -> fx.GraphModule:
    """Trace a network; the graph's modules are the network's own.

    Branches on `self.training` are taken as in eval mode, so auxiliary heads are left out; dropout
    and other modules that read the flag stay modules (functional dropout becomes one) and behave in
    either mode as they did. What is computed under `torch.no_grad()` stays without gradient, and an
    `autograd.Function` keeps its backward.

    A network whose forward computes with sizes (a padding, a loop over rows) can be traced for the
    sizes of an example alone; its graph then refuses inputs of other sizes. A graph that does not
    give what the network gives for the example is never returned.

    Args:
        model: Any network that `torch.fx` can trace, by itself or told the sizes of the example.
        example: Inputs of the network, (B, C, *spatial) each.
        training: Also hold outputs and gradients in training to the network's.
        ran: Is given what the network was run on, in eval mode, and what it gave.

    Returns:
        A graph module in the training mode that `model` was in; `model` keeps its own.

    Raises:
        ValueError: If the network cannot be traced, with the reason and the line.

    Warns:
        UserWarning: With `training`, if the network returns more in training than in eval mode.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("no graph can be traced inside torch.inference_mode(); call this outside")
    refuse_wrapped(model)
    if example is not None:
        refuse_call(model, example)
    whole = {module for module in model.modules() if _is_whole(module)}  # before a tracer is about
    ways: list[Callable[[], fx.Tracer]] = [lambda: MarkingTracer(whole)]
    if example is not None:
        ways.append(lambda: SizedTracer(example, whole))
    wanted: list[Any] | None = None
    for way in ways:
        try:
            with evaluating(model):
                if example is not None and wanted is None:
                    wanted = answers(model, two_images(example))
                network = _traced(model, way, example, wanted)
            break
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a tracer runs the user's forward: anything may come out of it
            if way is ways[-1]:
                _try(model, example)
                said = f"cannot trace {type(model).__name__}: {_reason(error)}"
                raise ValueError(said + _cure(model, error)) from error
    if ran is not None and example is not None and wanted is not None:
        ran.append((two_images(example), wanted))
    modes = {name: part.training for name, part in model.named_modules(remove_duplicate=False)}
    for name, module in network.named_modules():  # functional dropout that is a module now is new
        module.training = modes.get(name, model.training)
    if training and example is not None:
        try:
            compare_training(network, model, two_images(example))
        except ValueError as error:
            raise ValueError(f"cannot trace {type(model).__name__}: {error}") from error
    return network


def _traced(
    model: nn.Module,
    way: Callable[[], fx.Tracer],
    example: tuple[Any, ...] | None,
    wanted: list[Any] | None,
) -> fx.GraphModule:
    tracer, asked = way(), set[str]()
    network = record(model, tracer, asked)
    if asked:
        refuse_time(network, record(model, way(), asked, late=LATER), asked)
    network.eval()
    _dropout_as_modules(network)
    if example is None or wanted is None:
        return network
    if isinstance(tracer, SizedTracer):
        expect_sizes(network, example)
    expect_values(network, example)
    inputs = two_images(example)
    settle(network, _copies(inputs))
    compare(network, model, inputs, wanted)
    _refuse_hooks(network, model, inputs)
    return network


def _copies(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part.clone() if isinstance(part, Tensor) else part for part in inputs)


@torch.no_grad()
def _refuse_hooks(network: fx.GraphModule, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuse hooks that change what a layer computes: the analysis reads layers, not hooks."""
    calls = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    names = hooked(model, calls)
    if not names:
        return
    with_them = network.forward(*_copies(inputs))
    without = without_hooks(model, names, lambda: network.forward(*_copies(inputs)))
    pairs = zip(tree_leaves(with_them), tree_leaves(without), strict=True)
    if not all(close(a, b) for a, b in pairs if isinstance(a, Tensor)):
        raise ValueError(
            f"hooks on {', '.join(map(repr, names))} change what the network computes; remove "
            "them, or make what they do a module of its own"
        )


def cannot_take(inputs: Iterable[Any], error: Exception) -> ValueError:
    """Say that a network does not run on inputs of these shapes and types, and why."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    shapes = ", ".join(str(tuple(value.shape)) for value in tensors)
    why = (str(error).splitlines() or [type(error).__name__])[0]
    kinds = {str(value.dtype) for value in tensors if value.dtype != torch.float32}
    if kinds and "type" in why:
        why += f"; the input is {', '.join(sorted(kinds))}: convert it to the type of the weights"
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


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Put a network into eval mode, and each of its modules back into the mode it was in."""
    return mode(model, training=False)


def _is_whole(module: nn.Module) -> bool:
    """Whether a module that is not torch's is recorded as a call and not looked into."""
    if "forward" in vars(module):
        return False
    return (
        frozen_affine(module) is not None
        or _depends_on_training(module)
        or is_convolution(module)
        or is_linear(module)
    )


def _cure(model: nn.Module, error: Exception) -> str:
    """Say what helps against an error; nothing where its text says it already."""
    if replaced := changed_calls(model):
        listed = ", ".join(replaced)
        return (
            f". The forward of {listed} was replaced on the object; derive a class with it instead"
        )
    text = str(error)
    if isinstance(error, fx.proxy.TraceError) or "its forward " in text:
        return f". {_BRANCH}"
    ours = ("its graph computes", "hooks on", "it gives something else", "it asks for the time")
    return "" if text.startswith(ours) else ". Convert the traceable trunk alone"


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
    """Make modules of functional dropout that was told the mode: they know it themselves."""
    for node in list(network.graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUT:
            continue
        names = ("input", "p", "training", "inplace")
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        if given.get("training", given.get("train")) is not False:
            continue  # it did not ask for the mode, and goes on in either
        name = f"{node.name}_module"
        dropout = _DROPOUT[node.target](given.get("p", 0.5), bool(given.get("inplace", False)))
        network.add_module(name, dropout.eval())
        with network.graph.inserting_before(node):
            module = network.graph.call_module(name, (given["input"],))
        module.meta.update(node.meta)
        node.replace_all_uses_with(module)
        network.graph.erase_node(node)
    network.recompile()
