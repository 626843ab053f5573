import dataclasses
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import ftwt
from ftwt import DynamicModel
from ftwt.evaluation.evaluate import _Tally
from ftwt.records.evaluation import UnitStats
from toys import Toy, batches, dynamic

DATA = batches(train=False)  # 64 images in 2 batches
IMAGES = torch.cat([images for images, _ in DATA])
LABELS = torch.cat([labels for _, labels in DATA])


@pytest.fixture
def model() -> DynamicModel:
    """The toy network with predictors that close some of the gates."""
    model = dynamic().eval()
    for predictor in model.predictors.values():
        nn.init.normal_(predictor.linear.weight, std=3.0)
        nn.init.normal_(predictor.linear.bias)
    return model


def test_a_plain_network_is_judged_by_its_answers_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    found = ftwt.evaluate(model, DATA)
    outputs = model(IMAGES)
    order = outputs.argsort(dim=1, descending=True)
    assert found.images == 64
    assert found.loss == pytest.approx(F.cross_entropy(outputs, LABELS).item())
    assert found.top1 == (order[:, 0] == LABELS).float().mean().item()
    assert found.top5 == (order[:, :5] == LABELS[:, None]).any(1).float().mean().item()
    assert 0 < found.top1 < found.top5 < 1
    assert found.dense_macs == found.executed_macs == 192 * 7
    assert found.reduction == found.reduction_std == found.published_reduction == 0
    assert found.units == () and found.mask_accuracy is None
    assert found.dynamism == {"always": 1.0, "sometimes": 0.0, "never": 0.0, "entropy": 0.0}


def test_a_plain_network_may_be_one_that_cannot_be_traced() -> None:
    class Branches(Toy):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if images.mean() > 0 else -images)

    assert ftwt.evaluate(Branches(), DATA).dense_macs == ftwt.count_macs(Toy(), IMAGES[:1]).total


def test_fewer_than_five_classes_are_all_among_the_first_five() -> None:
    assert ftwt.evaluate(Toy(), DATA).top5 == 1


@pytest.mark.parametrize("gates", ["predicted", "target", "open"])
def test_figures_of_a_dynamic_network_equal_a_direct_computation(
    model: DynamicModel, gates: Any
) -> None:
    found = ftwt.evaluate(model, DATA, gates=gates)
    outputs, decided = model(IMAGES, gates=gates, return_gates=True)
    count = model.macs({name: gate.mask for name, gate in decided.items()})
    assert found.loss == pytest.approx(F.cross_entropy(outputs, LABELS).item(), rel=1e-5)
    assert found.top1 == (outputs.argmax(1) == LABELS).float().mean().item()
    assert found.dense_macs == count.dense == ftwt.count_macs(Toy(), IMAGES[:1]).total
    assert found.executed_macs == pytest.approx(count.executed.mean().item())
    assert found.reduction == pytest.approx(count.reduction.mean().item())
    assert found.reduction_std == pytest.approx(count.reduction.std(correction=0).item())
    assert found.reduction_range == pytest.approx(
        (count.reduction.min().item(), count.reduction.max().item())
    )
    assert found.published_reduction == pytest.approx(count.published_reduction.mean().item())
    accuracies = []
    assert [unit.name for unit in found.units] == list(decided)
    for unit in found.units:
        gate = decided[unit.name]
        mask, rate = gate.mask.double(), gate.mask.double().mean(0)
        assert unit.channels == 8
        assert unit.keep == pytest.approx(mask.mean().item())
        assert unit.keep_std == pytest.approx(mask.mean(1).std(correction=0).item())
        assert unit.always == gate.mask.all(0).sum()
        assert unit.never == (~gate.mask).all(0).sum()
        assert unit.distinct == len(gate.mask.unique(dim=0))
        entropy = -(rate * rate.log2().nan_to_num(neginf=0)) - (1 - rate) * (
            1 - rate
        ).log2().nan_to_num(neginf=0)
        assert unit.entropy == pytest.approx(entropy.mean().item())
        accuracies.append((gate.mask == gate.target).float().mean().item())
        assert unit.mask_accuracy == pytest.approx(accuracies[-1])
    assert found.mask_accuracy == pytest.approx(sum(accuracies) / 3)
    if gates == "predicted":
        assert found.reduction_std > 0.01 and max(unit.distinct for unit in found.units) > 2
        assert 0.2 < found.mask_accuracy < 0.9
    else:
        assert found.mask_accuracy == 1 or gates == "open"


def test_dynamism_weighs_units_by_their_filters(model: DynamicModel) -> None:
    narrow = UnitStats("a", 4, 0.5, 0.1, always=1, never=2, entropy=0.25, distinct=2)
    wide = UnitStats("b", 12, 0.5, 0.1, always=0, never=3, entropy=0.75, distinct=9)
    found = dataclasses.replace(ftwt.evaluate(model, DATA), units=(narrow, wide))
    assert found.dynamism == pytest.approx(
        {"always": 1 / 16, "sometimes": 10 / 16, "never": 5 / 16, "entropy": (1 + 9) / 16}
    )


def test_no_filter_fires_sometimes_where_all_fire_always_or_never(model: DynamicModel) -> None:
    """Exactly none: a remainder of shares, a hair below 0, would be printed as -0.0%."""
    found = ftwt.evaluate(model, DATA)
    for filters in range(1, 100):
        units = [UnitStats("a", filters, 0.5, 0.1, n, filters - n, 0.5, 1) for n in range(filters)]
        shares = [dataclasses.replace(found, units=(unit,)).dynamism["sometimes"] for unit in units]
        assert min(shares) == max(shares) == 0, filters


def test_without_targets_there_is_no_mask_accuracy_and_all_else_is_the_same(
    model: DynamicModel,
) -> None:
    found, full = ftwt.evaluate(model, DATA, targets=False), ftwt.evaluate(model, DATA)
    assert found.mask_accuracy is None
    assert all(unit.mask_accuracy is None for unit in found.units)
    assert (found.loss, found.reduction, found.top1) == (full.loss, full.reduction, full.top1)


def test_a_static_twin_is_never_dynamic(model: DynamicModel) -> None:
    found = ftwt.evaluate(model.freeze(DATA), DATA)
    assert found.reduction > 0 and found.reduction_std == pytest.approx(0)
    assert found.dynamism["sometimes"] == found.dynamism["entropy"] == 0
    assert all(unit.distinct == 1 for unit in found.units)
    assert found.mask_accuracy is None


def test_a_network_without_gates_is_judged_too() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.warns(UserWarning):
        model = ftwt.convert(flat, IMAGES[:1])
    found, plain = ftwt.evaluate(model, DATA), ftwt.evaluate(flat, DATA)
    assert (found.loss, found.top1, found.reduction) == (plain.loss, plain.top1, 0)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_not_changed(model: DynamicModel, training: bool) -> None:
    before = {name: value.clone() for name, value in model.train(training).state_dict().items()}
    ftwt.evaluate(model, DATA)
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.train()(IMAGES).sum().backward()  # no tensor of the inference was kept
    with pytest.raises(ValueError):
        ftwt.evaluate(model, [(torch.zeros(1, 3, 9, 9), torch.zeros(1))])
    assert model.training


def test_two_parts_add_up_to_the_whole(model: DynamicModel) -> None:
    whole = ftwt.evaluate(model, DATA)
    tallies = []
    for images, labels in DATA:
        tally = _Tally()
        with torch.inference_mode():
            outputs, decided = model(images, return_gates=True)
        tally.guess(outputs, labels)
        tally.work(model, decided)
        tallies.append(tally)
    total = _Tally()  # as of a process that had no image
    for tally in tallies:
        total.add(tally)
    assert total.result({}) == whole

    uneven = ftwt.evaluate(model, [(IMAGES[:5], LABELS[:5]), (IMAGES[5:], LABELS[5:])])
    assert uneven.loss == pytest.approx(whole.loss)
    assert uneven.to_json()["dynamism"] == whole.to_json()["dynamism"]
    assert uneven.reduction == pytest.approx(whole.reduction)


def test_nothing_to_evaluate_is_an_error(model: DynamicModel) -> None:
    for network in (model, Toy()):
        with pytest.raises(ValueError, match="no batches to evaluate on"):
            ftwt.evaluate(network, [])


@pytest.mark.parametrize("label", [-1, 4, 9])
def test_labels_out_of_range_are_an_error(model: DynamicModel, label: int) -> None:
    for network in (model, Toy()):
        with pytest.raises(ValueError, match=rf"{label}.* 4 outputs; .* in \[0, 3\]"):
            ftwt.evaluate(network, [(IMAGES[:2], torch.tensor([1, label]))])


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (2, 1, 8, 8)])
def test_images_of_another_size_are_an_error(model: DynamicModel, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"converted for \(3, 8, 8\)"):
        ftwt.evaluate(model, [(torch.zeros(shape), torch.zeros(2, dtype=torch.long))])
    if shape[1] == 1:  # a plain network may well take another size
        with pytest.raises(ValueError, match=r"cannot take images of \(2, 1, 8, 8\)"):
            ftwt.evaluate(Toy(), [(torch.zeros(shape), torch.zeros(2, dtype=torch.long))])


def test_an_evaluation_prints_and_is_json(model: DynamicModel) -> None:
    found = ftwt.evaluate(model, DATA, provenance={"command": "x"})
    values = json.loads(json.dumps(found.to_json()))
    assert values["provenance"] == {"command": "x"}
    assert values["units"][0]["name"] == "features.0"
    assert values["dynamism"]["always"] == found.dynamism["always"]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(found)
    text = capture.get()
    assert f"{found.reduction:.2%} ± {found.reduction_std:.2%}" in text
    assert f"{found.top1:.2%}" in text and f"{found.mask_accuracy:.2%}" in text
    assert math.isfinite(found.loss)
