"""Image files in folders by class, and batches of them."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ftwt.data import FileBatches, ImageFiles, decoding, hold_out, image_folders
from ftwt.files.pictures import Preprocessing, read_picture

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from make_image_folder import class_names, make_image_folder  # noqa: E402

sys.path.remove(str(ROOT / "tools"))

pytestmark = [
    # What newer Pythons say of every process that is forked from one with threads, as torch does.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker"),  # where one core is
]
HOW = Preprocessing(resize=40, crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CLASSES = ("blue-checks", "green-rings", "red-stripes")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8 training and 5 test images of different sizes."""
    root = tmp_path_factory.mktemp("images") / "shapes"
    return make_image_folder(root, classes=3, train=8, val=5, side=48)


@pytest.fixture(scope="module")
def files(shapes: Path) -> ImageFiles:
    """The training images."""
    return image_folders(shapes, HOW)[0]


@pytest.fixture
def copied(shapes: Path, tmp_path: Path) -> Path:
    """A folder to be broken."""
    return shutil.copytree(shapes, tmp_path / "copied")


def joined(batches: Iterator[Any] | list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def equal(some: list[Any], others: list[Any]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


# --- What is listed -----------------------------------------------------------------------------


def test_folders_are_classes_by_name_and_files_images(shapes: Path) -> None:
    train, test = image_folders(shapes, HOW)
    assert train.classes == test.classes == CLASSES
    assert train.labels.bincount().tolist() == [8, 8, 8]
    assert train.labels[:8].unique().tolist() == [0, 1, 2]  # the first ones are of all classes
    assert image_folders(shapes, HOW)[0].paths == train.paths
    assert test.labels.bincount().tolist() == [5, 5, 5]
    for path, label in zip(train.paths, train.labels.tolist(), strict=True):
        assert Path(path).parent == shapes / "train" / CLASSES[label]
    assert repr(test) == "ImageFiles(val: 15 files, 3 classes, 32x32)"
    assert (train.mean, train.std) == (HOW.mean, HOW.std)


def test_imagenets_numbers_get_their_names(copied: Path) -> None:
    for part in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (copied / part / name).rename(copied / part / f"n0144076{number}")
    for names, expected in (
        (("tench", "goldfish", "shark"), ("tench", "goldfish", "shark")),
        (("cat", "dog"), ("n01440760", "n01440761", "n01440762")),  # not these classes
    ):
        assert image_folders(copied, HOW, names=names)[0].classes == expected
    assert image_folders(copied, HOW)[1].classes[0] == "n01440760"


def test_the_folder_can_come_from_the_environment(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTWT_DATA_ROOT", str(shapes))
    assert len(image_folders(None, HOW)[0]) == 24


def test_held_out_images_are_of_all_classes(files: ImageFiles) -> None:
    fit, held = hold_out(files, count=6, seed=1)
    assert held.labels.bincount().tolist() == [2, 2, 2] and len(fit) == 18
    assert sorted(fit.paths + held.paths) == sorted(files.paths)
    assert hold_out(files, count=6, seed=1)[1].paths == held.paths
    with pytest.raises(ValueError, match="which has 8, and one of each must remain.*--validation"):
        hold_out(files, count=24, seed=0)


def test_training_images_may_lie_together_without_labels(copied: Path) -> None:
    mix(copied / "train")
    (copied / "train" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"no pictures are left out: \.txt \(1\)$"):
        train, test = image_folders(copied, HOW)
    assert len(train) == 24 and set(train.labels.tolist()) == {-1}
    assert train.classes == test.classes == CLASSES and test.labels.min() == 0
    fit, held = hold_out(train, seed=0)
    assert (len(fit), len(held)) == (22, 2)
    assert sorted(fit.paths + held.paths) == sorted(train.paths)
    with pytest.raises(ValueError, match="takes 24 of all 24, and .*; take at most 23"):
        hold_out(train, count=24, seed=0)


def test_labels_are_those_of_the_network_where_it_has_the_names(copied: Path) -> None:
    names = ("red-stripes", "blue-checks", "green-rings")
    for files in image_folders(copied, HOW, names=names):
        assert files.classes == names
        folders = [Path(path).parent.name for path in files.paths]
        assert [names[label] for label in files.labels.tolist()] == folders
    assert image_folders(copied, HOW, names=("a", "b", "c"))[0].classes == CLASSES
    mix(copied / "train")
    assert image_folders(copied, HOW, names=names)[1].classes == names


def test_what_is_hidden_is_no_image(copied: Path) -> None:
    for place in (copied / "train", copied / "train" / CLASSES[0], copied / "val" / ".thumbs"):
        place.mkdir(exist_ok=True)
        (place / "._a.jpg").write_bytes(b"no picture")
        (place / ".DS_Store").touch()
    assert [len(files) for files in image_folders(copied, HOW)] == [24, 15]
    (copied / "train" / ".cache").mkdir()
    assert [len(files) for files in image_folders(copied, HOW)] == [24, 15]


def test_pictures_beside_the_classes_are_named(copied: Path) -> None:
    (first, *_) = (copied / "train" / CLASSES[0]).iterdir()
    first.rename(copied / "train" / first.name)
    with pytest.warns(UserWarning, match=r"train: pictures in no class's folder .* out: 1$"):
        assert len(image_folders(copied, HOW)[0]) == 23


def empty(root: Path) -> None:
    for path in (root / "train" / CLASSES[1]).iterdir():
        path.rename(path.with_suffix(".txt"))


def mix(part: Path) -> None:
    for folder in list(part.iterdir()):
        for path in folder.iterdir():
            path.rename(part / f"{folder.name}-{path.name}")
        folder.rmdir()


def flat(root: Path) -> None:
    mix(root / "val")


def nothing(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    (root / "train" / "a.heic").touch()


def beside(root: Path) -> None:
    mix(root / "train")
    (root / "train" / "album").mkdir()


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "no folder .*train; images lie in ROOT.*--data-root"),
        (lambda root: shutil.rmtree(root / "val"), FileNotFoundError, "there is no folder .*val;"),
        (
            nothing,
            ValueError,
            r"train has neither folders.*\.jpg.*; it has \.heic \(1\); images lie in",
        ),
        (
            beside,
            ValueError,
            r"only train has album; .*; or are the 24 pictures in .*train without",
        ),
        (flat, ValueError, "val has no folders, one for each class; images lie in"),
        (empty, ValueError, "no images in .*green-rings .*jpg.*put some there"),
        (
            lambda root: (root / "val" / "dogs").mkdir(),
            ValueError,
            "train has 3 classes, val 4, and they must be the same: only val has dogs",
        ),
        (
            lambda root: (root / "val" / CLASSES[0]).rename(root / "val" / "Blue-checks"),
            ValueError,
            "only train has blue-checks; only val has Blue-checks",
        ),
    ],
)
def test_a_folder_that_cannot_be_right_is_refused(
    harm: Any, kind: type[Exception], message: str, copied: Path
) -> None:
    harm(copied)
    with pytest.raises(kind, match=message):
        image_folders(copied, HOW)


# --- Batches ------------------------------------------------------------------------------------


def test_images_are_evaluated_as_they_are_run(shapes: Path) -> None:
    _, test = image_folders(shapes, HOW)
    batches = FileBatches(test, batch_size=4)
    assert len(batches) == len(list(batches)) == 4
    pixels, labels = joined(list(batches))
    assert pixels.dtype == torch.float32 and torch.equal(labels, test.labels)
    expected = np.stack([read_picture(path, HOW) for path in test.paths])
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_who_decodes_changes_nothing(train: bool, files: ImageFiles) -> None:
    here, there = (
        FileBatches(files, batch_size=8, train=train, seed=3, workers=workers) for workers in (0, 2)
    )
    for epoch in (0, 1):
        here.set_epoch(epoch)
        there.set_epoch(epoch)
        assert equal(list(here), list(there))


def test_training_images_are_cut_anew_in_every_epoch(files: ImageFiles) -> None:
    batches = FileBatches(files, batch_size=8, train=True, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append(joined(list(batches)))
    order = epochs[0][1].tolist()
    assert sorted(order) == sorted(files.labels.tolist()) and order != files.labels.tolist()
    assert torch.equal(epochs[0][0], epochs[2][0])
    assert not torch.equal(epochs[0][0], epochs[1][0])

    def images_of(batch_size: int, seed: int = 3) -> set[bytes]:
        made = FileBatches(files, batch_size=batch_size, train=True, seed=seed)
        return {image.numpy().tobytes() for image in joined(list(made))[0]}

    assert images_of(8) == images_of(6)  # an image's cut does not depend on its neighbours
    assert not images_of(8) & images_of(8, seed=4)


def test_a_run_that_resumes_decodes_only_what_is_left(
    files: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = FileBatches(files, batch_size=8, train=True)
    whole, opened = list(batches), []
    read = decoding.open_picture
    monkeypatch.setattr(decoding, "open_picture", lambda path: [opened.append(path), read(path)][1])
    assert equal(list(batches.iterate(2)), whole[2:])
    assert len(opened) == 8
    assert list(batches.iterate(3)) == []


def test_ranks_together_see_what_one_sees(files: ImageFiles) -> None:
    one = FileBatches(files, batch_size=8, train=True)
    two = [FileBatches(files, batch_size=8, train=True, shard=(rank, 2)) for rank in (0, 1)]
    for whole, *parts in zip(one, *two, strict=True):
        assert all(torch.equal(part, all_) for part, all_ in zip(joined(parts), whole, strict=True))
    three = [FileBatches(files, batch_size=9, shard=(rank, 3)) for rank in range(3)]
    sizes = [sum(len(labels) for _, labels in batches) for batches in three]
    assert sizes == [8, 8, 8]
    expected = joined(list(FileBatches(files, batch_size=24)))[0].sum((1, 2, 3))
    seen = torch.cat([joined(list(batches))[0] for batches in three]).sum((1, 2, 3))
    assert torch.equal(seen.sort().values, expected.sort().values)


def test_decoding_draws_nothing_from_the_callers_generator(files: ImageFiles) -> None:
    state = torch.get_rng_state()
    for workers in (0, 1):
        next(iter(FileBatches(files, batch_size=8, train=True, workers=workers)))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_can_be_laid_out_for_the_gpu(files: ImageFiles) -> None:
    (plain, _), (nhwc, _) = (
        next(iter(FileBatches(files, batch_size=8, channels_last=flag))) for flag in (False, True)
    )
    assert plain.is_contiguous() and nhwc.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, nhwc)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_left_to_the_main_process(number: int, files: ImageFiles) -> None:
    whole = list(FileBatches(files, batch_size=2, train=True))
    seen = []
    for batch in FileBatches(files, batch_size=2, train=True, workers=2):
        if len(seen) == 1:  # the second process has sent a batch, too: both are at work
            children = multiprocessing.active_children()
            assert len(children) == 2
            for child in children:
                assert child.pid is not None
                os.kill(child.pid, number)
        seen.append(batch)
    assert equal(seen, whole)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(workers: int, copied: Path) -> None:
    _, test = image_folders(copied, HOW)
    broken = Path(test.paths[7])
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"^.*{broken.name} is not an image that can be read .*$"):
        list(FileBatches(test, batch_size=4, workers=workers))
    broken.unlink()
    with pytest.raises(FileNotFoundError, match=f"^there is no image .*{broken.name}$"):
        list(FileBatches(test, batch_size=4, workers=workers))


def test_options_out_of_range_are_refused(files: ImageFiles) -> None:
    with pytest.raises(ValueError, match="workers=-1: give 0"):
        FileBatches(files, batch_size=8, workers=-1)
    with pytest.raises(ValueError, match="empty loader: 24 images make no batch of 25"):
        FileBatches(files, batch_size=25, train=True)


# --- The images that tests and trials use --------------------------------------------------------


def test_generated_images_are_the_same_again_and_of_different_sizes(
    shapes: Path, tmp_path: Path
) -> None:
    again = make_image_folder(tmp_path, classes=3, train=2, val=1, side=48)
    for path in again.rglob("*.JPEG"):
        assert path.read_bytes() == (shapes / path.relative_to(again)).read_bytes()
    sizes = {decoding.open_picture(path).size for path in shapes.rglob("*.JPEG")}
    assert len(sizes) > 10 and {min(size) for size in sizes} == {48}
    assert len(set(class_names(24))) == 24
    with pytest.raises(ValueError, match="classes=25: give 1 to 24"):
        class_names(25)


def test_pictures_of_all_suffixes_are_listed_and_other_files_named(tmp_path):
    for part in ("train", "val"):
        for suffix in ("jfif", "gif", "png", "JPG"):
            folder = tmp_path / part / "one"
            folder.mkdir(parents=True, exist_ok=True)
            kind = {"jfif": "JPEG", "JPG": "JPEG"}.get(suffix, suffix.upper())
            Image.new("RGB", (40, 40)).save(folder / f"a.{suffix}", format=kind)
    train, _ = image_folders(tmp_path, HOW)
    assert len(train) == 4
    (tmp_path / "train" / "one" / "b.heic").touch()
    with pytest.warns(UserWarning, match=r"train: files that are no pictures .* \.heic \(1\)"):
        assert len(image_folders(tmp_path, HOW)[0]) == 4
