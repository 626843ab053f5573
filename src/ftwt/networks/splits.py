"""The images of a run: each part of a dataset as this process's batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import data
from ..config import DataConfig
from ..data import Epochs
from ..data.folder import LAYOUT
from ..data.images import has_labels
from ..processes import cores, processes
from .sources import Source, count_outputs

EVALUATION_BATCH = 500  # of images of 32x32
FOLDER_BATCH = 128  # of image files, which are larger


@dataclass(frozen=True)
class Splits:
    """Batches of one dataset; with several processes, each has its part of them.

    Args:
        train: Augmented, shuffled, without the held-out images.
        plain: The same images as they are, in order: for estimates and for freezing.
        validation: The held-out images; all choices are made on these.
        test: The official test images, or a folder's `val`; only reported on.
    """

    train: Epochs
    plain: Epochs
    validation: Epochs
    test: Epochs


def load_splits(
    config: DataConfig,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    channels_last: bool = False,
    source: Source | None = None,
    labels: bool = False,
) -> Splits:
    """Load a dataset onto this process's device, and split it; a folder's images stay in files.

    The official archive of CIFAR is downloaded if it is not there.

    Args:
        config: Which images, and which of them to hold out.
        batch_size: Images a training step, over all processes; if not given, 128 or all there are.
        seed: Decides order and augmentation.
        channels_last: Memory layout of the images.
        source: The network they are for, as far as that says how they are prepared.
        labels: Whether those of the training images are needed.

    Raises:
        ValueError: The images are not what they should be, have no labels where these are needed,
            or too few are left for training.
        FileNotFoundError: They are not there.
    """
    state = processes()
    world = state.num_processes
    batches: Callable[..., Epochs]
    fit: Any
    held: Any
    test: Any
    if config.dataset == "folder":
        if source is None:
            raise ValueError("dataset='folder' needs the network, which says the images' size")
        if (how := source.prepare(config)) is None:
            raise ValueError(source.unprepared)
        both = data.image_folders(config.data_root, how, names=source.classes)
        if labels and not has_labels(both[0]):
            raise ValueError(
                f"images in {Path(both[0].paths[0]).parent} have no labels, which only folders by "
                f"class tell: {LAYOUT}; training, and evaluation on them, need labels, `ftwt "
                "prune` without --epochs does not"
            )
        fit, held = data.hold_out(both[0], count=config.validation, seed=config.split_seed)
        test = both[1]
        batches = partial(data.FileBatches, workers=min(config.workers, cores()))
        size = FOLDER_BATCH
    else:
        try:
            with state.local_main_process_first():  # which downloads, if need be
                whole = [
                    data.load(config.dataset, config.data_root, train=train, download=True)
                    for train in (True, False)
                ]
        except ConnectionError as error:
            if not data.has_layout(config.data_root):
                raise
            raise ConnectionError(
                f"{error}; or are the images those in {config.data_root}? Then --dataset folder"
            ) from error
        if config.mean is not None and config.std is not None:
            whole = [replace(images, mean=config.mean, std=config.std) for images in whole]
        elif source is not None and (how := source.stated) is not None:
            whole = [replace(images, mean=how.mean, std=how.std) for images in whole]
        if config.size not in (None, side := whole[0].how.crop):
            raise ValueError(f"size={config.size}: images of {config.dataset} have {side} pixels")
        parts = data.hold_out(whole[0], count=config.validation, seed=config.split_seed)
        fit, held, test = (images.to(state.device) for images in (*parts, whole[1]))
        batches, size = data.Batches, EVALUATION_BATCH

    part: dict[str, Any] = {
        "device": state.device,
        "channels_last": channels_last,
        "shard": (state.process_index, world),
    }
    size = max(1, size // world) * world
    if batch_size is None:
        batch_size = max(1, min(128, len(fit)) // world) * world
    return Splits(
        train=batches(fit, batch_size=batch_size, train=True, seed=seed, **part),
        plain=batches(fit, batch_size=size, **part),
        validation=batches(held, batch_size=size, **part),
        test=batches(test, batch_size=size, **part),
    )


def check_classes(network: nn.Module, splits: Splits, source: Source) -> None:
    """Refuse to tell how well a network knows classes that are not its own.

    Warns where it was saved with other names for as many classes.

    Raises:
        ValueError: The images are of another number of classes than the network tells apart.
    """
    images = splits.test.images
    side = images.how.crop
    classes, outputs = len(images.classes), count_outputs(network, (3, side, side))
    if classes != outputs:
        raise ValueError(
            f"the network tells {outputs} classes apart, the images are of {classes}; give images "
            "of its own classes, or train it on these"
        )
    if source.saved.get("classes") and set(source.classes) != set(images.classes):
        warnings.warn(
            f"the network was saved for {_some(source.classes)}, the images are of "
            f"{_some(images.classes)}: each is taken for the one at its place",
            stacklevel=2,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def described(source: Source, network: nn.Module, splits: Splits) -> dict[str, Any]:
    """What `save_pretrained` is told of a network that was made of a source, for these images."""
    images = splits.test.images
    side = images.how.crop
    outputs = count_outputs(network, (3, side, side))
    return {
        "name": source.model,
        "arguments": {**source.arguments, "num_classes": outputs},
        "classes": images.classes if len(images.classes) == outputs else None,
        "preprocessing": images.how,
    }
