"""Programs in plain numpy: each operation's docstring as code, slow and obviously right.

Everything is computed for all channels; then what is inactive is set to zero. So this engine
answers what a network gives and what it must do (MACs), never how fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .constants import read_constants
from .program import (
    RANGES,
    RENEWING,
    Activate,
    Affine,
    Combine,
    Convolution,
    Dequantize,
    Fixed,
    Flatten,
    Gather,
    Operation,
    Pool,
    Predict,
    Program,
    QConv,
    Quantize,
    Silence,
)

Array = np.ndarray
DTYPES = {"f32": np.float32, "u8": np.uint8, "s8": np.int8}
Plain = Pool | Affine | Activate | Combine | Gather | Flatten | Silence | Quantize | Dequantize


class Map(NamedTuple):
    """A map of a batch: values (B, C, H, W) of its type and activity (B, C) bool."""

    value: Array
    active: Array


class Network:
    """Runs a checked program; the native engine's class of this name has the same `run`.

    Args:
        program: That passed `check`.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._constants: dict[str, Array] = {}
        for op in program.operations:
            self._constants |= read_constants(program, op, self._constants)

    def run(self, x: Array, masks: Mapping[int, Array]) -> tuple[Array, Array, Array]:
        """Run a batch.

        Args:
            x: (B, C, H, W) float32.
            masks: Index of a mask -> (B, K) uint8 of 0 and 1 that takes the place of what its gate
                decides.

        Returns:
            The output (B, C', H', W') float32, the masks that were applied side by side (B, sum of
            K) uint8, and the MACs (B, operations) int64.

        Raises:
            ValueError: An image holds a value that is not finite.
        """
        finite = np.isfinite(x).all((1, 2, 3))
        if not finite.all():
            raise ValueError(f"image {finite.argmin()} holds a value that is not finite")
        batch = _Batch(self._program, self._constants, x, masks)
        with np.errstate(all="ignore"):  # weights may be such that values overflow
            macs = [batch.run(op) for op in self._program.operations]
        decided = [batch.masks[i] for i in range(len(self._program.gates))]
        side_by_side = np.concatenate([np.empty((len(x), 0), bool), *decided], axis=1)
        counts = np.stack(np.broadcast_arrays(np.zeros(len(x), np.int64), *macs)[1:], axis=1)
        return batch.maps[self._program.output].value, side_by_side.astype(np.uint8), counts

    def maps(self, x: Array, masks: Mapping[int, Array]) -> dict[int, Map]:
        """Run a batch and return all maps, by number.

        Args:
            x: As of `run`, and so are the masks.
            masks: Index of a mask -> (B, K) uint8 of 0 and 1.
        """
        batch = _Batch(self._program, self._constants, x, masks)
        batch.last.clear()
        with np.errstate(all="ignore"):
            for op in self._program.operations:
                batch.run(op)
        return batch.maps


class _Batch:
    """All values of a batch while the program runs."""

    def __init__(
        self,
        program: Program,
        constants: Mapping[str, Array],
        x: Array,
        masks: Mapping[int, Array],
    ) -> None:
        self.program, self.shapes, self.constants = program, program.maps, constants
        self.given = {index: mask.astype(bool) for index, mask in masks.items()}
        self.samples = len(x)
        self.maps = {0: Map(x, np.ones(x.shape[:2], bool))}
        self.masks: dict[int, Array] = {}
        self.last = {index: op for op in program.operations for index in op.reads}
        self.last.pop(program.output, None)

    def run(self, op: Operation) -> Array | int:
        """Write what the operation writes; return its MACs, (B,)."""
        macs: Array | int = 0
        if isinstance(op, Predict):
            decided, macs = self.predict(op)
            self.masks[op.mask] = self.given.get(op.mask, decided)
        elif isinstance(op, Fixed):
            fixed = np.tile(self.constants[op.value].astype(bool), (self.samples, 1))
            self.masks[op.mask] = self.given.get(op.mask, fixed)
        elif isinstance(op, Convolution):
            result, macs = self.conv(op)
            self.write(op.out, result)
        else:
            assert isinstance(op, Plain)
            self.write(op.out, self.plain(op))
        for index in set(op.reads):
            if self.last.get(index) is op:
                del self.maps[index]
        return macs

    def write(self, index: int, result: Map) -> None:
        """Keep a map, with zeros where it is inactive; reals are quantised if it is so."""
        value, kind = result.value, self.program.type_of(index)
        if kind != "f32" and value.dtype == np.float32:
            value = quantise(value, kind, self.program.scale_of(index))
        value = np.where(result.active[:, :, None, None], value, value.dtype.type(0))
        assert value.shape[1:] == self.shapes[index] and value.dtype == DTYPES[kind]
        self.maps[index] = Map(value, result.active)

    def real(self, index: int) -> Array:
        """The values of a map as float32."""
        value = self.maps[index].value
        if value.dtype == np.float32:
            return value
        return value.astype(np.float32) * self.program.scale_of(index)

    def plain(self, op: Plain) -> Map:
        """What an operation without MACs makes."""
        if isinstance(op, Combine):
            a, b = self.maps[op.a], self.maps[op.b]
            if op.kind == "add":
                value, active = self.real(op.a) + self.real(op.b), a.active | b.active
            else:
                value, active = a.value * b.value, a.active & b.active
            return Map(ACTIVATE[op.act](value), active | (op.act in RENEWING))
        if isinstance(op, Gather):
            index = self.constants[op.index]
            value = np.concatenate([self.maps[x].value for x in op.xs], axis=1)[:, index]
            active = np.concatenate([self.maps[x].active for x in op.xs], axis=1)[:, index]
            return Map(value, active & (index >= 0))
        value, active = self.maps[op.x]
        match op:
            case Quantize() | Dequantize():
                return Map(self.real(op.x), active)
            case Pool() if self.program.type_of(op.x) != self.program.type_of(op.out):
                return Map(self.global_pool(op), active)
            case Pool():
                return Map(pool(value, op, self.shapes[op.out]), active)
            case Affine():
                scale, shift = (self.constants[n][:, None, None] for n in (op.scale, op.shift))
                return Map(ACTIVATE[op.act](scale * value + shift), np.ones_like(active))
            case Activate():
                return Map(ACTIVATE[op.act](value), active | (op.act in RENEWING))
            case Flatten():
                pixels = math.prod(value.shape[2:])
                flat = value.reshape(self.samples, -1, 1, 1)
                return Map(flat, np.repeat(active, pixels, axis=1))
            case Silence():
                return Map(value, active & self.masks[op.mask])

    def global_pool(self, op: Pool) -> Array:
        """What a quantised map becomes that is pooled into reals."""
        value, scale = self.maps[op.x].value, self.program.scale_of(op.x)
        if op.kind == "max":
            return value.max((2, 3), keepdims=True).astype(np.float32) * scale
        sums = value.sum((2, 3), np.int64, keepdims=True)
        return sums.astype(np.float32) * (scale / np.float32(math.prod(value.shape[2:])))

    def conv(self, op: Convolution) -> tuple[Map, Array]:
        x, x_active = self.maps[op.x]
        weight = self.constants[op.weight]
        _, rows, columns = self.shapes[op.out]
        if isinstance(op, QConv):
            # whole numbers below 2^31, which doubles hold exactly
            sums = convolve(x.astype(float), weight.astype(float), op, (rows, columns))
            value = sums.astype(np.float32) * self.constants[op.scale][:, None, None]
        else:
            value = convolve(x, weight, op, (rows, columns))
        value = ACTIVATE[op.act](value + self.constants[op.bias][:, None, None])
        everything = np.ones((self.samples, len(weight)), bool)
        mask = everything if op.mask is None else self.masks[op.mask]
        after = everything if op.after is None else self.masks[op.after]
        value = np.where(mask[:, :, None, None], value, np.float32(0))
        active = mask
        if op.add is not None:
            value = ACTIVATE[op.post](value + self.real(op.add))
            active = mask | self.maps[op.add].active
        inputs = x_active.reshape(self.samples, op.groups, -1).sum(2)
        computed = (mask & after).reshape(self.samples, op.groups, -1).sum(2)
        macs = (inputs * computed).sum(1) * math.prod(weight.shape[2:]) * rows * columns
        return Map(value, active & after), macs

    def predict(self, op: Predict) -> tuple[Array, Array | int]:
        features = np.concatenate([self.maps[x].value[:, :, 0, 0] for x in op.features], axis=1)
        active = np.concatenate([self.maps[x].active for x in op.features], axis=1)
        read: Array | int = active.sum(1)
        if op.softmax:
            shares = np.exp(features - features.max(1, keepdims=True))
            features = shares / shares.sum(1, keepdims=True)
            read = features.shape[1]
        weight = self.constants[op.weight]
        if op.reduce is None:
            macs = read * len(weight)
        else:
            reduce = self.constants[op.reduce]
            features = features @ reduce.T
            macs = read * len(reduce) + weight.size
        logits = features @ weight.T + self.constants[op.bias]
        mask = ~(logits <= np.float32(op.threshold))
        mask |= logits == logits.max(1, keepdims=True)
        return mask, macs


def quantise(value: Array, kind: str, scale: np.float32) -> Array:
    """Reals (float32) as whole numbers of eight bits, u8 or s8, as `program` says."""
    whole = np.rint(value * (np.float32(1) / scale))
    return np.where(np.isnan(whole), 0, np.clip(whole, *RANGES[kind])).astype(DTYPES[kind])


def convolve(x: Array, weight: Array, op: Convolution, size: tuple[int, int]) -> Array:
    """The bare convolution: for each position in the kernel, one product of matrices."""
    top, left, bottom, right = op.padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    batch, groups, filters = len(x), op.groups, len(weight)
    by_group = weight.reshape(groups, filters // groups, *weight.shape[1:])
    total = np.zeros((batch, groups, filters // groups, math.prod(size)), x.dtype)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            rows = i * op.dilation[0] + op.stride[0] * np.arange(size[0])
            columns = j * op.dilation[1] + op.stride[1] * np.arange(size[1])
            seen = x[:, :, rows[:, None], columns].reshape(batch, groups, -1, math.prod(size))
            total += by_group[:, :, :, i, j] @ seen
    return total.reshape(batch, filters, *size)


def pool(x: Array, op: Pool, shape: tuple[int, int, int]) -> Array:
    """Maximum or mean over windows: first along the rows of each, then along the columns."""
    windows = [_windows(op, axis, x.shape[2 + axis], shape[1 + axis]) for axis in (0, 1)]
    reduce = np.max if op.kind == "max" else np.sum
    x = np.stack([reduce(x[:, :, start:end], axis=2) for start, end, _ in windows[0]], axis=2)
    x = np.stack([reduce(x[..., start:end], axis=3) for start, end, _ in windows[1]], axis=3)
    if op.kind == "max":
        return x
    rows, columns = ([count for _, _, count in line] for line in windows)
    return x / np.outer(rows, columns).astype(np.float32)


def _windows(op: Pool, axis: int, length: int, count: int) -> list[tuple[int, int, int]]:
    """Start and end of each window inside the map, and by how much a mean divides."""
    if op.adaptive:
        spans = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        return [(start, end, end - start) for start, end in spans]
    windows = []
    for i in range(count):
        start = i * op.stride[axis] - op.padding[axis]
        end = min(start + op.kernel[axis], length + op.padding[axis])  # what hangs over is no part
        inside = (max(start, 0), min(end, length))
        size = end - start if op.include_padding else inside[1] - inside[0]
        windows.append((*inside, size))
    return windows


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _hardsigmoid(x: Array) -> Array:
    return np.clip(x + 3, 0, 6) * (np.float32(1) / np.float32(6))  # as EXACT says


def _gelu(x: Array) -> Array:
    erfc = np.vectorize(math.erfc, otypes=[np.float32])
    return x * (erfc(-x / np.float32(math.sqrt(2))) / 2)


ACTIVATE: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": lambda x: x * _sigmoid(x),
    "hardswish": lambda x: x * _hardsigmoid(x),
    "sigmoid": _sigmoid,
    "hardsigmoid": _hardsigmoid,
    "leaky_relu": lambda x: np.where(x < 0, x * np.float32(0.01), x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "gelu": _gelu,
    "tanh": np.tanh,
}
