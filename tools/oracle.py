"""A second count of multiply-accumulates, which shares nothing with that of ftwt.

ftwt counts functions as a network calls them. Here everything is taken apart first: attention into
products of matrices, recurrent layers into linear ones. What is left are the few kernels that
multiply, and their shapes are read where torch dispatches them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
OPAQUE = (
    "attention",
    "mkldnn",
    "rnn",
    "lstm",
    "gru",
    "onednn",
    "cudnn",
    "einsum",
    "fft",
    "_linear",
    "linalg",
    "cdist",
    "cholesky",
    "svd",
    "matrix_exp",
)
"""Words in names of kernels that multiply, and that should have been taken apart."""


def count(model: nn.Module, *inputs: Any) -> int:
    """Count the multiply-accumulates of a forward pass in eval mode, of the whole batch.

    Raises:
        ValueError: A kernel multiplies inside, and is none of those known here.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
            _Kernels() as kernels,
        ):
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return kernels.macs


class _Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.macs += _macs(func, args, result)
        return result


def _macs(func: Any, args: tuple[Any, ...], result: Any) -> int:
    name = func.overloadpacket.__name__.removeprefix("linalg_vector_")  # a sum of squares
    kernel = name.removesuffix("_") if func.namespace == "aten" else ""  # in place, as much
    if kernel in ("mm", "bmm", "_int_mm"):
        (*batch, rows, shared), columns = args[0].shape, args[1].shape[-1]
        return math.prod(batch) * rows * shared * columns
    if kernel in ("addmm", "baddbmm", "_addmm_activation"):
        (*batch, rows, shared), columns = args[1].shape, args[2].shape[-1]
        return math.prod(batch) * rows * shared * columns
    if kernel == "addbmm":
        return math.prod(args[1].shape) * args[2].shape[2]
    if kernel in ("mv", "dot", "vdot"):
        return math.prod(args[0].shape)
    if kernel == "addmv":
        return math.prod(args[1].shape)
    if kernel == "conv_tbc":  # (time, rows, in) with (time, in, out)
        return math.prod(result.shape[:2]) * math.prod(args[1].shape)
    if kernel == "_trilinear":  # (rows, 1, in1, 1), (1, out, in1, in2), (rows, 1, 1, in2)
        rows, (out, first, second) = len(args[0]), args[1].shape[-3:]
        return rows * out * (first * second + second)
    if kernel in ("convolution", "_convolution", "convolution_overrideable"):
        weight, transposed = args[1], args[6]
        window = math.prod(weight.shape[2:]) * weight.shape[1]  # of one filter, or one input
        return math.prod((args[0] if transposed else result).shape) * window
    infos = [part.alias_info for part in func._schema.arguments]
    moves = any(info and not info.is_write for info in infos) or not _maps(args)
    product = any(part.endswith("mm") for part in kernel.split("_"))
    if product or (not moves and (not kernel or any(word in name for word in OPAQUE))):
        raise ValueError(f"{func} multiplies, and cannot be looked into")
    return 0


def _maps(args: tuple[Any, ...]) -> bool:
    return any(isinstance(part, Tensor) and part.is_floating_point() for part in args)
