"""The table of corruptions, with the settings of CIFAR-10-C, and the one way to apply them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from ...names import nearest
from ..images import Images
from . import blur, digital, noise, weather
from .levels import levels
from .lots import Lots

SIDE = 32
SEVERITIES = (1, 2, 3, 4, 5)
CHUNK = 256  # images at a time: float64 takes eight times their memory

Pixels = TypeVar("Pixels", Images, np.ndarray)


@dataclass(frozen=True)
class _Corruption:
    """What is done to images (N, 3, H, W) in [0, 1], and its setting at severities 1 to 5."""

    apply: Callable[[np.ndarray, Any, Lots], np.ndarray]
    settings: tuple[Any, Any, Any, Any, Any]


# In the order of CIFAR-10-C, under the names of its files.
CORRUPTIONS = {
    "gaussian_noise": _Corruption(noise.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": _Corruption(noise.shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": _Corruption(noise.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": _Corruption(
        blur.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "glass_blur": _Corruption(
        blur.glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
    ),
    "motion_blur": _Corruption(
        blur.motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
    ),
    "zoom_blur": _Corruption(blur.zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": _Corruption(
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": _Corruption(
        weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    ),
    "fog": _Corruption(weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": _Corruption(digital.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": _Corruption(digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": _Corruption(
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": _Corruption(digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": _Corruption(digital.jpeg_compression, (80, 65, 58, 50, 40)),
}


def corrupt(images: Pixels, corruption: str, *, severity: int, seed: int = 0) -> Pixels:
    """Corrupt CIFAR images as those of CIFAR-10-C were.

    What is random depends on the seed, the corruption, the severity and the image's own pixels:
    an image comes out the same whatever is corrupted with it. The definitions and settings are the
    published ones; `frost` alone is a substitute, as its photographs do not come with this package.

    Args:
        images: `Images` of 32x32 pixels and 3 channels, or uint8 (N, 32, 32, 3).
        corruption: One of `CORRUPTIONS`, such as `fog`.
        severity: 1 to 5.
        seed: Of everything random, >= 0.

    Returns:
        What was given, corrupted: other pixels, the same labels.

    Raises:
        ValueError: An unknown corruption, another severity, or images of another size or type.

    Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions
    and Perturbations", ICLR 2019; settings for CIFAR of github.com/hendrycks/robustness
    (ImageNet-C/create_c/make_cifar_c.py).
    """
    check_corruption(corruption, severity)
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if isinstance(images, Images):
        planes = images.images.cpu().numpy()
        made = torch.from_numpy(_corrupt(planes, corruption, severity=severity, seed=seed))
        return replace(images, images=made.to(images.images.device))
    planes = np.moveaxis(np.asarray(images), -1, 1) if np.ndim(images) == 4 else np.asarray(images)
    made_planes = _corrupt(planes, corruption, severity=severity, seed=seed)
    return np.ascontiguousarray(np.moveaxis(made_planes, 1, -1))


def check_corruption(corruption: str, severity: int = 1) -> None:
    """Refuse what is no corruption, or no severity.

    Raises:
        ValueError: The message suggests the nearest name, or tells the range.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {corruption!r}; {nearest(corruption, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r} is outside 1..5; 1 is the mildest")


def _corrupt(planes: np.ndarray, corruption: str, *, severity: int, seed: int) -> np.ndarray:
    """Corrupt uint8 (N, 3, 32, 32)."""
    if planes.dtype != np.uint8 or planes.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(
            f"images of {planes.dtype}, shape {planes.shape} as (N, C, H, W): the corruptions of "
            f"CIFAR-10-C are defined for uint8 images of {SIDE}x{SIDE} pixels and 3 channels; "
            f"resize them"
        )
    chosen = CORRUPTIONS[corruption]
    salt = f"{seed} {corruption} {severity}"
    made = np.empty_like(planes)
    for first in range(0, len(planes), CHUNK):
        pixels = np.ascontiguousarray(planes[first : first + CHUNK])
        shares = pixels / 255
        lots = Lots(pixels, shares, salt=salt)
        made[first : first + CHUNK] = levels(
            chosen.apply(shares, chosen.settings[severity - 1], lots)
        )
    return made
