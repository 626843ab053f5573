"""Greedy column selection against least squares done anew for every choice of filters."""

import pytest
import torch
from torch import Tensor, nn

from ftwt import convert
from ftwt.fitting import columns as columns_module
from ftwt.fitting.columns import RIDGE, _Reader, rank_filters, readers_of
from ftwt.fitting.masks import fixed_masks, mean_saliency
from ftwt.fitting.regression import Moments
from ftwt.fitting.sites import find_sites
from ftwt.pruning.dynamic import DynamicModel


class Mixed(nn.Module):
    """A block, a grouped and a depthwise reader, a concatenation, and a linear one of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.e, self.f = nn.Conv2d(12, 4, 1, groups=2), nn.Conv2d(4, 3, 3)
        self.head = nn.Linear(3 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.a(x))
        x = stem + self.b(torch.relu(stem))
        x = torch.cat([x, torch.relu(self.d(torch.relu(self.c(x))))], 1)
        return self.head(torch.relu(self.f(torch.relu(self.e(x)))).flatten(1))


def mixed() -> DynamicModel:
    return convert(Mixed(), torch.randn(2, 3, 6, 6), min_gain=-1.0, saliency="energy").eval()


def left_over(x: Tensor, y: Tensor, kept: Tensor) -> float:
    """Least squares of (N, O) y on some columns of (N, I) x: error and ridge, of the mean."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    ridge = RIDGE * x.square().mean(0).mean()
    part = x[:, kept]
    gram = part.T @ part / len(x) + ridge * torch.eye(part.shape[1])
    weights = torch.linalg.solve(gram, part.T @ y / len(x))
    return float((part @ weights - y).square().mean(0).sum() + ridge * weights.square().sum())


def patches(x: Tensor, size: int) -> Tensor:
    found = nn.functional.unfold(x, size, padding=0)
    return found.transpose(1, 2).reshape(-1, found.shape[1])


def rows(y: Tensor) -> Tensor:
    return y.movedim(1, -1).flatten(0, 2)


def test_losses_are_what_least_squares_leaves_and_each_step_is_the_least():
    dynamic, images = mixed(), torch.randn(200, 3, 6, 6)
    ranking = rank_filters(dynamic, images.split(50), images=200)
    network = dynamic.restore()
    maps: dict[str, Tensor] = {}
    for name in "cdef":
        layer = network.get_submodule(name)
        layer.register_forward_hook(
            lambda _, i, o, name=name: maps.update({name: i[0].clone(), name + "y": o.clone()})
        )
    network.head.register_forward_hook(lambda _, i, o: maps.update(head=i[0], heady=o))
    with torch.no_grad():
        network(images)
    # unit -> what reads it, what that gives, and filter -> columns; groups apart.
    second = maps["e"][:, 6:]  # c's filters, behind the depthwise layer, are e's second group
    cases = {
        "c": (rows(second), rows(maps["ey"][:, 2:]), maps["ey"], lambda c: [c]),
        "e": (patches(maps["f"], 3), rows(maps["fy"]), maps["fy"],
              lambda c: range(9 * c, 9 * c + 9)),
        "f": (maps["head"], maps["heady"], maps["heady"], lambda c: range(16 * c, 16 * c + 16)),
    }  # fmt: skip
    for unit, (x, y, goal, columns) in cases.items():
        order, lost = ranking.order[unit].tolist(), ranking.lost[unit]
        spread = float(goal.movedim(1, -1).flatten(0, -2).double().var(0, unbiased=False).sum())
        assert sorted(order) == list(range(len(order)))

        def error(gone, x=x, y=y, spread=spread, columns=columns):
            kept = torch.ones(x.shape[1], dtype=torch.bool)
            for filter in gone:
                kept[list(columns(filter))] = False
            return left_over(x, y, kept) / spread

        whole = error([])
        for count in range(1, len(order)):
            assert float(lost[count]) == pytest.approx(error(order[:count]) - whole, rel=1e-3)
            others = [error([*order[: count - 1], other]) for other in order[count - 1 :]]
            assert error(order[:count]) == pytest.approx(min(others), rel=1e-4)


def test_few_samples_do_not_make_filters_look_superfluous(monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8)
    )
    dynamic = convert(network, torch.randn(2, 3, 6, 6), min_gain=-1.0).eval()
    many, unit = torch.randn(4000, 3, 6, 6), next(iter(dynamic.gates))
    with torch.no_grad():
        features = network[:4](many)
        outputs = network[4](features)
    spread = float(outputs.double().var(0, unbiased=False).sum())

    def left(ranking, gone=32):
        """Error promised, and what least squares really leaves."""
        kept = torch.ones(64, dtype=torch.bool)
        kept[ranking.order[unit][:gone]] = False
        return float(ranking.lost[unit][gone]), left_over(features, outputs, kept) / spread

    shrunk = left(rank_filters(dynamic, [many[:24]]))
    monkeypatch.setattr("ftwt.fitting.columns.FEW", 0)
    plain = left(rank_filters(dynamic, [many[:24]]))
    assert plain[0] < 0.05 * plain[1]  # next to nothing, it says
    assert shrunk[0] > 0.3 * shrunk[1]


def test_a_unit_without_a_reader_that_can_be_fitted_is_ranked_by_energy():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.b(torch.relu(self.a(x)))).mean((2, 3))

    images = torch.randn(20, 4, 6, 6)
    dynamic = convert(Shared(), images[:2], min_gain=-1.0, saliency="energy").eval()
    ranking = rank_filters(dynamic, [images])
    _, gates = dynamic(images, gates="open", return_gates="saliency")
    energy = gates["a"].saliency.double().mean(0)
    assert ranking.order["a"].tolist() == energy.argsort().tolist()
    torch.testing.assert_close(ranking.lost["a"][1], energy.min() / energy.sum(), rtol=1e-5, atol=0)


def test_a_unit_that_a_sum_reads_too_is_not_ranked_by_its_other_reader_alone():
    dynamic, images = mixed(), torch.randn(200, 3, 6, 6)
    sites = [site for site in find_sites(dynamic.network)[0] if site.gate is None]
    assert list(readers_of(dynamic, "a", sites)) == ["b"]
    lost = rank_filters(dynamic, [images], images=200).lost["a"]
    saliency = mean_saliency(dynamic, [images], images=200)["a"].sort().values
    torch.testing.assert_close(lost, (saliency.cumsum(0) - saliency) / saliency.sum())


def test_the_ranking_does_not_depend_on_the_batches():
    dynamic, images = mixed(), torch.randn(40, 3, 6, 6)
    one, many = (rank_filters(dynamic, images.split(size)) for size in (40, 7))
    for name, order in one.order.items():
        assert order.tolist() == many.order[name].tolist()
        torch.testing.assert_close(one.lost[name], many.lost[name], rtol=1e-4, atol=1e-9)


def test_batches_may_come_from_a_generator(monkeypatch):
    monkeypatch.setattr("ftwt.fitting.passes.room", lambda *_: 0)  # all passes start anew
    dynamic, images = mixed(), torch.randn(40, 3, 6, 6)
    listed, generated = (
        rank_filters(dynamic, batches) for batches in ([images], (part for part in [images]))
    )
    assert all(torch.equal(lost, generated.lost[name]) for name, lost in listed.lost.items())


@pytest.mark.parametrize("reduction", [0.1, 0.35, 0.6])
def test_masks_meet_the_budget_and_none_more_can_stay(reduction):
    dynamic = mixed()
    ranking = rank_filters(dynamic, [torch.randn(40, 3, 6, 6)])
    masks = fixed_masks(dynamic, ranking, reduction=reduction)

    def saved(masks):
        work = dynamic.macs({name: mask[None] for name, mask in masks.items()})
        return 1 - float(sum(work.layers.values())[0]) / work.dense

    assert saved(masks) >= reduction
    for name, mask in masks.items():
        order, gone = ranking.order[name], int((~mask).sum())
        assert not mask[order[:gone]].any()
        if gone:
            back = mask.clone()
            back[order[gone - 1]] = True
            assert saved(masks | {name: back}) < reduction
    with pytest.raises(ValueError, match=r"0.99 is out of reach; .* from 0.000 to 0\.\d+"):
        fixed_masks(dynamic, ranking, reduction=0.99)


def test_no_images_and_spoilt_weights_are_refused():
    dynamic = mixed()
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"{count} images to rank filters on; give 2 or more"):
            rank_filters(dynamic, [torch.randn(count, 3, 6, 6)] * count)
    dynamic.network.c.weight.data[0] = torch.inf
    with pytest.raises(ValueError, match="values that are not finite"):
        rank_filters(dynamic, [torch.randn(8, 3, 6, 6)])


def test_sums_shrink_as_filters_go_and_losses_stay(monkeypatch):
    x, y = torch.randn(1, 300, 18), torch.randn(1, 300, 4)
    moments = Moments(1, 18, 4, torch.device("cpu"))
    moments.add(x, y)
    columns = torch.arange(18).view(9, 2).flip(0)[:7]  # four columns are another unit's
    found = []
    for share in (0.8, 0.0):
        monkeypatch.setattr(columns_module, "SHRUNK", share)
        reader = _Reader(moments, 1.0, True, torch.zeros(7, dtype=torch.long), columns)
        steps = []
        for gone in (3, 0, 6, 1, 5):
            reader.remove(gone)
            steps.append(reader.losses())
        found.append((torch.stack(steps), len(reader.inverse[0])))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == 10 and found[1][1] == 18
