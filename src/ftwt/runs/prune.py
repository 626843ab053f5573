"""From a trained network to a cheaper one in minutes, without labels and without training."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from ..budget.calibration import calibrate
from ..budget.estimate import estimate
from ..files.provenance import provenance
from ..files.tables import Shown
from ..fitting.columns import rank_filters
from ..fitting.masks import Ranking, fixed_masks, inner_units
from ..fitting.predictors import fit_predictors
from ..fitting.repair import Repair, repair
from ..graph.trace import evaluating
from ..lowering.compile import compile
from ..processes import first
from ..pruning.convert import convert
from ..pruning.dynamic import DynamicModel, images_of

Gates = Literal["auto", "static", "dynamic"]
JUDGED = 4  # a fourth as many images as are fitted to, others than these, judge the candidates
FEWEST = 20  # images: to fit to and to judge by
TIMED_AT = (0.0, 0.2, 0.4, 0.6, 0.8)  # reductions whose latency is measured for a budget in ms
CALLS = 30  # of the engine, for a latency


@dataclass(frozen=True)
class Candidate:
    """One way to meet the budget, judged by images it was not fitted to.

    Args:
        kind: `static` or `dynamic`.
        reduction: Executed reduction on these images, predictors paid.
        error: How far its outputs are from the dense network's: the mean Kullback-Leibler
            divergence of class probabilities, or else the squared error as a share of the variance.
        agreement: Share of the images whose first guess is the dense network's; None where outputs
            are no class scores.
        network: The pruned network.
        repair: What the repair did.
    """

    kind: str
    reduction: float
    error: float
    agreement: float | None
    network: DynamicModel = field(repr=False)
    repair: Repair = field(repr=False)


@dataclass(frozen=True)
class Pruned(Shown):
    """A pruned network, and the candidates it was chosen from.

    Args:
        network: The pruned network, in eval mode, for `ftwt.compile`, `ftwt.evaluate`,
            `ftwt.save_pretrained` and `ftwt.train`.
        kind: `static` (the same filters for every image) or `dynamic`.
        why: Why this one.
        asked: The reduction asked for, or that of the latency asked for.
        candidates: All that were made, with their networks.
        dense_macs: MACs of the dense network for one image.
        images: Images fitted to.
        judged: Other images, that judged the candidates.
        provenance: Where the figures come from.
    """

    network: DynamicModel
    kind: str
    why: str
    asked: float
    candidates: tuple[Candidate, ...]
    dense_macs: int
    images: int
    judged: int
    provenance: dict[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the figures (not the networks) as JSON values."""
        left = ("network", "candidates")
        told = {name: value for name, value in vars(self).items() if name not in left}
        candidates = [
            {name: value for name, value in vars(one).items() if name not in ("network", "repair")}
            | {"repair": asdict(one.repair)}
            for one in self.candidates
        ]
        return told | {"candidates": candidates}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            "", title=f"pruned with {self.images:,} images, judged by {self.judged:,} others"
        )
        for column in ("fewer MACs", "agrees with the dense network", "error"):
            table.add_column(column, justify="right")
        for one in self.candidates:
            agreement = "" if one.agreement is None else f"{one.agreement:.2%}"
            chosen = f"{one.kind}{', chosen' if one.network is self.network else ''}"
            table.add_row(chosen, f"{one.reduction:.2%}", agreement, f"{one.error:.4f}")
        yield table
        yield self.why


def prune(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    reduction: float | None = None,
    latency_ms: float | None = None,
    gates: Gates = "auto",
    images: int = 2048,
    config: Any = None,
) -> Pruned:
    """Prune a trained network to a budget: no labels, no training.

    Units whose filters only layers read are pruned; residual streams stay whole. The same filters
    go for every image, those that their readers can best make good for (`static`), or predictors
    are fitted that choose filters for each image (`dynamic`). Then the layers behind the masks are
    repaired. Of several candidates the one is taken whose outputs stay nearest to the dense
    network's, on images that none was fitted to.

    Args:
        model: The trained network. It is not changed.
        batches: Images (B, C, *spatial) as the network takes them, with or without labels, which
            are not read. Gone through several times.
        reduction: Share of the dense MACs to save, by `executed` counting.
        latency_ms: Instead: time of one image on the native engine with one thread, on this
            machine. It is met by a fixed mask, and its reduction is asked of all candidates.
        gates: `static`, `dynamic`, or `auto`: both, and the better one is taken.
        images: How many images to fit to, at most; a fourth as many others judge.
        config: Kept in the provenance.

    Returns:
        The pruned network and how it was chosen.

    Raises:
        ValueError: Neither or both budgets are given, one is out of reach (the message names the
            range), there are fewer than 20 images, or the network has no unit to prune.
    """
    began = time.perf_counter()
    if (reduction is None) == (latency_ms is None):
        raise ValueError(
            f"reduction={reduction}, latency_ms={latency_ms}: give one of them, say reduction=0.3"
        )
    if gates not in get_args(Gates):
        raise ValueError(f"gates={gates!r}: use one of {', '.join(get_args(Gates))}")
    if reduction is not None and not 0 < reduction < 1:
        raise ValueError(f"reduction={reduction} is outside (0, 1); 0.3 saves 30% of the MACs")
    if iter(batches) is batches:
        batches = list(batches)
    fitted, judges = _divide(batches, images)
    dynamic = prunable(model, next(iter(fitted)))
    ranking = rank_filters(dynamic, fitted)
    if latency_ms is not None:
        reduction = _reduction_for(dynamic, ranking, latency_ms)
    assert reduction is not None
    expected = _Expected(model, judges)
    kinds = ("static", "dynamic") if gates == "auto" else (gates,)
    candidates, left_out = [], []
    for kind in kinds:
        try:
            if kind == "static":
                network = dynamic.fix(fixed_masks(dynamic, ranking, reduction=reduction))
            else:
                network = gated(dynamic, fitted, reduction=reduction, images=len(fitted))
        except ValueError as error:  # predictors cost so much that gates cannot reach the budget
            if gates != "auto" or kind == "static":
                raise
            left_out.append(f"; no {kind} one: {error}")
            continue
        told = repair(network, fitted, dense=model, images=len(fitted))
        if kind == "dynamic":  # repaired layers change what the next predictors see
            calibrate(network, fitted, reduction=reduction, images=len(fitted))
        candidates.append(expected.judge(kind, network.eval(), told))
    best = min(candidates, key=lambda one: one.error)
    why = (
        f"{best.kind}: the only candidate"
        if len(candidates) == 1
        else (f"{best.kind}: nearest to the dense network's outputs on held-out images")
    )
    return Pruned(
        network=best.network,
        kind=best.kind,
        why=why + "".join(left_out),
        asked=reduction,
        candidates=tuple(candidates),
        dense_macs=sum(layer.macs for layer in dynamic.channels.layers),
        images=len(fitted),
        judged=len(judges),
        provenance=provenance(config=config, duration_s=time.perf_counter() - began),
    )


class _Part:
    """Some of the images of batches, to be gone through again and again.

    Args:
        batches: Images, with or without labels.
        start: The first image.
        count: How many.
    """

    def __init__(self, batches: Iterable[Any], start: int, count: int) -> None:
        self.batches, self.start, self.count = batches, start, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        end, begin = self.start + self.count, 0
        for batch in self.batches:
            images = images_of(batch)
            part = images[max(0, self.start - begin) : max(0, end - begin)]
            begin += len(images)
            if len(part):
                yield part
            if begin >= end:
                return


def _divide(batches: Iterable[Any], images: int) -> tuple[_Part, _Part]:
    """Images to fit to, and others to judge by."""
    wanted = images + images // JUDGED
    there = sum(len(part) for _, part in first(batches, wanted))
    if there < FEWEST:
        raise ValueError(f"{there} images to prune with; give {FEWEST} or more")
    fit = min(images, there * JUDGED // (JUDGED + 1))
    return _Part(batches, 0, fit), _Part(batches, fit, there - fit)


def prunable(model: nn.Module, example: Tensor) -> DynamicModel:
    """Convert a network, with gates on the units whose filters only layers read."""
    options: dict[str, Any] = {"saliency": "energy", "pool": "both"}
    whole = convert(model, example[:2], **options)
    inner = set(inner_units(whole))
    outer = [unit.name for unit in whole.units if unit.inherits is None and unit.name not in inner]
    dynamic = convert(model, example[:2], skip=outer, **options).eval()
    if not dynamic.gates:
        raise ValueError(
            f"{type(model).__name__} has no unit to prune: its filters are all added to a residual "
            "stream, or none was found; ftwt.convert(model, example).summary() says why"
        )
    return dynamic


def gated(
    dynamic: DynamicModel, fitted: Iterable[Any], *, reduction: float, images: int = 2048
) -> DynamicModel:
    """A copy with fitted predictors, at a budget."""
    network = copy.deepcopy(dynamic)
    network.set_r(estimate(network, fitted, images=images).r_for(reduction=reduction))
    fit_predictors(network, fitted, images=images)
    calibrate(network, fitted, reduction=reduction, images=images)
    return network


class _Expected:
    """The dense network's outputs for the images that judge."""

    def __init__(self, model: nn.Module, judges: _Part) -> None:
        self.judges = judges
        with evaluating(model), torch.inference_mode():
            self.outputs = [model(images) for images in judges]
        first_output = self.outputs[0]
        if not isinstance(first_output, Tensor):
            raise ValueError(
                f"the network returns {type(first_output).__name__}, not one tensor; prune it with "
                "ftwt.convert and ftwt.repair"
            )
        self.scores = first_output.dim() == 2 and first_output.shape[1] > 1

    def judge(self, kind: str, network: DynamicModel, told: Repair) -> Candidate:
        """Compare a pruned network with the dense one."""
        error, spread, agree, executed = 0.0, 0.0, 0, 0.0
        with torch.inference_mode():
            for images, dense in zip(self.judges, self.outputs, strict=True):
                outputs, gates = network(images, return_gates="masks")
                masks = {unit: gate.mask for unit, gate in gates.items()}
                work = network.macs(masks).executed.expand(len(images))
                executed += float(work.sum())
                if self.scores:
                    p, q = dense.log_softmax(1), outputs.log_softmax(1)
                    error += float((p.exp() * (p - q)).sum())
                    agree += int((dense.argmax(1) == outputs.argmax(1)).sum())
                else:
                    error += float((dense - outputs).square().sum())
                    spread += float((dense - dense.mean(0)).square().sum())
        count = len(self.judges)
        total = sum(layer.macs for layer in network.channels.layers)
        return Candidate(
            kind=kind,
            reduction=1 - executed / (count * total),
            error=error / count if self.scores else error / max(spread, 1e-30),
            agreement=agree / count if self.scores else None,
            network=network,
            repair=told,
        )


def _reduction_for(dynamic: DynamicModel, ranking: Ranking, latency_ms: float) -> float:
    """The reduction at which fixed masks take that long, between measured points."""
    if not latency_ms > 0:
        raise ValueError(f"latency_ms={latency_ms}: give milliseconds above 0")
    image = np.zeros((1, *dynamic.input_shape), np.float32)
    reductions, times = [], []
    for asked in TIMED_AT:
        try:
            masks = fixed_masks(dynamic, ranking, reduction=asked)
        except ValueError:  # no mask saves as much
            break
        engine = compile(dynamic.fix(masks), check=False)
        engine(image)
        taken = []
        for _ in range(CALLS):
            start = time.perf_counter()
            engine(image)
            taken.append(1e3 * (time.perf_counter() - start))
        reductions.append(asked)
        times.append(float(np.median(taken)))
    if not min(times) <= latency_ms:
        raise ValueError(
            f"latency_ms={latency_ms} is out of reach; an image takes from {min(times):.2f} ms (at "
            f"{reductions[int(np.argmin(times))]:.0%} fewer MACs) to {times[0]:.2f} ms here"
        )
    if latency_ms >= times[0]:
        raise ValueError(
            f"latency_ms={latency_ms}: the dense network takes {times[0]:.2f} ms on this engine "
            "already; compile it with ftwt.compile"
        )
    falling = np.minimum.accumulate(times)
    return float(np.interp(-latency_ms, -falling, reductions))
