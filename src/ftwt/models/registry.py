"""Networks by name."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from .resnet import resnet

_FAMILIES: Mapping[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in (20, 32, 44, 56, 110)},
}
_DATASETS: Mapping[str, int] = {"cifar10": 10, "cifar100": 100}


def names() -> list[str]:
    """List the networks that are our own; torchvision's and timm's come by prefix."""
    return [f"{dataset}-{family}" for dataset in _DATASETS for family in _FAMILIES]


def create(
    name: str, *, num_classes: int | None = None, pretrained: bool = False, **kwargs: object
) -> nn.Module:
    """Build a network by name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model {name!r}{hint} Known: {', '.join(names())}")
    dataset, family = name.split("-", 1)
    return _FAMILIES[family](num_classes=num_classes or _DATASETS[dataset], **kwargs)
