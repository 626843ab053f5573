"""From a trained network to a file, and from the file to guesses, in Python and by the verbs."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import Told

import ftwt as library
import tiny
from ftwt import data, runtime
from ftwt.contest import turns
from ftwt.data import Batches
from ftwt.deployment.classify import classify
from ftwt.deployment.deploy import Economies, deploy
from ftwt.files.json import read_json
from ftwt.networks.inputs import known
from ftwt.networks.pretrained import save_pretrained
from ftwt.networks.sources import resolve
from toys import run_python

NUMPY = ("--engine", "reference")
BRIEF = (*NUMPY, "--rounds", "1", "--singles", "3", "--rivals", "torch")


@pytest.fixture
def ftwt(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""
    return lambda *arguments: Told(capsys, *arguments)


@pytest.fixture(scope="module")
def dynamic() -> library.DynamicModel:
    """The tiny network with gates that do something."""
    torch.manual_seed(0)
    gated = library.convert(tiny.network(), torch.zeros(1, 3, 32, 32))
    for predictor in gated.predictors.values():
        torch.nn.init.normal_(predictor.linear.weight)
        torch.nn.init.normal_(predictor.linear.bias)
    return gated.eval()


@pytest.fixture
def saved(tiny_home: Path, dynamic: library.DynamicModel) -> str:
    """A folder with it, in the working folder."""
    save_pretrained(dynamic, "net", name=tiny.NAME)
    return "net"


@pytest.fixture
def file(saved: str) -> str:
    deploy(resolve(saved), "net.ftwt", engine="reference")
    return "net.ftwt"


def pictures(count: int) -> Iterator[str]:
    """Test images of CIFAR-10 as files."""
    for number, pixels in enumerate(data.embedded(train=False).images[:count]):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(f"{number}.png")
        yield f"{number}.png"


# --- What is known ------------------------------------------------------------------------------


def test_cifar_networks_take_what_the_dataset_gives() -> None:
    how, classes = known("cifar10-resnet56")
    images = data.embedded(train=False)
    assert (how.resize, how.crop, how.mean, how.std) == (32, 32, images.mean, images.std)
    assert classes == images.classes
    how, classes = known("cifar100-vgg16-bn")
    assert how.mean == (0.5071, 0.4865, 0.4409)
    assert len(classes) == len(set(classes)) == 100
    assert list(classes) == sorted(classes)


def test_networks_of_torchvision_and_timm_take_what_these_say() -> None:
    how, classes = known("torchvision:resnet18")
    assert (how.resize, how.crop, how.interpolation) == (256, 224, "bilinear")
    assert how.mean == (0.485, 0.456, 0.406) and how.std == (0.229, 0.224, 0.225)
    assert len(classes) == 1000 and classes[:2] == ("tench", "goldfish")
    how, classes = known("timm:mobilenetv1_100")
    assert (how.resize, how.crop, how.interpolation) == (256, 224, "bicubic")
    assert how.mean == how.std == (0.5, 0.5, 0.5)
    assert len(classes) == 1000 and classes[:2] == ("tench", "goldfish")
    assert known("timm:vit_base_patch16_224.augreg_in21k")[1] == ()


def test_the_name_of_what_is_found(saved: str, dynamic: library.DynamicModel) -> None:
    assert resolve(saved).model == resolve(tiny.NAME).model == tiny.NAME
    assert resolve("timm:mobilenetv1_100").model == "timm:mobilenetv1_100"
    save_pretrained(dynamic, "own")
    with pytest.raises(ValueError, match="own was saved without the name of its architecture"):
        resolve("own")


# --- Compile ------------------------------------------------------------------------------------


def test_a_file_holds_the_network_and_how_to_show_it_images(
    saved: str, dynamic: library.DynamicModel, ftwt: Any
) -> None:
    told = ftwt("compile", saved, "-o", "out/net.ftwt", *NUMPY, "--json")
    assert told.status == 0, told.err
    values = json.loads(told.out)
    assert values["network"] == saved and values["gates"] == 3 and values["classes"] is True
    assert values["size_bytes"] == Path("out/net.ftwt").stat().st_size
    engine = runtime.load("out/net.ftwt", engine="reference")
    notes = engine.program.notes
    assert notes["network"] == tiny.NAME
    assert notes["preprocessing"]["crop"] == 32 and engine.program.classes[0] == "airplane"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(engine(x), dynamic(x), rtol=1e-4, atol=1e-4)

    text = ftwt("compile", saved, "--output", "net.ftwt", *NUMPY).out
    assert "net.ftwt: net, 3x32x32 -> 10 outputs, named; 3 gates, " in text


def test_economies_look_at_training_images_and_say_what_they_did(saved: str, ftwt: Any) -> None:
    economies = ("--remove-silent", "--drop-constant", "--layout", "--images", "300")
    flags = ("compile", saved, "-o", "net.ftwt", *NUMPY, *tiny.DATA, *economies)
    told = ftwt(*flags)
    assert told.status == 0, told.err
    assert re.search(r"^removed: \d+ filters of \d units$", told.out, re.MULTILINE)
    values = json.loads(ftwt(*flags, "--json").out)
    assert values["economies"]["removed"]
    assert sum(values["economies"]["removed"].values()) > 0


def test_a_dense_network_and_other_outputs_and_sizes(tiny_home: Path) -> None:
    assert deploy(resolve(tiny.NAME), "dense.ftwt", engine="reference").gates == 0
    save_pretrained(tiny.network(7), "seven", name=tiny.NAME, arguments={"num_classes": 7})
    assert deploy(resolve("seven"), "seven.ftwt", engine="reference").classes is False
    gated = library.convert(tiny.network(), torch.zeros(1, 3, 48, 48))
    save_pretrained(gated, "large", name=tiny.NAME)
    deploy(resolve("large"), "large.ftwt", engine="reference")
    program = runtime.load_program("large.ftwt")
    assert program.notes["preprocessing"]["crop"] == program.notes["preprocessing"]["resize"] == 48
    (picture,) = pictures(1)
    found = classify("seven.ftwt", [picture], engine="reference")
    assert re.fullmatch(r"class [0-6]", found.answers[0].guesses[0].name)
    assert classify("large.ftwt", [picture], engine="reference").answers[0].keep == 1


# --- Run ----------------------------------------------------------------------------------------


def test_guesses_are_the_networks_on_the_datasets_own_images(
    file: str, dynamic: library.DynamicModel, ftwt: Any
) -> None:
    paths = [*pictures(4)]
    told = ftwt("run", file, *paths, *NUMPY, "--json", "--output", "answers.json")
    assert told.status == 0, told.err
    values = json.loads(told.out)
    assert values == read_json("answers.json")
    images, _ = next(iter(Batches(data.embedded(train=False), batch_size=4)))
    with torch.no_grad():
        logits, gates = dynamic(images, return_gates="masks")
    count = dynamic.macs({unit: gate.mask for unit, gate in gates.items()})
    for number, answer in enumerate(values["answers"]):
        expected = logits[number].softmax(0).sort(descending=True)
        names = [data.embedded(train=False).classes[k] for k in expected.indices[:5]]
        assert answer["path"] == paths[number]
        assert [guess["name"] for guess in answer["guesses"]] == names
        found = [guess["probability"] for guess in answer["guesses"]]
        np.testing.assert_allclose(found, expected.values[:5], rtol=1e-3)
        assert answer["executed_macs"] == count.executed[number]
        assert answer["reduction"] == pytest.approx(1 - answer["executed_macs"] / count.dense)
        keep = np.mean([gate.mask[number].float().mean() for gate in gates.values()])
        assert answer["keep"] == pytest.approx(keep)
        assert answer["latency_ms"] > 0

    Path(paths[0]).rename("[red].png")
    text = ftwt("run", file, "[red].png", *NUMPY, "--top", "2").out
    assert " [red].png " in text
    answer = values["answers"][0]
    guesses = [f"{g['name']} {g['probability']:.1%}" for g in answer["guesses"][:2]]
    assert ", ".join(guesses) in text and f"{answer['keep']:.1%}" in text


def test_to_classify_needs_no_torch() -> None:
    done = run_python("-c", "import sys, ftwt.deployment.classify; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from ftwt.cli import main
sys.exit(main(sys.argv[2:]))
"""
HEAVY = "torch accelerate safetensors huggingface_hub jinja2 matplotlib filelock"


def test_a_file_runs_where_little_is_installed(file: str) -> None:
    Image.new("RGB", (32, 32)).save("0.png")
    done = run_python("-c", WITHOUT, HEAVY, "run", file, "0.png", *NUMPY)
    assert done.returncode == 0 and "airplane" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        (HEAVY, ["run", "net", "0.png"]),
        (HEAVY, ["evaluate", "net"]),
        (f"{HEAVY} tyro rich PIL", ["run", "net.ftwt", "0.png"]),
        ("PIL", ["run", "net.ftwt", "0.png"]),
    ],
)
def test_what_is_not_installed_is_told_in_a_line(missing: str, arguments: list[str]) -> None:
    done = run_python("-c", WITHOUT, missing, *arguments)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(f"ftwt {arguments[0]}: ")
    assert "is not installed" in line and "install ftwt with its dependencies" in line


def test_an_engine_says_what_it_is_shown_and_what_it_tells(file: str) -> None:
    engine = runtime.load(file, engine="reference")
    assert engine.classes[:2] == ("airplane", "automobile")
    assert engine.preprocessing is not None
    assert engine.preprocessing["crop"] == 32 and len(engine.preprocessing["mean"]) == 3
    bare = library.compile(tiny.network().eval(), torch.zeros(1, 3, 32, 32), engine="reference")
    assert bare.classes == () and bare.preprocessing is None


# --- Bench --------------------------------------------------------------------------------------


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "REST_S", 0)
    monkeypatch.setattr(turns, "WARMUP_S", 0)


def test_bench_times_a_network_by_name(tiny_home: Path, hurry: None, ftwt: Any) -> None:
    told = ftwt("bench", tiny.NAME, "--keep", "0.5", *BRIEF, "--json", "--output", "bench.json")
    assert told.status == 0, told.err
    values = json.loads(told.out)
    assert values == read_json("bench.json")
    assert values["network"] == tiny.NAME and values["input_shape"] == [3, 32, 32]
    assert values["forced_keep"] == values["keep"] == 0.5 and len(values["images"]) == 3
    assert values["fastest_rival"] == "torch" and values["efficiency"] > 0
    assert values["provenance"]["config"]["model"] == tiny.NAME
    text = ftwt("bench", tiny.NAME, *BRIEF).out
    assert "ftwt dense" in text and "ftwt gated" not in text


def test_bench_shows_a_run_test_images(saved: str, hurry: None, ftwt: Any) -> None:
    told = ftwt("bench", saved, *BRIEF, *tiny.DATA, "--json", "--layout", "--images", "100")
    assert told.status == 0, told.err
    values = json.loads(told.out)
    images, _ = next(iter(Batches(data.embedded(train=False), batch_size=16)))
    network = library.from_pretrained(saved)
    _, stats = library.compile(network, engine="reference").run(images)
    assert values["forced_keep"] is None
    assert values["reduction"] == pytest.approx(stats.reduction.mean())
    assert [image["executed_macs"] for image in values["images"]] == stats.executed_macs[
        :3
    ].tolist()


# --- Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile", "net", "-o", "net.onnx"], "output='net.onnx': a compiled network's name ends"),
        (["compile", "nett", "-o", "net.ftwt"], "no model or folder 'nett'; "),
        (["compile", "cifar10-vgg16-bn", "-o", "a.ftwt"], "names with weights: cifar10-tiny"),
        (["compile", "net", "-o", "text/a.ftwt"], "text/a.ftwt"),
        (["compile", "net", "-o", "a.ftwt", "--layout", "--images", "0", *NUMPY], "images=0: jud"),
        (["compile", "net", "-o", "a.ftwt", "--tune", *NUMPY, *tiny.DATA], "engine='reference'"),
        (["run", "gone.ftwt", "0.png", *NUMPY], "gone.ftwt"),
        (["run", "0.png", "net.ftwt"], "'0.png' is no .ftwt file; `ftwt compile` makes them"),
        (["run", "text.ftwt", "0.png", *NUMPY], "text.ftwt"),
        (["run", "bare.ftwt", "0.png", *NUMPY], "bare.ftwt does not say how images are prepared"),
        (["run", "net.ftwt", *NUMPY], "no images; name at least one file"),
        (["run", "net.ftwt", "gone.png", *NUMPY], "there is no image gone.png"),
        (["run", "net.ftwt", "0.png", "text", *NUMPY], "text is not an image that can be read"),
        (["run", "net.ftwt", "0.png", "--top", "0", *NUMPY], "top=0: ask for one guess"),
        (["run", "nan.ftwt", "0.png", *NUMPY], "the network's answer to 0.png is not finite"),
        (["bench", "cifar10-resnet-20"], "did you mean 'cifar10-resnet20' or "),
        (["bench", tiny.NAME, "--keep", "0", *BRIEF], "keep=0.0: give the share of filters"),
        (["bench", tiny.NAME, "--threads", "0", *BRIEF], "threads=0"),
        (["bench", tiny.NAME, *NUMPY, "--rivals", "onxruntime"], "unknown rival 'onxruntime'; did"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    arguments: list[str], message: str, file: str, ftwt: Any
) -> None:
    assert [*pictures(1)] == ["0.png"]
    for name in ("text", "text.ftwt"):
        Path(name).write_text("neither image nor network")
    dense = tiny.network()
    library.compile(dense, torch.zeros(1, 3, 32, 32), engine="reference").save("bare.ftwt")
    program = runtime.load_program(file)
    last = [name for op in program.operations for name in op.constants.values()][-2:]
    huge = {
        name: np.full_like(program.constants[name], 3e38) for name in last
    }  # their sums are not
    runtime.save(replace(program, constants={**program.constants, **huge}), "nan.ftwt")
    told = ftwt(*arguments)
    assert told.status == 1 and not told.out
    assert told.err.splitlines()[-1].startswith(f"ftwt {arguments[0]}: ")
    assert message in told.err


def test_a_native_engine_that_is_missing_is_told(
    file: str, ftwt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ftwt.runtime._native", None)
    (picture,) = pictures(1)
    for arguments in (
        ["run", file, picture],
        ["compile", tiny.NAME, "-o", "new.ftwt"],
        ["bench", tiny.NAME],
    ):
        told = ftwt(*arguments)
        assert told.status == 1 and not told.out
        assert "the native engine was not built" in told.err and "reference" in told.err
    assert not Path("new.ftwt").exists()


def test_economies_that_were_not_asked_for_load_no_images() -> None:
    assert (
        Economies().options(
            library.DataConfig(data_root="nowhere"), source=resolve("cifar10-resnet20")
        )
        == {}
    )
