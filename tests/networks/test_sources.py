"""What a string means as a network, and code of your own by `module:function`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import ftwt
import tiny
from ftwt import models
from ftwt.config import DataConfig
from ftwt.files.json import read_json
from ftwt.files.tensors import load_state
from ftwt.networks.pretrained import from_pretrained, save_pretrained
from ftwt.networks.sources import own_images, resolve
from ftwt.networks.splits import load_splits
from toys import same

CODE = """
import torch
from torch import nn

import ftwt

open("was-run", "a").close()


def small(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )


def fixed():
    return small(4)


def wide(width):
    return nn.Conv2d(3, width, 1)


def nothing():
    return None


def looks():
    gated = ftwt.convert(small(), torch.zeros(2, 3, 16, 16))
    return ftwt.SecondLook([gated, gated], [0.5])
"""
SIZED = DataConfig(size=16)
HOW = ftwt.Preprocessing(20, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def home(tiny_home: Path) -> Iterator[Path]:
    """A working folder with code of its own in `ownnets.py`."""
    Path("ownnets.py").write_text(CODE)
    yield tiny_home
    sys.modules.pop("ownnets", None)


def test_code_of_your_own_is_a_name_as_any_other(home: Path) -> None:
    before = list(sys.path)
    assert models.create("ownnets:small")[-1].out_features == 4  # type: ignore[index]
    network = models.create("ownnets:small", num_classes=7)
    assert sys.path == before
    assert models.create("ownnets:wide", num_classes=7, width=5).out_channels == 5
    save_pretrained(
        network,
        "net",
        name="ownnets:small",
        arguments={"num_classes": 7},
        classes="abcdefg",
        preprocessing=HOW,
    )
    source = resolve("ownnets:small", "net")
    assert same(source.load(), network)
    assert source.prepare() == HOW and source.classes == tuple("abcdefg")
    assert source.shape() == (3, 16, 16)
    assert same(from_pretrained("net", model="ownnets:small"), network)


def test_no_file_chooses_code_that_runs(home: Path) -> None:
    save_pretrained(models.create(tiny.NAME), "net", name=tiny.NAME)
    config = read_json("net/config.json") | {"model": "ownnets:small"}
    tensors = ftwt.networks.pretrained.load_tensors("net/model.safetensors")[0]
    ftwt.files.tensors.save_tensors("net/model.safetensors", tensors, config)
    for load in (
        lambda: resolve("net"),
        lambda: from_pretrained("net"),
        lambda: resolve(tiny.NAME, "net").load(),
    ):
        try:
            load()
        except ValueError as error:
            assert "no file may choose code that runs here" in str(error)
        assert not Path("was-run").exists()
    with pytest.raises(ValueError, match="write `ownnets:small --weights net`"):
        resolve("net")
    with pytest.raises(ValueError, match="another architecture"):
        from_pretrained("net", model="ownnets:small")
    assert Path("was-run").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ownnetz:small", ImportError, "no module 'ownnetz' in this folder or installed"),
        ("ownnets:smal", ValueError, "ownnets has no function 'smal', which ownnets:smal names"),
        ("ownnets:small()", ValueError, "is no MODULE:FUNCTION, such as nets:small"),
        ("ownnets:wide", ValueError, r"does not take the arguments \{\} \(missing a required arg"),
        ("ownnets:nothing", ValueError, "returned NoneType, it must return a network"),
    ],
)
def test_code_that_makes_no_network_is_told(
    home: Path, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(name, None).load()


def test_a_script_that_saves_its_own_network_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"{CODE}\nimport ftwt\nprint('once')\n"
        "ftwt.save_pretrained(small(), 'saved', name='script:small')\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "once\n", done.stderr
    assert (tmp_path / "saved" / "config.json").exists()


def test_state_dicts_are_weights_of_an_architecture(home: Path) -> None:
    network = models.create("ownnets:small", num_classes=6)
    state = network.state_dict()
    torch.save(state, "a.pth")
    torch.save({"epoch": 3, "state_dict": state}, "b.pt")
    torch.save({"model": state}, "c.pt")
    ftwt.files.tensors.safetensors.torch.save_file(state, "d.safetensors")
    for file in ("a.pth", "b.pt", "c.pt", "d.safetensors"):
        loaded = resolve("ownnets:small", file).load()  # of as many classes as the weights
        assert same(loaded, network) and not loaded.training
    torch.save(tiny.network(3).state_dict(), "three.pth")
    assert resolve(tiny.NAME, "three.pth").load()[-1].out_features == 3  # type: ignore[index]


class Whole(nn.Linear):
    """What must not be loaded."""


def test_what_is_no_state_dict_is_refused_with_the_cure(home: Path) -> None:
    torch.save(Whole(2, 2), "whole.pth")
    with pytest.raises(ValueError, match=r"write torch.save\(network.state_dict\(\), 'whole.pth"):
        load_state("whole.pth")
    torch.save([torch.zeros(2)], "list.pth")
    torch.save({"epoch": 3}, "no.pth")
    for file, kind in (("list.pth", "it is list"), ("no.pth", "epoch is int")):
        with pytest.raises(ValueError, match=f"holds no state dict: {kind}, no tensor"):
            load_state(file)
    Path("cut.pth").write_bytes(Path("whole.pth").read_bytes()[:50])
    with pytest.raises(ValueError, match="cut.pth is damaged"):
        load_state("cut.pth")
    with pytest.raises(FileNotFoundError, match="there is no file gone.pth"):
        resolve("ownnets:small", "gone.pth").load()
    state = models.create("ownnets:small").state_dict()
    torch.save({f"net.{name}": value for name, value in state.items()}, "named.pth")
    with pytest.raises(ValueError, match="missing: 0.weight.*unexpected: net.0.weight"):
        resolve("ownnets:small", "named.pth").load()
    torch.save(state | {"0.bias": torch.full((8,), torch.nan)}, "nan.pth")
    with pytest.raises(ValueError, match="nan.pth: 0.bias holds NaN"):
        resolve("ownnets:small", "nan.pth").load()


def test_code_that_takes_no_number_of_classes_is_of_its_own(home: Path) -> None:
    network = resolve("ownnets:fixed", None).load_dense(classes=4, data=SIZED)
    assert network[-1].out_features == 4  # type: ignore[index]
    torch.save(models.create("ownnets:fixed").state_dict(), "a.pth")
    for weights in (None, "a.pth"):
        with pytest.raises(ValueError, match="builds networks of 4 classes alone, .* of 5; let it"):
            resolve("ownnets:fixed", weights).load_dense(classes=5, new_head=True, data=SIZED)
    network = resolve("ownnets:small", "a.pth").load_dense(classes=5, new_head=True, data=SIZED)
    assert network[-1].out_features == 5  # type: ignore[index]


def test_what_cannot_be_meant_is_told_with_the_cure(home: Path) -> None:
    save_pretrained(tiny.network(), "named", name=tiny.NAME)
    for source, weights, message in (
        ("named", "a.pth", "named has its own weights; .*: MODEL --weights a.pth"),
        ("a.pth", "pretrained", "a.pth holds weights, but not .* write MODEL --weights a.pth"),
        ("net.ftwt", "pretrained", "net.ftwt is compiled: `ftwt run`"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(source, weights)
    with pytest.raises(ValueError, match="comes without weights; give them: --weights FILE.pth"):
        resolve("ownnets:small").load()
    with pytest.raises(ValueError, match="nothing says how images are prepared for ownnets:small"):
        resolve("ownnets:small", None).shape()


def test_settings_come_before_what_was_saved_and_that_before_the_name(home: Path) -> None:
    save_pretrained(tiny.network(), "net", name=tiny.NAME, preprocessing=HOW)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    given = DataConfig(mean=mean, std=std)
    named = resolve(tiny.NAME).prepare()
    assert named is not None and named.crop == 32 and named.mean == (0.4914, 0.4822, 0.4465)
    assert resolve("net").prepare() == HOW
    how = resolve("net").prepare(given)
    assert how is not None and (how.crop, how.mean, how.std) == (16, mean, std)
    how = resolve("net").prepare(DataConfig(size=32))
    assert how is not None and (how.resize, how.crop, how.mean) == (40, 32, HOW.mean)
    embedded = DataConfig(dataset="cifar10-embedded", validation=10)
    assert load_splits(embedded, source=resolve("net")).test.images.mean == HOW.mean
    assert load_splits(embedded).test.images.mean == (0.4914, 0.4822, 0.4465)
    with pytest.raises(ValueError, match="size=64: images of cifar10-embedded have 32 pixels"):
        load_splits(DataConfig(dataset="cifar10-embedded", validation=10, size=64))
    gated = ftwt.convert(tiny.network(), torch.zeros(1, 3, 48, 48))
    save_pretrained(gated, "gated", name=tiny.NAME)
    assert resolve("gated").shape() == (3, 48, 48)
    with pytest.raises(ValueError, match=r"size=32: gated is for inputs of \(3, 48, 48\)"):
        resolve("gated").shape(DataConfig(size=32))


def test_a_second_look_is_two_networks(home: Path) -> None:
    first, second = (
        ftwt.convert(models.create(tiny.NAME), torch.zeros(1, 3, 32, 32), r=r) for r in (0.5, 0.9)
    )
    looks = ftwt.SecondLook([first, second], [0.5])
    save_pretrained(looks, "both", name=tiny.NAME)
    save_pretrained(looks, "run/model", name=tiny.NAME)
    source = resolve("both")
    assert source.shape() == (3, 32, 32) and isinstance(source.load(passes=True), ftwt.SecondLook)
    for given, folder in (("both", "both"), ("run", "run/model"), ("run/model", "run/model")):
        said = f"^{given} holds a second look, .* them: {folder}/first, {folder}/second$"
        with pytest.raises(ValueError, match=said):
            resolve(given).load()
        assert same(resolve(f"{folder}/first").load(), first)
        assert same(resolve(f"{folder}/second").load(), second)
    with pytest.raises(ValueError, match="looks holds a second look, .* let it return one of them"):
        resolve("ownnets:looks", None).load()


def test_a_run_knows_its_own_images(home: Path) -> None:
    assert own_images(tiny.NAME) is None and own_images("nowhere") is None
    assert own_images("cifar100-resnet20") == DataConfig(dataset="cifar100")
    Path("run/model").mkdir(parents=True)
    Path("run/run.json").write_text(json.dumps({"config": tiny.CONFIG.to_json()}))
    for source in ("run", "run/model"):
        assert own_images(source) == own_images("ownnets:small", source) == tiny.CONFIG.data
    old = tiny.CONFIG.to_json()
    del old["data"]["size"]  # of an older ftwt
    Path("run/run.json").write_text(json.dumps({"config": old}))
    assert own_images("run") == tiny.CONFIG.data
    Path("run/run.json").write_text('{"config": {"data": 3}}')
    with pytest.raises(ValueError, match="run/run.json does not say which images it is of"):
        own_images("run")
