"""The ways to meet a budget that `ftwt.prune` chooses from, and the images that judge them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..budget.calibration import calibrate
from ..budget.estimate import estimate
from ..fitting.masks import Ranking, fixed_masks, inner_units
from ..fitting.predictors import fit_predictors
from ..fitting.repair import Repair, repair
from ..fitting.second_look import SecondLookFit, second_look
from ..graph.trace import evaluating
from ..pruning.convert import convert
from ..pruning.dynamic import DynamicModel, images_of
from ..pruning.second_look import SecondLook, opened, run_counted

STATIC, DYNAMIC, LOOK = "static", "dynamic", "second-look"
FURTHER = (0.1, 0.2)  # than asked: how much more a first pass saves, of which the better is taken


@dataclass(frozen=True)
class Candidate:
    """One way to meet the budget, judged by images it was not fitted to.

    Args:
        kind: `static`, `dynamic` or `second-look`.
        reduction: Executed reduction on these images, predictors and second looks paid.
        error: How far its outputs are from the dense network's: the mean Kullback-Leibler
            divergence of class probabilities, or else the squared error as a share of the variance.
        agreement: Share of the images whose first guess is the dense network's; None where outputs
            are no class scores.
        network: The pruned network.
        repair: What the repair did; of a second look, that of the first pass.
        look: Of a second look: its thresholds, and how many images are looked at again.
    """

    kind: str
    reduction: float
    error: float
    agreement: float | None
    network: DynamicModel | SecondLook = field(repr=False)
    repair: Repair = field(repr=False)
    look: SecondLookFit | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the figures (not the network) as JSON values."""
        told = {name: getattr(self, name) for name in ("kind", "reduction", "error", "agreement")}
        look = None
        if self.look is not None:
            look = {name: value for name, value in vars(self.look).items() if name != "network"}
        return told | {"repair": asdict(self.repair), "look": look}

    @property
    def rank(self) -> tuple[float, float]:
        """The least is best: most agreement, then least error; the error alone without classes."""
        return (0.0 if self.agreement is None else -self.agreement, self.error)


class Part:
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


class Judge:
    """The dense network's outputs for the images that judge.

    Args:
        model: The dense network.
        judges: Images that no candidate is fitted to.

    Raises:
        ValueError: The network returns something else than one tensor.
    """

    def __init__(self, model: nn.Module, judges: Part) -> None:
        self.judges = judges
        with evaluating(model), torch.inference_mode():
            self.outputs = [model(images.clone()) for images in judges]
        first_output = self.outputs[0]
        if not isinstance(first_output, Tensor):
            raise ValueError(
                f"the network returns {type(first_output).__name__}, not one tensor; prune it with "
                "ftwt.convert and ftwt.repair"
            )
        self.scores = first_output.dim() == 2 and first_output.shape[1] > 1

    def judge(
        self,
        kind: str,
        network: DynamicModel | SecondLook,
        told: Repair,
        look: SecondLookFit | None = None,
    ) -> Candidate:
        """Compare a pruned network with the dense one."""
        error, spread, agree, executed = 0.0, 0.0, 0, 0.0
        with torch.inference_mode():
            for images, dense in zip(self.judges, self.outputs, strict=True):
                if isinstance(network, SecondLook):
                    outputs, _, work = network.look(images)
                else:
                    outputs, work = run_counted(network, images)
                executed += float(work.sum())
                if self.scores:
                    p, q = dense.log_softmax(1), outputs.log_softmax(1)
                    error += float((p.exp() * (p - q)).sum())
                    agree += int((dense.argmax(1) == outputs.argmax(1)).sum())
                else:
                    error += float((dense - outputs).square().sum())
                    spread += float((dense - dense.mean(0)).square().sum())
        count = len(self.judges)
        last = network.last if isinstance(network, SecondLook) else network
        total = sum(layer.macs for layer in last.channels.layers)
        return Candidate(
            kind=kind,
            reduction=1 - executed / (count * total),
            error=error / count if self.scores else error / max(spread, 1e-30),
            agreement=agree / count if self.scores else None,
            network=network,
            repair=told,
            look=look,
        )


def looking(
    dynamic: DynamicModel,
    ranking: Ranking,
    fitted: Part,
    *,
    dense: nn.Module,
    judge: Judge,
    reduction: float,
) -> Candidate:
    """Make the second look that agrees with the dense network on most images.

    Its first pass is a repaired fixed mask that saves more than asked; the images that judge set
    its threshold.

    Args:
        dynamic: From `prunable`.
        ranking: Of its filters.
        fitted: Images to repair with.
        dense: The network that looks again.
        judge: Of images that the network was not trained on, best.
        reduction: Asked on average, both passes counted.

    Raises:
        ValueError: Outputs are no class scores, or no first pass saves enough.
    """
    if not judge.scores:
        raise ValueError("its outputs are no class scores, between whose two best is a margin")
    found: list[Candidate] = []
    for further in FURTHER:
        try:
            masks = fixed_masks(dynamic, ranking, reduction=reduction + further)
        except ValueError as error:
            if not found and further == FURTHER[-1]:
                raise ValueError(f"no first pass saves more than asked: {error}") from error
            continue
        first = dynamic.fix(masks)
        told = repair(first, fitted, dense=dense, images=len(fitted))
        passes = [first.eval(), opened(dynamic).eval()]
        fit = second_look(passes, judge.judges, reduction=reduction, images=len(judge.judges))
        found.append(judge.judge(LOOK, fit.network, told, fit))
    return min(found, key=lambda one: one.rank)
