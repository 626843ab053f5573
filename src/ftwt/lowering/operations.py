"""What each torch operation is in a program: one short function for each.

They have torch's names and parameters, so that a call in a graph is a call here. Modules are turned
into such calls by `MODULES`. What has no entry is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.convolutions import zeros_around
from ..runtime.program import Activate, Activation, Combine, Conv, Pool
from .draft import Data, Draft
from .moves import SAMPLES, Moved, Value, without_border

Pair = int | Sequence[int]
Kind = Literal["max", "mean"]
Handler = Callable[..., Any]


def conv2d(
    draft: Draft,
    input: Data,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Value:
    """A convolution."""
    if padding_mode != "zeros":
        draft.refuse(f"padding_mode={padding_mode!r}; only 'zeros' can be")
    spread = pair(dilation)
    given = padding if isinstance(padding, str) else pair(padding)
    before, after = zeros_around(given, weight.shape[2:], spread)
    border = (0, 0, 0, 0)
    if isinstance(input, Moved):  # padded by itself, as it has to be where sides differ
        input, border = without_border(input)
    around = [n + m for n, m in zip((*before, *after), border, strict=True)]
    out = draft.map()
    draft.add(
        Conv(
            name=draft.name,
            x=draft.whole(input),
            out=out,
            weight=draft.constant("weight", weight),
            bias=draft.constant("bias", np.zeros(len(weight)) if bias is None else bias),
            stride=pair(stride),
            padding=(around[0], around[1], around[2], around[3]),
            dilation=spread,
            groups=groups,
        )
    )
    return draft.value(out)


def linear(draft: Draft, input: Data, weight: Tensor, bias: Tensor | None = None) -> Value:
    """A linear layer."""
    return draft.linear(input, weight, bias)


def batch_norm(
    draft: Draft,
    input: Data,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """A batch norm in eval mode."""
    if running_mean is None or running_var is None:
        draft.refuse("it has no running statistics, so an image's result depends on the others'")
    scale = 1 / np.sqrt(double(running_var) + eps)
    if weight is not None:
        scale = scale * double(weight)
    shift = -double(running_mean) * scale
    return draft.affine(input, scale, shift if bias is None else shift + double(bias))


def activation(kind: Activation, **only: Any) -> Handler:
    """Make the function of an activation whose parameters have the values `only`, if any."""

    def activate(
        draft: Draft, input: Data, *args: Any, inplace: bool = False, **given: Any
    ) -> Value:
        given = dict(zip(only, args, strict=False)) | given
        for name, value in given.items():
            if name in only and value != only[name]:
                draft.refuse(f"{name}={value}; only {only[name]} can be")
        out = draft.map()
        draft.add(Activate(name=draft.name, x=draft.whole(input), out=out, act=kind))
        return draft.value(out)

    return activate


def max_pool2d(
    draft: Draft,
    input: Data,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    """A maximum over windows."""
    if pair(dilation) != (1, 1) or return_indices:
        draft.refuse(f"dilation={dilation}, return_indices={return_indices}; only 1 and False can")
    input, padding = _padded(draft, input, padding, -float("inf"))
    return _windows(draft, input, kernel_size, stride, padding, "max")


def avg_pool2d(
    draft: Draft,
    input: Data,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """A mean over windows."""
    if divisor_override is not None:
        draft.refuse(f"divisor_override={divisor_override}; only None can be")
    input, around = _padded(draft, input, padding, 0)
    padded = bool(count_include_pad) or around is not padding
    padding = around
    return _windows(draft, input, kernel_size, stride, padding, "mean", include_padding=padded)


def _padded(draft: Draft, x: Data, padding: Pair, border: float) -> tuple[Data, Pair]:
    """Take a border that was laid around a map by itself; windows lay it around by padding."""
    if not isinstance(x, Moved) or len(x.shape) != 3:
        return x, padding
    inner, (top, left, bottom, right) = without_border(x, border)
    if not any((top, left, bottom, right)):
        return x, padding
    over = (bottom - top, right - left)  # windows may hang over, of which a maximum sees nothing
    if pair(padding) != (0, 0) or min(over) < 0 or (border == 0 and any(over)):
        sides = f"{top} rows above, {bottom} below, {left} columns left, {right} right"
        draft.refuse(f"its input has a border of {border:g} ({sides}), which it cannot lay around")
    return inner, (top, left)


def _windows(
    draft: Draft,
    x: Data,
    kernel: Pair,
    stride: Pair | None,
    padding: Pair,
    kind: Kind,
    *,
    include_padding: bool = True,
) -> Value:
    out = draft.map()
    draft.add(
        Pool(
            name=draft.name,
            x=draft.whole(x),
            out=out,
            kind=kind,
            kernel=pair(kernel),
            stride=pair(stride or kernel),
            padding=pair(padding),
            include_padding=include_padding,
        )
    )
    return draft.value(out)


def adaptive_avg_pool2d(draft: Draft, input: Data, output_size: Any) -> Value:
    """Means over as many windows as are asked for."""
    return _adaptive(draft, input, "mean")


def adaptive_max_pool2d(
    draft: Draft, input: Data, output_size: Any, return_indices: bool = False
) -> Value:
    """Maxima over as many windows as are asked for."""
    return _adaptive(draft, input, "max")


def _adaptive(draft: Draft, input: Data, kind: Kind) -> Value:
    x = draft.whole(input)
    if draft.maps[x][1:] == draft.shape[1:]:
        return draft.value(x)
    if draft.shape[1:] == (1, 1):
        return draft.value(draft.pooled(x, kind))
    out = draft.map()
    draft.add(Pool(name=draft.name, x=x, out=out, kind=kind, adaptive=True))
    return draft.value(out)


def over_space(kind: Kind) -> Handler:
    """Make the function of a mean or maximum over dimensions, which must be rows and columns."""

    def reduce(
        draft: Draft, input: Data, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Value:
        dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
        if len(input.shape) != 3 or sorted(d % 4 for d in dims) != [2, 3]:
            draft.refuse(f"dim={dim}; only rows and columns of a map, (2, 3), can be reduced")
        if dtype not in (None, torch.float32):
            draft.refuse(f"dtype={dtype}; only torch.float32 can be")
        return draft.value(draft.pooled(draft.whole(input), kind))

    return reduce


def add(draft: Draft, input: Any, other: Any, *, alpha: float = 1) -> Data:
    """A sum of two maps, or of a map and numbers."""
    if alpha != 1:
        draft.refuse(f"alpha={alpha}; only 1 can be")
    if isinstance(input, Data) and isinstance(other, Data):
        return _combine(draft, input, other, "add")
    x, numbers = (input, other) if isinstance(input, Data) else (other, input)
    if isinstance(numbers, int | float) and numbers == 0:
        return x  # the start of a sum: what is zero stays so
    shift = _of_channels(draft, x, numbers)
    return draft.affine(x, np.ones_like(shift), shift)


def sub(draft: Draft, input: Any, other: Any, *, alpha: float = 1) -> Data:
    """A map less numbers."""
    if isinstance(other, Data):
        draft.refuse("only numbers can be subtracted")
    return add(draft, input, -other, alpha=alpha)


def mul(draft: Draft, input: Any, other: Any) -> Value:
    """A product of two maps, or of a map and numbers."""
    if isinstance(input, Data) and isinstance(other, Data):
        return _combine(draft, input, other, "mul")
    x, numbers = (input, other) if isinstance(input, Data) else (other, input)
    scale = _of_channels(draft, x, numbers)
    return draft.affine(x, scale, np.zeros_like(scale))


def div(draft: Draft, input: Any, other: Any) -> Value:
    """A map divided by numbers."""
    if isinstance(other, Data):
        draft.refuse("only numbers can divide")
    return mul(draft, input, 1 / other)


def _combine(draft: Draft, a: Data, b: Data, kind: Literal["add", "mul"]) -> Value:
    if len(a.shape) != len(b.shape):
        draft.refuse(f"shapes {a.shape} and {b.shape}")
    first, second = draft.whole(a), draft.whole(b)
    shape = draft.maps[draft.map()]
    del draft.maps[-1]
    if draft.maps[first] != shape:
        first, second = second, first
    if draft.maps[first] != shape or draft.maps[second] not in (shape, (shape[0], 1, 1)):
        draft.refuse(
            f"shapes {a.shape} and {b.shape}; they must be the same, or one of them (C, 1, 1)"
        )
    out = draft.map()
    draft.add(Combine(name=draft.name, a=first, b=second, out=out, kind=kind))
    return draft.value(out)


def _of_channels(draft: Draft, x: Data, numbers: Any) -> np.ndarray:
    """Return numbers, of any shape that spreads over a map's channels, as (C,)."""
    values = double(torch.as_tensor(numbers))
    try:
        spread = np.broadcast_to(values, (1, *x.shape)).reshape(x.shape[0], -1)
    except ValueError:
        spread = np.empty((1, 0))
    if not spread.size or (spread != spread[:, :1]).any():
        draft.refuse(f"numbers of shape {values.shape} with a map of shape {x.shape}")
    return spread[:, 0].copy()


def same(draft: Draft, input: Data, *args: Any, **kwargs: Any) -> Data:
    """What changes nothing when a network is only used: dropout, identity, copies."""
    return input


def dropout(draft: Draft, input: Data, p: float = 0.5, *flags: Any, **named: Any) -> Data:
    """Dropout, or stochastic depth, that is off: the mode is told before anything in place."""
    on = [flag for flag in flags if isinstance(flag, bool)][:1]
    if p and named.get("training", named.get("train", on[0] if on else True)):
        draft.refuse("it drops values in eval mode, too: an engine has no random numbers")
    return input


def size(draft: Draft, input: Data, dim: int | None = None) -> Any:
    """The shape, or one length of it, for the samples on which movements are run."""
    shape = torch.Size((SAMPLES, *input.shape))
    return shape if dim is None else shape[dim]


def attribute(draft: Draft, input: Data, name: str) -> Any:
    """An attribute of a tensor."""
    known = {"shape": size(draft, input), "ndim": len(input.shape) + 1}
    if name not in known:
        draft.refuse(f"attribute {name}")
    return known[name]


def pair(value: Pair) -> tuple[int, int]:
    """Return one number as two, and two as they are."""
    rows, columns = (value, value) if isinstance(value, int) else (*value, *value)[:2]
    return (int(rows), int(columns))


def double(values: Tensor) -> np.ndarray:
    """Return a tensor as a float64 array."""
    return values.detach().cpu().double().numpy()


_PARAMETERS: dict[str, dict[str, Any]] = {
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "gelu": {"approximate": "none"},
}
HANDLERS: dict[str, Handler] = {
    **{kind: activation(kind, **_PARAMETERS.get(kind, {})) for kind in get_args(Activation)},
    "relu_": activation("relu"),
    "elu_": activation("elu", **_PARAMETERS["elu"]),
    "hardtanh": activation("relu6", min_val=0.0, max_val=6.0),
    **{f.__name__: f for f in (conv2d, linear, batch_norm, max_pool2d, avg_pool2d)},
    **{f.__name__: f for f in (adaptive_avg_pool2d, adaptive_max_pool2d)},
    "mean": over_space("mean"),
    "amax": over_space("max"),
    **{name: add for name in ("add", "add_", "iadd")},
    **{name: sub for name in ("sub", "sub_", "isub")},
    **{name: mul for name in ("mul", "mul_", "imul")},
    **{name: div for name in ("div", "div_", "truediv", "itruediv")},
    **{name: same for name in "contiguous clone detach float".split()},
    **{name: dropout for name in "dropout dropout2d alpha_dropout stochastic_depth".split()},
    "size": size,
    "getattr": attribute,
    "expect_size": lambda draft, input, size: None,  # a program has one size
    "dim": lambda draft, input: len(input.shape) + 1,
}
del HANDLERS["none"]

_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode")
_NORM = ("running_mean", "running_var", "weight", "bias")
_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_MEAN = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.Conv2d: ("conv2d", _CONV),
    nn.Linear: ("linear", ("weight", "bias")),
    nn.BatchNorm2d: ("batch_norm", (*_NORM, "eps")),
    nn.BatchNorm1d: ("batch_norm", (*_NORM, "eps")),
    nn.MaxPool2d: ("max_pool2d", _MAX),
    nn.AvgPool2d: ("avg_pool2d", _MEAN),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", ("output_size", "return_indices")),
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.SiLU: ("silu", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.GELU: ("gelu", ("approximate",)),
    nn.Tanh: ("tanh", ()),
    nn.Identity: ("contiguous", ()),
    nn.Dropout: ("contiguous", ()),
    nn.Dropout2d: ("contiguous", ()),
    nn.AlphaDropout: ("contiguous", ()),
}
IDENTITIES = ("StochasticDepth", "DropPath", "DropBlock2d")  # of torchvision and timm
CHANGE_THEIR_INPUT = frozenset("relu_ elu_ add_ iadd mul_ imul sub_ isub div_ itruediv".split())
