"""Whole runs: what they leave, that they resume, share their work, and refuse what does not fit."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from ftwt import data, models, prune
from ftwt.budget.estimate import estimate
from ftwt.config import DataConfig, FixedConfig, PruneConfig, RunConfig
from ftwt.evaluation.evaluate import evaluate
from ftwt.files.json import read_json
from ftwt.networks.pretrained import from_pretrained, save_pretrained
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.pruning.dynamic import DynamicModel
from ftwt.report.reading.read import read
from ftwt.runs.run import RunResult, begun_run, run
from ftwt.runs.start import gated
from ftwt.training.learner import Learner
from ftwt.training.loop import Interrupted
from toys import run_python, same, untimed

FILES = ["checkpoint.safetensors", "metrics.jsonl", "model", "result.json", "run.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunResult]]:
    """A run's folder and its result, with a budget."""
    home = tmp_path_factory.mktemp("home")
    config = replace(tiny.CONFIG, train=replace(tiny.CONFIG.train, target_reduction=0.25))
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(home, patch)
        yield home / "run", run(config, output=home / "run")


def timeless(value: Any) -> Any:
    """A result without what no two runs share."""
    if not isinstance(value, dict):
        return [timeless(each) for each in value] if isinstance(value, list | tuple) else value
    own = ("seconds", "images_per_s", "provenance", "data_root")
    return {key: timeless(each) for key, each in value.items() if key not in own}


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in the step-th step."""
    learn = Learner.learn

    def learn_and_stop(self: Learner, now: int, *batch: Any) -> None:
        learn(self, now, *batch)
        if now + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Learner, "learn", learn_and_stop)


def test_a_run_leaves_a_network_and_what_it_achieved(finished: tuple[Path, RunResult]) -> None:
    folder, result = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*FILES, ".lock", "settings.json"]
    )
    told = read_json(folder / "run.json")
    assert told == json.loads(json.dumps(result.to_json()))
    assert RunConfig.from_json(told["config"]) == result.config
    assert told["asked_reduction"] == 0.25
    assert told["test"]["images"] == 1000 and told["validation"]["images"] == 400
    assert abs(told["validation"]["reduction"] - 0.25) < 0.005  # which the calibration looked at
    assert told["validation"]["top1"] == told["training"]["evaluation"]["top1"]
    assert told["provenance"]["seed"] == 3 and told["provenance"]["duration_s"] > 0
    network = resolve(str(folder)).load()
    assert evaluate(network, load_splits(result.config.data).test) == result.test


def test_a_run_predicts_from_the_network_it_began_with(finished: tuple[Path, RunResult]) -> None:
    _, result = finished
    dense = models.create(tiny.NAME, pretrained=True)
    curve = estimate(dense, load_splits(result.config.data).plain)
    assert abs(result.predicted_reduction - 0.25) < 0.01
    r = curve.r_for(reduction=0.25)
    assert curve.reduction_at(dict.fromkeys(("0", "3", "6"), r)) == result.predicted_reduction


def test_the_gates_that_are_estimated_are_those_that_are_built(tiny_home: Path) -> None:
    splits = load_splits(tiny.CONFIG.data)
    config = replace(tiny.CONFIG, prune=PruneConfig(r=0.7, min_gain=0.2))
    dynamic, predicted = gated(config, resolve(tiny.NAME, "pretrained").load_dense(), splits.plain)
    assert list(dynamic.r) == ["0", "3"]  # the third saves 14%
    assert predicted == estimate(dynamic, splits.plain).reduction_at(dynamic.r)


def test_a_run_says_how_many_images_it_held_out_by_default(tiny_home: Path) -> None:
    config = replace(tiny.DENSE, data=DataConfig(dataset="cifar10-embedded"))
    config = replace(config, train=replace(config.train, epochs=1))
    result = run(config, output="runs/usual")
    assert result.validation.images == result.config.data.validation == 200
    assert read_json("runs/usual/run.json")["config"]["data"]["validation"] == 200


def test_the_splits_share_no_image_and_lose_none() -> None:
    splits = load_splits(tiny.CONFIG.data)
    whole = data.embedded(train=True)
    fit, held = splits.plain.images, splits.validation.images
    assert torch.equal(splits.train.images.images, fit.images)
    parts = [image.numpy().tobytes() for part in (fit, held) for image in part.images]
    assert sorted(parts) == sorted(image.numpy().tobytes() for image in whole.images)
    assert (len(fit), len(held), len(splits.test.images)) == (1600, 400, 1000)
    assert splits.train.augment and not splits.plain.augment and not splits.test.train


def test_a_static_twin_begins_with_the_same_weights_and_costs_as_much(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    folder, result = finished
    still = replace(tiny.CONFIG.train, lr=0.0, freeze_batchnorm=True)
    config = replace(tiny.CONFIG, twin_of=str(folder), train=still)
    twin = run(config, output=tmp_path / "twin")
    assert twin.predicted_reduction is None
    assert twin.test.reduction_std == 0
    assert twin.test.reduction == pytest.approx(result.test.reduction, abs=0.08)  # 3 units: coarse
    kept, dynamic = resolve(str(tmp_path / "twin")).load(), resolve(str(folder)).load()
    assert isinstance(kept, DynamicModel) and isinstance(dynamic, DynamicModel)
    assert same(kept.restore(), models.create(tiny.NAME, pretrained=True))
    rates = dynamic.firing_rates(load_splits(config.data).plain)
    for name, gate in kept.gates.items():
        assert gate.mask.sum() == max(1, round(float(rates[name].sum())))


def test_a_finished_run_goes_on_to_more_epochs(tiny_home: Path) -> None:
    one = replace(tiny.DENSE, train=replace(tiny.DENSE.train, epochs=1))
    run(one, output="runs/more")
    again = run(tiny.DENSE, output="runs/more", resume=True)
    assert len(again.training.history) == 2
    assert read_json("runs/more/run.json")["config"]["train"]["epochs"] == 2
    assert begun_run("runs/more") == tiny.DENSE  # what a bare --resume goes on with
    with pytest.raises(ValueError, match="epochs was 2, is 1"):
        run(one, output="runs/more", resume=True)


def test_a_pruned_network_is_trained_further_with_its_gates(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    folder, before = finished
    still = replace(tiny.CONFIG.train, epochs=1, lr=0.0, predictor_lr=0.0, freeze_batchnorm=True)
    further = replace(tiny.CONFIG, weights=str(folder), train=replace(still, cooldown=0.0))
    result = run(further, output=tmp_path / "further")
    network, older = (resolve(str(path)).load() for path in (tmp_path / "further", folder))
    assert isinstance(network, DynamicModel) and isinstance(older, DynamicModel)
    for name, value in older.predictors.items():
        assert same(network.predictors[name], value)
    assert result.test.top1 == before.test.top1 and network.r == dict.fromkeys(
        network.r, pytest.approx(0.7)
    )
    other = replace(further, prune=PruneConfig(r=0.7, pool="max"))
    with pytest.raises(ValueError, match="pool was mean, is max; ask for its own gates"):
        run(other, output=tmp_path / "other")
    with pytest.raises(ValueError, match="as it is; leave out the fixed mask"):
        run(replace(further, prune=None, fixed=FixedConfig()), output=tmp_path / "other")


def test_a_fixed_mask_is_trained_further_and_taught_by_a_network_that_is_named(
    tiny_home: Path,
) -> None:
    pruned = prune(models.create(tiny.NAME, pretrained=True), load_splits(tiny.DENSE.data).plain,
                   reduction=0.3, gates="static", images=200)  # fmt: skip
    save_pretrained(pruned.network, "pruned", name=tiny.NAME)
    taught = replace(tiny.DENSE.train, epochs=1, distillation=1.0)
    further = replace(tiny.DENSE, weights="pruned", train=taught)
    with pytest.raises(ValueError, match="a pruned network; name a dense teacher"):
        run(further, output="runs/x")
    result = run(replace(further, teacher="pretrained"), output="runs/further")
    network = resolve("runs/further").load()
    assert isinstance(network, DynamicModel) and not same(network, pruned.network)
    masks = {name: gate.mask for name, gate in pruned.network.gates.items()}
    assert all(torch.equal(gate.mask, masks[name]) for name, gate in network.gates.items())
    assert result.test.reduction == pytest.approx(pruned.candidates[0].reduction, abs=1e-12)
    found = read(Path("runs/further"))  # and a report does not take it for a dense network
    assert [group.method.label for group in found.groups] == ["fixed mask"]
    with pytest.raises(ValueError, match="its mask is fixed; take a recipe without gates"):
        run(replace(tiny.CONFIG, weights="pruned"), output="runs/x")
    with pytest.raises(ValueError, match="holds a pruned network"):
        run(replace(further, teacher="pruned"), output="runs/x")
    with pytest.raises(ValueError, match="teacher='pretrained' with distillation=0"):
        replace(tiny.DENSE, teacher="pretrained")


def test_what_has_no_twin_is_named(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    folder, _ = finished
    save_pretrained(models.create(tiny.NAME), tmp_path / "dense", name=tiny.NAME)
    config = replace(tiny.CONFIG, twin_of=str(tmp_path / "dense"))
    with pytest.raises(ValueError, match="dense holds a network without predictors"):
        run(config, output=tmp_path / "twin")
    other = replace(tiny.CONFIG, model="cifar10-mobilenet-v1-x0.25", weights=None)
    with pytest.raises(ValueError, match="another architecture"):
        run(replace(other, twin_of=str(folder)), output=tmp_path / "other")


def test_a_budget_is_allocated_to_the_units_on_request(tiny_home: Path) -> None:
    config = replace(tiny.CONFIG, train=replace(tiny.CONFIG.train, target_reduction=0.25))
    dense, batches = (
        resolve(config.model, config.weights).load_dense(),
        load_splits(config.data).plain,
    )
    even, predicted = gated(config, dense, batches)
    allocated, also_predicted = gated(replace(config, allocate=True), dense, batches)
    assert predicted == pytest.approx(0.25, abs=0.01) == also_predicted
    assert len(set(even.r.values())) == 1 < len(set(allocated.r.values()))


def test_a_run_that_was_stopped_resumes_to_the_same_result(
    tiny_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny.CONFIG, train=replace(tiny.CONFIG.train, target_reduction=0.2))
    whole = run(config, output="whole")
    with monkeypatch.context() as patch:
        stop_at(13, patch)
        with pytest.raises(Interrupted, match="after step 13 of 20: saved in parts.*--resume"):
            run(config, output="parts")
    assert not Path("parts/run.json").exists()
    with pytest.raises(ValueError, match="parts holds a run that is not finished.*--resume"):
        resolve("parts").load()
    moved = replace(config, data=replace(config.data, data_root="elsewhere"))  # files may move
    parts = run(moved, output="parts", resume=True)
    assert timeless(parts.to_json()) == timeless(whole.to_json())
    assert same(resolve("parts").load(), resolve("whole").load())
    assert untimed(Path("parts")) == untimed(Path("whole"))


def test_a_run_resumes_with_its_own_settings_alone(finished: tuple[Path, RunResult]) -> None:
    folder, result = finished
    config = result.config
    before = (folder / "run.json").read_bytes()
    other = replace(
        config,
        data=replace(config.data, split_seed=1),
        prune=replace(config.prune, head="softmax"),
    )
    message = "split_seed was 0, is 1; head was standardized, is softmax; resume with its own"
    with pytest.raises(ValueError, match=message):
        run(other, output=folder, resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        run(other, output=folder)
    assert (folder / "run.json").read_bytes() == before
    again = run(config, output=folder, resume=True)  # a finished one: evaluated again
    assert timeless(again.to_json()) == timeless(result.to_json())


def test_settings_of_a_run_that_never_began_are_forgotten(tiny_home: Path) -> None:
    with pytest.raises(ValueError, match="r names an unknown unit '1'.*Known: 0, 3, 6"):
        run(replace(tiny.CONFIG, prune=PruneConfig(r={"1": 0.5})), output="run")
    dense = run(tiny.DENSE, output="run")
    assert dense.predicted_reduction is None and dense.test.units == ()
    assert RunConfig.from_json(read_json("run/settings.json")) == tiny.DENSE


def test_the_seed_decides_random_weights(tiny_home: Path) -> None:
    still = replace(tiny.DENSE.train, epochs=1, lr=0.0, freeze_batchnorm=True, seed=5)
    run(replace(tiny.DENSE, weights=None, train=still), output="run")
    trained = resolve("run").load()
    for seed in (5, 6):
        torch.manual_seed(seed)
        assert same(trained, models.create(tiny.NAME)) == (seed == 5)


def test_a_run_starts_from_another(finished: tuple[Path, RunResult], tiny_home: Path) -> None:
    dense = models.create(tiny.NAME)
    save_pretrained(dense, "dense", name=tiny.NAME)
    assert same(resolve(tiny.NAME, "dense").load_dense(), dense)
    with pytest.raises(ValueError, match="pruned network; name the run of a dense one"):
        resolve(tiny.NAME, str(finished[0])).load_dense()
    with pytest.raises(ValueError, match="dense/?.* holds another architecture"):
        resolve("cifar10-resnet20", "dense").load_dense()
    with pytest.raises(ValueError, match=r"no weights for .*: cifar10-tiny\. Train it"):
        resolve("cifar10-vgg16-bn", "pretrained").load_dense()
    with pytest.raises(
        ValueError, match="no model or folder 'cifar10-tinny'; did you mean 'cifar10-tiny'"
    ):
        resolve("cifar10-tinny", None).load_dense()


def test_a_network_that_is_nowhere_gets_the_nearest_name(tiny_home: Path) -> None:
    with pytest.raises(ValueError, match="no model or folder .*did you mean 'cifar10-tiny'"):
        resolve("cifar10-tny").load()
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no model.safetensors"):
        resolve("empty").load()
    assert isinstance(resolve(tiny.NAME).load(), nn.Sequential)


def test_a_teacher_is_the_network_that_training_starts_from(tiny_home: Path) -> None:
    dense = replace(tiny.DENSE.train, epochs=1)
    alone = run(replace(tiny.DENSE, train=dense), output="alone")
    taught = run(replace(tiny.DENSE, train=replace(dense, distillation=1.0)), output="taught")
    # To imitate what one is costs nothing at first: less than a tenth of what it costs to learn.
    losses = [result.training.history[0].loss for result in (alone, taught)]
    assert losses[0] < losses[1] < 1.5 * losses[0]


SHARED = """
import sys, tiny, torch
from pathlib import Path
from ftwt.cli import main
tiny.register(Path(sys.argv[1]))
status = main(sys.argv[2:])
assert not torch.distributed.is_initialized()  # they have parted
sys.exit(status)
"""


@pytest.mark.slow
def test_two_processes_do_one_run(tiny_home: Path) -> None:
    Path("shared.py").write_text(SHARED)
    flags = ["--epochs", "2", "--batch-size", "160", "--target-reduction", "0.2"]
    data = ["--dataset", "cifar10-embedded", "--validation", "401"]  # an odd number: uneven parts
    command = ["shared.py", str(tiny_home), "train", tiny.NAME, *data, *flags, "--json"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run_python(*launch, *command, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path("runs") / tiny.NAME
    told = json.loads(done.stdout)  # by one of them alone
    assert told == read_json(folder / "run.json")
    config = RunConfig.from_json(told["config"])
    splits = load_splits(config.data)
    network = from_pretrained(folder / "model")
    for name in ("test", "validation"):
        alone = evaluate(network, getattr(splits, name)).to_json()
        assert told[name] == json.loads(json.dumps(alone))  # to the last bit
    assert told["training"]["evaluation"]["loss"] == told["validation"]["loss"]
    assert told["training"]["calibration"]["achieved"] == pytest.approx(0.2, abs=0.01)
    curve = estimate(resolve(tiny.NAME, "pretrained").load_dense(), splits.plain, head="softmax")
    r = dict.fromkeys(("0", "3", "6"), curve.r_for(reduction=0.2))
    assert told["predicted_reduction"] == curve.reduction_at(r)  # from all the images, too


def test_images_are_prepared_as_the_weights_expect():
    plain = load_splits(DataConfig(dataset="cifar10-embedded", validation=100)).test
    own = DataConfig(
        dataset="cifar10-embedded", validation=100, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2)
    )
    before, after = (next(iter(test))[0] for test in (plain, load_splits(own).test))
    images = plain.images
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (images.mean, images.std))
    wanted = (before * std + mean - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(
        own.std
    ).view(3, 1, 1)
    torch.testing.assert_close(after, wanted, atol=1e-5, rtol=0)
