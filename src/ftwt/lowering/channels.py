"""Program -> program: channels in another order, or fewer of them, with the same result.

What a convolution writes is read by others, added to by others, and masked: all of these must agree
on which channel is which. `ties` finds what has to change together; `reindex` changes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..runtime.program import (
    RENEWING,
    Activate,
    Affine,
    Combine,
    Conv,
    Fixed,
    Flatten,
    Gather,
    Operation,
    Pool,
    Predict,
    Program,
    Silence,
)
from .fuse import channelwise

Key = tuple[Literal["map", "mask"], int]
Orders = Mapping[Key, np.ndarray]


@dataclass(frozen=True)
class Tie:
    """Maps and masks whose channels correspond, one to one.

    Args:
        keys: What is tied.
        channels: How many channels each of them has.
        movable: Whether these may come in another order: not those of the input and the output, of
            a map that is flattened, or of a convolution in groups.
        removable: Whether one may go that is zero: not where a softmax counts zeros too.
    """

    keys: tuple[Key, ...]
    channels: int
    movable: bool
    removable: bool


def ties(program: Program) -> list[Tie]:
    """Find all groups of maps and masks that have to keep their channels in the same order."""
    parent: dict[Key, Key] = {("map", x): ("map", x) for x in range(len(program.maps))}
    parent |= {("mask", m): ("mask", m) for m in range(len(program.gates))}

    def root(key: Key) -> Key:
        while parent[key] != key:
            key = parent[key]
        return key

    still: set[Key] = {("map", 0), ("map", program.output)}
    counted: set[Key] = set()
    for operation in program.operations:
        for one, other in _tied(operation, program):
            parent[root(one)] = root(other)
        if isinstance(operation, Flatten) or (
            isinstance(operation, Conv)
            and operation.groups > 1
            and not channelwise(operation, program)
        ):
            still |= {("map", operation.x), ("map", operation.out)}
        if isinstance(operation, Predict) and operation.softmax:
            counted |= {("map", x) for x in operation.features}
    groups: dict[Key, list[Key]] = {}
    for key in parent:
        groups.setdefault(root(key), []).append(key)
    return [
        Tie(
            tuple(keys),
            _channels(program, keys[0]),
            movable=not still.intersection(keys),
            removable=not (still | counted).intersection(keys),
        )
        for keys in groups.values()
    ]


def _tied(operation: Operation, program: Program) -> Iterator[tuple[Key, Key]]:
    out: Key = ("map", getattr(operation, "out", -1))
    if isinstance(operation, Conv):
        if channelwise(operation, program):
            yield out, ("map", operation.x)
        for mask in (operation.mask, operation.after):
            if mask is not None:
                yield out, ("mask", mask)
        if operation.add is not None:
            yield out, ("map", operation.add)
    elif isinstance(operation, Silence):
        yield out, ("mask", operation.mask)
    if isinstance(operation, Pool | Affine | Activate | Silence):
        yield out, ("map", operation.x)
    elif isinstance(operation, Combine):
        yield out, ("map", operation.a)
        yield out, ("map", operation.b)


def _channels(program: Program, key: Key) -> int:
    return program.maps[key[1]][0] if key[0] == "map" else program.gates[key[1]].channels


def silent(program: Program, off: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Find the channels that are always zero.

    Args:
        program: Any.
        off: Mask -> (K,) bool, the filters that it never lets through.

    Returns:
        Map -> (C,) bool.
    """
    zero: dict[int, np.ndarray] = {0: np.zeros(program.maps[0][0], bool)}
    for operation in program.operations:
        if isinstance(operation, Predict | Fixed):
            continue
        out: int = operation.out  # type: ignore[attr-defined]
        found = np.zeros(program.maps[out][0], bool)
        if isinstance(operation, Conv):
            if operation.mask is not None:
                found = off.get(operation.mask, found)
            if operation.add is not None:
                found = found & zero[operation.add]
            if operation.after is not None:
                found = found | off.get(operation.after, False)
        elif isinstance(operation, Combine):
            a, b = zero[operation.a], zero[operation.b]
            found = a & b if operation.kind == "add" else a | b
        elif isinstance(operation, Gather):
            index = program.constants[operation.index]
            every = np.concatenate([zero[x] for x in operation.xs])
            found = every[index] | (index < 0)
        elif isinstance(operation, Flatten):
            found = np.repeat(zero[operation.x], math.prod(program.maps[operation.x][1:]))
        elif isinstance(operation, Pool | Activate | Silence):
            found = zero[operation.x]
            if isinstance(operation, Silence):
                found = found | off.get(operation.mask, False)
        if getattr(operation, "act", "none") in RENEWING and not isinstance(operation, Conv):
            found = np.zeros_like(found)
        zero[out] = found
    return zero


def reindex(program: Program, orders: Orders) -> Program:
    """Give maps and masks other channels.

    Args:
        program: Any.
        orders: Which of its channels each map or mask has, and in which order; those that are not
            named stay as they are. What a tie ties has the same order. Channels that are left out
            are zero for every sample.

    Returns:
        The program with all constants changed to suit. Gates count the filters that they lost as
        not kept.
    """
    constants = dict(program.constants)
    changed: set[str] = set()

    def pick(array: np.ndarray, kind: Literal["map", "mask"], number: int, axis: int = 0) -> Any:
        return array.take(orders[kind, number], axis) if (kind, number) in orders else array

    def count(kind: Literal["map", "mask"], number: int) -> int:
        key: Key = (kind, number)
        return len(orders[key]) if key in orders else _channels(program, key)

    def kept(maps: tuple[int, ...]) -> np.ndarray:
        """Which channels are left of maps laid side by side."""
        starts = np.cumsum([0, *(program.maps[x][0] for x in maps)])
        whole = [np.arange(program.maps[x][0]) for x in maps]
        parts = [pick(part, "map", x) for part, x in zip(whole, maps, strict=True)]
        return np.concatenate([n + part for n, part in zip(starts, parts, strict=False)])

    def put(name: str, values: np.ndarray) -> str:
        while name in changed:  # another operation names it too
            name += "."
        changed.add(name)
        constants[name] = np.ascontiguousarray(values)
        return name

    def rewritten(operation: Operation) -> Operation:
        arrays = {field: program.constants[name] for field, name in operation.constants.items()}
        changes: dict[str, Any] = {}
        if isinstance(operation, Conv):
            arrays = {field: pick(array, "map", operation.out) for field, array in arrays.items()}
            if operation.groups == 1:
                arrays["weight"] = pick(arrays["weight"], "map", operation.x, 1)
            elif channelwise(operation, program):
                changes["groups"] = count("map", operation.out)
        elif isinstance(operation, Predict):
            for field in ("weight", "bias"):
                arrays[field] = pick(arrays[field], "mask", operation.mask)
            if any(("map", x) in orders for x in operation.features):
                first = "weight" if operation.reduce is None else "reduce"
                arrays[first] = arrays[first][:, kept(operation.features)]
        elif isinstance(operation, Fixed):
            arrays["value"] = pick(arrays["value"], "mask", operation.mask)
        elif isinstance(operation, Affine):
            arrays = {field: pick(array, "map", operation.x) for field, array in arrays.items()}
        elif isinstance(operation, Gather):
            taken = kept(operation.xs)
            place = np.full(1 + sum(program.maps[x][0] for x in operation.xs), -1, np.int32)
            place[taken] = np.arange(len(taken))  # the last stays -1, and is what -1 finds
            arrays["index"] = place[pick(arrays["index"], "map", operation.out)]
        changes |= {field: put(operation.constants[field], a) for field, a in arrays.items()}
        return replace(operation, **changes)

    return replace(
        program,
        operations=tuple(rewritten(operation) for operation in program.operations),
        maps=tuple((count("map", x), *shape[1:]) for x, shape in enumerate(program.maps)),
        gates=tuple(
            replace(gate, channels=count("mask", m)) for m, gate in enumerate(program.gates)
        ),
        constants=constants,
    )
