"""The first day of a user: a network of one's own from Python to every verb, and to elsewhere."""

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
from test_cli import Told
from test_image_folder import make_image_folder
from test_image_folder import pytestmark as pytestmark

import ftwt as library
import tiny
from ftwt import models
from ftwt.contest import turns
from ftwt.files.json import read_json
from ftwt.files.pictures import Preprocessing, read_picture
from toys import run_numpy_alone

CODE = """
from torch import nn


def small(num_classes=3):
    layers = []
    for fan_in, fan_out in ((3, 8), (8, 16), (16, 16)):
        conv = nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""
SLOW = ("--engine", "reference")
FOLDER = ("--dataset", "folder", "--data-root", "shapes", "--validation", "6", "--workers", "0")
FOLDERS = ("blue-checks", "green-rings", "red-stripes")
HOW = Preprocessing(40, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SHOWN = ("--size", "32", "--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.3", "0.4")
QUICK = {  # of each verb, what follows the network
    "evaluate": FOLDER,
    "estimate": (*FOLDER, "--images", "20"),
    "compile": ("-o", "out.ftwt", *SLOW),
    "export": ("-o", "out.pt2"),
    "bench": (*SLOW, "--rounds", "1", "--singles", "1", "--rivals", "torch", *FOLDER),
    "run": ("shapes/photo.jpg", *SLOW),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "shapes"
    make_image_folder(root, classes=3, train=22, val=5, side=40)
    shutil.copy(next((root / "val").rglob("*.JPEG")), root / "photo.jpg")
    return root


@pytest.fixture
def home(shapes: Path, tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with images in `shapes`, and a network of one's own in `mynets.py`."""
    Path("shapes").symlink_to(shapes)
    Path("mynets.py").write_text(CODE)
    monkeypatch.setattr(turns, "REST_S", 0)
    monkeypatch.setattr(turns, "WARMUP_S", 0)
    yield tiny_home
    sys.modules.pop("mynets", None)


@pytest.fixture
def ftwt(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""
    return lambda *arguments: Told(capsys, *arguments)


def own() -> library.DynamicModel:
    """A network of one's own with gates that do something."""
    torch.manual_seed(0)
    gated = library.convert(models.create("mynets:small"), torch.zeros(1, 3, 32, 32))
    for predictor in gated.predictors.values():
        torch.nn.init.normal_(predictor.linear.weight)
        torch.nn.init.normal_(predictor.linear.bias)
    return gated.eval()


def with_network(verb: str, network: str) -> list[str]:
    """A command line that shows a verb a network."""
    first, *others = shlex.split(network)
    rest = [*QUICK[verb]]
    if verb == "run":  # its images are positional, too
        rest = [rest[0], *others, *rest[1:]]
        return [verb, first, *rest]
    return [verb, first, *others, *rest]


@pytest.mark.parametrize("verb", QUICK)
def test_every_verb_takes_a_network_that_was_saved_with_its_name(
    verb: str, home: Path, ftwt: Any
) -> None:
    library.save_pretrained(own(), "net", name="mynets:small", classes=FOLDERS, preprocessing=HOW)
    refused = ftwt(*with_network(verb, "net"))
    assert refused.status == 1 and not refused.out
    found = re.search(r"write `([^`]+)`", refused.err)
    assert found, refused.err
    told = ftwt(*with_network(verb, found[1]))  # as it was printed
    assert told.status == 0, told.err


@pytest.mark.parametrize("verb", QUICK)
def test_every_verb_takes_a_state_dict(verb: str, home: Path, ftwt: Any) -> None:
    torch.save(models.create("mynets:small").state_dict(), "small.pth")
    command = with_network(verb, "mynets:small --weights small.pth")
    told = ftwt(*command)
    assert told.status == 1 and not told.out
    given = re.search(r"--size.* --mean.* --std( [\d.]+){3}", told.err)  # as it was printed
    assert given and "nothing says how images are prepared for mynets:small" in told.err
    assert ftwt(*command, *shlex.split(given[0])).status == 0
    assert ftwt(*command, *SHOWN).status == 0


def test_a_file_of_a_network_in_python_shows_pictures_once_told_how(home: Path, ftwt: Any) -> None:
    gated = own()
    library.compile(gated, engine="reference").save("net.ftwt")
    command = ("run", "net.ftwt", "shapes/photo.jpg", *SLOW, "--json")
    refused = ftwt(*command)
    assert refused.status == 1 and not refused.out
    given = re.search(r"--mean.* --std( [\d.]+){3}", refused.err)
    assert given and ftwt(*command, *shlex.split(given[0])).status == 0
    told = json.loads(ftwt(*command, *SHOWN).out)
    image = read_picture("shapes/photo.jpg", Preprocessing(32, 32, HOW.mean, HOW.std))
    with torch.no_grad():
        expected = gated(torch.from_numpy(image)[None]).softmax(1)[0]
    found = {g["name"]: g["probability"] for g in told["answers"][0]["guesses"]}
    np.testing.assert_allclose([found[f"class {k}"] for k in range(3)], expected, rtol=1e-3)
    for verb in ("evaluate", "compile", "estimate"):
        told = ftwt(*with_network(verb, "net.ftwt"))
        assert told.status == 1 and "net.ftwt is compiled: `ftwt run` and" in told.err


def test_a_network_saved_without_a_name_is_named_on_the_command_line(home: Path, ftwt: Any) -> None:
    library.save_pretrained(models.create("mynets:small"), "net", preprocessing=HOW)
    told = ftwt("compile", "net", "-o", "net.ftwt", *SLOW)
    assert told.status == 1 and "write MODULE:FUNCTION --weights net, where FUNCTION()" in told.err
    told = ftwt("compile", "mynets:small", "--weights", "net", "-o", "net.ftwt", *SLOW)
    assert told.status == 0, told.err


SERVE = """
import numpy as np
from ftwt import runtime

engine = runtime.load("net.ftwt", engine="reference")
images = np.load("images.npy")
np.save("answers.npy", engine(images))
print(*engine.program.classes, engine.program.notes["preprocessing"]["mean"])
"""


@pytest.mark.parametrize("name", [tiny.NAME, "mynets:small"])
def test_a_run_on_a_folder_of_images_to_a_process_with_numpy_alone(
    name: str, home: Path, ftwt: Any
) -> None:
    train = ("--weights", "None", "--epochs", "1", "--batch-size", "20", "--output", "runs/own")
    told = ftwt("train", name, *FOLDER, *SHOWN, *train, "--json")
    assert told.status == 0, told.err
    values = json.loads(told.out)
    network = "runs/own" if name == tiny.NAME else "mynets:small --weights runs/own"

    # No verb is told of the images again: the run knows its own.
    evaluated = ftwt("evaluate", *shlex.split(network), "--record", "--json")
    assert evaluated.status == 0, evaluated.err
    found = json.loads(evaluated.out)
    left = ("provenance", "loss")  # the same weights elsewhere in memory: sums may round otherwise
    assert {k: v for k, v in found.items() if k not in left} == {
        k: v for k, v in values["test"].items() if k not in left
    }
    assert found["loss"] == pytest.approx(values["test"]["loss"], rel=1e-6)
    estimated = ftwt("estimate", *shlex.split(network), "--images", "20", "--json")
    assert json.loads(estimated.out)["images"] == 20, estimated.err
    written = ("-o", "net.ftwt", "--remove-silent", *SLOW)
    compiled = ftwt("compile", *shlex.split(network), *written)
    assert compiled.status == 0 and "3 outputs, named" in compiled.out, compiled.err

    other = ftwt("evaluate", *shlex.split(network), "--dataset", "cifar10-embedded")
    assert "tells 3 classes apart, the images are of 10" in other.err  # and not of another folder

    paths = sorted(Path("shapes/val").rglob("*.JPEG"))
    how = library.runtime.load_program("net.ftwt").notes["preprocessing"]
    assert (how["crop"], tuple(how["mean"]), tuple(how["std"])) == (32, HOW.mean, HOW.std)
    images = np.stack([read_picture(path, Preprocessing.from_json(how)) for path in paths])
    np.save("images.npy", images)
    done = run_numpy_alone(SERVE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == sorted(part.name for part in Path("shapes/val").iterdir())
    labels = [sorted({path.parent.name for path in paths}).index(p.parent.name) for p in paths]
    right = np.load("answers.npy").argmax(1) == np.array(labels)
    assert right.mean() == pytest.approx(values["test"]["top1"])


def test_a_dense_run_with_own_classes_is_pruned_with_all_that_is_known_of_it(
    home: Path, ftwt: Any
) -> None:
    """Its classes, their number and the images' preparation go along; its images are its own."""
    recipe = ("train", "cifar10-resnet20-baseline", "--model", tiny.NAME, *FOLDER, *SHOWN)
    train = ("--weights", "None", "--epochs", "1", "--batch-size", "20", "--output", "dense")
    brief = ("--warmup-epochs", "0", "--precision", "fp32")
    told = ftwt(*recipe, *train, *brief)
    assert told.status == 0, told.err
    pruned = ("--gates", "static", "--reduction", "0.2", "--images", "40", "--output", "pruned")
    told = ftwt("prune", "dense", *pruned, *SLOW)
    assert told.status == 0, told.err
    top1 = read_json("pruned/prune.json")["test"]["static"]["top1"]
    found = json.loads(ftwt("evaluate", "pruned", "--json").out)
    assert found["images"] == 15 and found["top1"] == top1
    told = ftwt("run", "pruned/net.ftwt", "shapes/photo.jpg", *SLOW, "--json")
    names = {guess["name"] for guess in json.loads(told.out)["answers"][0]["guesses"]}
    assert names == {part.name for part in Path("shapes/val").iterdir()}


def test_what_the_report_says_to_run_runs(home: Path, ftwt: Any) -> None:
    """Each command for what is missing, as it is printed; then nothing of the run is missing."""
    torch.save(tiny.network().state_dict(), "small.pth")
    train = [
        "train", tiny.NAME, *tiny.DATA, "--weights", "small.pth", "--epochs", "1",
        "--batch-size", "400", "--target-reduction", "0.1", "--output", "runs/own",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ftwt", *train])
        assert ftwt(*train).status == 0
    missing = library.report.write_report("runs/own").missing
    assert len(missing) >= 6
    for gap in missing:
        _, verb, *rest = shlex.split(gap.command)
        quick = {
            "bench": [*SLOW, "--rounds", "1", "--singles", "1", "--rivals", "torch"],
            "robustness": ["--corruptions", "fog", "--severities", "1"],
        }
        command = [verb, *rest, *quick.get(verb, [])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["ftwt", *command])
            told = ftwt(*command)
        assert told.status == 0, f"{gap.command}: {told.err}"
    found = [str(path) for path in (*Path("runs").iterdir(), *Path(".").glob("*.json"))]
    left = library.report.write_report([*found, "corrupted"]).missing
    assert not any("own" in gap.of for gap in left)  # but of the run with another seed
