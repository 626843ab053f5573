from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import ftwt
import toys
from ftwt import Estimate, models
from ftwt.budget import allocation
from ftwt.budget.controller import BudgetController
from ftwt.data import Batches
from ftwt.models.resnet import resnet
from ftwt.pruning.method import mass, target_mask
from toys import CONFIG, Toy, batches, images

DATA = batches(train=False)  # 64 images
FIXED = ("features.3", "features.6")
MODELS = {
    "toy": Toy,
    "residual": lambda: resnet(8, num_classes=4),
    "depthwise": lambda: models.create("cifar10-mobilenet-v1", width=0.25),
}


def targets(dynamic: ftwt.DynamicModel, *, apply: Any = "open") -> dict[str, Tensor]:
    """Target masks of all images at the network's own r."""
    found = [dynamic.eval()(x, gates=apply, return_gates=True)[1] for x, _ in DATA]
    return {name: torch.cat([gates[name].target for gates in found]) for name in found[0]}


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Estimate]:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    return model, ftwt.estimate(model, DATA)


@pytest.mark.parametrize("index", [0, 12, 24, 36])
def test_the_curve_is_what_target_masks_save(case: Any, index: int) -> None:
    model, estimate = case
    dynamic = ftwt.convert(model, DATA.images.images[:2].float(), r=estimate.r[index])
    masks = targets(dynamic)
    count = dynamic.macs(masks)
    assert estimate.images == 64 and estimate.dense_macs == count.dense
    assert estimate.reduction[index] == pytest.approx(count.reduction.mean().item())
    assert estimate.published_reduction[index] == pytest.approx(
        count.published_reduction.mean().item()
    )
    assert [unit.name for unit in estimate.units] == list(masks)
    for unit in estimate.units:
        assert unit.keep[index] == pytest.approx(masks[unit.name].float().mean().item())
        assert unit.macs[index] == pytest.approx(count.layers[unit.name].mean().item())
        assert unit.predictor_macs[index] == pytest.approx(
            count.predictors[unit.name].mean().item()
        )


def test_the_curve_falls_and_loses_ever_less(case: Any) -> None:
    _, estimate = case
    assert estimate.r[-1] == 1 and list(estimate.r) == sorted(estimate.r)
    assert list(estimate.reduction) == sorted(estimate.reduction, reverse=True)
    assert estimate.reduction[0] - estimate.reduction[-1] > 0.2
    for unit in estimate.units:
        assert list(unit.keep) == sorted(unit.keep)
        assert list(unit.lost) == sorted(unit.lost, reverse=True)
        assert all(lost <= 1 - r + 1e-5 for r, lost in zip(estimate.r, unit.lost, strict=True))
        assert unit.lost[-1] == pytest.approx(0, abs=1e-6)


def test_lost_mass_is_the_share_of_the_heatmaps_that_is_masked() -> None:
    model, index = Toy().eval(), 20
    estimate = ftwt.estimate(model, DATA)
    dynamic = ftwt.convert(model, torch.zeros(2, 3, 8, 8))
    for unit in estimate.units:
        gates = [dynamic(x, gates="open", return_gates=True)[1][unit.name] for x, _ in DATA]
        strength = torch.cat([gate.saliency for gate in gates])
        kept = mass(strength) * target_mask(strength, estimate.r[index])
        assert unit.lost[index] == pytest.approx(1 - kept.sum(1).mean().item(), abs=1e-5)


@pytest.mark.parametrize("unit", ["features.0", "features.3", "features.6"])
def test_with_nothing_masked_upstream_the_estimate_is_the_truth(unit: str) -> None:
    model, (index, r) = Toy(), (22, None)
    others = [name for name in ("features.0", "features.3", "features.6") if name != unit]
    estimate = ftwt.estimate(model, DATA, skip=others)
    r = estimate.r[index]
    dynamic = ftwt.convert(model, torch.zeros(2, 3, 8, 8), r=r, skip=others)
    found = ftwt.evaluate(dynamic, DATA, gates="target")
    assert 0.01 < found.reduction
    assert found.reduction == pytest.approx(estimate.reduction[index], abs=1e-9)
    assert found.published_reduction == pytest.approx(estimate.published_reduction[index], abs=1e-9)
    assert estimate.reduction_at(r) == pytest.approx(found.reduction, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"variant": "uniform"}, {"saliency": "energy"}, {"head": "softmax"}, {"residual": "after"}],
    ids=str,
)
def test_options_are_those_of_convert(options: dict[str, Any]) -> None:
    model = resnet(8, num_classes=4)
    plain, estimate = ftwt.estimate(model, DATA), ftwt.estimate(model, DATA, **options)
    assert estimate.reduction != plain.reduction
    dynamic = ftwt.convert(model, torch.zeros(2, 3, 8, 8), r=estimate.r[20], **options)
    expected = dynamic.macs(targets(dynamic)).reduction.mean().item()
    assert estimate.reduction[20] == pytest.approx(expected)
    same = ftwt.estimate(dynamic, DATA)
    assert same.reduction == estimate.reduction and same.units == estimate.units


def test_the_network_is_not_changed() -> None:
    for model in (Toy(), ftwt.convert(Toy(), torch.zeros(2, 3, 8, 8), r=0.7)):
        for training in (True, False):
            before = {
                name: value.clone() for name, value in model.train(training).state_dict().items()
            }
            ftwt.estimate(model, DATA)
            assert all(module.training is training for module in model.modules())
            assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())


def test_the_pass_ends_with_the_images_that_were_asked_for() -> None:
    model = Toy()
    few = ftwt.estimate(model, DATA, images=40)  # a batch and a quarter
    assert few.images == 40
    first = Batches(images(64, seed=1).select(torch.arange(40)), batch_size=40)
    assert ftwt.estimate(model, first).reduction == pytest.approx(few.reduction)

    def endless() -> Any:
        while True:
            yield from DATA

    assert ftwt.estimate(model, endless(), images=100).images == 100


@pytest.mark.parametrize("r", [0.02, 7.0, float("nan")])
def test_an_r_that_is_not_on_the_curve_is_refused(case: Any, r: float) -> None:
    with pytest.raises(ValueError, match=r"is not on the curve, which goes from 0\.\d+ to 1"):
        case[1].reduction_at(r)


def test_r_for_and_reduction_at_are_each_others_inverse(case: Any) -> None:
    _, estimate = case
    low, high = min(estimate.reduction), max(estimate.reduction)
    for share in (0.0, 0.01, 0.2, 0.5, 0.77, 1.0):
        reduction = low + share * (high - low)
        r = estimate.r_for(reduction=reduction)
        assert estimate.r[0] <= r <= 1
        assert estimate.reduction_at(r) == pytest.approx(reduction, abs=1e-9)
        if r < 1:
            assert estimate.reduction_at(min(r + 1e-3, 1.0)) < reduction + 1e-9
    assert estimate.r_for(reduction=low) == 1


@pytest.mark.parametrize("share", [0.0, 0.32, 0.95])
def test_an_allocation_meets_the_budget_and_loses_no_more_than_one_r(
    case: Any, share: float
) -> None:
    model, estimate = case
    low, high = min(estimate.reduction), max(estimate.reduction)
    budget = low + share * (high - low)
    plan = estimate.allocate(reduction=budget)
    assert set(plan.r) == {unit.name for unit in estimate.units}
    assert plan.reduction >= budget - 1e-9
    assert plan.lost <= plan.single_lost + 1e-9
    assert plan.single_r == pytest.approx(estimate.r_for(reduction=budget), abs=0.02)
    single = estimate.evidence.reduction(dict.fromkeys(plan.r, plan.single_r))
    assert single >= budget - 1e-9

    example = torch.zeros(2, *DATA.images.images.shape[1:])
    measured = ftwt.convert(model, example, r=plan.r)
    masks = targets(measured)
    assert measured.macs(masks).reduction.mean().item() == pytest.approx(plan.reduction, abs=1e-6)
    lost = {"plan": 0.0, "single": 0.0}
    for images_, _ in DATA:
        gates = measured(images_, gates="open", return_gates=True)[1]
        for name, gate in gates.items():
            for kind, r in (("plan", plan.r[name]), ("single", plan.single_r)):
                kept = mass(gate.saliency) * target_mask(gate.saliency, r)
                lost[kind] += (1 - kept.sum(1)).sum().item() / 64
    assert lost["plan"] == pytest.approx(plan.lost, abs=1e-4)
    assert lost["single"] == pytest.approx(plan.single_lost, abs=1e-4)


def test_slopes_are_what_one_unit_alone_would_save(
    case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = case[1].evidence
    grid = np.linspace(0.5, 1, 20)
    r = {name: float(grid[8 + place % 9]) for place, name in enumerate(evidence.entry)}
    wanted = []
    for name, value in r.items():
        lower = {name: float(grid[int(np.searchsorted(grid, value)) - allocation.SLOPE_STEP])}
        more = evidence.reduction(r | lower) - evidence.reduction(r)
        kept, left = (evidence.masks(each)[name].float().mean() for each in (r, r | lower))
        fewer = float(kept - left) * evidence.entry[name].shape[1]
        wanted.append(more / fewer if fewer > 0 else 0.0)
    assert max(wanted) > 0
    for at_once in (1, 200, 10**6):  # images: of one unit, of a few, of all
        monkeypatch.setattr(allocation, "AT_ONCE", at_once)
        assert allocation._slopes(evidence, grid, r) == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_an_allocation_is_worth_making(case: Any) -> None:
    _, estimate = case
    plan = estimate.allocate(reduction=0.5 * max(estimate.reduction))
    assert plan.lost < 0.99 * plan.single_lost
    assert len(set(plan.r.values())) > 1


@pytest.mark.parametrize("reduction", [0.999, -3, float("nan")])
def test_a_budget_out_of_reach_names_the_range(reduction: float) -> None:
    estimate = ftwt.estimate(Toy(), DATA)
    low, high = min(estimate.reduction), max(estimate.reduction)
    for ask in (estimate.r_for, estimate.allocate):
        with pytest.raises(ValueError, match="out of reach; .* saves from .*predictors paid") as e:
            ask(reduction=reduction)
        assert f"from {low:.3f} to {high:.3f}" in str(e.value)


def test_an_estimate_is_saved_and_loaded(tmp_path: Path) -> None:
    estimate = ftwt.estimate(Toy(), DATA, saliency="energy")
    estimate.save(tmp_path / "estimate.json")
    loaded = Estimate.load(tmp_path / "estimate.json")
    assert loaded == estimate
    assert loaded.provenance["config"]["saliency"] == "energy"
    assert loaded.r_for(reduction=0.2) == estimate.r_for(reduction=0.2)
    with pytest.raises(ValueError, match="needs the pass over images; make the estimate again"):
        loaded.allocate(reduction=0.2)
    with pytest.raises(ValueError, match="needs the pass over images"):
        loaded.reduction_at(estimate.allocate(reduction=0.2).r)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"r": [1.0]}', '{"units": [{"name": "a"}]}', '{"units": 3}', "{"]
)
def test_a_file_that_is_no_estimate_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "estimate.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="estimate.json"):
        Estimate.load(path)


def test_the_reduction_at_an_r_for_each_unit_is_counted() -> None:
    estimate = ftwt.estimate(Toy(), DATA)
    r = estimate.r[15]
    one = {unit.name: r for unit in estimate.units}
    assert estimate.reduction_at(one) == pytest.approx(estimate.reduction[15])
    plan = estimate.allocate(reduction=0.3)
    assert estimate.reduction_at(plan.r) == pytest.approx(plan.reduction)
    assert estimate.reduction_at({**one, "features.3": 1.0}) < estimate.reduction[15]
    named = {**one, "features.3": 0.9}  # what convert gives a unit that is not named
    del one["features.3"]
    assert estimate.reduction_at(one) == estimate.reduction_at(named)
    for wrong in ({"features.2": 0.5}, {"features.3": 0.0}):
        with pytest.raises(ValueError, match=r"features.2|in \(0, 1\]"):
            estimate.reduction_at(wrong)


def test_masks_that_are_fixed_already_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    few = torch.arange(8) < 2
    mixed = toys.dynamic(min_gain=-1.0, r=1.0).fix(dict.fromkeys(FIXED, few), partly=True)
    found, estimate = ftwt.evaluate(mixed, DATA, gates="target"), ftwt.estimate(mixed, DATA)
    assert found.reduction > 0.5
    # Gates that come after a fixed mask have other targets than behind an open one.
    assert estimate.reduction_at(1.0) == pytest.approx(found.reduction, abs=0.05)
    assert estimate.reduction_at({"features.0": 1.0}) == pytest.approx(estimate.reduction[-1])

    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(
        BudgetController, "observe", lambda _, *both, steps: seen.append((both[0], both[1]))
    )
    steered = {"target_reduction": 0.75, "predictor_warmup_steps": 4, "cooldown": 1.0}
    settings = replace(CONFIG, epochs=1, **steered)
    assert toys.fit(mixed, settings).history[0].reduction > 0.5  # the warm-up's steps with the rest
    assert seen and all(min(both) > 0.5 for both in seen)


def test_nothing_to_estimate_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images to estimate from"):
        ftwt.estimate(Toy(), [])
    with pytest.raises(ValueError, match="images=0: look at one image or more"):
        ftwt.estimate(Toy(), DATA, images=0)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no gate to estimate"):
        ftwt.estimate(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), DATA)
    with pytest.raises(ValueError, match=r"cannot take an input of \(2, 1, 8, 8\): Given groups=1"):
        ftwt.estimate(Toy(), [(torch.zeros(4, 1, 8, 8), torch.zeros(4))])
    dynamic = ftwt.convert(Toy(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="no images to estimate from"):
        ftwt.estimate(dynamic, [])
    with pytest.raises(ValueError, match="converted for"):
        ftwt.estimate(dynamic, [(torch.zeros(2, 3, 9, 9), torch.zeros(2))])
    with pytest.raises(ValueError, match="no gate to estimate"):
        ftwt.estimate(dynamic.freeze(DATA), DATA)


def test_an_estimate_prints_as_a_table() -> None:
    estimate = ftwt.estimate(Toy(), DATA)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(estimate)
    text = capture.get()
    assert "estimate from 64 images" in text
    index = min(range(37), key=lambda i: (estimate.r[i] < 0.9, estimate.r[i]))
    assert f"{estimate.reduction[index]:.1%}" in text


def test_results_print_as_tables_not_as_their_curves():
    plan = ftwt.estimate(toys.dynamic(), toys.batches(train=False))
    assert len(str(plan)) < 2_000 and "filters kept" in str(plan)
    rounded = [replace(unit, lost=(-1e-9,) * len(plan.r)) for unit in plan.units]
    assert "-0.0%" not in str(replace(plan, units=tuple(rounded)))
