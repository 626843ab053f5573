"""Image files in folders by class, listed; nothing is read before a batch needs it."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files.pictures import SUFFIXES, Preprocessing
from ..models.vision import import_vision
from .archive import data_folder

TRAIN, TEST = "train", "val"  # as ImageNet calls them
LAYOUT = "images lie in ROOT/train/CLASS/ and ROOT/val/CLASS/"
UNKNOWN = -1  # label of an image that lies in no class's folder


@dataclass(frozen=True, eq=False, repr=False)
class ImageFiles:
    """Image files, and how they become a network's input.

    Args:
        paths: the files.
        labels: int64 (N,), each in [0, len(classes)), on the CPU; or all of them -1, if none is
            known.
        classes: the name of each label.
        name: where they come from.
        how: size, mean and std that the network expects.
    """

    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    how: Preprocessing

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixel values in [0, 1]."""
        return self.how.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of pixel values in [0, 1]."""
        return self.how.std

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return (
            f"ImageFiles({self.name}: {len(self):,} files, {len(self.classes)} classes, "
            f"{self.how.crop}x{self.how.crop})"
        )

    def select(self, indices: Tensor) -> "ImageFiles":
        """Take the files at `indices`, int64 (M,), in that order."""
        chosen = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=chosen, labels=self.labels[indices])


def image_folders(
    root: str | os.PathLike[str] | None,
    how: Preprocessing,
    *,
    names: Sequence[str] = (),
) -> tuple[ImageFiles, ImageFiles]:
    """List the images of a folder in ImageNet's layout: `train/CLASS/FILE` and `val/CLASS/FILE`.

    Training images whose classes are not known may lie in `train` itself, `train/FILE`: pruning
    reads no labels.

    Args:
        root: the folder that holds `train` and `val`; by default $FTWT_DATA_ROOT, or else `data`.
        how: what becomes of them, as the network expects it.
        names: of the network's outputs, in their order. If the folders have these names, labels
            number them so; ImageNet's folders, n01440764 and so on, are called by them.

    Returns:
        The training files, and those of `val`, the test split; labels number the folders by name,
        and are -1 where `train` has none. Hidden files and folders are left out. Both splits are in
        a mixed order, always the same, so that the first ones, by which estimates and benchmarks
        judge, are of all classes.

    Raises:
        FileNotFoundError: there is no such folder, or no `train` or `val` in it.
        ValueError: there are no classes, they differ, or one has no images.
        ImportError: torchvision is not installed.
    """
    classes = folder_classes(root)
    if sorted(names) == list(classes):
        classes = tuple(names)
    both = []
    for part in (TRAIN, TEST):
        folder = data_folder(root) / part
        listed = _by_class(folder, classes) if _folders(folder) else _loose(folder)
        files = ImageFiles(
            paths=tuple(path for path, _ in listed),
            labels=torch.tensor([label for _, label in listed], dtype=torch.int64),
            classes=_readable(classes, names),
            name=folder.name,
            how=how,
        )
        _warn_of_others(folder)
        order = np.random.default_rng(0).permutation(len(files))
        both.append(files.select(torch.from_numpy(order)))
    return both[0], both[1]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_picture(path: str) -> bool:
    return path.lower().endswith(SUFFIXES) and not _is_hidden(os.path.basename(path))


def _by_class(folder: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """The pictures in the folders of a folder, and the label of each."""
    listed: list[tuple[str, int]] = import_vision("torchvision.datasets").ImageFolder.make_dataset(
        str(folder),
        {name: label for label, name in enumerate(classes)},
        is_valid_file=_is_picture,
        allow_empty=True,
    )
    counts = Counter(label for _, label in listed)
    for label, name in enumerate(classes):
        if not counts[label]:
            known = ", ".join(SUFFIXES)
            raise ValueError(
                f"no images in {folder / name} (of {known}); put some there{_or_loose(folder)}"
            )
    return listed


def _folders(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name)}


def _loose(folder: Path) -> list[tuple[str, int]]:
    """The pictures in the folder itself, of classes that are not known."""
    with os.scandir(folder) as entries:
        paths = [entry.path for entry in entries if entry.is_file() and _is_picture(entry.name)]
    return [(path, UNKNOWN) for path in sorted(paths)]


def _or_loose(folder: Path) -> str:
    """What else may be meant where pictures lie beside folders."""
    if folder.name != TRAIN or not (loose := len(_loose(folder))):
        return ""
    return f"; or are the {loose:,} pictures in {folder} without labels? Then take its folders away"


def _others(folder: Path) -> str:
    """How many files are no pictures, by their suffix."""
    found: Counter[str] = Counter()
    for _, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        others = (name for name in names if not _is_hidden(name) and not _is_picture(name))
        found.update(Path(name).suffix.lower() or name for name in others)
    return ", ".join(f"{kind} ({count:,})" for kind, count in found.most_common(5))


def _warn_of_others(folder: Path) -> None:
    """Name the files that are left out, where there are any."""
    if others := _others(folder):
        warnings.warn(f"{folder}: files that are no pictures are left out: {others}", stacklevel=3)
    if _folders(folder) and (loose := len(_loose(folder))):
        warnings.warn(
            f"{folder}: pictures in no class's folder are left out: {loose:,}", stacklevel=3
        )


def has_layout(root: str | os.PathLike[str] | None) -> bool:
    """Whether a folder looks like one of images: it holds `train` and `val`."""
    return all((data_folder(root) / part).is_dir() for part in (TRAIN, TEST))


def folder_classes(root: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Name the classes of a folder of images, in the order of their labels.

    Raises:
        FileNotFoundError: there is no such folder, or no `train` or `val` in it.
        ValueError: there are no classes, or the two have other classes.
    """
    found: dict[str, set[str]] = {}
    for part in (TRAIN, TEST):
        folder = data_folder(root) / part
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; {LAYOUT} (--data-root ROOT)")
        found[part] = _folders(folder)
        if part == TRAIN and not found[part] and not _loose(folder):
            others = _others(folder)
            raise ValueError(
                f"{folder} has neither folders, one for each class, nor pictures "
                f"({', '.join(SUFFIXES)}); {f'it has {others}; ' if others else ''}{LAYOUT}"
            )
        if part == TEST and not found[part]:
            raise ValueError(f"{folder} has no folders, one for each class; {LAYOUT}")
    train, test = found[TRAIN], found[TEST]
    if train and train != test:
        told = []
        for part, more in ((TRAIN, train - test), (TEST, test - train)):
            if more:
                shown = ", ".join(sorted(more)[:3]) + (", ..." if len(more) > 3 else "")
                told.append(f"only {part} has {shown}")
        raise ValueError(
            f"{data_folder(root)}: {TRAIN} has {len(train)} classes, {TEST} {len(test)}, and they "
            f"must be the same: {'; '.join(told)}{_or_loose(data_folder(root) / TRAIN)}"
        )
    return tuple(sorted(test))


def _readable(classes: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    """ImageNet's own numbers say nothing: n01440764 is a tench."""
    numbers = all(name[0] == "n" and name[1:].isdigit() and len(name) == 9 for name in classes)
    return tuple(names) if numbers and len(names) == len(classes) else classes
