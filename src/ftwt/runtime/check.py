"""Whether a program can run: everything is checked before anything is computed.

A file may come from a stranger, and the native engine trusts what passed here. So every index,
shape and value is looked at, and everything that costs memory or time is bounded: what an engine
keeps beside the weights, what lives at once in a run, and the work of a sample. No count comes near
2^63, none of a map or constant near 2^31.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, NoReturn

import numpy as np

from .constants import spec_of
from .fields import check_fields, check_name, refuse
from .limits import (
    MAX_CHANNELS,
    MAX_CONSTANT,
    MAX_COUNT,
    MAX_LIVE,
    MAX_MACS,
    MAX_MAP,
    MAX_MAPS,
    MAX_PLAN,
    MAX_POOLED,
    MAX_PRODUCTS,
    MAX_READS,
    MAX_ROW,
    MAX_SIZE,
    MAX_STAGED,
    MAX_STEP,
    MAX_TAPS,
    most_alive,
    planned,
    read_by_row,
    staged,
)
from .program import (
    KINDS,
    RENEWING,
    Activate,
    Affine,
    Combine,
    Convolution,
    Dequantize,
    Fixed,
    Flatten,
    Gate,
    Gather,
    Operation,
    Pool,
    Predict,
    Program,
    QConv,
    Quantize,
    Silence,
)
from .types import check_maps, check_types

Shape = tuple[int, int, int]


def check(program: Program) -> None:
    """Make sure that a program can run.

    Args:
        program: Of any origin.

    Raises:
        ValueError: Something is out of range, of the wrong type, inconsistent, used before it is
            written or written twice; the message names operation, field, value and what is allowed.
    """
    check_fields(program, "program")
    for label in program.classes:
        check_name(label, "program", "classes")
    _check_sizes(program)
    check_maps(program)
    _check_gates(program.gates)
    channels = sum(c for c, _, _ in program.maps) + sum(gate.channels for gate in program.gates)
    if channels > MAX_CHANNELS:
        refuse("program", "channels of all maps and gates", channels, f"at most {MAX_CHANNELS}")
    checker = _Checker(program)
    for operation in program.operations:
        checker.check(operation)
    checker.finish()


class _Checker:
    """The walk over the operations: what is written so far, and the work up to here."""

    def __init__(self, program: Program) -> None:
        self.program, self.maps, self.gates = program, program.maps, program.gates
        self.maps_written, self.masks_written = {0}, set[int]()
        self.macs = self.reads = self.planned = self.pooled = 0
        self.operation: Operation | None = None

    def refuse(self, field: str, value: Any, allowed: str) -> NoReturn:
        refuse(f"{type(self.operation).__name__} {_name(self.operation)}", field, value, allowed)

    def expect(self, field: str, value: Any, wanted: Any, why: str) -> None:
        if value != wanted:
            self.refuse(field, value, f"{wanted}, {why}")

    def check(self, operation: Operation) -> None:
        self.operation = operation
        if type(operation) is not KINDS.get(type(operation).__name__):
            self.refuse("operation", type(operation).__name__, f"one of {', '.join(KINDS)}")
        check_fields(operation, f"{type(operation).__name__} {_name(operation)}")
        check_name(operation.name, type(operation).__name__, "name")
        self.reads += len(operation.reads)
        if self.reads > MAX_READS:
            self.refuse("maps read", self.reads, f"at most {MAX_READS}, all operations together")
        for index in operation.reads:
            self.read(index)
        match operation:
            case Convolution():
                self.conv(operation)
            case Predict():
                self.predict(operation)
            case Fixed():
                self.fixed(operation)
            case Pool():
                self.pool(operation)
            case Affine(x=x, out=out):
                channels = self.same(x, out)[0]
                self.constant("scale", np.float32, (channels,))
                self.constant("shift", np.float32, (channels,))
            case Activate(x=x, out=out) | Quantize(x=x, out=out) | Dequantize(x=x, out=out):
                self.same(x, out)
            case Combine(a=a, b=b, out=out):
                c, h, w = self.same(a, out)
                if self.maps[b] not in ((c, h, w), (c, 1, 1)):
                    self.refuse("b", b, f"a map {(c, h, w)} or {(c, 1, 1)}, not {self.maps[b]}")
            case Gather():
                self.gather(operation)
            case Flatten(x=x, out=out):
                self.shape("out", self.write(out), (math.prod(self.maps[x]), 1, 1))
            case Silence(x=x, out=out, mask=mask):
                self.mask("mask", mask, self.same(x, out)[0])
        check_types(self.program, operation, self.refuse)

    def finish(self) -> None:
        program = self.program
        if program.output not in self.maps_written - {0}:
            refuse("program", "output", program.output, "a map that an operation writes")
        for index in range(len(self.maps)):
            if index not in self.maps_written:
                refuse("program", "maps", index, "written by an operation; leave out the others")
        for mask, gate in enumerate(self.gates):
            if mask not in self.masks_written:
                refuse("program", "gates", gate.unit, "written by a Predict or Fixed operation")
        if self.macs > MAX_MACS:
            refuse("program", "MACs", self.macs, f"at most {MAX_MACS}")
        if (live := most_alive(program)) > MAX_LIVE:
            refuse("program", "elements of maps needed at once", live, f"at most {MAX_LIVE}")
        if program.classes and len(program.classes) != self.maps[program.output][0]:
            channels = self.maps[program.output][0]
            refuse("program", "classes", len(program.classes), f"none or {channels} names")

    def read(self, index: int) -> None:
        if index not in self.maps_written:
            self.refuse("maps read", index, "a map that an earlier operation writes, or 0")

    def write(self, index: int) -> Shape:
        if not 0 < index < len(self.maps):
            self.refuse("out", index, f"1 to {len(self.maps) - 1}")
        if index in self.maps_written:
            self.refuse("out", index, "a map that no operation wrote before")
        self.maps_written.add(index)
        return self.maps[index]

    def write_mask(self, index: int) -> int:
        if not 0 <= index < len(self.gates):
            self.refuse("mask", index, f"0 to {len(self.gates) - 1}")
        if index in self.masks_written:
            self.refuse("mask", index, "a mask that no operation wrote before")
        self.masks_written.add(index)
        return self.gates[index].channels

    def mask(self, field: str, index: int | None, channels: int) -> None:
        if index is None:
            return
        if index not in self.masks_written:
            self.refuse(field, index, "a mask that an earlier operation writes")
        if self.gates[index].channels != channels:
            have = self.gates[index].channels
            self.refuse(field, index, f"a mask of {channels} channels, this one has {have}")

    def shape(self, field: str, shape: Shape, wanted: Shape) -> None:
        self.expect(f"shape of {field}", shape, wanted, "by the maps it reads and its fields")

    def same(self, x: int, out: int) -> Shape:
        shape = self.write(out)
        self.shape("out", shape, self.maps[x])
        return shape

    def numbers(self, field: str, values: tuple[int, ...], least: int, most: int) -> None:
        if not all(least <= value <= most for value in values):
            self.refuse(field, values, f"from {least} to {most}")

    def constant(self, field: str, dtype: type, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        name = getattr(self.operation, field)
        found, have = spec_of(self.program.constants, name, self.refuse, field)
        if found != np.dtype(dtype):
            self.refuse(field, name, f"a constant of {np.dtype(dtype)}, this one is {found}")
        if not all(have) or math.prod(have) > MAX_CONSTANT:
            self.refuse(field, name, f"of 1 to {MAX_CONSTANT} elements, this one is {have}")
        if shape is not None and have != shape:
            self.refuse(field, name, f"a constant of shape {shape}, this one is {have}")
        return have

    def conv(self, op: Convolution) -> None:
        c, h, w = self.maps[op.x]
        k, *size = self.write(op.out)
        self.numbers("stride", op.stride, 1, MAX_STEP)
        self.numbers("padding", op.padding, 0, MAX_STEP)
        self.numbers("dilation", op.dilation, 1, MAX_STEP)
        if not 1 <= op.groups <= min(c, k) or c % op.groups or k % op.groups:
            self.refuse("groups", op.groups, f"a divisor of {c} inputs and of {k} outputs")
        quantised = isinstance(op, QConv)
        weight = self.constant("weight", np.int8 if quantised else np.float32, None)
        if len(weight) != 4 or weight[:2] != (k, c // op.groups):
            shape = f"({k}, {c // op.groups}, kh, kw)"
            self.refuse("weight", op.weight, f"a constant of shape {shape}, this one is {weight}")
        if math.prod(weight[2:]) > MAX_TAPS:
            self.refuse("weight", op.weight, f"a kernel of at most {MAX_TAPS}, not {weight[2:]}")
        self.constant("bias", np.float32, (k,))
        if quantised:
            self.constant("scale", np.float32, (k,))
            if (products := math.prod(weight[1:])) > MAX_PRODUCTS:
                allowed = f"at most {MAX_PRODUCTS}, so that a sum fits 32 bits"
                self.refuse("products in a sum", products, allowed)
        top, left, bottom, right = op.padding
        padded = (h + top + bottom, w + left + right)
        if c * math.prod(padded) > MAX_MAP:
            self.refuse("padding", op.padding, f"such that the input has at most {MAX_MAP} numbers")
        for axis in (0, 1):
            room = padded[axis] - op.dilation[axis] * (weight[2 + axis] - 1) - 1
            if room < 0:
                self.refuse("weight", op.weight, f"no larger than its padded input {padded}")
            wanted = room // op.stride[axis] + 1
            self.expect(f"shape of out, axis {axis + 1}", size[axis], wanted, "by its window")
        self.mask("mask", op.mask, k)
        self.mask("after", op.after, k)
        if op.add is not None:
            self.shape("add", self.maps[op.add], self.maps[op.out])
        if op.post in RENEWING or (op.add is None and op.post != "none"):
            self.refuse("post", op.post, f"none of {RENEWING}; 'none' without add")
        self.macs += math.prod(weight) * math.prod(size)
        taps = math.prod(weight[2:])
        self.planned += planned(taps, (size[0], size[1]))
        if self.planned > MAX_PLAN:
            self.refuse("taps and vectors", self.planned, f"at most {MAX_PLAN}, with those before")
        if taps > 1 and (count := staged(op, c, padded, taps)) > MAX_STAGED:
            self.refuse("input, laid out", count, f"of at most {MAX_STAGED} numbers")

    def predict(self, op: Predict) -> None:
        channels = self.write_mask(op.mask)
        if not op.features:
            self.refuse("features", op.features, "at least one vector")
        for index in op.features:
            if self.maps[index][1:] != (1, 1):
                self.refuse("features", index, f"a vector (C, 1, 1), this is {self.maps[index]}")
        width = sum(self.maps[index][0] for index in op.features)
        if op.reduce is not None:
            first = self.constant("reduce", np.float32, None)
            if len(first) != 2 or first[1] != width:
                self.refuse("reduce", op.reduce, f"of shape (rank, {width}), this one is {first}")
            self.macs += math.prod(first)
            width = first[0]
        self.constant("weight", np.float32, (channels, width))
        self.constant("bias", np.float32, (channels,))
        self.macs += channels * width
        if not abs(op.threshold) <= float(np.finfo(np.float32).max):
            self.refuse("threshold", op.threshold, "a finite float32")

    def fixed(self, op: Fixed) -> None:
        self.constant("value", np.uint8, (self.write_mask(op.mask),))
        value = self.program.constants[op.value]
        if value.max() > 1:
            self.refuse("value", int(value.max()), "0 or 1 for each channel")

    def pool(self, op: Pool) -> None:
        self.numbers("kernel", op.kernel, 1, MAX_SIZE)
        if math.prod(op.kernel) > MAX_MAP:
            self.refuse("kernel", op.kernel, f"of at most {MAX_MAP} numbers")
        self.numbers("stride", op.stride, 1, MAX_SIZE)
        self.numbers("padding", op.padding, 0, MAX_SIZE)
        (c, *size), (k, *given) = self.maps[op.x], self.write(op.out)
        self.expect("channels of out", k, c, "as those of x")
        inside, out = (size[0], size[1]), (given[0], given[1])
        longest = (-(-size[0] // out[0]) + 1, -(-size[1] // out[1]) + 1)
        row = read_by_row(inside, out, longest if op.adaptive else op.kernel)
        if row > MAX_ROW:
            self.refuse("elements that a row of windows reads", row, f"at most {MAX_ROW}")
        self.pooled += c * out[0] * row
        if self.pooled > MAX_POOLED:
            allowed = f"at most {MAX_POOLED}, with those of pools before"
            self.refuse("elements that windows read", self.pooled, allowed)
        if op.adaptive:
            return
        for axis in (0, 1):
            kernel, stride, padding = op.kernel[axis], op.stride[axis], op.padding[axis]
            if padding >= kernel:
                self.refuse("padding", op.padding, f"less than the kernel {op.kernel}")
            room = size[axis] + 2 * padding - kernel
            floor, ceil = room // stride + 1, -(-room // stride) + 1
            if (ceil - 1) * stride >= size[axis] + padding:  # the last window holds padding alone
                ceil -= 1
            if given[axis] not in (floor, ceil):
                wanted = f"{floor} or, in ceil mode, {ceil}"
                self.refuse(f"shape of out, axis {axis + 1}", given[axis], wanted)

    def gather(self, op: Gather) -> None:
        k, *size = self.write(op.out)
        if not op.xs:
            self.refuse("xs", op.xs, "at least one map")
        for x in op.xs:
            self.expect(f"rows and columns of map {x}", list(self.maps[x][1:]), size, "as of out")
        self.constant("index", np.int32, (k,))
        index, total = self.program.constants[op.index], sum(self.maps[x][0] for x in op.xs)
        if total > MAX_SIZE:
            self.refuse("xs", total, f"maps of at most {MAX_SIZE} channels together")
        if index.min() < -1 or index.max() >= total:
            wrong = index.min() if index.min() < -1 else index.max()
            self.refuse("index", int(wrong), f"-1 (zero) to {total - 1}")


def _check_sizes(program: Program) -> None:
    for field in ("maps", "gates", "operations"):
        if (count := len(getattr(program, field))) > MAX_COUNT:
            refuse("program", f"number of {field}", count, f"at most {MAX_COUNT}")
    if not program.maps:
        refuse("program", "maps", program.maps, "at least the input")
    for index, shape in enumerate(program.maps):
        if not all(1 <= size <= MAX_SIZE for size in shape) or math.prod(shape) > MAX_MAP:
            allowed = f"from 1 to {MAX_SIZE} along each axis, {MAX_MAP} elements"
            refuse("program", f"shape of map {index}", shape, allowed)
    if (total := sum(map(math.prod, program.maps))) > MAX_MAPS:
        refuse("program", "elements of all maps", total, f"at most {MAX_MAPS}")
    if not 0 <= program.dense_macs <= MAX_MACS:
        refuse("program", "dense_macs", program.dense_macs, f"from 0 to {MAX_MACS}")


def _check_gates(gates: tuple[Gate, ...]) -> None:
    units: set[str] = set()
    for gate in gates:
        place = f"gate {reprlib.repr(gate.unit)}"
        check_fields(gate, place)
        check_name(gate.unit, "gate", "unit")
        if not 1 <= gate.channels <= MAX_SIZE:
            refuse(place, "channels", gate.channels, f"from 1 to {MAX_SIZE}")
        if not gate.channels <= gate.prior <= MAX_SIZE:
            refuse(place, "prior", gate.prior, f"from {gate.channels} (channels) to {MAX_SIZE}")
        if gate.unit in units:
            refuse(place, "unit", gate.unit, "a name that no other gate has")
        units.add(gate.unit)


def _name(operation: Any) -> str:
    return reprlib.repr(getattr(operation, "name", None))
