"""Runs by name: the baselines, and one function per published CIFAR row.

A recipe is a function without arguments that returns a `RunConfig`; every value can be changed on
the command line (`ftwt train NAME --epochs 40`).
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
    """Say in a line what a recipe does, by its docstring, or a model's name as a recipe."""
    if name not in _RECIPES:
        return f"{name}, pruned as published."
    return (inspect.getdoc(_RECIPES[name]) or "").splitlines()[0]


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
    """Prune a network with the paper's schedule and its head: 200 epochs, drops at 81, 122, 151."""
    return RunConfig(
        model=model,
        weights="pretrained",
        data=DataConfig(dataset="cifar100" if model.startswith("cifar100") else "cifar10"),
        prune=PruneConfig(r=r, mode=mode, head="softmax", pool="mean"),
        train=TrainConfig(epochs=200, lr=0.01, schedule="step", weight_decay=5e-4),
    )


def baseline(model: str, *, epochs: int = 200, lr: float = 0.1) -> RunConfig:
    """Train a dense network from nothing: cosine with warm-up, Nesterov, bf16."""
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
    """Dense ResNet-20, 45 epochs: the demo's network (half an hour on one core)."""
    return baseline("cifar10-resnet20", epochs=45, lr=0.15)


@_recipe
def cifar10_resnet56_baseline() -> RunConfig:
    """Dense ResNet-56 to start from; the paper's reached 93.66%."""
    return baseline("cifar10-resnet56")


@_recipe
def cifar10_vgg16_bn_baseline() -> RunConfig:
    """Dense VGG16-BN to start from; the paper's reached 93.82%."""
    return baseline("cifar10-vgg16-bn", lr=0.05)


@_recipe
def cifar10_mobilenet_v1_baseline() -> RunConfig:
    """Dense MobileNetV1 to start from; the paper's reached 90.89%."""
    return baseline("cifar10-mobilenet-v1")


@_recipe
def cifar10_mobilenet_v2_baseline() -> RunConfig:
    """Dense MobileNetV2 to start from."""
    return baseline("cifar10-mobilenet-v2")


@_recipe
def cifar10_resnet20_short() -> RunConfig:
    """Prune ResNet-20 in 10 epochs with the standardized head: the study of docs/results.md."""
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
    """Published row: VGG16-BN, r = 0.92, decoupled: 93.73% at 56% fewer FLOPs."""
    return published("cifar10-vgg16-bn", r=0.92)


@_recipe
def cifar10_vgg16_bn_r92_joint() -> RunConfig:
    """Published row: VGG16-BN, r = 0.92, joint: 93.55% at 65.01% fewer FLOPs."""
    return published("cifar10-vgg16-bn", r=0.92, mode="joint")


@_recipe
def cifar10_vgg16_bn_r85_decoupled() -> RunConfig:
    """Published row: VGG16-BN, r = 0.85, decoupled: 93.19% at 73.19% fewer FLOPs."""
    return published("cifar10-vgg16-bn", r=0.85)


@_recipe
def cifar10_vgg16_bn_r88_joint() -> RunConfig:
    """Published row: VGG16-BN, r = 0.88, joint: 92.65% at 74% fewer FLOPs."""
    return published("cifar10-vgg16-bn", r=0.88, mode="joint")


@_recipe
def cifar10_resnet56_r80_decoupled() -> RunConfig:
    """Published row: ResNet-56, r = 0.80, decoupled: 92.63% at 66.43% fewer FLOPs."""
    return published("cifar10-resnet56", r=0.80)


@_recipe
def cifar10_resnet56_r88_joint() -> RunConfig:
    """Published row: ResNet-56, r = 0.88, joint: 92.28% at 54% fewer FLOPs."""
    return published("cifar10-resnet56", r=0.88, mode="joint")


@_recipe
def cifar10_mobilenet_v1_r100_decoupled() -> RunConfig:
    """Published row: MobileNetV1, r = 1, decoupled: 91.06% at 78.53% fewer FLOPs."""
    return _every_conv_gated(published("cifar10-mobilenet-v1", r=1.0))


@_recipe
def cifar10_mobilenet_v1_r100_joint() -> RunConfig:
    """Published row: MobileNetV1, r = 1, joint: 91.21% at 78% fewer FLOPs."""
    return _every_conv_gated(published("cifar10-mobilenet-v1", r=1.0, mode="joint"))


@_recipe
def cifar10_mobilenet_v2_r90_decoupled() -> RunConfig:
    """One point of the published curve of MobileNetV2 (cosine); others by --r."""
    config = _every_conv_gated(published("cifar10-mobilenet-v2", r=0.9))
    return replace(config, train=replace(config.train, schedule="cosine"))


def _every_conv_gated(config: RunConfig) -> RunConfig:
    """Gate depthwise convolutions too, and whatever the predictors cost, as published."""
    assert config.prune is not None
    return replace(config, prune=replace(config.prune, depthwise="gate", min_gain=-1.0))
