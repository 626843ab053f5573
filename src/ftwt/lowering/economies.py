"""Program -> program: less to do, by what masks are seen to do on some images.

Filters that fire together can lie together in memory; those that never fire can be removed; masks
that never change need no predictor. Only the order of channels leaves all masks as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..runtime.program import Conv, Fixed, Operation, Predict, Program, Silence
from .channels import Key, reindex, silent, ties
from .fuse import decides, renumbered, tidy, written

Masks = Mapping[int, np.ndarray]  # mask -> (N, K) bool: what gates decided for N samples
NEVER = -1e30  # bias of a filter that is not to fire


def remove_filters(program: Program, off: Mapping[int, np.ndarray]) -> Program:
    """Remove filters for good, with all that reads them.

    A filter whose channel is added to another map, or must stay for another reason, is masked for
    every sample instead.

    Args:
        program: Any.
        off: Mask -> (K,) bool, the filters to remove; at least one of each stays.

    Returns:
        The program, which says in `notes["economies"]["removed"]` how many filters of each unit are
        gone, and in `["masked"]` how many are masked instead.
    """
    zero = silent(program, off)
    orders: dict[Key, np.ndarray] = {}
    for tie in ties(program):
        gone = np.full(tie.channels, tie.removable)
        for kind, number in tie.keys:
            if kind == "map":
                gone &= zero[number]
            else:
                gone &= off.get(number, np.zeros(tie.channels, bool))
        if gone.any() and not gone.all():
            orders |= dict.fromkeys(tie.keys, np.flatnonzero(~gone))
    counts: dict[str, dict[str, int]] = {"removed": {}, "masked": {}}
    left: dict[int, np.ndarray] = {}
    for mask, filters in off.items():
        kept = orders.get(("mask", mask), np.arange(len(filters)))
        left[mask] = filters[kept]
        unit = program.gates[mask].unit
        counts["removed"][unit] = len(filters) - len(kept)
        counts["masked"][unit] = int(left[mask].sum())
    program = _switched_off(reindex(program, orders), left)
    return noted(program, **{what: _positive(units) for what, units in counts.items()})


def remove_silent(program: Program, masks: Masks) -> Program:
    """Remove the filters that gates never chose, and say so as `remove_filters` does."""
    off = {mask: np.logical_not(fires.any(0)) for mask, fires in masks.items()}
    return tidy(remove_filters(program, off))


def _switched_off(program: Program, off: Mapping[int, np.ndarray]) -> Program:
    """Let predictors never choose some filters."""
    constants = dict(program.constants)
    for operation in program.operations:
        if isinstance(operation, Predict) and off.get(operation.mask, np.zeros(1, bool)).any():
            filters = off[operation.mask]
            weight, bias = constants[operation.weight].copy(), constants[operation.bias].copy()
            weight[filters], bias[filters] = 0, NEVER
            constants[operation.weight], constants[operation.bias] = weight, bias
    return replace(program, constants=constants)


def remove_fixed(program: Program) -> Program:
    """Remove the filters that masks of a static twin never let through; exact.

    Gates stay, for the statistics: their filters count as not kept.
    """
    fixed = {o.mask: o.value for o in program.operations if isinstance(o, Fixed)}
    off = {mask: program.constants[value] == 0 for mask, value in fixed.items()}
    if not off:
        return program
    program = remove_filters(program, off)
    ones = [
        o.mask
        for o in program.operations
        if isinstance(o, Fixed) and program.constants[o.value].all()
    ]
    return tidy(_unmasked(program, ones))


def fix_constant(program: Program, masks: Masks) -> Program:
    """Take the predictors of gates that decide the same for all samples.

    Those that let everything through are opened; what others never let through is removed.

    Args:
        program: Any.
        masks: What its gates decided.

    Returns:
        The program, which names the units in `notes["economies"]["constant"]`.
    """
    constants, operations, units = dict(program.constants), [], []
    for operation in program.operations:
        if (
            isinstance(operation, Predict)
            and (masks[operation.mask] == masks[operation.mask][0]).all()
        ):
            name = f"{operation.name}.value"
            constants[name] = masks[operation.mask][0].astype(np.uint8)
            units.append(program.gates[operation.mask].unit)
            operation = Fixed(name=operation.name, mask=operation.mask, value=name)
        operations.append(operation)
    program = replace(program, operations=tuple(operations), constants=constants)
    return noted(remove_fixed(_live(program)), constant=units)


def open_gates(program: Program, units: Collection[str]) -> Program:
    """Compute units whole, without predictor; their gates are gone."""
    numbers = [m for m, gate in enumerate(program.gates) if gate.unit in units]
    program = _unmasked(program, numbers)
    left = [m for m in range(len(program.gates)) if m not in numbers]
    place = {old: new for new, old in enumerate(left)}
    operations = []
    for operation in program.operations:
        if decides(operation) in numbers:
            continue
        changes = {
            field: place[mask]
            for field in ("mask", "after")
            if (mask := getattr(operation, field, None)) is not None
        }
        operations.append(replace(operation, **changes))  # type: ignore[arg-type]
    gates = tuple(program.gates[mask] for mask in left)
    return tidy(_live(replace(program, operations=tuple(operations), gates=gates)))


def _unmasked(program: Program, masks: Collection[int]) -> Program:
    """Apply some masks nowhere any more."""
    operations: list[Operation] = []
    same = {x: x for x in range(len(program.maps))}
    for operation in program.operations:
        operation = renumbered(operation, same)
        if isinstance(operation, Silence) and operation.mask in masks:
            same[operation.out] = operation.x
            continue
        if isinstance(operation, Conv):
            mask = None if operation.mask in masks else operation.mask
            after = None if operation.after in masks else operation.after
            operation = replace(operation, mask=mask, after=after)
        operations.append(operation)
    return replace(program, operations=tuple(operations), output=same[program.output])


def _live(program: Program) -> Program:
    """Leave out what nobody reads; masks stay."""
    needed, operations = {program.output}, []
    for operation in reversed(program.operations):
        if (out := written(operation)) is None or out in needed:
            needed.update(operation.reads)
            operations.append(operation)
    return tidy(replace(program, operations=tuple(operations[::-1])))


def lay_out(program: Program, masks: Masks) -> Program:
    """Lay channels that fire together side by side; exact, but for the order of sums.

    Args:
        program: Any.
        masks: What its gates decided.

    Returns:
        The program, which says in `notes["economies"]["runs"]` how many runs of adjacent active
        filters a mask has on average, before and after.
    """
    orders: dict[Key, np.ndarray] = {}
    before = after = 0.0
    for tie in ties(program):
        seen = [masks[number] for kind, number in tie.keys if kind == "mask"]
        if not seen:
            continue
        fires = np.concatenate(seen)
        order = cofiring(fires) if tie.movable else np.arange(tie.channels)
        old, new = runs(fires), runs(fires[:, order])
        if new < old:
            orders |= dict.fromkeys(tie.keys, order)
        before += old * len(seen)
        after += min(old, new) * len(seen)
    gates = max(1, len(program.gates))
    return noted(tidy(reindex(program, orders)), runs=[before / gates, after / gates])


def cofiring(fires: np.ndarray) -> np.ndarray:
    """Order filters so that neighbours fire for the same samples.

    From the filter that fires most often on, each is followed by the one that differs from it for
    the fewest samples.

    Args:
        fires: (N, K) bool.

    Returns:
        (K,) permutation.
    """
    signs = fires.astype(np.float32) * 2 - 1
    alike = signs.T @ signs  # N less twice the number of samples for which two differ
    order = [int(fires.mean(0).argmax())]
    left = np.ones(fires.shape[1], bool)
    left[order] = False
    while left.any():
        nearest = np.where(left, alike[order[-1]], -np.inf).argmax()
        order.append(int(nearest))
        left[nearest] = False
    return np.array(order)


def runs(fires: np.ndarray) -> float:
    """Count the runs of adjacent filters that fire, mean over samples."""
    starts = fires[:, 1:] & ~fires[:, :-1]
    return float((starts.sum(1) + fires[:, 0]).mean())


def noted(program: Program, **economies: Any) -> Program:
    """Say in a program's notes what was done; counts of the same kind add up."""
    notes = dict(program.notes.get("economies", {}))
    for what, value in economies.items():
        old = notes.get(what)
        if isinstance(old, dict):
            value = dict(Counter(old) + Counter(value))
        notes[what] = value
    return replace(program, notes={**program.notes, "economies": notes})


def _positive(units: Mapping[str, int]) -> dict[str, int]:
    return {unit: count for unit, count in units.items() if count}
