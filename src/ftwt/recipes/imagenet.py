"""Recipes for ImageNet: one for each published row, and ResNet-50 and MobileNetV2 as of today.

They take the images of a folder, `--data-root` (docs/imagenet.md), and the weights of torchvision
or timm, which are downloaded on first use.

The paper's schedule for ImageNet was not released. The rows' is ours: 60 epochs in batches of 256,
SGD with momentum 0.9 at a rate of 0.01, dropped at the same fractions of the run as in the paper's
schedule for CIFAR, weight decay of 1e-4, bf16. What the paper says of the method is kept: softmax
head, mean pooling, a constant rate of 0.1 for the predictors, cooldown at half-time.

Source: the ImageNet experiments of the paper (see `method.py`).
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace

from ..config import DataConfig, PruneConfig, RunConfig, TrainConfig
from ..pruning.method import Mode
from .table import Recipes

RECIPES = Recipes()

DATA = DataConfig(dataset="folder")


def published(model: str, *, r: float = 0.9, mode: Mode = "decoupled") -> RunConfig:
    """Prune a trained network as published, with the schedule that is ours: see above."""
    return RunConfig(
        model=model,
        weights="pretrained",
        data=DATA,
        prune=PruneConfig(r=r, mode=mode, head="softmax", pool="mean"),
        train=TrainConfig(
            epochs=60,
            batch_size=256,
            lr=0.01,
            schedule="step",
            weight_decay=1e-4,
            precision="bf16",
            channels_last=True,
        ),
    )


@dataclass(frozen=True)
class _Row:
    """A published row: what the paper did, what it says came of it, and what that took."""

    network: str
    model: str
    r: float
    mode: Mode
    outcome: str
    hours: float

    @property
    def name(self) -> str:
        return f"imagenet-{self.network}-r{100 * self.r:.0f}-{self.mode}"

    def config(self) -> RunConfig:
        config = published(self.model, r=self.r, mode=self.mode)
        assert config.prune is not None
        if self.network != "mobilenet-v1":
            return config
        # Every convolution is gated, whatever the predictors cost.
        return replace(config, prune=replace(config.prune, depthwise="gate", min_gain=-1.0))

    def describe(self) -> str:
        more = (
            f"Begins with the weights of {self.model}. It took the paper {self.hours:g} hours on 4 "
            "V100. Its schedule was not released; ours takes 60 epochs (docs/imagenet.md). Not run "
            "here on ImageNet."
        )
        return (
            f"Published: ImageNet {self.network}, r = {self.r:g}, {self.mode}: {self.outcome}.\n\n"
            f"    ftwt train {self.name} --data-root imagenet\n\n{textwrap.fill(more, 96)}"
        )


_34 = "torchvision:resnet34"
_ROWS = (
    _Row("resnet18", "torchvision:resnet18", 0.91, "decoupled",
         "69.76% -> 67.49% at 51.56% fewer FLOPs", 40),
    _Row("resnet34", _34, 0.97, "decoupled", "73.30% -> 73.25% at 25.86% fewer FLOPs", 55.5),
    _Row("resnet34", _34, 0.97, "joint", "no row; beside the decoupled row", 55.5),
    _Row("resnet34", _34, 0.95, "decoupled", "73.30% -> 72.79% at 37.77% fewer FLOPs", 55.5),
    _Row("resnet34", _34, 0.95, "joint", "73.30% -> 71.52%, where decoupled has 72.79%", 55.5),
    _Row("resnet34", _34, 0.93, "decoupled", "73.30% -> 72.17% at 47.42% fewer FLOPs", 55.5),
    _Row("resnet34", _34, 0.93, "joint", "no row; beside the decoupled row", 55.5),
    _Row("resnet34", _34, 0.92, "decoupled", "73.30% -> 71.71% at 52.24% fewer FLOPs", 55.5),
    _Row("resnet34", _34, 0.92, "joint", "73.30% -> 70.06%, where decoupled has 71.71%", 55.5),
    _Row("mobilenet-v1", "timm:mobilenetv1_100", 1.0, "decoupled",
         "69.57% -> 69.66% at 41.07% fewer FLOPs", 41),
)  # fmt: skip

for _row in _ROWS:
    RECIPES.add_row(_row.name, _row.describe(), _row.config())


@RECIPES.add
def imagenet_resnet50() -> RunConfig:
    """Prune ResNet-50 to 40% fewer MACs in 30 epochs, as networks are trained today.

        ftwt train imagenet-resnet50 --data-root imagenet

    Standardized head, r by unit under a budget; cosine after an epoch of warm-up, label smoothing,
    a moving average of the weights, bf16, channels-last; batches of 512 in two parts, or as many as
    memory asks for (--accumulation). Begins with torchvision's weights (80.86%). No row of the
    paper; beside it stands static pruning: ResRep 76.15% -> 76.15% at 54.5% fewer FLOPs, from an
    older baseline. Not run here on ImageNet.
    """
    return RunConfig(
        model="torchvision:resnet50",
        weights="pretrained",
        data=DATA,
        prune=PruneConfig(r=0.9),
        allocate=True,
        train=TrainConfig(
            epochs=30,
            batch_size=512,
            accumulation=2,
            lr=0.02,
            nesterov=True,
            weight_decay=5e-5,
            warmup_epochs=1,
            predictor_warmup_steps=500,
            target_reduction=0.4,
            label_smoothing=0.1,
            ema_decay=0.9998,
            precision="bf16",
            channels_last=True,
        ),
    )


@RECIPES.add
def imagenet_resnet50_dense() -> RunConfig:
    """Train the dense ResNet-50 for the same 30 epochs more, or begin with it on your own classes.

        ftwt train imagenet-resnet50-dense --data-root imagenet
        ftwt train imagenet-resnet50-dense --data-root photos --new-head

    What a pruned one is to be held to. Its run is what `--weights` of the pruned one's may name,
    where the classes are not ImageNet's. Not run here on ImageNet.
    """
    config = imagenet_resnet50()
    train = replace(config.train, target_reduction=None, predictor_warmup_steps=0)
    return replace(config, prune=None, allocate=False, train=train)


@RECIPES.add
def imagenet_mobilenet_v2() -> RunConfig:
    """Prune MobileNetV2 to 25% fewer MACs in 60 epochs, as networks are trained today.

        ftwt train imagenet-mobilenet-v2 --data-root imagenet

    As imagenet-resnet50, but longer and with less weight decay, as small networks need. Depthwise
    convolutions take their producers' masks, and predictors have rank 16: full ones would cost as
    much as many a layer. Begins with torchvision's weights (72.15%). No row of the paper on
    ImageNet. Not run here on ImageNet.
    """
    config = imagenet_resnet50()
    return replace(
        config,
        model="torchvision:mobilenet_v2",
        prune=PruneConfig(r=0.9, rank=16),
        train=replace(config.train, epochs=60, weight_decay=2e-5, target_reduction=0.25),
    )
