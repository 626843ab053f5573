"""The units of a network as a table, and the layers that are none."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..graph.activity import ChannelGraph
from ..graph.units import Unit
from .macs import predictor_macs
from .method import MaskPredictor


class Summary:
    """What `DynamicModel.summary` returns; prints as a table.

    Args:
        channels: The network's channel graph.
        units: Its units, in execution order.
        reasons: Layer -> why it is no unit.
        r: Unit -> r, for units with a gate.
        predictors: Unit -> predictor, for units that have one.
    """

    def __init__(
        self,
        channels: ChannelGraph,
        units: tuple[Unit, ...],
        reasons: Mapping[str, str],
        r: Mapping[str, float],
        predictors: Mapping[str, MaskPredictor],
    ) -> None:
        self.units, self.reasons, self.r = units, dict(reasons), dict(r)
        self.unknown, self.uncounted = channels.unknown, channels.uncounted
        self.macs = {layer.name: layer.macs for layer in channels.layers}
        read = {unit.name: unit.in_channels for unit in units}
        self.costs = {name: int(predictor_macs(p, read[name])) for name, p in predictors.items()}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        total = sum(self.macs.values())
        table = Table("unit", "channels", title=f"{len(self.units)} units")
        for column in ("r", "share of MACs", "predictor MACs"):
            table.add_column(column, justify="right")
        for unit in self.units:
            r = f"{self.r[unit.name]:.3g}" if unit.name in self.r else ""
            cost = f"{self.costs[unit.name]:,}" if unit.name in self.costs else ""
            if unit.inherits is not None:
                r = f"mask of {unit.inherits}"
            share = f"{self.macs[unit.name] / total:.1%}"
            table.add_row(unit.name, f"{unit.in_channels} -> {unit.out_channels}", r, share, cost)
        yield table
        for name, reason in self.reasons.items():
            share = f" ({self.macs[name] / total:.1%} of the MACs)" if name in self.macs else ""
            yield f"not gated: {name}{share}: {reason}"
        for name in self.unknown:
            yield f"counted as fully active: {name}"
        for name in self.uncounted:
            yield f"not counted, no formula: {name}"

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, markup=False, emoji=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    __repr__ = __str__
