"""Which filters an image needs: what the next layers cannot make up for, more or less by image.

A filter that always fires is not missed if its readers can make up for it, and one that rarely
fires may be missed when it does. So a filter's worth for an image is what least squares cannot
make up for when it goes (`rank_filters`), times how strongly it fires for this image beside its
mean, to the power `SPREAD`. At 0 all images would get one fixed mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..pruning.dynamic import DynamicModel
from .masks import Ranking, settle_gates

SPREAD = 0.25  # of 1, 0.5 and 0.25 what left most of ResNet-20's accuracy, on validation images
COUNTED = 512  # images whose MACs are counted to find the price


def worthwhile(
    dynamic: DynamicModel,
    ranking: Ranking,
    saliency: Mapping[str, Tensor],
    *,
    reduction: float,
) -> dict[str, Tensor]:
    """Tell which filters are worth their MACs for each image, at a budget.

    Args:
        dynamic: The network that was ranked, with its predictors.
        ranking: Of its filters.
        saliency: Unit -> (N, C) how strongly each filter fires, with all gates open.
        reduction: Share of the dense MACs to save on average, predictors paid.

    Returns:
        Unit -> (N, C) bool targets, which save the asked reduction as nearly as they can. Of each
        unit, the filter that would go last is always one.

    Raises:
        ValueError: The ranking is of another network, or the predictors cost so much that the
            reduction is out of reach.
    """
    if missing := saliency.keys() - ranking.order.keys():
        raise ValueError(f"the ranking lacks {', '.join(sorted(missing))}; rank this very network")
    dear = {name: _worth(dynamic, ranking, name, values) for name, values in saliency.items()}

    def masks(price: float, count: int | None = None) -> dict[str, Tensor]:
        return {name: each[:count] > price for name, each in dear.items()}

    def saved(price: float) -> float:
        """Share of all MACs that targets save at a price of one."""
        return float(dynamic.macs(dynamic.with_fixed(masks(price, COUNTED))).reduction.mean())

    all_of_them = torch.cat([each.flatten() for each in dear.values()])
    some = all_of_them[(all_of_them > 0) & all_of_them.isfinite()]
    if not len(some):  # all filters are silent: none is worth a MAC, but the last of each unit
        some = torch.ones(1)
    low, high = math.log(float(some.min()) / 2), math.log(float(some.max()))
    price = settle_gates(lambda log: saved(math.exp(log)), reduction, enough=high, little=low)
    return masks(math.exp(price))


def _worth(dynamic: DynamicModel, ranking: Ranking, unit: str, saliency: Tensor) -> Tensor:
    """(N, C) worth of each filter for each image, by the MACs that it costs."""
    order, lost = ranking.order[unit], ranking.lost[unit]
    grown = torch.full_like(lost, torch.inf)  # the last one never goes
    grown[order[:-1]] = lost.diff().clamp(min=1e-20)
    macs = dynamic.macs({unit: ~torch.eye(len(order), dtype=torch.bool)}).saved
    beside_mean = (saliency / saliency.mean(0).clamp(min=1e-30)).cpu().double()
    worth = grown / macs.clamp(min=1) * beside_mean**SPREAD
    return worth.nan_to_num(nan=torch.inf, posinf=torch.inf)  # the last one, even if silent
