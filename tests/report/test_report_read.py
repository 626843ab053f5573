"""Result files are found, told apart and checked; what is wrong is told by file and field."""

import copy
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import result_files as files
import tiny
import toys
from ftwt import TrainConfig, bench, config, estimate, evaluate, record, shipped, train
from ftwt.data import Batches
from ftwt.files.json import write_json
from ftwt.records.corruptions import Corrupted, Figures, NetworkRobustness
from ftwt.report import read
from ftwt.report.palette import DYNAMIC, TWIN
from ftwt.report.reading.groups import USUAL, twin_of
from ftwt.report.rows import accuracy_rows, summary_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three seeds of two settings, their twins, a dense network, a rival, and files about them."""
    monkeypatch.chdir(tmp_path)
    folder = Path("study")
    files.write(folder / "base" / "run.json", files.run(0.94, prune=None))
    for seed in range(3):
        name = f"r90-s{seed}"
        command = f"ftwt train recipe --output runs/{name}"
        dynamic = files.run(0.93 + seed / 1000, 0.3, seed=seed, command=command)
        twin = files.run(0.931, 0.31, seed=seed, twin_of=f"runs/{name}")
        files.write(folder / name / "run.json", dynamic)
        files.write(folder / f"{name}-twin" / "run.json", twin)
        files.write(folder / f"tp-{seed}.json", files.static(0.92, 0.3 + seed / 100, seed=seed))
    joint = files.PRUNE | {"mode": "joint"}
    files.write(folder / "joint" / "run.json", files.run(0.92, 0.35, prune=joint))
    files.write(folder / "estimate.json", files.estimate())
    files.write(folder / "bench.json", files.benchmark())
    files.write(folder / "corrupted.json", files.corruptions("runs/r90-s0", 0.9))
    return folder


def test_each_kind_of_file_is_found_and_seeds_are_put_together(study):
    found = read(study)
    told = [(g.method.label, g.label, [run.name for run in g.runs]) for g in found.groups]
    assert told == [
        ("dense", "", ["base"]),
        ("dynamic", "r = 0.9", ["r90-s0", "r90-s1", "r90-s2"]),
        ("dynamic, joint", "r = 0.9", ["joint"]),
        ("static twin", "r = 0.9", ["r90-s0-twin", "r90-s1-twin", "r90-s2-twin"]),
        ("Torch-Pruning (group magnitude)", "MACs of r90", ["tp-0", "tp-1", "tp-2"]),
    ]
    assert found.networks == ("cifar10-resnet56",)
    assert len(found.benchmarks) == len(found.curves) == len(found.corruptions) == 1
    assert found.left_out == ()
    assert found.run("elsewhere/r90-s1").name == "r90-s1"
    assert found.run("r91") is None and found.run(None) is None
    run = found.run("r90-s2")
    assert (run.seed, run.test.top1, run.predicted, run.seconds) == (2, 0.932, 0.28, 3600)
    assert run.test.units[2].sometimes == 16 - 4 - 1
    assert found.curves[0].name == "cifar10-resnet56"
    assert found.corruptions[0].result.corrupted[4].severity == 5


def test_a_method_has_one_colour_and_no_two_have_the_same(study):
    found = read(study)
    methods = {group.method.label: group.method for group in found.groups}
    assert methods["dynamic"].colour == DYNAMIC[0]
    assert methods["static twin"].colour == TWIN
    assert len({method.colour for method in methods.values()}) == len(methods)
    for run in found.runs:
        assert found.method(run) == methods[found.method(run).label]
    alone = read(study / "joint")
    assert alone.method(alone.runs[0]) == methods["dynamic, joint"]


def test_fixed_masks_are_told_apart_by_who_looks_again(tmp_path):
    for second in ("none", "dense", "shared"):
        made = files.run(0.9, 0.3, prune=None, asked=0.3)
        made["config"]["fixed"] = {"mask_reduction": 0.4, "second_look": second}
        files.write(tmp_path / second / "run.json", made)
    found = read(tmp_path)
    told = {(group.method.label, group.label) for group in found.groups}
    assert told == {
        ("fixed mask", "30% asked"),
        ("fixed mask, the dense network looks again", "30% asked"),
        ("fixed mask, weights for both passes", "30% asked"),
    }
    assert {run.kind for run in found.runs} == {"fixed"} and not found.missing


def test_usual_gates_are_the_default_ones():
    default = asdict(config.PruneConfig())
    assert {name: default[name] for name in USUAL} == USUAL


def test_settings_that_differ_are_told_where_the_same_is_saved(study):
    longer = files.run(0.95, 0.3)
    longer["config"]["train"]["epochs"] = 9
    files.write(study / "long" / "run.json", longer)
    labels = sorted(g.label for g in read(study).groups if g.method.label == "dynamic")
    assert labels == ["r = 0.9, epochs 2", "r = 0.9, epochs 9"]


def test_the_dense_network_is_found_where_the_run_began(study):
    found = read(study)
    assert found.dense(found.run("r90-s0")).path == study / "base" / "run.json"
    (study / "base" / "run.json").unlink()
    assert read(study).dense(found.run("r90-s0")) is None
    told = files.provenance(config={"model": "runs/base"})
    files.write(study / "dense.json", files.evaluation(0.95, 0.0, 0, provenance=told))
    found = read(study)
    assert found.dense(found.run("r90-s0")).result.top1 == 0.95
    shipped = files.run(model="cifar10-resnet20")
    shipped["config"]["weights"] = "pretrained"
    found = read(files.write(study.parent / "other" / "run.json", shipped))
    assert found.dense(found.runs[0]).result.top1 == pytest.approx(0.9119)


def test_a_dense_network_of_the_same_images_is_preferred_and_others_are_told(study):
    for name, images in (("a.json", 10_000), ("b.json", 1000)):
        told = files.provenance(config={"model": "runs/base", "data": {"dataset": "cifar10"}})
        values = files.evaluation(0.95, 0.0, 0, images=images, provenance=told)
        files.write(study / name, values)
    (study / "base" / "run.json").unlink()
    found = read(study)
    assert found.dense(found.run("r90-s0")).path == study / "b.json"
    files.write(study / "b.json", values | {"images": 1001})
    found = read(study)
    assert not found.dense(found.run("r90-s0")).same_images
    named = "what the dense network achieved on the same images"
    assert "r90-s0" in next(gap.of for gap in found.missing if gap.what == named)
    assert accuracy_rows(found, "cifar10-resnet56")[0]["method"] != "dense"
    assert all(row["drop"] is None for row in summary_rows(found))


def test_as_many_images_of_another_dataset_are_others(tmp_path):
    def of(dataset, split="test"):
        config = {"model": "toy", "split": split, "data": {"dataset": dataset}}
        values = files.evaluation(provenance=files.provenance(config=config))
        path = files.write(tmp_path / f"{dataset}-{split}.json", values)
        return read(path).evaluations[0].result

    one = of("cifar10")
    assert one.same_images(of("cifar10")) and not one.same_images(of("cifar10-embedded"))
    assert not one.same_images(of("cifar10", "validation"))


def test_the_shipped_twin_goes_with_the_shipped_network():
    alone = read("cifar10-resnet20-dynamic-40")
    gaps = {gap.what: gap.command for gap in alone.missing}
    command = gaps["the static twin, which shows what the gates are worth"]
    assert command == "ftwt report cifar10-resnet20-dynamic-40 cifar10-resnet20-static-40"
    assert not any(str(shipped.catalogue.FOLDER) in gap.command for gap in alone.missing)
    both = read(command.split()[2:])
    dynamic = both.run("cifar10-resnet20-dynamic-40")
    assert twin_of(dynamic, both.runs) is both.run("cifar10-resnet20-static-40")
    assert not any("twin" in gap.what for gap in both.missing)


def test_of_two_runs_that_were_made_in_one_folder_the_twin_is_of_its_seed(tmp_path):
    for seed in (0, 1):
        made = f"ftwt train x --seed {seed} --output runs/half"
        values = files.run(0.9 + 0.01 * seed, seed=seed, command=made)
        files.write(tmp_path / f"kept-{seed}.json", values)
        files.write(tmp_path / f"t{seed}.json", files.run(0.8, seed=seed, twin_of="runs/half"))
    found = read(tmp_path)
    for seed in (0, 1):
        assert twin_of(found.run(f"kept-{seed}"), found.runs).name == f"t{seed}"


def test_a_training_in_python_is_finished(tmp_path):
    batches = Batches(toys.images(20), batch_size=20)
    config = TrainConfig(epochs=1, predictor_warmup_steps=0)
    train(toys.Toy(dropout=0.0), batches, batches, config, output=tmp_path / "mine", progress=False)
    found = read(tmp_path)
    assert [(log.name, log.finished) for log in found.logs] == [("mine", True)]
    gaps = {gap.what: gap.of for gap in found.missing}
    assert "the result of a training that is not finished" not in gaps
    assert gaps["what a network that was trained in Python achieves on test images"] == ("mine",)


def test_a_copy_of_a_run_counts_once_and_lends_its_name(study):
    (study / "kept").mkdir()
    text = (study / "r90-s0" / "run.json").read_text()
    (study / "kept" / "r90-seed0.json").write_text(text)
    found = read(study)
    assert len([run for run in found.runs if run.kind == "dynamic"]) == 4
    assert found.left_out == (
        (study / "kept" / "r90-seed0.json", f"a copy of {study / 'r90-s0' / 'run.json'}"),
    )
    assert found.run("r90-seed0") is found.run("r90-s0")


def test_what_is_missing_is_told_with_the_command_that_makes_it(study):
    told = {gap.what: gap for gap in read(study).missing}
    assert all(gap.command.startswith("ftwt ") for gap in told.values())
    recordings = told["images, their routes, heatmaps, and the work for each class"]
    assert recordings.of == ("joint", "r90-s0", "r90-s1", "r90-s2")
    assert recordings.command == "ftwt evaluate study/joint --record"
    twin = told["the static twin, which shows what the gates are worth"]
    assert twin.of == ("joint",) and "--twin-of study/joint" in twin.command
    assert told["a spread over seeds, of which there is one"].command.endswith("--seed 1")
    assert set(told) == {recordings.what, twin.what, "a spread over seeds, of which there is one"}
    one = read(study / "joint")
    assert {gap.what for gap in one.missing} - set(told) == {
        "what the dense network achieved on the same images",
        "the curve r -> reduction",
        "latencies",
        "accuracy under corruption",
    }


@pytest.fixture(scope="module")
def recording():
    batches = Batches(toys.images(40), batch_size=20)
    told = files.provenance(config={"model": "runs/r90-s1"})
    return record(toys.dynamic(), batches, images=8, provenance=told)


def test_recordings_and_metrics_go_with_their_run(study, recording):
    recording.save(study / "r90-s0" / "recording.safetensors")
    recording.save(study / "loose.safetensors")  # says that it is of r90-s1
    recording.save(study / "alone" / "recording.safetensors")
    lines = [
        {"kind": "step", "step": 5, "loss": 2.0, "mask_loss": 1.5, "reduction": 0.1},
        {"kind": "epoch", "step": 10, "epoch": 1, "loss": 1.0, "val_loss": 0.5},
        {"kind": "epoch", "step": 20, "epoch": 2, "loss": 0.5, "val_loss": 0.4},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (study / "r90-s0" / "metrics.jsonl").write_text(text)
    (study / "going").mkdir()
    (study / "going" / "metrics.jsonl").write_text(text + '{"kind": "ep')  # a crash
    found = read(study)
    assert len(found.run("r90-s0").recording()) == 40
    assert found.run("r90-s1").recording_path == study / "loose.safetensors"
    assert found.run("r90-s2").recording() is None
    assert [(lone.name, len(lone.recording())) for lone in found.recordings] == [("alone", 40)]
    assert found.run("r90-s0").steps[0]["mask_loss"] == 1.5
    assert found.run("r90-s0").history[1]["step"] == 20
    assert [(log.name, len(log.history)) for log in found.logs] == [("going", 2)]
    gaps = {gap.what: gap for gap in found.missing}
    assert gaps["the result of a training that is not finished"].of == ("going",)
    assert "r90-s0" not in gaps["images, their routes, heatmaps, and the work for each class"].of


def test_files_of_other_kinds_in_a_folder_are_left_out_and_named(study):
    (study / "notes.txt").write_text("mine")
    files.write(study / "r90-s0" / "settings.json", {"model": "x"})
    files.write(study / "other.json", {"mine": 1})
    save_file({"a": np.zeros(2)}, study / "other.safetensors")
    assert set(read(study).left_out) == {
        (study / "other.json", "not a result that a report shows"),
        (study / "other.safetensors", "tensors that are no recording"),
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.json", None, "gone.json does not exist; name the folder of a run"),
        ("empty.json", b"", "empty.json is empty; expected JSON"),
        ("cut.json", b'{"config": {"model": "x"', "cut.json is not a JSON file"),
        (
            "nan.json",
            b'{"top1": NaN}',
            "nan.json is not a JSON file .its JSON holds the number 'NaN'",
        ),
        ("raw.json", bytes(range(128, 200)), "raw.json is not text, so it is not JSON"),
        ("list.json", b"[1, 2]", "list.json is not a result that a report shows"),
        ("mine.json", b'{"mine": 1}', "mine.json is not a result that a report shows"),
        ("notes.txt", b"mine", "notes.txt is not a result file; name the folder of a run"),
        ("metrics.jsonl", b"", "metrics.jsonl is empty; expected a line of JSON"),
        ("metrics.jsonl", b"{}\n", r"metrics.jsonl: `line 1.kind` is missing; expected text"),
        ("metrics.jsonl", b'{"kind": "x"}\n', "`line 1.kind` is 'x'; expected `step` or `epoch`"),
        (
            "metrics.jsonl",
            b'{"kind": "step", "step": 1}\n{"kind": "step", "step": 2, "loss": NaN}\n',
            r"metrics.jsonl: line 2 is not JSON \(its JSON holds the number 'NaN'\)",
        ),
        ("metrics.jsonl", b"half\n", "metrics.jsonl: line 1 is not JSON"),
        ("recording.safetensors", b"no", "recording.safetensors is truncated or not a safe"),
    ],
)
def test_a_file_that_is_no_result_is_told(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read(path)


def test_nothing_to_report_on_is_told(tmp_path):
    with pytest.raises(ValueError, match="nothing to report on; name the folder of a run"):
        read([])
    with pytest.raises(ValueError, match="holds no results; name the folder of a run"):
        read(tmp_path)


MISSING = object()
FAULTS = [
    (files.run, "test.top1", 1.5, r"`test.top1` is 1.5; expected a number in \[0, 1\]"),
    (files.run, "test.reduction", "half", "`test.reduction` is 'half'; expected a number in"),
    (files.run, "test.units", MISSING, "`test.units` is missing; expected a list"),
    (
        files.run,
        "test.units.1.always",
        17,
        r"\[1\].always` is 17; expected .* in \[0, 16\]",
    ),
    (files.run, "test.units.0", 3, r"`test.units\[0\]` is 3; expected an object"),
    (files.run, "test.dense_macs", 0, "`test.dense_macs` is 0; expected a whole number from 1 on"),
    (files.run, "config.model", None, "`config.model` is null; expected text"),
    (files.run, "config.train.seed", "x", "`config.train.seed` is 'x'; expected a whole number"),
    (files.run, "config.prune", [1], "`config.prune` is a list of 1; expected an object"),
    (files.run, "training.seconds", MISSING, "`training.seconds` is missing; expected a number"),
    (files.run, "training.history.1.val_loss", "inf", r"`training.history\[1\].val_loss`"),
    (files.run, "training.history.0.epoch", 0, r"history\[0\].epoch` is 0; expected a whole"),
    (files.run, "provenance", "mine", "`provenance` is 'mine'; expected an object"),
    (files.benchmark, "timings.2.latency_ms", None, r"`timings\[2\].latency_ms` is null"),
    (files.benchmark, "images.0.keep", -1, r"`images\[0\].keep` is -1; expected a number in \[0"),
    (files.contest, "entries.1.top1", 2, r"`entries\[1\].top1` is 2; expected a number in \[0"),
    (files.contest, "threads", 0, "`threads` is 0; expected a whole number from 1 on"),
    (files.estimate, "reduction.3", True, r"`reduction\[3\]` is True; expected a number"),
    (files.estimate, "reduction", [0.1], "`reduction` is a list of 1; expected 4 numbers"),
    (files.estimate, "r", [0.9, 0.5], "`r` is a list of 2; expected ascending numbers"),
]


def set_at(values, place: str, new) -> None:
    *way, last = place.split(".")
    for step in way:
        values = values[int(step)] if isinstance(values, list) else values[step]
    if new is MISSING:
        del values[last]
    elif isinstance(values, list):
        values[int(last)] = new
    else:
        values[last] = new


@pytest.mark.parametrize(("make", "place", "new", "said"), FAULTS)
def test_a_faulty_field_is_told_by_file_and_place(tmp_path, make, place, new, said):
    values = copy.deepcopy(make())
    assert read(files.write(tmp_path / "sub" / "result.json.json", values))
    set_at(values, place, new)
    path = files.write(tmp_path / "sub" / "result.json.json", values)
    for source in (path, tmp_path):  # named, or found in a folder
        with pytest.raises(ValueError, match=said) as told:
            read(source)
        assert str(told.value).startswith(f"{path}: ")
        assert "; make the file again with `" in str(told.value) or place == "provenance"


@pytest.mark.parametrize(
    ("make", "place", "said"),
    [
        (lambda: files.corruptions(None, 0.9), "corrupted.3.severity", "number in .1, 5."),
        (lambda: files.corruptions(None, 0.9), "clean.top1", "`clean.top1` is 9"),
        (lambda: files.static(0.9, 0.3), "library.name", "`library.name` is 9; expected text"),
        (lambda: files.static(0.9, 0.3), "importance", "`importance` is 9; expected text"),
    ],
)
def test_faults_of_the_other_kinds(tmp_path, make, place, said):
    values = make()
    set_at(values, place, 9)
    with pytest.raises(ValueError, match=said):
        read(files.write(tmp_path / "file.json", values))


def test_real_files_are_read():
    found = read(ROOT / "results")
    assert len(found.runs) >= 16 and len(found.benchmarks) >= 18 and len(found.pruned) == 1
    one = found.pruned[0]
    written = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))["test"]
    assert one.test.reduction == written[one.kind]["reduction"]
    part = next(g for g in found.groups if len(g.runs) == 3 and g.kind == "dynamic")
    assert found.dense(part).result.top1 == pytest.approx(0.9119)


def test_what_a_run_writes_is_read(tiny_home):
    from ftwt import run

    result = run(tiny.CONFIG, output="runs/one")
    run(replace(tiny.CONFIG, twin_of="runs/one"), output="runs/two")
    found = read("runs")
    one = found.run("one")
    assert (one.kind, found.run("two").kind) == ("dynamic", "twin")
    assert one.test.top1 == result.test.top1
    assert one.test.units[0].keep == result.test.units[0].keep
    assert [line["epoch"] for line in one.history] == [1, 2]
    assert not any("twin" in gap.what for gap in found.missing)
    with pytest.raises(ValueError, match="model.safetensors is not a recording"):
        read("runs/one/model/model.safetensors")


def test_what_other_commands_write_is_read(tmp_path):
    images = toys.images(20)
    dense, dynamic = toys.Toy(dropout=0.0), toys.dynamic(dropout=0.0)
    batches = Batches(images, batch_size=20)
    result = evaluate(dense, batches, provenance=files.provenance(config={"model": "toy"}))
    write_json(tmp_path / "dense.json", result.to_json())
    estimate(dynamic, batches).save(tmp_path / "curve.json")
    bench(dynamic, rivals=(), rounds=1, singles=3, engine="reference").save(tmp_path / "bench.json")
    figures = Figures(top1=0.5, reduction=0.25, keep=0.75)
    worse = [Corrupted(**vars(replace(figures, top1=0.4)), corruption="fog", severity=2)]
    told = NetworkRobustness("toy", 20, figures, tuple(worse), "ftwt", run="runs/one")
    write_json(tmp_path / "fog.json", told.to_json())
    found = read(tmp_path)
    assert found.evaluations[0].name == "toy"
    assert found.evaluations[0].result.top1 == result.top1
    curve, benchmark = found.curves[0].result, found.benchmarks[0].result
    assert curve.r[-1] == 1 and len(curve.units) == 3
    assert [one.name for one in benchmark.timings] == ["ftwt dense", "ftwt gated"]
    assert len(benchmark.images) == 3
    (file,) = (one.result for one in found.corruptions)
    assert (file.run, file.clean.top1, file.clean.keep) == ("runs/one", 0.5, 0.75)
    assert [(c.corruption, c.severity, c.top1) for c in file.corrupted] == [("fog", 2, 0.4)]


def test_reading_needs_no_torch(tmp_path):
    files.write(tmp_path / "run.json", files.run())
    code = (
        "import sys; from ftwt.report import read, plots; "
        f"read({str(tmp_path)!r}); print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert not {"torch", "matplotlib", "plotly"} & set(told.stdout.split())
