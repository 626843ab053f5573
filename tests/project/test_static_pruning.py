"""Torch-Pruning beside a dynamic run: as many MACs, the same training, a file that says so."""

import json
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning", reason='torch-pruning is not installed: ".[static]"')
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import static_pruning  # noqa: E402
import structured  # noqa: E402
from static_pruning import compare, read_run, static_config  # noqa: E402
from structured import Task, prune_to, replay  # noqa: E402

import tiny  # noqa: E402
from ftwt import count_macs, models  # noqa: E402
from ftwt.config import GATES_ONLY, RunConfig, TrainConfig  # noqa: E402
from ftwt.evaluation.evaluate import evaluate  # noqa: E402
from ftwt.files.json import read_json, write_json  # noqa: E402
from ftwt.models import vgg as vgg_module  # noqa: E402
from ftwt.models.mobilenet import mobilenet_v1, mobilenet_v2  # noqa: E402
from ftwt.models.resnet import resnet  # noqa: E402
from ftwt.networks.splits import load_splits  # noqa: E402
from ftwt.runs.run import run  # noqa: E402
from ftwt.training.learner import Learner  # noqa: E402
from toys import same  # noqa: E402

IMAGE = torch.zeros(1, 3, 32, 32)
NETWORKS = {
    "resnet8": partial(resnet, 8),
    "vgg11": partial(vgg_module.vgg, 11),
    "mobilenet-v1": partial(mobilenet_v1, width=0.25),
    "mobilenet-v2": partial(mobilenet_v2, width=0.25),
}
FEW = [*list(NETWORKS)[:3], pytest.param("mobilenet-v2", marks=pytest.mark.slow)]


def task(network: nn.Module, **options: Any) -> Task:
    return Task(network.eval(), IMAGE, **options)


def saved(network: nn.Module, pruned: nn.Module) -> float:
    """Counted layer by layer from the traced networks, not by running them."""
    return 1 - count_macs(pruned, IMAGE).total / count_macs(network, IMAGE).total


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds a finished dynamic run, which was taught by the dense network."""
    folder = tmp_path_factory.mktemp("home")
    train = replace(
        tiny.CONFIG.train, epochs=1, target_reduction=0.3, distillation=0.5, label_smoothing=0.1
    )
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(folder, patch)
        patch.chdir(folder)
        run(replace(tiny.CONFIG, allocate=True, train=train), output="runs/dynamic")
        yield folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def compared(home: Path) -> dict[str, Any]:
    """The dynamic run's rival at equal MACs, as its file tells of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        compare("runs/dynamic")
        return read_json("results/static/dynamic-magnitude-seed3.json")


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps, and a narrow VGG: the tests are of what is done, not of how well."""
    monkeypatch.setattr(structured, "STEPS", 25)
    monkeypatch.setattr(vgg_module, "_WIDTHS", (8, 16, 32, 32, 32))


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", FEW)
def test_a_network_of_any_kind_meets_a_reduction(name: str) -> None:
    network = NETWORKS[name]()
    given = task(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pruned = replay(given, prune_to(given, 0.45, tolerance=0.01))
    assert saved(network, pruned) == pytest.approx(0.45, abs=0.01)
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    depthwise = [m for m in pruned.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(m.groups == m.in_channels == m.out_channels for m in depthwise)
    assert bool(depthwise) == name.startswith("mobilenet")


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", FEW)
def test_no_layer_loses_more_than_the_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one loud filter, a layer's others are the least of the network: not all may go."""
    network = NETWORKS[name]()
    for _, layer in convolutions(network)[-2:]:
        layer.weight.data[0] *= 100
    given = task(network)

    def least() -> tuple[float, int]:
        pruned = replay(given, prune_to(given, 0.5, tolerance=0.02))
        both = zip(convolutions(network), convolutions(pruned), strict=True)
        kept = [(left.out_channels, whole.out_channels) for (_, whole), (_, left) in both]
        return min(left / whole for left, whole in kept), min(kept)[0]

    assert least()[0] >= 1 - structured.LIMIT
    monkeypatch.setattr(structured, "LIMIT", 1.0)
    assert least()[1] == 1


def test_what_stays_is_what_the_dense_network_computes_without_the_rest() -> None:
    """Channels taken out of a residual network, shortcuts included, against the same set to 0."""
    network = resnet(8).eval()
    given = task(network)
    history = prune_to(given, 0.5, tolerance=0.01)
    pruned = replay(given, history)
    gone: dict[str, list[int]] = {}
    left = {name: list(range(m.out_channels)) for name, m in convolutions(network)}
    for layer, _, which in history:
        gone.setdefault(layer, []).extend(left[layer][i] for i in which)
        left[layer] = [c for i, c in enumerate(left[layer]) if i not in which]
    # A stage's stream is cut at all the layers that write to it.
    streams = [("conv", "stage1.0.conv2"), ("stage2.0.conv2",), ("stage3.0.conv2",)]
    for stream in streams:
        cut = sorted(c for layer in stream for c in gone.pop(layer, []))
        gone |= dict.fromkeys(stream, cut)
    silent = resnet(8).eval()
    silent.load_state_dict(network.state_dict())
    for layer, cut in gone.items():
        norm = silent.get_submodule(layer.replace("conv", "bn"))
        norm.weight.data[cut] = 0.0
        norm.bias.data[cut] = 0.0
    silence_shortcuts(silent, gone)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), silent(images), atol=1e-5, rtol=1e-4)
    assert sum(map(len, gone.values())) > 20


def convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]


def silence_shortcuts(network: nn.Module, gone: dict[str, list[int]]) -> None:
    """What a shortcut brings to a channel that its stage lost is lost, too."""

    def silence(cut: list[int], module: nn.Module, given: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, cut] = 0
        return out

    for stage in (2, 3):
        shortcut = network.get_submodule(f"stage{stage}.0.shortcut")
        shortcut.register_forward_hook(partial(silence, gone[f"stage{stage}.0.conv2"]))


def test_taylor_asks_the_training_images() -> None:
    network = tiny.network()
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    found = [
        prune_to(task(network, importance="taylor", batches=[(x, labels)]), 0.4, tolerance=0.02)
        for x in (images, images, images * torch.tensor([3.0, 0, 0])[:, None, None])
    ]
    assert found[0] == found[1] != found[2]
    assert found[0] != prune_to(task(network), 0.4, tolerance=0.02)
    assert saved(network, replay(task(network), found[0])) == pytest.approx(0.4, abs=0.02)


def test_the_nearest_is_taken_where_single_channels_are_too_much() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10))
    pruned = replay(task(network), prune_to(task(network), 0.4))
    assert saved(network, pruned) in (0.25, 0.5)


def test_what_cannot_be_reached_is_refused() -> None:
    message = "99.9% is out of reach: 87.5% is the most.*every layer keeps 20% of.*saves less"
    with pytest.raises(ValueError, match=message):
        prune_to(task(tiny.network()), 0.999)
    with pytest.raises(ValueError, match=r"reduction=-0.1 is outside \(0, 1\)"):
        prune_to(task(tiny.network()), -0.1)
    with pytest.raises(ValueError, match="importance='weight': choose one of 'magnitude', 'tay"):
        task(tiny.network(), importance="weight")
    with pytest.raises(ValueError, match="ReLU has no convolution to prune"):
        prune_to(task(nn.ReLU()), 0.5)


def test_a_comparison_is_a_run_that_costs_what_the_dynamic_one_does(
    home: Path, compared: dict[str, Any]
) -> None:
    dynamic = read_json(home / "runs/dynamic/run.json")
    assert dynamic.keys() <= compared.keys()
    assert compared["kind"] == "static" and compared["importance"] == "magnitude"
    assert compared["library"]["name"] == "torch-pruning" and compared["library"]["version"]
    asked = dynamic["validation"]["reduction"]
    matched = compared["matched"]
    assert matched == {"to": "dynamic", "on": "macs", "asked": asked, "got": matched["got"]}
    assert matched["got"] == pytest.approx(asked, abs=0.015)  # 40 channels: coarse
    assert compared["predicted_reduction"] is None and compared["asked_reduction"] is None
    for split in ("test", "validation"):
        assert compared[split]["reduction"] == matched["got"]
        assert compared[split]["dense_macs"] == dynamic[split]["dense_macs"]
        assert compared[split]["reduction_std"] == 0
    assert compared["dynamic"]["top1"] == dynamic["test"]["top1"]
    assert compared["training"]["evaluation"] == compared["validation"]
    assert compared["provenance"]["command"] and compared["provenance"]["seed"] == 3
    assert "latency" not in compared


def test_its_network_is_read_back(here: Path, compared: dict[str, Any]) -> None:
    network = static_pruning.load_pruned("runs/static/dynamic-magnitude-seed3")
    config = RunConfig.from_json(compared["config"])
    again = evaluate(network, load_splits(config.data).test)
    assert again.top1 == compared["test"]["top1"]
    assert again.executed_macs == compared["test"]["executed_macs"]
    dense = models.create(tiny.NAME)
    assert saved(dense, network) == pytest.approx(compared["matched"]["got"], abs=1e-12)


def test_it_is_trained_as_the_dynamic_run_was(home: Path, compared: dict[str, Any]) -> None:
    ours = RunConfig.from_json(read_json(home / "runs/dynamic/run.json")["config"])
    theirs = RunConfig.from_json(compared["config"])
    assert replace(ours, prune=None, allocate=False, train=theirs.train) == theirs
    default = asdict(TrainConfig())
    for name, value in asdict(theirs.train).items():
        gates_only = name in GATES_ONLY
        assert value == (default[name] if gates_only else getattr(ours.train, name)), name
    assert theirs.train.distillation == 0.5 and theirs.train.target_reduction is None
    assert len(compared["training"]["history"]) == ours.train.epochs
    other = static_config(ours, seed=7, epochs=9).train
    assert (other.seed, other.epochs, other.lr) == (7, 9, ours.train.lr)


def test_the_teacher_is_the_dense_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[nn.Module | None] = []
    begin = Learner.__init__

    def listen(self: Learner, *args: Any) -> None:
        taught.append(args[4])
        begin(self, *args)

    monkeypatch.setattr(Learner, "__init__", listen)
    compare("runs/dynamic/run.json", output="taught.json")
    [teacher] = taught
    assert teacher is not None and same(teacher, models.create(tiny.NAME, pretrained=True))


def test_what_was_interrupted_goes_on_to_the_same_result(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = compare("runs/dynamic", importance="taylor", output="whole.json")
    command = ["runs/dynamic", "--importance", "taylor", "--output", "parts.json"]
    learn = Learner.learn

    def learn_and_stop(self: Learner, now: int, *batch: Any) -> None:
        learn(self, now, *batch)
        if now == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn_and_stop)
        assert static_pruning.main(command) == 130
    assert "after step 5 of 10: saved in runs/static/parts" in capsys.readouterr().err
    assert not Path("parts.json").exists()
    assert static_pruning.main(command) == 2
    assert "parts already holds a run; go on with it (--resume)" in capsys.readouterr().err
    assert static_pruning.main([*command, "--resume", "--epochs", "2"]) == 2
    assert "another run: epochs was 1, is 2; resume with its own" in capsys.readouterr().err
    monkeypatch.setattr(static_pruning, "prune_to", None)  # what to take out was noted
    assert static_pruning.main([*command, "--resume"]) == 0
    assert "top-1" in capsys.readouterr().out
    parts = read_json("parts.json")
    for name in ("test", "validation", "matched", "config"):
        assert parts[name] == json.loads(json.dumps(whole[name]))


@pytest.mark.slow
def test_latency_is_matched_by_the_clock(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts MACs."""
    dynamic = read_json("runs/dynamic/run.json")["validation"]

    def run_by_macs(self: Any, pruned: nn.Module, *, rounds: int) -> dict[str, Any]:
        ratio = count_macs(pruned, IMAGE).total / dynamic["executed_macs"]
        return measure(self, pruned, rounds=1) | {"ratio": ratio}

    measure = static_pruning.Race.measure
    monkeypatch.setattr(static_pruning.Race, "measure", run_by_macs)
    told = compare("runs/dynamic", match="latency", engine="reference", rounds=2, epochs=1)
    written = read_json("results/static/dynamic-magnitude-latency-seed3.json")
    assert written == json.loads(json.dumps(told))
    assert told["matched"]["on"] == "latency" and told["matched"]["asked"] == 1.0
    assert told["matched"]["got"] == told["latency"]["ratio"] == pytest.approx(1, abs=0.1)
    for key in ("dynamic_ms", "static_ms", "ratio_low", "ratio_high"):
        assert told["latency"][key] > 0
    assert told["test"]["reduction"] == pytest.approx(dynamic["reduction"], abs=0.07)


def test_a_latency_out_of_reach_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio, message in ((0.9, "as fast as the dynamic one"), (1.5, "1.50 times as long")):
        told = {"ratio": ratio}
        monkeypatch.setattr(static_pruning.Race, "measure", lambda *_, told=told, **__: told)
        with pytest.raises(ValueError, match=message):
            compare("runs/dynamic", match="latency", engine="reference", output=f"{ratio}.json")


def test_runs_that_cannot_be_matched_are_refused(here: Path) -> None:
    whole = read_json("runs/dynamic/run.json")
    whole["config"] |= {"allocate": False}  # which needs gates and a budget
    Path("begun").mkdir()
    Path("begun/metrics.jsonl").touch()
    for changed, message in (
        ({"prune": None, "train": asdict(TrainConfig())}, "other.json is a run without gates"),
        (
            {"twin_of": "runs/dynamic", "train": asdict(TrainConfig())},
            "is a static twin; give the run that it is of, runs/dynamic",
        ),
        (
            {"weights": None, "train": asdict(TrainConfig())},
            "began with random weights: there is no network to prune",
        ),
    ):
        write_json("other.json", whole | {"config": whole["config"] | changed})
        with pytest.raises(ValueError, match=message):
            read_run("other.json")
    with pytest.raises(ValueError, match="begun holds no run.json: the run is not finished"):
        read_run("begun")
    with pytest.raises(ValueError, match="is not the result of a run"):
        write_json("list.json", [])
        read_run("list.json")
    assert static_pruning.main(["nowhere"]) == 2
    with pytest.raises(ValueError, match="nothing to resume; leave out --resume"):
        compare("runs/dynamic", output="new.json", resume=True)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    for name in ("structured", "race"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit, match=r"torch-pruning is not installed.*\.\[static\]"):
        runpy.run_path(str(BENCHMARKS / "static_pruning.py"))


def test_the_table_sets_it_beside_the_dynamic_run_and_the_twin(
    tmp_path: Path, compared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "tools"))
    from tables import comparisons, files

    for module in (comparisons, files):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    static = comparisons.static
    assert static() == "No results yet: `python benchmarks/static_pruning.py runs/NAME`.\n"
    for seed, top1 in ((0, 0.5), (1, 0.6)):
        told = compared | {"test": compared["test"] | {"top1": top1}}
        for on in ("macs", "latency"):
            told["matched"] = compared["matched"] | {"on": on}
            told |= {"latency": {"ratio": 0.98}} if on == "latency" else {}
            write_json(tmp_path / "results" / "static" / f"x-{on}-seed{seed}.json", told)
    twin = {"config": compared["config"] | {"twin_of": "runs/dynamic"}, "test": compared["test"]}
    write_json(tmp_path / "results" / "tiny" / "twin-seed0.json", twin)
    rows = [line.strip("| ").split(" | ") for line in static().splitlines() if "|" in line][2:]
    saved = f"{compared['test']['reduction']:.2%}"
    pruned = ["55.00% ± 7.07", f"{saved} ± 0.00"]
    assert [row[0] for row in rows] == 4 * ["tiny"]
    assert [row[1:3] for row in rows[:2]] == [["dynamic", "dynamic"], ["dynamic", "static twin"]]
    assert rows[0][-2:] == rows[1][-2:] == ["1", "1"]  # epochs, seeds
    assert rows[0][3] == f"{compared['dynamic']['top1']:.2%}" and rows[1][4] == saved
    assert rows[2][2:] == ["Torch-Pruning, magnitude, equal MACs", *pruned, "", "1", "2"]
    assert rows[3][2:] == ["Torch-Pruning, magnitude, equal latency", *pruned, "0.98", "1", "2"]
