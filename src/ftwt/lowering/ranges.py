"""Ranges of a program's maps, by what some images show: a type and a scale for each map."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from ..runtime import Program
from ..runtime.program import RANGES, Flatten, Gather, Pool, Silence, Type
from ..runtime.reference import Map, Network

Rule = Literal["minmax", "percentile", "mse"]
RULES = get_args(Rule)
SAMPLES = 2**16  # values of a map that ranges are chosen by
PERCENTILE = 99.99
CLIPS = np.linspace(0.2, 1.0, 41)  # shares of the largest value that `mse` tries
AT_ONCE = 2**27  # values of all maps of a batch


class Seen:
    """What the images show of each map: its extremes, means of channels, and sampled values."""

    def __init__(self, program: Program, *, sampled: bool) -> None:
        self.program, self.network = program, Network(program)
        self.images, self.sampled = 0, sampled
        self.low = np.zeros(len(program.maps))
        self.high = np.zeros(len(program.maps))
        self.sums = [np.zeros(shape[0]) for shape in program.maps]
        self.values: list[list[np.ndarray]] = [[] for _ in program.maps]
        self.some: dict[int, Map] = {}  # of the first images

    def add(self, images: np.ndarray) -> None:
        """Run images (B, C, H, W) and note what they show.

        Raises:
            ValueError: They have another shape, one is not finite, or a map overflows.
        """
        wanted = self.program.maps[0]
        if images.ndim != 4 or images.shape[1:] != wanted:
            sizes = ", ".join(map(str, wanted))
            raise ValueError(f"calibrate holds images {images.shape}, must be (B, {sizes})")
        size = max(1, AT_ONCE // sum(map(math.prod, self.program.maps)) // 4)
        for start in range(0, len(images), size):
            self._add(images[start : start + size])

    def _add(self, images: np.ndarray) -> None:
        if not np.isfinite(images).all():
            raise ValueError("calibrate holds an image with a value that is not finite")
        maps = self.network.maps(images, {})
        if not self.some:
            self.some = {index: Map(m.value[:8], m.active[:8]) for index, m in maps.items()}
        for index, (value, active) in maps.items():
            if not np.isfinite(value).all():
                raise ValueError(f"map {index} overflows on a calibration image")
            self.low[index] = min(self.low[index], float(value.min()))
            self.high[index] = max(self.high[index], float(value.max()))
            self.sums[index] += value.mean((2, 3), dtype=np.float64).sum(0)
            held = value[active].ravel()  # zeros of inactive channels are exact
            if held.size and self.sampled:
                room = SAMPLES // 8
                self.values[index].append(held[:: max(1, held.size // room)][:room].copy())
        self.images += len(images)

    def mean(self, index: int) -> np.ndarray:
        """Mean of each channel over images and positions."""
        return self.sums[index] / self.images


class Fit:
    """Types and scales of maps, weights and biases of layers."""

    def __init__(self, program: Program, seen: Seen, rule: Rule) -> None:
        self.program, self.seen, self.rule = program, seen, rule
        self.same = list(range(len(program.maps)))
        for op in program.operations:  # these give back the integers they read
            if isinstance(op, Gather | Flatten | Silence) or (
                isinstance(op, Pool) and op.kind == "max"
            ):
                for index in op.reads:
                    self.same[self._root(index)] = self._root(op.out)
        members: dict[int, list[int]] = {}
        for index in range(len(program.maps)):
            members.setdefault(self._root(index), []).append(index)
        self.types: list[Type] = ["u8"] * len(program.maps)
        self.scales = [1.0] * len(program.maps)
        for group in members.values():
            kind: Type = "u8" if all(seen.low[index] >= 0 for index in group) else "s8"
            scale = self._scale(group, kind)
            for index in group:
                self.types[index], self.scales[index] = kind, scale

    def _root(self, index: int) -> int:
        while self.same[index] != index:
            index = self.same[index]
        return index

    def _scale(self, group: list[int], kind: Type) -> float:
        most = max(max(self.seen.high[index], -self.seen.low[index]) for index in group)
        levels = RANGES[kind][1]
        if most <= 0:
            return float(np.float32(1 / levels))
        held = [part for index in group for part in self.seen.values[index]]
        values = np.abs(np.concatenate(held)) if held else np.zeros(1, np.float32)
        reach = most
        if self.rule == "percentile":
            reach = float(np.percentile(values, PERCENTILE)) or most
        elif self.rule == "mse":
            values = values[:: max(1, values.size // SAMPLES)]
            reach = most * min(CLIPS, key=lambda clip: _error(values, most * clip, levels))
        return float(np.float32(max(reach / levels, 1e-30)))


def _error(values: np.ndarray, reach: float, levels: int) -> float:
    scale = np.float32(max(reach / levels, 1e-30))
    rounded = np.minimum(np.rint(values / scale), levels) * scale
    return float(np.square(values - rounded, dtype=np.float64).sum())
