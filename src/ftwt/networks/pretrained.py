"""Networks on disk and on the Hugging Face Hub, as safetensors and JSON: nothing is pickled.

A saved network is a folder: `model.safetensors` holds its weights and, as metadata, the settings
that rebuild it. So it is of one save at every moment, also when the process is killed.
`config.json` is a copy of the settings, for readers and for the Hub; it is never read back.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .. import models, shipped
from ..files.json import read_json, write_json
from ..files.pictures import Preprocessing
from ..files.tensors import (
    load_metadata,
    load_tensors,
    load_weights,
    refusing,
    rounded,
    save_tensors,
)
from ..names import is_own, nearest
from ..pruning.convert import convert
from ..pruning.dynamic import DynamicModel
from ..pruning.method import Gate
from ..pruning.own import refuse_nameless
from ..pruning.second_look import SecondLook
from ..shipped import CONFIG, MODEL, WEIGHTS
from .allowed import check_config, check_outline, check_values, own_rules
from .outline import outline, refuse_unlike
from .witness import answer, refuse_another

FORMAT = 1  # of a saved network
RULE = "second_look.json"  # of a second look, whose passes lie in folders of their own
PLACES = ("first", "second", "third")


def save_pretrained(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Save a network, plain, dynamic or static twin, for `from_pretrained`.

    Args:
        model: The network; of a second look, each pass in a folder of its own.
        directory: A folder, made if need be; an older network in it is replaced.
        name: What `ftwt.models.create` knows its architecture by; of your own, `module:function`,
            without which `from_pretrained` must be given the network.
        arguments: Further arguments of `ftwt.models.create`, such as `num_classes`.
        classes: Names of its outputs, for `ftwt run`; None for those that its name implies.
        preprocessing: How images are prepared for it; None for what its name implies.
        dtype: Store weights of two dimensions or more in it: `torch.float16` or `torch.bfloat16`
            halve the file. Vectors and scalars (statistics, biases, thresholds) stay as they are;
            so does the network. None stores everything as it is.

    Raises:
        ValueError: The dtype is none of these, or a weight is too large for it, has no value or is
            of eight bits; the network of that name and arguments has other weights; or a dynamic
            network has inputs beside images.
        OSError: The folder cannot be written or the disk is full.
    """
    if isinstance(model, SecondLook):
        for place, network in zip(PLACES, model.networks, strict=False):
            save_pretrained(
                network,
                Path(directory) / place,
                name=name,
                arguments=arguments,
                classes=classes,
                preprocessing=preprocessing,
                dtype=dtype,
            )
        rule = {"format": FORMAT, "library": "ftwt", "thresholds": model.thresholds.tolist()}
        write_json(Path(directory) / RULE, rule)
        return
    dynamic = model if isinstance(model, DynamicModel) else None
    if name is not None:
        refuse_unlike(
            outline(name, arguments or {}),
            model.state_dict(),
            source=f"the network to be saved as {name!r}",
            cure="give the arguments that it was made with, such as arguments={'num_classes': 5}, "
            "or no name",
            gated=dynamic is not None,
        )
    if dynamic is not None:
        gates = [gate for gate in dynamic.gates.values() if isinstance(gate, Gate)]
        refuse_nameless(dynamic.predictors.values(), [gate.saliency for gate in gates])
    if dynamic is not None and len(dynamic.inputs) > 1:
        raise ValueError(
            f"a dynamic network of the inputs {', '.join(dynamic.inputs)} would not come back: "
            "networks of one input are saved; keep its state_dict(), and convert anew"
        )
    config = {
        "format": FORMAT,
        "library": "ftwt",
        "model": name,
        "arguments": dict(arguments or {}),
        "classes": None if classes is None else list(classes),
        "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "input_shape": None if dynamic is None else list(dynamic.input_shape),
        "convert": None if dynamic is None else dynamic.config,
    }
    for key, value in model.state_dict().items():
        if value.is_meta:
            raise ValueError(
                f"{key} lies on the meta device, where it has no values; load it first"
            )
        if value.is_floating_point() and value.element_size() == 1:
            raise ValueError(
                f"{key} is {value.dtype}, in which no network can be rebuilt; model.to("
                "torch.bfloat16) first"
            )
    state = model.state_dict() if dtype is None else rounded(model.state_dict(), dtype)
    config["answer"] = None if dynamic is None else answer(dynamic)
    folder = Path(directory)
    save_tensors(folder / WEIGHTS, state, config)
    write_json(folder / CONFIG, config)


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    model: nn.Module | str | None = None,
    saliency: Callable[..., Any] | str | None = None,
    head: Callable[..., Any] | str | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Rebuild what `save_pretrained` or `push_to_hub` saved.

    Args:
        source: The name of a network that comes with ftwt (`ftwt.shipped.names()`), a folder, or
            the id of a repository on the Hugging Face Hub, `owner/name`.
        model: The dense network, which is copied, or what builds it, `module:function`, where the
            saved one is not one of `ftwt.models`: no file may choose code that runs here.
        saliency: The saved network's, where that is a rule of your own: the function, or its name
            `module:function`.
        head: Likewise.
        revision: Branch, tag or commit of the repository.

    Returns:
        The network in eval mode, on the CPU: a `DynamicModel` if one was saved.

    Raises:
        ValueError: A file is truncated, altered, foreign, of a later format, or of another network,
            be it one that computes something else with the same weights;
            or the name of a network is that of a folder here, too.
        FileNotFoundError: There is no such network or folder, or it holds no network.
    """
    if (Path(source) / RULE).exists():
        return _second_look(Path(source), {"model": model, "saliency": saliency, "head": head})
    directory = _fetch(source, revision)
    tensors, config = load_tensors(directory / WEIGHTS)
    if config.get("library") != "ftwt":
        raise ValueError(f"{directory / WEIGHTS} was not written by ftwt.save_pretrained")
    saved_with = config.get("format")
    if type(saved_with) is not int or saved_with > FORMAT:
        raise ValueError(
            f"{directory} has format {saved_with!r}, this ftwt reads up to {FORMAT}: update it"
        )
    check_config(config, tensors, directory)
    name = config["model"] if model is None else model
    if name is None:
        raise ValueError(f"{directory} holds an unnamed architecture; give the network as model=")
    if model is None and is_own(str(name)):
        raise ValueError(
            f"{directory} is of {name}, and no file may choose code that runs here; if you trust "
            f"that code, give model={name!r}"
        )
    own = own_rules(config["convert"] or {}, directory, saliency=saliency, head=head)
    with refusing(directory, "asks for a network that cannot be built"):
        if isinstance(name, str):
            ours = config["model"] in (name, None)
            arguments = config["arguments"] if ours else {}
            if not is_own(name):
                check_outline(name, arguments, config, tensors, directory)
            built = models.create(name, **arguments)
        else:
            built = copy.deepcopy(name)
        if config["convert"] is not None:
            options = dict(config["convert"]) | own
            static = options.pop("static", False)
            dtype = next((p.dtype for p in built.parameters()), torch.float32)
            example = torch.zeros(2, *config["input_shape"], dtype=dtype)
            # Of the gates that are not named in `skip` each was built, dear or not.
            built = convert(built, example, min_gain=-math.inf, **options)
            if static:
                fixed = static if isinstance(static, list) else [*built.gates]
                widths = {unit.name: unit.out_channels for unit in built.units}
                masks = {name: torch.ones(widths.get(name, 1)) > 0 for name in map(str, fixed)}
                built = built.fix(masks, partly=True)
    load_weights(built, tensors, source=directory)
    check_values(built, directory / WEIGHTS)
    if isinstance(built, DynamicModel):
        refuse_another(built, config.get("answer"), tensors, directory)
    return built.eval()


def _second_look(folder: Path, given: Mapping[str, Any]) -> SecondLook:
    rule = read_json(folder / RULE)
    thresholds: Any = rule.get("thresholds") if isinstance(rule, dict) else None
    known = isinstance(thresholds, list) and rule.get("format") == FORMAT
    if not known or len(thresholds) not in (1, 2) or {*map(type, thresholds)} != {float}:
        raise ValueError(f"{folder / RULE} holds no thresholds of format {FORMAT}; save it anew")
    places = [folder / place for place in PLACES[: len(thresholds) + 1]]
    passes = [from_pretrained(place, **given) for place in places]
    if not all(isinstance(one, DynamicModel) for one in passes):
        raise ValueError(f"{folder} holds plain networks, no second look; save it anew")
    return SecondLook(cast(list[DynamicModel], passes), thresholds).eval()


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Save a network to a repository on the Hugging Face Hub, made if need be.

    Args:
        model: The network.
        repository: The repository's id, `owner/name`.
        name: Name of the architecture, as for `save_pretrained`.
        arguments: Further arguments of `ftwt.models.create`, as for `save_pretrained`.
        classes: Names of its outputs, as for `save_pretrained`.
        preprocessing: How images are prepared for it, as for `save_pretrained`.
        dtype: Store weights in it, as for `save_pretrained`.
        private: Make a new repository private.
        token: Access token; None for the one of `hf auth login`.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(
            model,
            folder,
            name=name,
            arguments=arguments,
            classes=classes,
            preprocessing=preprocessing,
            dtype=dtype,
        )
        api.create_repo(repository, private=private, exist_ok=True)
        message = "Save a network with ftwt"
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return str(commit.commit_url)


def find_saved(source: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Find a saved network, and read what is said of it; no weights are read.

    Args:
        source: As of `from_pretrained`.

    Returns:
        Its folder; name, arguments, classes, preprocessing and input_shape, each if it was saved.

    Raises:
        FileNotFoundError: There is no such network, folder or repository, or it holds no network.
    """
    if (Path(source) / RULE).exists():
        return Path(source), load_metadata(Path(source) / "first" / WEIGHTS)
    folder = _fetch(source, None)
    return folder, load_metadata(folder / WEIGHTS)


def _fetch(source: str | os.PathLike[str], revision: str | None) -> Path:
    found = shipped.find(source)
    if found is not None:
        return found / MODEL
    path = Path(source)
    if (path / WEIGHTS).exists():
        return path
    if path.exists() or not isinstance(source, str) or source.count("/") > 1:
        raise FileNotFoundError(f"{path} holds no {WEIGHTS}; give a folder of save_pretrained")
    if "/" not in source:
        raise FileNotFoundError(
            f"{source} holds no {WEIGHTS} of save_pretrained, and no network of that name comes "
            f"with ftwt; {nearest(source, shipped.names())}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = [CONFIG, WEIGHTS]
        return Path(snapshot_download(source, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is neither a folder nor a repository within reach ({error})"
        ) from error
