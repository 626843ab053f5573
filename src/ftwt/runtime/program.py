"""What a compiled network is: a flat list of operations on channel maps, and their constants.

A *map* is an array (C, H, W) for one sample; a vector is a map of shape (C, 1, 1). Every map
carries an *activity* for each sample: the channels that can be non-zero. The others are zero, and
an engine need neither compute nor store nor read them. A *mask* is a (C,) bool array for one
sample: what a gate decided. Applying a mask to a map makes the other channels inactive.

A map is float32, or *quantised*: whole numbers of eight bits that stand for `scale` times
themselves, 0 to 255 (u8) or -127 to 127 (s8). What follows is float32 arithmetic, each step rounded
by itself, so every engine has the same bits. To quantise a value v for a map of scale s:
clip(rint(v * (1 / s)), lowest, highest), where rint takes the even one of two whole numbers that
are equally near, and what is not a number becomes 0.

An operation is a frozen dataclass that names the maps it reads, the map or mask it writes, and its
constants by their name in `Program.constants`. Operations run in order; each map and each mask is
written once, before it is read. Its docstring says what it computes for one sample, and which
channels of the result are active; the reference engine (`reference.py`) is that docstring as code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

PREPROCESSING = "preprocessing"  # key in a program's notes

Type = Literal["f32", "u8", "s8"]
RANGES: dict[str, tuple[int, int]] = {"u8": (0, 255), "s8": (-127, 127)}

Activation = Literal[
    "none", "relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid", "leaky_relu", "elu",
    "gelu", "tanh",
]  # fmt: skip
"""leaky_relu has slope 0.01 below zero, elu scale 1; gelu is the exact one, by erf."""
RENEWING = ("sigmoid", "hardsigmoid")  # activations that turn zero into something else
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
EXACT = ("none", "relu", "relu6", "leaky_relu", "hardswish")
"""Activations that quantised operations may have: the same bits everywhere. hardswish is
v * (min(max(v + 3, 0), 6) * (1 / 6))."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The base: `name` is that of the layer or node it came from, for messages and counts.

    In files and for the native engine an operation is a dict of its fields, and its class's name
    under "operation" (not "kind", which is a field of some).
    """

    name: str

    @property
    def reads(self) -> tuple[int, ...]:
        """The maps that it reads."""
        found: list[int] = []
        for name in ("x", "a", "b", "xs", "features", "add"):
            value = getattr(self, name, None)
            if value is not None:
                found += value if isinstance(value, tuple) else (value,)
        return tuple(found)

    @property
    def constants(self) -> dict[str, str]:
        """The constants that it names, by field."""
        names = ("weight", "bias", "reduce", "value", "scale", "shift", "index")
        fields = {name: getattr(self, name, None) for name in names}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """The fields that `Conv` and `QConv` have both; `Conv` says what they are."""

    x: int
    out: int
    weight: str
    bias: str
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    act: Activation = "none"
    mask: int | None = None
    add: int | None = None
    post: Activation = "none"
    after: int | None = None


@dataclass(frozen=True, kw_only=True)
class Conv(Convolution, Operation):
    """A convolution with all that follows it: out = post(keep * act(conv(x) + bias) + add).

    Also a linear layer: one over a map (C, H, W) that was flattened is a convolution whose kernel
    is (H, W), without padding. A depthwise convolution has groups = C.

    Channels that `mask` leaves out are not computed (keep = 0 there); `add`, if given, is added to
    all channels; of the result, channels that `after` leaves out become inactive and need not be
    computed either. Active: (`mask` or all, joined with those of `add`), without those that `after`
    leaves out. MACs: pairs of active input and computed output channel in the same group, times
    output positions, times kernel size, where the computed ones are those of `mask` and `after`.

    Args:
        x: Input map (C, H, W).
        out: Output map (K, H', W').
        weight: (K, C / groups, kh, kw) float32.
        bias: (K,) float32.
        stride: Of rows and columns.
        padding: Rows of zeros above, columns left, rows below, columns right.
        dilation: Of rows and columns.
        groups: Groups of channels.
        act: Activation of the convolution's result.
        mask: Mask (K,) of the filters to compute, or None.
        add: Map of the output's shape to add, or None.
        post: Activation after the sum, none of RENEWING; `none` without `add`.
        after: Mask (K,) of the channels of the result to keep, or None.
    """


@dataclass(frozen=True, kw_only=True)
class QConv(Convolution, Operation):
    """A convolution of a quantised map, with what follows it, as of `Conv`.

    The sum of the products of whole numbers is exact (int32). Then, for filter k:

        v = act(float32(sum) * scale[k] + bias[k]), 0 where `mask` leaves k out
        v = post(v + a), if `add` is given: a is its value, times its scale if it is quantised

    and the result is v, quantised if `out` is. Active and MACs: as of `Conv`.

    Args:
        x: Input map (C, H, W), quantised.
        out: Output map (K, H', W'), of any type.
        weight: (K, C / groups, kh, kw) int8, -127 to 127.
        bias: (K,) float32.
        scale: (K,) float32: the scale of x times that of the filter.
        stride: As of `Conv`.
        padding: As of `Conv`.
        dilation: As of `Conv`.
        groups: Groups of channels.
        act: One of EXACT.
        mask: Mask (K,) of the filters to compute, or None.
        add: Map of the output's shape to add, of any type, or None.
        post: One of EXACT; `none` without `add`.
        after: Mask (K,) of the channels of the result to keep, or None.
    """

    scale: str


@dataclass(frozen=True, kw_only=True)
class Quantize(Operation):
    """A float32 map as a quantised one. Active: as x. No MACs."""

    x: int
    out: int


@dataclass(frozen=True, kw_only=True)
class Dequantize(Operation):
    """A quantised map as a float32 one: float32(x) * scale. Active: as x. No MACs."""

    x: int
    out: int


@dataclass(frozen=True, kw_only=True)
class Predict(Operation):
    """A gate's predictor: mask = (logits > threshold), and always those of largest logit.

    A logit that is not a number (sums of finite weights may overflow) keeps its filter.

    `features` are vectors, read side by side: f of width sum of their lengths, zero where inactive.
    logits = weight @ g + bias, where g is f, or `reduce @ f` if a reduce is given. With
    `softmax`, f is replaced by softmax(f) first (over all channels, the inactive ones as zeros).
    MACs: active inputs (all of them with softmax) times rows of the first matrix, plus the size of
    the second if there is one.

    Args:
        features: Vectors, usually pools of the gated unit's input.
        mask: The mask to write.
        weight: (K, width) float32, or (K, rank) with `reduce`.
        bias: (K,) float32.
        threshold: Of the logits.
        softmax: Whether the features are turned into shares first.
        reduce: (rank, width) float32, or None.
    """

    features: tuple[int, ...]
    mask: int
    weight: str
    bias: str
    threshold: float = 0.0
    softmax: bool = False
    reduce: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fixed(Operation):
    """A mask that is the same for every sample: `value` names its (K,) constant of 0 and 1 (uint8).

    MACs: none.
    """

    mask: int
    value: str


@dataclass(frozen=True, kw_only=True)
class Pool(Operation):
    """A maximum or mean over windows. Active: as x. No MACs.

    Padding never wins a maximum; it counts as zeros in a mean if `include_padding`, otherwise the
    mean is over what lies inside. Windows may hang over the lower and right border (that is
    "ceil mode": the output map's shape decides how many there are); what hangs over the padding is
    never counted. With `adaptive`, window i of n over a length L is [floor(i L / n),
    ceil((i + 1) L / n)), and kernel, stride and padding are ignored: (1, 1) out is a global pool.

    A maximum of a quantised map is of the same type and scale. A global pool of one may also be
    float32: float32(maximum) * scale, or float32(exact sum) * (scale / count), both float32.
    """

    x: int
    out: int
    kind: Literal["max", "mean"]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    include_padding: bool = True
    adaptive: bool = False


@dataclass(frozen=True, kw_only=True)
class Affine(Operation):
    """Scale and shift each channel, then activate: act(scale * x + shift), a lone batch norm.

    Every channel is active. `scale` and `shift` name (C,) float32 constants. No MACs.
    """

    x: int
    out: int
    scale: str
    shift: str
    act: Activation = "none"


@dataclass(frozen=True, kw_only=True)
class Activate(Operation):
    """An activation alone. Active: as x; all channels for those in RENEWING. No MACs."""

    x: int
    out: int
    act: Activation


@dataclass(frozen=True, kw_only=True)
class Combine(Operation):
    """A sum or product of two maps, then an activation: act(a + b) or act(a * b).

    b has a's shape, or (C, 1, 1) and is spread over space. Active: either's channels for a sum,
    those of both for a product; all for an `act` in RENEWING. No MACs.

    All three maps may be quantised in a sum whose `act` is one of EXACT: each value is multiplied
    by its scale, and the result quantised.
    """

    a: int
    b: int
    out: int
    kind: Literal["add", "mul"]
    act: Activation = "none"


@dataclass(frozen=True, kw_only=True)
class Gather(Operation):
    """Channels of several maps in a new order: concatenation, split, shuffle. No MACs.

    Channel k of the result is channel `index[k]` of the maps `xs` laid one after the other; where
    `index[k]` is -1 it is zero, and inactive (a shortcut without parameters pads with such).
    `index` names a (K,) int32 constant. Active: what it takes. All maps have one type and scale.
    """

    xs: tuple[int, ...]
    out: int
    index: str


@dataclass(frozen=True, kw_only=True)
class Flatten(Operation):
    """A map (C, H, W) as a vector (C H W, 1, 1), of the same type and scale. Active: what was.

    No MACs.
    """

    x: int
    out: int


@dataclass(frozen=True, kw_only=True)
class Silence(Operation):
    """Apply a mask where no operation before could take it. Active: what x has and `mask` keeps.

    The result has x's type and scale.
    """

    x: int
    out: int
    mask: int


KINDS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in (
        Conv, QConv, Quantize, Dequantize, Predict, Fixed, Pool, Affine, Activate, Combine, Gather,
        Flatten, Silence,
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One mask of a program.

    Args:
        unit: The unit that it gates.
        channels: Its filters.
        prior: How many filters the unit had before lowering removed some for good; they count as
            not kept in the statistics.
    """

    unit: str
    channels: int
    prior: int


@dataclass(frozen=True)
class Program:
    """A network ready to run.

    Args:
        maps: Shape (C, H, W) of each map for one sample. Map 0 is the input.
        gates: The masks.
        operations: In execution order.
        output: The map that is the result.
        constants: Name -> array: float32, int32, uint8 or int8, C-contiguous.
        dense_macs: Executed MACs for one sample of the network that was lowered, without gates.
        classes: Names of the outputs, or empty.
        notes: What lowering did and chose, as JSON values.
        types: Type of each map; empty if all are f32. The input and the output always are.
        scales: Of each map, a float32 number above zero; 1 for f32. Empty if all are f32.
    """

    maps: tuple[tuple[int, int, int], ...]
    gates: tuple[Gate, ...]
    operations: tuple[Operation, ...]
    output: int
    constants: Mapping[str, np.ndarray]
    dense_macs: int
    classes: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    types: tuple[Type, ...] = ()
    scales: tuple[float, ...] = ()

    @property
    def quantised(self) -> bool:
        """Whether a map has eight bits."""
        return any(kind != "f32" for kind in self.types)

    def type_of(self, index: int) -> Type:
        """Return the type of a map."""
        return self.types[index] if self.types else "f32"

    def scale_of(self, index: int) -> np.float32:
        """Return the scale of a map; 1 if it is f32."""
        return np.float32(self.scales[index] if self.scales else 1.0)

    def described(
        self, classes: Sequence[str] | None = None, notes: Mapping[str, Any] | None = None
    ) -> Program:
        """The same with further notes, and with names for its outputs, if they are as many."""
        named = self.classes if classes is None else tuple(classes)
        if len(named) != self.maps[self.output][0]:
            named = ()
        return replace(self, classes=named, notes={**self.notes, **(notes or {})})
