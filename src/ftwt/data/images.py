"""A whole split of labelled images, in memory."""

from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.pictures import Preprocessing

USUAL = 5000  # images that are held out of large training splits


class Labelled(Protocol):
    """A split of images, wherever they are: `Images`, or `ImageFiles`."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,), each in [0, len(classes)); all -1 where none is known."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixel values in [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of pixel values in [0, 1]."""

    @property
    def how(self) -> Preprocessing:
        """How a picture of any size becomes one of them."""

    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> Self:
        """Take the images at `indices`, int64 (M,), in that order."""


Split = TypeVar("Split", bound=Labelled)


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Labelled images of one size, as raw pixels, on one device.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), each in [0, len(classes)).
        classes: the name of each label.
        name: the dataset they come from.
        mean: per channel, of pixel values in [0, 1].
        std: per channel, of pixel values in [0, 1].

    Raises:
        ValueError: a wrong dtype or shape, no images, or a label out of range.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"{self.name}: images must be uint8 of shape (N, C, H, W), "
                f"got {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.images.numel() == 0:
            raise ValueError(f"{self.name}: no images, shape {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{self.name}: labels must be int64 of shape ({len(self.images)},), one an image, "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"{self.name}: labels must lie in [0, {len(self.classes) - 1}], one for each of "
                f"{len(self.classes)} classes; found {low if low < 0 else high}"
            )
        channels = self.images.shape[1]
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise ValueError(
                f"{self.name}: mean and std must hold a value for each of {channels} channels and "
                f"std be positive, got mean {self.mean} and std {self.std}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = "x".join(str(n) for n in self.images.shape[1:])
        return (
            f"Images({self.name}: {len(self):,} of {size}, {len(self.classes)} classes, "
            f"{self.images.device})"
        )

    @property
    def how(self) -> Preprocessing:
        """How a picture of any size becomes one of them."""
        side = self.images.shape[-1]
        return Preprocessing(side, side, self.mean, self.std)

    def to(self, device: torch.device | str) -> "Images":
        """Copy to `device`, where Batches then cuts and augments them; a no-op if there already."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def select(self, indices: Tensor) -> "Images":
        """Take the images at `indices`, int64 (M,), in that order."""
        indices = indices.to(self.images.device)
        return replace(self, images=self.images[indices], labels=self.labels[indices])


def hold_out(images: Split, *, count: int | None = None, seed: int) -> tuple[Split, Split]:
    """Split off a class-balanced validation set; the same one for the same seed, everywhere.

    Args:
        images: a training split.
        count: how many images to hold out, see `balanced`; by default a tenth, but at most half of
            the smallest class times the classes, and at most 5,000 or, if this is more, ten of each
            class: 5,000 of CIFAR, 10,000 of ImageNet.
        seed: draws which images, >= 0.

    Returns:
        What remains for training, and the images held out; both in their original order.

    Raises:
        ValueError: `count` is not positive, or would leave a class without training images.
    """
    if count is None:
        sizes = [len(members) for members in _by_class(images)]
        most = min(max(USUAL, 10 * len(sizes)), len(sizes) * (min(sizes) // 2))
        count = max(1, min(len(images) // 10, most))
    held = torch.zeros(len(images), dtype=torch.bool)
    held[balanced(images, count=count, seed=seed)] = True
    return images.select((~held).nonzero()[:, 0]), images.select(held.nonzero()[:, 0])


def balanced(images: Labelled, *, count: int, seed: int) -> Tensor:
    """Draw images without replacement, as many of one class as of another.

    Args:
        images: what to draw from; without labels, classes make no difference.
        count: how many to draw. What is left over of an uneven division goes to classes drawn
            by the seed, one each.
        seed: >= 0.

    Returns:
        Their indices, int64 (count,), ascending.

    Raises:
        ValueError: `count` is not positive, or takes the last image of a class.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rng = np.random.default_rng(seed)
    kinds = _by_class(images)
    shares = count // len(kinds) + (rng.permutation(len(kinds)) < count % len(kinds))
    drawn = []
    for label, (members, share) in enumerate(zip(kinds, shares, strict=True)):
        if share >= len(members):
            most = len(kinds) * (min(map(len, kinds)) - 1)
            fix = f"take at most {most} (--validation), or add images" if most > 0 else "add images"
            of = f"class {images.classes[label]!r}, which has {len(members)}"
            if not has_labels(images):
                of = f"all {len(members)}"
            raise ValueError(
                f"to hold out {count} images takes {share} of {of}, and one of each must remain; "
                f"{fix}"
            )
        drawn.append(rng.permutation(members)[:share])
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


def has_labels(images: Labelled) -> bool:
    """Whether the classes of the images are known."""
    return bool((images.labels >= 0).all())


def _by_class(images: Labelled) -> list[NDArray[np.int64]]:
    """Indices of the images of each class; of all together where the classes are not known."""
    labels = images.labels.cpu().numpy()
    if not has_labels(images):
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels == label) for label in range(len(images.classes))]
