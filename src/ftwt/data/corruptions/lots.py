"""What is drawn by lot for each image: decided by the image itself, not by its neighbours."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

Drawing = Callable[[np.random.Generator, np.ndarray], Any]


class Lots:
    """A generator for each image, seeded by a salt and the image's pixels.

    So an image gets the same noise alone, in any batch, in any order, and among any others.

    Args:
        pixels: (N, C, H, W) uint8, which decide.
        images: (N, C, H, W) float64, which a drawing may look at.
        salt: What else decides.
    """

    def __init__(self, pixels: np.ndarray, images: np.ndarray, *, salt: str) -> None:
        self.pixels = pixels
        self.images = images
        self.salt = salt.encode()

    def __call__(self, drawing: Drawing) -> np.ndarray:
        """Stack what `drawing(generator, image)` returns for each image; generators go on."""
        pairs = zip(self.generators, self.images, strict=True)
        return np.stack([drawing(generator, image) for generator, image in pairs])

    @cached_property
    def generators(self) -> list[np.random.Generator]:
        """One for each image."""
        seeds = [
            hashlib.blake2b(image.tobytes(), digest_size=16, salt=self._short).digest()
            for image in self.pixels
        ]
        return [np.random.default_rng(int.from_bytes(seed, "little")) for seed in seeds]

    @cached_property
    def _short(self) -> bytes:
        return hashlib.blake2b(self.salt, digest_size=16).digest()
