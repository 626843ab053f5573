"""A network that Torch-Pruning made smaller, as fixed masks on the network it was made from.

What is left of it is a choice of channels. The same choice as fixed masks of a `DynamicModel`
computes the same, and is repaired by the very function that our masks are repaired by.
"""

from __future__ import annotations

import torch
from structured import History, Task, prune_to, replay
from torch import Tensor, nn

import ftwt
from ftwt.pruning.dynamic import DynamicModel

CLOSE = 1e-3  # of the largest output: rounding in another order


def pruned_as_masks(
    task: Task, reduction: float, *, inner: DynamicModel | None = None
) -> tuple[DynamicModel, float]:
    """Prune by Torch-Pruning, and do the same by masks.

    Args:
        task: What to prune, and how channels are ranked.
        reduction: Share of the MACs to take out.
        inner: A network with gates on the units that may lose filters; None for all channels,
            residual streams too.

    Returns:
        The masked network, and the share of the MACs that Torch-Pruning took out.

    Raises:
        ValueError: The reduction is out of reach, or masks do not compute what is left.
    """
    if inner is None:
        dynamic = ftwt.convert(task.dense, task.example, residual="after", min_gain=-1.0)
        fixed: frozenset[str] = frozenset()
    else:
        dynamic = inner
        layers = (n for n, m in task.dense.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
        fixed = frozenset(layers) - {*inner.gates}
    history = prune_to(task, reduction, fixed=fixed)
    kept = left(task, history)
    masked = dynamic.fix({unit: kept[unit] for unit in dynamic.gates}).eval()
    small = replay(task, history)
    example = torch.randn(4, *task.example.shape[1:])
    with torch.inference_mode():
        wanted, found = small(example), masked(example)
    if not torch.allclose(wanted, found, rtol=0, atol=CLOSE * float(wanted.abs().max())):
        raise ValueError(
            f"masks compute something else than the network that Torch-Pruning made smaller: they "
            f"differ by {float((wanted - found).abs().max()):.2g}"
        )
    whole, rest = (ftwt.count_macs(net, task.example).total for net in (task.dense, small))
    return masked, 1 - rest / whole


def left(task: Task, history: History) -> dict[str, Tensor]:
    """Tell, for each layer, which of its outputs a history leaves: layer -> (C,) bool.

    Each output's weights are set to its own number, the history is replayed, the numbers are read.
    """
    dense = {n: m for n, m in task.dense.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    state = {name: m.weight.detach().clone() for name, m in dense.items()}
    try:
        with torch.no_grad():
            for module in dense.values():
                numbers = torch.arange(len(module.weight), dtype=module.weight.dtype)
                module.weight.copy_(numbers.view(-1, *[1] * (module.weight.dim() - 1)))
        small = replay(task, history)
    finally:
        with torch.no_grad():
            for name, weight in state.items():
                dense[name].weight.copy_(weight)
    found = {}
    for name, module in dense.items():
        found[name] = torch.zeros(len(module.weight), dtype=torch.bool)
        found[name][small.get_submodule(name).weight.flatten(1)[:, 0].long()] = True
    return found
