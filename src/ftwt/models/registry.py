"""Networks by name."""

import os
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from .. import shipped
from ..files.tensors import load_tensors, load_weights, unwrapped
from ..names import is_own
from .mobilenet import mobilenet_v1, mobilenet_v2
from .own import create_own
from .resnet import resnet
from .states import read_state
from .vgg import vgg
from .vision import check_name, create_timm, create_torchvision

_SOURCES = {"torchvision": create_torchvision, "timm": create_timm}
_DATASETS = {"cifar10": 10, "cifar100": 100}
_FAMILIES: Mapping[str, Callable[..., nn.Module]] = {
    **{f"vgg{depth}-bn": partial(vgg, depth) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": partial(resnet, depth) for depth in (20, 32, 44, 56, 110)},
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    **{f"mobilenet-v1-x{width}": partial(mobilenet_v1, width=width) for width in (0.25, 0.5, 0.75)},
    **{f"mobilenet-v2-x{width}": partial(mobilenet_v2, width=width) for width in (0.25, 0.5, 0.75)},
}


def names(*, pretrained: bool = False) -> list[str]:
    """List our own networks, `<dataset>-<family>`; with `pretrained`, those that have weights.

    Trained networks with gates are no architectures: `ftwt.shipped.names()` lists these, too.
    """
    own = [f"{dataset}-{family}" for dataset in _DATASETS for family in _FAMILIES]
    trained = shipped.names()
    return [name for name in own if not pretrained or name in trained]


def create(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    **kwargs: object,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of `names()`, or `torchvision:<name>`, `timm:<name>` with the names of those
            libraries (the `vision` extra), or `module:function` of your own.
        num_classes: outputs of the classifier, by default those of the dataset, or of `weights`.
        pretrained: load trained weights: our own come with the package, the others are downloaded.
        weights: instead, the file of a state dict (.pth, .pt, .safetensors), or its address with
            its checksum, `https://HOST/FILE.pth#sha256=DIGEST`; nothing in it is run. How images
            are prepared for them is theirs, not the name's: a state dict does not say it.
        kwargs: passed to the builder, `width=0.5` for the MobileNets, say.

    Returns:
        The network, in training mode. Ours map (B, 3, 32, 32) to logits (B, num_classes).

    Raises:
        ValueError: an unknown name, that of a pruned network, a name without weights, weights
            that do not fit, or an address without a checksum.
        FileNotFoundError: there is no such file of weights.
        ConnectionError: weights cannot be downloaded.
        ImportError: torchvision, timm or the module is needed and not installed.

    Example:
        >>> model = create("cifar10-mobilenet-v1", width=0.5)
    """
    if weights is None:
        return _build(name, num_classes=num_classes, pretrained=pretrained, **kwargs)
    if pretrained:
        raise ValueError(f"pretrained=True beside weights={str(weights)!r}; give one of them")
    model = _build(name, num_classes=num_classes, pretrained=False, **kwargs)
    tensors = unwrapped(read_state(weights), model)
    state = model.state_dict()
    last = list(state)[-1]  # of the classifier
    found = tensors.get(last)
    if (
        num_classes is None
        and found is not None
        and found.dim()
        and found.shape != state[last].shape
    ):
        model = _build(name, num_classes=len(found), pretrained=False, **kwargs)
    load_weights(model, tensors, source=str(weights))
    return model


def _build(name: str, *, num_classes: int | None, pretrained: bool, **kwargs: object) -> nn.Module:
    """Build a network, with its own weights or random ones."""
    if is_own(name):
        return create_own(name, num_classes=num_classes, pretrained=pretrained, **kwargs)
    source, _, foreign = name.rpartition(":")
    if source in _SOURCES:
        if num_classes is not None:
            kwargs["num_classes"] = num_classes
        return _SOURCES[source](foreign, pretrained=pretrained, **kwargs)
    if name not in names() and name in shipped.names():
        raise ValueError(
            f"{name!r} is a pruned network, not an architecture; "
            f"ftwt.from_pretrained({name!r}) loads it, weights and gates"
        )
    check_name(name, names(), source="ftwt")
    dataset, family = name.split("-", 1)
    classes = _DATASETS[dataset] if num_classes is None else num_classes
    model = _FAMILIES[family](num_classes=classes, **kwargs)
    if pretrained:
        _load_weights(model, name)
    return model


def _load_weights(model: nn.Module, name: str) -> None:
    """Load our own weights, in whatever precision they are stored, into a model of that name."""
    if name not in shipped.names():
        known = ", ".join(names(pretrained=True)) or "none"
        raise ValueError(
            f"no weights for {name!r}; names with weights: {known}. Train it (`ftwt recipes` has "
            f"baselines) and name that run instead (--weights runs/NAME)"
        )
    tensors, _ = load_tensors(shipped.folder(name) / shipped.MODEL / shipped.WEIGHTS)
    try:
        load_weights(model, tensors, source=f"what comes with ftwt as {name!r}")
    except ValueError as error:
        raise ValueError(
            f"{name!r} has weights only for its own num_classes and width; {error}"
        ) from error
