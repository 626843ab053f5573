"""Pruning without labels: the budget is met, the better candidate taken, what is refused."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tiny
import toys
from ftwt import (
    calibrate,
    cli,
    compile,
    count_macs,
    estimate,
    first_order,
    fit_predictors,
    from_pretrained,
    prune,
    runtime,
    second_look,
)
from ftwt.files.json import read_json
from ftwt.fitting.columns import rank_filters
from ftwt.fitting.masks import mean_saliency
from ftwt.pruning.dynamic import DynamicModel
from ftwt.pruning.second_look import opened
from ftwt.runs import candidates
from ftwt.runs.candidates import Candidate, Part, prunable
from ftwt.runs.choice import choose
from ftwt.runs.pruned import prune_named

IMAGES = toys.pixels(200)


@pytest.mark.parametrize("gates", ["auto", "static", "dynamic", "second-look"])
def test_the_budget_is_met_and_the_nearest_candidate_taken(gates):
    dense = toys.classifier()
    before = copy.deepcopy(dense.state_dict())
    pruned = prune(dense, IMAGES.split(50), reduction=0.3, gates=gates)
    kinds = [one.kind for one in pruned.candidates]
    if gates == "auto":
        assert [kind for kind in kinds if kind != "mixed"] == ["static", "dynamic", "second-look"]
        assert ("mixed" in kinds) == ("no mixed one" not in pruned.why)
    else:
        assert kinds == list(dict.fromkeys(["static", gates]))  # its twin beside it
    asked = [one for one in pruned.candidates if gates in ("auto", one.kind)]
    best, why = choose(asked, pruned.dense_ms)
    assert pruned.network is best.network and pruned.kind == best.kind
    assert pruned.why.startswith(why)
    assert (pruned.images, pruned.judged) == (160, 40)
    assert pruned.dense_macs == count_macs(dense, IMAGES[:1]).total
    for one in pruned.candidates:
        assert one.reduction == pytest.approx(0.3, abs=0.06)
        if one.look is None:
            with torch.inference_mode():
                same = one.network(IMAGES[160:]).argmax(1) == dense(IMAGES[160:]).argmax(1)
            assert one.agreement == pytest.approx(float(same.float().mean()))
        assert one.repair.layers
        assert (one.look is None) == isinstance(one.network, DynamicModel)
        assert one.look is None or one.look.images == 40
        assert f"{one.agreement:.2%}" in toys.printed(pruned) and pruned.why in toys.printed(pruned)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    json.dumps(pruned.to_json(), allow_nan=False)


class Untouchable:
    """Labels that raise when they are touched."""

    def __getattribute__(self, name: str):
        raise AssertionError(f"labels were read: {name}")


USES = {
    "prune": lambda dense, dynamic, batches: prune(dense, batches, reduction=0.2),
    "prune, held out": lambda dense, dynamic, batches: prune(
        dense, batches, reduction=0.2, held_out=batches, gates="second-look"
    ),
    "rank": lambda dense, dynamic, batches: rank_filters(dynamic, batches),
    "energy": lambda dense, dynamic, batches: mean_saliency(dynamic, batches),
    "predictors": lambda dense, dynamic, batches: fit_predictors(dynamic, batches),
    "first order": lambda dense, dynamic, batches: first_order(dynamic, batches),
    "estimate": lambda dense, dynamic, batches: estimate(dynamic, batches),
    "calibrate": lambda dense, dynamic, batches: calibrate(
        dynamic, batches, reduction=0.2, tolerance=0.5
    ),
    "second look": lambda dense, dynamic, batches: second_look(
        [dynamic.fix({name: torch.arange(16) < 8 for name in dynamic.gates}), opened(dynamic)],
        batches, reduction=0.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_labels_are_never_read(use):
    dense = toys.classifier()
    assert USES[use](dense, prunable(dense, IMAGES), [(IMAGES, Untouchable())]) is not None


def test_each_candidate_is_taught_once_it_is_repaired():
    taught = []

    def teach(made: DynamicModel) -> None:
        with torch.no_grad():
            made.network.get_submodule("8").weight.zero_()
        taught.append(made)

    pruned = prune(toys.classifier(), [IMAGES], reduction=0.2, teach=teach)
    for one in pruned.candidates:
        made = one.network if isinstance(one.network, DynamicModel) else one.network.first
        assert any(made is each for each in taught)
        assert not made.network.get_submodule("8").weight.any()


def test_batches_that_can_be_read_only_once_will_do():
    pruned = prune(toys.classifier(), iter(IMAGES.split(40)), reduction=0.2, gates="static")
    assert (pruned.images, pruned.judged) == (160, 40)


def test_held_out_images_judge_and_the_others_are_all_fitted_to():
    dense, others = toys.classifier(), toys.pixels(60).flip(0)
    pruned = prune(dense, [IMAGES], reduction=0.2, gates="second-look", held_out=iter([others]))
    assert (pruned.images, pruned.judged) == (200, 60)
    _, one = pruned.candidates
    assert one.look is not None and one.look.images == 60 and one.look.reduction >= 0.2
    with torch.inference_mode():
        saved = 1 - one.network.look(others).executed.mean() / pruned.dense_macs
    assert one.look.reduction == pytest.approx(float(saved))
    same, saved, again = 0, 0.0, 0  # it is judged by thresholds from the other half
    passes = one.network.networks
    for half in (0, 1):
        fit = second_look(passes, [others[1 - half :: 2]], reduction=0.2)
        with torch.inference_mode():
            looked = fit.network.look(others[half::2])
            same += int((looked.outputs.argmax(1) == dense(others[half::2]).argmax(1)).sum())
        saved += float(1 - looked.executed.mean() / pruned.dense_macs) / 2
        again += int((looked.passes > 1).sum())
    assert one.agreement == pytest.approx(same / 60)
    assert one.again == one.to_json()["again"] == pytest.approx(again / 60)
    assert one.reduction == pytest.approx(saved)


def partly_silent(filters: int) -> nn.Module:
    """So many filters of each unit never fire: all thresholds that spare them save less at once."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in (0, 2, 4):
            dense[layer].bias[:filters] = -100
    return dense


SOME = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_gates_that_jump_past_the_budget_are_refused_and_fitted_once(monkeypatch):
    missed = r"gates save -?\d+\.\d% of the MACs where 20\.0% were asked .* jump past it"
    fitted = []

    def gated(*args, **options):
        fitted.append(options)
        return made(*args, **options)

    made = candidates.gated
    monkeypatch.setattr(candidates, "gated", gated)
    pruned = prune(partly_silent(8), [SOME], reduction=0.2)
    assert re.search(f"no dynamic one: {missed}", pruned.why)
    assert "dynamic" not in [one.kind for one in pruned.candidates]
    assert len(fitted) == 1
    with pytest.raises(ValueError, match=missed):
        prune(partly_silent(8), [SOME], reduction=0.2, gates="dynamic")


def test_gates_may_save_less_than_any_targets_would():
    """Targets leave out what is silent for every image: here they save 13% or more."""
    *_, one = prune(partly_silent(1), [SOME], reduction=0.05, gates="dynamic").candidates
    assert one.reduction == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("last", [2, 3])
def test_errors_of_teaching_reach_the_caller(last):
    taught = []

    def teach(made: DynamicModel) -> None:
        taught.append(made)
        if len(taught) == last:
            raise ValueError("lr=-1 is below 0")

    with pytest.raises(ValueError, match="lr=-1 is below 0"):
        prune(toys.classifier(), [IMAGES], reduction=0.2, teach=teach)


def test_images_go_where_the_network_is():
    part = Part([IMAGES], 10, 5, torch.device("meta"))
    assert [(len(images), images.device.type) for images in part] == [(5, "meta")]


@torch.inference_mode()
def squared(dense: nn.Module, one: Candidate) -> float:
    """A candidate's error beside the dense network, as a share of what the outputs vary."""
    wanted, found = dense(IMAGES[160:]), one.network(IMAGES[160:])
    return float((wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_outputs_that_are_no_class_scores_are_judged_by_their_squared_error():
    dense = toys.classifier()[:6]
    pruned = prune(dense, [IMAGES], reduction=0.2, gates="static")
    (one,) = pruned.candidates
    assert one.agreement is None and one.error == pytest.approx(squared(dense, one), rel=1e-3)
    auto = prune(dense, [IMAGES], reduction=0.2)
    assert "no second-look one: a second look needs class scores" in auto.why
    with pytest.raises(ValueError, match="a second look needs class scores"):
        prune(dense, [IMAGES], reduction=0.2, gates="second-look")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of them, say reduction=0.3"),
        ({"reduction": 0.3, "latency_ms": 1.0}, "give one of them"),
        ({"reduction": 0.3, "precision": "int4"}, "precision='int4': use one of f32, int8"),
        ({"reduction": 1.0}, r"reduction=1.0 is outside \(0, 1\)"),
        ({"reduction": 0.99}, "out of reach; fixed masks of these units save from 0.000 to"),
        ({"reduction": 0.3, "gates": "best"}, "auto, static, dynamic, mixed, second-look"),
        ({"reduction": 0.3, "images": 10}, "images=10: fit to 20 or more"),
        ({"latency_ms": -1.0}, "latency_ms=-1.0: give milliseconds above 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prune(toys.classifier(), [IMAGES], **options)


def test_a_regression_is_judged_by_its_squared_error():
    dense = toys.classifier()
    pruned = prune(dense, [IMAGES], reduction=0.3, scores=False)
    assert "no second-look one: a second look needs class scores" in pruned.why
    for one in pruned.candidates:
        assert one.agreement is None and one.error == pytest.approx(squared(dense, one), rel=1e-3)


def test_images_held_out_are_checked_before_anything_is_made():
    spoilt = IMAGES[:30].clone()
    spoilt[3, 0, 0, 0] = torch.nan
    for held_out, message in (
        ([spoilt], "image 3 of a batch holds a value that is not finite"),
        ([IMAGES[:30, :, :6, :6]], "for a network converted for"),
        ([IMAGES[:30, :1]], "for a network converted for"),
        (IMAGES[:30], "batches is one tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            prune(toys.classifier(), [IMAGES], reduction=0.3, gates="static", held_out=held_out)


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match="a OrderedDict is no network: give an nn.Module"):
        prune(toys.classifier().state_dict(), [IMAGES], reduction=0.3)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"inside torch.inference_mode\(\); call this outside"),
    ):
        prune(toys.classifier(), [IMAGES], reduction=0.3)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float64])
def test_images_of_another_type_are_refused_by_it(kind):
    with pytest.raises(ValueError, match=f"the input is {kind}: convert it to the type of the"):
        prune(toys.classifier(), [IMAGES.to(kind)], reduction=0.3)


def test_images_that_want_gradients_are_taken():
    images = IMAGES.clone().requires_grad_()
    assert prune(toys.classifier(), [images], reduction=0.3, gates="static").images == 160


def test_images_that_change_from_pass_to_pass_are_refused():
    shuffled = DataLoader(TensorDataset(IMAGES, torch.zeros(len(IMAGES))), 64, shuffle=True)
    with pytest.raises(ValueError, match=r"other images each time .* \(shuffle=False\)"):
        prune(toys.classifier(), shuffled, reduction=0.3)
    with pytest.raises(ValueError, match="other images each time"):
        prune(toys.classifier(), [IMAGES], reduction=0.3, held_out=shuffled)


def test_too_few_images_and_no_unit_are_refused():
    with pytest.raises(ValueError, match="held_out has 1 images; give 4 or more, or none"):
        prune(toys.classifier(), [IMAGES], reduction=0.3, held_out=[IMAGES[:1]])
    with pytest.raises(ValueError, match="10 images to prune with; give 20 or more"):
        prune(toys.classifier(), [IMAGES[:10]], reduction=0.3)
    with pytest.raises(ValueError, match="0 images to prune with; give 20 or more"):
        prune(toys.classifier(), [], reduction=0.3, held_out=[IMAGES[:20]])
    with (
        pytest.warns(UserWarning, match="no unit found"),
        pytest.raises(ValueError, match="Sequential has no unit to prune"),
    ):
        prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), [IMAGES], reduction=0.3)


def test_what_saves_less_on_test_images_is_named(tiny_home):
    options = {"data": tiny.CONFIG.data, "output": "out", "engine": "reference"}
    result = prune_named(tiny.NAME, reduction=0.2, gates="static", images=64, **options)
    assert "on those held out" not in toys.printed(result)
    less = replace(result.test["static"], reduction=0.1)
    told = toys.printed(replace(result, test=result.test | {"static": less}))
    assert re.search(r"static saves 10\.0% on test images, and (19|20|21)\.\d% on those held", told)


def test_the_verb_leaves_a_network_an_engine_and_its_figures(tiny_home, capsys):
    pytest.importorskip("ftwt.runtime._native")
    command = ["prune", tiny.NAME, *tiny.DATA, "--reduction", "0.2", "--gates", "second-look"]
    more = ["--output", "eight", "--precision", "int8", "--epochs", "1"]
    assert cli.main([*command, *more]) == 0
    eight = read_json("eight/prune.json")
    assert eight["precision"] == eight["pruned"]["precision"] == "int8"
    assert "int8, " in eight["latency"]["timings"][-1]["settings"]
    assert "int8" in repr(runtime.load("eight/net.ftwt"))
    chosen = eight["test"][eight["pruned"]["kind"]]["top1"]
    assert eight["engine_top1"] == pytest.approx(chosen, abs=0.03)
    told = capsys.readouterr()
    assert f"top-1 accuracy {eight['engine_top1']:.1%}" in told.out
    assert told.err.count("epoch 1") == 3  # the static twin and both first passes are trained
    command += ["--output", "out"]
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert "top-1 accuracy" in told.out and "chosen" in told.out
    assert "epoch" not in told.err
    assert "99th percentile" in told.out and "the slowest" in told.out
    values = read_json("out/prune.json")
    assert set(values["test"]) == {"dense", "static", "second-look"}
    assert values["pruned"]["judged"] == 400  # what is held out
    look = values["pruned"]["candidates"][1]["look"]
    timed = next(t for t in values["latency"]["timings"] if t["name"] == "ftwt gated")
    assert timed["median_ms"] <= timed["p99_ms"] <= timed["worst_ms"] and len(look["shares"]) == 1
    network = from_pretrained("out/model").eval()
    for verb in (
        ["bench", "out/model", *tiny.DATA, "--rivals", "--rounds", "1"],
        ["compile", "out/model", "-o", "again.ftwt"],
        ["evaluate", "out/model", *tiny.DATA],
    ):
        assert cli.main(verb) == 0
    assert isinstance(runtime.load("again.ftwt"), runtime.SecondLookEngine)
    engine = runtime.load("out/net.ftwt")
    images = torch.randn(4, *network.input_shape)
    with torch.inference_mode():
        expected = network(images).numpy()
    assert abs(engine(images.numpy()) - expected).max() < 1e-3 * abs(expected).max()
    assert abs(compile(network)(images.numpy()) - expected).max() < 1e-3 * abs(expected).max()
    assert cli.main(command) == 1
    assert "holds a pruned network already; choose another --output" in capsys.readouterr().err
