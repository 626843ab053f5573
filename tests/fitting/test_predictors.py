"""Predictors fitted in one pass: better than a constant mask, and as good as epochs."""

import copy
import functools

import pytest
import torch

import toys
from ftwt import convert, fit_predictors
from ftwt.config import TrainConfig
from ftwt.fitting.columns import rank_filters
from ftwt.fitting.masks import Ranking
from ftwt.fitting.predictors import _look
from ftwt.fitting.worth import SPREAD, worthwhile
from ftwt.training.loop import train


@functools.cache  # nothing here changes it
def trained() -> torch.nn.Module:
    model = toys.Toy()
    train(
        model, toys.batches(train=True), toys.batches(train=False),
        TrainConfig(epochs=4, lr=0.1), progress=False,
    )  # fmt: skip
    return model.eval()


@pytest.mark.parametrize(
    "options", [{}, {"head": "softmax"}, {"rank": 4}, {"pool": "both", "saliency": "energy"}]
)
def test_fitted_predictors_agree_with_their_targets_more_than_a_constant_mask(options):
    torch.manual_seed(0)
    dynamic = convert(trained(), torch.zeros(2, 3, 8, 8), r=0.7, min_gain=-1.0, **options)
    before = copy.deepcopy(dynamic.state_dict())
    told = fit_predictors(dynamic, [(toys.pixels(300), None)], images=300)
    assert told.images == 300 and told.accuracy.keys() == dynamic.predictors.keys()
    mean = sum(told.accuracy.values()) / len(told.accuracy)
    assert mean > sum(told.constant.values()) / len(told.constant)
    _, gates = dynamic.eval()(toys.pixels(100, seed=5), return_gates=True)
    agree = sum(float((g.mask == g.target).float().mean()) for g in gates.values()) / len(gates)
    assert agree == pytest.approx(mean, abs=0.08)
    for name, value in dynamic.state_dict().items():
        if "ftwt_gates" not in name:
            assert torch.equal(value, before[name]), name


def test_they_are_as_good_as_an_epoch_of_training():
    model = trained()
    fitted, learned = (
        convert(model, torch.zeros(2, 3, 8, 8), r=0.7, min_gain=-1.0) for _ in range(2)
    )
    config = TrainConfig(epochs=1, lr=0.0, cooldown=1.0)
    train(learned, toys.batches(train=True), toys.batches(train=False), config, progress=False)
    fit_predictors(fitted, toys.batches(train=False))

    def agreement(dynamic):
        _, gates = dynamic.eval()(toys.pixels(200, seed=9), return_gates=True)
        return sum(float((g.mask == g.target).float().mean()) for g in gates.values())

    assert agreement(fitted) > agreement(learned)


def test_one_batch_or_many_fit_the_same():
    model = trained()
    nets = [convert(model, torch.zeros(2, 3, 8, 8), r=0.7, min_gain=-1.0) for _ in range(2)]
    images = toys.pixels(60)
    for net, parts in zip(nets, ([images], images.split(7)), strict=True):
        fit_predictors(net, parts)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_fitted_is_refused():
    dynamic = toys.dynamic()
    with pytest.raises(ValueError, match="0 images to fit predictors with; give 5 or more"):
        fit_predictors(dynamic, [])
    with pytest.raises(ValueError, match="no predictors to fit"):
        fit_predictors(dynamic.freeze(toys.batches(train=False)), toys.batches(train=False))
    dynamic.hold_predictors()
    with pytest.raises(ValueError, match=r"held; dynamic.hold_predictors\(False\) lets it"):
        fit_predictors(dynamic, toys.batches(train=False))
    dynamic.hold_predictors(False)
    other = Ranking({"x": torch.arange(8)}, {"x": torch.arange(8).double()})
    with pytest.raises(ValueError, match="the ranking lacks features.0, .*; rank this"):
        fit_predictors(dynamic, toys.batches(train=False), ranking=other, reduction=0.1)
    next(iter(dynamic.network.features.parameters())).data[0] = torch.nan
    with pytest.raises(ValueError, match=r"the predictor of .* reads values that are not finite"):
        fit_predictors(dynamic, toys.batches(train=False))


def test_what_fixed_units_save_counts_towards_the_budget():
    images = toys.pixels(100)
    dynamic = toys.dynamic(min_gain=-1.0, saliency="energy").eval()
    ranking = rank_filters(dynamic, [images])
    partly = dynamic.fix({"features.0": torch.arange(8) < 4}, partly=True)
    _, saliency = _look(partly, [images], 100, None)
    targets = worthwhile(partly, ranking, saliency, reduction=0.6)
    found = partly.macs(partly.with_fixed(targets)).reduction.mean()
    assert float(found) == pytest.approx(0.6, abs=0.01)


def test_with_a_ranking_targets_are_what_readers_cannot_make_up_for():
    dense = trained()
    dynamic = convert(dense, torch.zeros(2, 3, 8, 8), saliency="energy", min_gain=-1.0).eval()
    images = toys.pixels(300)
    ranking = rank_filters(dynamic, [images])
    _, saliency = _look(dynamic, [images], 300, None)
    silent = {name: torch.zeros_like(values) for name, values in saliency.items()}
    for name, kept in worthwhile(dynamic, ranking, silent, reduction=0.3).items():
        assert kept.nonzero()[:, 1].unique().tolist() == [int(ranking.order[name][-1])]
    targets = worthwhile(dynamic, ranking, saliency, reduction=0.6)
    assert float(dynamic.macs(targets).reduction.mean()) == pytest.approx(0.6, abs=0.01)
    for name, order in ranking.order.items():
        fires = targets[name].float().mean(0)
        assert fires[order[-1]] == 1  # the one that goes last
        single = dynamic.macs({name: ~torch.eye(len(order), dtype=torch.bool)})
        costs = single.dense - torch.stack([*single.layers.values()]).sum(0)
        beside_mean = (saliency[name] / saliency[name].mean(0)).double()
        worth = ranking.lost[name].diff() * (beside_mean**SPREAD / costs)[:, order[:-1]]
        kept = targets[name][:, order[:-1]]
        assert 0 < kept.float().mean() < 1 and worth[kept].min() >= worth[~kept].max()
    told = fit_predictors(dynamic, [images], ranking=ranking, reduction=0.6, images=300)
    _, gates = dynamic(images, return_gates="masks")
    agree = [float((gates[name].mask == targets[name]).float().mean()) for name in targets]
    assert sum(agree) / len(agree) == pytest.approx(
        sum(told.accuracy.values()) / len(told.accuracy), abs=0.1
    )
    with pytest.raises(ValueError, match="reduction=0.99 is out of reach of gates"):
        fit_predictors(dynamic, [images], ranking=ranking, reduction=0.99)
    with pytest.raises(ValueError, match=r"reduction=-1 is outside \(0, 1\)"):
        fit_predictors(dynamic, [images], ranking=ranking, reduction=-1)
    with pytest.raises(ValueError, match="Toy is no DynamicModel; ftwt.convert"):
        fit_predictors(dense, [images])
    with pytest.raises(ValueError, match="reduction=0.3 and no ranking: give both, or neither"):
        fit_predictors(dynamic, [images], reduction=0.3)


def test_few_images_of_many_features_are_not_learnt_by_heart():
    """What no feature tells cannot be guessed: then a predictor says what is usual."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 256, 3), torch.nn.ReLU(), torch.nn.Conv2d(256, 32, 3), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    dynamic = convert(
        model.eval(), torch.zeros(2, 3, 8, 8), r=0.7, min_gain=-1.0, pool="both", skip=["0", "4"]
    )
    by_chance = {"2": torch.rand(100, 32) < 0.7}
    told = fit_predictors(dynamic, [toys.pixels(100)], images=100, targets=by_chance)
    assert told.accuracy["2"] > told.constant["2"] - 0.05
