"""Which networks the coverage sweep tries: all of torchvision's, one of each family of timm's.

A family is a module of `timm.models`. Its member is the smallest by parameters, of those that
classify (if any does) and can be built without data; timm's own `test_` networks do not count, nor
does what is called large in a family that has more.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ftwt import models
from ftwt.models.vision import import_vision

Conv = nn.modules.conv._ConvNd
BIG = frozenset(
    "base large large2 xlarge xxlarge huge giant gigantic enormous so400m so150m".split()
)
"""Words in names of members that are not even counted where a family has others."""


def torchvision_names() -> list[str]:
    """Name torchvision's classifiers."""
    models = import_vision("torchvision").models
    return [f"torchvision:{name}" for name in models.list_models(module=models)]


def parameters(name: str) -> int:
    """Count the parameters of one of torchvision's networks; 0 if it cannot be built for that."""
    try:
        with torch.device("meta"):
            model = models.create(name)
    except (RuntimeError, NotImplementedError):  # it initialises its weights from values
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def families() -> list[str]:
    """Name timm's families."""
    return list(import_vision("timm").list_modules())


def choose(family: str) -> dict[str, Any] | None:
    """Choose the member of a family, and say what it is; None if none can be built."""
    timm = import_vision("timm")
    names = [name for name in timm.list_models(module=family) if not name.startswith("test_")]
    small = [name for name in names if not BIG & set(name.split("_"))]
    sizes = {}
    for name in small or names:
        if (size := _size(timm, name)) is not None:
            sizes[name] = size
    if not sizes:
        return None
    best = min(
        sizes, key=lambda name: (not sizes[name]["classes"], sizes[name]["parameters"], name)
    )
    return {"name": f"timm:{best}", "members": len(names), **sizes[best]}


def _size(timm: Any, name: str) -> dict[str, Any] | None:
    """Count a network's parameters and convolutions on the device of shapes; None if it cannot."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model = timm.create_model(name)
    except Exception:  # it initialises its weights from values
        return None
    convolutions = sum(isinstance(module, Conv) for module in model.modules())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "convolutions": convolutions,
        "classes": int(getattr(model, "num_classes", 0) or 0),
    }
