"""Budgets in milliseconds: what is timed, and how each kind meets one."""

import numpy as np
import pytest
import torch

import toys
from ftwt import compile, prune
from ftwt.fitting.columns import rank_filters
from ftwt.pruning.dynamic import DynamicModel
from ftwt.pruning.second_look import run_counted
from ftwt.runs import latency
from ftwt.runs.candidates import prunable
from ftwt.runtime import Engine

IMAGES = toys.pixels(200)


def test_a_latency_is_met_or_its_range_is_named():
    pytest.importorskip("ftwt.runtime._native")
    dense = toys.classifier()
    with pytest.raises(ValueError, match=r"latency_ms=1e-06 is out of reach; an image takes from"):
        prune(dense, [IMAGES], latency_ms=1e-6)
    with pytest.raises(ValueError, match="the dense network takes .* ms on this engine already"):
        prune(dense, [IMAGES], latency_ms=1e4)


def test_a_clock_averages_over_images(monkeypatch):
    monkeypatch.setattr(latency, "compile", lambda network, check: network)
    times = np.array([1.0, 2.0, 9.0])
    monkeypatch.setattr(latency.Stopwatch, "race", lambda _, names: dict.fromkeys(names, times))
    dynamic, watch = prunable(toys.classifier(), IMAGES), latency.Stopwatch(IMAGES[:3].numpy())
    clock = latency.Clock.of(dynamic, rank_filters(dynamic, [IMAGES]), watch)
    assert set(clock.times) == {4.0}


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_all_times_are_of_the_precision_asked_for(monkeypatch, precision):
    pytest.importorskip("ftwt.runtime._native")
    made: list[Engine] = []

    def noted(network, **options):
        made.append(compile(network, **options))
        return made[-1]

    monkeypatch.setattr(latency, "compile", noted)
    monkeypatch.setattr(latency, "calibrate", lambda *a, **k: None)
    monkeypatch.setattr(latency, "NEAR", 1e9)  # whatever gates take
    watch = latency.Stopwatch(IMAGES[:8].numpy(), precision)
    dynamic = prunable(toys.classifier(), IMAGES)
    ranking = rank_filters(dynamic, [IMAGES])
    clock = latency.Clock.of(dynamic, ranking, watch)
    latency.Budget(0.3, clock.times[0], clock, watch).settle(dynamic, [IMAGES])
    pruned = prune(
        toys.classifier(), [IMAGES], reduction=0.2, gates="second-look", precision=precision
    )
    assert pruned.precision == pruned.to_json()["precision"] == precision
    assert len(made) > 6
    assert all(("int8" in repr(engine)) is (precision == "int8") for engine in made)


def test_gates_are_timed_after_each_try_and_the_dense_network_compiled_once(monkeypatch):
    steps, ms = [], iter((10.0, 9.0, 8.0, 7.0))

    def race(watch, engines):
        steps.append("race")
        return {"gates": np.array([0.0, 0.0, 3 * next(ms)]), "dense": np.full(3, 20.0)}

    monkeypatch.setattr(latency.Stopwatch, "race", race)
    monkeypatch.setattr(latency, "calibrate", lambda *a, **k: steps.append("calibrate"))
    monkeypatch.setattr(latency, "compile", lambda network, check: compiled.append(network))
    compiled: list[DynamicModel] = []
    dynamic = prunable(toys.classifier(), IMAGES)
    clock, watch = latency.Clock((0.0, 0.5), (20.0, 10.0)), latency.Stopwatch(IMAGES.numpy())
    budget = latency.Budget(0.3, 5.0, clock, watch)
    with pytest.raises(ValueError, match="an image takes 7.00 ms; 5.00 ms were asked for"):
        budget.settle(dynamic, [IMAGES])
    assert steps == ["race", *["calibrate", "race"] * 3]
    assert sum(one is not dynamic for one in compiled) == 1


def test_gates_that_cannot_save_as_much_are_refused_by_their_time(monkeypatch):
    def beyond(*_, **__):
        raise ValueError("reduction=0.5500000000000001 is out of reach of these gates")

    times = {"gates": np.full(3, 10.0), "dense": np.full(3, 20.0)}
    monkeypatch.setattr(latency.Stopwatch, "race", lambda *_: times)
    monkeypatch.setattr(latency, "compile", lambda network, check: None)
    monkeypatch.setattr(latency, "calibrate", beyond)
    clock, watch = latency.Clock((0.0, 0.5), (20.0, 10.0)), latency.Stopwatch(IMAGES.numpy())
    with pytest.raises(ValueError, match="an image takes 10.00 ms; 5.00 ms were asked for"):
        latency.Budget(0.3, 5.0, clock, watch).settle(prunable(toys.classifier(), IMAGES), [IMAGES])


def test_each_kind_meets_a_latency_for_itself(monkeypatch):
    """With a clock that counts the MACs, and a millisecond more for gates or a second look."""
    dense = toys.classifier()

    def counted(watch, networks):
        found = {}
        for name, one in networks.items():
            given = torch.from_numpy(watch.images)
            if isinstance(one, DynamicModel):
                work, whole = run_counted(one, given)[1], one.channels.layers
                found[name] = 1.0 * bool(one.predictors)
            else:
                work, whole = one.look(given).executed, one.last.channels.layers
                found[name] = 1.0
            found[name] += 10 * work.numpy() / sum(layer.macs for layer in whole)
        return found

    monkeypatch.setattr(latency, "compile", lambda network, check: network)
    monkeypatch.setattr(latency.Stopwatch, "race", counted)
    pruned = prune(dense, [IMAGES], latency_ms=7.0)
    assert pruned.dense_ms == pytest.approx(10.0) and pruned.asked == pytest.approx(0.3, abs=0.05)
    found = {one.kind: one for one in pruned.candidates}
    assert {"static", "dynamic", "second-look"} <= set(found)
    assert found["dynamic"].reduction > found["static"].reduction + 0.05
    for one in pruned.candidates:
        ms = one.latency_ms if one.look is None else 1 + 10 * (1 - one.look.reduction)
        assert ms == pytest.approx(7.0, abs=0.3)
