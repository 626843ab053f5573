import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftwt import data
from ftwt.data import Batches, Images, cifar, hold_out, subset
from ftwt.data.archive import Archive, Member
from ftwt.data.batches import PADDING, crop_and_flip
from ftwt.data.images import balanced


def numbered(count: int, *, size: int = 4) -> Images:
    """Random images, each a class of its own, so that a label says which image it is."""
    pixels = np.random.default_rng(count).integers(256, size=(count, 3, size, size), dtype=np.uint8)
    return Images(
        images=torch.from_numpy(pixels),
        labels=torch.arange(count),
        classes=tuple(map(str, range(count))),
        name="numbered",
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,  # normalised pixels are raw pixels
    )


def joined(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def naive(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y = row + top - PADDING
            x = (width - 1 - column if flip else column) + left - PADDING
            if 0 <= y < height and 0 <= x < width:
                out[:, row, column] = image[:, y, x]
    return out


# --- Images and splits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2])}, r"labels must lie in \[0, 1\].*found 2"),
        ({"labels": torch.tensor([0, -1, 1])}, "found -1"),
        ({"labels": torch.tensor([0, 1])}, r"int64 of shape \(3,\).*shape \(2,\)"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, "labels must be int64.*float32"),
        ({"images": torch.zeros(3, 3, 4, 4)}, "images must be uint8.*float32"),
        ({"images": torch.zeros(3, 4, 4, dtype=torch.uint8)}, "N, C, H, W"),
        ({"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}, "no images"),
        ({"mean": (0.5,)}, "each of 3 channels"),
        ({"std": (0.5, 0.5, 0.0)}, "std be positive"),
    ],
)
def test_images_that_cannot_be_right_are_refused(change: dict, message: str) -> None:
    fields = {
        "images": torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 1]),
        "classes": ("cat", "dog"),
        "name": "toy",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    assert "toy: 3 of 3x4x4, 2 classes" in repr(Images(**fields))
    with pytest.raises(ValueError, match=message):
        Images(**{**fields, **change})


def test_hold_out_is_balanced_disjoint_complete_and_seeded() -> None:
    images = data.embedded(train=True)
    train, val = hold_out(images, count=303, seed=1)
    counts = val.labels.bincount(minlength=10)
    assert len(val) == 303 and counts.min() == 30 and counts.max() == 31

    def keys(split: Images) -> list[bytes]:
        return [image.numpy().tobytes() for image in split.images]

    assert sorted(keys(train) + keys(val)) == sorted(keys(images))
    assert keys(hold_out(images, count=303, seed=1)[1]) == keys(val)
    assert keys(hold_out(images, count=303, seed=2)[1]) != keys(val)


@pytest.mark.parametrize(
    ("of_each", "held"),
    [
        ([5000] * 10, 5000),
        ([500] * 100, 5000),
        ([1281] * 1000, 10_000),
        ([200] * 10, 200),
        ([40] * 5, 20),
        ([3000, 4], 4),  # half of the smallest class, from each
        ([2, 2], 1),
    ],
)
def test_as_many_are_held_out_as_fit(of_each: list[int], held: int) -> None:
    labels = torch.arange(len(of_each)).repeat_interleave(torch.tensor(of_each))
    images = Images(
        images=torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(len(labels), -1, -1, -1),
        labels=labels,
        classes=tuple(map(str, range(len(of_each)))),
        name="zeros",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    fit, validation = hold_out(images, seed=0)
    assert (len(fit), len(validation)) == (len(labels) - held, held)
    assert set(fit.labels.tolist()) == set(range(len(of_each)))


def test_the_split_of_a_seed_never_changes() -> None:
    labels = torch.arange(40) % 4
    images = dataclasses.replace(numbered(40), labels=labels, classes=("a", "b", "c", "d"))
    assert balanced(images, count=8, seed=0).tolist() == [8, 10, 17, 26, 29, 35, 36, 39]


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "count must be at least 1, got 0"),
        (3, "hold out 3 images takes 1 of class '[012]', which has 1, .* must remain; add images"),
    ],
)
def test_hold_out_leaves_something_of_every_class(count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold_out(numbered(3), count=count, seed=0)


# --- Batches


def test_batches_are_normalised_and_keep_their_order_in_evaluation() -> None:
    images = data.embedded(train=False)
    batches = Batches(images, batch_size=300)
    assert len(batches) == len(list(batches)) == 4
    pixels, labels = joined(list(batches))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (images.mean, images.std))
    assert pixels.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.allclose(pixels, (images.images / 255 - mean) / std, atol=1e-5)
    assert torch.equal(labels, images.labels)


def test_training_sees_every_image_once_in_an_order_of_its_epoch() -> None:
    batches = Batches(numbered(50), batch_size=10, train=True, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append(joined(list(batches))[1])
    assert sorted(orders[0].tolist()) == list(range(50)) != orders[0].tolist()
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])
    other = Batches(numbered(50), batch_size=10, train=True, seed=4)
    assert not torch.equal(orders[0], joined(list(other))[1])


def test_drop_last_is_for_training_and_can_be_set() -> None:
    images = numbered(25)
    assert [len(y) for _, y in Batches(images, batch_size=10, train=True)] == [10, 10]
    assert [len(y) for _, y in Batches(images, batch_size=10)] == [10, 10, 5]
    kept = Batches(images, batch_size=10, train=True, drop_last=False)
    assert [len(y) for _, y in kept] == [10, 10, 5] and len(kept) == 3


def test_crops_and_flips_equal_those_cut_one_by_one() -> None:
    images = numbered(2 * 81, size=6).images
    corner = torch.arange(81).repeat(2)
    top, left, flip = corner // 9, corner % 9, torch.arange(162) >= 81
    out = crop_and_flip(images, top=top, left=left, flip=flip)
    assert out.is_contiguous()
    for i, image in enumerate(images):
        assert torch.equal(out[i], naive(image, int(top[i]), int(left[i]), bool(flip[i])))


def test_augmentation_draws_every_window_and_each_side_as_often() -> None:
    image = numbered(1, size=3)
    count = 3000
    images = dataclasses.replace(
        image, images=image.images.expand(count, -1, -1, -1), labels=image.labels.expand(count)
    )
    windows = [
        naive(image.images[0], top, left, flip)
        for flip in (False, True)
        for top in range(9)
        for left in range(9)
    ]
    ((pixels, _),) = Batches(images, batch_size=count, augment=True)
    seen = [window.numpy().tobytes() for window in pixels.round().to(torch.uint8)]
    assert set(seen) == {window.numpy().tobytes() for window in windows}
    # Windows of padding alone look the same flipped; 25 of the 81 hold a pixel each.
    plain = {w.numpy().tobytes() for w in windows[:81] if w.any()}
    mirrored = {w.numpy().tobytes() for w in windows[81:] if w.any()}
    sides = [sum(window in side for window in seen) for side in (plain, mirrored)]
    assert sum(sides) > 800 and abs(sides[0] - sides[1]) < 4 * sum(sides) ** 0.5


def test_training_augments_anew_in_each_epoch_unless_told_not_to() -> None:
    images = numbered(64, size=8)

    def pixels(epoch: int, **options: bool) -> torch.Tensor:
        batches = Batches(images, batch_size=64, train=True, **options)
        batches.set_epoch(epoch)
        ((pixels, labels),) = batches
        return pixels.round().to(torch.uint8)[labels.argsort()]

    assert torch.equal(pixels(0, augment=False), images.images)
    assert not torch.equal(pixels(0), images.images)
    assert not torch.equal(pixels(0), pixels(1))


def test_batches_are_laid_out_as_asked() -> None:
    options = {"batch_size": 8, "train": True}
    images = numbered(8)
    ((plain, _),) = Batches(images, **options)
    ((nhwc, _),) = Batches(images, channels_last=True, **options)
    assert plain.is_contiguous() and nhwc.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, nhwc)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9])
def test_resuming_in_mid_epoch_sees_the_same_batches(start: int) -> None:
    batches = Batches(numbered(50), batch_size=10, train=True)
    batches.set_epoch(7)
    rest, whole = list(batches.iterate(start)), list(batches)[start:]
    assert len(rest) == len(whole) == max(0, 5 - start)
    for (x, y), (x_whole, y_whole) in zip(rest, whole, strict=True):
        assert torch.equal(x, x_whole) and torch.equal(y, y_whole)


def test_two_ranks_together_see_what_one_sees() -> None:
    one = Batches(numbered(50), batch_size=16, train=True, seed=5)
    two = [Batches(numbered(50), batch_size=16, train=True, seed=5, shard=(r, 2)) for r in (0, 1)]
    for whole, *parts in zip(one, *two, strict=True):
        assert [len(y) for _, y in parts] == [8, 8]
        for part, reference in zip(joined(parts), whole, strict=True):
            assert torch.equal(part, reference)


@given(count=st.integers(1, 40), per_rank=st.integers(1, 6), world=st.integers(1, 4))
def test_evaluation_sees_every_image_exactly_once_over_the_ranks(
    count: int, per_rank: int, world: int
) -> None:
    images = numbered(count, size=1)
    seen = []
    for rank in range(min(world, count)):
        batches = Batches(images, batch_size=per_rank * world, shard=(rank, world))
        labels = [y for _, y in batches]
        assert len(labels) == len(batches) and all(len(y) for y in labels)
        seen += torch.cat(labels).tolist()
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "positive multiple of the 1 processes.*got 0"),
        ({"batch_size": -4}, "got -4"),
        ({"batch_size": 9, "shard": (0, 2)}, "multiple of the 2 processes.*got 9"),
        ({"batch_size": 8, "shard": (2, 2)}, r"0 <= rank < world, got \(2, 2\)"),
        ({"batch_size": 11, "train": True}, "empty loader: 10 images make no batch of 11"),
        ({"batch_size": 16, "shard": (12, 16)}, "empty loader.*rank 12 of 16"),
        ({"batch_size": 4, "seed": -1}, "seed must be >= 0, got -1"),
        (
            {"batch_size": 9, "shard": (0, 3), "train": True, "drop_last": False},
            "last batch has 1 images, which 3 processes cannot share",
        ),
    ],
)
def test_batches_that_cannot_be_made_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(numbered(10), **options)


@pytest.mark.gpu
def test_batches_on_the_gpu_are_those_on_the_cpu() -> None:
    options = {"batch_size": 128, "train": True}
    images = data.embedded(train=True)
    here = Batches(images, **options)
    for there in (
        Batches(images.to("cuda"), device="cuda", **options),
        Batches(images, device="cuda", **options),
    ):
        for (x, y), (x_gpu, y_gpu) in zip(here, there, strict=True):
            assert x_gpu.is_cuda and y_gpu.is_cuda
            assert torch.equal(x_gpu.cpu(), x) and torch.equal(y_gpu.cpu(), y)


# --- CIFAR files


class FakeCifar:
    """Small datasets in the official format, as files and as an archive, with their checksums."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
        self.labels = np.array([3, 0, 2, 1])
        self.coarse = np.array([0, 1, 1, 0])
        first, second = (self.records(self.labels, rows) for rows in (slice(0, 2), slice(2, 4)))
        fine = self.records(np.stack([self.coarse, self.labels], 1), slice(0, 4))
        classes = b"ant\nbee\ncat\ndog\n"
        self.files = {
            "cifar10": {
                "data_batch_1.bin": first,
                "data_batch_2.bin": second,
                "test_batch.bin": second,
                "batches.meta.txt": classes + b"\n",
            },
            "cifar100": {"train.bin": fine, "test.bin": fine, "fine_label_names.txt": classes},
        }
        self.source = folder / "far away"
        self.source.mkdir()
        ten = self.files["cifar10"]
        self.patch(
            monkeypatch,
            "cifar10",
            train=[member(ten, "data_batch_1.bin"), member(ten, "data_batch_2.bin")],
            test=[member(ten, "test_batch.bin")],
        )
        whole = Member("train.bin", size=len(fine))
        self.patch(
            monkeypatch,
            "cifar100",
            train=[whole],
            test=[dataclasses.replace(whole, name="test.bin")],
        )

    def records(self, labels: np.ndarray, rows: slice) -> bytes:
        parts = (labels.reshape(4, -1).astype(np.uint8), self.pixels.reshape(4, -1))
        return np.concatenate(parts, axis=1)[rows].tobytes()

    def patch(self, monkeypatch: pytest.MonkeyPatch, name: str, *, train: list, test: list) -> None:
        official = getattr(cifar, name.upper())
        packed = self.source / official.archive.name
        with tarfile.open(packed, "w:gz") as tar:
            for file, content in {
                **{f"{official.archive.folder}/{k}": v for k, v in self.files[name].items()},
                "../escaped.txt": b"out of the folder",
            }.items():
                info = tarfile.TarInfo(file)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        archive = Archive(packed.as_uri(), md5(packed.read_bytes()), official.archive.folder)
        small = dataclasses.replace(official, archive=archive, train=tuple(train), test=tuple(test))
        monkeypatch.setattr(cifar, name.upper(), small)

    def write(self, root: Path, name: str) -> Path:
        folder = root / getattr(cifar, name.upper()).archive.folder
        folder.mkdir(parents=True)
        for file, content in self.files[name].items():
            (folder / file).write_bytes(content)
        return folder


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def member(files: dict[str, bytes], name: str) -> Member:
    return Member(name, size=len(files[name]), md5=md5(files[name]))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCifar:
    return FakeCifar(tmp_path, monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_official_format_is_read(name: str, fake: FakeCifar, root: Path) -> None:
    fake.write(root, name)
    images = data.load(name, root, train=True)
    assert np.array_equal(images.images.numpy(), fake.pixels)
    assert np.array_equal(images.labels.numpy(), fake.labels)  # the fine ones, of CIFAR-100
    assert images.classes == ("ant", "bee", "cat", "dog") and images.name == name
    assert len(data.load(name, root, train=False)) == (2 if name == "cifar10" else 4)


def test_the_data_root_can_come_from_the_environment(
    fake: FakeCifar, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.write(root, "cifar10")
    monkeypatch.setenv("FTWT_DATA_ROOT", str(root))
    assert len(data.cifar10(train=True)) == 4


def test_missing_files_are_named_with_the_way_to_get_them(fake: FakeCifar, root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-bin.*--data-root.*--download"):
        data.cifar10(root, train=True)


def test_an_archive_that_is_there_is_unpacked(fake: FakeCifar, root: Path) -> None:
    root.mkdir()
    (fake.source / "cifar-10-binary.tar.gz").rename(root / "cifar-10-binary.tar.gz")
    assert len(data.cifar10(root, train=True)) == 4
    # Only the files asked for, and nothing outside their folder.
    assert {path.name for path in root.parent.rglob("*.txt")} == {"batches.meta.txt"}
    assert {path.name for path in (root / "cifar-10-batches-bin").iterdir()} == {
        "data_batch_1.bin",
        "data_batch_2.bin",
        "batches.meta.txt",
    }
    assert len(data.cifar10(root, train=False)) == 2  # from the same archive, later


def test_a_download_is_kept_and_used_again(fake: FakeCifar, root: Path, capfd) -> None:
    assert len(data.cifar100(root, train=True, download=True)) == 4
    assert sorted(path.name for path in root.iterdir()) == [
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
    ]
    (fake.source / "cifar-100-binary.tar.gz").unlink()
    assert len(data.cifar100(root, train=True, download=True)) == 4
    assert capfd.readouterr().out == ""  # progress goes to stderr


def test_a_failed_download_says_how_else_and_leaves_nothing(fake: FakeCifar, root: Path) -> None:
    (fake.source / "cifar-10-binary.tar.gz").unlink()
    with pytest.raises(ConnectionError, match=r"could not download .*put it into .*--data-root"):
        data.cifar10(root, train=True, download=True)
    assert not list(root.iterdir())


@pytest.mark.parametrize("where", ["download", "archive"])
def test_a_truncated_archive_is_refused_before_it_is_opened(
    where: str, fake: FakeCifar, root: Path
) -> None:
    packed = fake.source / "cifar-10-binary.tar.gz"
    content = packed.read_bytes()
    packed.write_bytes(content[:-100])
    root.mkdir()
    if where == "archive":
        packed.rename(root / packed.name)
    expected = f"expected MD5 {md5(content)}, found {md5(content[:-100])}"
    with pytest.raises(ValueError, match=rf"cifar-10-binary.tar.gz.*{expected}"):
        data.cifar10(root, train=True, download=True)
    assert not (root / "cifar-10-batches-bin").exists()
    assert not list(root.glob("*.part"))


@pytest.mark.parametrize(
    ("name", "file"), [("cifar10", "data_batch_2.bin"), ("cifar100", "train.bin")]
)
def test_a_truncated_file_is_refused(name: str, file: str, fake: FakeCifar, root: Path) -> None:
    path = fake.write(root, name) / file
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    message = rf"{file}: expected {size:,} bytes, found {size - 1:,}.*delete it"
    with pytest.raises(ValueError, match=message):
        data.load(name, root, train=True)


def test_a_tampered_file_is_refused(fake: FakeCifar, root: Path) -> None:
    path = fake.write(root, "cifar10") / "data_batch_1.bin"
    good = path.read_bytes()
    bad = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=f"{path.name}: expected MD5 {md5(good)}, .*{md5(bad)}"):
        data.cifar10(root, train=True)


def test_a_fine_label_without_a_class_is_refused(fake: FakeCifar, root: Path) -> None:
    path = fake.write(root, "cifar100") / "train.bin"
    path.write_bytes(b"\x00\x63" + path.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\].*found 99"):
        data.cifar100(root, train=True)


@pytest.mark.parametrize("name", ["cifar-10", "imagenet"])
def test_an_unknown_dataset_gets_the_valid_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown dataset '{name}', valid: cifar10, cifar100"):
        data.load(name, train=True)


# --- The embedded subset

PIXELS = {  # SHA-256, by `train`
    True: "0eba851f9f36b72516bc0203395cad618f1c29ff14ed52bd90772f9da4f7b39f",
    False: "5e373a22e61a5ef2c408b910ccc6e8c8c6e9d3b67affa17a994d038e69e57d7c",
}


@pytest.mark.parametrize(("train", "count"), [(True, 2000), (False, 1000)])
def test_the_embedded_images_are_balanced_and_never_change(train: bool, count: int) -> None:
    images = data.load("cifar10-embedded", train=train)
    assert images.name == "cifar10-embedded" and images.images.shape == (count, 3, 32, 32)
    assert images.labels.bincount().tolist() == [count // 10] * 10
    assert hashlib.sha256(images.images.numpy().data).hexdigest() == PIXELS[train]
    assert images.labels[:50].unique().numel() >= 8  # a first batch is of mixed classes


def test_the_embedded_images_take_at_most_6_mb() -> None:
    assert sum(file.stat().st_size for file in subset.FOLDER.iterdir()) <= 6_000_000


@pytest.mark.parametrize("train", [True, False])
def test_the_embedded_images_are_the_official_ones(train: bool) -> None:
    try:
        official = data.cifar10(train=train)
    except FileNotFoundError:
        pytest.skip("the official files are not there; set FTWT_DATA_ROOT")
    places = torch.tensor(subset.read_index()["train" if train else "test"]["places"])
    assert places.unique().numel() == len(places)
    chosen, packed = official.select(places), data.embedded(train=train)
    assert torch.equal(chosen.images, packed.images)
    assert torch.equal(chosen.labels, packed.labels)
    assert chosen.classes == packed.classes


def test_changed_embedded_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in subset.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train.webp").write_bytes((subset.FOLDER / "test.webp").read_bytes())
    monkeypatch.setattr(subset, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="train.webp: expected pixels with SHA-256"):
        data.embedded(train=True)
