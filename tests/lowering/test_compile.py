import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ftwt
from forced import close, kinds, scramble
from ftwt.lowering import tuning
from ftwt.lowering.tuning import ForcedEngine
from ftwt.runtime import Engine, Predict

NATIVE = any(kind.engine == "native" for kind in kinds())
native = pytest.mark.skipif(not NATIVE, reason="the native engine is not built")


def network() -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 8), (8, 16), (16, 16)):
        conv = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    return scramble(nn.Sequential(*layers)).eval()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8) * torch.arange(1, count + 1).reshape(-1, 1, 1, 1)


def dynamic(**options: Any) -> ftwt.DynamicModel:
    options = {"min_gain": -1e9, "pool": "max"} | options
    return scramble(ftwt.convert(network(), images(2), **options)).eval()


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    x = images(count)
    return [(x[: count // 2], torch.zeros(count // 2)), (x[count // 2 :], torch.zeros(count // 2))]


def compiled(model: nn.Module, *args: Any, **options: Any) -> Engine:
    return ftwt.compile(model, *args, **({"engine": "reference"} | options))


def test_a_dynamic_network_knows_its_size() -> None:
    model, x = dynamic(), images()
    engine = compiled(model)
    with torch.no_grad():
        expected, gates = model(x, return_gates="masks")
    output, stats = engine.run(x)
    close(output, expected)
    assert all(np.array_equal(stats.masks[unit], g.mask.numpy()) for unit, g in gates.items())
    assert isinstance(engine(x.numpy()), np.ndarray)
    assert "economies" not in engine.program.notes
    off = dict.fromkeys(("remove_silent", "drop_constant", "layout", "tune"), False)
    assert compiled(model, **off).program.operations == engine.program.operations


def test_a_plain_network_needs_an_input() -> None:
    model, x = network().train(), images()
    engine = compiled(model, x[:1], classes=["a", "b", "c", "d"])
    assert model.training
    with torch.no_grad():
        close(engine(x), model.eval()(x))
    assert engine.program.classes == ("a", "b", "c", "d")
    for options in ({}, {"keep": 0.5}):
        with pytest.raises(ValueError, match="example=None"):
            compiled(model, **options)


def test_keep_draws_masks_of_that_share() -> None:
    engine = compiled(network(), images(1), keep=0.5, seed=3)
    assert isinstance(engine, ForcedEngine)
    _, stats = engine.run(images())
    assert {gate.unit for gate in engine.program.gates} == {"0", "3", "6"}
    for gate in engine.program.gates:
        assert (stats.masks[gate.unit].sum(1) == gate.channels // 2).all()
    assert (stats.keep == 0.5).all()
    assert len({mask.tobytes() for mask in stats.masks["6"]}) == 6
    predictors = [isinstance(o, Predict) for o in engine.program.operations]
    assert (stats.macs[:, predictors] > 0).all()
    assert (stats.executed_macs == stats.macs.sum(1)).all()


def test_draws_depend_on_the_seed_and_on_what_was_run_before() -> None:
    def masks(seed: int, sizes: tuple[int, ...]) -> list[bytes]:
        engine = compiled(dynamic(), keep=0.3, seed=seed)
        drawn = [engine.run(images(size))[1].masks["3"] for size in sizes]
        return [row.tobytes() for row in np.concatenate(drawn)]

    assert masks(0, (1, 2, 3)) == masks(0, (6,))
    assert masks(0, (6,)) != masks(1, (6,))


def test_draws_begin_again_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "DRAWN", 4)
    engine = compiled(dynamic(), keep=0.3)
    masks = engine.run(images(10))[1].masks["6"]
    assert np.array_equal(masks[:4], masks[4:8]) and np.array_equal(masks[:2], masks[8:])
    given = np.ones((2, 16), bool)
    assert engine.run(images(2), {"6": given})[1].masks["6"].all()


@pytest.mark.parametrize("keep", [0, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=f"keep={keep}: give the share"):
        compiled(dynamic(), keep=keep)


def test_at_least_one_filter_is_kept() -> None:
    stats = compiled(dynamic(), keep=0.001).run(images())[1]
    assert all((mask.sum(1) == 1).all() for mask in stats.masks.values())


def test_a_twin_is_smaller_unless_it_is_to_stay() -> None:
    x = images()
    twin = dynamic().freeze([(x, torch.zeros(6))])
    small, whole = compiled(twin), compiled(twin, remove_fixed=False)
    close(small(x), whole(x))
    assert small.run(x)[1].keep.tolist() == pytest.approx(whole.run(x)[1].keep.tolist())
    for engine, fewer in ((small, True), (whole, False)):
        channels = [gate.channels < gate.prior for gate in engine.program.gates]
        assert any(channels) is fewer
    assert small.program.notes["economies"]["removed"]


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=native)])
def test_of_gates_beside_fixed_masks_the_fixed_filters_are_removed(engine: str) -> None:
    model, x = dynamic(), images()
    first, *others = model.gates
    width = next(unit.out_channels for unit in model.units if unit.name == first)
    mixed = model.fix({first: torch.arange(width) % 2 == 0}, partly=True).eval()
    built = compiled(mixed, engine=engine)
    with torch.inference_mode():
        close(built(x), mixed(x))
    assert built.program.notes["economies"]["removed"] == {first: width // 2}
    channels = {gate.unit: (gate.channels, gate.prior) for gate in built.program.gates}
    assert channels.get(first, (width // 2, width)) == (width // 2, width)
    assert all(channels[name][0] == channels[name][1] for name in others)


def test_economies_look_at_images() -> None:
    model, seen = dynamic(), batches()
    x = torch.cat([x for x, _ in seen])
    plain = compiled(model)
    full = compiled(model, remove_silent=iter(seen), drop_constant=True, layout=True)
    close(full(x), plain(x))
    economies = full.program.notes["economies"]
    rates = model.firing_rates(seen)
    silent = {unit: int((rate == 0).sum()) for unit, rate in rates.items() if (rate == 0).any()}
    assert economies["removed"] == silent and not economies["masked"]
    assert economies["constant"] == [
        unit for unit, rate in rates.items() if ((rate == 0) | (rate == 1)).all()
    ]
    assert economies["runs"][0] >= economies["runs"][1] >= 1


@pytest.mark.parametrize("option", ["remove_silent", "drop_constant", "layout"])
def test_economies_can_be_had_one_by_one(option: str) -> None:
    model, seen = dynamic(), batches()
    engine = compiled(model, **{option: seen})
    close(engine(seen[0][0]), compiled(model)(seen[0][0]))
    names = {"remove_silent": {"removed", "masked"}, "layout": {"runs"}}
    assert engine.program.notes["economies"].keys() == names.get(option, {"constant"})


def test_economies_without_images_are_refused() -> None:
    for option in ("remove_silent", "drop_constant", "layout"):
        with pytest.raises(ValueError, match="no images to look at"):
            compiled(dynamic(), **{option: True})
        with pytest.raises(ValueError, match="no batches to look at"):
            compiled(dynamic(), **{option: []})
    with pytest.raises(ValueError, match="tune with engine='reference'"):
        compiled(dynamic(), tune=True)


@native
def test_the_native_engine_is_the_default() -> None:
    model, x = dynamic(), images()
    engine = ftwt.compile(model, threads=2)
    assert (engine.kind, engine.threads) == ("native", 2)
    close(engine(x), compiled(model)(x))
    assert ftwt.compile(model, keep=0.5).run(x)[1].keep.tolist() == [0.5] * 6


@native
@pytest.mark.parametrize(
    ("slow", "opened"),
    [({"3"}, ["3"]), (set(), []), ({"0", "3", "6"}, ["0", "3", "6"]), ({"6", "0"}, ["0", "6"])],
)
@pytest.mark.parametrize("keep", [None, 0.5])
def test_gates_that_do_not_pay_are_opened(
    slow: set[str], opened: list[str], keep: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(engines: Sequence[Engine], images: np.ndarray, **_: Any) -> list[float]:
        assert images.shape[1:] == (3, 8, 8)
        assert all(isinstance(engine, ForcedEngine) is (keep is not None) for engine in engines)
        gates = [{gate.unit for gate in engine.program.gates} for engine in engines]
        return [10.0 + sum(1 if unit in slow else -1 for unit in units) for units in gates]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    options: dict[str, Any] = {"keep": keep} if keep else {"layout": batches()}
    engine = ftwt.compile(dynamic(), tune=True, **options)
    economies = engine.program.notes["economies"]
    assert economies["opened"] == opened
    assert [gate.unit for gate in engine.program.gates] == [u for u in "036" if u not in opened]
    before, after = economies["tuned_ms"]
    assert before - after == pytest.approx(1000 * len(opened))


@native
def test_tuning_never_makes_it_slower_on_paper() -> None:
    for options in ({"tune": True}, {"tune": batches()}, {"tune": True, "keep": 0.3}):
        engine = ftwt.compile(dynamic(), **options)
        economies = engine.program.notes["economies"]
        assert economies["tuned_ms"][1] <= economies["tuned_ms"][0]
        left = {gate.unit for gate in engine.program.gates}
        assert left.isdisjoint(economies["opened"]) and len(left) + len(economies["opened"]) == 3


def test_one_image_is_an_image() -> None:
    engine, x = compiled(dynamic()), images(3)
    one = torch.cat([engine(image[None]) for image in x])
    close(one, engine(x))
    assert all(a is not b for a, b in itertools.pairwise([engine(x), engine(x)]))
