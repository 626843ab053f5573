"""A small part of CIFAR-10 inside the package: first contact needs no download."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .cifar import CIFAR10
from .images import Images

FOLDER = Path(__file__).parent / "embedded"
SIDE = 32


def embedded(*, train: bool) -> Images:
    """Read the CIFAR-10 images that come with the package: 2,000 training, 1,000 test images.

    As many of each class, drawn from the official splits by `tools/make_embedded.py`, which also
    noted their places there; pixel for pixel the official ones, in their order.

    Args:
        train: the training split, or else the test split.

    Returns:
        The split, on the CPU, named `cifar10-embedded`.

    Raises:
        ValueError: the pixels are not those that were packed.
    """
    split = "train" if train else "test"
    index = read_index()
    path = FOLDER / f"{split}.webp"
    with Image.open(path) as mosaic:
        pixels = from_mosaic(np.asarray(mosaic.convert("RGB")))
    found = hashlib.sha256(pixels.data).hexdigest()
    if found != index[split]["sha256"]:
        raise ValueError(
            f"{path}: expected pixels with SHA-256 {index[split]['sha256']}, found {found}; "
            f"reinstall ftwt"
        )
    return Images(
        images=torch.from_numpy(pixels),
        labels=torch.tensor(index[split]["labels"]),
        classes=tuple(index["classes"]),
        name="cifar10-embedded",
        mean=CIFAR10.mean,
        std=CIFAR10.std,
    )


def read_index() -> dict[str, Any]:
    """Read what is known of the packed images: classes and, for each split, places and labels."""
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def to_mosaic(pixels: np.ndarray, *, columns: int) -> np.ndarray:
    """Lay images, (N, 3, 32, 32), out row by row as one picture, (rows * 32, columns * 32, 3)."""
    tiles = pixels.reshape(-1, columns, 3, SIDE, SIDE).transpose(0, 3, 1, 4, 2)
    return tiles.reshape(-1, columns * SIDE, 3)


def from_mosaic(picture: np.ndarray) -> np.ndarray:
    """Cut a picture, (rows * 32, columns * 32, 3), into its images, (N, 3, 32, 32)."""
    height, width, _ = picture.shape
    tiles = picture.reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, SIDE, SIDE)
