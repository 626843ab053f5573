"""The published files of CIFAR-10-C: plain arrays, nothing unpickled."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .apply import SEVERITIES, SIDE, check_corruption

LABELS = "labels.npy"


class Published:
    """A folder with the files of CIFAR-10-C (or CIFAR-100-C).

    It holds `labels.npy` and, for each corruption, `NAME.npy`: uint8 (5 * N, 32, 32, 3), the N test
    images in their order, once for each severity. Files are read where they are needed.

    Args:
        root: The folder.
        labels: (N,), of the test images that the files must go with.
        corruptions: Which files will be read; they are looked at at once.

    Raises:
        FileNotFoundError: The folder or a file is not there.
        ValueError: A file is no such array, is truncated, or goes with other images.

    Source: https://zenodo.org/records/2535967
    """

    def __init__(
        self, root: str | os.PathLike[str], *, labels: np.ndarray, corruptions: Iterable[str]
    ) -> None:
        self.root = Path(root)
        self.count = len(labels)
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"no folder {self.root}; name the one that CIFAR-10-C.tar was unpacked to "
                f"(https://zenodo.org/records/2535967), or name none to make the images here"
            )
        told = self._load(LABELS, shape=(len(SEVERITIES) * self.count,))
        if not (told.reshape(len(SEVERITIES), -1) == labels).all():
            raise ValueError(
                f"{self.root / LABELS}: not the labels of these {self.count:,} test images; give "
                f"the files that belong to the dataset (CIFAR-10-C to cifar10)"
            )
        for corruption in corruptions:
            self._open(corruption)

    def read(self, corruption: str, *, severity: int, places: np.ndarray) -> np.ndarray:
        """Read corrupted images.

        Args:
            corruption: Such as `fog`.
            severity: 1 to 5.
            places: (M,) indices of test images, in [0, N).

        Returns:
            uint8 (M, 3, 32, 32).
        """
        check_corruption(corruption, severity)
        found = self._open(corruption)[(severity - 1) * self.count + places]
        return np.ascontiguousarray(np.moveaxis(found, -1, 1))

    def _open(self, corruption: str) -> np.ndarray:
        check_corruption(corruption)
        return self._load(f"{corruption}.npy", shape=(5 * self.count, SIDE, SIDE, 3))

    def _load(self, name: str, *, shape: tuple[int, ...]) -> np.ndarray:
        path = self.root / name
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no {name} in {self.root}; unpack CIFAR-10-C.tar there again, or leave the "
                f"corruption out (--corruptions)"
            ) from error
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path}: not a whole .npy file of numbers ({error}); unpack it again"
            ) from error
        if found.dtype != np.uint8 or found.shape != shape:
            raise ValueError(
                f"{path}: expected uint8 of shape {shape}, found {found.dtype} of shape "
                f"{found.shape}; the files go with all {self.count:,} test images of one dataset"
            )
        return found
