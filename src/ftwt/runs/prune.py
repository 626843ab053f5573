"""From a trained network to a cheaper one in minutes, without labels and without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from ..evaluation.evaluate import device_of
from ..files.provenance import Start, provenance
from ..files.tables import Shown
from ..fitting.columns import rank_filters
from ..fitting.passes import check_steady, repeatable
from ..graph.wrappers import refuse_no_module
from ..lowering.compile import Precision, check_precision
from ..processes import first
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook
from .candidates import (
    DYNAMIC,
    LOOK,
    MIXED,
    STATIC,
    Candidate,
    Judge,
    Part,
    Refused,
    Workshop,
    prunable,
)
from .choice import choose, timed
from .latency import Budget, Clock, Stopwatch

Gates = Literal["auto", "static", "dynamic", "mixed", "second-look"]
KINDS = (STATIC, DYNAMIC, MIXED, LOOK)
JUDGED = 4  # a fourth as many images as are fitted to judge, where none are held out
FEWEST = 20  # images to fit to, with those that judge if none are held out
FEWEST_JUDGES = 4  # images: a second look is judged by halves
TIMED = 32  # images that the candidates' times are measured with


@dataclass(frozen=True)
class Pruned(Shown):
    """A pruned network, and the candidates it was chosen from.

    Args:
        network: The pruned network, in eval mode, for `ftwt.compile`, `ftwt.evaluate`,
            `ftwt.save_pretrained` and `ftwt.train`.
        kind: `static` (the same filters for every image), `dynamic`, `mixed` (gates on some units),
            or `second-look` (a fixed mask, and the whole network for images that it is unsure of).
        why: Why this one.
        asked: The reduction asked for, or that of the latency asked for.
        candidates: All that were made, with their networks.
        dense_macs: MACs of the dense network for one image.
        dense_ms: Its time on the native engine with one thread, measured in turns with those of the
            candidates; None where they were not measured.
        precision: Of the engines that were timed.
        images: Images fitted to.
        judged: Other images, that judged the candidates.
        provenance: Where the figures come from.
    """

    network: DynamicModel | SecondLook
    kind: str
    why: str
    asked: float
    candidates: tuple[Candidate, ...]
    dense_macs: int
    dense_ms: float | None
    precision: Precision
    images: int
    judged: int
    provenance: dict[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the figures (not the networks) as JSON values."""
        left = ("network", "candidates")
        told = {name: value for name, value in vars(self).items() if name not in left}
        return told | {"candidates": [one.to_json() for one in self.candidates]}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            "", title=f"pruned with {self.images:,} images, judged by {self.judged:,} others"
        )
        for column in (
            "fewer MACs",
            f"an image, {self.precision}",
            "agrees with the dense network",
            "error",
        ):
            table.add_column(column, justify="right")
        for one in self.candidates:
            agreement = "" if one.agreement is None else f"{one.agreement:.2%}"
            chosen = f"{one.kind}{', chosen' if one.network is self.network else ''}"
            ms = "" if one.latency_ms is None else f"{one.latency_ms:.2f} ms"
            table.add_row(chosen, f"{one.reduction:.2%}", ms, agreement, f"{one.error:.4f}")
        if self.dense_ms is not None:
            table.add_row("dense", "", f"{self.dense_ms:.2f} ms", "", "")
        yield table
        for one in self.candidates:
            for more in (one.mixed, one.look):
                if more is not None:
                    yield more
        yield self.why


def prune(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    reduction: float | None = None,
    latency_ms: float | None = None,
    gates: Gates = "auto",
    images: int = 2048,
    held_out: Iterable[tuple[Tensor, Any] | Tensor] | None = None,
    teach: Callable[[DynamicModel], Any] | None = None,
    precision: Precision = "f32",
    scores: bool = True,
    config: Any = None,
) -> Pruned:
    """Prune a trained network to a budget: no labels, no training.

    Units whose filters only layers read are pruned; residual streams stay whole. The same filters
    go for every image, those that the layers behind them can best compensate for (`static`), or
    predictors are fitted that choose filters for each image (`dynamic`), or each unit gets a gate
    where that leaves clearly less of an error than a fixed mask (`mixed`). Then the layers behind
    masks are repaired. Or a fixed mask that saves more than asked looks first, and images that it
    is unsure of go through the whole network, too (`second-look`).

    Of several candidates the one is taken whose outputs are nearest to the dense network's on
    images that none was fitted to, but not one that saves less than half of the time that the
    fastest one saves. Nearest is the least error; a second look is taken instead where it agrees
    with the dense network on more of these images. It is judged by thresholds from the other half
    of them. A budget in milliseconds is met by each kind for itself.

    Args:
        model: The trained network. It is not changed.
        batches: Images (B, C, *spatial) as the network takes them, with or without labels, which
            are not read. Gone through several times: the same ones in the same order.
        reduction: Share of the dense MACs to save, by `executed` counting.
        latency_ms: Instead: average time of one image on the native engine with one thread, on this
            machine. Each candidate gets the reduction at which it takes as long.
        gates: `static`, `dynamic`, `mixed`, `second-look`, or `auto`: all of them, and the best is
            taken. One that is named is taken; `static` is made beside it, to compare with.
        images: How many images to fit to, at most; 20 or more.
        held_out: Images that judge the candidates and set the threshold of a second look, as many
            at most. Best are some that the network was not trained on: on its training images it is
            surer of itself, so that candidates hardly differ, and a second look saves less on
            others than asked. If not given, a fifth of the images.
        teach: Called with each candidate once it is repaired, to train it in place: say with
            `ftwt.train` and the dense network as teacher. So all get as much. What it raises, you
            get.
        precision: Of the engines that are timed: `int8` for a network that you will compile so. It
            changes times alone; candidates are judged in float32.
        scores: Whether outputs (B, K) of K > 1 columns are class scores. If not, as of a network
            that regresses K values, candidates are compared by squared error, and there is no
            second look.
        config: Kept in the provenance.

    Returns:
        The pruned network and how it was chosen.

    Raises:
        ValueError: Neither or both budgets are given, one is out of reach (the message names the
            range) or gates jump past it; there are fewer than 20 images to fit to, other ones at
            each pass (shuffled, augmented), some of another size or not finite; the network has no
            unit to prune; or a second look is asked of one whose outputs are no class scores.
        RuntimeError: A budget in milliseconds, and the native engine was not built.
    """
    began = Start()
    refuse_no_module(model)
    if (reduction is None) == (latency_ms is None):
        raise ValueError(
            f"reduction={reduction}, latency_ms={latency_ms}: give one of them, say reduction=0.3"
        )
    if gates not in get_args(Gates):
        raise ValueError(f"gates={gates!r}: use one of {', '.join(get_args(Gates))}")
    check_precision(precision)
    if reduction is not None and not 0 < reduction < 1:
        raise ValueError(f"reduction={reduction} is outside (0, 1); 0.3 saves 30% of the MACs")
    fitted, judges = _divide(batches, images, held_out, device=device_of(model))
    dynamic = prunable(model, next(iter(fitted)))
    judge = Judge(model, judges, dynamic, scores=scores)
    ranking = rank_filters(dynamic, fitted)
    some = torch.cat([part for _, part in first(judges, TIMED)])
    watch = Stopwatch(some.detach().float().cpu().contiguous().numpy(), precision)
    clock = None
    if latency_ms is not None:
        clock = Clock.of(dynamic, ranking, watch)
        reduction = clock.reduction_for(latency_ms)
    assert reduction is not None
    budget = Budget(reduction, latency_ms, clock, watch)
    workshop = Workshop(dynamic, ranking, fitted, model, judge, budget, teach)
    candidates, left_out = [], {}
    for kind in (one for one in KINDS if gates in ("auto", one) or one == STATIC):
        try:
            made = workshop.make(kind)
        except Refused as error:  # say, predictors cost too much for gates to reach the budget
            if kind == (STATIC if gates == "auto" else gates):
                raise
            left_out[kind] = str(error)
            continue
        candidates.append(made)
    candidates, dense_ms, untimed = timed(candidates, dynamic, watch)
    best, why = choose([one for one in candidates if gates in ("auto", one.kind)], dense_ms)
    why += "".join(f"; no {kind} one: {reason}" for kind, reason in left_out.items())
    if untimed:
        why += f"; times were not measured: {untimed}"
    return Pruned(
        network=best.network,
        kind=best.kind,
        why=why,
        asked=reduction,
        candidates=tuple(candidates),
        dense_macs=sum(layer.macs for layer in dynamic.channels.layers),
        dense_ms=dense_ms,
        precision=precision,
        images=len(fitted),
        judged=len(judges),
        provenance=provenance(config=config, since=began),
    )


def _divide(
    batches: Iterable[Any], images: int, held_out: Iterable[Any] | None, *, device: torch.device
) -> tuple[Part, Part]:
    """Images to fit to, and others to judge by."""
    if images < FEWEST:
        raise ValueError(f"images={images}: fit to {FEWEST} or more; 2048 is usual")
    batches, judged = repeatable(batches), 0
    check_steady(batches)
    if held_out is not None:
        held_out = repeatable(held_out)
        check_steady(held_out)
        judged = sum(len(part) for _, part in first(held_out, images))
        if 0 < judged < FEWEST_JUDGES:
            raise ValueError(f"held_out has {judged} images; give {FEWEST_JUDGES} or more, or none")
    wanted = images if judged else images + images // JUDGED
    there = sum(len(part) for _, part in first(batches, wanted))
    if there < FEWEST:
        raise ValueError(f"{there} images to prune with; give {FEWEST} or more")
    if held_out is not None and judged:
        return Part(batches, 0, there, device), Part(held_out, 0, judged, device)
    fit = min(images, there * JUDGED // (JUDGED + 1))
    return Part(batches, 0, fit, device), Part(batches, fit, there - fit, device)
