"""Networks on disk and on the Hugging Face Hub, as safetensors and JSON: nothing is pickled.

A saved network is a folder: `config.json` says how to rebuild it, `model.safetensors` holds its
weights, and the same config again, so that two files of different saves are never mixed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import models
from .convert import convert
from .dynamic import DynamicModel
from .results import read_json, replacing, write_json

FORMAT = 1  # of a saved network
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_pretrained(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Save a network, plain, dynamic or static twin, for `from_pretrained`.

    Args:
        model: The network.
        directory: A folder, made if need be; an older network in it is replaced.
        name: What `ftwt.models.create` knows its architecture by; None for an architecture of your
            own, which `from_pretrained` must then be given.
        arguments: Further arguments of `ftwt.models.create`, such as `num_classes`.

    Raises:
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
    save_tensors(Path(directory) / WEIGHTS, model.state_dict(), config)
    write_json(Path(directory) / CONFIG, config)


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Rebuild what `save_pretrained` or `push_to_hub` saved.

    Args:
        source: The folder, or the id of a repository on the Hugging Face Hub, `owner/name`.
        model: The dense network, where the saved one is not one of `ftwt.models`; it is copied.
        revision: Branch, tag or commit of the repository.

    Returns:
        The network in eval mode, on the CPU: a `DynamicModel` if one was saved.

    Raises:
        ValueError: A file is truncated, altered, foreign, of a later format, or of another network.
        FileNotFoundError: There is no such folder or it holds no network.
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
    private: bool = False,
    token: str | None = None,
) -> str:
    """Save a network to a repository on the Hugging Face Hub, made if need be.

    Args:
        model: The network.
        repository: The repository's id, `owner/name`.
        name: Name of the architecture, as for `save_pretrained`.
        arguments: Further arguments of `ftwt.models.create`, as for `save_pretrained`.
        private: Make a new repository private.
        token: Access token; None for the one of `hf auth login`.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, name=name, arguments=arguments)
        api.create_repo(repository, private=private, exist_ok=True)
        message = "Save a network with ftwt"
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return str(commit.commit_url)


def saved_name(source: str | os.PathLike[str], *, revision: str | None = None) -> str | None:
    """Return the name in `ftwt.models` of a saved network's architecture; None if it has none.

    Raises:
        FileNotFoundError: There is no such folder or repository, or it holds no network.
    """
    return read_json(_fetch(source, revision) / CONFIG)["model"]


def _fetch(source: str | os.PathLike[str], revision: str | None) -> Path:
    path = Path(source)
    if (path / CONFIG).exists():
        return path
    if path.exists() or not isinstance(source, str) or source.count("/") != 1:
        raise FileNotFoundError(f"{path} holds no {CONFIG}; give a folder of save_pretrained")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = [CONFIG, WEIGHTS]
        return Path(snapshot_download(source, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is neither a folder nor a repository within reach ({error})"
        ) from error


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and JSON metadata to one safetensors file, whole or not at all.

    Args:
        path: The file; its folder is made if need be.
        tensors: Any dtypes, shapes and devices; tensors that share memory are written apart.
        metadata: JSON values.

    Raises:
        OSError: The folder cannot be written or the disk is full; an older file survives.
    """
    # safetensors wants each tensor alone in row-major memory (channels-last weights are not).
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(dict(metadata), allow_nan=False)
    header = {"format": "pt", "ftwt": text, "sha256": _digest(owned, text)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(owned, metadata=header))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is truncated, altered, or not written by `save_tensors`.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); get or make it again"
        ) from error
    if "ftwt" not in header:
        raise ValueError(f"{path} was not written by ftwt; load it with safetensors itself")
    if header.get("sha256") != _digest(tensors, header["ftwt"]):
        raise ValueError(f"{path} was altered after it was written; get or make it again")
    return tensors, json.loads(header["ftwt"])


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Copy a complete state into a model.

    Raises:
        ValueError: The state is of another architecture; the first differences are named.
    """
    state = model.state_dict()
    missing = [name for name in state if name not in tensors]
    unexpected = [name for name in tensors if name not in state]
    shaped = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(state[name].shape)}"
        for name in state
        if name in tensors and tensors[name].shape != state[name].shape
    ]
    found = [
        f"{kind}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("shape", shaped))
        if names
    ]
    if found:
        raise ValueError(
            f"{source} holds another architecture than {type(model).__name__} "
            f"({'; '.join(found)}); build the network that was saved"
        )
    model.load_state_dict(dict(tensors))
