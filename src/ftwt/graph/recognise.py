"""What an operation is, by what it is made of and what it does, never by a name alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

KNOWN = frozenset("torch torchvision ftwt operator _operator builtins math".split())
"""Packages whose functions and modules do what their names say."""
SIDE = 4  # rows and columns of the maps that a module is tried on


def operation(node: fx.Node, network: fx.GraphModule) -> str:
    """Name what a node does, for people: the module's class, the function, or the method."""
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))).__name__
    return (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )


def recognised(node: fx.Node, network: fx.GraphModule) -> str:
    """Name what a node does, if that is known; "" for another's function or class of that name."""
    name = operation(node, network)
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if is_known(type(module)):
            return name
        return "Identity" if passes_through(module) else ""
    return name if isinstance(node.target, str) or is_known(node.target) else ""


def is_known(thing: Callable[..., Any]) -> bool:
    """Whether a class or a function comes from a library whose names mean one thing."""
    module = getattr(thing, "__module__", None) or "torch"  # methods of tensors have none
    if module.startswith("torch._ops."):
        return module == "torch._ops.aten"
    return module.partition(".")[0] in KNOWN


@torch.no_grad()
def passes_through(module: nn.Module) -> bool:
    """Whether a module returns its input in eval mode, as stochastic depth does."""
    x = torch.randn(2, 8, SIDE, SIDE, device=_device(module))
    x[1] *= 1e6  # nor does it clamp
    found = _in_eval(module, x, double=False)
    return found is not None and torch.equal(found, x)


@torch.no_grad()
def frozen_affine(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Look whether a module scales and shifts each channel of a map by constants, in either mode.

    Detectors' batch norms that never learn do. Only modules of vectors, one value a channel and
    none of them a parameter, are looked at.

    Returns:
        Scale and shift, (C,) each, as the module applies them; None if it does anything else.
    """
    buffers = dict(module.named_buffers())
    sizes = {tuple(value.shape) for value in buffers.values()}
    if len(sizes) != 1 or any(True for _ in module.parameters()) or len(buffers) < 2:
        return None
    (shape,) = sizes
    if len(shape) != 1 or isinstance(module, nn.modules.batchnorm._BatchNorm):
        return None
    x = torch.randn(2, *shape, SIDE, SIDE, dtype=torch.float64, device=_device(module))
    x[1] *= 1e6  # nor does it look at values
    zeros, ones = torch.zeros_like(x), torch.ones_like(x)
    shift, both = _in_eval(module, zeros, double=True), _in_eval(module, ones, double=True)
    found = _in_eval(module, x, double=True)
    trained = _in_eval(module, x, double=True, training=True)
    if shift is None or both is None or found is None or trained is None:
        return None
    scale = both - shift
    scale, shift = scale[0, :, 0, 0], shift[0, :, 0, 0]
    applied = x * scale[:, None, None] + shift[:, None, None]
    least = 1e-5 * found.abs().amax((1, 2, 3), keepdim=True)
    if not all(((found - other).abs() <= least).all() for other in (applied, trained)):
        return None
    dtype = next(iter(buffers.values())).dtype
    return scale.to(dtype), shift.to(dtype)


@torch.no_grad()
def is_channelwise(module: nn.Module, channels: int) -> bool:
    """Whether each channel of a module's output depends on that channel of its input alone."""
    x = torch.randn(2, channels, SIDE, SIDE, device=_device(module))
    other = x.clone()
    other[:, 0] += 1
    before, after = _in_eval(module, x, double=False), _in_eval(module, other, double=False)
    if before is None or after is None or before.shape != x.shape:
        return False
    return torch.equal(before[:, 1:], after[:, 1:])


def _in_eval(
    module: nn.Module, x: Tensor, *, double: bool, training: bool = False
) -> Tensor | None:
    """Run a module on a map with copies of its state; None if it cannot take one, or is random."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    copies = {
        name: value.double() if double and value.is_floating_point() else value.clone()
        for name, value in state.items()
    }
    flags = {part: part.training for part in module.modules()}
    try:
        module.train(training)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            before = _random_states(x)
            found = functional_call(module, copies, (x.clone(),))
            if not training and not all(map(torch.equal, before, _random_states(x))):
                return None
    except Exception:  # another's code runs: anything may come out of it
        return None
    finally:
        for part, flag in flags.items():
            part.training = flag
    return found if isinstance(found, Tensor) and found.shape == x.shape else None


def _random_states(x: Tensor) -> list[Tensor]:
    own = [torch.cuda.get_rng_state(x.device)] if x.is_cuda else []
    return [torch.get_rng_state(), *own]


def _device(module: nn.Module) -> torch.device:
    state = (*module.parameters(), *module.buffers())
    return state[0].device if state else torch.device("cpu")
