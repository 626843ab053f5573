"""Multiply-accumulates of what runs, by a formula for each function that multiplies matrices.

The functions are seen as a network calls them, before torch takes them apart or fuses them. What
adds, compares, moves or scales value by value is free. A function that is given weights, or two
maps, and is in neither list is named instead of counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Formula = Callable[..., int | None]


class WorkCounter(TorchFunctionMode):
    """Count the multiply-accumulates of everything that is called inside the `with` block.

    Attributes:
        macs: Multiply-accumulates so far.
        uncounted: Functions that were given weights, or two maps, and have no formula.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.uncounted: list[str] = []
        self._weights: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function and count its work."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _name(func)
        tensors = [part for part in _flat((args, kwargs)) if isinstance(part, Tensor)]
        macs: int | None = 0
        if (formula := FORMULAS.get(name)) is not None:
            of_one = any(map(torch._C._functorch.is_batchedtensor, tensors))  # of vmap's many
            macs = None if of_one else formula(result, *args, **kwargs)
        elif not _is_free(name, (args, kwargs)):
            macs = None
        if macs is None:
            self.uncounted.append(name)
        else:
            self.macs += macs
        self._weights.update(id(part) for part in tensors if isinstance(part, nn.Parameter))
        return result

    def has_seen(self, module: nn.Module) -> bool:
        """Whether all matrices of a module were given to functions that could be seen."""
        return all(id(p) in self._weights for p in module.parameters() if p.dim() > 1)


def count_work(model: nn.Module, *inputs: Any) -> WorkCounter:
    """Run a network once, in the mode that it is in, and count all of its work."""
    with torch.no_grad(), WorkCounter() as counter:
        model(*inputs)
    counter.uncounted += [
        type(module).__name__
        for module in model.modules()
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters())
    ]
    return counter


def _convolution(result: Tensor, input: Tensor, weight: Tensor, *more: Any, **named: Any) -> int:
    return result.numel() // weight.shape[0] * weight.numel()


def _transposed(result: Tensor, input: Tensor, weight: Tensor, *more: Any, **named: Any) -> int:
    return input.numel() // weight.shape[0] * weight.numel()


def _convolution_tbc(
    result: Tensor, input: Tensor, weight: Tensor, *more: Any, **named: Any
) -> int:
    return result.numel() // weight.shape[2] * weight.numel()


def _linear(result: Tensor, input: Tensor, weight: Tensor, *more: Any, **named: Any) -> int:
    return input.numel() // weight.shape[-1] * weight.numel()


def _bilinear(
    result: Tensor, input1: Tensor, input2: Tensor, weight: Tensor, *more: Any, **named: Any
) -> int:
    """One input with the weight first, then the other input with what came out."""
    rows = result.numel() // weight.shape[0]
    return rows * (weight.numel() + weight.shape[0] * weight.shape[2])


def _product(result: Tensor, input: Tensor, *more: Any, **named: Any) -> int:
    return result.numel() * input.shape[-1]


def _added_product(result: Tensor, input: Tensor, *more: Any, **named: Any) -> int:
    first, second = [part for part in (*more, *named.values()) if isinstance(part, Tensor)][:2]
    return first.numel() * (second.shape[-1] if second.dim() > 1 else 1)


def _tensordot(result: Tensor, a: Tensor, b: Tensor, *more: Any, **named: Any) -> int:
    summed = math.isqrt(a.numel() * b.numel() // max(1, result.numel()))
    return result.numel() * summed


def _einsum(result: Tensor, equation: Any, *operands: Any) -> int | None:
    """Pair by pair from the left, each index that one factor alone has summed beforehand."""
    if not isinstance(equation, str):
        return None
    maps: list[Tensor] = list(operands[0] if isinstance(operands[0], tuple | list) else operands)
    left, _, right = equation.replace(" ", "").partition("->")
    names = [_letters(term, part.dim()) for term, part in zip(left.split(","), maps, strict=True)]
    sizes: dict[str | int, int] = {}
    for term, part in zip(names, maps, strict=True):
        for key, size in zip(term, part.shape, strict=True):
            sizes[key] = max(size, sizes.get(key, 1))  # of size 1, it is spread over the other
    if "->" in equation:
        wanted = set(_letters(right, result.dim()))
    else:
        every = [key for term in names for key in term]
        wanted = {key for key in every if every.count(key) == 1 or isinstance(key, int)}
    macs, done = 0, set(names[0])
    for place, term in enumerate(names[1:], 2):
        later = wanted.union(*names[place:])
        shared = set(term) & done
        pair = {key for key in done | set(term) if key in later or key in shared}
        if shared - later:
            macs += math.prod(sizes[key] for key in pair)
        done = pair & later
    return macs


def _letters(term: str, rank: int) -> list[str | int]:
    """Name each dimension of a factor; those that `...` stands for are counted from the right."""
    before, dots, after = term.partition("...")
    hidden = range(len(before) + len(after) - rank, 0) if dots else ()
    return [*before, *hidden, *after]


def _attention(
    result: Tensor, query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any
) -> int:
    """Queries with keys, then scores with values; a mask saves nothing."""
    pairs = math.prod(result.shape[:-1]) * key.shape[-2]
    return pairs * (query.shape[-1] + value.shape[-1])


def _multi_head(
    result: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    *more: Any,
    **named: Any,
) -> int | None:
    """Project queries, keys and values, attend, and project what comes out."""
    if named.get("static_k") is not None or named.get("static_v") is not None:
        return None
    width = out_proj_weight.shape[1]
    projections = sum(part.numel() for part in (query, key, value)) * width
    tokens = query.numel() // query.shape[-1]
    keys = key.shape[0] + (bias_k is not None) + bool(add_zero_attn)
    return projections + tokens * keys * 2 * width + tokens * out_proj_weight.numel()


def _recurrent(result: Any, input: Tensor, *more: Any, **named: Any) -> int:
    """Each matrix of each layer and direction, once for each token."""
    lists = [part for part in (*more, *named.values()) if isinstance(part, tuple | list)]
    tokens = input.numel() // input.shape[-1]
    weights = (part for parts in lists for part in parts if isinstance(part, Tensor))
    return tokens * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _cell(result: Any, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *more: Any) -> int:
    return input.numel() // input.shape[-1] * (w_ih.numel() + w_hh.numel())


def _packed(formula: Formula) -> Formula:
    def counted(result: Tensor, x: Tensor, packed: Any, *more: Any, **named: Any) -> int | None:
        weight = packed.unpack()[0] if formula is _linear else packed.weight()
        return formula(result, x, weight)

    return counted


def _table() -> Iterator[tuple[str, Formula]]:
    for size in "123":
        for name, formula in (
            (f"conv{size}d", _convolution),
            (f"conv_transpose{size}d", _transposed),
        ):
            yield name, formula
            for suffix in ("", "_relu", "_dynamic"):
                yield f"quantized::{name}{suffix}", _packed(formula)
    for suffix in ("", "_relu", "_dynamic", "_relu_dynamic"):
        yield f"quantized::linear{suffix}", _packed(_linear)
    for name in "matmul mm bmm mv dot vdot inner linalg_matmul _int_mm quantized::matmul".split():
        yield name, _product
    for name in "addmm addmv addbmm baddbmm sspaddmm".split():
        yield name, _added_product
        yield f"{name}_", _added_product
    for name in "lstm gru rnn_tanh rnn_relu".split():
        yield name, _recurrent
        yield f"{name}_cell", _cell
    others: dict[str, Formula] = {
        "linear": _linear,
        "bilinear": _bilinear,
        "conv_tbc": _convolution_tbc,
        "tensordot": _tensordot,
        "einsum": _einsum,
        "scaled_dot_product_attention": _attention,
        "multi_head_attention_forward": _multi_head,
        "torchvision::deform_conv2d": _convolution,
    }
    yield from others.items()


FORMULAS: Mapping[str, Formula] = dict(_table())
FREE = frozenset(
    "batch_norm instance_norm layer_norm group_norm rms_norm local_response_norm normalize "
    "_weight_norm cosine_similarity pairwise_distance prelu rrelu dropout glu "
    "cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag "
    "__getitem__ __setitem__ index index_put index_select index_add index_copy index_fill gather "
    "scatter scatter_add scatter_reduce masked_fill masked_scatter masked_select take put "
    "take_along_dim repeat_interleave where select_scatter slice_scatter diagonal_scatter "
    "expand_as view_as reshape_as type_as copy broadcast_tensors meshgrid equal allclose isclose "
    "max min maximum minimum amax amin embedding embedding_bag bucketize searchsorted "
    "grid_sample interpolate upsample pad max_unpool1d max_unpool2d max_unpool3d "
    "outer ger kron addr cross cartesian_prod full full_like new_full new_tensor clamp clip "
    "quantize_per_tensor quantize_per_channel fake_quantize_per_tensor_affine "
    "fake_quantize_per_channel_affine fused_moving_avg_obs_fake_quant "
    "__get__ __set__ __contains__ __reversed__ is_same_size set_ "
    "quantized::add quantized::add_relu quantized::mul quantized::mul_relu quantized::cat "
    "quantized::cat_relu quantized::batch_norm2d quantized::batch_norm2d_relu "
    "quantized::instance_norm quantized::layer_norm quantized::group_norm quantized::relu6 "
    "quantized::leaky_relu quantized::hardswish quantized::elu quantized::prelu quantized::sigmoid "
    "quantized::tanh quantized::dropout quantized::mul_scalar quantized::add_scalar "
    "torchvision::roi_align torchvision::roi_pool torchvision::nms".split()
)
"""What is given several maps and multiplies no matrices, beside what works value by value."""


NAMED = frozenset(
    "cov corrcoef matrix_power matrix_exp inverse pinverse cholesky cholesky_inverse svd qr geqrf "
    "lu det logdet slogdet pdist stft istft".split()
)
"""What multiplies a matrix with itself, or takes it apart."""


def _is_free(name: str, given: Any) -> bool:
    if name in NAMED:
        return False
    if name in FREE or name.strip("_") in FREE or _is_pointwise(name.strip("_")):
        return True
    if "::" in name:
        return False
    if name.startswith(("fft_", "linalg_", "_scaled_dot_product", "_native_", "_transformer_")):
        return False
    parts = list(_flat(given))
    maps = [part for part in parts if isinstance(part, Tensor) and _is_map(part)]
    return len(maps) < 2 and not any(isinstance(part, torch.ScriptObject) for part in parts)


def _is_map(value: Tensor) -> bool:
    numbers = value.is_floating_point() or value.is_complex() or value.is_quantized
    return numbers and value.dim() > 0


@cache
def _is_pointwise(name: str) -> bool:
    """Whether torch says of one of its operations that it works value by value, or sums."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    free = {torch.Tag.pointwise, torch.Tag.reduction}
    return any(free & set(getattr(packet, overload).tags) for overload in packet.overloads())


def _name(func: Any) -> str:
    """Name a function; those of other libraries with their namespace."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
        space, _, name = packet._qualified_op_name.partition("::")
        return name if space == "aten" else f"{space}::{name}"
    return str(getattr(func, "__name__", func))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from _flat(part)
    else:
        yield value
