"""The ways to meet a budget that `ftwt.prune` chooses from, and the images that judge them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..budget.calibration import calibrate
from ..budget.estimate import estimate
from ..fitting.masks import Ranking, fixed_masks, inner_units
from ..fitting.mixed import Mixed, mix
from ..fitting.predictors import fit_predictors
from ..fitting.repair import Repair, repair
from ..fitting.second_look import SecondLookFit, Seen, fitted_to, see
from ..graph.inputs import images_of
from ..graph.trace import evaluating
from ..pruning.convert import convert
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook, are_scores, opened, run_counted
from .latency import FEW, Budget

STATIC, DYNAMIC, MIXED, LOOK = "static", "dynamic", "mixed", "second-look"
FURTHER = (0.1, 0.2)  # than asked: how much more a first pass saves, of which the better is taken
MISSED = 0.02  # of the MACs: gates whose reduction is further from the asked one are refused


class Refused(ValueError):
    """A kind cannot meet the budget, or the network has no such candidate."""


@contextmanager
def refusals() -> Iterator[None]:
    """Tell what a step refuses from errors of what it calls for the user: as `Refused`."""
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from error


@dataclass(frozen=True)
class Candidate:
    """One way to meet the budget, judged by images it was not fitted to.

    Args:
        kind: `static`, `dynamic`, `mixed` or `second-look`.
        reduction: Executed reduction on these images, predictors and second looks paid.
        error: How far its outputs are from the dense network's: the mean Kullback-Leibler
            divergence of class probabilities, or else the squared error as a share of the variance.
        agreement: Share of the images whose first guess is the dense network's; None where outputs
            are no class scores.
        network: The pruned network.
        repair: What the repair did; of a second look, that of the first pass.
        look: Of a second look: its thresholds, and how many images are looked at again.
        again: Of a second look: share of these images that are looked at again. As reduction, error
            and agreement, by thresholds from the other half of the images.
        latency_ms: Of an image on the native engine with one thread, on average; None where it was
            not measured.
        mixed: Of gates and fixed masks side by side: which unit got which.
    """

    kind: str
    reduction: float
    error: float
    agreement: float | None
    network: DynamicModel | SecondLook = field(repr=False)
    repair: Repair = field(repr=False)
    look: SecondLookFit | None = field(default=None, repr=False)
    again: float = 0.0
    latency_ms: float | None = None
    mixed: Mixed | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the figures (not the network) as JSON values."""
        names = ("kind", "reduction", "error", "agreement", "again", "latency_ms")
        told = {name: getattr(self, name) for name in names}
        look = None
        if self.look is not None:
            look = {name: value for name, value in vars(self.look).items() if name != "network"}
        mixed = None if self.mixed is None else asdict(self.mixed)
        return told | {"repair": asdict(self.repair), "look": look, "mixed": mixed}


class Part:
    """Some of the images of batches, to be gone through again and again.

    Args:
        batches: Images, with or without labels.
        start: The first image.
        count: How many.
        device: Where they are wanted.
    """

    def __init__(
        self, batches: Iterable[Any], start: int, count: int, device: torch.device
    ) -> None:
        self.batches, self.start, self.count, self.device = batches, start, count, device

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        end, begin = self.start + self.count, 0
        for batch in self.batches:
            images = images_of(batch)
            part = images[max(0, self.start - begin) : max(0, end - begin)]
            begin += len(images)
            if len(part):
                yield part.to(self.device)
            if begin >= end:
                return


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
    dynamic: DynamicModel,
    ranking: Ranking,
    fitted: Iterable[Any],
    *,
    reduction: float,
    images: int = 2048,
) -> DynamicModel:
    """A copy with predictors fitted for a budget, which `hold` settles.

    `r` is what training would start from: as near to the budget as targets of it come.
    """
    network = copy.deepcopy(dynamic)
    curve = estimate(network, fitted, images=images)
    reached = min(max(reduction, min(curve.reduction)), max(curve.reduction))
    network.set_r(curve.r_for(reduction=reached))
    fit_predictors(network, fitted, ranking=ranking, reduction=reduction, images=images)
    return network


def hold(network: DynamicModel, fitted: Iterable[Any], *, reduction: float, images: int) -> None:
    """Let gates save as much as asked of them, in place.

    Raises:
        ValueError: They cannot: it is out of reach, or their thresholds jump past it.
    """
    found = calibrate(network, fitted, reduction=reduction, images=images)
    if abs(found.achieved - reduction) > MISSED:
        raise ValueError(
            f"gates save {found.achieved:.1%} of the MACs where {reduction:.1%} were asked of "
            "them: their thresholds jump past it"
        )


class Judge:
    """The dense network's outputs for the images that judge.

    Args:
        model: The dense network.
        judges: Images that no candidate is fitted to.
        dynamic: From `prunable`: it says which images it takes.
        scores: Whether outputs (B, K > 1) are class scores.

    Raises:
        ValueError: The network returns something else than one tensor, or the images are of another
            size or not finite.
    """

    def __init__(
        self, model: nn.Module, judges: Part, dynamic: DynamicModel, *, scores: bool = True
    ) -> None:
        self.judges = judges
        outputs = []
        with evaluating(model), torch.inference_mode():
            for images in judges:
                dynamic.check_input(images)
                outputs.append(model(images.clone()))
        if not isinstance(outputs[0], Tensor):
            raise ValueError(
                f"the network returns {type(outputs[0]).__name__}, not one tensor; prune it with "
                "ftwt.convert and ftwt.repair"
            )
        self.outputs = torch.cat(outputs).cpu()
        self.scores = scores and are_scores(self.outputs)

    def judge(self, kind: str, network: DynamicModel, told: Repair) -> Candidate:
        """Compare a pruned network with the dense one."""
        with torch.inference_mode():
            found = [run_counted(network, images) for images in self.judges]
        outputs, executed = (torch.cat(column) for column in zip(*found, strict=True))
        total = sum(layer.macs for layer in network.channels.layers)
        return Candidate(
            kind=kind,
            reduction=1 - float(executed.mean()) / total,
            network=network,
            repair=told,
            **self.compare(outputs),
        )

    def judge_look(
        self, fit: SecondLookFit, seen: Seen, reduction: float, told: Repair
    ) -> Candidate:
        """Compare a second look with the dense network, by thresholds from the other half."""
        looked = seen.crossed(reduction=reduction)
        return Candidate(
            kind=LOOK,
            reduction=1 - float(looked.executed.mean()) / seen.dense,
            network=fit.network,
            repair=told,
            look=fit,
            again=float((looked.passes > 1).double().mean()),
            **self.compare(looked.outputs),
        )

    def compare(self, outputs: Tensor) -> dict[str, Any]:
        """Error and agreement of outputs for all images that judge."""
        return nearness(self.outputs, outputs.cpu(), scores=self.scores)


def nearness(dense: Tensor, outputs: Tensor, *, scores: bool) -> dict[str, Any]:
    """Error and agreement of a candidate's outputs, as of `Candidate`.

    Args:
        dense: (B, classes) class scores of the dense network, or other outputs of it.
        outputs: The candidate's.
        scores: Whether they are class scores.
    """
    dense, outputs = dense.double(), outputs.double()
    if scores:
        p, q = dense.log_softmax(1), outputs.log_softmax(1)
        same = dense.argmax(1) == outputs.argmax(1)
        error = float((p.exp() * (p - q)).sum(1).mean())
        return {"error": error, "agreement": float(same.double().mean())}
    spread = float((dense - dense.mean(0)).square().sum())
    error = float((dense - outputs).square().sum())
    return {"error": error / max(spread, 1e-30), "agreement": None}


def nearest(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate nearest to the dense network.

    Networks of one pass are compared by their error: of few images it tells more than agreement.
    The best of them is compared with second looks by agreement: an image that is not looked at
    again keeps the error of the first pass, but nearly always has the dense network's guess.
    """
    once = [one for one in candidates if one.look is None]
    left = [one for one in candidates if one.look is not None]
    if once:
        left.append(min(once, key=lambda one: one.error))
    return min(left, key=lambda one: (-(one.agreement or 0.0), one.error))


@dataclass
class Workshop:
    """Makes candidates of one network for one budget.

    Args:
        dynamic: From `prunable`.
        ranking: Of its filters.
        fitted: Images to fit to.
        dense: The network that is pruned.
        judge: Of images that the network was not trained on, best.
        budget: What each candidate may cost; of a second look, on average, both passes counted.
        teach: What trains each in place, once it is repaired. Its errors are the caller's.
    """

    dynamic: DynamicModel
    ranking: Ranking
    fitted: Part
    dense: nn.Module
    judge: Judge
    budget: Budget
    teach: Callable[[DynamicModel], Any] | None = None

    @cached_property
    def gates(self) -> DynamicModel:
        """The network with fitted predictors, neither at the budget nor repaired."""
        return gated(
            self.dynamic, self.ranking, self.fitted,
            reduction=self.budget.reduction, images=len(self.fitted),
        )  # fmt: skip

    def make(self, kind: str) -> Candidate:
        """Make a candidate of one kind: pruned, repaired and judged.

        Raises:
            Refused: It cannot meet the budget, or the network has no such candidate.
        """
        if kind == LOOK:
            return self.second_look_candidate()
        reduction, mixed = self.budget.reduction, None
        with refusals():
            if kind == STATIC:
                network = self.dynamic.fix(self.masks(reduction))
            elif kind == DYNAMIC:
                network = copy.deepcopy(self.gates)
            else:
                network, mixed = mix(self.gates, self.ranking, self.fitted, reduction=reduction)
            if network.predictors:  # near the budget; it is settled after the repair
                seen = len(self.fitted) if mixed is None else FEW
                calibrate(network, self.fitted, reduction=reduction, images=seen)
                reduction = self.budget.settle(network, self.fitted)
        told = self.repaired(network)
        if network.predictors:  # repaired layers change what the next predictors see
            with refusals():
                hold(network, self.fitted, reduction=reduction, images=len(self.fitted))
        return replace(self.judge.judge(kind, network.eval(), told), mixed=mixed)

    def second_look_candidate(self) -> Candidate:
        """Make the second look that agrees with the dense network on most images.

        Its first pass is a repaired fixed mask that saves more than asked; the images that judge
        set its threshold.

        Raises:
            Refused: Outputs are no class scores, or no first pass saves enough.
        """
        judge = self.judge
        if not judge.scores:
            raise Refused("a second look needs class scores (B, classes); these outputs are none")
        candidates: list[Candidate] = []
        refused: list[ValueError] = []
        second = opened(self.dynamic).eval()
        again = see(second, judge.judges, len(judge.judges))
        for further in FURTHER:
            cut = self.budget.reduction + further
            try:
                first = self.dynamic.fix(self.masks(cut)).eval()
                asked = self.budget.average(first, second, cut)
            except ValueError as error:
                refused.append(error)
                continue
            told = self.repaired(first)
            network = SecondLook([first.eval(), second], [0.0])
            seen = Seen([see(first, judge.judges, len(judge.judges)), again], network.dense_macs)
            with refusals():
                fit = fitted_to(seen, network, reduction=asked)
                candidates.append(judge.judge_look(fit, seen, asked, told))
        if not candidates:
            raise Refused(f"no first pass saves enough: {refused[0]}")
        return nearest(candidates)

    def masks(self, reduction: float) -> dict[str, Tensor]:
        """Fixed masks that save so much."""
        return fixed_masks(self.dynamic, self.ranking, reduction=reduction)

    def repaired(self, network: DynamicModel) -> Repair:
        """Repair a network in place, and teach it."""
        with refusals():
            told = repair(network, self.fitted, dense=self.dense, images=len(self.fitted))
        if self.teach is not None:
            self.teach(network)
        return told
