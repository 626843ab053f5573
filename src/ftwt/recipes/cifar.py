"""Recipes for CIFAR: the baselines, our own schedules, and one for each published row.

The paper's rows take 200 epochs; docs/results.md says which were run here, and for how long.

Source: the CIFAR-10 experiments of the paper (see `method.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..config import DataConfig, FixedConfig, PruneConfig, RunConfig, TrainConfig
from ..pruning.method import Mode
from .table import Recipes

RECIPES = Recipes()


def published(model: str, *, r: float = 0.9, mode: Mode = "decoupled") -> RunConfig:
    """Prune a trained network as published: softmax head, 200 epochs, drops at 81, 122, 151.

    What is not set here is published, too, by default: SGD with momentum 0.9, batches of 128, and
    predictors at a rate of 0.1, without weight decay, until the cooldown begins half-way.
    """
    return RunConfig(
        model=model,
        weights="pretrained",
        data=DataConfig(dataset="cifar100" if model.startswith("cifar100") else "cifar10"),
        prune=PruneConfig(r=r, mode=mode, head="softmax", pool="mean"),
        train=TrainConfig(epochs=200, lr=0.01, schedule="step", weight_decay=5e-4),
    )


def baseline(model: str, *, epochs: int = 200, lr: float = 0.1) -> RunConfig:
    """Train a dense network from nothing, in our way: cosine with warm-up, Nesterov, bf16."""
    train = TrainConfig(
        epochs=epochs,
        lr=lr,
        nesterov=True,
        warmup_epochs=2,
        precision="bf16",
        channels_last=True,
    )
    return RunConfig(model=model, train=train)


def budget(model: str, *, reduction: float, lr: float = 0.05) -> RunConfig:
    """Prune a trained network to a budget, our way: 30 epochs, r by unit, the dense one teaches."""
    return RunConfig(
        model=model,
        weights="pretrained",
        prune=PruneConfig(),
        allocate=True,
        train=TrainConfig(
            epochs=30,
            lr=lr,
            predictor_warmup_steps=200,
            target_reduction=reduction,
            distillation=1.0,
            precision="bf16",
            channels_last=True,
        ),
    )


def dense(model: str, *, lr: float = 0.05) -> RunConfig:
    """Train a dense network for as long, and in the same way, as `budget` prunes it."""
    return budget(model, reduction=0.5, lr=lr).without_gates()


@RECIPES.add
def cifar10_resnet20_baseline() -> RunConfig:
    """Dense ResNet-20, 45 epochs: the network of the demo.

        ftwt train cifar10-resnet20-baseline

    Its weights and its result come with ftwt: docs/models.md.
    """
    return baseline("cifar10-resnet20", epochs=45, lr=0.15)


@RECIPES.add
def cifar10_resnet56_baseline() -> RunConfig:
    """Dense ResNet-56 to start from; the paper's reached 93.66%.

        ftwt train cifar10-resnet56-baseline

    Not run at length; a few epochs of it are in docs/results.md.
    """
    return baseline("cifar10-resnet56")


@RECIPES.add
def cifar10_vgg16_bn_baseline() -> RunConfig:
    """Dense VGG16-BN to start from; the paper's reached 93.82%.

        ftwt train cifar10-vgg16-bn-baseline

    Not run at length; a few epochs of it are in docs/results.md.
    """
    return baseline("cifar10-vgg16-bn", lr=0.05)


@RECIPES.add
def cifar10_mobilenet_v1_baseline() -> RunConfig:
    """Dense MobileNetV1 to start from; the paper's reached 90.89%.

        ftwt train cifar10-mobilenet-v1-baseline

    Not run at length; a few epochs of it are in docs/results.md.
    """
    return baseline("cifar10-mobilenet-v1")


@RECIPES.add
def cifar10_mobilenet_v1_half_baseline() -> RunConfig:
    """Dense MobileNetV1 of half the width: static pruning by hand; the paper's loses 3.31 points.

        ftwt train cifar10-mobilenet-v1-half-baseline

    Not run here.
    """
    return baseline("cifar10-mobilenet-v1-x0.5")


@RECIPES.add
def cifar10_mobilenet_v2_baseline() -> RunConfig:
    """Dense MobileNetV2 to start from.

        ftwt train cifar10-mobilenet-v2-baseline

    Not run here.
    """
    return baseline("cifar10-mobilenet-v2")


@RECIPES.add
def cifar10_resnet20_short() -> RunConfig:
    """Prune ResNet-20 in 10 epochs, standardized head: the study of docs/results.md.

        ftwt train cifar10-resnet20-short

    Its static twin: the same with `--twin-of runs/cifar10-resnet20-short --output runs/twin`.
    """
    return RunConfig(
        model="cifar10-resnet20",
        weights="pretrained",
        prune=PruneConfig(r=0.9),
        train=TrainConfig(
            epochs=10,
            lr=0.02,
            predictor_warmup_steps=200,
            precision="bf16",
            channels_last=True,
        ),
    )


@RECIPES.add
def cifar10_resnet20_dynamic_40() -> RunConfig:
    """Prune ResNet-20 to 40% fewer MACs in 30 epochs: r by unit, taught by the dense network.

        ftwt train cifar10-resnet20-dynamic-40

    Its static twin: the same with `--twin-of runs/cifar10-resnet20-dynamic-40 --output runs/twin`.
    docs/results.md has what came of both.
    """
    return budget("cifar10-resnet20", reduction=0.4)


@RECIPES.add
def cifar10_resnet20_dense_30() -> RunConfig:
    """Train the dense ResNet-20 for the same 30 epochs more: what a pruned one is to be held to.

    ftwt train cifar10-resnet20-dense-30
    """
    return dense("cifar10-resnet20")


@RECIPES.add
def cifar10_resnet20_fixed_40() -> RunConfig:
    """Train ResNet-20 under a repaired fixed mask of 40% fewer MACs, taught by the dense network.

    ftwt train cifar10-resnet20-fixed-40
    """
    return replace(dense("cifar10-resnet20", lr=0.02), fixed=FixedConfig(mask_reduction=0.4))


@RECIPES.add
def cifar10_resnet20_look_40() -> RunConfig:
    """Train a fixed mask of 50%; the dense network looks again at unsure images: 40% on average.

    ftwt train cifar10-resnet20-look-40
    """
    fixed = FixedConfig(mask_reduction=0.5, second_look="dense", average_reduction=0.4)
    return replace(cifar10_resnet20_fixed_40(), fixed=fixed)


@RECIPES.add
def cifar10_resnet20_sandwich_40() -> RunConfig:
    """Train shared weights for a masked pass and an open one, which looks again: 40% on average.

        ftwt train cifar10-resnet20-sandwich-40

    The masked pass imitates the open one; each has its own batch norm. docs/results.md has what
    came of it beside the fixed mask, and beside a second look through the dense network.
    """
    fixed = FixedConfig(mask_reduction=0.5, second_look="shared", average_reduction=0.4)
    return replace(cifar10_resnet20_fixed_40(), fixed=fixed)


@RECIPES.add
def cifar10_resnet20_gates_only() -> RunConfig:
    """Put gates on ResNet-20 and leave its weights as they are: 20% fewer MACs in one epoch.

        ftwt train cifar10-resnet20-gates-only

    Only the predictors learn; batch norm goes on averaging. Its static twin: the same with
    `--twin-of runs/cifar10-resnet20-gates-only --output runs/twin`. docs/results.md has what came
    of both.
    """
    config = cifar10_resnet20_short()
    train = replace(
        config.train,
        epochs=1,
        lr=0.0,
        cooldown=1.0,
        predictor_warmup_steps=50,
        target_reduction=0.2,
    )
    return replace(config, allocate=True, train=train)


@dataclass(frozen=True)
class _Goal:
    """Less work than the paper's rows, counted as executed, and what that may cost."""

    model: str
    reduction: float
    limit: str
    lr: float = 0.05
    prune: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}-dynamic-{100 * self.reduction:.0f}"

    def config(self) -> RunConfig:
        config = budget(self.model, reduction=self.reduction, lr=self.lr)
        assert config.prune is not None
        return replace(config, prune=replace(config.prune, **self.prune))

    def describe(self) -> str:
        return (
            f"Prune {self.model} to {self.reduction:.0%} fewer MACs in 30 epochs; the goal: "
            f"{self.limit}.\n\n"
            f"    ftwt train {self.name} --weights runs/{self.model}-baseline\n\n"
            "r by unit, taught by the dense network, as cifar10-resnet20-dynamic-40 is.\n"
            "docs/results.md says whether it was run, and for how long."
        )


_GOALS = (
    _Goal("cifar10-resnet56", 0.55, "0.3 points lost at most"),
    _Goal("cifar10-resnet56", 0.62, "0.6 points lost at most"),
    _Goal("cifar10-vgg16-bn", 0.75, "0.2 points lost at most", 0.02),
    _Goal("cifar10-mobilenet-v1", 0.60, "nothing lost", prune={"rank": 16}),
)

for _goal in _GOALS:
    RECIPES.add_row(_goal.name, _goal.describe(), _goal.config())

for _model, _lr in {goal.model: goal.lr for goal in _GOALS}.items():
    _name = f"{_model}-dense-30"
    _docstring = (
        f"Train the dense {_model} for the same 30 epochs more: what a pruned one is held to.\n\n"
        f"    ftwt train {_name} --weights runs/{_model}-baseline"
    )
    RECIPES.add_row(_name, _docstring, dense(_model, lr=_lr))


@dataclass(frozen=True)
class _Row:
    """A published row: what the paper did, and what it says came of it."""

    model: str
    r: float
    mode: Mode
    outcome: str
    prune: dict[str, Any] = field(default_factory=dict)
    suffix: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}-r{100 * self.r:.0f}-{self.suffix or self.mode}"

    def config(self) -> RunConfig:
        config = published(self.model, r=self.r, mode=self.mode)
        assert config.prune is not None
        gates, schedule = dict(self.prune), config.train.schedule
        if "mobilenet" in self.model:  # every convolution is gated, whatever the predictors cost
            gates |= {"depthwise": "gate", "min_gain": -1.0}
        if "mobilenet-v2" in self.model:
            schedule = "cosine"
        return replace(
            config,
            prune=replace(config.prune, **gates),
            train=replace(config.train, schedule=schedule),
        )

    def describe(self) -> str:
        return (
            f"Published: {self.model}, r = {self.r:g}, {self.mode}: {self.outcome}.\n\n"
            f"    ftwt train {self.name} --weights runs/{self.model}-baseline\n\n{self.note}"
        ).strip()


_CURVE = (
    "The paper shows a curve without r; these r are our choice. Its gap to the baseline, read off\n"
    "a plot: -0.2 points at 41, 53 and 66% fewer FLOPs, +0.3 at 77%, +1.2 at 86%."
)
_ROWS = (
    _Row("cifar10-vgg16-bn", 0.92, "decoupled", "93.82% -> 93.73% at 56% fewer FLOPs"),
    _Row("cifar10-vgg16-bn", 0.92, "joint", "93.82% -> 93.55% at 65.01% fewer FLOPs"),
    _Row("cifar10-vgg16-bn", 0.88, "decoupled", "no row; beside the joint row"),
    _Row("cifar10-vgg16-bn", 0.88, "joint", "93.82% -> 92.65% at 74% fewer FLOPs"),
    _Row("cifar10-vgg16-bn", 0.85, "decoupled", "93.82% -> 93.19% at 73.19% fewer FLOPs"),
    _Row("cifar10-vgg16-bn", 0.85, "joint", "no row; beside the decoupled row"),
    _Row("cifar10-resnet56", 0.88, "decoupled", "no row; beside the joint row"),
    _Row("cifar10-resnet56", 0.88, "joint", "93.66% -> 92.28% at 54% fewer FLOPs"),
    _Row("cifar10-resnet56", 0.80, "decoupled", "93.66% -> 92.63% at 66.43% fewer FLOPs"),
    _Row("cifar10-resnet56", 0.80, "joint", "no row; beside the decoupled row"),
    _Row(
        "cifar10-resnet56", 0.80, "decoupled", "the mask comes after the residual add",
        {"residual": "after"}, "after",
    ),
    _Row(
        "cifar10-resnet56", 0.60, "decoupled", "each image keeps the same share r of the filters",
        {"variant": "uniform"}, "uniform",
    ),
    _Row("cifar10-mobilenet-v1", 1.0, "decoupled", "90.89% -> 91.06% at 78.53% fewer FLOPs"),
    _Row("cifar10-mobilenet-v1", 1.0, "joint", "90.89% -> 91.21% at 78% fewer FLOPs"),
    *(_Row("cifar10-mobilenet-v2", r, "decoupled", "a point of its curve", note=_CURVE)
      for r in (0.97, 0.9, 0.8, 0.7)),
)  # fmt: skip


for _row in _ROWS:
    RECIPES.add_row(_row.name, _row.describe(), _row.config())
