"""Gates where they win: which units decide for each image, and which keep a fixed mask.

A unit's readers are fitted anew to the dense network's outputs twice: behind its fixed mask, and
behind its gate, which keeps as many filters on average. It gets a gate where that leaves less than
80% of the mask's error on images that were not fitted to. All other units are as in the dense
network meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from ..files.tables import Shown
from ..graph.trace import evaluating
from ..pruning.dynamic import DynamicModel
from ..pruning.method import Gate, hard_mask
from ..pruning.second_look import opened
from .columns import readers_of
from .masks import Ranking, fixed_masks
from .passes import Passes, repeatable, shown
from .regression import Moments
from .repair import solve
from .samples import add_samples, held_out, shape_of
from .sites import Site, find_sites

BETTER = 0.8  # of a fixed mask's error: what a gate's must lie below


@dataclass(frozen=True)
class Mixed(Shown):
    """Which units got a gate, and why.

    Args:
        errors: Unit -> error left on held-out images behind its fixed mask and behind its gate: of
            each reader as a share of the variance of what it gives, summed over the readers. Units
            that were not compared have a fixed mask.
        gates: The units with a gate.
    """

    errors: dict[str, tuple[float, float]]
    gates: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("unit", title="error left on held-out images")
        for column in ("fixed mask", "gate", ""):
            table.add_column(column, justify="right")
        for name, (fixed, gate) in self.errors.items():
            taken = "gate" if name in self.gates else "fixed mask"
            table.add_row(name, f"{fixed:.2%}", f"{gate:.2%}", taken)
        yield table


@torch.no_grad()
def mix(
    dynamic: DynamicModel,
    ranking: Ranking,
    batches: Iterable[Any],
    *,
    reduction: float,
    images: int = 512,
) -> tuple[DynamicModel, Mixed]:
    """Give each unit a gate or a fixed mask, at a budget that `calibrate` has to settle.

    Args:
        dynamic: With fitted predictors, and the weights of the dense network.
        ranking: Of its filters.
        batches: Images (B, C, *spatial), with or without labels.
        reduction: Share of the dense MACs to save.
        images: How many to compare by, at most.

    Returns:
        A copy with gates where they win, and the comparison.

    Raises:
        ValueError: No gate wins, or the reduction is out of reach.
    """
    batches = repeatable(batches)
    masks = fixed_masks(dynamic, ranking, reduction=reduction)
    logits = _logits(dynamic, batches, images)
    errors = _compare(dynamic, masks, logits, batches, images)
    won = [name for name, (fixed, gate) in errors.items() if gate < BETTER * fixed]
    if not won:
        raise ValueError(f"no unit's gate leaves less than {BETTER:.0%} of its fixed mask's error")
    paid = dynamic.macs({})  # what the predictors cost, the masks save
    price = sum(float(paid.predictors[name].mean()) for name in won) / paid.dense
    masks = fixed_masks(dynamic, ranking, reduction=reduction + price)
    network = dynamic.fix(
        {name: each for name, each in masks.items() if name not in won}, partly=True
    )
    for name, gate in network.gates.items():
        if isinstance(gate, Gate):
            gate.threshold.fill_(_threshold(logits[name], int(masks[name].sum())))
    return network, Mixed(errors, tuple(won))


def _logits(dynamic: DynamicModel, batches: Iterable[Any], images: int) -> dict[str, Tensor]:
    """Unit -> (N, C) what predictors say, with all gates open."""
    found: dict[str, list[Tensor]] = {name: [] for name in dynamic.predictors}
    with evaluating(dynamic):
        for _, part in shown(dynamic, batches, images):
            _, gates = dynamic(part, gates="open", return_gates=True)
            for name, each in found.items():
                each.append(gates[name].logits)
    return {name: torch.cat(each) for name, each in found.items()}


def _threshold(logits: Tensor, kept: int) -> float:
    """The threshold that keeps so many filters of an image on average, its largest always."""
    rest = logits.sort(1).values[:, :-1]
    gone = rest.numel() - (kept - 1) * len(rest)
    return float("-inf") if gone == 0 else float(rest.flatten().kthvalue(gone).values)


def _compare(
    dynamic: DynamicModel,
    masks: Mapping[str, Tensor],
    logits: Mapping[str, Tensor],
    batches: Iterable[Any],
    images: int,
) -> dict[str, tuple[float, float]]:
    """Unit -> errors behind its fixed mask and its gate, where that saves anything."""
    whole = opened(dynamic).eval()
    sites = [site for site in find_sites(whole.network)[0] if site.gate is None]
    units = {
        name: set(readers_of(dynamic, name, sites))
        for name, mask in masks.items()
        if not mask.all()
    }

    chosen = {}
    for name in units:
        chosen[name, "fixed"] = masks[name].expand(len(logits[name]), -1)
        threshold = _threshold(logits[name], int(masks[name].sum()))
        chosen[name, "gate"] = hard_mask(logits[name], threshold)

    passes = Passes(whole.network, whole.network, lambda: shown(dynamic, batches, images), sites)
    errors: dict[str, tuple[float, float]] = {}
    with evaluating(whole):
        for site in sites:
            silent = {
                (name, kind): dynamic.channels.silenced({name: mask})[site.name]
                for (name, kind), mask in chosen.items()
                if site.name in units[name]
            }
            for name, fixed, gate in _errors(whole, site, passes, silent):
                before = errors.get(name, (0.0, 0.0))
                errors[name] = before[0] + fixed, before[1] + gate
    return errors


def _errors(
    whole: DynamicModel, site: Site, passes: Passes, silent: Mapping[tuple[str, str], Tensor]
) -> Iterator[tuple[str, float, float]]:
    """Fit one layer behind each unit's masks: unit, errors with its fixed mask and its gate."""
    module = whole.network.get_submodule(site.name)
    shape, device = shape_of(module), next(module.parameters()).device
    axis = -1 if isinstance(module, nn.Linear) else 1  # of the channels that it reads
    sums = {key: (Moments(*shape, device), Moments(*shape, device)) for key in silent}
    for read in passes.values(site):
        places = torch.arange(read.place, read.place + read.count)
        last = held_out(places)
        for key, off in silent.items():
            gone = off[places].to(device)
            shown_as = [1] * read.inputs.dim()
            shown_as[0], shown_as[axis] = gone.shape
            x = read.inputs.masked_fill(gone.view(shown_as), 0)
            for moments, index in zip(sums[key], (~last, last), strict=True):
                add_samples(moments, module, x, read.own, None, index.nonzero()[:, 0].to(device))
    left = {key: solve(whole.network, site, *both).after for key, both in sums.items()}
    for name in dict.fromkeys(name for name, _ in silent):
        yield name, left[name, "fixed"], left[name, "gate"]
