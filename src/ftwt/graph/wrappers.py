"""What stands around a network, or was done to it, so that it cannot be copied and traced."""

from __future__ import annotations

import copy
import keyword
import sys
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

HOOKS = MappingProxyType(
    {
        WeightNorm: "weight_norm of torch.nn.utils: take it off with remove_weight_norm, or use "
        "torch.nn.utils.parametrizations.weight_norm",
        SpectralNorm: "spectral_norm of torch.nn.utils: take it off with remove_spectral_norm, or "
        "use torch.nn.utils.parametrizations.spectral_norm",
        BasePruningMethod: "torch.nn.utils.prune: make it permanent with "
        "torch.nn.utils.prune.remove(module, name)",
    }
)
"""Hooks that compute a weight before each call -> what they are and what to do."""


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a network that is wrapped, compiled, scripted or rewritten, and say how to undo it.

    Raises:
        ValueError: What it is, where, and the cure.
    """
    refuse_no_module(model)
    for name, module in model.named_modules():
        if (why := _why_not(module, name)) is not None:
            what = f"its module {name!r}" if name else "it"
            raise ValueError(f"cannot trace {type(model).__name__}: {what} {why}")
        children = (*module._modules, *module._parameters, *module._buffers)
        if (word := next(filter(keyword.iskeyword, children), None)) is not None:
            place = f"{name}.{word}" if name else word
            raise ValueError(
                f"cannot trace {type(model).__name__}: {place!r} is named by a word of Python's "
                "own, which a traced network cannot have; give it another name"
            )


def refuse_no_module(model: Any) -> None:
    """Refuse what is no network: a function, a class that was not called, nothing.

    Raises:
        ValueError: What it is instead.
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ValueError(f"{model.__name__} is a class; give a network, {model.__name__}(...)")
    kind = type(model).__name__
    raise ValueError(
        f"a {kind} is no network: give an nn.Module; what a function computes goes into the "
        "forward of one"
    )


def copied(model: nn.Module) -> nn.Module:
    """Copy a network.

    Raises:
        ValueError: It cannot be copied, and why.
    """
    refuse_wrapped(model)
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks:
            raise ValueError(
                f"cannot copy {type(model).__name__}: {name!r} has a hook on its gradient, which "
                "a copy does not keep; remove it, and register it on the parameter of what is made"
            )
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        computed = [
            f"{name}.{key}".lstrip(".")
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, torch.Tensor) and not value.is_leaf
        ]
        held = f" {', '.join(computed)}: computed from others, detach it" if computed else ""
        raise ValueError(f"cannot copy {type(model).__name__}: {why}{held}") from error


def _why_not(module: nn.Module, name: str) -> str | None:
    inner = f"model.{name}" if name else "model"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        kind = type(module).__name__
        return f"is wrapped in {kind}: unwrap it with {inner}.module, and wrap what is made of it"
    if isinstance(module, torch.jit.ScriptModule):
        return "was made by torch.jit: give the nn.Module that it was made of"
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # there if anything was compiled
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return f"was compiled: unwrap it with {inner}._orig_mod, and compile what is made of it"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "was compiled in place: convert it before .compile(), and compile what is made of it"
    if not name and isinstance(module, torch.optim.swa_utils.AveragedModel):
        return "is wrapped in AveragedModel: unwrap it with model.module"
    state = (*module._parameters.values(), *module._buffers.values())
    if any(part is not None and part.is_meta for part in state):
        return (
            "has weights on the meta device, where they have no values: load them first, say by "
            "load_state_dict(..., assign=True)"
        )
    if any(part is not None and is_lazy(part) for part in state):
        return "has weights whose sizes it does not know yet: run it once on an image first"
    for hook in module._forward_pre_hooks.values():
        for method, cure in HOOKS.items():
            if isinstance(hook, method):
                return f"has a weight that is computed before each call, by {cure}"
    return None


def changed_calls(model: nn.Module) -> list[str]:
    """Name the modules whose forward was replaced on the object."""
    return [
        name or "the network" for name, part in model.named_modules() if "forward" in vars(part)
    ]


def hooked(model: nn.Module, names: set[str]) -> list[str]:
    """Name those of some modules that have hooks around their forward."""
    return [
        name
        for name, part in model.named_modules()
        if name in names and (part._forward_hooks or part._forward_pre_hooks)
    ]


def without_hooks(model: nn.Module, names: list[str], call: Callable[[], Any]) -> Any:
    """Do something while some modules have no hooks around their forward."""
    parts = [model.get_submodule(name) for name in names]
    held = [(dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in parts]
    try:
        for part in parts:
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        return call()
    finally:
        for part, (after, before) in zip(parts, held, strict=True):
            part._forward_hooks.update(after)
            part._forward_pre_hooks.update(before)
