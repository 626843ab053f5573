"""Layers with a forward of their own: paddings from sizes, weights computed from weights.

Libraries derive classes from torch's convolutions: to pad as TensorFlow does, to standardise the
weights first. Each is one convolution all the same, and a unit like any other. Others do more, and
then are looked into like any module. Which it is, is read off what the forward does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from .operations import Conv, ancestors
from .patches import record
from .sized import SizedTracer

PLAIN = frozenset(
    kind.forward
    for kind in (
        nn.Conv1d, nn.Conv2d, nn.Conv3d,
        nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    )
)  # fmt: skip
PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is one convolution with filters of its own, and does nothing else."""
    if not isinstance(module, Conv):
        return False
    plain = type(module).forward in PLAIN and not convolves_otherwise(module)
    return plain or inside(module) is not None


def convolves_otherwise(module: nn.Module) -> bool:
    """Whether the part of a convolution that its forward leaves the work to was replaced."""
    name = "_conv_forward"
    if name in vars(module):
        return True
    owner = next((kind for kind in type(module).__mro__ if name in vars(kind)), None)
    return owner is not None and not owner.__module__.startswith("torch.nn.")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one linear layer with a weight of its own, and does nothing else."""
    if not isinstance(module, nn.Linear):
        return False
    if type(module).forward is nn.Linear.forward:
        return True
    example = torch.empty(1, module.in_features, device=module.weight.device)
    try:
        nodes = list(record(module, SizedTracer((example,))).graph.nodes)
    except Exception:  # a forward that cannot be traced is no plain layer
        return False
    bias = None if module.bias is None else "bias"
    does = [
        (node.op, getattr(node.target, "__name__", node.target), [str(arg) for arg in node.args])
        for node in nodes
        if node.op.startswith("call") or node.op == "output"
    ]
    given = [str(nodes[0]), "weight", str(bias)]
    return does == [("call_function", "linear", given), ("output", "output", [does[0][1]])]


def inside(module: Conv, size: tuple[int, ...] | None = None) -> fx.GraphModule | None:
    """Look into a convolution that has a forward of its own.

    Args:
        module: A convolution.
        size: Rows and columns of its input; None for any that it can take.

    Returns:
        What it does: zeros around its input, a convolution with a weight that the input has no
        part in. None if it does anything else.
    """
    if size is None:
        reach = zip(module.kernel_size, module.dilation, module.stride, strict=True)
        size = tuple(2 * (dilation * (kernel - 1) + stride) for kernel, dilation, stride in reach)
    example = torch.empty(1, module.in_channels, *size, device=module.weight.device)
    try:
        network = record(module, tracer := SizedTracer((example,)))
    except Exception:  # a forward that cannot be traced is no plain convolution
        return None
    return network if _is_plain(module, tracer.graph, tracer) else None


def convolution(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a functional convolution by name."""
    return dict(zip(PARAMETERS, node.args, strict=False)) | node.kwargs


def _is_plain(module: Conv, graph: fx.Graph, tracer: SizedTracer) -> bool:
    nodes = list(graph.nodes)
    image = next(node for node in nodes if node.op == "placeholder")
    here = image  # where the image has come to
    convolved = False
    for node in nodes:
        if here not in node.all_input_nodes:
            if image in ancestors(node):
                return False  # a second use of the image
            continue
        if node.op == "output":
            return convolved and node.args[0] is here
        if node.op != "call_function" or node.args[:1] != (here,) or convolved:
            return False
        name = getattr(node.target, "__name__", "")
        given = convolution(node)
        if name == "pad":
            mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
            value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
            if mode != "constant" or value not in (None, 0):
                return False
        elif name in ("conv1d", "conv2d", "conv3d"):
            same = all(
                _spread(given.get(key, default), module) == _spread(getattr(module, key), module)
                for key, default in (("stride", 1), ("dilation", 1))
            )
            weight = tracer.values(given["weight"])[0]
            same &= weight.shape == module.weight.shape and given.get("groups", 1) == module.groups
            if not same or (given.get("bias") is None) != (module.bias is None):
                return False
            convolved = True
        else:
            return False
        here = node
    return False


def _spread(value: Any, module: Conv) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * len(module.kernel_size)


def zeros_around(
    padding: Sequence[int] | str, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Zeros that a convolution adds before each axis of its maps, and after each.

    Args:
        padding: Zeros on both sides of each axis; or `same` or `valid`, as torch names them.
        kernel: Its size along each axis.
        dilation: Of each axis.
    """
    if not isinstance(padding, str):
        return list(padding), list(padding)
    both = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    return [total // 2 for total in both], [total - total // 2 for total in both]
