"""Which filters an image's own guess depends on, with one threshold for all units of the image.

A filter's worth to first order is how much the guess would change if it went. Ranked over all units
at once, an image spends its filters on the units where it needs them.

Source: Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance Estimation for Neural Network
Pruning", CVPR 2019: activation times gradient. There the loss needs labels; here it is the
network's own guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..graph.trace import evaluating
from ..pruning.dynamic import DynamicModel, refuse_dense, refuse_static
from ..pruning.method import GateOutput
from ..pruning.second_look import are_scores
from .masks import settle_gates
from .passes import refuse_infinite, shown

BY_RANK = 1e-4  # part of a filter's place that its rank decides, not its mass


def first_order(
    dynamic: DynamicModel, batches: Iterable[tuple[Tensor, Any] | Tensor], *, images: int = 2048
) -> dict[str, Tensor]:
    """Say how much the network's own guess depends on each filter, image by image.

    That is the sum over space of |activation x gradient| of the log-probability of the most likely
    class, with all gates open. Labels are not used.

    Args:
        dynamic: A network with gates, whose outputs are class scores.
        batches: Images (B, C, *spatial), with or without labels.
        images: How many to look at, at most.

    Returns:
        Unit -> (N, C) non-negative saliencies, for `across_units`; their mean over images ranks
        filters for `fixed_masks`.

    Raises:
        ValueError: There are no gates, no images, the outputs are no class scores, or gradients
            are not finite.
    """
    refuse_dense(dynamic)
    if not dynamic.gates:
        raise ValueError("the network has no gates, so there are no filters to rank")
    saliencies: dict[str, list[Tensor]] = {name: [] for name in dynamic.gates}
    open_now: dict[str, Tensor] = {}

    def hold(name: str, result: tuple[Tensor, GateOutput]) -> tuple[Tensor, GateOutput]:
        features, told = result
        if not features.requires_grad:  # nothing before it can be differentiated
            features = features.detach().requires_grad_()
        open_now[name] = features
        return features.clone(), told  # what follows may work in place

    handles = [
        gate.register_forward_hook(lambda _, __, result, name=name: hold(name, result))
        for name, gate in dynamic.gates.items()
    ]
    try:
        with evaluating(dynamic), torch.enable_grad():
            for _, part in shown(dynamic, batches, images):
                outputs = dynamic(part.clone(), gates="open")
                if not are_scores(outputs):
                    raise ValueError(
                        "its outputs are no class scores, so there is no guess to differentiate; "
                        "fit predictors to a ranking instead (ftwt.rank_filters)"
                    )
                guess = outputs.log_softmax(1).amax(1).sum()
                slopes = torch.autograd.grad(
                    guess, list(open_now.values()), allow_unused=True, materialize_grads=True
                )
                for (name, features), slope in zip(open_now.items(), slopes, strict=True):
                    change = (features.detach() * slope).abs()
                    saliencies[name].append(change.reshape(*change.shape[:2], -1).sum(2))
    finally:
        for handle in handles:
            handle.remove()
    if not all(saliencies.values()):
        raise ValueError("no images to rank filters on; give batches of images")
    found = {name: torch.cat(parts) for name, parts in saliencies.items()}
    for name, each in found.items():
        refuse_infinite(f"gradients at {name} are", each)
    return found


def across_units(
    dynamic: DynamicModel, saliency: Mapping[str, Tensor], *, reduction: float
) -> dict[str, Tensor]:
    """Keep each image's strongest filters, with one threshold for all of its units.

    The filters of an image are ranked as if all of its units were one, and those that hold a share
    of the mass are kept: one share for all images, at the budget. So an image may spend more on one
    unit and less on another. The strongest filter of each unit always stays. Other filters whose
    saliency is zero never do: where they are many, more is saved than asked.

    Args:
        dynamic: The network, with its predictors.
        saliency: Unit -> (N, C) how strongly each filter fires or matters, in a measure that all
            units share.
        reduction: Share of the dense MACs to save on average, predictors paid.

    Returns:
        Unit -> (N, C) bool targets, for `fit_predictors`.

    Raises:
        ValueError: There are no predictors, a gate's saliency is missing, or predictors cost so
            much that the reduction is out of reach.
    """
    refuse_static(dynamic)
    if missing := dynamic.predictors.keys() - saliency.keys():
        raise ValueError(f"no saliency of {', '.join(sorted(missing))}; give that of all gates")
    saliency = {name: saliency[name].cpu() for name in dynamic.predictors}
    before = _before(torch.cat([*saliency.values()], 1).double())
    widths = [each.shape[1] for each in saliency.values()]
    strongest = {name: each.argmax(1, keepdim=True) for name, each in saliency.items()}

    def masks(r: float) -> dict[str, Tensor]:
        kept = dict(zip(saliency, (before < r).split(widths, 1), strict=True))
        return {name: each.scatter(1, strongest[name], True) for name, each in kept.items()}

    def saved(r: float) -> float:
        return float(dynamic.macs(dynamic.with_fixed(masks(r))).reduction.mean())

    return masks(settle_gates(saved, reduction, enough=1e-6, little=1.0))


def _before(saliency: Tensor) -> Tensor:
    """(N, C) share of an image's mass that stronger filters hold, in [0, 1); inf where it is 0.

    Shares of the faintest filters are too small to tell one from the next. So a small part of the
    share is the filter's rank.
    """
    count = saliency.shape[1]
    ranked, order = saliency.sort(dim=1, descending=True, stable=True)
    ahead = (ranked.cumsum(1) - ranked) / ranked.sum(1, keepdim=True).clamp(min=1e-30)
    ahead = (1 - BY_RANK) * ahead.clamp(0, 1) + BY_RANK * torch.arange(count) / count
    return torch.empty_like(ahead).scatter(1, order, ahead.masked_fill(ranked <= 0, torch.inf))
