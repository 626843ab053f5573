import copy
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from ftwt import DynamicModel, calibrate, models
from ftwt.pruning.dynamic import FrozenGate
from ftwt.pruning.method import Gate, hard_mask, mask_loss, saliency, silence, target_mask
from toys import Toy, batches, dynamic

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def opinionated(**options: Any) -> DynamicModel:
    """The toy network with predictors that close some of the gates, in eval mode."""
    model = dynamic(**options).eval()
    for predictor in model.predictors.values():
        nn.init.normal_(predictor.linear.weight, std=2.0)
        nn.init.normal_(predictor.linear.bias)
    return model


def by_hand(model: DynamicModel, images: Tensor, apply: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The toy network layer by layer."""
    layers, x, masks = dict(model.network.named_modules()), images, {}
    for i in ("0", "3", "6"):
        gate = model.gates[f"features.{i}"]
        y = layers[f"features.{int(i) + 1}"](layers[f"features.{i}"](x)).relu()
        masks[f"features.{i}"] = {
            "predicted": hard_mask(gate.predictor(x), gate.threshold),
            "target": target_mask(saliency(y), float(gate.r)),
            "open": torch.ones(len(images), 8, dtype=torch.bool),
        }[apply]
        x = silence(y, masks[f"features.{i}"])
    return layers["classifier"](x.mean((2, 3))), masks


@pytest.mark.parametrize("apply", ["predicted", "target", "open"])
def test_the_masks_asked_for_are_applied(apply: Any) -> None:
    model = opinionated()
    expected, masks = by_hand(model, IMAGES, apply)
    output, gates = model(IMAGES, gates=apply, return_gates=True)
    assert torch.equal(output, expected)
    assert list(gates) == ["features.0", "features.3", "features.6"]
    for name, gate in gates.items():
        assert torch.equal(gate.mask, masks[name])
        assert gate.logits is not None and gate.target is not None and gate.saliency is not None
    assert torch.equal(model(IMAGES, gates=apply), expected)
    output, gates = model(IMAGES, gates=apply, return_gates="masks")
    assert torch.equal(output, expected)
    assert all(torch.equal(gate.mask, masks[name]) for name, gate in gates.items())
    assert all((gate.logits is None) == (apply != "predicted") for gate in gates.values())
    assert all((gate.target is None) == (apply != "target") for gate in gates.values())


def test_masks_differ_between_modes_and_samples() -> None:
    model = opinionated()
    outputs = [model(IMAGES, gates=apply) for apply in ("predicted", "target", "open")]
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    assert torch.equal(model(IMAGES), outputs[0])
    masks = model(IMAGES, return_gates=True)[1]["features.3"].mask
    assert len(masks.unique(dim=0)) > 1


def test_an_unknown_way_to_gate_is_an_error() -> None:
    with pytest.raises(ValueError, match="gates='closed': use one of predicted, target, open"):
        dynamic()(IMAGES, gates="closed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="return_gates='mask': use False, True, masks or sal"):
        dynamic()(IMAGES, return_gates="mask")  # type: ignore[arg-type]


def test_a_forward_leaves_nothing_behind_and_does_not_interfere_with_another() -> None:
    model = opinionated()
    inputs = [IMAGES + i for i in range(8)]
    expected = [model(x, return_gates=True) for x in inputs]
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = model(inputs[i], return_gates=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (output, gates) in enumerate(expected):
        assert torch.equal(found[i][0], output)
        assert all(torch.equal(found[i][1][name].mask, gate.mask) for name, gate in gates.items())
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


def test_a_copy_is_whole_and_its_own() -> None:
    model = opinionated()
    twin = copy.deepcopy(model)
    expected = model(IMAGES)
    assert torch.equal(twin(IMAGES), expected)
    masks = {name: gate.mask for name, gate in twin(IMAGES, return_gates=True)[1].items()}
    assert torch.equal(twin.macs(masks).executed, model.macs(masks).executed)
    twin.set_r(0.5)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model(IMAGES), expected) and set(model.r.values()) != {0.5}


def test_the_state_dict_holds_all_of_it() -> None:
    model = opinionated()
    model.set_r({"features.3": 0.55})
    model.gates["features.0"].threshold.fill_(0.7)
    other = dynamic(r=0.3).eval()
    assert not torch.equal(other(IMAGES), model(IMAGES))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IMAGES), model(IMAGES))
    assert other.r == model.r
    assert float(other.gates["features.0"].threshold) == pytest.approx(0.7)


def test_parameters_keep_their_names_and_belong_to_the_network_or_to_a_predictor() -> None:
    model = dynamic()
    original = {f"network.{name}" for name, _ in Toy().named_parameters()}
    network = {name for name, _ in model.named_parameters() if "ftwt_gates" not in name}
    assert network == original
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in model.network_parameters()} == original
    predictors = {names[id(p)] for p in model.predictor_parameters()}
    assert predictors == set(names.values()) - original
    assert len(predictors) == 3 * 2


# --- who learns from which loss


def gradients(model: DynamicModel, loss: str) -> tuple[float, float]:
    """Largest gradients of the network and of the predictors; 0 where there is none."""
    model.train()
    output, gates = model(IMAGES, return_gates=True)
    total = F.cross_entropy(output, LABELS) if loss == "task" else mask_loss(gates)
    total.backward()

    def largest(parameters: Any) -> float:
        return max(0.0 if p.grad is None else float(p.grad.abs().max()) for p in parameters)

    return largest(model.network_parameters()), largest(model.predictor_parameters())


@pytest.mark.parametrize(
    ("options", "loss", "network", "predictors"),
    [
        ({"mode": "decoupled"}, "mask", False, True),
        ({"mode": "decoupled"}, "task", True, False),
        ({"mode": "joint"}, "mask", True, True),
        ({"mode": "joint"}, "task", True, False),
        ({"mode": "decoupled", "straight_through": True}, "mask", False, True),
        ({"mode": "decoupled", "straight_through": True}, "task", True, True),
    ],
)
@pytest.mark.parametrize("head", ["standardized", "softmax"])
def test_each_loss_trains_what_it_should(
    options: dict[str, Any], loss: str, network: bool, predictors: bool, head: str
) -> None:
    found = gradients(opinionated(head=head, **options), loss)
    assert (found[0] > 0, found[1] > 0) == (network, predictors)
    assert found[0] == 0 or found[0] > 1e-6


def test_held_predictors_stand_still_whatever_the_mode() -> None:
    model = opinionated()
    model.hold_predictors()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for mode in (False, True, True):
        model.train(mode)
        output, gates = model(IMAGES, return_gates=True)
        (F.cross_entropy(output, LABELS) + mask_loss(gates)).backward()
        optimizer.step()
    after = model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and not any("predictor" in name for name in moved)
    assert any("running_mean" in name for name in moved)

    model.hold_predictors(False)
    model(IMAGES, return_gates=True)
    assert all(p.requires_grad for p in model.predictor_parameters())
    running = "network.ftwt_gates.features.0.predictor.standardize.running_mean"
    assert not torch.equal(model.state_dict()[running], before[running])


def test_modules_keep_their_own_modes() -> None:
    toy = Toy()
    toy.features[1].eval()  # a norm that is fine-tuned with the statistics it has
    model = ftwt.convert(toy, IMAGES)
    modes = {name: module.training for name, module in model.named_modules()}
    assert not modes["network.features.1"] and modes["network.features.4"]
    assert all(gate.training and gate.predictor.training for gate in model.gates.values())
    model.hold_predictors()
    model.hold_predictors(False)
    model.freeze(batches(train=False))
    ftwt.estimate(model, batches(train=False))
    ftwt.evaluate(model, batches(train=False))
    assert {name: module.training for name, module in model.named_modules()} == modes


# --- r, and images


def test_r_is_set_for_all_units_or_for_one() -> None:
    model = dynamic(r=0.8)
    model.set_r(0.6)
    assert model.r == pytest.approx(dict.fromkeys(model.gates, 0.6))
    model.set_r({"features.3": 1.0})
    assert model.r == pytest.approx({"features.0": 0.6, "features.3": 1.0, "features.6": 0.6})
    keep = []
    for r in (0.3, 0.6, 0.9):
        model.set_r(r)
        gates = model(IMAGES, gates="open", return_gates=True)[1]
        keep.append(sum(gate.target.sum() for gate in gates.values()))
    assert keep[0] < keep[1] < keep[2]
    for r in (0, -1, 2, float("nan")):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            model.set_r(r)
    with pytest.raises(ValueError, match="unknown unit 'features.1'; did you mean"):
        model.set_r({"features.0": 0.5, "features.1": 0.5})
    assert model.r == pytest.approx(
        dict.fromkeys(model.gates, 0.9)
    )  # as the last valid call left it


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 8, 8), (2, 3, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"for a network converted for \(3, 8, 8\); resize them"):
        dynamic().check_input(torch.zeros(shape))
    for look in (dynamic().freeze, partial(calibrate, dynamic(), reduction=0.0)):
        with pytest.raises(ValueError, match=r"for a network converted for \(3, 8, 8\)"):
            look([(torch.zeros(shape), torch.zeros(2))])
    dynamic().check_input(torch.zeros(1, 3, 8, 8))


def test_a_batch_of_one_is_no_special_case() -> None:
    model = opinionated()
    alone = torch.cat([model(image[None]) for image in IMAGES])
    assert torch.allclose(alone, model(IMAGES), atol=1e-5)
    model.train()
    output, gates = model(IMAGES[:1], return_gates=True)
    (output.sum() + mask_loss(gates)).backward()
    assert torch.isfinite(output).all()


# --- the static twin


def test_the_static_twin_computes_the_most_frequent_filters_for_every_image() -> None:
    model = opinionated().train()
    data = batches(train=False)
    rates = model.firing_rates(data)
    twin = model.freeze(data)
    assert model.training and twin.training
    model.eval()
    masks = [model(images, return_gates=True)[1] for images, _ in data]
    static = twin.eval()(IMAGES, return_gates=True)[1]
    for name, rate in rates.items():
        fired = torch.cat([gates[name].mask for gates in masks]).double()
        assert torch.equal(rate, fired.mean(0))
        mask = static[name].mask[0]
        assert mask.sum() == round(fired.sum(1).mean().item())
        assert mask.all() or rate[mask].min() >= rate[~mask].max()
        assert (static[name].mask == mask).all() and static[name].logits is None
    assert 0 < sum(rate.mean() for rate in rates.values()) < 3


def test_a_network_that_is_fixed_in_steps_is_saved_and_loaded(tmp_path: Path) -> None:
    model = opinionated(min_gain=-1.0)
    few = torch.arange(8) < 3
    steps = [model.fix({"features.3": few}, partly=True)]
    steps.append(steps[0].fix({"features.0": few}, partly=True))
    assert steps[0].config["static"] == ["features.3"]
    assert steps[1].config["static"] == ["features.0", "features.3"]
    ftwt.save_pretrained(steps[1], tmp_path)
    loaded = ftwt.from_pretrained(tmp_path, model=Toy())
    assert torch.equal(loaded(IMAGES), steps[1](IMAGES))
    assert steps[1].fix({"features.6": few}, partly=True).config["static"] is True


def test_the_static_twin_has_no_predictors_and_trains_like_any_other() -> None:
    model = opinionated()
    twin = model.freeze(batches(train=False)).train()
    assert all(isinstance(gate, FrozenGate) for gate in twin.gates.values())
    assert not list(twin.predictor_parameters()) and twin.predictors == {} and twin.r == {}
    assert all(isinstance(gate, Gate) for gate in model.gates.values())
    assert twin.config == model.config | {"static": True}
    count = twin.macs({name: gate.mask[None] for name, gate in twin.gates.items()})
    assert count.predictors == {} and 0 < count.reduction.item() < 1

    twin.eval()
    assert torch.equal(twin(IMAGES, gates="target"), twin(IMAGES))
    assert torch.equal(twin(IMAGES, gates="open"), model(IMAGES, gates="open"))
    assert torch.equal(twin.restore()(IMAGES), model.restore()(IMAGES))

    output, gates = twin.train()(IMAGES, return_gates=True)
    assert mask_loss(gates) == 0
    F.cross_entropy(output, LABELS).backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "features.0" in str(twin.summary())


def test_a_twin_needs_images() -> None:
    with pytest.raises(ValueError, match="no batches to count masks on"):
        dynamic().freeze([])


# --- the summary


def test_the_summary_lists_every_convolution() -> None:
    model = ftwt.convert(
        models.create("cifar10-mobilenet-v2", width=0.25), torch.zeros(2, 3, 32, 32),
        r={"stem.conv": 0.75}, skip=["stage3.0.expand.conv"],
    )  # fmt: skip
    text = str(model.summary())
    assert repr(model.summary()) == text
    for unit in model.units:
        assert unit.name in text and f"{unit.in_channels} -> {unit.out_channels}" in text
    assert f"{len(model.units)} units" in text and "0.75" in text
    inherited = next(unit for unit in model.units if unit.inherits)
    assert f"mask of {inherited.inherits}" in text.replace("\n", " ")
    assert "not gated: stage3.0.expand.conv" in text and "skipped on request" in text
    assert "depthwise, and its producer has no gate" in text
    costs = [int(cost) for cost in model.summary().costs.values()]
    assert costs[0] == 3 * model.units[0].out_channels and f"{costs[-1]:,}" in text


def test_a_dynamic_network_prints() -> None:
    assert "Gate" in repr(dynamic()) and "FrozenGate" in repr(
        dynamic().freeze(batches(train=False))
    )
