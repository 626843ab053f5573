"""Training under a fixed mask, with or without a second look at the images it is unsure of."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..config import FixedConfig
from ..evaluation.evaluate import evaluate
from ..fitting.columns import rank_filters
from ..fitting.masks import fixed_masks
from ..fitting.repair import repair
from ..fitting.second_look import SecondLookFit, second_look
from ..processes import gathered, processes
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook, opened, share_weights
from .prune import prunable

Batches = Iterable[tuple[Tensor, Any]]

ALL = sys.maxsize  # images, however many there are


def masked(config: FixedConfig, dense: nn.Module, batches: Batches) -> DynamicModel | SecondLook:
    """Build the network that is trained: masked and repaired, or both passes of shared weights.

    Shared weights begin as the dense network's, which the open pass needs; a repair for the cheap
    one would spoil them.

    Args:
        config: The mask's reduction; who looks again.
        dense: The trained network. It is not changed.
        batches: Training images as they are, to rank filters and to repair with.

    Raises:
        ValueError: The reduction is out of reach.
    """
    state = processes()
    inner = prunable(dense, gathered(next(iter(batches))[0], accelerator=state))
    ranking = rank_filters(inner, batches, accelerator=state)
    first = inner.fix(fixed_masks(inner, ranking, reduction=config.mask_reduction))
    if config.second_look != "shared":
        repair(first, batches, dense=dense, accelerator=state)
        return first
    network = SecondLook([first, opened(inner)], [0.0])
    share_weights(network)
    return network.to(state.device)


def looking(
    config: FixedConfig, trained: nn.Module, dense: nn.Module, batches: Batches
) -> SecondLookFit | None:
    """Let unsure images be looked at again, at the average asked for.

    Args:
        config: Who looks again, and the average.
        trained: What `masked` built.
        dense: The network that it was built from.
        batches: This process's images that it was not trained on; their labels are not used.

    Returns:
        The same on all processes; None without a second look.
    """
    if config.average_reduction is None:
        return None
    state = processes()
    if isinstance(trained, SecondLook):
        first, second = trained.first, trained.last
    else:
        assert isinstance(trained, DynamicModel)
        example = gathered(next(iter(batches))[0], accelerator=state)
        first, second = trained, opened(prunable(dense, example)).to(state.device)
    return second_look(
        [first, second],
        batches,
        reduction=config.average_reduction,
        images=ALL,
        accelerator=state,
    )


def told(fit: SecondLookFit, test: Batches) -> dict[str, Any]:
    """The figures of a second look: where its threshold was set, and each pass alone."""
    values = {name: value for name, value in vars(fit).items() if name != "network"}
    passes = {"first": fit.network.first, "second": fit.network.last}
    alone = {
        name: evaluate(network, test, accelerator=processes()) for name, network in passes.items()
    }
    return values | {
        f"{name}_{figure}": getattr(found, figure)
        for name, found in alone.items()
        for figure in ("top1", "reduction")
    }
