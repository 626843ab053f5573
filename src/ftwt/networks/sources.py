"""What a string means as a network: a name, a run's folder, a saved network, a Hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import models, shipped
from ..graph.trace import evaluating
from ..names import nearest
from ..processes import processes
from ..pruning.dynamic import DynamicModel
from ..records.folder import METRICS, MODEL
from .inputs import known
from .pretrained import from_pretrained, saved_name
from .splits import Splits


def load_network(
    model: str, weights: str | None, *, classes: int | None = None, new_head: bool = False
) -> nn.Module:
    """Create a dense network by name, on this process's device.

    Args:
        model: A name of `ftwt.models`.
        weights: `pretrained`, a folder of `save_pretrained` or of a run, or None for random ones.
        classes: How many outputs it must have; if not given, as many as it has.
        new_head: Where the weights are of another number of classes, begin with a new classifier.

    Raises:
        ValueError: There is no such network, it has no weights, or they are of another one, or of
            another number of classes.
    """
    sized: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if weights is None:
        network = models.create(model, **sized)
    elif weights == "pretrained":
        network = models.create(model, pretrained=True)
    else:
        folder = folder_of(weights)
        own = saved_name(folder) == model  # and may be of other classes than those by default
        network = from_pretrained(folder, model=None if own else models.create(model))
        if isinstance(network, DynamicModel):
            raise ValueError(f"{weights} holds a pruned network; name the run of a dense one")
    if classes is not None and (found := count_outputs(network, model)) != classes:
        if not new_head:
            raise ValueError(
                f"the weights {weights!r} of {model} are of {found} classes, the images of "
                f"{classes}; give weights of these classes, or begin with a new classifier "
                "(--new-head, new_head=True)"
            )
        network = _with_new_head(network, models.create(model, **sized))
    return network.to(processes().device)


def count_outputs(network: nn.Module, model: str) -> int:
    """Count the classes that a network of that name tells apart."""
    side = known(model)[0].crop
    shape = network.input_shape if isinstance(network, DynamicModel) else (3, side, side)
    like = next(network.parameters())
    with evaluating(network), torch.inference_mode():
        return network(torch.zeros(1, *shape, dtype=like.dtype, device=like.device)).shape[1]


def check_classes(network: nn.Module, model: str, splits: Splits) -> None:
    """Refuse to tell how well a network knows classes that are not its own.

    Raises:
        ValueError: The images are of another number of classes than the network of that name.
    """
    classes, outputs = len(splits.test.images.classes), count_outputs(network, model)
    if classes != outputs:
        raise ValueError(
            f"the network tells {outputs} classes apart, the images are of {classes}; give images "
            "of its own classes, or train it on these"
        )


def _with_new_head(trained: nn.Module, fresh: nn.Module) -> nn.Module:
    """Take all of a trained network's weights that fit: the classifier's do not."""
    values, state = trained.state_dict(), fresh.state_dict()
    fits = {k: v for k, v in values.items() if k in state and state[k].shape == v.shape}
    fresh.load_state_dict(state | fits)
    return fresh


def find_network(source: str) -> nn.Module:
    """Load a trained network, wherever it is, onto this process's device.

    Args:
        source: A name of `ftwt.models` or of a network that comes with ftwt, the folder of a run or
            of `save_pretrained`, or a repository on the Hugging Face Hub, `owner/name`.

    Raises:
        ValueError: It is none of these (the message suggests the nearest name), or a name and a
            folder.
        FileNotFoundError: There is no network in that folder or repository.
    """
    if is_architecture(source):
        return load_network(source, "pretrained")
    return from_pretrained(folder_of(source)).to(processes().device)


def is_architecture(source: str) -> bool:
    """Whether a source is a name of `ftwt.models`, so that its weights are a matter of their own.

    Raises:
        ValueError: It is no name and no place (the message suggests the nearest name), or a name
            and a folder.
    """
    if ":" in source:
        return True
    known = list(dict.fromkeys([*shipped.names(), *models.names()]))
    if source in known:
        shipped.refuse_folder(source)
    elif not Path(source).exists() and "/" not in source:
        raise ValueError(f"no model or folder {source!r}; {nearest(source, known)}")
    return source in models.names()


def folder_of(source: str) -> str | Path:
    """Return the folder of a named network, or that in a run's folder, or the source itself.

    Raises:
        ValueError: The run is not finished, or the source is a name and a folder.
    """
    if (found := shipped.find(source)) is not None:
        return found / shipped.MODEL
    inside = Path(source) / MODEL
    if inside.is_dir():
        return inside
    if (Path(source) / METRICS).exists():
        raise ValueError(f"{source} holds a run that is not finished; go on with it (--resume)")
    return source


def name_of(source: str) -> str:
    """The name in `ftwt.models` of what `find_network` finds, or would find.

    Raises:
        ValueError: It is a network of somebody's own, without a name.
        FileNotFoundError: There is no network in that folder or repository.
    """
    if is_architecture(source):
        return source
    name = saved_name(folder_of(source))
    if name is None:
        raise ValueError(f"{source} holds an unnamed architecture; compile it with ftwt.compile")
    return name
