"""Program -> program: the same result from fewer operations.

Lowering writes one operation for each node. Here what follows a convolution becomes part of it,
convolutions learn which of their filters nobody needs, and masks are decided in time for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..runtime.program import (
    RENEWING,
    Activate,
    Affine,
    Combine,
    Conv,
    Fixed,
    Operation,
    Pool,
    Predict,
    Program,
    Silence,
)


def fuse(program: Program) -> Program:
    """Fuse all that can be, and round constants to float32."""
    constants = dict(program.constants)
    program = replace(program, operations=tuple(_merge(program, constants)), constants=constants)
    return tidy(replace(program, operations=tuple(schedule(_narrow(program)))))


def written(operation: Operation) -> int | None:
    """Return the map that an operation writes, None if it writes a mask."""
    return getattr(operation, "out", None)


def decides(operation: Operation) -> int | None:
    """Return the mask that an operation writes, None if it writes a map."""
    return operation.mask if isinstance(operation, Predict | Fixed) else None


def applied(operation: Operation) -> tuple[int, ...]:
    """Return the masks that an operation reads."""
    if isinstance(operation, Conv):
        return tuple(mask for mask in (operation.mask, operation.after) if mask is not None)
    return (operation.mask,) if isinstance(operation, Silence) else ()


def channelwise(conv: Conv, program: Program) -> bool:
    """Whether each filter of a convolution reads the one channel of its own number."""
    return 1 < conv.groups == program.maps[conv.x][0] == program.maps[conv.out][0]


def _merge(program: Program, constants: dict[str, np.ndarray]) -> list[Operation]:
    """Let each operation that can be part of the one that made its input become that."""
    readers = Counter(x for operation in program.operations for x in operation.reads)
    readers[program.output] += 1
    made: dict[int, int] = {}  # map that one operation reads -> place of the one that writes it
    result: list[Operation | None] = []
    for operation in program.operations:
        for place in sorted((made[x] for x in operation.reads if x in made), reverse=True):
            before = result[place]
            assert before is not None
            if (merged := _merged(before, operation, constants)) is not None:
                result[place], operation = None, merged
                break
        out = written(operation)
        if out is not None and readers[out] == 1:
            made[out] = len(result)
        result.append(operation)
    return [operation for operation in result if operation is not None]


def _merged(
    before: Operation, operation: Operation, constants: dict[str, np.ndarray]
) -> Operation | None:
    """Return one operation that does what two do, or None."""
    if isinstance(operation, Affine) and isinstance(before, Conv):
        return _folded(before, operation, constants)
    if isinstance(operation, Activate):
        return _activated(before, operation)
    if isinstance(operation, Combine) and isinstance(before, Conv):
        return _summed(before, operation)
    if isinstance(operation, Silence) and isinstance(before, Conv):
        if before.add is None and before.mask is None:
            return replace(before, out=operation.out, mask=operation.mask)
        if before.after is None:
            return replace(before, out=operation.out, after=operation.mask)
    return None


def _folded(conv: Conv, norm: Affine, constants: dict[str, np.ndarray]) -> Conv | None:
    if conv.act != "none" or conv.mask is not None or conv.add is not None:
        return None
    scale, shift = constants[norm.scale], constants[norm.shift]
    folded = constants[conv.weight] * scale.reshape(-1, 1, 1, 1)  # in float64, as scale is
    constants[conv.weight] = folded.astype(np.float32)
    constants[conv.bias] = constants[conv.bias] * scale + shift
    return replace(conv, out=norm.out, act=norm.act)


def _activated(before: Operation, activate: Activate) -> Operation | None:
    out, act = activate.out, activate.act
    if isinstance(before, Affine | Combine) and before.act == "none":
        return replace(before, out=out, act=act)
    if not isinstance(before, Conv) or before.after is not None:
        return None
    if before.add is not None:
        if before.post == "none" and act not in RENEWING:
            return replace(before, out=out, post=act)
    elif before.act == "none" and (before.mask is None or act not in RENEWING):
        return replace(before, out=out, act=act)
    return None


def _summed(conv: Conv, combine: Combine) -> Conv | None:
    if combine.kind != "add" or conv.add is not None or conv.after is not None:
        return None
    if combine.a == combine.b:
        return None
    other = combine.b if combine.a == conv.out else combine.a
    return replace(conv, out=combine.out, add=other)


def _narrow(program: Program) -> list[Operation]:
    """Give convolutions the masks under which alone their results are needed.

    A shortcut that is added where a mask follows; the scale of a squeeze-excitation, which
    multiplies channels that are zero: no one needs all of them.
    """
    active = _masks_on(program.operations)
    needed: dict[int, int | None] = {
        program.output: None
    }  # map -> the mask of what is needed, None: all

    def need(x: int, mask: int | None) -> None:
        needed[x] = mask if needed.get(x, mask) == mask else None

    result = []
    for operation in reversed(program.operations):
        wanted = needed.get(out) if (out := written(operation)) is not None else None
        if out is not None and out not in needed:
            continue  # nobody reads it
        if isinstance(operation, Conv):
            operation = _narrowed(operation, wanted)
            need(operation.x, operation.mask if channelwise(operation, program) else None)
            if operation.add is not None:
                need(operation.add, wanted if operation.after is None else operation.after)
        elif isinstance(operation, Silence):
            need(operation.x, operation.mask)
        elif isinstance(operation, Pool | Activate | Affine):
            need(operation.x, wanted)
        elif isinstance(operation, Combine):
            a, b = operation.a, operation.b
            product = operation.kind == "mul" and wanted is None
            need(a, active.get(b) if product else wanted)
            need(b, active.get(a) if product else wanted)
        else:
            for x in operation.reads:
                need(x, None)
        result.append(operation)
    return result[::-1]


def _narrowed(conv: Conv, wanted: int | None) -> Conv:
    if wanted is None or wanted in (conv.mask, conv.after):
        return conv
    if conv.mask is None and conv.add is None:
        return replace(conv, mask=wanted)
    return replace(conv, after=wanted) if conv.after is None else conv


def _masks_on(operations: Iterable[Operation]) -> dict[int, int]:
    """Map -> the mask outside which it is zero, where there is one."""
    active: dict[int, int | None] = {}
    for operation in operations:
        mask = None
        if isinstance(operation, Conv):
            mask = operation.mask
            if operation.add is not None and active.get(operation.add) != mask:
                mask = None
            if operation.after is not None:
                mask = operation.after
        elif isinstance(operation, Silence):
            mask = operation.mask
        elif isinstance(operation, Pool) or (
            isinstance(operation, Activate) and operation.act not in RENEWING
        ):
            mask = active.get(operation.x)
        elif isinstance(operation, Combine) and operation.act not in RENEWING:
            a, b = active.get(operation.a), active.get(operation.b)
            if operation.kind == "mul":
                mask = b if a is None else a
            else:
                mask = a if a == b else None
        if (out := written(operation)) is not None:
            active[out] = mask
    return {x: mask for x, mask in active.items() if mask is not None}


def schedule(operations: Iterable[Operation]) -> list[Operation]:
    """Order operations so that each comes after what it reads, and otherwise as they were."""
    remaining = list(operations)
    writers = {("map", written(o)): o for o in remaining if written(o) is not None}
    writers |= {("mask", decides(o)): o for o in remaining if decides(o) is not None}
    done: set[int] = set()
    result: list[Operation] = []

    def visit(operation: Operation) -> None:
        if id(operation) in done:
            return
        done.add(id(operation))
        keys = [("map", x) for x in operation.reads] + [("mask", m) for m in applied(operation)]
        for key in keys:
            if key in writers:
                visit(writers[key])
        result.append(operation)

    for operation in remaining:
        visit(operation)
    return result


def tidy(program: Program) -> Program:
    """Number maps in the order in which they are written; drop constants that nobody names.

    Constants come out C-contiguous, of a program's types, and share no memory with a network.
    """
    order = [0, *(out for o in program.operations if (out := written(o)) is not None)]
    number = {old: new for new, old in enumerate(order)}
    operations = tuple(renumbered(operation, number) for operation in program.operations)
    named = {name for operation in operations for name in operation.constants.values()}
    kept = {name: _plain(values) for name, values in program.constants.items() if name in named}
    return replace(
        program,
        maps=tuple(program.maps[x] for x in order),
        operations=operations,
        output=number[program.output],
        constants=kept,
    )


def renumbered(operation: Operation, number: dict[int, int]) -> Operation:
    """Return an operation that reads and writes other maps."""
    changes: dict[str, int | tuple[int, ...]] = {}
    for name in ("x", "out", "a", "b", "add"):
        if (x := getattr(operation, name, None)) is not None:
            changes[name] = number[x]
    for name in ("xs", "features"):
        if hasattr(operation, name):
            changes[name] = tuple(number[x] for x in getattr(operation, name))
    return replace(operation, **changes)  # type: ignore[arg-type]


def _plain(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        values = values.astype(np.float32, copy=False)
    return np.ascontiguousarray(values if values.flags.owndata else values.copy())
