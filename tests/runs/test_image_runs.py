"""Runs on folders of images by class, from training to the engine's file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import Told
from test_image_folder import CLASSES, make_image_folder
from test_image_folder import pytestmark as pytestmark
from test_run import timeless

import ftwt as library
import tiny
from ftwt import data, models
from ftwt.config import DataConfig, RunConfig
from ftwt.data import FileBatches
from ftwt.files.json import read_json
from ftwt.networks.pretrained import find_saved, save_pretrained
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.records.recording import Recording
from ftwt.runs.run import run
from ftwt.training.loop import Interrupted
from toys import same, untimed

DATA = ("--dataset", "folder", "--data-root", "shapes", "--validation", "6", "--workers", "0")
CONFIG = replace(
    tiny.CONFIG,
    weights=None,
    data=DataConfig(dataset="folder", data_root="shapes", validation=6, workers=1),
    train=replace(tiny.CONFIG.train, batch_size=10, lr=0.02),
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "shapes"
    return make_image_folder(root, classes=3, train=22, val=5, side=40)


@pytest.fixture
def home(shapes: Path, tiny_home: Path) -> Path:
    """A working folder with images in `shapes`, where the tiny network has its name."""
    (tiny_home / "shapes").symlink_to(shapes)
    return tiny_home


@pytest.fixture
def ftwt(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""
    return lambda *arguments: Told(capsys, *arguments)


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process before a step of the next training."""
    import os
    import signal

    iterate, left = FileBatches.iterate, [step]

    def watched(self: FileBatches, start: int = 0) -> Any:
        for batch in iterate(self, start):
            left[0] -= self.train
            if left[0] == 0 and self.train:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    patch.setattr(FileBatches, "iterate", watched)


def test_a_run_resumes_in_mid_epoch_whoever_decodes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(CONFIG, output="whole")
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        with pytest.raises(Interrupted, match="after step 8 of 12"):
            run(CONFIG, output="parts")
    other = replace(CONFIG, data=replace(CONFIG.data, workers=0))
    parts = run(other, output="parts", resume=True)
    one, two = timeless(whole.to_json()), timeless(parts.to_json())
    assert two["config"]["data"].pop("workers") == 0 != one["config"]["data"].pop("workers")
    assert one == two and untimed(Path("parts")) == untimed(Path("whole"))
    assert whole.test.images == 15 and whole.validation.images == 6
    assert find_saved("whole/model")[1]["classes"] == list(CLASSES)


def test_from_training_to_the_engines_guesses(home: Path, ftwt: Any) -> None:
    flags = ("--weights", "None", "--epochs", "1", "--batch-size", "20", "--output", "net")
    told = ftwt("train", tiny.NAME, *DATA, *flags, "--json")
    assert told.status == 0, told.err
    values = json.loads(told.out)
    assert values == read_json("net/run.json")
    assert values["config"]["data"]["dataset"] == "folder" and values["test"]["images"] == 15
    assert values["predicted_reduction"] is not None

    told = ftwt("evaluate", "net", *DATA, "--record", "--json")
    assert told.status == 0, told.err
    assert json.loads(told.out)["top1"] == values["test"]["top1"]
    recording = Recording.load("net/recording.safetensors")
    assert recording.classes == CLASSES and len(recording.pictures) == 15

    told = ftwt("estimate", "net", *DATA, "--images", "20", "--json")
    assert told.status == 0 and json.loads(told.out)["images"] == 20

    missing = {each.what: each.command for each in library.report.write_report("net").missing}
    assert missing["the curve r -> reduction"].startswith("ftwt estimate net --output ")
    assert "accuracy under corruption" not in missing

    economies = ("--remove-silent", "--layout", "--engine", "reference")
    told = ftwt("compile", "net", "-o", "net.ftwt", *economies, *DATA)
    assert told.status == 0, told.err
    assert "3x32x32 -> 3 outputs, named" in told.out
    splits = load_splits(CONFIG.data, source=resolve(tiny.NAME))
    paths = splits.test.images.paths
    told = ftwt("run", "net.ftwt", *paths, "--top", "3", "--engine", "reference", "--json")
    answers = json.loads(told.out)["answers"]
    assert {guess["name"] for guess in answers[0]["guesses"]} == set(CLASSES)
    best = [CLASSES.index(answer["guesses"][0]["name"]) for answer in answers]
    assert best == recording.predictions.tolist()  # what evaluation saw, to the pixel


def test_weights_of_other_classes_are_refused_or_get_a_new_head(home: Path) -> None:
    config = replace(CONFIG, weights="pretrained", prune=None)
    with pytest.raises(ValueError, match="are of 10 classes, the images of 3; .*--new-head"):
        run(config, output="refused")
    trained = models.create(tiny.NAME, pretrained=True)
    network = resolve(tiny.NAME, "pretrained").load_dense(classes=3, new_head=True)
    before, after = trained.state_dict(), network.state_dict()
    different = {name for name in before if not before[name].equal(after[name])}
    assert different == {"11.weight", "11.bias"} and after["11.bias"].shape == (3,)
    assert same(resolve(tiny.NAME, "pretrained").load_dense(classes=10, new_head=True), trained)

    save_pretrained(network, "three", name=tiny.NAME, arguments={"num_classes": 3})
    assert same(resolve(tiny.NAME, "three").load_dense(classes=3), network)
    with pytest.raises(ValueError, match="'three' of cifar10-tiny are of 3 classes, .* of 5"):
        resolve(tiny.NAME, "three").load_dense(classes=5)
    still = replace(config.train, epochs=1, lr=0.0, freeze_batchnorm=True)
    one = run(replace(config, new_head=True, train=still), output="one")
    assert one.config.new_head and one.test.units == ()
    with pytest.raises(ValueError, match="new_head=True is for weights of other classes"):
        RunConfig(new_head=True)


def test_a_static_twin_is_of_the_same_classes(home: Path) -> None:
    run(replace(CONFIG, weights="pretrained", new_head=True), output="run")
    config = replace(CONFIG, weights="pretrained", new_head=True, twin_of="run")
    twin = run(config, output="twin")
    assert twin.test.images == 15 and twin.test.reduction_std == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", tiny.NAME, *DATA], "tells 10 classes apart, the images are of 3; give"),
        (["evaluate", tiny.NAME, *DATA[:2], "--data-root", "gone"], "there is no folder gone/tr"),
        (["train", tiny.NAME, *DATA[:4]], "cifar10-tiny are of 10 classes, the images of 3"),
        (
            ["train", tiny.NAME, *DATA[:4], "--validation", "5000", "--weights", "None"],
            "to hold out 5000 images takes 1666 of class",
        ),
        (
            ["train", tiny.NAME, *DATA, "--weights", "None", "--batch-size", "61"],
            "60 images make no batch of 61",
        ),
        (["train", "timm:nothing", *DATA, "--weights", "None"], "unknown timm model 'nothing'"),
        (
            ["train", tiny.NAME, *DATA, "--weights", "None", "--workers", "-1"],
            "workers=-1 is outside [0, inf); 0 lets the training process decode",
        ),
    ],
)
def test_a_mistake_is_told_in_a_line(
    arguments: list[str], message: str, home: Path, ftwt: Any
) -> None:
    told = ftwt(*arguments)
    assert told.status in (1, 2) and not told.out
    assert message in told.unfolded


def test_an_image_that_breaks_a_run_is_named(shapes: Path, tiny_home: Path, ftwt: Any) -> None:
    shutil.copytree(shapes, "shapes")
    broken = sorted(Path("shapes/val").rglob("*.JPEG"))[3]
    broken.write_text("no image")
    told = ftwt("evaluate", tiny.NAME, *DATA[:-1], "2")
    assert told.status == 1 and "tells 10 classes" in told.err
    save_pretrained(tiny.network(3), "net", name=tiny.NAME, arguments={"num_classes": 3})
    told = ftwt("evaluate", "net", *DATA[:-1], "2")
    assert told.status == 1 and not told.out
    assert told.err.startswith(f"ftwt evaluate: {broken} is not an image that can be read (")
    assert len(told.err.splitlines()) == 1


def test_images_in_memory_know_no_names() -> None:
    with pytest.raises(ValueError, match="dataset='folder' needs the network,"):
        load_splits(CONFIG.data)
    with pytest.raises(ValueError, match="unknown dataset 'folder', valid: cifar10"):
        data.load("folder", train=True)
    assert torch.is_tensor(next(iter(load_splits(tiny.CONFIG.data).test))[0])
