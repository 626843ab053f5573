"""Batches of normalised images, cut and augmented in bulk where the images are."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .epochs import Epochs
from .images import Images

PADDING = 4  # zero pixels around an image before the random crop


class Batches(Epochs):
    """Batches of images that are in memory; the options are those of `Epochs`.

    Move the images to the GPU first (`images.to("cuda")`) to keep them there whole. To augment is
    to pad by 4 zero pixels, crop at random and flip one in two at random, on the device; it is
    drawn on the CPU for the global batch and then cut by rank, so it is the same on any device.
    """

    images: Images

    def iterate(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's batches from the `start`-th on, the same that `__iter__` yields."""
        rng = np.random.default_rng((self.seed, self.epoch))
        count = len(self.images)
        order = self._order(rng)
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
            yield self._normalised(pixels), labels


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
