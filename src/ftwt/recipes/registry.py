"""Recipes by name: a function without arguments that returns a `RunConfig`.

Every value can be changed on the command line (`ftwt train NAME --epochs 40`). Docstrings give the
command, and what the paper reached: accuracy, and the reduction in its own counting (`published`,
docs/counting.md).
"""

from __future__ import annotations

import difflib
import inspect

from ..config import RunConfig
from ..models import names as model_names
from . import cifar, imagenet
from .table import Recipe as Recipe

_RECIPES = {**cifar.RECIPES, **imagenet.RECIPES}


def names() -> list[str]:
    """List the recipes."""
    return list(_RECIPES)


def describe(name: str) -> str:
    """Say what a recipe, or a model's name as one, does; its first line is a summary."""
    if name in _RECIPES:
        return inspect.getdoc(_RECIPES[name]) or ""
    if ":" in name:
        return f"Prune {name} on a folder of images, with our ImageNet schedule."
    return f"Prune {name} with the published schedule."


def get(name: str) -> RunConfig:
    """Return a recipe's settings.

    Args:
        name: A recipe; or a model's name for that model pruned with the published schedule, or,
            if it is one of torchvision or timm or `module:function`, with ours for ImageNet.

    Raises:
        ValueError: If there is neither; the message suggests the nearest.
    """
    if name in _RECIPES:
        return _RECIPES[name]()
    if name in model_names():
        return cifar.published(name)
    if ":" in name:
        return imagenet.published(name)
    near = difflib.get_close_matches(name, [*names(), *model_names()], n=5, cutoff=0.4)
    hint = f"; the nearest: {', '.join(near)}" if near else ""
    raise ValueError(f"unknown recipe or model {name!r} (`ftwt recipes` lists them){hint}")
