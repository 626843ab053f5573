"""Whether the maps of a program have types and scales that its operations can work with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from .fields import refuse
from .program import (
    EXACT,
    Combine,
    Dequantize,
    Flatten,
    Gather,
    Operation,
    Pool,
    Program,
    QConv,
    Quantize,
    Silence,
)

LEAST, MOST = 1e-30, 1e30  # of a scale, so that its inverse is a number too


def check_maps(program: Program) -> None:
    """Make sure that every map has a type and a scale, or none has.

    Raises:
        ValueError: One has not; or a scale is out of range; or input or output are not f32.
    """
    types, scales = program.types, program.scales
    for field, values in (("types", types), ("scales", scales)):
        wanted = len(program.maps) if types or scales else 0
        if len(values) != wanted:
            refuse("program", f"number of {field}", len(values), f"{wanted}, one for each map")
    for index, (kind, scale) in enumerate(zip(types, scales, strict=True)):
        if kind == "f32" and scale != 1:
            refuse("program", f"scale of map {index}", scale, "1.0: the map is f32")
        if not LEAST <= scale <= MOST or scale != float(np.float32(scale)):
            allowed = f"a float32 number from {LEAST} to {MOST}"
            refuse("program", f"scale of map {index}", scale, allowed)
    for index in {0, program.output} if types else ():
        if 0 <= index < len(types) and types[index] != "f32":
            refuse("program", f"type of map {index}", types[index], "f32, as input or output")


def check_types(
    program: Program, op: Operation, refuse: Callable[[str, Any, str], NoReturn]
) -> None:
    """Make sure that an operation's maps have types that it can work with.

    Args:
        program: That passed `check_maps`.
        op: One of its operations, whose maps exist.
        refuse: Raises the error for a field, its value, and what is allowed.
    """
    if not program.quantised and not isinstance(op, QConv | Quantize | Dequantize):
        return
    out = getattr(op, "out", None)
    kinds = {
        index: program.type_of(index) for index in (*op.reads, *(() if out is None else (out,)))
    }
    whole = [index for index, kind in kinds.items() if kind != "f32"]

    def expect(field: str, index: int, quantised: bool) -> None:
        if (kinds[index] != "f32") != quantised:
            refuse(f"type of {field}", kinds[index], "u8 or s8" if quantised else "f32")

    match op:
        case QConv():
            expect("x", op.x, True)
            for field in ("act", "post"):
                if getattr(op, field) not in EXACT:
                    refuse(field, getattr(op, field), f"one of {', '.join(EXACT)}")
        case Quantize():
            expect("x", op.x, False)
            expect("out", op.out, True)
        case Dequantize():
            expect("x", op.x, True)
            expect("out", op.out, False)
        case Combine() if whole:
            for field in ("a", "b", "out"):
                expect(field, getattr(op, field), True)
            if op.kind != "add":
                refuse("kind", op.kind, "'add' of quantised maps")
            if op.act not in EXACT:
                refuse("act", op.act, f"one of {', '.join(EXACT)}, of quantised maps")
        case Pool() if kinds[op.x] != "f32" and kinds[op.out] == "f32":
            if not op.adaptive or math.prod(program.maps[op.out][1:]) != 1:
                refuse("type of out", "f32", f"{kinds[op.x]}, as x; only a global pool may be f32")
        case Pool() if whole:
            if op.kind != "max":
                refuse("type of out", kinds[op.out], "f32, and that of x, for a mean")
            _alike(program, op, refuse)
        case Gather() | Flatten() | Silence():
            _alike(program, op, refuse)
        case _:
            for index in whole:
                refuse(f"type of map {index}", kinds[index], "f32")


def _alike(program: Program, op: Any, refuse: Callable[[str, Any, str], NoReturn]) -> None:
    """The maps that it reads have the type and the scale of the one that it writes."""
    wanted = program.type_of(op.out), float(program.scale_of(op.out))
    for index in op.reads:
        found = program.type_of(index), float(program.scale_of(index))
        if found != wanted:
            refuse(f"type and scale of map {index}", found, f"{wanted}, as those of out")
