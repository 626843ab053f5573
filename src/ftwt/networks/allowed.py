"""What a saved network may ask for.

A file from a stranger chooses neither code nor other files, and takes no more memory than its
weights do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from ..files.tensors import refusing
from ..names import is_own
from ..pruning.dynamic import DynamicModel, check_r
from ..shipped import WEIGHTS
from .outline import FEW, outline, refuse_large_maps, refuse_unlike

MAX_INPUT = 2**23  # numbers in an image that a file may ask to rebuild a network with
LOADERS = re.compile("pretrained|checkpoint|^weights|(path|file|url|dir|cfg)$")  # of arguments


def check_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Refuse what a file of a stranger might ask for: other files, downloads, endless memory."""

    def refuse(name: str, value: Any, allowed: str) -> NoReturn:
        raise ValueError(f"{directory / WEIGHTS}: {name} is {value!r}; it must be {allowed}")

    for name, kind, allowed in (
        ("model", str | None, "text or null"),
        ("arguments", dict, "an object"),
        ("input_shape", list | None, "a list or null"),
        ("convert", dict | None, "an object or null"),
    ):
        if name not in config or not isinstance(config[name], kind):
            refuse(name, config.get(name), allowed)
    sizes = [size for tensor in tensors.values() if tensor.numel() for size in tensor.shape]
    most = max([FEW, len(tensors), *sizes])
    for name, value in config["arguments"].items():
        if LOADERS.search(name):
            refuse(f"argument {name}", value, "left out: weights come from the folder alone")
        if isinstance(value, str) and not re.fullmatch(r"[\w.-]{1,64}", value):
            refuse(f"argument {name}", value, "a plain name")
        if not isinstance(value, str | int | float | None):
            refuse(f"argument {name}", value, "a number, a truth value or a name")
        if isinstance(value, int | float) and abs(value) > most:
            refuse(f"argument {name}", value, f"at most {most}, as the weights are")
    shape = config["input_shape"]
    if config["convert"] is not None:
        if not shape or not all(type(size) is int and size > 0 for size in shape):
            refuse("input_shape", shape, "sizes from 1 on")
        if math.prod(shape) > MAX_INPUT:
            refuse("input_shape", shape, f"of {MAX_INPUT} numbers at most")
        rank = config["convert"].get("rank")
        if isinstance(rank, int) and rank > most:
            refuse("rank", rank, f"at most {most}, as the weights are")


def own_rules(convert: Mapping[str, Any], directory: Path, **given: Any) -> dict[str, Any]:
    """The rules that were given for those of a saved network; refuse names that are a file's."""
    own = {}
    for what, rule in given.items():
        saved = convert.get(what)
        if not is_own(str(saved)):
            if rule is not None:
                raise ValueError(f"{directory} has the {what} {saved!r}; leave out {what}=")
        elif rule is None:
            raise ValueError(
                f"{directory} has the {what} {saved}, and no file may choose code that runs here; "
                f"if you trust that code, give {what}={saved!r}"
            )
        else:
            own[what] = rule
    return own


def check_outline(
    name: str,
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    directory: Path,
) -> None:
    """Refuse a network that is not that of the weights, before it takes memory."""
    like, gated = outline(name, arguments), config["convert"] is not None
    cure = "build the network that was saved"
    refuse_unlike(like, tensors, source=str(directory), cure=cure, gated=gated)
    if gated:
        shape = tuple(config["input_shape"])
        refuse_large_maps(like, shape, source=str(directory / WEIGHTS))


def check_values(network: nn.Module, path: Path | str) -> None:
    """Refuse values that a network cannot have: they would give wrong answers in silence."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; save it anew")
        if name.endswith("running_var") and value.numel() and value.min() < 0:
            raise ValueError(f"{path}: {name} holds a negative variance; save it anew")
    if isinstance(network, DynamicModel):
        with refusing(path, "holds an r that no gate can have"):
            check_r(network.r, network.predictors)
