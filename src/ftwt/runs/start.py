"""What training begins with: gates for a dense network, a pruned one as it is; and its teacher."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

from torch import nn

from ..budget.estimate import estimate
from ..config import PruneConfig, RunConfig, changes
from ..data import Epochs
from ..files.tensors import load_weights
from ..networks.sources import resolve
from ..processes import gathered, processes
from ..pruning.convert import convert
from ..pruning.dynamic import GATES, DynamicModel

ESTIMATE_IMAGES = 2048
KEPT = (
    "mode",
    "saliency",
    "variant",
    "straight_through",
    "pool",
    "head",
    "rank",
    "residual",
    "depthwise",
    "linear",
)  # options that gates were made with, which a pruned network keeps


def check_gates(config: RunConfig, pruned: DynamicModel) -> None:
    """Refuse to train a pruned network further with other gates than it has.

    Raises:
        ValueError: It is to get gates or a mask beside those that it has.
    """
    what = f"{config.weights} holds a pruned network, which is trained further as it is"
    if config.fixed is not None or config.twin_of is not None:
        raise ValueError(f"{what}; leave out the fixed mask and the twin, or name dense weights")
    if config.prune is None:
        return
    if not pruned.predictors:
        raise ValueError(
            f"{what}: its mask is fixed; take a recipe without gates (`ftwt recipes`), such as "
            "cifar10-resnet20-dense-30"
        )
    had = PruneConfig.from_json({name: pruned.config[name] for name in KEPT})
    asked = replace(PruneConfig(), **{name: getattr(config.prune, name) for name in KEPT})
    if found := changes(had, asked):
        raise ValueError(f"{what}: {'; '.join(found)}; ask for its own gates")


def teacher_of(config: RunConfig, start: nn.Module, *, classes: int) -> nn.Module | None:
    """The dense network that a run imitates; None if it imitates none.

    Raises:
        ValueError: It is pruned, tells other classes apart, or is not named where training begins
            with a pruned one.
    """
    if not config.train.distillation:
        return None
    if config.teacher is not None:
        own = config.teacher == "pretrained"
        return resolve(config.model if own else config.teacher).load_dense(classes=classes)
    if isinstance(start, DynamicModel):
        raise ValueError(
            f"distillation={config.train.distillation:g} from {config.weights}, a pruned network; "
            "name a dense teacher (--teacher pretrained), or give --distillation 0"
        )
    return copy.deepcopy(start)


def gated(config: RunConfig, start: nn.Module, batches: Epochs) -> tuple[DynamicModel, float]:
    """Convert a network as a run asks, with the r that the estimate gives for a budget.

    One that has its gates keeps them, and is given the run's r.

    Returns:
        The dynamic network, and the executed reduction that the estimate predicts for it.
    """
    assert config.prune is not None
    example = gathered(next(iter(batches))[0], accelerator=processes())
    if isinstance(start, DynamicModel):
        dynamic = start
        dynamic.set_r(config.prune.r)
    else:
        dynamic = convert(start, example, **asdict(config.prune))
    curve = estimate(dynamic, batches, images=ESTIMATE_IMAGES, accelerator=processes())
    asked = config.train.target_reduction
    if asked is not None and config.allocate:
        dynamic.set_r(curve.allocate(reduction=asked).r)
    elif asked is not None:
        dynamic.set_r(curve.r_for(reduction=asked))
    return dynamic, curve.reduction_at(dynamic.r)


def twin_of(config: RunConfig, dense: nn.Module, batches: Epochs) -> DynamicModel:
    """Build the static twin of a finished dynamic run, with the weights that the run began with.

    Args:
        config: Which names the run, and its architecture.
        dense: The network it began with.
        batches: Training images as they are, over which its masks are counted.

    Raises:
        ValueError: The run's network is not dynamic, or of another architecture.
    """
    dynamic = resolve(config.model, config.twin_of).load()
    if not isinstance(dynamic, DynamicModel) or not dynamic.predictors:
        raise ValueError(
            f"{config.twin_of} holds a network without predictors, which has no static twin"
        )
    twin = dynamic.to(next(dense.parameters()).device).freeze(batches, accelerator=processes())
    masks = {k: v for k, v in twin.network.state_dict().items() if k.startswith(f"{GATES}.")}
    load_weights(twin.network, masks | dense.state_dict(), source="the network to begin with")
    return twin
