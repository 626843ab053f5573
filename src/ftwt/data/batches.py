"""Batches of normalised images, cut and augmented in bulk where the images are."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .images import Images

PADDING = 4  # zero pixels around an image before the random crop


class Batches:
    """An iterable of (images, labels) that can be iterated more than once.

    Images are float32 (B, C, H, W), normalised by `images.mean` and `images.std`; labels are
    int64 (B,). Order and augmentation depend on the seed, the epoch and the position in the epoch
    alone, drawn on the CPU for the global batch and then cut by rank: two processes together see
    what one sees, on any device, and a run that resumes in mid-epoch sees what it would have seen.

    Args:
        images: a split; move it to the GPU first (`images.to("cuda")`) to keep it there whole.
        batch_size: the *global* batch. In training every rank gets `batch_size / world` of it.
        train: shuffle, anew each epoch (see `set_epoch`); also the default of the next two.
        augment: pad by 4 zero pixels, crop at random, flip one in two at random.
        drop_last: leave out the last batch when it is not full.
        seed: of order and augmentation, >= 0.
        device: where the batches are needed; cropping and flipping run there.
        channels_last: lay batches out as NHWC, same shape.
        shard: (rank, world). Without `drop_last` the last batch is cut as evenly as it can be,
            so that every image is seen exactly once over all ranks.

    Raises:
        ValueError: `batch_size` is not positive or not divisible by `world`, the rank is not in
            [0, world), no batch would come out, or (in training) the last batch cannot be shared
            evenly.
    """

    def __init__(
        self,
        images: Images,
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
                f"of {world} with drop_last={self.drop_last}; lower batch_size"
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

    def iterate(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's batches from the `start`-th on, the same that `__iter__` yields."""
        rng = np.random.default_rng((self.seed, self.epoch))
        count = len(self.images)
        order = rng.permutation(count) if self.train else np.arange(count)
        # Drawn for the whole epoch at once, so that an image's draws depend on its position alone.
        corners = rng.integers(2 * PADDING + 1, size=(2, count))
        flips = rng.random(count) < 0.5
        indices = torch.from_numpy(order).to(self.images.images.device)
        top, left = torch.from_numpy(corners).to(self.device)
        flip = torch.from_numpy(flips).to(self.device)
        for step in range(start, len(self)):
            mine = self._share(step)
            pixels = self.images.images[indices[mine]].to(self.device)
            labels = self.images.labels[indices[mine]].to(self.device)
            if self.augment:
                pixels = crop_and_flip(pixels, top=top[mine], left=left[mine], flip=flip[mine])
            if self.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            yield pixels.float().mul_(self._scale).add_(self._shift), labels

    def _share(self, step: int) -> slice:
        """Find this rank's positions in the global batch: equal parts, the first ones longer."""
        rank, world = self.shard
        first = step * self.batch_size
        size, longer = divmod(min(self.batch_size, len(self.images) - first), world)
        begin = first + rank * size + min(rank, longer)
        return slice(begin, begin + size + (rank < longer))


def crop_and_flip(images: Tensor, *, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad each image with zeros, cut a window of its size out of it, mirror it left to right.

    Args:
        images: (B, C, H, W), any dtype.
        top: int64 (B,), the window's first row in [0, 2 * PADDING].
        left: int64 (B,), the window's first column, likewise.
        flip: bool (B,), whether to mirror the window.

    Returns:
        (B, C, H, W), contiguous.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    # Every window of every image as a view, of which one is copied for each image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(count, device=images.device), :, top, left]
    return torch.where(flip.view(-1, 1, 1, 1), cropped.flip(-1), cropped)
