"""Corruptions by blur; see `apply.py` for what the arguments are."""

import numpy as np

from . import filters
from .levels import levels
from .lots import Lots


def defocus_blur(images: np.ndarray, lens: tuple[float, float], lots: Lots) -> np.ndarray:
    """Spread each pixel over a disk: its radius and the softness of its rim, in pixels."""
    return filters.correlate(images, filters.disk(*lens))


def glass_blur(images: np.ndarray, glass: tuple[float, int], lots: Lots) -> np.ndarray:
    """Blur, move pixels about, blur: sigma in pixels, and how often pixels move.

    A pixel takes the value of itself or of a neighbour above, to the left, or both. The published
    code means to swap the two, but its assignment of array views copies: so do the published
    images, and so do these.
    """
    sigma, times = glass
    height, width = images.shape[2:]
    moved = levels(filters.gaussian_blur(images, sigma)) / 255
    rows, columns = np.meshgrid(np.arange(2, height), np.arange(2, width), indexing="ij")
    which = np.arange(len(images))[:, None, None]
    for _ in range(times):
        steps = lots(lambda rng, image: rng.integers(-1, 1, size=(2, *rows.shape)))
        above, left = rows + steps[:, 0], columns + steps[:, 1]
        # From the last row and column backwards nothing is read that was moved in the same round.
        moved[:, :, 2:, 2:] = np.moveaxis(moved[which, :, above, left], -1, 1)
    return filters.gaussian_blur(moved, sigma)


def motion_blur(images: np.ndarray, motion: tuple[int, float], lots: Lots) -> np.ndarray:
    """Smear along a line of random direction: radius and sigma in pixels.

    ImageMagick's filter, tap by tap: `filters.motion_taps`.
    """
    radius, sigma = motion
    angles = lots(lambda rng, image: rng.uniform(-45, 45))
    return filters.motion_blur(images, radius=radius, sigma=sigma, angles=angles)


def zoom_blur(images: np.ndarray, end: float, lots: Lots) -> np.ndarray:
    """Average the image with itself enlarged by 1, 1.01, 1.02, ..., up to but without `end`."""
    # numpy's steps, as published: 1.25 comes out a bit larger, and 32.5 pixels then round up.
    factors = np.arange(1, end, 0.01)
    total = images.copy()
    for factor in factors:
        matrix = filters.zoom_matrix(images.shape[-1], float(factor))
        total += filters.both_ways(images, matrix)
    return total / (len(factors) + 1)
