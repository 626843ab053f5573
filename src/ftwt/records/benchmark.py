"""What a benchmark found: latencies, what they are worth, and where they come from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..files.json import write_json
from ..files.tables import Shown
from .contestants import DENSE, GATED, OUR
from .fields import Amount, Count, Positive, Reduction, Share

QUIET = 0.05  # cores that others may keep busy
UNEVEN = 1.3  # times the median: a 99th percentile beyond is told
STEADY = 1.15  # times its fastest round: a contestant's median round beyond is told


@dataclass(frozen=True)
class Timing:
    """How long one contestant takes for an image.

    Args:
        name: The contestant.
        settings: How it was set up.
        latency_ms: Median over the faster half of the rounds, for each batch; mean over the
            batches, divided by the images in one. Files written before 2026-11-28 hold the median
            over all rounds, and so do the next two.
        low_ms: The same with the lower quartile.
        high_ms: The same with the upper quartile.
        rounds_ms: The mean of each round, of all of them.
        executed_macs: Mean over the images; None of those that run the dense network.
        median_ms: Median over the batches, of medians over rounds as above; `latency_ms` is
            their mean. None in older files, and so are the others.
        p99_ms: Their 99th percentile.
        worst_ms: The largest.
    """

    name: str
    settings: str
    latency_ms: Amount
    low_ms: Amount
    high_ms: Amount
    rounds_ms: tuple[float, ...]
    executed_macs: Amount | None = None
    median_ms: Amount | None = None
    p99_ms: Amount | None = None
    worst_ms: Amount | None = None


@dataclass(frozen=True)
class ImageTiming:
    """What a single image took on the gated engine.

    Args:
        keep: Share of the filters that were computed, mean over the gates.
        executed_macs: Multiply-accumulates, predictors included.
        latency_ms: Median over the faster half of the rounds.
    """

    keep: Share
    executed_macs: Count
    latency_ms: Amount


@dataclass(frozen=True)
class Benchmark(Shown):
    """Latencies of one network, all from one run. It prints as a table.

    Args:
        network: What was timed.
        input_shape: Of an image, (C, H, W).
        batch: Images at a time.
        threads: Of every contestant.
        isa: Instruction set of our native engine; None for the reference engine.
        rounds: How often each contestant ran each batch.
        batches: How many different batches, with masks of their own, each contestant ran.
        forced_keep: The share of filters that gates were made to keep; None if they decided.
        keep: The share that was kept, mean over gates and images; None without gates.
        dense_macs: Of an image, without gates.
        reduction: Share of the MACs that the gates saved, predictors paid, over the very images and
            masks that were timed; None without gates.
        timings: One for each contestant.
        left_out: Rival -> why it does not take part.
        disturbance: How many cores other processes kept busy meanwhile, on average; None where the
            system does not tell.
        images: What single images of varied keep ratio took; empty if not asked for.
        provenance: Where the figures come from.
    """

    network: str
    input_shape: tuple[int, ...]
    batch: Positive
    threads: Positive
    isa: str | None
    rounds: int
    batches: int
    forced_keep: Share | None
    keep: Share | None
    dense_macs: Positive
    reduction: Reduction | None
    timings: tuple[Timing, ...]
    left_out: dict[str, str]
    disturbance: float | None
    images: tuple[ImageTiming, ...]
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> Timing:
        """The timing of the contestant of this name."""
        return next(timing for timing in self.timings if timing.name == name)

    @property
    def fastest_rival(self) -> Timing | None:
        """The fastest of the others; None if there was none."""
        rivals = [timing for timing in self.timings if not timing.name.startswith(OUR)]
        return min(rivals, key=lambda timing: timing.latency_ms, default=None)

    @property
    def dense_ratio(self) -> float | None:
        """How fast our dense engine is beside the fastest rival: above 1 it is faster."""
        return self._over_rival(DENSE)

    @property
    def theoretical(self) -> float | None:
        """The speed-up that the MACs promise: 1 / (1 - reduction)."""
        return None if self.reduction is None else 1 / (1 - self.reduction)

    @property
    def achieved(self) -> float | None:
        """The speed-up of the gated engine over the fastest dense rival."""
        return None if self.reduction is None else self._over_rival(GATED)

    @property
    def achieved_over_dense(self) -> float | None:
        """The speed-up of the gated engine over our own dense one."""
        if self.reduction is None:
            return None
        return self[DENSE].latency_ms / self[GATED].latency_ms

    @property
    def efficiency(self) -> float | None:
        """The achieved speed-up, over the fastest rival, as a share of the theoretical."""
        return _share(self.achieved, self.theoretical)

    @property
    def efficiency_over_dense(self) -> float | None:
        """The same with our own dense engine in the rival's place."""
        return _share(self.achieved_over_dense, self.theoretical)

    @property
    def correlation(self) -> float | None:
        """Pearson's, of MACs and latency over the single images; None if either does not vary."""
        macs = np.array([image.executed_macs for image in self.images], dtype=float)
        ms = np.array([image.latency_ms for image in self.images])
        if len(self.images) < 2 or not macs.std() or not ms.std():
            return None
        return float(np.corrcoef(macs, ms)[0, 1])

    def to_json(self) -> dict[str, Any]:
        """Return all figures, and what follows from them, as JSON values."""
        rival = self.fastest_rival
        return asdict(self) | {
            "fastest_rival": rival and rival.name,
            "dense_ratio": self.dense_ratio,
            "theoretical": self.theoretical,
            "achieved": self.achieved,
            "efficiency": self.efficiency,
            "achieved_over_dense": self.achieved_over_dense,
            "efficiency_over_dense": self.efficiency_over_dense,
            "correlation": self.correlation,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON.

        Raises:
            OSError: The folder cannot be written or the disk is full; an older file survives.
        """
        write_json(path, self.to_json())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shape = "x".join(map(str, self.input_shape))
        how = f"{self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"
        title = f"{self.network}, {shape}, {how}: time for an image"
        table = Table("", title=title)
        for column in ("median", "quartiles", "fastest rival / this"):
            table.add_column(column, justify="right")
        table.add_column("how")
        for timing in self.timings:
            quartiles = f"{timing.low_ms:.3f} - {timing.high_ms:.3f} ms"
            ratio = self._over_rival(timing.name)
            table.add_row(
                timing.name,
                f"{timing.latency_ms:.3f} ms",
                quartiles,
                "" if ratio is None else f"{ratio:.2f}",
                timing.settings,
            )
        for name, reason in self.left_out.items():
            table.add_row(name, "left out", "", "", reason)
        yield table
        yield from self._spread()
        yield from self._worth()
        if self.disturbance is not None and self.disturbance > QUIET:
            yield (
                f"other processes kept {self.disturbance:.2f} cores busy meanwhile: "
                "measure again on an idle machine"
            )
        yield from self._steadiness()

    def _steadiness(self) -> RenderResult:
        """Whether a contestant's rounds differ by more than its work does."""
        slower = {one.name: float(np.median(one.rounds_ms) / min(one.rounds_ms))
                  for one in self.timings if one.rounds_ms}  # fmt: skip
        name = max(slower, key=slower.__getitem__, default=None)
        if name is not None and slower[name] > STEADY:
            yield (
                f"the machine's speed varied: the median round of {name} took {slower[name]:.2f} "
                "times as long as its fastest; times are of the faster half of the rounds"
            )

    def _spread(self) -> RenderResult:
        """Of those whose work depends on the image: how their time is spread."""
        for one in self.timings:
            if (
                one.executed_macs
                and one.median_ms
                and one.p99_ms
                and one.p99_ms > UNEVEN * one.median_ms
            ):
                yield (
                    f"{one.name} takes {one.latency_ms:.3f} ms on average over {self.batches} "
                    f"batches; median {one.median_ms:.3f}, 99th percentile {one.p99_ms:.3f}, worst "
                    f"{one.worst_ms:.3f} ms"
                )

    def _worth(self) -> RenderResult:
        if self.theoretical is None or self.reduction is None:
            return
        forced = "" if self.forced_keep is None else f" (forced, drawn by lot: {self.forced_keep})"
        yield (
            f"kept {self.keep:.1%} of the filters{forced}, executed {self.reduction:.1%} fewer "
            f"MACs: theoretical speed-up {self.theoretical:.2f}"
        )
        if (rival := self.fastest_rival) is not None:
            yield (
                f"achieved over {rival.name}, the fastest dense rival: {self.achieved:.2f}, "
                f"efficiency {self.efficiency:.2f}"
            )
        yield (
            f"achieved over our own dense engine: {self.achieved_over_dense:.2f}, "
            f"efficiency {self.efficiency_over_dense:.2f}"
        )
        if self.correlation is not None:
            yield (
                f"over {len(self.images)} single images, latency and executed MACs correlate "
                f"by {self.correlation:.3f} (Pearson)"
            )

    def _over_rival(self, name: str) -> float | None:
        rival = self.fastest_rival
        return None if rival is None else rival.latency_ms / self[name].latency_ms


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole
