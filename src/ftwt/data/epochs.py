"""What all batches of a split have in common: order, shares of processes, normalisation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .images import Labelled


class Epochs(ABC):
    """An iterable of (images, labels) that can be iterated more than once, epoch after epoch.

    Images are float32 (B, C, H, W), normalised by `images.mean` and `images.std`; labels are
    int64 (B,). What comes depends on the seed, the epoch and the position in the epoch alone: two
    processes together see what one sees, and a run that resumes in mid-epoch sees what it would
    have seen.

    Args:
        images: a split.
        batch_size: the *global* batch. In training every rank gets `batch_size / world` of it.
        train: shuffle, anew each epoch (see `set_epoch`); also the default of the next two.
        augment: change each image at random.
        drop_last: leave out the last batch when it is not full.
        seed: of order and augmentation, >= 0.
        device: where the batches are needed.
        channels_last: lay batches out as NHWC, same shape.
        shard: (rank, world). Without `drop_last` the last batch is cut as evenly as it can be,
            so that every image is seen exactly once over all ranks.

    Raises:
        ValueError: `batch_size` is not positive or not divisible by `world`, the rank is not in
            [0, world), no batch would come out, or (in training) the last batch cannot be shared
            evenly.
    """

    images: Any

    def __init__(
        self,
        images: Labelled,
        *,
        batch_size: int,
        train: bool = False,
        augment: bool | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        rank, world = shard
        if not 0 <= rank < world:
            raise ValueError(f"shard=(rank, world) needs 0 <= rank < world, got {shard}")
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f"batch_size is the global batch: a positive multiple of the {world} processes "
                f"that share it, got {batch_size}"
            )
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        self.images = images
        self.batch_size = batch_size
        self.train = train
        self.augment = train if augment is None else augment
        self.drop_last = train if drop_last is None else drop_last
        self.seed = seed
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.shard = shard
        self.epoch = 0
        ragged = 0 if self.drop_last else len(images) % batch_size
        if train and ragged % world:
            raise ValueError(
                f"the last batch has {ragged} images, which {world} processes cannot share evenly; "
                f"set drop_last=True or another batch_size than {batch_size}"
            )
        if len(self) == 0:
            raise ValueError(
                f"empty loader: {len(images)} images make no batch of {batch_size} for rank {rank} "
                f"of {world} with drop_last={self.drop_last}; lower batch_size "
                "(--batch-size)"
            )
        # (x / 255 - mean) / std as one product and one sum.
        scale = 1 / (255 * torch.tensor(images.std))
        shift = -255 * scale * torch.tensor(images.mean)
        self._scale = scale.view(-1, 1, 1).to(self.device)
        self._shift = shift.view(-1, 1, 1).to(self.device)

    def __len__(self) -> int:
        """Count this rank's batches in an epoch."""
        full, ragged = divmod(len(self.images), self.batch_size)
        # The last batch is handed out from rank 0 on: a rank beyond its size gets none of it.
        return full + (not self.drop_last and self.shard[0] < ragged)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.iterate()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration draws."""
        self.epoch = epoch

    @abstractmethod
    def iterate(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's batches from the `start`-th on, the same that `__iter__` yields."""

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """The epoch's images by position, int64 (N,)."""
        count = len(self.images)
        return rng.permutation(count) if self.train else np.arange(count)

    def _share(self, step: int) -> slice:
        """Find this rank's positions in the global batch: equal parts, the first ones longer."""
        rank, world = self.shard
        first = step * self.batch_size
        size, longer = divmod(min(self.batch_size, len(self.images) - first), world)
        begin = first + rank * size + min(rank, longer)
        return slice(begin, begin + size + (rank < longer))

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Pixels of (B, C, H, W), uint8 on the device, as the network gets them."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        pixels = pixels.contiguous(memory_format=layout)
        return pixels.float().mul_(self._scale).add_(self._shift)
