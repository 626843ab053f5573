"""What corruption of the images does to a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Annotated, Any

from .fields import Positive, Reduction, Share, Span


@dataclass(frozen=True)
class Figures:
    """Of one network on one set of images.

    Args:
        top1: Share of images whose first guess is right.
        reduction: Mean share of the MACs that was saved, as executed.
        keep: Mean over units of the share of filters that was computed; 1 without gates.
    """

    top1: Share
    reduction: Reduction
    keep: Share


@dataclass(frozen=True)
class Corrupted(Figures):
    """What a network did on images with a corruption of a severity in 1..5."""

    corruption: str
    severity: Annotated[int, Span(1, 5)]


@dataclass(frozen=True)
class NetworkRobustness:
    """What corruption does to one network.

    Args:
        network: Its name, or its architecture's.
        images: How many images, in each version.
        clean: Figures on the images as they are.
        corrupted: Figures for each corruption and severity.
        source: Where the corrupted images come from: `ftwt` made them, or `cifar-10-c`, the
            published files.
        run: The run that it comes from, if it does.
        provenance: Where the figures come from, if the caller says.
    """

    network: str
    images: Positive
    clean: Figures
    corrupted: tuple[Corrupted, ...]
    source: str
    run: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Figures:
        """Mean figures over all corruptions and severities."""
        return mean_of(self.corrupted)

    def of(self, corruption: str) -> Figures:
        """Mean figures over the severities of one corruption."""
        return mean_of(c for c in self.corrupted if c.corruption == corruption)

    def at(self, severity: int) -> Figures:
        """Mean figures over all corruptions of one severity."""
        return mean_of(c for c in self.corrupted if c.severity == severity)

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            "kind": "corruptions",
            "network": self.network,
            "run": self.run,
            "images": self.images,
            "source": self.source,
            "clean": asdict(self.clean),
            "mean": asdict(self.mean),
            "corrupted": [
                {"corruption": c.corruption, "severity": c.severity} | asdict(c)
                for c in self.corrupted
            ],
            "provenance": self.provenance,
        }


def mean_of(figures: Iterable[Figures]) -> Figures:
    """The mean of each figure."""
    all_ = list(figures)
    return Figures(
        top1=fmean(f.top1 for f in all_),
        reduction=fmean(f.reduction for f in all_),
        keep=fmean(f.keep for f in all_),
    )
