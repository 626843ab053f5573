"""What a network achieved on a set of images, and how its masks behaved."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..files.tables import Shown
from .fields import Amount, Positive, Reduction, Share, Span


@dataclass(frozen=True)
class UnitStats:
    """How one unit's mask behaved over all images.

    Args:
        name: The unit.
        channels: Its filters.
        keep: Mean share of the filters that were computed, in [0, 1].
        keep_std: Its standard deviation over images.
        always: Filters that were computed for every image ("core" filters).
        never: Filters that were computed for no image.
        entropy: Mean over filters of the entropy of their firing rate, in bits; 0 if the mask never
            changes, 1 if every filter fires for half of the images.
        distinct: Different masks among all images.
        mask_accuracy: Share of filters on which mask and target agree; None without targets.
    """

    name: str
    channels: Positive
    keep: Share
    keep_std: Share
    always: Annotated[int, Span(0, "channels")]
    never: Annotated[int, Span(0, "channels")]
    entropy: Annotated[float, Span(-1e-9, 1)]
    distinct: Positive
    mask_accuracy: Share | None = None

    @property
    def sometimes(self) -> int:
        """Filters that were computed for some images and not for others."""
        return self.channels - self.always - self.never


@dataclass(frozen=True)
class Evaluation(Shown):
    """What a network achieved; shares lie in [0, 1], reductions may be negative.

    Args:
        images: Images seen.
        loss: Mean cross-entropy.
        top1: Share of images whose first guess is right.
        top5: Share of images with the right class among the first five guesses.
        dense_macs: MACs of the dense network for one image.
        executed_macs: Mean MACs that were executed, predictors included.
        reduction: Mean over images of 1 - executed / dense.
        reduction_std: Its standard deviation over images.
        reduction_range: Its smallest and largest value over images.
        published_reduction: The mean reduction as the paper counts it.
        mask_accuracy: Mean over units of the share of filters on which mask and target agree.
        units: How each gate behaved, in execution order; empty for a plain network.
        provenance: Where the figures come from, if the caller says.
    """

    images: Positive
    loss: Amount
    top1: Share
    top5: Share
    dense_macs: Positive
    executed_macs: Amount
    reduction: Reduction
    reduction_std: Amount
    reduction_range: tuple[float, float]
    published_reduction: Reduction
    mask_accuracy: Share | None
    units: tuple[UnitStats, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def dynamism(self) -> dict[str, float]:
        """How dynamic the masks are: shares of filters, and the mean entropy in bits per filter."""
        filters = sum(unit.channels for unit in self.units)
        if not filters:
            return {"always": 1.0, "sometimes": 0.0, "never": 0.0, "entropy": 0.0}
        always = sum(unit.always for unit in self.units)
        never = sum(unit.never for unit in self.units)
        entropy = sum(unit.entropy * unit.channels for unit in self.units) / filters
        return {
            "always": always / filters,
            "sometimes": (filters - always - never) / filters,
            "never": never / filters,
            "entropy": entropy,
        }

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values, the dynamism with them."""
        return asdict(self) | {"dynamism": self.dynamism}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("", title=f"{self.images:,} images", show_header=False)
        table.add_column(justify="right")
        table.add_row("top-1 / top-5", f"{self.top1:.2%} / {self.top5:.2%}")
        table.add_row("dense MACs", f"{self.dense_macs / 1e6:,.2f} M")
        table.add_row("executed MACs", f"{self.executed_macs / 1e6:,.2f} M")
        table.add_row("reduction, executed", f"{self.reduction:.2%} ± {self.reduction_std:.2%}")
        if self.units:
            table.add_row("reduction, as published", f"{self.published_reduction:.2%}")
            if self.mask_accuracy is not None:
                table.add_row("mask accuracy", f"{self.mask_accuracy:.2%}")
            for name in ("always", "sometimes", "never"):
                table.add_row(f"filters that fire {name}", f"{self.dynamism[name]:.1%}")
        yield table
