"""From shares of white to the 256 levels that a file holds."""

import numpy as np

# Far below what can be seen, far above the rounding of float64: so a processor that rounds a sum
# otherwise gives the same level.
SLACK = 1e-6


def levels(images: np.ndarray) -> np.ndarray:
    """Clip values to [0, 1], and cut them down to whole levels in [0, 255], as uint8.

    Cut, not rounded: so the published images were made.
    """
    return (np.clip(images, 0, 1) * 255 + SLACK).astype(np.uint8)
