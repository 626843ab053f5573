"""The processes of a run: which one this is, what each one gets, and how they part.

A run is shared by one process or many (`torchrun`, `accelerate launch`), on one machine or many:
docs/scaling.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather, gather_object, reduce
from torch import Tensor

from .config import TrainConfig
from .graph.inputs import images_of

END = object()  # what comes after the last batch
TIMEOUT_S = 600.0  # one process waits so long for the others; $FTWT_TIMEOUT_S overrides it


def processes() -> PartialState:
    """Join the other processes of this run, if there are any: which one this is, and its device.

    Raises:
        ValueError: `FTWT_TIMEOUT_S` is set, but not to a number of seconds.
    """
    waits = timedelta(seconds=_timeout_s())
    return PartialState(cpu=without_gpu(), timeout=waits)


def leave() -> None:
    """Part from the other processes of this run, if there are any, when all have come so far."""
    state = processes()
    if state.num_processes > 1:
        state.wait_for_everyone()  # or one would go while another still speaks to it
        state.destroy_process_group()


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may leave some out
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shard() -> tuple[int, int]:
    """Return (rank, world) of this process: what its `Batches` are to be made with."""
    return processes().process_index, processes().num_processes


def without_gpu() -> bool:
    """Say whether there is no accelerator: Accelerate joins processes on the CPU only if told."""
    return not torch.accelerator.is_available()


def check_sharing(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuse to train in ways of sharing that would not do what they are asked for.

    Raises:
        ValueError: Weights were to be cut up (FSDP, DeepSpeed, Megatron), statistics to be shared
            in a compiled network, or processes would have fewer images than parts of a batch.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        asked = os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes")
        if asked or accelerator.distributed_type.name == name:
            raise ValueError(
                f"ACCELERATE_USE_{name} cuts the weights up, and gates, work and checkpoints need "
                "them whole; leave it out: then each process holds the network, and all share "
                "gradients (DDP)"
            )
    processes = accelerator.num_processes
    compiled = accelerator.state.dynamo_plugin.backend.value != "NO"
    if config.sync_batchnorm and processes > 1 and compiled:
        raise ValueError(
            "sync_batchnorm=True in a compiled network is not supported; leave it out, or "
            "ACCELERATE_DYNAMO_BACKEND"
        )
    if config.accumulation * processes > config.batch_size:
        raise ValueError(
            f"accumulation={config.accumulation} parts of a batch of {config.batch_size} images, "
            f"which {processes} processes share; take at most {config.batch_size // processes}"
        )


def explained(error: Exception) -> str:
    """Say what an error means, where it may be another process that failed."""
    signs = ("closed by peer", "Connection reset", "Timed out waiting", "Broken pipe", "NCCL")
    if not any(sign in str(error) for sign in signs) or processes().num_processes == 1:
        return str(error)
    return (
        "another process of this run has ended, or does not answer; what it told says why, and "
        f"--resume goes on, with any number of processes ({error})"
    )


def alone(accelerator: Any) -> bool:
    """Say whether there are no other processes to share with."""
    return accelerator is None or accelerator.num_processes == 1


def sharing_memory(accelerator: Any) -> int:
    """Count the processes of this machine, this one too; of the whole run, where nothing tells."""
    run = 1 if accelerator is None else accelerator.num_processes
    return int(os.environ.get("LOCAL_WORLD_SIZE") or run)  # torchrun and accelerate launch tell


def first(
    batches: Iterable[Any], images: int, *, accelerator: Any = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield this process's part of the first so many images, batch by batch.

    The batches of all processes are taken to be consecutive parts of common ones, as those of
    `Batches` and of DataLoaders that Accelerate prepared. Then the images of all processes together
    are those that a single one would look at. All processes yield equally often. Batches that are
    empty for all of them are passed over.

    Args:
        batches: (images, labels) of this process, or images alone.
        images: How many images to look at, over all processes together, at most.
        accelerator: An `Accelerator` or `PartialState` that knows the other processes; None: there
            are none.

    Yields:
        The place of the part's first image among all, and the part (B, C, *spatial), which is empty
        where the others hold the rest.
    """
    rank = 0 if alone(accelerator) else accelerator.process_index
    parts, begin = iter(batches), 0
    while begin < images:
        batch: Any = next(parts, END)
        mine = torch.empty(0) if batch is END else images_of(batch)
        told = [[len(mine), int(batch is not END)]]
        if not alone(accelerator):
            told = gather(torch.tensor(told, device=accelerator.device)).tolist()
        sizes, goes_on = zip(*told, strict=True)
        if not any(goes_on):
            return
        if not any(sizes):
            continue
        place = begin + sum(sizes[:rank])
        yield place, mine[: max(0, images - place)]
        begin += sum(sizes)


def gathered(part: Tensor, *, accelerator: Any = None) -> Tensor:
    """Join what each process holds of a batch, (B, ...), in the order of the processes."""
    if alone(accelerator):
        return part
    parts = [each for each in gather_object([part.cpu()]) if len(each)]
    return torch.cat(parts).to(part.device) if parts else part


def summed(tensors: Sequence[Tensor], *, accelerator: Any = None) -> list[Tensor]:
    """Add up tensors over all processes, which give as many, of the same shapes and types."""
    if alone(accelerator):
        return list(tensors)
    totals = reduce([each.to(accelerator.device) for each in tensors], "sum")
    return [total.to(each.device) for total, each in zip(totals, tensors, strict=True)]


def _timeout_s() -> float:
    given = os.environ.get("FTWT_TIMEOUT_S", "")
    try:
        seconds = float(given or TIMEOUT_S)
        if not 0 < seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"FTWT_TIMEOUT_S={given!r} is no number of seconds above 0; {TIMEOUT_S:g} is the "
            "default, more is needed where one process works alone for long (downloads)"
        ) from None
    return seconds
