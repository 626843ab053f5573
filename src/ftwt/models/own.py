"""Networks of your own, by where their code is: `module:function`."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..names import find_own


def create_own(name: str, *, num_classes: int | None, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Call a function (or class) of a module of the working folder, or of one that is installed.

    Args:
        name: `module:function`.
        num_classes: Passed on if the function takes it.
        pretrained: Refused: ftwt has no weights for it.
        kwargs: Passed on.

    Raises:
        ValueError: There is no such function, it wants other arguments, it returns no network, or
            weights are asked for.
        ImportError: There is no such module.
    """
    if pretrained:
        raise ValueError(
            f"{name} comes without weights; give them: --weights FILE.pth, or a folder of "
            "save_pretrained or of a run (None begins with random ones)"
        )
    build = find_own(name)
    if num_classes is not None and "num_classes" in inspect.signature(build).parameters:
        kwargs["num_classes"] = num_classes
    try:
        inspect.signature(build).bind(**kwargs)
    except TypeError as error:
        raise ValueError(
            f"{name} does not take the arguments {kwargs} ({error}); name a function that takes "
            "them, num_classes alone or none"
        ) from error
    network = build(**kwargs)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} returned {type(network).__name__}, it must return a network")
    return network
