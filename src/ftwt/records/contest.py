"""Accuracy against time: ways of running one network, all timed in turns in one run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..files.tables import Shown
from .fields import Amount, Positive, Reduction, Share

KIND = "contest"  # of its files
OURS = "ftwt"  # the runtime that is our engine


@dataclass(frozen=True)
class Entry:
    """One way of running a network.

    Args:
        pruning: What was done to the network: `dense`, `fixed mask`, `gates`, and the like.
        runtime: What runs it: `ftwt`, `openvino`, `onnxruntime`.
        precision: `f32`, `bf16` or `int8`.
        top1: Share of the test images whose first guess is right, by this very contestant.
        reduction: Share of the dense MACs that are not executed, mean over the test images.
        latency_ms: Of an image: median over the faster half of the rounds (of all rounds, in files
            written before 2026-11-28), mean over the images that were timed.
        low_ms: The same with the lower quartile.
        high_ms: The same with the upper quartile.
        settings: How it was set up.
    """

    pruning: str
    runtime: str
    precision: str
    top1: Share
    reduction: Reduction
    latency_ms: Amount
    low_ms: Amount
    high_ms: Amount
    settings: str

    @property
    def name(self) -> str:
        """What it is called beside others."""
        return f"{self.pruning}, {self.runtime} {self.precision}"


@dataclass(frozen=True)
class Contest(Shown):
    """All ways of running one network. It prints as a table, the fastest first.

    Args:
        network: What was run.
        input_shape: Of an image, (C, H, W).
        images: Test images that accuracy was counted on.
        calibrated_on: Images, without labels, that all of eight bits were calibrated on.
        timed: Test images that were timed, one by one.
        rounds: How often.
        threads: Of every contestant.
        isa: Instruction set of our engine.
        entries: The contestants.
        left_out: Contestant -> why it does not take part.
        disturbance: Cores that other processes kept busy meanwhile; None where not known.
        provenance: Where the figures come from.
    """

    network: str
    input_shape: tuple[int, ...]
    images: Positive
    calibrated_on: Positive
    timed: Positive
    rounds: Positive
    threads: Positive
    isa: str | None
    entries: tuple[Entry, ...]
    left_out: dict[str, str]
    disturbance: float | None
    provenance: dict[str, Any]

    @property
    def front(self) -> tuple[Entry, ...]:
        """Those that none is both as fast as and more accurate than, the fastest first."""
        kept: list[Entry] = []
        for one in sorted(self.entries, key=lambda one: (one.latency_ms, -one.top1)):
            if not kept or one.top1 > kept[-1].top1:
                kept.append(one)
        return tuple(kept)

    def to_json(self) -> dict[str, Any]:
        """Return all figures, and who is in front, as JSON values."""
        return {"kind": KIND, "front": [one.name for one in self.front]} | asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("", title=f"{self.network}: {self.images:,} test images, one at a time")
        for column in ("top-1", "fewer MACs", "an image", "quartiles", ""):
            table.add_column(column, justify="right")
        front = self.front
        for one in sorted(self.entries, key=lambda one: one.latency_ms):
            table.add_row(
                one.name,
                f"{one.top1:.2%}",
                f"{one.reduction:.0%}" if one.reduction else "",
                f"{one.latency_ms:.3f} ms",
                f"{one.low_ms:.3f} - {one.high_ms:.3f} ms",
                "front" if one in front else "",
            )
        for name, reason in self.left_out.items():
            table.add_row(name, "left out", "", "", reason, "")
        yield table
