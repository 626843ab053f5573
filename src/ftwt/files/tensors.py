"""Files of tensors: safetensors with JSON metadata, and a digest over both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .atomic import replacing
from .digest import digest
from .json import parse_json

FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError)


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
        temporary.write_bytes(_in_order(safetensors.torch.save(owned, metadata=header)))


def _in_order(content: bytes) -> bytes:
    """Put the metadata's keys, which come in any order, into one: equal contents, equal bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is truncated, altered, or not written by `save_tensors`.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = file.metadata()
    if header.get("sha256") != _digest(tensors, header["ftwt"]):
        raise ValueError(f"{path} was altered after it was written; get or make it again")
    return tensors, _parse(path, header["ftwt"])


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metadata of what `save_tensors` wrote, without tensors, so without the digest.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is truncated, or not written by `save_tensors`.
    """
    with _opened(path) as file:
        return _parse(path, file.metadata()["ftwt"])


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict, as `torch.save(network.state_dict(), path)` or safetensors writes it.

    One that lies under `state_dict` or `model` among other things, as in a checkpoint, is found.
    Nothing that a file may hold is run.

    Args:
        path: The file; of safetensors where its name ends so.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds a whole network, which is code, or no state dict; or it is truncated.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} with weights")
    try:
        if Path(path).suffix == ".safetensors":
            values: Any = safetensors.torch.load_file(path)
        else:
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip files and tensors
        raise ValueError(
            f"{path} is damaged, or holds more than weights, such as a whole network, which could "
            f"run code ({type(error).__name__}); where it was made, write "
            f"torch.save(network.state_dict(), {Path(path).name!r})"
        ) from error
    for inner in ("state_dict", "model"):
        if isinstance(values, dict) and isinstance(values.get(inner), dict):
            values = values[inner]
    found = values.items() if isinstance(values, dict) else [("it", values)]
    for name, value in found:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{path} holds no state dict: {name} is {type(value).__name__}, no tensor; save "
                "network.state_dict() alone"
            )
    return dict(values)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    if Path(path).exists() and not Path(path).is_file():  # a pipe would make us wait
        raise ValueError(f"{path} is not a regular file; get or make it again")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if "ftwt" not in (file.metadata() or {}):
                raise ValueError(f"{path} was not written by ftwt; load it with safetensors itself")
            yield file
    except (safetensors.SafetensorError, *FAULTS) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); get or make it again"
        ) from error


def _parse(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} holds metadata that ftwt never writes ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds metadata that are no JSON object; get or make it again")
    return values


@contextmanager
def refusing(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Refuse a file whose values, each of a known kind, make no sense together.

    Args:
        path: The file or folder, for the message.
        what: What is wrong with it when something in here fails.

    Raises:
        ValueError: Something failed on what the file says.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} {what}: {error}") from error
    except FAULTS as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} {what} ({told}); get or make it again") from error


def rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Round weights to a dtype; those of fewer than two dimensions stay as they are.

    These are few, and sensitive: a variance of a batch norm may be too small for half precision,
    and a threshold decides by itself what is computed.

    Args:
        tensors: Of any dtypes and shapes.
        dtype: `torch.float16`, `torch.bfloat16`, or `torch.float32`.

    Raises:
        ValueError: The dtype is another one, or a weight is too large for it.
    """
    if dtype not in (known := (torch.float16, torch.bfloat16, torch.float32)):
        raise ValueError(f"dtype={dtype}: store weights as one of {', '.join(map(str, known))}")
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() >= 2 and tensor.is_floating_point():
            result[name] = tensor.to(dtype)
            if tensor.isfinite().all() and not result[name].isfinite().all():
                raise ValueError(
                    f"{name} holds {float(tensor.abs().max()):g}, more than {dtype} can "
                    f"({torch.finfo(dtype).max:g}); store it as torch.bfloat16 or torch.float32"
                )
    return result


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    parts = (
        (name, one.dtype, tuple(one.shape), one.reshape(-1).view(torch.uint8).numpy().data)
        for name, one in tensors.items()
    )
    return digest(parts, text)


def unwrapped(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state by the model's names, if it was saved from within `DataParallel` or DDP."""
    state, prefix = model.state_dict(), "module."
    if tensors.keys() & state.keys() or not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


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
    kinds = [
        f"{name} {tensors[name].dtype} for {state[name].dtype}"
        for name in state
        if name in tensors and _kind(tensors[name]) != _kind(state[name])
    ]
    found = [
        f"{kind}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("shape", shaped),
            ("dtype", kinds),
        )
        if names
    ]
    if found:
        raise ValueError(
            f"{source} holds another architecture than {type(model).__name__} "
            f"({'; '.join(found)}); build the network that was saved"
        )
    model.load_state_dict(dict(tensors))


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    """What may be copied into one another: precisions of floats, lengths of integers."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool
