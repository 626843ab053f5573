"""A program being written: maps, constants and operations are added, nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..runtime.program import (
    Affine,
    Conv,
    Flatten,
    Gate,
    Gather,
    Operation,
    Pool,
    Program,
)
from .moves import Moved, Value, channels, places

Shape = tuple[int, int, int]
Data = Value | Moved


class Draft:
    """A program that grows.

    Constants stay in the precision that they come in, so that later passes round once.

    Attributes:
        label: What is being lowered, as "operation (node name)", for messages.
        name: What the operations that are added are named after.
        shape: Shape of the result for one sample, as torch has it.
    """

    def __init__(self, image: Shape) -> None:
        self.maps: list[Shape] = [image]
        self.gates: list[Gate] = []
        self.operations: list[Operation] = []
        self.constants: dict[str, np.ndarray] = {}
        self.label, self.name = "", ""
        self.shape: tuple[int, ...] = image
        self._pools: dict[tuple[int, str], int] = {}
        self._gathered: dict[Moved, int] = {}

    def refuse(self, why: str = "there is no rule for it") -> NoReturn:
        """Say that what is being lowered cannot be.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"cannot lower {self.label}: {why}")

    def add(self, operation: Operation) -> None:
        """Append an operation."""
        self.operations.append(operation)

    def map(self, shape: Sequence[int] | None = None) -> int:
        """Add a map, by default of the current node's shape, and return its number."""
        shape = self.shape if shape is None else shape
        if len(shape) not in (1, 3):
            self.refuse(f"shape {tuple(shape)} for one image; only (C, H, W) and (C,) can be")
        self.maps.append(spatial(shape))
        return len(self.maps) - 1

    def value(self, number: int) -> Value:
        """Return a map as the value of the current node."""
        return Value(number, self.shape)

    def constant(self, field: str, values: np.ndarray | Tensor) -> str:
        """Keep a constant, and return its name."""
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.is_floating_point() else values).numpy()
        name, count = f"{self.name}.{field}", 2
        while name in self.constants:
            name, count = f"{self.name}.{field}.{count}", count + 1
        self.constants[name] = values
        return name

    def pooled(self, x: int, kind: Literal["max", "mean"]) -> int:
        """Return the vector of a map's global maxima or means; it is computed once."""
        shape = self.maps[x]
        if shape[1:] == (1, 1):
            return x
        if (x, kind) not in self._pools:
            out = self.map((shape[0], 1, 1))
            self.add(Pool(name=f"{self.name}.pool", x=x, out=out, kind=kind, adaptive=True))
            self._pools[x, kind] = out
        return self._pools[x, kind]

    def affine(self, x: Data, scale: np.ndarray, shift: np.ndarray) -> Value:
        """Scale and shift channels."""
        out = self.map()
        names = self.constant("scale", scale), self.constant("shift", shift)
        self.add(Affine(name=self.name, x=self.whole(x), out=out, scale=names[0], shift=names[1]))
        return self.value(out)

    def linear(self, x: Data, weight: Tensor, bias: Tensor | None) -> Value:
        """Multiply a vector by a matrix; one that was flattened from a map, as a convolution."""
        if len(x.shape) != 1:
            self.refuse(
                f"its input has shape {x.shape} for one image; only vectors can be. The network "
                "itself runs as it is, in PyTorch"
            )
        source, matrix = self._unflattened(x, weight)
        shape = self.maps[source]
        bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias
        out = self.map()
        self.add(
            Conv(
                name=self.name,
                x=source,
                out=out,
                weight=self.constant("weight", matrix.reshape(len(weight), *shape)),
                bias=self.constant("bias", bias),
            )
        )
        return self.value(out)

    def _unflattened(self, x: Data, weight: Tensor) -> tuple[int, Tensor]:
        """Return a map, and the matrix that multiplies its elements."""
        found = places(x) if isinstance(x, Moved) else None
        if found is not None and len(set(found.maps.tolist())) == 1 and found.maps[0] >= 0:
            source = int(found.maps[0])
            everything = np.arange(np.prod(self.maps[source]))
            if np.array_equal(found.elements, everything):
                return source, weight
            if np.array_equal(np.sort(found.elements), everything):  # in another order
                return source, weight[:, torch.from_numpy(np.argsort(found.elements))]
        return self.whole(x), weight

    def whole(self, x: Data) -> int:
        """Return the map of a value; what was moved is gathered into one.

        Raises:
            ValueError: If the movement does not keep channels whole.
        """
        if isinstance(x, Value):
            return x.map
        if x not in self._gathered:
            self._gathered[x] = self._gathering(x)
        return self._gathered[x]

    def _gathering(self, x: Moved) -> int:
        if (found := places(x)) is None:
            self.refuse("its input's elements were changed, or samples mixed, on the way")
        if len(x.shape) == 1:
            return self._elements(found.maps, found.elements)
        moved = channels(found, self.maps) if len(x.shape) == 3 else None
        if moved is None:
            self.refuse(
                f"its input of shape {x.shape} for one image does not consist of whole channels; "
                "only channels, every n-th row and column, and flattened maps can be moved"
            )
        sources = {s: self._every(s, steps, x.shape) for s, steps in moved.steps.items()}
        return self._gather(sources, moved.maps, moved.channels, x.shape)

    def _elements(self, maps: np.ndarray, elements: np.ndarray) -> int:
        sources = {}
        for source in dict.fromkeys(maps[maps >= 0].tolist()):
            shape = self.maps[source]
            sources[source] = source
            if shape[1:] != (1, 1):
                sources[source] = self.map((int(np.prod(shape)), 1, 1))
                self.add(Flatten(name=f"{self.name}.flat", x=source, out=sources[source]))
        return self._gather(sources, maps, elements, maps.shape)

    def _every(self, source: int, steps: tuple[int, int], shape: Sequence[int]) -> int:
        """Return a map's every n-th row and column."""
        if steps == (1, 1) and self.maps[source][1:] == tuple(shape[1:]):
            return source
        out = self.map((self.maps[source][0], *shape[1:]))
        self.add(Pool(name=f"{self.name}.every", x=source, out=out, kind="max", stride=steps))
        return out

    def _gather(
        self, sources: dict[int, int], maps: np.ndarray, index: np.ndarray, shape: Sequence[int]
    ) -> int:
        """Gather channels of maps; `sources` says for each where they now lie."""
        result, start = np.full(len(maps), -1, np.int32), 0
        for source, where in sources.items():
            here = maps == source
            result[here] = start + index[here]
            start += self.maps[where][0]
        if len(sources) == 1 and np.array_equal(result, np.arange(start)):
            return next(iter(sources.values()))
        out = self.map(shape)
        name = self.constant("index", result)
        xs = tuple(sources.values())
        self.add(Gather(name=f"{self.name}.moved", xs=xs, out=out, index=name))
        return out

    def finish(self, output: int, dense_macs: int, classes: tuple[str, ...]) -> Program:
        """Return the program as it stands."""
        return Program(
            tuple(self.maps),
            tuple(self.gates),
            tuple(self.operations),
            output,
            self.constants,
            dense_macs,
            classes,
        )


def spatial(shape: Sequence[int]) -> Shape:
    """Return a map's shape: that of a vector is (C, 1, 1)."""
    channels, rows, columns = (*shape, 1, 1) if len(shape) == 1 else shape
    return (int(channels), int(rows), int(columns))
