"""Predictors without epochs: logistic regression on what one pass over the images shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from ..files.tables import Shown
from ..graph.trace import evaluating
from ..processes import alone, first, gathered
from ..pruning.dynamic import DynamicModel, refuse_static
from ..pruning.method import MaskPredictor
from ..pruning.own import OwnPredictor
from .masks import Ranking
from .passes import refuse_infinite
from .samples import HELD_OUT, held_out
from .worth import worthwhile

DECAYS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # of the squared weights, the strongest first
RISEN = 1.01  # times the least error on held-out images: weaker decays are worse still
ITERATIONS = 60  # of L-BFGS, for each decay


@dataclass(frozen=True)
class FittedPredictors(Shown):
    """How well predictors guess their targets on held-out images.

    Args:
        accuracy: Unit -> share of the filters for which predicted and target mask agree.
        constant: Unit -> the same, were each filter's mask what it is most often.
        images: Images looked at.
    """

    accuracy: dict[str, float]
    constant: dict[str, float]
    images: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("unit", title=f"predictors fitted on {self.images:,} images")
        for column in ("agree with their targets", "a constant mask would"):
            table.add_column(column, justify="right")
        for name, share in self.accuracy.items():
            table.add_row(name, f"{share:.1%}", f"{self.constant[name]:.1%}")
        yield table


def fit_predictors(
    dynamic: DynamicModel,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    ranking: Ranking | None = None,
    reduction: float | None = None,
    targets: Mapping[str, Tensor] | None = None,
    images: int = 2048,
    accelerator: Any = None,
) -> FittedPredictors:
    """Fit all predictors, in place, to the targets of the network with open gates.

    One pass over the images, then a logistic regression for each unit: L-BFGS, with the weight
    decay that is best on held-out images. Labels are not used.

    Args:
        dynamic: A network with predictors; its `r` says which filters are targets.
        batches: Images (B, C, *spatial), with or without labels.
        ranking: Of its filters, by `rank_filters`. Then targets are not those of `r`, but the
            filters that are worth their MACs for each image: what the next layers cannot make up
            for, weighed by how strongly it fires. So is a network fitted that is repaired next.
        reduction: With `ranking`: share of the dense MACs that such targets save.
        targets: Instead: unit -> (N, C) bool, the filters that each of the first N images needs, in
            their order: from `across_units`, or by a rule of your own.
        images: How many to look at, at most, over all processes together.
        accelerator: As for `repair`: then all get the same predictors.

    Returns:
        How well the predictors guess on held-out images.

    Raises:
        ValueError: There are fewer than 5 images, no predictors, or one that is held; one of
            `ranking` and `reduction` is given alone, or the reduction is out of reach; the ranking
            or the targets are not those of these units and images; or features are not finite.
    """
    refuse_static(dynamic)
    if (ranking is None) != (reduction is None):
        raise ValueError(
            f"reduction={reduction} and {'no' if ranking is None else 'a'} ranking: give both, or "
            "neither, and targets are those of r"
        )
    if reduction is not None and not 0 < reduction < 1:
        raise ValueError(f"reduction={reduction} is outside (0, 1); 0.3 saves 30% of the MACs")
    if ranking is not None and targets is not None:
        raise ValueError("a ranking and targets are two rules; give one of them")
    for name, predictor in dynamic.predictors.items():
        if not any(parameter.requires_grad for parameter in predictor.parameters()):
            raise ValueError(
                f"the predictor of {name} is held; dynamic.hold_predictors(False) lets it be fitted"
            )
    what: Literal["saliency", "target"] = "target" if ranking is None else "saliency"
    features, seen = _look(dynamic, batches, images, accelerator, what=what)
    count = len(next(iter(seen.values()), ()))
    if count < HELD_OUT:
        raise ValueError(f"{count} images to fit predictors with; give {HELD_OUT} or more")
    if ranking is not None and reduction is not None:
        targets = worthwhile(dynamic, ranking, seen, reduction=reduction)
    elif targets is not None:
        _check(targets, seen, accelerator)
    else:
        targets = seen
    held = held_out(torch.arange(count))
    accuracy, constant = {}, {}
    for name, predictor in dynamic.predictors.items():
        x = features[name]
        y = targets[name].to(x.device)
        _fit(predictor, x, y, held)
        with torch.no_grad():
            guess = _logits(predictor, x[held]) > 0
            usual = y[~held].float().mean(0) > 0.5
        accuracy[name] = float((guess == y[held]).float().mean())
        constant[name] = float((usual == y[held]).float().mean())
    return FittedPredictors(accuracy, constant, count)


def _check(targets: Mapping[str, Tensor], seen: Mapping[str, Tensor], accelerator: Any) -> None:
    """Refuse targets that are not those of the units and images that were seen."""
    if not alone(accelerator):
        raise ValueError("targets of your own are those of one process; leave accelerator out")
    if missing := seen.keys() - targets.keys():
        raise ValueError(f"no targets for {', '.join(sorted(missing))}; give those of all gates")
    for name, each in seen.items():
        given = targets[name]
        if given.shape != each.shape or given.dtype != torch.bool:
            raise ValueError(
                f"targets of {name} are {given.dtype} of shape {tuple(given.shape)}; give bool of "
                f"shape {tuple(each.shape)}: images looked at, filters"
            )


@torch.no_grad()
def _look(
    dynamic: DynamicModel,
    batches: Iterable[Any],
    images: int,
    accelerator: Any,
    *,
    what: Literal["saliency", "target"] = "saliency",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Unit -> (N, width) what its predictor's first layer reads, and (N, C) `what` of its gate."""
    device = next(dynamic.parameters()).device
    features: dict[str, list[Tensor]] = {name: [] for name in dynamic.predictors}
    seen: dict[str, list[Tensor]] = {name: [] for name in dynamic.predictors}
    handles = [
        _entrance(predictor).register_forward_pre_hook(
            lambda _, inputs, name=name: features[name].append(inputs[0])
        )
        for name, predictor in dynamic.predictors.items()
    ]
    try:
        with evaluating(dynamic):
            for _, part in first(batches, images, accelerator=accelerator):
                if len(part):
                    dynamic.check_input(part)
                    _, gates = dynamic(part.to(device), gates="open", return_gates=True)
                    for name, found in seen.items():
                        found.append(getattr(gates[name], what))
    finally:
        for handle in handles:
            handle.remove()

    def joined(found: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        none = torch.empty(0, device=device)  # other processes may hold all of the images
        return {
            name: gathered(torch.cat(parts) if parts else none, accelerator=accelerator)
            for name, parts in found.items()
        }

    features_of, seen_of = joined(features), joined(seen)
    for name, each in features_of.items():
        refuse_infinite(f"the predictor of {name} reads values that are", each)
    return features_of, seen_of


def _entrance(predictor: MaskPredictor) -> nn.Module:
    """The first module that reads pooled features (after the softmax of that head)."""
    if isinstance(predictor, OwnPredictor):
        return predictor.own
    return predictor.standardize or predictor.reduce or predictor.linear


def _logits(predictor: MaskPredictor, x: Tensor) -> Tensor:
    if isinstance(predictor, OwnPredictor):
        return predictor.own(x)
    if predictor.standardize is not None:
        x = predictor.standardize(x)
    return predictor.linear(x if predictor.reduce is None else predictor.reduce(x))


@torch.enable_grad()
def _fit(predictor: MaskPredictor, x: Tensor, y: Tensor, held: Tensor) -> None:
    """Fit one predictor with the decay that is best on held-out samples.

    Decays grow weaker until the error there rises: from few samples of many features, weak ones
    only learn these samples by heart.
    """
    training = predictor.training
    predictor.eval()
    if predictor.standardize is not None:
        with torch.no_grad():
            predictor.standardize.running_mean.copy_(x.mean(0))
            predictor.standardize.running_var.copy_(x.var(0, unbiased=False))
    learns = [p for p in predictor.parameters() if p.requires_grad]
    goal = y.float()
    start = {name: value.clone() for name, value in predictor.state_dict().items()}
    best, state = float("inf"), start
    for decay in DECAYS:
        predictor.load_state_dict(start)
        optimizer = torch.optim.LBFGS(
            learns, max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.Optimizer = optimizer, decay: float = decay) -> Tensor:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(_logits(predictor, x[~held]), goal[~held])
            loss = loss + decay * sum(p.square().sum() for p in learns if p.dim() > 1) / len(y[0])
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            logits = _logits(predictor, x[held])
            error = float(F.binary_cross_entropy_with_logits(logits, goal[held]))
        if error < best:
            best = error
            state = {name: value.clone() for name, value in predictor.state_dict().items()}
        elif error > RISEN * best:
            break
    predictor.load_state_dict(state)
    for parameter in learns:
        parameter.grad = None
    predictor.train(training)
