"""Hold a traced graph to the network it was traced from, in eval mode and in training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from .state import State, kept

Digest = tuple[float, ...]
FLAGS = ("training", "train")  # arguments by which functions are told the mode
CURES = (
    "what differs in training must be a module: nn.Dropout, nn.BatchNorm2d and their kin in place "
    "of functions; an autograd.Function is kept if it is called as its .apply"
)


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a network into a mode, and each of its modules back into the one it was in."""
    flags = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give buffers their values back: checkpointing runs layers again where gradients are taken."""
    held = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in held:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def two_images(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first sample of an example and its mirror image, as a batch of two."""

    def pair(part: Any) -> Any:
        if not isinstance(part, Tensor) or not part.dim():
            return part
        first = part[:1].detach()
        return torch.cat([first, first.flip(-1) if part.is_floating_point() else first])

    return tuple(pair(part) for part in example)


@torch.no_grad()
def answers(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """Run a network in eval mode, twice if a pass leaves something behind in it.

    Returns:
        The parts of its outputs.

    Raises:
        ValueError: It gives something else when it is called again.
    """
    left: list[str] = []
    outputs = _run(_Twice(model, left.extend), inputs)
    first, second = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    if left and not _equal(first, second):
        raise ValueError(
            f"it gives something else when it is called again: a call changes "
            f"{', '.join(left)}, and what is made of it keeps nothing from one call to the "
            "next; give such values as inputs"
        )
    return first if left else outputs


@torch.no_grad()
def compare(
    network: fx.GraphModule, model: nn.Module, inputs: tuple[Any, ...], theirs: list[Any]
) -> None:
    """Refuse a graph that computes something else than the network in eval mode.

    Args:
        network: The graph.
        model: The network that it was traced from.
        inputs: Of both.
        theirs: What the network gives for them.

    Raises:
        ValueError: What differs first.
    """
    if not _equal(theirs, _run(network, inputs)):
        raise ValueError(
            "its graph computes something else than the network"
            + _first_difference(network, model, inputs)
        )


def compare_training(network: fx.GraphModule, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuse a graph that computes other outputs or gradients than the network in training.

    Both run once in training mode with the same random numbers, on copies of their buffers. A
    network that returns more in training than in eval mode is warned of: the graph does not.

    Raises:
        ValueError: What differs first.
    """
    with mode(model, training=False), torch.no_grad():
        forms = [getattr(part, "shape", None) for part in _run(model, inputs)]
    try:
        with mode(model, training=True), _buffers_kept(model):
            theirs, their_gradients = _learn(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # it cannot be trained as it is called here: there is nothing to hold it to
        return
    if [getattr(part, "shape", None) for part in theirs] != forms:
        warnings.warn(
            f"{type(model).__name__} returns something else in training than in eval mode; what is "
            "made of it returns in either mode what eval mode does",
            stacklevel=4,
        )
        return
    with mode(network, training=True), _buffers_kept(network):
        ours, our_gradients = _learn(network, inputs)
    if not _equal(theirs, ours):
        with mode(network, training=True), mode(model, training=True):
            place = _first_difference(network, model, inputs)
        raise ValueError(
            f"its graph gives other outputs than the network in training{place}; {CURES}"
        )
    for name, wanted in reversed(their_gradients.items()):
        if not _as_steep(wanted, our_gradients.get(name)):
            raise ValueError(
                f"its graph gives {name} another gradient than the network{_fixed_mode(network)}; "
                f"{CURES}"
            )


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """Run a network on copies of inputs and of its buffers; return the parts of its outputs."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    copies = [part.clone() if isinstance(part, Tensor) else part for part in inputs]
    call: nn.Module = _Forward(model) if isinstance(model, fx.GraphModule) else model
    if call is not model:
        buffers = {f"network.{name}": buffer for name, buffer in buffers.items()}
    devices = {part.device for part in copies if isinstance(part, Tensor) and part.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), kept(call):
        torch.manual_seed(0)
        return tree_leaves(functional_call(call, buffers, tuple(copies)))


class _Twice(nn.Module):
    """Calls a network, and again if that changed what its modules hold: then it tells what."""

    def __init__(self, network: nn.Module, tell: Callable[[list[str]], None]) -> None:
        super().__init__()
        self.network, self.tell = network, tell

    def forward(self, *inputs: Any) -> Any:
        copies = tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, inputs)
        lots = torch.get_rng_state()
        before = State(self.network)
        first = self.network(*inputs)
        if not (left := before.changed()):
            return first
        self.tell(left)
        first = tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, first)
        torch.set_rng_state(lots)
        return first, self.network(*copies)


class _Forward(nn.Module):
    """Calls a graph's forward itself: called as a module, it prints where an error came from."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network.forward(*inputs)


def _learn(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Any], dict[str, Digest | None]]:
    """Run a network; return its outputs, and a digest of each parameter's and input's gradient."""
    with torch.enable_grad():
        leaves = [
            part.detach().clone().requires_grad_() if _is_float(part) else part for part in inputs
        ]
        outputs = _run(model, tuple(leaves))
        wanted = {f"input {i}": p for i, p in enumerate(leaves) if _is_float(p)}
        wanted |= {n: p for n, p in model.named_parameters() if p.requires_grad}
        weights = torch.Generator().manual_seed(1)
        losses = [
            (part * torch.randn(part.shape, generator=weights).to(part)).sum()
            for part in outputs
            if _is_float(part) and part.requires_grad
        ]
        gradients: Any = [None] * len(wanted)
        if losses and wanted:
            gradients = torch.autograd.grad(sum(losses), list(wanted.values()), allow_unused=True)
    found = dict(zip(wanted, map(_digest, gradients), strict=True))
    return [part.detach() if isinstance(part, Tensor) else part for part in outputs], found


def _digest(value: Tensor | None) -> Digest | None:
    """Numbers that tell a tensor from others: its length, sums of all and of some values."""
    if value is None:
        return None
    flat = value.detach().flatten()
    return (float(flat.norm()), *(float(flat[::step].sum()) for step in (1, 2, 3)))


def _as_steep(wanted: Digest | None, found: Digest | None) -> bool:
    wanted, found = wanted or (0.0,) * 4, found or (0.0,) * 4
    if not all(map(math.isfinite, (*wanted, *found))):
        return [math.isfinite(part) for part in wanted] == [math.isfinite(part) for part in found]
    allowed = 1e-3 * max(wanted[0], found[0]) + 1e-12
    return all(abs(a - b) <= allowed for a, b in zip(wanted, found, strict=True))


def _equal(theirs: list[Any], ours: list[Any]) -> bool:
    if len(theirs) != len(ours):
        return False
    pairs = zip(theirs, ours, strict=True)
    return all(
        close(first, second) for first, second in pairs if isinstance(first, Tensor | fx.Proxy)
    )


def close(first: Any, second: Any) -> bool:
    """Whether two tensors differ by no more than the order of sums on some devices."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False  # a stand-in that was left behind, say
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if torch.equal(first, second) or not first.is_floating_point():
        return torch.equal(first, second)
    largest = float(first.abs().nan_to_num().max())
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)


def _first_difference(network: fx.GraphModule, model: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Say which module of a network and its graph is the first to give something else."""
    if model._forward_hooks or model._forward_pre_hooks:
        return ": it has hooks, which a graph does not keep; do in forward what they do"
    theirs = dict(model.named_modules(remove_duplicate=False))
    calls = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    names = [name for name in calls if name in theirs]  # without functions that modules stand for
    runs = []
    for each in (model, network):
        seen: list[tuple[str, list[Any]]] = []
        parts = [(name, each.get_submodule(name)) for name in dict.fromkeys(names) if name]
        hooks = [part.register_forward_hook(_noting(seen, name)) for name, part in parts]
        try:
            _run(each, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        runs.append(seen)
    for (name, theirs), (other, ours) in zip(*runs, strict=False):
        if name != other or not _equal(theirs, ours):
            return f", from {name!r} on{_fixed_mode(network)}"
    return f", after its last module{_fixed_mode(network)}"


def _noting(seen: list[tuple[str, list[Any]]], name: str) -> Callable[..., None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        parts = tree_leaves(output)
        seen.append((name, [p.detach().clone() if isinstance(p, Tensor) else p for p in parts]))

    return note


def _fixed_mode(network: fx.GraphModule) -> str:
    """Name the functions of a graph that were told the mode when it was traced."""
    functions = {
        getattr(node.target, "__name__", str(node.target)): None
        for node in network.graph.nodes
        if node.op == "call_function" and any(node.kwargs.get(flag) is False for flag in FLAGS)
    }
    return f" ({', '.join(functions)} was told that this is no training)" if functions else ""


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
