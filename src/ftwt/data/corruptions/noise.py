"""Corruptions by noise; see `apply.py` for what the arguments are."""

import numpy as np

from .lots import Lots


def gaussian_noise(images: np.ndarray, scale: float, lots: Lots) -> np.ndarray:
    """Add Gaussian noise of standard deviation `scale` to each value."""
    return images + scale * lots(lambda rng, image: rng.standard_normal(image.shape))


def shot_noise(images: np.ndarray, photons: float, lots: Lots) -> np.ndarray:
    """Count photons, of which a white pixel sends `photons` on average."""
    return lots(lambda rng, image: rng.poisson(image * photons)) / photons


def impulse_noise(images: np.ndarray, share: float, lots: Lots) -> np.ndarray:
    """Set a share of all values to 0 or to 1, as many of one as of the other."""
    lot = lots(lambda rng, image: rng.random(image.shape))
    return np.where(lot < share / 2, 0.0, np.where(lot < share, 1.0, images))
