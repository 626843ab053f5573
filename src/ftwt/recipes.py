"""Runs by name: the baselines, and one function per published CIFAR row.

A recipe is a function without arguments that returns a `RunConfig`; every value can be changed on
the command line (`ftwt train NAME --epochs 40`). Docstrings give the command, and what the paper
reached: accuracy, and the reduction in its own counting (`published`, docs/counting.md). Its rows
take 200 epochs and were not run here.

Source: the CIFAR-10 experiments of the paper (see `method.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

from .config import DataConfig, PruneConfig, RunConfig, TrainConfig
from .method import Mode
from .models import names as model_names
from .names import nearest

Recipe = Callable[[], RunConfig]

_RECIPES: dict[str, Recipe] = {}


def names() -> list[str]:
    """List the recipes."""
    return list(_RECIPES)


def describe(name: str) -> str:
    """Say what a recipe, or a model's name as one, does; its first line is a summary."""
    if name not in _RECIPES:
        return f"Prune {name} with the published schedule."
    return inspect.getdoc(_RECIPES[name]) or ""


def get(name: str) -> RunConfig:
    """Return a recipe's settings.

    Args:
        name: A recipe, or a model's name for that model pruned with the published schedule.

    Raises:
        ValueError: If there is neither; the message lists the recipes and suggests the nearest.
    """
    if name in _RECIPES:
        return _RECIPES[name]()
    if name in model_names():
        return published(name)
    raise ValueError(
        f"unknown recipe or model {name!r}; {nearest(name, [*names(), *model_names()])}"
    )


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


def _recipe(function: Recipe) -> Recipe:
    _RECIPES[function.__name__.replace("_", "-")] = function
    return function


@_recipe
def cifar10_resnet20_baseline() -> RunConfig:
    """Dense ResNet-20, 45 epochs: the network of the demo.

        ftwt train cifar10-resnet20-baseline

    Its weights and its result come with ftwt: docs/models.md.
    """
    return baseline("cifar10-resnet20", epochs=45, lr=0.15)


@_recipe
def cifar10_resnet56_baseline() -> RunConfig:
    """Dense ResNet-56 to start from; the paper's reached 93.66%.

        ftwt train cifar10-resnet56-baseline

    Not run here.
    """
    return baseline("cifar10-resnet56")


@_recipe
def cifar10_vgg16_bn_baseline() -> RunConfig:
    """Dense VGG16-BN to start from; the paper's reached 93.82%.

        ftwt train cifar10-vgg16-bn-baseline

    Not run here.
    """
    return baseline("cifar10-vgg16-bn", lr=0.05)


@_recipe
def cifar10_mobilenet_v1_baseline() -> RunConfig:
    """Dense MobileNetV1 to start from; the paper's reached 90.89%.

        ftwt train cifar10-mobilenet-v1-baseline

    Not run here.
    """
    return baseline("cifar10-mobilenet-v1")


@_recipe
def cifar10_mobilenet_v2_baseline() -> RunConfig:
    """Dense MobileNetV2 to start from.

        ftwt train cifar10-mobilenet-v2-baseline

    Not run here.
    """
    return baseline("cifar10-mobilenet-v2")


@_recipe
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


@_recipe
def cifar10_vgg16_bn_r92_decoupled() -> RunConfig:
    """Published: VGG16-BN, r = 0.92, decoupled: 93.82% -> 93.73% at 56% fewer FLOPs.

    ftwt train cifar10-vgg16-bn-r92-decoupled --weights runs/cifar10-vgg16-bn-baseline
    """
    return published("cifar10-vgg16-bn", r=0.92)


@_recipe
def cifar10_vgg16_bn_r92_joint() -> RunConfig:
    """Published: VGG16-BN, r = 0.92, joint: 93.82% -> 93.55% at 65.01% fewer FLOPs.

    ftwt train cifar10-vgg16-bn-r92-joint --weights runs/cifar10-vgg16-bn-baseline
    """
    return published("cifar10-vgg16-bn", r=0.92, mode="joint")


@_recipe
def cifar10_vgg16_bn_r85_decoupled() -> RunConfig:
    """Published: VGG16-BN, r = 0.85, decoupled: 93.82% -> 93.19% at 73.19% fewer FLOPs.

    ftwt train cifar10-vgg16-bn-r85-decoupled --weights runs/cifar10-vgg16-bn-baseline
    """
    return published("cifar10-vgg16-bn", r=0.85)


@_recipe
def cifar10_vgg16_bn_r88_joint() -> RunConfig:
    """Published: VGG16-BN, r = 0.88, joint: 93.82% -> 92.65% at 74% fewer FLOPs.

    ftwt train cifar10-vgg16-bn-r88-joint --weights runs/cifar10-vgg16-bn-baseline
    """
    return published("cifar10-vgg16-bn", r=0.88, mode="joint")


@_recipe
def cifar10_resnet56_r80_decoupled() -> RunConfig:
    """Published: ResNet-56, r = 0.80, decoupled: 93.66% -> 92.63% at 66.43% fewer FLOPs.

    ftwt train cifar10-resnet56-r80-decoupled --weights runs/cifar10-resnet56-baseline
    """
    return published("cifar10-resnet56", r=0.8)


@_recipe
def cifar10_resnet56_r88_joint() -> RunConfig:
    """Published: ResNet-56, r = 0.88, joint: 93.66% -> 92.28% at 54% fewer FLOPs.

    ftwt train cifar10-resnet56-r88-joint --weights runs/cifar10-resnet56-baseline
    """
    return published("cifar10-resnet56", r=0.88, mode="joint")


@_recipe
def cifar10_mobilenet_v1_r100_decoupled() -> RunConfig:
    """Published: MobileNetV1, r = 1, decoupled: 90.89% -> 91.06% at 78.53% fewer FLOPs.

    ftwt train cifar10-mobilenet-v1-r100-decoupled --weights runs/cifar10-mobilenet-v1-baseline
    """
    return _every_conv_gated(published("cifar10-mobilenet-v1", r=1.0))


@_recipe
def cifar10_mobilenet_v1_r100_joint() -> RunConfig:
    """Published: MobileNetV1, r = 1, joint: 90.89% -> 91.21% at 78% fewer FLOPs.

    ftwt train cifar10-mobilenet-v1-r100-joint --weights runs/cifar10-mobilenet-v1-baseline
    """
    return _every_conv_gated(published("cifar10-mobilenet-v1", r=1.0, mode="joint"))


@_recipe
def cifar10_mobilenet_v2_r90_decoupled() -> RunConfig:
    """Published as a curve without r: MobileNetV2, decoupled; r = 0.9 is our choice.

        ftwt train cifar10-mobilenet-v2-r90-decoupled --weights runs/cifar10-mobilenet-v2-baseline

    The curve, read off a plot: -0.2 points at 41, 53 and 66% fewer FLOPs, +0.3 at 77%, +1.2 at 86%.
    """
    config = _every_conv_gated(published("cifar10-mobilenet-v2", r=0.9))
    return replace(config, train=replace(config.train, schedule="cosine"))


def _every_conv_gated(config: RunConfig) -> RunConfig:
    """Gate depthwise convolutions too, and whatever the predictors cost, as published."""
    assert config.prune is not None
    return replace(config, prune=replace(config.prune, depthwise="gate", min_gain=-1.0))
