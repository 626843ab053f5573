"""Fixed masks: the filters that any input needs most, at a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.operations import Conv
from ..graph.trace import evaluating
from ..processes import alone, first
from ..pruning.dynamic import DynamicModel
from ..pruning.method import target_mask
from .sites import is_add

HALVINGS = 30  # of the interval of r


def inner_units(dynamic: DynamicModel) -> list[str]:
    """Name the units whose filters are read by layers alone, not added to a residual stream.

    What a mask takes from such a unit, a repair of the next layers can make good for. What is taken
    from a residual stream all later blocks miss.

    Args:
        dynamic: A network with gates.

    Returns:
        Names of units with a gate, in execution order.
    """
    modules: Mapping[str, nn.Module] = dict(dynamic.network.named_modules())
    found = []
    for node in dynamic.network.graph.nodes:
        if "masked" in node.meta and not _is_added(node, modules):
            found.append(str(node.meta["masked"]))
    return found


def _is_added(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a value reaches a sum or the output before it reaches a layer."""
    todo, seen = [node], {node}
    while todo:
        for user in todo.pop().users:
            if user in seen or {"gate", "info"} & user.meta.keys():
                continue
            if user.op == "output" or is_add(user):
                return True
            seen.add(user)
            module = modules.get(str(user.target)) if user.op == "call_module" else None
            if not isinstance(module, Conv | nn.Linear):
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
        ValueError: There are no images.
    """
    device = next(dynamic.parameters()).device
    sums: dict[str, Tensor] = {}
    count = torch.zeros(1, dtype=torch.float64, device=device)
    with evaluating(dynamic):
        for _, part in first(batches, images, accelerator=accelerator):
            if not len(part):
                continue
            dynamic.check_input(part)
            _, gates = dynamic(part.to(device), gates="open", return_gates="saliency")
            for name, gate in gates.items():
                total = gate.saliency.double().sum(0)
                sums[name] = sums[name] + total if name in sums else total
            count += len(part)
    if not alone(accelerator):
        from accelerate.utils import reduce

        count, *totals = reduce([count, *sums.values()], "sum")
        sums = dict(zip(sums, totals, strict=True))
    if not count:
        raise ValueError("no images to rank filters on; give batches of images")
    return {name: total / count for name, total in sums.items()}


def fixed_masks(
    dynamic: DynamicModel, saliency: Mapping[str, Tensor], *, reduction: float
) -> dict[str, Tensor]:
    """Keep the strongest filters of each unit, at a budget.

    Every unit keeps the fewest filters that hold one share of its saliency; the share is chosen
    such that the budget is met.

    Args:
        dynamic: The network.
        saliency: Unit -> (C,) saliency.
        reduction: Share of the dense MACs to save, by `executed` counting without predictors.

    Returns:
        Unit -> (C,) bool masks, which save at least the asked reduction by as little as possible.

    Raises:
        ValueError: The reduction is out of reach; the message names the range.
    """

    def masks(r: float) -> dict[str, Tensor]:
        return {name: target_mask(s[None], r)[0] for name, s in saliency.items()}

    def saved(found: Mapping[str, Tensor]) -> float:
        work = dynamic.macs({name: mask[None].cpu() for name, mask in found.items()})
        return 1 - float(sum(layer.mean() for layer in work.layers.values())) / work.dense

    low, high = 1e-6, 1.0
    least, most = saved(masks(high)), saved(masks(low))
    if not least <= reduction <= most:
        raise ValueError(
            f"reduction={reduction} is out of reach; fixed masks of these units save from "
            f"{max(0.0, least):.3f} to {most:.3f} of this network's MACs"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if saved(masks(middle)) >= reduction:
            low = middle
        else:
            high = middle
    return masks(low)
