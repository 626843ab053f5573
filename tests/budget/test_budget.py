"""The budget: steered to in training, settled after it."""

import math

import pytest
import torch
from torch import nn

import toys
from ftwt import DynamicModel
from ftwt.budget.calibration import calibrate
from ftwt.budget.controller import MARGIN, BudgetController


def simulate(
    controller: BudgetController, *, steps: int, lag: float, bias: float = 0.0
) -> tuple[list[float], list[float]]:
    """A network whose targets save 0.2 more for each e-fold of lost mass, predictors following."""
    executed, follows, leads = 0.0, [], []
    for _ in range(0, steps, 10):
        lost = 1 - next(iter(controller.r().values()))
        targets = min(0.9, max(0.0, 0.37 + 0.2 * math.log(lost / 0.15)))
        executed += (targets + bias - executed) * (1 - math.exp(-10 / lag))
        controller.observe(executed, targets, steps=10)
        follows.append(executed)
        leads.append(targets)
    return follows, leads


@pytest.mark.parametrize("start", [1.0, 0.99, 0.85, 0.3])
@pytest.mark.parametrize("target", [0.2, 0.5])
def test_the_controller_meets_its_target_and_stays(start: float, target: float) -> None:
    controller = BudgetController({"a": start}, target=target)
    executed, _ = simulate(controller, steps=4000, lag=50)
    assert executed[-100:] == pytest.approx([target] * 100, abs=0.01)
    assert max(executed) < max(target, 0.37 + 0.2 * math.log((1 - start + 0.01) / 0.15)) + 0.1


def test_biased_predictors_are_made_up_for() -> None:
    controller = BudgetController({"a": 0.85}, target=0.4)
    executed, targets = simulate(controller, steps=4000, lag=50, bias=-0.04)
    assert executed[-1] == pytest.approx(0.4, abs=0.005)
    assert targets[-1] == pytest.approx(0.44, abs=0.005)


def test_slow_or_hopeless_predictors_do_not_lead_r_astray() -> None:
    for lag, bias in ((5000, 0.0), (50, -0.3), (50, 0.3)):
        controller = BudgetController({"a": 0.85}, target=0.4, horizon=20)
        _, targets = simulate(controller, steps=4000, lag=lag, bias=bias)
        assert all(abs(value - 0.4) < MARGIN + 0.04 for value in targets[20:])


def test_all_units_lose_in_proportion_and_what_is_whole_stays_whole() -> None:
    controller = BudgetController({"a": 0.9, "b": 0.8, "c": 1.0}, target=0.5)
    controller.observe(0.4, 0.4, steps=20)
    r = controller.r()
    assert r["a"] < 0.9
    assert (1 - r["b"]) / (1 - r["a"]) == pytest.approx(2)
    assert r["c"] == 1.0
    for _ in range(1000):
        controller.observe(-1.0, 0.5, steps=20)
    assert all(0 < value <= 1 for value in controller.r().values())


def test_annealing_leads_from_one_to_r() -> None:
    controller = BudgetController({"a": 0.8})
    assert [controller.r(p)["a"] for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.9, 0.8])
    controller.observe(0.1, 0.1)
    assert controller.r()["a"] == pytest.approx(0.8)  # no target, no steering


def test_a_restored_controller_goes_on_as_it_was() -> None:
    one = BudgetController({"a": 1.0}, target=0.4)
    simulate(one, steps=300, lag=50)
    other = BudgetController({"a": 0.3}, target=0.4)
    other.restore(one.state())
    assert simulate(one, steps=300, lag=50) == simulate(other, steps=300, lag=50)


@pytest.fixture
def network() -> DynamicModel:
    model = toys.dynamic()
    torch.manual_seed(1)
    for gate in model.gates.values():
        nn.init.normal_(gate.predictor.linear.weight, std=2)
    with torch.no_grad():
        model(next(iter(toys.batches(train=True)))[0])  # statistics of the predictors' inputs
    return model


def reduction(model: DynamicModel) -> float:
    values = []
    for images, _ in toys.batches(train=False):
        _, gates = model.eval()(images, return_gates="masks")
        values.append(model.macs({unit: gate.mask for unit, gate in gates.items()}).reduction)
    return float(torch.cat(values).mean())


@pytest.mark.parametrize("asked", [0.1, 0.3, 0.5])
def test_calibrate_delivers_what_is_asked(network: DynamicModel, asked: float) -> None:
    before = reduction(network)
    network.train()
    done = calibrate(network, toys.batches(train=False), reduction=asked, tolerance=0.01)
    assert network.training
    assert done.before == pytest.approx(before)
    assert done.achieved == pytest.approx(asked, abs=0.01)
    assert reduction(network) == pytest.approx(done.achieved)
    thresholds = [float(gate.threshold) for gate in network.gates.values()]
    assert thresholds == pytest.approx([done.offset] * 3)
    assert done.images == 64 and done.probes < 20


def test_calibrate_keeps_thresholds_that_fit(network: DynamicModel) -> None:
    done = calibrate(network, toys.batches(train=False), reduction=0.0, tolerance=0.5)
    assert (done.offset, done.probes) == (0.0, 1)


def test_calibrate_looks_at_no_more_images_than_told(network: DynamicModel) -> None:
    done = calibrate(network, toys.batches(train=False), reduction=0.3, tolerance=0.05, images=40)
    assert done.images == 40


def test_out_of_reach_names_the_range_and_changes_nothing(network: DynamicModel) -> None:
    before = reduction(network)
    with pytest.raises(ValueError, match=r"reduction=0.99 .*give -0\.\d+ to 0\.\d+"):
        calibrate(network, toys.batches(train=False), reduction=0.99)
    assert reduction(network) == before


def test_bad_input_is_named(network: DynamicModel) -> None:
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            calibrate(network, toys.batches(train=False), reduction=value)
    with pytest.raises(ValueError, match="no images"):
        calibrate(network, [], reduction=0.3)
    twin = network.freeze(toys.batches(train=False))
    with pytest.raises(ValueError, match="no thresholds"):
        calibrate(twin, toys.batches(train=False), reduction=0.3)


def test_thresholds_are_as_they_were_when_a_calibration_is_stopped(monkeypatch):
    dynamic = toys.dynamic()
    before = [gate.threshold.clone() for gate in dynamic.gates.values()]
    calls, count = 0, DynamicModel.macs

    def stopped(*arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return count(*arguments)

    monkeypatch.setattr(DynamicModel, "macs", stopped)
    with pytest.raises(KeyboardInterrupt):
        calibrate(dynamic, toys.batches(train=False), reduction=0.4)
    after = [gate.threshold for gate in dynamic.gates.values()]
    assert calls == 5 and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("tolerance", [float("nan"), 0.0, -1.0, 1.0])
def test_a_tolerance_is_a_share(tolerance):
    with pytest.raises(ValueError, match=r"tolerance=.* is outside \(0, 1\)"):
        calibrate(toys.dynamic(), toys.batches(train=False), reduction=0.2, tolerance=tolerance)
