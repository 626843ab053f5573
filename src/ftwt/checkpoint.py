"""Networks on disk and on the Hugging Face Hub, as safetensors and JSON: nothing is pickled.

A saved network is a folder: `config.json` says how to rebuild it, `model.safetensors` holds its
weights, and the same config again, so that two files of different saves are never mixed.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import models, shipped
from .convert import convert
from .dynamic import DynamicModel
from .names import nearest
from .results import read_json, write_json
from .shipped import CONFIG, MODEL, WEIGHTS
from .tensors import load_tensors, load_weights, rounded, save_tensors

FORMAT = 1  # of a saved network


def save_pretrained(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Save a network, plain, dynamic or static twin, for `from_pretrained`.

    Args:
        model: The network.
        directory: A folder, made if need be; an older network in it is replaced.
        name: What `ftwt.models.create` knows its architecture by; None for an architecture of your
            own, which `from_pretrained` must then be given.
        arguments: Further arguments of `ftwt.models.create`, such as `num_classes`.
        dtype: Store weights of two dimensions or more in it: `torch.float16` or `torch.bfloat16`
            halve the file. Vectors and scalars (statistics, biases, thresholds) stay as they are;
            so does the network. None stores everything as it is.

    Raises:
        ValueError: The dtype is none of these, or a weight is too large for it.
        OSError: The folder cannot be written or the disk is full.
    """
    dynamic = model if isinstance(model, DynamicModel) else None
    config = {
        "format": FORMAT,
        "library": "ftwt",
        "model": name,
        "arguments": dict(arguments or {}),
        "input_shape": None if dynamic is None else list(dynamic.input_shape),
        "convert": None if dynamic is None else dynamic.config,
    }
    state = model.state_dict() if dtype is None else rounded(model.state_dict(), dtype)
    save_tensors(Path(directory) / WEIGHTS, state, config)
    write_json(Path(directory) / CONFIG, config)


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Rebuild what `save_pretrained` or `push_to_hub` saved.

    Args:
        source: The name of a network that comes with ftwt (`ftwt.shipped.names()`), a folder, or
            the id of a repository on the Hugging Face Hub, `owner/name`.
        model: The dense network, where the saved one is not one of `ftwt.models`; it is copied.
        revision: Branch, tag or commit of the repository.

    Returns:
        The network in eval mode, on the CPU: a `DynamicModel` if one was saved.

    Raises:
        ValueError: A file is truncated, altered, foreign, of a later format, or of another network;
            or the name of a network is that of a folder here, too.
        FileNotFoundError: There is no such network or folder, or it holds no network.
    """
    directory = _fetch(source, revision)
    config = read_json(directory / CONFIG)
    if not isinstance(config, dict) or config.get("library") != "ftwt":
        raise ValueError(f"{directory / CONFIG} was not written by ftwt.save_pretrained")
    if config.get("format", 0) > FORMAT:
        raise ValueError(
            f"{directory} has format {config['format']}, this ftwt reads up to {FORMAT}: update it"
        )
    tensors, written = load_tensors(directory / WEIGHTS)
    if written != config:
        raise ValueError(
            f"{CONFIG} and {WEIGHTS} in {directory} are not of the same save; save the network anew"
        )
    if model is None and config["model"] is None:
        raise ValueError(f"{directory} holds an unnamed architecture; give the network as model=")
    if model is None:
        built = models.create(config["model"], **config["arguments"])
    else:
        built = copy.deepcopy(model)
    if config["convert"] is not None:
        options = dict(config["convert"])
        static = options.pop("static", False)
        example = torch.zeros(2, *config["input_shape"])
        built = convert(built, example, **options)
        built = built.freeze([(example, torch.zeros(2))]) if static else built
    load_weights(built, tensors, source=directory)
    return built.eval()


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
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
        dtype: Store weights in it, as for `save_pretrained`.
        private: Make a new repository private.
        token: Access token; None for the one of `hf auth login`.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, name=name, arguments=arguments, dtype=dtype)
        api.create_repo(repository, private=private, exist_ok=True)
        message = "Save a network with ftwt"
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return str(commit.commit_url)


def saved_name(source: str | os.PathLike[str], *, revision: str | None = None) -> str | None:
    """Return the name in `ftwt.models` of a saved network's architecture; None if it has none.

    Raises:
        FileNotFoundError: There is no such network, folder or repository, or it holds no network.
    """
    return read_json(_fetch(source, revision) / CONFIG)["model"]


def _fetch(source: str | os.PathLike[str], revision: str | None) -> Path:
    found = shipped.find(source)
    if found is not None:
        return found / MODEL
    path = Path(source)
    if (path / CONFIG).exists():
        return path
    if path.exists() or not isinstance(source, str) or source.count("/") > 1:
        raise FileNotFoundError(f"{path} holds no {CONFIG}; give a folder of save_pretrained")
    if "/" not in source:
        raise FileNotFoundError(
            f"{source} holds no {CONFIG} of save_pretrained, and no network of that name comes "
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
