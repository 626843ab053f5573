"""Corruptions by weather; see `apply.py` for what the arguments are."""

import numpy as np

from . import filters
from .levels import levels
from .lots import Lots

GREY = np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)  # ITU-R BT.601
# Of the five pictures of frost that CIFAR-10-C was made with, at the size they were used in:
# mean colour (red, green, blue), standard deviation of a window's mean and of the values inside a
# window, in levels, and the slope of the power spectrum over frequency, both logarithmic.
FROSTS = (
    ((78, 149, 165), 10.7, 14.3, -1.8),
    ((198, 202, 212), 8.8, 18.3, -1.4),
    ((198, 202, 212), 8.8, 18.3, -1.4),  # two of the pictures are all but the same
    ((142, 157, 170), 10.6, 26.1, -1.0),
    ((104, 115, 127), 16.8, 33.8, -1.4),
)


def snow(images: np.ndarray, weather: tuple[float, ...], lots: Lots) -> np.ndarray:
    """Whiten the image, and let flakes fall over it.

    Weather: mean and standard deviation of the flakes' brightness, their size, the brightness
    below which there is no flake, radius and sigma of their motion in pixels, and the share of the
    image that is not whitened.
    """
    mean, std, size, least, radius, sigma, share = weather
    flakes = lots(lambda rng, image: rng.normal(mean, std, size=image.shape[1:]))
    flakes = filters.both_ways(flakes, filters.zoom_matrix(images.shape[-1], size))
    flakes = levels(np.where(flakes < least, 0.0, flakes)) / 255
    angles = lots(lambda rng, image: rng.uniform(-135, -45))
    flakes = filters.motion_blur(flakes, radius=int(radius), sigma=sigma, angles=angles)
    flakes = levels(flakes)[:, None] / 255
    bright = 1.5 * (GREY * images).sum(axis=1, keepdims=True) + 0.5
    whitened = share * images + (1 - share) * np.maximum(images, bright)
    return whitened + flakes + np.rot90(flakes, k=2, axes=(2, 3))


def frost(images: np.ndarray, weights: tuple[float, float], lots: Lots) -> np.ndarray:
    """Lay frost over the image: weights of the image and of the frost.

    A substitute: the published images have windows of five photographs of frost, which do not come
    with this package. Here frost is a random texture with the mean colour, the spread and the power
    spectrum of one of these five, drawn by lot; it has no crystals.
    """
    textures = lots(lambda rng, image: _frost(rng, image.shape[-1]))
    return weights[0] * images + weights[1] * textures


def _frost(rng: np.random.Generator, side: int) -> np.ndarray:
    """A window of frost, (3, side, side) in [0, 1]."""
    colour, between, inside, slope = FROSTS[rng.integers(len(FROSTS))]
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side
    frequencies[0, 0] = 1
    amplitudes = frequencies ** (slope / 2)
    amplitudes[0, 0] = 0  # the window's mean is drawn by itself
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * amplitudes
    texture = np.fft.irfft2(spectrum, s=(side, side))
    texture *= inside / texture.std()
    level = between * rng.standard_normal() + texture
    return np.clip(np.array(colour).reshape(3, 1, 1) + level, 0, 255) / 255


def fog(images: np.ndarray, air: tuple[float, float], lots: Lots) -> np.ndarray:
    """Lay fog over the image: its thickness, and how fast its structure fades with its size."""
    thickness, decay = air
    side = images.shape[-1]
    draws = lots(lambda rng, image: rng.uniform(-1, 1, size=side * side - 1))
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    mist = thickness * plasma(draws, decay=decay)[:, None]
    return (images + mist) * brightest / (brightest + thickness)


def plasma(draws: np.ndarray, *, decay: float) -> np.ndarray:
    """Make height maps by the diamond-square algorithm, on a torus.

    Args:
        draws: (N, side * side - 1) in [-1, 1], how far each point lies from its neighbours' mean;
            side is a power of 2.
        decay: Factor by which the roughness falls when the grid gets twice as fine. (It counts
            squared, as in the published code, which scales a range that is scaled already.)

    Returns:
        (N, side, side), each from 0 to 1.
    """
    count, total = draws.shape
    side = round((total + 1) ** 0.5)
    heights = np.zeros((count, side, side))
    step, wibble, used = side, 100.0, 0

    def settle(rows: slice, columns: slice, around: np.ndarray) -> None:
        nonlocal used
        grid = (side // step) ** 2
        lot = draws[:, used : used + grid].reshape(around.shape)
        heights[:, rows, columns] = around / 4 + wibble * wibble * lot
        used += grid

    while step >= 2:
        corners, middles = slice(0, side, step), slice(step // 2, side, step)
        grid = heights[:, corners, corners]
        pairs = grid + np.roll(grid, -1, axis=1)
        settle(middles, middles, pairs + np.roll(pairs, -1, axis=2))
        centres = heights[:, middles, middles]
        upright = centres + np.roll(centres, 1, axis=1) + grid + np.roll(grid, -1, axis=2)
        settle(corners, middles, upright)
        level = centres + np.roll(centres, 1, axis=2) + grid + np.roll(grid, -1, axis=1)
        settle(middles, corners, level)
        step //= 2
        wibble /= decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)
