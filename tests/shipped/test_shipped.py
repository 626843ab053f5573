"""The networks that come with ftwt: exact by name, and how they get into the package."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_packaging import build

import tiny
from ftwt import cli, data, models, shipped
from ftwt.config import DataConfig
from ftwt.evaluation.evaluate import evaluate
from ftwt.files.json import read_json, write_json
from ftwt.files.provenance import provenance
from ftwt.files.tensors import load_tensors, rounded
from ftwt.networks.pretrained import find_saved, from_pretrained, save_pretrained
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.pruning.dynamic import DynamicModel
from ftwt.records.evaluation import Evaluation
from ftwt.report import read as read_results
from ftwt.runs.run import run
from ftwt.shipped import Name, catalogue
from toys import same

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
ship = importlib.import_module("ship")
model_card = importlib.import_module("model_card")
sys.path.remove(str(ROOT / "tools"))

DENSE, DYNAMIC, STATIC = tiny.NAME, f"{tiny.NAME}-dynamic-30", f"{tiny.NAME}-static-30"
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
each_network = pytest.mark.parametrize("name", shipped.names())


def assert_reproduced(stored: dict[str, Any], found: Evaluation, *, exactly: bool) -> None:
    """Hold an evaluation to what was stored: all of it, or what no other processor may change."""
    told = json.loads(json.dumps(found.to_json()))
    away = 0 if exactly else 2  # images; elsewhere sums are rounded in another order
    assert told["images"] == stored["images"]
    right = [round(each["top1"] * each["images"]) for each in (stored, told)]
    assert abs(right[0] - right[1]) <= away
    for key in ("dense_macs", "executed_macs", "reduction", "published_reduction"):
        assert told[key] == pytest.approx(stored[key], rel=1e-9 if exactly else 1e-3, abs=1e-9)
    for before, after in zip(stored["units"], told["units"], strict=True):
        assert after["name"] == before["name"]
        assert after["keep"] == pytest.approx(before["keep"], abs=1e-9 if exactly else 1e-2)


def exactly_here(result: dict[str, Any]) -> bool:
    """Whether a network was shipped on a machine like this one."""
    made, here = result["shipped"]["provenance"], provenance()
    return all(made[part][key] == here[part][key] for part, key in (
        ("hardware", "cpu"), ("versions", "torch"),
    ))  # fmt: skip


# --- What is in the package ---------------------------------------------------------------------


@each_network
def test_a_network_reproduces_its_figures_by_name(name: str) -> None:
    result = shipped.result(name)
    found = evaluate(from_pretrained(name), load_splits(ship.EMBEDDED).test)
    assert_reproduced(result["shipped"]["embedded"], found, exactly=exactly_here(result))


@pytest.mark.slow
@each_network
def test_a_network_reproduces_its_figures_on_all_test_images(name: str) -> None:
    result = shipped.result(name)
    config = DataConfig.from_json(result["config"]["data"])
    try:
        splits = load_splits(config)
    except ConnectionError:
        pytest.skip(f"no {config.dataset} here")
    for split in ("test", "validation"):
        found = evaluate(from_pretrained(name), getattr(splits, split))
        assert_reproduced(result[split], found, exactly=exactly_here(result))


@each_network
def test_a_network_is_what_its_name_and_its_files_say(name: str) -> None:
    result, folder = shipped.result(name), shipped.folder(name)
    told, read = result["shipped"], Name.read(name)
    assert str(read) == told["name"] == name and read.kind == told["kind"]
    network = from_pretrained(name)
    ship.check_name(name, result, network)
    assert find_saved(name)[1]["model"] == read.model == result["config"]["model"]
    tensors, _ = load_tensors(folder / "model" / "model.safetensors")
    for key, tensor in tensors.items():
        whole = not tensor.is_floating_point()
        matrix = tensor.dim() >= 2
        assert whole or tensor.dtype == (DTYPES[told["precision"]] if matrix else torch.float32), (
            key
        )
    assert told["weights_bytes"] == ship.size_of(folder / "model")
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == model_card.card(result), "python tools/model_card.py"
    assert result["config"]["data"]["data_root"] is None


def test_all_networks_together_stay_small() -> None:
    sizes = {name: ship.size_of(shipped.folder(name)) for name in shipped.names()}
    assert "cifar10-resnet20" in sizes
    assert sum(sizes.values()) <= ship.MOST_BYTES == 25_000_000


@pytest.mark.slow
def test_networks_load_by_name_from_a_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    wheel, files = build(tmp_path, compiler=str(tmp_path / "none"))
    for name in shipped.names():
        inside = ("run.json", "MODEL_CARD.md", "model/config.json", "model/model.safetensors")
        assert {f"ftwt/shipped/networks/{name}/{file}" for file in inside} <= files
    home = tmp_path / "home"
    home.mkdir()
    path = [str(wheel.with_suffix("")), str(Path(torch.__file__).parents[1])]
    shutil.unpack_archive(wheel, path[0], "zip")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hub"),
        "OMP_NUM_THREADS": "1",
    }
    for name in shipped.names():
        arguments = ["-S", "-m", "ftwt", "evaluate", name, *tiny.DATA, "--json"]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        told, stored = json.loads(done.stdout), shipped.result(name)["shipped"]["embedded"]
        assert told["provenance"]["git"] is None  # these are the wheel's own files
        figures = ("top1", "executed_macs", "reduction", "units")
        if exactly_here(shipped.result(name)):
            assert {k: told[k] for k in figures} == {k: stored[k] for k in figures}
    assert list(home.iterdir()) == []


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("cifar10-resnet20", Name("cifar10-resnet20")),
        ("cifar10-mobilenet-v1-x0.5", Name("cifar10-mobilenet-v1-x0.5")),
        ("cifar10-resnet20-dynamic-50", Name("cifar10-resnet20", "dynamic", 50)),
        ("cifar10-vgg16-bn-static-5", Name("cifar10-vgg16-bn", "static", 5)),
        ("cifar10-resnet20-dynamic-05", Name("cifar10-resnet20-dynamic-05")),
        ("cifar10-resnet20-dynamic", Name("cifar10-resnet20-dynamic")),
    ],
)
def test_a_name_is_read(name: str, read: Name) -> None:
    assert Name.read(name) == read and str(read) == name


def test_names_need_no_torch() -> None:
    code = "import sys, ftwt; print(ftwt.shipped.names(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{shipped.names()} False"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look at the Hub fails the test."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))


def test_a_name_means_the_network_in_the_package(tiny_home: Path, offline: None) -> None:
    expected = models.create(tiny.NAME, pretrained=True)
    loaded = from_pretrained(tiny.NAME)
    assert same(loaded, expected) and not loaded.training
    assert same(resolve(tiny.NAME).load(), expected)
    assert same(resolve(tiny.NAME, tiny.NAME).load_dense(), expected)  # --weights NAME
    assert resolve(tiny.NAME).model == find_saved(tiny.NAME)[1]["model"] == tiny.NAME


def test_a_name_hides_no_folder_and_no_folder_hides_a_name(tiny_home: Path, offline: None) -> None:
    other = tiny.network()
    save_pretrained(other, tiny.NAME, name=tiny.NAME)
    for load in (from_pretrained, resolve):
        with pytest.raises(ValueError, match=f"name of a network and a folder.*'./{tiny.NAME}'"):
            load(tiny.NAME)
    for source in (f"./{tiny.NAME}", Path(tiny.NAME), str(Path(tiny.NAME).resolve())):
        assert same(from_pretrained(source), other)
    assert same(resolve(f"./{tiny.NAME}").load(), other)
    assert same(from_pretrained(shipped.folder(tiny.NAME) / "model"), models.create(tiny.NAME, pretrained=True))  # fmt: skip  # noqa: E501
    Path("cifar10-resnet20").mkdir()  # an architecture without weights here
    with pytest.raises(ValueError, match="name of a network and a folder"):
        resolve("cifar10-resnet20")


def test_a_name_that_does_not_exist_gets_the_nearest(tiny_home: Path, offline: None) -> None:
    with pytest.raises(FileNotFoundError, match=f"did you mean '{tiny.NAME}'"):
        from_pretrained("cifar10-tniy")
    for ask in (shipped.folder, shipped.result):
        with pytest.raises(ValueError, match=f"no network .*did you mean '{tiny.NAME}'"):
            ask("cifar10-tniy")
    assert shipped.find("cifar10-tniy") is None and shipped.find(Path(tiny.NAME)) is None


# --- Rounding -----------------------------------------------------------------------------------


def test_only_matrices_are_rounded() -> None:
    tiniest, third = torch.tensor([1e-9]), torch.tensor([[1 / 3]])
    state = {"var": tiniest, "weight": third, "mask": torch.ones(2, 2, dtype=torch.bool)}
    half = rounded(state, torch.float16)
    assert torch.equal(half["var"], tiniest) and tiniest.half() == 0  # what would become of it
    assert half["weight"].dtype == torch.float16 and half["weight"] == third.half()
    assert half["mask"].dtype == torch.bool
    assert rounded(state, torch.float32)["weight"] is not half["weight"]
    with pytest.raises(ValueError, match=r"weight holds 100000, .*65504.*bfloat16"):
        rounded({"weight": torch.full((1, 1), -1e5)}, torch.float16)
    assert rounded({"weight": torch.full((1, 1), torch.inf)}, torch.float16)  # was no number before
    with pytest.raises(ValueError, match="dtype=torch.int8: store weights as one of torch.float16"):
        rounded(state, torch.int8)


def test_a_rounded_network_takes_half_the_room(tmp_path: Path) -> None:
    network = models.create("cifar10-mobilenet-v1-x0.25").eval()
    sizes = []
    for dtype in (None, torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        save_pretrained(network, folder, name="cifar10-mobilenet-v1-x0.25", dtype=dtype)
        sizes.append(ship.size_of(folder))
        loaded = from_pretrained(folder)
        assert all(value.dtype != dtype for value in loaded.state_dict().values())
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(loaded(images), network(images), rtol=0.1, atol=0.05)
    assert max(sizes[1:]) < 0.62 * sizes[0]


# --- The tool -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A dense run, a dynamic one and its twin, and a package without networks but the tiny one."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(home, patch)
        patch.chdir(home)
        run(tiny.DENSE, output="dense")
        config = replace(tiny.CONFIG, train=replace(tiny.CONFIG.train, target_reduction=0.3))
        run(config, output="dynamic")
        run(replace(tiny.CONFIG, twin_of="dynamic"), output="twin")
        patch.setattr(ship, "MOST_LOST", 0.01)  # 1,400 images: one is more than 0.05 points
        patch.setattr(ship, "MOST_MOVED", 0.01)
        for source, name, twin in (
            ("dense", DENSE, None),
            ("dynamic", DYNAMIC, Path("twin")),
            ("twin", STATIC, None),
        ):
            ship.ship(Path(source), name, twin=twin)
        yield SimpleNamespace(path=home, networks=catalogue.FOLDER)


@pytest.fixture
def there(home: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of these runs as working folder, and a package of its own with their networks."""
    tiny.register(home.path, monkeypatch)
    shutil.copytree(home.networks, tmp_path / "networks")
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path / "networks")
    monkeypatch.chdir(home.path)
    return tmp_path / "networks"


@pytest.mark.parametrize("name", [DENSE, DYNAMIC, STATIC])
def test_what_was_shipped_is_there_by_name(name: str, there: Path, offline: None) -> None:
    assert shipped.names() == [DENSE, DYNAMIC, STATIC]
    result, network = shipped.result(name), from_pretrained(name)
    kind = Name.read(name).kind
    assert isinstance(network, DynamicModel) == (kind != "dense")
    splits = load_splits(tiny.CONFIG.data)
    for split in ("test", "validation"):
        found = evaluate(network, getattr(splits, split))
        assert_reproduced(result[split], found, exactly=True)
    before = read_json(
        {"dense": "dense", "dynamic": "dynamic", "static": "twin"}[kind] + "/run.json"
    )
    assert result["training"] == before["training"] and result["provenance"] == before["provenance"]
    for split in ("test", "validation"):
        assert result["shipped"]["trained"][split]["top1"] == before[split]["top1"]
    assert result["shipped"]["kind"] == kind and result["shipped"]["precision"] == "f16"
    assert sorted(os.listdir(there / name)) == ["MODEL_CARD.md", "model", "run.json"]
    assert resolve(name).model == tiny.NAME


def test_a_card_tells_what_the_result_file_says(there: Path) -> None:
    result = shipped.result(DYNAMIC)
    card = (there / DYNAMIC / "MODEL_CARD.md").read_text()
    test, twin = result["test"], result["shipped"]["twin"]["test"]
    assert twin["top1"] == read_json("twin/run.json")["test"]["top1"]
    for text in (
        "license: apache-2.0\n",
        f"      value: {test['top1']:.4f}\n",
        f'ftwt.from_pretrained("{DYNAMIC}")',
        f"| its static twin | {twin['top1']:.2%} | {twin['reduction']:.2%} |",
        f"| dense, where it began | {shipped.result(DENSE)['test']['top1']:.2%} | 0.00% |",
        "| reduction asked | 30.00% | 30.00% |",
        f"| reduction predicted before training | {result['predicted_reduction']:.2%} |",
        f"| command | `{result['provenance']['command']}` |",
        "| seed | 3 |",
        result["provenance"]["git"]["commit"],
    ):
        assert text in card
    changed = result | {"test": test | {"top1": 0.1234}}
    assert "12.34%" in model_card.card(changed) and "12.34%" not in card
    alone = result | {"shipped": result["shipped"] | {"twin": None}}
    assert "No static twin was trained beside" in model_card.card(alone)
    static = (there / STATIC / "MODEL_CARD.md").read_text()
    assert "static twin of a dynamic network" in static and "its worth" not in static


def test_verbs_take_pruned_networks_by_name(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: None
) -> None:
    def told(*arguments: str) -> Any:
        assert cli.main([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    result, numpy = shipped.result(DYNAMIC), ("--engine", "reference")
    found = told("evaluate", DYNAMIC, *tiny.DATA)
    assert found["top1"] == result["test"]["top1"]
    assert found["executed_macs"] == result["test"]["executed_macs"]
    assert told("estimate", DYNAMIC, *tiny.DATA)["predicted_reduction"] > 0
    compiled = str(tmp_path / "net.ftwt")
    assert told("compile", DYNAMIC, "-o", compiled, *numpy)["gates"] == 3
    picture = str(tmp_path / "0.png")
    data_image(picture)
    by_file, by_name = (told("run", each, picture, *numpy) for each in (compiled, DYNAMIC))
    for answers in (by_file, by_name):
        answers["answers"][0].pop("latency_ms")
    assert by_file["answers"] == by_name["answers"]
    assert by_name["engine"].startswith(f"{DYNAMIC}: ")
    found_by_report = read_results([DYNAMIC, STATIC])
    assert [each.name for each in found_by_report.runs] == [DYNAMIC, STATIC]
    assert found_by_report.runs[0].test.top1 == found["top1"]
    baseline = found_by_report.dense(found_by_report.runs[0])
    assert baseline is not None and baseline.path == there / DENSE / "run.json"
    with pytest.raises(ValueError, match=f"does not exist; did you mean '{DYNAMIC}'"):
        read_results(f"{tiny.NAME}-dynamic-3")
    listed = told("models")
    assert listed[DYNAMIC]["top1"] == found["top1"] and listed[DYNAMIC]["kind"] == "dynamic"
    assert listed[STATIC]["reduction"] == shipped.result(STATIC)["test"]["reduction"]
    assert listed[DENSE]["pretrained"] and not listed["cifar10-resnet20"]["pretrained"]
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.split()[0] == DYNAMIC)
    assert f"top-1 {found['top1']:.2%}" in line and f"{found['reduction']:.2%} fewer MACs" in line
    assert "pip install 'ftwt[vision]'" in lines[-1]


def data_image(path: str) -> None:
    """Write a test image to a file."""
    from PIL import Image

    pixels = data.embedded(train=False).images[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def test_a_pruned_network_is_no_architecture(there: Path) -> None:
    assert DYNAMIC not in models.names(pretrained=True)
    with pytest.raises(ValueError, match=rf"pruned network.*from_pretrained\('{DYNAMIC}'\)"):
        models.create(DYNAMIC)
    with pytest.raises(ValueError, match="pruned network; name the run of a dense one"):
        resolve(tiny.NAME, DYNAMIC).load_dense()
    with pytest.raises(ValueError, match=f"did you mean '{DYNAMIC}'"):
        resolve(f"{tiny.NAME}-dynamic-3").load()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("run_folder", "name", "twin", "message"),
    [
        ("nowhere", DENSE, None, "nowhere holds no run.json and model/"),
        ("dynamic", DENSE, None, "whose network is dynamic: cifar10-tiny-dynamic-PERCENT"),
        ("dynamic", STATIC, None, "whose network is dynamic"),
        ("twin", DYNAMIC, None, "whose network is static: cifar10-tiny-static-PERCENT"),
        ("dense", DYNAMIC, None, "whose network is dense: cifar10-tiny$"),
        ("dynamic", "cifar10-other-dynamic-30", None, "is no name for this run"),
        ("dynamic", f"{tiny.NAME}-dynamic-40", None, "asked for 30.0%"),
        ("twin", f"{tiny.NAME}-static-90", None, r"the run saves \d+.\d%; .* 3% off"),
        ("dynamic", DYNAMIC, "dense", "dense is the static twin of None, not of dynamic"),
        ("dense", DENSE, "twin", "twin is the static twin of dynamic, not of dense"),
    ],
)
def test_what_does_not_fit_is_refused(
    run_folder: str, name: str, twin: str | None, message: str, there: Path
) -> None:
    before = snapshot(there)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ship.ship(Path(run_folder), name, twin=twin and Path(twin))
    assert snapshot(there) == before


def test_a_result_of_another_network_is_refused(there: Path, tmp_path: Path) -> None:
    shutil.copytree("dense", tmp_path / "dense")
    record = read_json("dense/run.json")
    record["test"]["top1"] += 0.01
    write_json(tmp_path / "dense" / "run.json", record)
    with pytest.raises(ValueError, match="are not of the same run"):
        ship.ship(tmp_path / "dense", DENSE)


def test_what_is_too_large_is_refused_and_nothing_changes(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(there)
    own, others = (ship.size_of(there / name) for name in (DENSE, DYNAMIC))
    monkeypatch.setattr(ship, "MOST_BYTES", own + others)
    monkeypatch.setattr(sys, "argv", ["ship.py", "dense", DENSE])
    assert ship.main() == 1
    said = capsys.readouterr().err
    assert f"ship.py: {DENSE} takes 0.0 MB" in said and "remove one, or ship less" in said
    assert snapshot(there) == before and len(list(there.iterdir())) == 3


@pytest.mark.parametrize(("lost", "moved", "message"), [
    (0.0004, 0.0009, None),
    (0.0006, 0.0, r"f16 costs 0.060 points of top-1 over 15,000 images.*--bf16 or --fp32"),
    (0.0, 0.002, r"moves the reduction on validation images by \+0.20 points.*--bf16 or --fp32"),
    (0.0, -0.002, r"by -0.20 points"),
    (-0.01, 0.0, None),
])  # fmt: skip
def test_rounding_may_cost_so_much(
    lost: float, moved: float, message: str | None, there: Path
) -> None:
    found = evaluate(from_pretrained(DYNAMIC), load_splits(tiny.CONFIG.data).validation)
    exact = {
        "validation": replace(found, images=5000, top1=0.9),
        "test": replace(found, images=10000, top1=0.9),
    }
    kept = {
        split: replace(e, top1=e.top1 - lost, reduction=e.reduction + moved)
        for split, e in exact.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship, "MOST_LOST", 0.0005)
        patch.setattr(ship, "MOST_MOVED", 0.001)
        if message is None:
            ship.check_rounding("f16", exact, kept)
        else:
            with pytest.raises(ValueError, match=message):
                ship.check_rounding("f16", exact, kept)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_precisions_are_a_flag(
    precision: str, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "MOST_LOST", 1.0)
    monkeypatch.setattr(sys, "argv", ["ship.py", "dense", DENSE, f"--{precision}"])
    assert ship.main() == 0
    tensors, _ = load_tensors(there / DENSE / "model" / "model.safetensors")
    assert tensors["0.weight"].dtype == DTYPES[precision]
    result = shipped.result(DENSE)
    assert result["shipped"]["precision"] == precision
    if precision == "fp32":
        assert same(from_pretrained(DENSE), from_pretrained("dense/model"))


def test_a_stale_card_is_found_and_written_again(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = there / DYNAMIC / "MODEL_CARD.md"
    true = path.read_text()
    path.write_text(true.replace("seed | 3", "seed | 4"))
    for arguments, status, said in (
        (["--check"], 1, f"stale: {DYNAMIC}"),
        ([], 0, f"written: {DYNAMIC}"),
        (["--check"], 0, "up to date"),
    ):
        monkeypatch.setattr(sys, "argv", ["model_card.py", *arguments])
        assert model_card.main() == status
        assert capsys.readouterr().out.strip() == said
    assert path.read_text() == true
