"""Runs by name: the baselines, and one function per published CIFAR row."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from .config import DataConfig, PruneConfig, RunConfig, TrainConfig
from .models import names as model_names

_RECIPES: dict[str, Callable[[], RunConfig]] = {}


def recipe(function: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """Register a function as a recipe under its own name, with dashes for underscores."""
    _RECIPES[function.__name__.replace("_", "-")] = function
    return function


def names() -> list[str]:
    """List the recipes."""
    return list(_RECIPES)


def get(name: str) -> RunConfig:
    """Return a recipe's settings.

    Args:
        name: A recipe, or a model's name for that model pruned with the published schedule.

    Raises:
        ValueError: If there is neither; the message lists the recipes and the nearest name.
    """
    if name in _RECIPES:
        return _RECIPES[name]()
    if name in model_names():
        return published(name)
    near = difflib.get_close_matches(name, [*_RECIPES, *model_names()], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"unknown recipe {name!r}; {hint}Recipes: {', '.join(_RECIPES)}; or a model: "
        f"{', '.join(model_names())}"
    )


def published(model: str, *, r: float = 0.9, mode: str = "decoupled") -> RunConfig:
    """Prune a pretrained network with the paper's schedule and its softmax head."""
    return RunConfig(
        model=model,
        weights="pretrained",
        data=DataConfig(dataset="cifar100" if model.startswith("cifar100") else "cifar10"),
        prune=PruneConfig(r=r, mode=mode, head="softmax", pool="mean"),
        train=TrainConfig(epochs=200, lr=0.01, schedule="step", weight_decay=5e-4),
    )


def baseline(model: str, *, epochs: int, lr: float = 0.1) -> RunConfig:
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


@recipe
def cifar10_resnet20_baseline() -> RunConfig:
    """ResNet-20 for the demo and the studies; about 20 minutes on two cores."""
    return baseline("cifar10-resnet20", epochs=45, lr=0.15)
