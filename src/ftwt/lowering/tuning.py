"""Engines under forced masks, and gates that are judged by the clock."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..runtime import Conv, Engine, Predict, Program
from .economies import noted, open_gates

DRAWN = 1024  # masks drawn in advance for each gate; sample n takes those of n modulo this
ROUNDS = (3, 15)  # at least and at most, of timing all images through all engines in turns
SECONDS = 0.3  # that these may take together, once there were the fewest
WORTH = 0.002  # share of the network's time below which a difference is not believed


def by_lot(keeps: np.ndarray, channels: int, random: np.random.Generator) -> np.ndarray:
    """Draw (B, channels) uint8 masks, each with its (B,) share of the channels, at least one."""
    kept = np.maximum(1, np.round(keeps * channels))
    ranks = random.random((len(keeps), channels)).argsort(1).argsort(1)
    return (ranks < kept[:, None]).astype(np.uint8)


class ForcedEngine(Engine):
    """An engine whose gates' decisions are drawn by lot, to measure what a keep ratio is worth.

    Args:
        program: What it runs.
        keep: Share of its filters that each gate keeps, at least one.
        seed: Of the draws. A unit's depend on this, its name, and how many samples were run before.
        options: As of `Engine`.
    """

    def __init__(self, program: Program, *, keep: float, seed: int = 0, **options: Any) -> None:
        super().__init__(program, **options)
        self.keep = keep
        self._drawn: dict[int, np.ndarray] = {}
        for operation in program.operations:
            if isinstance(operation, Predict):
                gate = program.gates[operation.mask]
                random = np.random.default_rng((seed, zlib.crc32(gate.unit.encode())))
                keeps = np.full(DRAWN, keep)
                self._drawn[operation.mask] = by_lot(keeps, gate.channels, random)
        self._samples, self._lock = 0, threading.Lock()

    def _masks(self, masks: Mapping[str, Any], samples: int) -> dict[int, np.ndarray]:
        with self._lock:
            first = self._samples % DRAWN
            self._samples += samples
        if first + samples <= DRAWN:  # views cost nothing beside the network
            drawn = {index: drawn[first : first + samples] for index, drawn in self._drawn.items()}
        else:
            rows = (first + np.arange(samples)) % DRAWN
            drawn = {index: drawn[rows] for index, drawn in self._drawn.items()}
        return drawn | super()._masks(masks, samples) if masks else drawn


def tune(
    program: Program,
    images: np.ndarray,
    *,
    threads: int = 1,
    keep: float | None = None,
    seed: int = 0,
) -> Program:
    """Open the gates that cost more time than they save, on this machine.

    Gate by gate, in execution order, the network is timed with and without it, in turns, one image
    at a time: once from the network as it is, once from the one without gates, for a gate may pay
    only beside others. The fastest of these and of the network as it is stays.

    Args:
        program: Any.
        images: (N, C, H, W) float32 to run; a handful.
        threads: Of the native engine.
        keep: Share of filters that gates keep, drawn by lot; None: what they decide themselves.
        seed: Of these draws.

    Returns:
        The program; in `notes["economies"]`, `opened` names the units whose gates are gone, and
        `tuned_ms` has the time of an image before and after.

    Raises:
        RuntimeError: If the native engine was not built: only its time counts.
    """

    def engine(opened: Collection[str]) -> Engine:
        less = open_gates(program, opened)
        if keep is None:
            return Engine(less, threads=threads)
        return ForcedEngine(less, keep=keep, seed=seed, threads=threads)

    units = _by_prediction(program)
    found: dict[tuple[str, ...], Engine] = {(): engine(())}
    for start in (set[str](), set(units)):
        opened, best = start, engine(start)
        for unit in units:
            other = engine(opened ^ {unit})
            now, then = _seconds([best, other], images)
            if then < now * (1 - WORTH):
                opened, best = opened ^ {unit}, other
        found[tuple(unit for unit in units if unit in opened)] = best
    times = dict(zip(found, _seconds(list(found.values()), images, more=4), strict=True))
    chosen = min(times, key=times.__getitem__)
    tuned_ms = [1e3 * times[()], 1e3 * times[chosen]]
    return noted(found[chosen].program, opened=list(chosen), tuned_ms=tuned_ms)


def _by_prediction(program: Program) -> list[str]:
    """Units whose masks are predicted and applied, in execution order."""
    applied = {
        mask for o in program.operations if isinstance(o, Conv) for mask in (o.mask, o.after)
    }
    return [
        program.gates[operation.mask].unit
        for operation in program.operations
        if isinstance(operation, Predict) and operation.mask in applied
    ]


def _seconds(engines: Sequence[Engine], images: np.ndarray, *, more: int = 1) -> list[float]:
    """Time one image through each engine, mean over images.

    Each operation has a clock of its own, and the median over the rounds is taken of each: what
    else the machine does strikes one operation of one round, not the sum.
    """
    taken: list[list[np.ndarray]] = [[] for _ in engines]
    start = time.perf_counter()
    for engine, image in _turns(engines, images):  # to warm up
        engine(image)
    fewest, most = ROUNDS
    affordable = int(SECONDS / (time.perf_counter() - start))
    rounds = more * max(fewest, min(most, affordable))
    for _ in range(rounds):
        for turn, (engine, image) in enumerate(_turns(engines, images)):
            taken[turn % len(engines)].append(engine.profile(image, runs=1, warm_up=0) / 1e3)
    return [
        float(np.median(np.reshape(times, (rounds, len(images), -1)), 0).sum(1).mean())
        for times in taken
    ]


def _turns(engines: Sequence[Engine], images: np.ndarray) -> Iterator[tuple[Engine, np.ndarray]]:
    for image in images:
        for engine in engines:
            yield engine, image[None]
