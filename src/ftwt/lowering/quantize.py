"""From a float program to one of eight-bit maps and weights, by what some images show.

Ranges of maps are taken under the masks that the gates decide. Convolutions and linear layers get
eight-bit weights, one scale a filter, and read eight-bit maps: u8 where a map is never negative, s8
elsewhere. Pools, sums, gathers between them stay in eight bits. What has no eight-bit form, and
layers that would lose too much, stay float, with conversions between that are operations like
others. Predictors stay float; their weights are rounded to eight bits, a scale
a row, which a native engine reads in a quarter of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..files.tables import Shown
from ..runtime import Engine, Program
from ..runtime.limits import MAX_PRODUCTS
from ..runtime.program import (
    EXACT,
    RENEWING,
    Activate,
    Combine,
    Conv,
    Dequantize,
    Flatten,
    Gather,
    Operation,
    Pool,
    Predict,
    QConv,
    Quantize,
    Silence,
    Type,
)
from ..runtime.reference import convolve, quantise
from .fuse import renumbered
from .ranges import RULES, Fit, Rule, Seen

CALIBRATE = 256  # images that ranges are taken from, where nobody says how many
LEAST_DB = 12.0  # signal to noise below which a layer stays float


@dataclass(frozen=True)
class QuantizedLayer:
    """What eight bits do to a convolution or linear layer.

    Args:
        name: The layer.
        precision: `int8`, or `f32` where it stayed float.
        snr_db: Signal to noise of its sums, eight bits against float on the same input, in dB; None
            where it has no eight-bit form.
        why: Why it stayed float.
    """

    name: str
    precision: str
    snr_db: float | None
    why: str = ""


@dataclass(frozen=True)
class QuantizedLayers(Shown):
    """What became of each convolution and linear layer. It prints as a table.

    Args:
        rule: How ranges of maps were chosen.
        images: Images that they were chosen by.
        layers: In the order of execution.
    """

    rule: str
    images: int
    layers: tuple[QuantizedLayer, ...]

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> QuantizedLayers:
        """Read them from the notes of a program."""
        layers = tuple(QuantizedLayer(**layer) for layer in notes["layers"])
        return cls(notes["rule"], notes["images"], layers)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        count = sum(layer.precision == "int8" for layer in self.layers)
        title = f"{count} of {len(self.layers)} layers in eight bits, ranges by {self.rule}"
        table = Table("layer", "precision", title=f"{title} of {self.images} images")
        table.add_column("signal to noise", justify="right")
        table.add_column("")
        for layer in self.layers:
            snr = "" if layer.snr_db is None else f"{layer.snr_db:.1f} dB"
            table.add_row(layer.name, layer.precision, snr, layer.why)
        yield table


def quantized_layers(engine: Engine) -> QuantizedLayers:
    """Tell what eight bits did to each layer of an engine.

    Args:
        engine: From `ftwt.compile(..., precision="int8")`, or loaded from its file.

    Returns:
        A frozen result that prints as a table.

    Raises:
        ValueError: The engine is not of eight bits.
    """
    notes = engine.program.notes.get("quantization")
    if notes is None:
        raise ValueError("the engine is float32; compile it with precision='int8'")
    return QuantizedLayers.from_notes(notes)


def quantize(
    program: Program, batches: Iterable[np.ndarray], *, rule: Rule = "minmax"
) -> tuple[Program, tuple[QuantizedLayer, ...]]:
    """Quantise a float program.

    Args:
        program: That passes `check`, all maps f32.
        batches: Images (B, C, H, W) float32; a few hundred in all.
        rule: How a map's range is chosen: its largest value, the 99.99th percentile, or the range
            of least squared error.

    Returns:
        The program with eight-bit maps, and what became of each convolution and linear layer.

    Raises:
        ValueError: There is no image, one has another shape or is not finite, or no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: use one of {', '.join(RULES)}")
    seen = Seen(program, sampled=rule != "minmax")
    for batch in batches:
        seen.add(np.ascontiguousarray(batch, np.float32))
    if not seen.images:
        raise ValueError("calibrate holds no images; give some hundred, without labels")
    fit = Fit(program, seen, rule)
    made = _Layers(program, seen, fit)
    found = {op.out: made.layer(op) for op in program.operations if isinstance(op, Conv)}
    layers = tuple(found.values())
    integer = {out for out, layer in found.items() if layer.precision == "int8"}
    built = _Rewrite(program, fit, made.made, integer).program()
    told = [asdict(layer) for layer in layers]
    notes = dict(program.notes) | {"quantization": {"rule": rule, "images": seen.images,
                                                    "layers": told}}  # fmt: skip
    return replace(built, notes=notes), layers


class _Layers:
    """Eight-bit weights, scales and biases of layers."""

    def __init__(self, program: Program, seen: Seen, fit: Fit) -> None:
        self.program, self.seen, self.fit = program, seen, fit
        self.made: dict[int, dict[str, np.ndarray]] = {}  # by the map that a layer writes

    def layer(self, op: Conv) -> QuantizedLayer:
        """Quantise a layer's weights, and say what it loses."""
        why = _no_form(self.program, op)
        if why:
            return QuantizedLayer(op.name, "f32", None, why)
        constants = self.program.constants
        weight, bias = constants[op.weight], constants[op.bias]
        largest = np.abs(weight).max((1, 2, 3))
        own = (np.where(largest > 0, largest, 1) / np.float32(127)).astype(np.float32)
        integers = np.clip(np.rint(weight / own[:, None, None, None]), -127, 127).astype(np.int8)
        scale = (np.float32(self.fit.scales[op.x]) * own).astype(np.float32)
        rounded = integers * own[:, None, None, None].astype(np.float64)
        # the mean of what rounding the weights does to the sums
        lost = (weight - rounded).sum((2, 3)).reshape(op.groups, -1, weight.shape[1])
        mean = self.seen.mean(op.x).reshape(op.groups, 1, -1)
        moved = bias + (lost * mean).sum(2).reshape(-1)
        self.made[op.out] = {
            "weight": integers,
            "scale": scale,
            "bias": moved.astype(np.float32),
        }
        snr = self._snr(op, weight, bias)
        if snr < LEAST_DB:
            return QuantizedLayer(op.name, "f32", snr, f"signal to noise below {LEAST_DB:g} dB")
        return QuantizedLayer(op.name, "int8", snr)

    def _snr(self, op: Conv, weight: np.ndarray, bias: np.ndarray) -> float:
        x, active = self.seen.some[op.x], self.seen.some[op.out].active
        made, size = self.made[op.out], self.program.maps[op.out][1:]
        q = quantise(x.value, self.fit.types[op.x], np.float32(self.fit.scales[op.x]))
        wanted = convolve(x.value, weight, op, size) + bias[:, None, None]
        found = convolve(q.astype(np.float32), made["weight"].astype(np.float32), op, size)
        found = found * made["scale"][:, None, None] + made["bias"][:, None, None]
        signal = float(np.square(wanted[active], dtype=np.float64).sum())
        noise = float(np.square((wanted - found)[active], dtype=np.float64).sum())
        if not signal or not noise:
            return 99.0
        return min(99.0, 10 * math.log10(signal / noise))


def _no_form(program: Program, op: Conv) -> str:
    """Why a convolution has no eight-bit form; empty if it has one."""
    if math.prod(program.constants[op.weight].shape[1:]) > MAX_PRODUCTS:
        return "too many inputs for sums of 32 bits"
    if op.post not in EXACT:
        return f"{op.post} after a sum"
    if op.act not in EXACT and (
        op.add is not None or (op.act in RENEWING and (op.mask is not None or op.after is not None))
    ):
        return f"{op.act} before a sum or a mask"
    return ""


def rounded(matrix: np.ndarray) -> np.ndarray:
    """Round a predictor's rows to whole numbers, 127 at most, of a scale of their own.

    Scales have sixteen bits, so that 127 of them are exact in float32, and engines find them.

    Args:
        matrix: (rows, columns) float32.

    Returns:
        The same shape, float32; the matrix as it is, where a row is too small for that.
    """
    most = np.abs(matrix).max(1, initial=0)
    fraction, exponent = np.frexp(most / np.float32(127))
    scale = np.ldexp(np.ceil(fraction * 2**16) / 2**16, exponent)  # 127 of them reach the largest
    if not np.all((scale > 2.0**-100) & (scale < 2.0**100) | (most == 0)):
        return matrix
    scale = np.where(most > 0, scale, 1)[:, None]
    whole = np.rint(matrix / scale)
    return np.asarray(whole * scale, np.float32)


class _Rewrite:
    """The walk that writes the program anew: each map as floats, as integers, or both."""

    def __init__(
        self,
        program: Program,
        fit: Fit,
        made: Mapping[int, Mapping[str, np.ndarray]],
        integer: set[int],
    ) -> None:
        self.old, self.fit, self.made = program, fit, made
        self.integer_layers = integer  # by the map that a layer writes
        self.wanted = self._wanted()
        self.maps: list[tuple[int, int, int]] = [program.maps[0]]
        self.types: list[Type] = ["f32"]
        self.scales = [1.0]
        self.operations: list[Operation] = []
        self.constants: dict[str, np.ndarray] = {}
        self.floats: dict[int, int] = {0: 0}  # old map -> new
        self.integers: dict[int, int] = {}

    def _wanted(self) -> set[int]:
        """Maps that something reads as integers."""
        wanted: set[int] = set()
        for op in reversed(self.old.operations):
            if isinstance(op, Conv):
                if op.out in self.integer_layers:
                    wanted |= set(op.reads)
            elif isinstance(op, Combine):
                if _summed(op) and op.out in wanted:
                    wanted |= set(op.reads)
            elif isinstance(op, Pool):
                if op.kind == "max" and op.out in wanted:
                    wanted.add(op.x)
            elif isinstance(op, Gather | Flatten | Silence) and op.out in wanted:
                wanted |= set(op.reads)
        return wanted

    def program(self) -> Program:
        for op in self.old.operations:
            self._write(op)
        output = self.as_float(self.old.output)
        return replace(
            self.old,
            maps=tuple(self.maps),
            operations=tuple(self.operations),
            output=output,
            constants=self.constants,
            types=tuple(self.types),
            scales=tuple(self.scales),
        )

    def _new(self, old: int, kind: Type) -> int:
        self.maps.append(self.old.maps[old])
        self.types.append(kind)
        self.scales.append(1.0 if kind == "f32" else self.fit.scales[old])
        where = self.floats if kind == "f32" else self.integers
        where[old] = len(self.maps) - 1
        return where[old]

    def as_float(self, old: int) -> int:
        if old not in self.floats:
            x = self.integers[old]
            new = self._new(old, "f32")
            self.operations.append(Dequantize(name=f"floats of map {old}", x=x, out=new))
        return self.floats[old]

    def as_integer(self, old: int) -> int:
        if old not in self.integers:
            x = self.floats[old]
            new = self._new(old, self.fit.types[old])
            self.operations.append(Quantize(name=f"integers of map {old}", x=x, out=new))
        return self.integers[old]

    def _write(self, op: Operation) -> None:
        if isinstance(op, Conv) and op.out in self.integer_layers:
            self._layer(op)
            return
        integer = getattr(op, "out", None) in self.wanted and (
            _summed(op)
            or isinstance(op, Gather | Flatten | Silence)
            or (isinstance(op, Pool) and op.kind == "max")
        )
        if isinstance(op, Pool) and not integer and op.x in self.integers and self._whole(op):
            self._emit(op, {op.x: self.integers[op.x]}, "f32")
            return
        read = self.as_integer if integer else self.as_float
        out = getattr(op, "out", None)
        kind: Type = "f32" if out is None or not integer else self.fit.types[out]
        self._emit(op, {index: read(index) for index in op.reads}, kind)

    def _whole(self, op: Pool) -> bool:
        return op.adaptive and self.old.maps[op.out][1:] == (1, 1)

    def _emit(self, op: Operation, read: dict[int, int], kind: Type) -> None:
        """Write an operation with its maps' new numbers."""
        if (out := getattr(op, "out", None)) is not None:
            read[out] = self._new(out, kind)
        for field, name in op.constants.items():
            value = self.old.constants[name]
            matrix = isinstance(op, Predict) and field in ("weight", "reduce")
            self.constants[name] = rounded(value) if matrix else value
        self.operations.append(renumbered(op, read))

    def _layer(self, op: Conv) -> None:
        read = {op.x: self.as_integer(op.x)}
        if op.add is not None:
            read[op.add] = self.integers.get(op.add, self.floats.get(op.add, -1))
        late = op.act if op.act not in EXACT else None
        kind: Type = self.fit.types[op.out] if op.out in self.wanted and late is None else "f32"
        names = {field: f"{op.name}.{field}.int8" for field in ("weight", "scale", "bias")}
        number = len(self.operations)
        while any(name in self.constants for name in names.values()):
            names = {field: f"{name}.{number}" for field, name in names.items()}
        self.constants |= {names[field]: value for field, value in self.made[op.out].items()}
        fields = (
            vars(op)
            | names
            | {
                "x": read[op.x],
                "add": None if op.add is None else read[op.add],
                "out": self._new(op.out, kind),
                "act": "none" if late else op.act,
            }
        )
        self.operations.append(QConv(**fields))
        if late:
            x = self.floats[op.out]
            act = Activate(name=op.name, x=x, out=self._new(op.out, "f32"), act=late)
            self.operations.append(act)


def _summed(op: Operation) -> bool:
    """Whether an operation is a sum that eight-bit maps can have."""
    return isinstance(op, Combine) and op.kind == "add" and op.act in EXACT
