"""Fixed masks: the filters that any input needs most, at a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.operations import SUMS, Conv
from ..graph.recognise import recognised
from ..graph.trace import evaluating
from ..processes import first, summed
from ..pruning.dynamic import DynamicModel
from ..pruning.method import target_mask

DEAREST = 1e9  # price of all MACs, in losses
HALVINGS = 30  # of an interval of r, or of the price of a MAC


@dataclass(frozen=True)
class Ranking:
    """In which order the filters of each unit go, and what that costs.

    Args:
        order: Unit -> (C,) filters, the first to go first.
        lost: Unit -> (C,) float64: the error that is left when the first 0, 1, ... C - 1 are gone,
            in a measure that all units share.
    """

    order: dict[str, Tensor]
    lost: dict[str, Tensor]

    def masks(self, gone: Mapping[str, int]) -> dict[str, Tensor]:
        """Unit -> (C,) bool masks without the first so many of each unit."""
        found = {}
        for name, order in self.order.items():
            found[name] = torch.ones(len(order), dtype=torch.bool)
            found[name][order[: gone[name]]] = False
        return found


def inner_units(dynamic: DynamicModel) -> list[str]:
    """Name the units whose filters are read by layers alone, not added to a residual stream.

    What a mask takes from such a unit, a repair of the next layers can make up for. What is taken
    from a residual stream all later blocks miss.

    Args:
        dynamic: A network with gates.

    Returns:
        Names of units with a gate, in execution order.
    """
    masked_too = {unit.name for unit in dynamic.units if unit.inherits is not None}
    found = []
    for node in dynamic.network.graph.nodes:
        if "masked" in node.meta and not _is_added(node, dynamic.network, masked_too):
            found.append(str(node.meta["masked"]))
    return found


def _is_added(node: fx.Node, network: fx.GraphModule, masked_too: set[str]) -> bool:
    """Whether a value reaches a sum or the output before a layer that mixes its channels."""
    todo, seen = [node], {node}
    while todo:
        for user in todo.pop().users:
            if user in seen or {"gate", "info"} & user.meta.keys():
                continue
            if user.op == "output" or recognised(user, network) in SUMS:
                return True
            seen.add(user)
            name = str(user.target)
            module = network.get_submodule(name) if user.op == "call_module" else None
            if name in masked_too or not isinstance(module, Conv | nn.Linear):
                todo.append(user)
    return False


@torch.no_grad()
def mean_saliency(
    dynamic: DynamicModel,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    images: int = 2048,
    accelerator: Any = None,
) -> dict[str, Tensor]:
    """Average how strongly each filter fires, with all gates open.

    Args:
        dynamic: A network with gates, whose `saliency` option says what is averaged.
        batches: Images, with or without labels.
        images: How many to look at, at most, over all processes together.
        accelerator: As for `repair`.

    Returns:
        Unit -> (C,) float64 mean saliency.

    Raises:
        ValueError: There are no images, or a unit is fixed.
    """
    if fixed := sorted(dynamic.gates.keys() - dynamic.predictors.keys()):
        raise ValueError(f"{fixed[0]} is fixed, and so has no saliency; rank before `fix`")
    device = next(dynamic.parameters()).device
    count = torch.zeros(1, dtype=torch.float64, device=device)
    sums: dict[str, Tensor] = {
        unit.name: count.repeat(unit.out_channels)
        for unit in dynamic.units
        if unit.inherits is None
    }
    with evaluating(dynamic):
        for _, part in first(batches, images, accelerator=accelerator):
            if not len(part):
                continue
            dynamic.check_input(part)
            _, gates = dynamic(part.to(device), gates="open", return_gates="saliency")
            for name, gate in gates.items():
                sums[name] += gate.saliency.double().sum(0)
            count += len(part)
    count, *totals = summed([count, *sums.values()], accelerator=accelerator)
    if not count:
        raise ValueError("no images to rank filters on; give batches of images")
    return {name: total / count for name, total in zip(sums, totals, strict=True)}


def fixed_masks(
    dynamic: DynamicModel, ranking: Ranking | Mapping[str, Tensor], *, reduction: float
) -> dict[str, Tensor]:
    """Keep the filters of each unit that matter most, at a budget.

    By a ranking, the sum of all units' losses is as small as a Lagrange relaxation finds it at the
    budget; then single filters are taken back. By saliencies, every unit keeps the fewest filters
    that hold one share of its saliency; filters without any never stay.

    Args:
        dynamic: The network.
        ranking: Of `rank_filters`; or unit -> (C,) saliency, 0 or more.
        reduction: Share of the dense MACs to save, by `executed` counting without predictors.

    Returns:
        Unit -> (C,) bool masks, which save the asked reduction, and as little more as possible.

    Raises:
        ValueError: The reduction is out of reach (the message names the range), or a saliency is
            negative or not finite.
    """
    if isinstance(ranking, Ranking):
        return _by_loss(dynamic, ranking, reduction)
    for name, saliency in ranking.items():
        if not bool((saliency.isfinite() & (saliency >= 0)).all()):
            raise ValueError(
                f"the saliency of {name} holds NaN, inf or negative values; give sizes"
            )

    def masks(r: float) -> dict[str, Tensor]:
        return {name: target_mask(s[None], r)[0] for name, s in ranking.items()}

    low, high = 1e-6, 1.0
    if reduction <= (least := _saved(dynamic, masks(high))):
        return masks(high)
    _check(reduction, least, _saved(dynamic, masks(low)))
    return masks(settle(lambda r: _saved(dynamic, masks(r)), reduction, enough=low, little=high))


def settle(
    saved: Callable[[float], float], reduction: float, *, enough: float, little: float
) -> float:
    """Find the value that just saves what is asked, between one that does and one that does not."""
    for _ in range(HALVINGS):
        middle = (enough + little) / 2
        if saved(middle) >= reduction:
            enough = middle
        else:
            little = middle
    return enough


def settle_gates(
    saved: Callable[[float], float], reduction: float, *, enough: float, little: float
) -> float:
    """The same for what gates save once their predictors are paid.

    Raises:
        ValueError: They cannot save so much.
    """
    if reduction > (most := saved(enough)):
        raise ValueError(
            f"reduction={reduction} is out of reach of gates; with what their predictors cost, "
            f"they save up to {most:.3f} of this network's MACs"
        )
    return settle(saved, reduction, enough=enough, little=little)


def _by_loss(dynamic: DynamicModel, ranking: Ranking, reduction: float) -> dict[str, Tensor]:
    """Minimise the sum of all units' losses at a budget."""
    alone = {name: _alone(dynamic, name, order) for name, order in ranking.order.items()}

    def chosen(price: float) -> dict[str, int]:
        """How many filters of each unit go, if a network's MACs are worth so much loss."""
        return {
            name: int((lost - price * alone[name]).argmin()) for name, lost in ranking.lost.items()
        }

    none, most = dict.fromkeys(ranking.order, 0), {n: len(o) - 1 for n, o in ranking.order.items()}
    _check(reduction, _saved(dynamic, ranking.masks(none)), _saved(dynamic, ranking.masks(most)))

    def saved(price: float) -> float:
        return _saved(dynamic, ranking.masks(chosen(price)))

    high = 1.0
    while (there := saved(high)) < reduction and high < DEAREST:
        high *= 4
    enough = there >= reduction
    gone = chosen(settle(saved, reduction, enough=high, little=0.0)) if enough else most
    while True:  # the relaxation goes past the budget by up to a step: take back what it can spare
        back = []
        for name, count in gone.items():
            fewer = gone | {name: count - 1}
            if count and _saved(dynamic, ranking.masks(fewer)) >= reduction:
                back.append(
                    (float(ranking.lost[name][count] - ranking.lost[name][count - 1]), name)
                )
        if not back:
            return ranking.masks(gone)
        gone[max(back)[1]] -= 1


def _alone(dynamic: DynamicModel, unit: str, order: Tensor) -> Tensor:
    """(C,) share of all MACs saved when the first 0, 1, ... filters of one unit go."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    work = dynamic.macs({unit: rank[None] >= torch.arange(len(order))[:, None]})
    return work.saved / work.dense


def _saved(dynamic: DynamicModel, masks: Mapping[str, Tensor]) -> float:
    work = dynamic.macs({name: mask[None].cpu() for name, mask in masks.items()})
    return float(work.saved) / work.dense


def _check(reduction: float, least: float, most: float) -> None:
    if not least <= reduction <= most:
        raise ValueError(
            f"reduction={reduction} is out of reach; fixed masks of these units save from "
            f"{max(0.0, least):.3f} to {most:.3f} of this network's MACs"
        )
