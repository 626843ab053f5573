"""Corruptions by processing; see `apply.py` for what the arguments are."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from . import filters
from .levels import levels
from .lots import Lots


def brightness(images: np.ndarray, more: float, lots: Lots) -> np.ndarray:
    """Add to the value of hue, saturation and value.

    At the same hue and saturation, red, green and blue grow in proportion to the value; black
    becomes grey.
    """
    value = images.max(axis=1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    black = value == 0
    return np.where(black, brighter, images * (brighter / np.where(black, 1, value)))


def contrast(images: np.ndarray, share: float, lots: Lots) -> np.ndarray:
    """Bring each value closer to its channel's mean over the image: to this share of the way."""
    mean = images.mean(axis=(2, 3), keepdims=True)
    return (images - mean) * share + mean


def elastic_transform(
    images: np.ndarray, stretch: tuple[float, float, float], lots: Lots
) -> np.ndarray:
    """Shear the image at random, then push its parts about.

    Stretch, as shares of the image's side: how far parts are pushed before smoothing, sigma of
    that smoothing, and how far the corners of the shear may lie from where they were.
    """
    side = images.shape[-1]
    push, sigma, shear = (side * share for share in stretch)
    moved = lots(lambda rng, image: rng.uniform(-shear, shear, size=(3, 2)))
    rows, columns = np.indices((side, side), dtype=float)
    middle, reach = side // 2, side // 3
    corners = middle + reach * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    # An affine map is that of three points: x' = affine @ (x, 1). Its inverse looks pixels up.
    known = np.column_stack([corners, np.ones(3)])
    back = np.stack(
        [np.linalg.solve(np.column_stack([to, np.ones(3)]), known) for to in corners + moved]
    )
    places = np.stack([columns.ravel(), rows.ravel(), np.ones(side * side)], axis=1) @ back
    where = places.reshape(-1, side, side, 3)
    sheared = filters.sample(images, where[..., 1], where[..., 0], border="reflect")
    shift = lots(lambda rng, image: rng.uniform(-1, 1, size=(2, side, side)))
    smooth = filters.gaussian_matrix(side, sigma, truncate=3.0, border="symmetric")
    shift = push * filters.both_ways(shift, smooth)
    return filters.sample(sheared, rows + shift[:, 1], columns + shift[:, 0], border="symmetric")


def pixelate(images: np.ndarray, share: float, lots: Lots) -> np.ndarray:
    """Make the image smaller, to this share of its side, and as large as it was, by boxes."""
    side = images.shape[-1]
    small = (int(side * share),) * 2

    def process(picture: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return picture.resize(small, box).resize((side, side), box)

    return _each(images, process)


def jpeg_compression(images: np.ndarray, quality: int, lots: Lots) -> np.ndarray:
    """Store the image as a JPEG file of this quality in [1, 100]."""

    def process(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, process)


def _each(images: np.ndarray, process: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply what Pillow does to each image."""
    pictures = levels(images).transpose(0, 2, 3, 1)
    made = [np.asarray(process(Image.fromarray(picture))) for picture in pictures]
    return np.stack(made).transpose(0, 3, 1, 2) / 255
