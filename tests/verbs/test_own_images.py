"""A network and images of one's own, through `ftwt prune` to numpy alone: a page's steps."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import ROOT, Told, commands
from test_image_folder import make_image_folder, mix
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ftwt
import ftwt.runtime
from ftwt.data import ImageFiles, image_folders
from ftwt.files.json import read_json
from ftwt.files.pictures import Preprocessing, read_picture
from ftwt.networks import splits
from toys import run_numpy_alone

HEAD = "## From your own images to numpy alone\n"
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
STEPS = PAGE.partition(HEAD)[2].partition("\n## ")[0]
HOW = Preprocessing(32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as the page says
CHANCE = 1 / 5


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with images of five classes in `photos`."""
    pytest.importorskip("ftwt.runtime._native")
    monkeypatch.chdir(tmp_path)
    make_image_folder("photos", classes=5, train=80, val=20, side=48)
    sys.modules.pop("nets", None)  # of another test
    yield tmp_path
    sys.modules.pop("nets", None)


def pixels(files: ImageFiles) -> Tensor:
    """All images as (N, 3, 32, 32)."""
    return torch.from_numpy(np.stack([read_picture(path, HOW) for path in files.paths]))


def train(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int = 15) -> None:
    """Train a network as one does without ftwt."""
    optimizer = torch.optim.Adam(network.parameters())
    steps = epochs * -(-len(images) // 25)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for drawn in torch.randperm(len(images)).split(25):
            optimizer.zero_grad()
            cross_entropy(network(images[drawn]), labels[drawn]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.inference_mode()
def guesses(network: nn.Module, images: Tensor) -> Tensor:
    return network(images).argmax(1)


def test_a_network_and_images_of_ones_own_to_numpy_alone_as_the_page_says(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets, save, serve = re.findall(r"```python\n(.*?)```", STEPS, re.DOTALL)
    prune, run = (shlex.split(command)[1:] for command in commands(STEPS))

    Path("nets.py").write_text(nets)
    own: Any = {"torch": torch}
    exec(nets, own)
    own["network"] = network = own["small"]()
    seen, test = image_folders("photos", HOW)
    images = pixels(test)
    train(network, pixels(seen), seen.labels)
    top1 = float((guesses(network, images) == test.labels).float().mean())
    assert top1 > 3.5 * CHANCE
    exec(save, own)

    mix(Path("photos", "train"))  # from here on their labels are not known
    told = Told(capsys, *prune, "--workers", "0")
    assert told.status == 0, told.err
    assert "net.ftwt, f32: top-1 accuracy" in told.out
    values = read_json("runs/photos/prune.json")
    assert values["test"]["dense"]["top1"] == pytest.approx(top1)
    found = values["test"][values["pruned"]["kind"]]
    assert found["top1"] > top1 - 0.06
    assert found["reduction"] == pytest.approx(0.3, abs=0.03)

    pruned = ftwt.from_pretrained("runs/photos/model", model="nets:small")
    expected = [test.classes[k] for k in guesses(pruned, images)]
    np.save("images.npy", images.numpy())
    assert "torch is not installed" in run_numpy_alone("import torch").stderr
    served = run_numpy_alone(serve)
    assert served.returncode == 0, served.stderr
    assert served.stdout.split() == expected
    folders = [Path(path).parent.name for path in test.paths]
    right = [name == folder for name, folder in zip(expected, folders, strict=True)]
    assert np.mean(right) == pytest.approx(found["top1"])

    first = right.index(True)
    shutil.copy(test.paths[first], "photo.jpg")
    told = Told(capsys, *run, "--json")
    assert told.status == 0, told.err
    [answer] = json.loads(told.out)["answers"]
    assert answer["guesses"][0]["name"] == folders[first]


@pytest.fixture
def unlabelled(home: Path) -> tuple[str, ...]:
    """Options for images of `home` whose training labels nobody knows; `model` is for them."""
    network = ftwt.models.create("cifar10-resnet20", num_classes=5)
    kept: dict[str, Any] = {"name": "cifar10-resnet20", "arguments": {"num_classes": 5}}
    ftwt.save_pretrained(network, "model", preprocessing=HOW, **kept)
    mix(Path("photos", "train"))
    return ("--dataset", "folder", "--data-root", "photos", "--workers", "0")


@pytest.mark.parametrize(
    "command",
    [
        "prune model --reduction 0.3 --epochs 1",
        "train cifar10-resnet20 --weights model",
        "evaluate model --split validation",
    ],
)
def test_images_without_labels_are_refused_where_labels_are_needed(
    command: str, unlabelled: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(capsys, *command.split(), *unlabelled)
    assert told.status == 1
    assert "images in photos/train have no labels, which only folders by class tell" in told.err
    assert told.err.count("\n") == 1


def test_images_without_labels_do_where_none_are_read(
    unlabelled: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("estimate", "evaluate"):  # this one on `val`
        told = Told(capsys, verb, "model", *unlabelled)
        assert told.status == 0, told.err
    told = Told(capsys, "compile", "model", "-o", "net.ftwt", *unlabelled)
    assert told.status == 0, told.err
    assert ftwt.runtime.load("net.ftwt").classes == image_folders("photos", HOW)[1].classes


def test_labels_are_those_of_the_networks_own_names(
    unlabelled: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    network, (_, test) = ftwt.from_pretrained("model"), image_folders("photos", HOW)
    kept: dict[str, Any] = {"name": "cifar10-resnet20", "arguments": {"num_classes": 5}}
    names = tuple(reversed(test.classes))
    ftwt.save_pretrained(network, "named", classes=names, preprocessing=HOW, **kept)
    right = [names[k] == test.classes[y] for k, y in zip(
        guesses(network, pixels(test)), test.labels.tolist(), strict=True)]  # fmt: skip
    told = Told(capsys, "evaluate", "named", *unlabelled, "--json")
    assert json.loads(told.out)["top1"] == pytest.approx(np.mean(right))
    ftwt.save_pretrained(network, "others", classes=tuple("abcde"), preprocessing=HOW, **kept)
    with pytest.warns(UserWarning, match="saved for a, b, c, d, e, the images are of blue-checks,"):
        Told(capsys, "evaluate", "others", *unlabelled)


def test_of_few_images_all_are_fitted_to_or_judge(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own: dict[str, Any] = {}
    Path("nets.py").write_text(
        "from torch import nn\ndef few():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), "
        "nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))\n"
    )
    exec(Path("nets.py").read_text(), own)
    torch.save(own["few"]().state_dict(), "few.pth")
    mix(Path("photos", "train"))
    for path in list(Path("photos", "train").iterdir())[25:]:
        path.unlink()
    told = Told(
        capsys, "prune", "nets:few", "--weights", "few.pth", "--size", "32", "--mean", *3 * ["0.5"],
        "--std", *3 * ["0.2"], "--dataset", "folder", "--data-root", "photos", "--workers", "0",
        "--reduction", "0.2", "--gates", "static", "--output", "runs/few",
    )  # fmt: skip
    assert told.status == 0, told.err
    values = read_json("runs/few/prune.json")["pruned"]
    assert (values["images"], values["judged"]) == (20, 5)


def test_a_folder_by_class_that_is_not_said_to_be_one_is_told(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("could not download it")

    monkeypatch.setattr(splits.data, "load", unreachable)
    given = ("estimate", "cifar10-resnet20", "--data-root")
    assert Told(capsys, *given, "photos").err.endswith("in photos? Then --dataset folder\n")
    assert Told(capsys, *given, "runs").err.endswith("could not download it\n")
