"""Networks of your own, by where their code is: `module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn


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
    build = _find(name)
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


def _find(name: str) -> Callable[..., Any]:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ValueError(f"{name!r} is no MODULE:FUNCTION, such as nets:small for small in nets.py")
    place, _, function = name.partition(":")
    module: Any = sys.modules["__main__"]  # a script that saves its own network runs but once
    if Path(getattr(module, "__file__", None) or "").stem != place:
        sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name != place.split(".")[0] and error.name != place:
                raise
            raise ImportError(
                f"there is no module {place!r} in this folder or installed; {name} is the "
                f"function {function} in {place.replace('.', '/')}.py"
            ) from error
        finally:
            sys.path.remove(os.getcwd())
    if not callable(found := getattr(module, function, None)):
        raise ValueError(f"{place} has no function {function!r}, which {name} names")
    return found
