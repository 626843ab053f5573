"""How long pruned networks take on the native engine, here and now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..budget.calibration import calibrate
from ..fitting.masks import Ranking, fixed_masks
from ..lowering.compile import Precision, compile
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook, opened
from ..runtime.engine import Engine

TIMED_AT = (0.0, 0.2, 0.4, 0.6, 0.8)  # reductions whose latency is measured for a budget in ms
ROUNDS = 5  # of all images through each engine
NEAR, TRIES = 1.02, 4  # of a latency that gates are settled to: how near, how often they are timed
FEW = 256  # images that gates are settled with


@dataclass(frozen=True)
class Stopwatch:
    """Times networks on the native engine, with one thread.

    Args:
        images: (N, C, H, W) float32, timed one by one; also what ranges of `int8` are taken from.
        precision: Of the engines.
    """

    images: np.ndarray
    precision: Precision = "f32"

    def times(self, networks: Mapping[str, DynamicModel | SecondLook]) -> dict[str, np.ndarray]:
        """Time networks in turns.

        Args:
            networks: By name.

        Returns:
            Name -> (N,) milliseconds of each image: the least of some rounds, for what other
            processes take only adds to it.

        Raises:
            RuntimeError: The native engine was not built.
            ValueError: The engine cannot run one of the networks.
        """
        return self.race({name: self.engine(one) for name, one in networks.items()})

    def engine(self, network: DynamicModel | SecondLook) -> Engine:
        """Compile a network to be timed."""
        given: dict[str, Any] = {"check": False}
        if self.precision == "int8":
            given |= {"precision": "int8", "calibrate": [torch.from_numpy(self.images)]}
        return compile(network, **given)

    def race(self, engines: Mapping[str, Engine]) -> dict[str, np.ndarray]:
        """As `times`, of networks that are compiled already."""
        taken = {name: np.zeros((ROUNDS, len(self.images))) for name in engines}
        for engine in engines.values():
            engine(self.images[:1])  # warms up
        for number in range(ROUNDS):
            for at in range(len(self.images)):
                for name, engine in engines.items():
                    start = time.perf_counter()
                    engine(self.images[at : at + 1])
                    taken[name][number, at] = 1e3 * (time.perf_counter() - start)
        return {name: ms.min(0) for name, ms in taken.items()}


@dataclass(frozen=True)
class Clock:
    """What fixed masks take at some reductions, and between them.

    Args:
        reductions: Measured at, rising from 0: the dense network.
        times: Milliseconds of an image, on average; never rising.
    """

    reductions: tuple[float, ...]
    times: tuple[float, ...]

    @classmethod
    def of(cls, dynamic: DynamicModel, ranking: Ranking, watch: Stopwatch) -> Clock:
        """Measure fixed masks of a network that save more and more, as far as there are any."""
        networks: dict[str, DynamicModel | SecondLook] = {}
        for asked in TIMED_AT:
            try:
                masks = fixed_masks(dynamic, ranking, reduction=asked)
            except ValueError:  # no mask saves as much
                break
            networks[str(asked)] = dynamic.fix(masks)
        times = watch.times(networks)
        falling = np.minimum.accumulate([float(ms.mean()) for ms in times.values()])
        return cls(tuple(map(float, times)), tuple(map(float, falling)))

    def reduction_for(self, latency_ms: float) -> float:
        """The reduction at which a fixed mask takes that long.

        Raises:
            ValueError: It is out of reach; the message names the range.
        """
        if not latency_ms > 0:
            raise ValueError(f"latency_ms={latency_ms}: give milliseconds above 0")
        dense, least = self.times[0], self.times[-1]
        if latency_ms < least:
            at = self.reductions[self.times.index(least)]
            raise ValueError(
                f"latency_ms={latency_ms} is out of reach; an image takes from {least:.2f} ms (at "
                f"{at:.0%} fewer MACs) to {dense:.2f} ms here"
            )
        if latency_ms >= dense:
            raise ValueError(
                f"latency_ms={latency_ms}: the dense network takes {dense:.2f} ms on this engine "
                "already; compile it with ftwt.compile"
            )
        return float(np.interp(-latency_ms, -np.array(self.times), self.reductions))

    def beside_dense(self, ms: Mapping[str, np.ndarray], name: str) -> float:
        """A network's average time at the speed that the machine had when this was measured.

        Args:
            ms: Name -> milliseconds of each image, `dense` among them, from one race.
            name: Of the network.
        """
        return float(ms[name].mean() / ms["dense"].mean()) * self.times[0]


@dataclass(frozen=True)
class Budget:
    """What each candidate may cost.

    Args:
        reduction: Share of the MACs to save; of a budget in milliseconds, what a fixed mask saves
            that takes as long.
        latency_ms: Average time of an image on the native engine; None for a budget of MACs.
        clock: Of a budget in milliseconds: what fixed masks take.
        watch: That measures times.
    """

    reduction: float
    latency_ms: float | None
    clock: Clock | None
    watch: Stopwatch

    def average(self, first: DynamicModel, second: DynamicModel, cut: float) -> float:
        """What a second look may save on average, both passes counted.

        Args:
            first: Looks at all images: a fixed mask.
            second: The dense network, which looks again.
            cut: What the first pass saves.

        Raises:
            ValueError: The first pass alone takes longer than `latency_ms`.
        """
        if self.latency_ms is None or self.clock is None:
            return self.reduction
        ms = self.watch.times({"once": SecondLook([first, second], [0.0]), "dense": second})
        once = self.clock.beside_dense(ms, "once")
        if once > self.latency_ms:
            raise ValueError(
                f"its first pass ({cut:.0%} fewer MACs) takes {once:.2f} ms by itself; the budget "
                f"is {self.latency_ms:.2f} ms"
            )
        return cut - (self.latency_ms - once) / self.clock.times[0]

    def settle(self, network: DynamicModel, fitted: Iterable[Any]) -> float:
        """Raise the gates' reduction, in place, until an image takes no more than `latency_ms`.

        A budget of MACs is met already.

        Returns:
            The reduction to hold from now on.

        Raises:
            ValueError: They cannot.
        """
        asked = self.reduction
        if self.latency_ms is None or self.clock is None:
            return asked
        taken = 0.0
        dense = self.watch.engine(opened(network).eval())
        for number in range(TRIES):
            if number:
                try:
                    calibrate(network, fitted, reduction=asked, images=FEW)
                except ValueError:  # these gates cannot save as much
                    break
            ms = self.watch.race({"gates": self.watch.engine(network), "dense": dense})
            taken = self.clock.beside_dense(ms, "gates")
            if taken <= NEAR * self.latency_ms:
                return asked
            asked += (taken - self.latency_ms) / self.clock.times[0]
            if asked >= 1:
                break
        raise ValueError(
            f"with gates an image takes {taken:.2f} ms; {self.latency_ms:.2f} ms were asked for"
        )
