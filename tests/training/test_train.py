"""Training: it learns, in phases, within its budget, alone or in company."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from ftwt.files.json import read_json
from ftwt.training.loop import train
from toys import CONFIG, fit, run_python, same


def test_a_plain_network_learns_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = fit(toys.Toy(), output=tmp_path, progress=True)
    first, last = result.history[0], result.history[-1]
    assert last.loss < 0.6 * first.loss
    assert last.val_accuracy > 0.9 and result.evaluation["top1"] == last.val_accuracy
    assert last.mask_accuracy is last.reduction is last.r is None
    assert result.images_per_s > 0 and result.calibration is None
    assert result.provenance["config"] == replace(CONFIG, batch_size=16).to_json()
    assert read_json(tmp_path / "result.json")["history"][-1]["loss"] == last.loss
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4]
    told = capsys.readouterr().err
    assert "epoch 4" in told and "accuracy" in told and "images/s" in told


def test_gates_learn_beside_their_network() -> None:
    model = toys.dynamic()
    result = fit(model, replace(CONFIG, epochs=8, cooldown=0.75))
    figures = [record for record in result.history if record.mask_accuracy is not None]
    assert [record.epoch for record in figures] == [1, 2, 3, 4, 5, 6]  # then targets are not needed
    assert figures[-1].mask_accuracy > figures[0].mask_accuracy + 0.05
    assert figures[-1].mask_loss < 0.9 * figures[0].mask_loss
    for record in figures:  # the mask loss is the mean of some steps
        assert record.loss - record.task_loss == pytest.approx(record.mask_loss, rel=0.5)
    assert [record.loss for record in result.history[6:]] == [
        record.task_loss for record in result.history[6:]
    ]
    assert result.history[-1].reduction > 0.05
    assert result.history[-1].val_accuracy > 0.9
    assert result.evaluation["mask_accuracy"] > 0.7
    assert result.history[-1].r == pytest.approx(0.8)


def test_in_the_warm_up_only_predictors_move_and_in_the_cooldown_only_the_network() -> None:
    model = toys.dynamic()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, replace(CONFIG, epochs=1, predictor_warmup_steps=8, cooldown=1))
    network = {id(parameter) for parameter in model.network_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) in network), name

    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, replace(CONFIG, epochs=1, cooldown=0))
    after = model.state_dict()
    gates = [name for name in before if "ftwt_gates" in name]
    assert any("running_mean" in name for name in gates)
    assert all(torch.equal(after[name], before[name]) for name in gates)
    assert not torch.equal(after["network.classifier.weight"], before["network.classifier.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("asked", [0.2, 0.4])
def test_a_budget_asked_is_a_budget_delivered(asked: float) -> None:
    model = toys.dynamic()
    result = fit(model, replace(CONFIG, epochs=8, target_reduction=asked))
    assert result.evaluation["reduction"] == pytest.approx(asked, abs=0.01)
    assert result.calibration is not None and result.calibration["asked"] == asked
    assert result.history[-1].val_reduction == pytest.approx(asked, abs=0.1)  # before the last step
    assert result.evaluation["top1"] > 0.8


def test_r_is_annealed_from_one() -> None:
    result = fit(toys.dynamic(r=0.6), replace(CONFIG, anneal_epochs=2, cooldown=1))
    r = [record.r for record in result.history]
    assert 0.75 < r[0] < 0.9
    assert r[1:] == pytest.approx([0.6 + 0.4 * 1 / 8, 0.6, 0.6], abs=0.051)


def test_a_static_twin_trains_like_any_other() -> None:
    twin = toys.dynamic().freeze(toys.batches(train=False))
    result = fit(twin, replace(CONFIG, predictor_warmup_steps=4))
    assert result.history[-1].val_accuracy > 0.9
    assert result.history[-1].mask_accuracy is None


def test_weight_decay_and_rates_are_those_of_each_group() -> None:
    model = toys.dynamic()
    before = {name: value.clone() for name, value in model.named_parameters()}
    config = replace(CONFIG, lr=0.0, predictor_lr=0.0, weight_decay=0.5)
    fit(model, config)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_average_is_what_is_returned() -> None:
    plain, averaged = toys.Toy(), toys.Toy()
    fit(plain)
    result = fit(averaged, replace(CONFIG, ema_decay=0.8))
    assert not same(plain, averaged)
    assert result.evaluation["loss"] == pytest.approx(result.history[-1].val_loss, abs=1e-6)


def test_a_teacher_is_imitated() -> None:
    teacher = toys.Toy()
    fit(teacher, replace(CONFIG, epochs=8))
    pupil = toys.Toy(dropout=0.0)
    with torch.no_grad():
        pupil.classifier.weight.zero_()
    wrong = [(images, labels * 0) for images, labels in toys.batches(train=True)]
    config = replace(CONFIG, epochs=8, distillation=10.0, lr=0.03)
    train(pupil, wrong, toys.batches(train=False), config, teacher=teacher, progress=False)
    images, _ = next(iter(toys.batches(train=False)))
    agree = pupil.eval()(images).argmax(1) == teacher.eval()(images).argmax(1)
    assert agree.float().mean() > 0.7  # of 4 classes, of which it was told one
    for given in ({"teacher": teacher}, {"config": config}):
        with pytest.raises(ValueError, match="give both or neither"):
            fit(toys.Toy(), **given)


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    model = toys.Toy()
    fit(model, replace(CONFIG, freeze_batchnorm=True))
    norm = model.features[1]
    assert not norm.running_mean.any() and (norm.running_var == 1).all()


def test_a_data_loader_will_do() -> None:
    data = torch.utils.data.TensorDataset(*next(iter(toys.batches(train=True))))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    results = [
        train(toys.Toy(), loader, loader, replace(CONFIG, epochs=1), progress=False)
        for _ in range(2)
    ]
    assert results[0].history[0].loss == results[1].history[0].loss  # the seed orders it, too
    assert results[0].provenance["config"]["batch_size"] == 4


def test_a_tracker_gets_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        fit(toys.Toy(), replace(CONFIG, epochs=1, tracker="tensorboard"), output=tmp_path)
    (events,) = [p for p in tmp_path.rglob("events.out.tfevents*") if p.parent.name == "ftwt"]
    assert b"epoch/val_accuracy" in events.read_bytes()


COMPILED = """
import json, toys
from dataclasses import replace
from torch._dynamo.utils import counters
config = replace(toys.FULL, distillation=1.0)
result = toys.fit(toys.dynamic(dropout=0.0), config, teacher=toys.Toy(dropout=0.0))
stats = counters["stats"]
print(json.dumps([[[e.loss, e.reduction] for e in result.history], dict(stats)]))
"""


@pytest.mark.slow
def test_a_compiled_training_step_is_one_graph_and_learns_the_same(tmp_path: Path) -> None:
    (tmp_path / "compiled.py").write_text(COMPILED)
    plain = run_python(str(tmp_path / "compiled.py"))
    # A break in a graph would be an error: the warm-up, the gated steps and the cooldown are whole.
    asked = {"ACCELERATE_DYNAMO_BACKEND": "aot_eager", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "1"}
    whole = run_python(str(tmp_path / "compiled.py"), timeout=240, **asked)
    assert plain.returncode == whole.returncode == 0, plain.stderr + whole.stderr
    (one, none), (two, stats) = (json.loads(done.stdout) for done in (plain, whole))
    assert none == {} and stats["unique_graphs"] >= 3
    assert len(one) == len(two) == toys.FULL.epochs
    for a, b in zip(one, two, strict=True):
        assert b[0] == pytest.approx(a[0], rel=1e-3)
        assert b[1] == pytest.approx(a[1], abs=1e-3)


@pytest.mark.parametrize("make", [toys.Toy, toys.dynamic])
def test_batches_that_do_not_fit_are_named(make: Any) -> None:
    images, labels = next(iter(toys.batches(train=True)))
    good = [(images, labels)]
    for bad, message in (
        ([], "train_batches is empty"),
        ([(images, labels + 1)], r"labels from 1 to 4 for a network with 4 outputs.*\[0, 3\]"),
        ([(images, labels - 1)], "labels from -1"),
        ([(images[:, :2], labels)], r"images of .*2, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            train(make(), bad, good, CONFIG, progress=False)
    with pytest.raises(ValueError, match="val_batches is empty"):
        train(make(), good, [], CONFIG, progress=False)


@pytest.mark.parametrize("make", [toys.Toy, toys.dynamic])
def test_batches_of_one_will_do(make: Any) -> None:
    images, labels = next(iter(toys.batches(train=True)))
    ones = [(images[i : i + 1], labels[i : i + 1]) for i in range(8)]
    result = train(make(), ones, ones, replace(CONFIG, epochs=4, lr=0.01), progress=False)
    assert result.history[-1].loss < result.history[0].loss
    assert result.evaluation["images"] == 8


def test_a_warm_up_that_reaches_into_the_cooldown_is_shorter_and_told() -> None:
    config = replace(CONFIG, predictor_warmup_steps=17)
    with pytest.warns(match="=17 do not end before the cooldown.* at step 16 of so few: 8 are"):
        fit(toys.dynamic(), config)
    fit(toys.dynamic(), replace(config, predictor_warmup_steps=16, epochs=4))
    fit(toys.Toy(), config)  # which has nothing to warm up


def test_images_of_another_size_than_converted_for_are_refused() -> None:
    images, labels = next(iter(toys.batches(train=True)))
    with pytest.raises(ValueError, match=r"\(3, 6, 8\).*\(3, 8, 8\)"):
        train(toys.dynamic(), [(images[:, :, 2:], labels)], [(images, labels)], progress=False)


def test_a_loader_shorter_than_it_says_is_named() -> None:
    class Short(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return super().__len__() + 1

    short = Short(toys.batches(train=True))
    with pytest.raises(ValueError, match="ended after 8 of the 9 batches"):
        train(toys.Toy(), short, toys.batches(train=False), CONFIG, progress=False)


def test_a_budget_needs_gates() -> None:
    with pytest.raises(ValueError, match="target_reduction=0.3 needs gates.*ftwt.convert"):
        fit(toys.Toy(), replace(CONFIG, target_reduction=0.3))
