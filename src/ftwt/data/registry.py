"""Datasets by name."""

import difflib
import os

from .cifar import cifar10, cifar100
from .images import Images
from .subset import embedded

DATASETS = ("cifar10", "cifar100", "cifar10-embedded")


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    train: bool,
    download: bool = False,
) -> Images:
    """Read a dataset by name.

    Args:
        name: `cifar10`, `cifar100`, or `cifar10-embedded`, which needs no files.
        root: the data folder, see `cifar10`.
        train: the training split, or else the test split.
        download: fetch what is not there.

    Returns:
        The split, on the CPU.

    Raises:
        ValueError: an unknown name, or files that are not the official ones.
        FileNotFoundError: no files there, and `download` is off.
        ConnectionError: the download failed.
    """
    match name:
        case "cifar10":
            return cifar10(root, train=train, download=download)
        case "cifar100":
            return cifar100(root, train=train, download=download)
        case "cifar10-embedded":
            return embedded(train=train)
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown dataset {name!r}, valid: {', '.join(DATASETS)}{hint}")
