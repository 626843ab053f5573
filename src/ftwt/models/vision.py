"""Networks of torchvision and timm, by their names there."""

import difflib
import functools
import importlib
import sys
import urllib.error
from types import ModuleType

import torch
from torch import nn

# torchvision expects its compiled extension to have declared these when it is imported.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def create_torchvision(name: str, *, pretrained: bool, **kwargs: object) -> nn.Module:
    """Build one of torchvision's classifiers; `pretrained` takes its best weights."""
    models = import_vision("torchvision").models
    check_name(name, models.list_models(module=models), source="torchvision")
    if name in ("googlenet", "inception_v3"):
        # Left open, they warn that their slow initialisation will not stay the default.
        kwargs.setdefault("init_weights", False)
    try:
        return models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)
    except urllib.error.URLError as error:
        raise ConnectionError(f"could not download torchvision's {name} ({error})") from error


def create_timm(name: str, *, pretrained: bool, **kwargs: object) -> nn.Module:
    """Build one of timm's networks, `name` with or without the tag of its weights."""
    timm = import_vision("timm")
    check_name(name.split(".", 1)[0], timm.list_models(), source="timm")
    return timm.create_model(name, pretrained=pretrained, **kwargs)


def check_name(name: str, known: list[str], *, source: str) -> None:
    """Raise a ValueError that names the nearest of the known models, if this is none of them."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    hint = f"; the nearest: {', '.join(near)}" if near else ""
    valid = f"; valid: {', '.join(known)}" if len(known) < 50 else ""  # timm has over 1,000
    raise ValueError(f"unknown {source} model {name!r}{hint}{valid}")


def import_vision(package: str) -> ModuleType:
    """Import torchvision or timm, even where torchvision's compiled extension does not load.

    A torchvision built for another torch (PyPI's wheel beside a CPU-only torch, say) fails on
    import for want of operators that no classifier uses. Where that is so, they are declared,
    without code behind them, and the import tried once more. A matching pair sees none of it.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name not in ("torchvision", "timm"):
            raise
        raise ImportError(f'{package} is not installed: pip install "ftwt[vision]"') from error
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for module in [m for m in sys.modules if m.split(".")[0] in ("torchvision", package)]:
        del sys.modules[module]  # half imported
    _declare_operators()
    return importlib.import_module(package)


@functools.cache
def _declare_operators() -> torch.library.Library:
    """Declare torchvision's operators for as long as the library returned, kept here, lives."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _OPERATORS:
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    return library
