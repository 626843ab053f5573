"""CIFAR-10 and CIFAR-100 from their official binary archives: plain bytes, nothing unpickled."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from .archive import Archive, Member, data_folder, locate
from .images import Images

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Dataset:
    """Where a dataset's bytes are and what they mean."""

    name: str
    archive: Archive
    train: tuple[Member, ...]
    test: tuple[Member, ...]
    meta: Member  # the classes' names, a line each
    label_bytes: int  # before each image; the last one is the label
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _records(name: str, count: int, label_bytes: int, md5: str | None = None) -> Member:
    return Member(name, size=count * (label_bytes + PIXELS), md5=md5)


CIFAR10 = _Dataset(
    name="cifar10",
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
    ),
    train=(
        _records("data_batch_1.bin", 10_000, 1, "5dd7e06a14cb22eb9f671a540d1b7c25"),
        _records("data_batch_2.bin", 10_000, 1, "5ea93a67294ea407fff1d09f752e9692"),
        _records("data_batch_3.bin", 10_000, 1, "942cd6a4bcdd0dd3c604fbe906cb4421"),
        _records("data_batch_4.bin", 10_000, 1, "ae636b3ba5c66a11e91e8cb52e771fcb"),
        _records("data_batch_5.bin", 10_000, 1, "53f37980c15c3d472c316c40844f3f0d"),
    ),
    test=(_records("test_batch.bin", 10_000, 1, "803d5f7f4d78ea53de84dbe85f74fb6d"),),
    meta=Member("batches.meta.txt"),
    label_bytes=1,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = _Dataset(
    name="cifar100",
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
    ),
    train=(_records("train.bin", 50_000, 2),),
    test=(_records("test.bin", 10_000, 2),),
    meta=Member("fine_label_names.txt"),
    label_bytes=2,  # coarse, fine
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def cifar10(
    root: str | os.PathLike[str] | None = None, *, train: bool, download: bool = False
) -> Images:
    """Read CIFAR-10: 50,000 training or 10,000 test images, 10 classes.

    Args:
        root: the folder that holds `cifar-10-batches-bin/` or `cifar-10-binary.tar.gz`; by
            default $FTWT_DATA_ROOT, or else `data`.
        train: the training split, or else the test split.
        download: fetch the archive (170 MB) if neither is there.

    Returns:
        The split, on the CPU, in the order of the files.

    Raises:
        FileNotFoundError: no files there, and `download` is off.
        ValueError: a file or the archive is not the official one, byte for byte.
        ConnectionError: the download failed.

    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
    """
    return _read(CIFAR10, root, train=train, download=download)


def cifar100(
    root: str | os.PathLike[str] | None = None, *, train: bool, download: bool = False
) -> Images:
    """Read CIFAR-100 with its 100 fine labels; otherwise like `cifar10`.

    The folder is `cifar-100-binary/`, the archive `cifar-100-binary.tar.gz`. The archive has an
    official checksum, its files have not: of files that are already there only the size and the
    range of the labels are checked.
    """
    return _read(CIFAR100, root, train=train, download=download)


def _read(
    dataset: _Dataset, root: str | os.PathLike[str] | None, *, train: bool, download: bool
) -> Images:
    folder = data_folder(root)
    members = dataset.train if train else dataset.test
    *paths, meta = locate(dataset.archive, folder, (*members, dataset.meta), download=download)
    raw = np.concatenate([np.fromfile(path, dtype=np.uint8) for path in paths])
    records = raw.reshape(-1, dataset.label_bytes + PIXELS)
    return Images(
        images=torch.from_numpy(records[:, dataset.label_bytes :].copy()).view(-1, 3, 32, 32),
        labels=torch.from_numpy(records[:, dataset.label_bytes - 1].astype(np.int64)),
        classes=tuple(meta.read_text(encoding="utf-8").split()),
        name=dataset.name,
        mean=dataset.mean,
        std=dataset.std,
    )
