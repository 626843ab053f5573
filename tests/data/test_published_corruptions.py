"""The published files of CIFAR-10-C: read as they are, refused when they are not whole."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.lib import format as npy

from ftwt.data.corruptions import SEVERITIES, Published

COUNT = 6
LABELS = np.arange(COUNT) % 3


@pytest.fixture
def folder(tmp_path):
    """A folder like CIFAR-10-C's, of 6 images and two corruptions."""
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    rng = np.random.default_rng(0)
    for name in ("fog", "snow"):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (5 * COUNT, 32, 32, 3), np.uint8))
    return tmp_path


def test_published_files_are_read_by_severity_and_place(folder) -> None:
    files = Published(folder, labels=LABELS, corruptions=["fog", "snow"])
    places = np.array([4, 1])
    for name in ("fog", "snow"):
        raw = np.load(folder / f"{name}.npy")
        for severity in SEVERITIES:
            made = files.read(name, severity=severity, places=places)
            assert made.shape == (2, 3, 32, 32) and made.dtype == np.uint8
            whole = raw[(severity - 1) * COUNT : severity * COUNT]
            assert (made == whole[places].transpose(0, 3, 1, 2)).all()
    with pytest.raises(ValueError, match="severity=6"):
        files.read("fog", severity=6, places=places)


def _truncate(folder):
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-100])


def _pickle(folder):
    with open(folder / "fog.npy", "wb") as file:
        npy.write_array(file, np.array([{}], dtype=object), allow_pickle=True)


BREAKS: dict[str, tuple[Callable, type[Exception], str]] = {
    "gone": (lambda f: (f / "fog.npy").unlink(), FileNotFoundError, "no fog.npy in"),
    "no labels": (lambda f: (f / "labels.npy").unlink(), FileNotFoundError, "no labels.npy in"),
    "truncated": (_truncate, ValueError, "not a whole .npy file"),
    "empty": (lambda f: (f / "fog.npy").write_bytes(b""), ValueError, "not a whole .npy file"),
    "pickled": (_pickle, ValueError, "not a whole .npy file"),
    "text": (lambda f: (f / "fog.npy").write_text("fog"), ValueError, "not a whole .npy file"),
    "other shape": (
        lambda f: np.save(f / "fog.npy", np.zeros((COUNT, 32, 32, 3), np.uint8)),
        ValueError,
        r"expected uint8 of shape \(30, 32, 32, 3\), found uint8 of shape \(6,",
    ),
    "other type": (
        lambda f: np.save(f / "fog.npy", np.zeros((5 * COUNT, 32, 32, 3), np.float32)),
        ValueError,
        "found float32",
    ),
    "other images": (
        lambda f: np.save(f / "labels.npy", np.zeros(5 * COUNT, np.uint8)),
        ValueError,
        "not the labels of these 6 test images",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_what_is_no_published_file_is_refused_before_anything_is_read(kind: str, folder) -> None:
    break_, error, told = BREAKS[kind]
    break_(folder)
    with pytest.raises(error, match=told):
        Published(folder, labels=LABELS, corruptions=["snow", "fog"])
    if "label" not in kind and kind != "other images":
        Published(folder, labels=LABELS, corruptions=["snow"])


def test_a_folder_that_is_not_there_is_told(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="CIFAR-10-C.tar was unpacked to"):
        Published(tmp_path / "none", labels=LABELS, corruptions=["fog"])
