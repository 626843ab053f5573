"""Image files as a network's input. Needs numpy and Pillow alone."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SUFFIX = ".ftwt"
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LARGEST = 1024  # pixels, of a side
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
"""What a picture may be, whatever its name: no format whose reader starts another program."""
SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"
)  # fmt: skip
LONGEST = 64  # shorter sides: of a longer picture only the middle is resized


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    Args:
        resize: Length of the shorter side before the crop, in pixels.
        crop: Side of the square that is cut out of the middle.
        mean: Of red, green and blue, of pixel values in [0, 1].
        std: The same.
        interpolation: `bilinear`, `bicubic` or `lanczos`.

    Raises:
        ValueError: If a value makes no sense.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sizes = (self.crop, self.resize)
        if not all(type(n) is int and 1 <= n <= LARGEST for n in sizes) or self.crop > self.resize:
            raise ValueError(
                f"crop={self.crop!r} of resize={self.resize!r}: give pixels, 1 <= crop <= resize "
                f"<= {LARGEST}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(
                isinstance(v, int | float) and np.isfinite(v) for v in values
            ):
                raise ValueError(f"{name}={values!r}: give a number for red, green and blue")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std!r}: must be positive")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"interpolation={self.interpolation!r}: use one of {known}")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Preprocessing:
        """Make it of what `to_json` returned, or a stranger wrote.

        Raises:
            ValueError: If the values are no preprocessing.
        """
        try:
            plain: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
            return cls(**plain)
        except (AttributeError, TypeError) as error:
            shown = json.dumps(values)[:100]
            raise ValueError(f"{shown} does not say how images are prepared ({error})") from error


def read_picture(path: str | os.PathLike[str], how: Preprocessing) -> np.ndarray:
    """Read an image file as a network's input.

    Args:
        path: The file, of one of `FORMATS`.
        how: Resized so, cropped in the middle, normalised.

    Returns:
        (3, crop, crop) float32.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or not a whole one.
    """
    pixels = cut_middle(open_picture(path), how).astype(np.float32) / 255
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file, turned as its camera says, in red, green and blue.

    Values of 16 bits, and floats from 0 to 1, are brought to 8 bits.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, not a whole one, of a format that is not read (`FORMATS`), or
            its values have no known range.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would make us wait
            raise ValueError("it is not a regular file")
        Image.init()  # registers what is in the list
        with Image.open(path, formats=FORMATS) as opened:
            return _eight_bits(ImageOps.exif_transpose(opened)).convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image {path}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = f"{error}; these are: {', '.join(FORMATS)}"
        raise ValueError(f"{path} is not an image that can be read ({why})") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Bring deeper values to 0 to 255; Pillow would cut them off there."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.mode not in ("I", "F"):
        return picture
    values = np.asarray(picture)
    if picture.mode == "I" and 0 <= values.min() and 255 < values.max() <= 65535:
        return Image.fromarray((values / 257).round().astype(np.uint8))
    if picture.mode == "F" and 0 <= values.min() and values.max() <= 1:
        return Image.fromarray((values * 255).round().astype(np.uint8))
    raise ValueError(
        f"its values go from {values.min():g} to {values.max():g}; save it with 8 or 16 bits, or "
        "as floats from 0 to 1"
    )


def cut_middle(picture: Image.Image, how: Preprocessing) -> np.ndarray:
    """Resize a picture and cut its middle out: (crop, crop, 3) uint8."""
    short = min(picture.size)
    if max(picture.size) > LONGEST * short:  # all of it, resized, might not fit into memory
        spare = [max(0, side - LONGEST * short) // 2 for side in picture.size]
        picture = picture.crop(
            (spare[0], spare[1], picture.width - spare[0], picture.height - spare[1])
        )
    width, height = (how.resize * side // short for side in picture.size)
    picture = picture.resize((width, height), INTERPOLATIONS[how.interpolation])
    left, top = (round((side - how.crop) / 2) for side in (width, height))
    return np.asarray(picture.crop((left, top, left + how.crop, top + how.crop)))
