"""Linear filters of square images, as matrices, and sampling between pixels.

Planes are (..., H, W) float64. Each image is filtered by itself, by the same operations whatever
stands beside it in memory.
"""

import math
from functools import cache
from typing import Literal

import numpy as np

Border = Literal["edge", "symmetric", "reflect"]  # as `numpy.pad` calls them


@cache
def gaussian_matrix(side: int, sigma: float, *, truncate: float, border: Border) -> np.ndarray:
    """Return the matrix (side, side) that blurs the columns it is multiplied to.

    Args:
        side: Length of a column, in pixels.
        sigma: Standard deviation of the Gaussian, in pixels; 0 blurs nothing.
        truncate: The Gaussian ends at this many standard deviations.
        border: What lies outside of the image.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return np.eye(side)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(np.eye(side), ((radius, radius), (0, 0)), mode=border)
    return sum(weight * padded[i : i + side] for i, weight in enumerate(weights))


@cache
def zoom_matrix(side: int, factor: float) -> np.ndarray:
    """Return the matrix (side, side) that enlarges the middle of a column, linearly.

    The middle ceil(side / factor) pixels become round(their number * factor), of which the first
    and last surplus ones are cut off; the outermost pixels stay where they are.

    Args:
        side: Length of a column, in pixels.
        factor: At least 1.
    """
    part = math.ceil(side / factor)
    first = (side - part) // 2
    enlarged = round(part * factor)
    places = np.arange(enlarged) * ((part - 1) / (enlarged - 1))
    low = np.minimum(places.astype(int), part - 2)
    matrix = np.zeros((enlarged, side))
    rows = np.arange(enlarged)
    matrix[rows, first + low] = 1 - (places - low)
    matrix[rows, first + low + 1] = places - low
    trim = (enlarged - side) // 2
    return matrix[trim : trim + side]


def both_ways(planes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a matrix to the columns and to the rows of square planes (..., side, side)."""
    return np.matmul(np.matmul(matrix, planes), matrix.T)


def gaussian_blur(planes: np.ndarray, sigma: float) -> np.ndarray:
    """Blur planes (..., side, side) by a Gaussian of 4 sigma; the border pixel goes on outside."""
    matrix = gaussian_matrix(planes.shape[-1], sigma, truncate=4.0, border="edge")
    return both_ways(planes, matrix)


@cache
def disk(radius: float, smoothing: float) -> np.ndarray:
    """Return the weights of a disk, (5, 5), which sum to 1.

    Args:
        radius: Of the disk, in pixels, below 2.
        smoothing: Standard deviation of the 3x3 Gaussian that softens its rim.
    """
    distance = np.arange(-2, 3) ** 2
    hard = (distance[:, None] + distance <= radius**2).astype(float)
    soft = np.exp(-0.5 * (np.arange(-1, 2) / smoothing) ** 2)
    soft /= soft.sum()
    padded = np.pad(hard / hard.sum(), 1)
    rows = sum(weight * padded[i : i + 5] for i, weight in enumerate(soft))
    return sum(weight * rows[:, i : i + 5] for i, weight in enumerate(soft))


def correlate(planes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlate planes (..., H, W) with odd weights; outside, planes are mirrored at the border.

    Source: what OpenCV does by default (BORDER_REFLECT_101).
    """
    margin = len(weights) // 2
    height, width = planes.shape[-2:]
    around = [(0, 0)] * (planes.ndim - 2) + [(margin, margin)] * 2
    padded = np.pad(planes, around, mode="reflect")
    total = np.zeros_like(planes)
    for (row, column), weight in np.ndenumerate(weights):
        if weight:
            total += weight * padded[..., row : row + height, column : column + width]
    return total


def motion_taps(radius: int, sigma: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (n,) and the places (n, 2), row and column, of a one-sided motion blur.

    Half a Gaussian of 2 * radius + 1 taps, laid along a line and rounded to whole pixels.

    Args:
        radius: In pixels.
        sigma: Standard deviation of the Gaussian, in pixels.
        angle: Of the line, in degrees; 0 looks to the right, 90 down.

    Source: ImageMagick's MotionBlurImage, which CIFAR-10-C was made with.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    line = np.array([math.sin(math.radians(angle)), math.cos(math.radians(angle))])
    places = np.ceil(steps[:, None] * line - 0.5).astype(int)
    felt = weights > 1e-9
    return weights[felt], places[felt]


def motion_blur(planes: np.ndarray, *, radius: int, sigma: float, angles: np.ndarray) -> np.ndarray:
    """Blur images (N, ..., H, W), each along its own angle (N,) in degrees; see `motion_taps`."""
    height, width = planes.shape[-2:]
    margin = 2 * radius
    around = [(0, 0)] * (planes.ndim - 2) + [(margin, margin)] * 2
    padded = np.pad(planes, around, mode="edge")
    total = np.zeros_like(planes)
    for image, sum_, angle in zip(padded, total, angles, strict=True):
        weights, places = motion_taps(radius, sigma, float(angle))
        for weight, (row, column) in zip(weights, places + margin, strict=True):
            sum_ += weight * image[..., row : row + height, column : column + width]
    return total


def sample(
    planes: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, border: Border
) -> np.ndarray:
    """Look images up between their pixels, linearly.

    Args:
        planes: (N, C, H, W).
        rows: (N, H, W), where to look, in pixels.
        columns: (N, H, W), likewise.
        border: What lies outside of the image: `symmetric` or `reflect`.

    Returns:
        (N, C, H, W).
    """
    count, channels, height, width = planes.shape
    flat = planes.reshape(count, channels, -1)
    top, left = np.floor(rows), np.floor(columns)
    down, right = rows - top, columns - left
    total = np.zeros_like(planes)
    for row, down_weight in ((top, 1 - down), (top + 1, down)):
        for column, right_weight in ((left, 1 - right), (left + 1, right)):
            place = _inside(row, height, border) * width + _inside(column, width, border)
            seen = np.take_along_axis(flat, place.reshape(count, 1, -1), axis=2)
            total += (down_weight * right_weight)[:, None] * seen.reshape(planes.shape)
    return total


def _inside(places: np.ndarray, side: int, border: Border) -> np.ndarray:
    """Fold whole places outside of [0, side) back into it."""
    whole = places.astype(int)
    if border == "reflect":
        folded = np.abs(whole) % (2 * side - 2)
        return np.minimum(folded, 2 * side - 2 - folded)
    folded = whole % (2 * side)
    return np.minimum(folded, 2 * side - 1 - folded)
