"""First-order saliency against derivatives by hand, and one threshold for all units of an image."""

import pytest
import torch
from torch import Tensor, nn

from ftwt import across_units, convert, first_order, fit_predictors
from ftwt.pruning.dynamic import DynamicModel


class Chain(nn.Module):
    """Two convolutions whose activations are added to in place, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x += 0.5
        x = torch.relu(self.b(x))
        return self.head(x.mean((2, 3)))


def chain() -> DynamicModel:
    torch.manual_seed(0)
    options = {"min_gain": -1.0, "saliency": "energy", "pool": "both"}
    return convert(Chain(), torch.randn(2, 3, 6, 6), **options).eval()


def test_first_order_is_activation_times_the_slope_of_the_guess():
    dynamic, images = chain(), torch.randn(11, 3, 6, 6)
    found = first_order(dynamic, images.split(4), images=9)
    plain = dynamic.restore().double()
    for row, image in enumerate(images[:9].double()):
        a = torch.relu(plain.a(image[None])).detach().requires_grad_()
        b = torch.relu(plain.b(a + 0.5))
        guess = plain.head(b.mean((2, 3))).log_softmax(1).max()
        for name, features in (("a", a), ("b", b)):
            (slope,) = torch.autograd.grad(guess, features, retain_graph=True)
            wanted = (features * slope).abs().sum((2, 3))[0]
            torch.testing.assert_close(found[name][row].double(), wanted, rtol=1e-4, atol=1e-6)
    assert len(found["a"]) == 9
    assert all(parameter.grad is None for parameter in dynamic.parameters())
    with torch.no_grad():
        again = first_order(dynamic, images.split(4), images=9)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_whole_numbers_and_weights_that_stand_still_are_no_hindrance():
    class Whole(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    torch.manual_seed(0)
    images = torch.randint(0, 255, (5, 3, 6, 6), dtype=torch.uint8)
    dynamic = convert(Whole(), images[:2], min_gain=-1.0).eval()
    found = first_order(dynamic, [images])
    again = first_order(dynamic.requires_grad_(False), [images])
    assert all(torch.equal(found[name], again[name]) and found[name].any() for name in found)


def test_what_the_guess_does_not_depend_on_does_not_matter():
    class Aside(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(x)).detach())).mean((2, 3)))

    images = torch.randn(5, 3, 6, 6)
    found = first_order(convert(Aside(), images[:2], min_gain=-1.0).eval(), [images])
    assert found["b"].any() and not found["a"].any()


@pytest.mark.parametrize("faint", [1e-6, 1e-15, 1e-30])
def test_filters_that_hardly_matter_stay_where_the_budget_allows(faint):
    dynamic = chain()
    saliency = {"a": torch.rand(20, 6) + 0.5, "b": torch.rand(20, 8) + 0.5}
    for each in saliency.values():
        each[:, ::2] *= faint
    masks = across_units(dynamic, saliency, reduction=0.1)
    assert 0.1 <= float(dynamic.macs(masks).reduction.mean()) < 0.2


def test_filters_without_saliency_never_stay_but_one_of_each_unit():
    dynamic = chain()
    saliency = {"a": torch.rand(20, 6) + 0.5, "b": torch.zeros(20, 8)}
    saliency["a"][:, ::2] = 0
    masks = across_units(dynamic, saliency, reduction=0.1)
    assert torch.equal(masks["a"], saliency["a"] > 0) and (masks["b"].sum(1) == 1).all()


def test_what_fixed_units_save_counts_towards_the_budget():
    dynamic = chain()
    partly = dynamic.fix({"a": torch.arange(6) < 4}, partly=True)
    saliency = {"a": torch.rand(200, 6), "b": torch.rand(200, 8)}
    masks = across_units(partly, saliency, reduction=0.4)
    assert masks.keys() == {"b"}
    found = partly.macs(partly.with_fixed(masks)).reduction.mean()
    assert 0.4 <= float(found) < 0.42
    with pytest.raises(ValueError, match="no saliency of b"):
        across_units(partly, {"a": saliency["a"]}, reduction=0.4)


def test_what_has_no_guess_is_refused():
    with pytest.raises(ValueError, match="Chain is no DynamicModel; ftwt.convert"):
        first_order(Chain(), [])
    with pytest.raises(ValueError, match="no images"):
        first_order(chain(), [])
    with pytest.warns(UserWarning, match="no unit found"):
        bare = convert(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4))
    with pytest.raises(ValueError, match="no gates, so there are no filters"):
        first_order(bare, [torch.randn(2, 4)])
    with pytest.raises(ValueError, match="no predictors to fit: it is static"):
        across_units(bare, {}, reduction=0.1)
    no_scores = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    dynamic = convert(no_scores, torch.randn(2, 3, 6, 6), min_gain=-1.0)
    with pytest.raises(ValueError, match="no class scores"):
        first_order(dynamic, [torch.randn(2, 3, 6, 6)])
    spoilt = chain()
    spoilt.network.head.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="gradients at a are not finite"):
        first_order(spoilt, [torch.randn(2, 3, 6, 6)])


@pytest.mark.parametrize("reduction", [0.1, 0.3])
def test_an_image_has_one_threshold_and_all_together_meet_the_budget(reduction):
    dynamic = chain()
    saliency = {"a": torch.rand(40, 6) * torch.rand(40, 1), "b": torch.rand(40, 8)}
    targets = across_units(dynamic, saliency, reduction=reduction)
    saved = dynamic.macs(targets).reduction
    assert reduction <= saved.mean() < reduction + 0.02
    assert saved.std() > 0.01, "an image that needs more gets more"
    unequal = 0
    for row in range(40):
        kept = torch.cat([targets[name][row] for name in "ab"])
        strength = torch.cat([saliency[name][row] for name in "ab"])
        best = {"a": saliency["a"][row].argmax(), "b": 6 + saliency["b"][row].argmax()}
        assert kept[best["a"]] and kept[best["b"]]
        ranked = torch.tensor([i for i in range(14) if i not in best.values()])
        gone, left = ranked[~kept[ranked]], ranked[kept[ranked]]
        if len(gone) and len(left):
            assert strength[gone].max() <= strength[left].min()
        unequal += int(targets["a"][row].sum() != targets["a"][0].sum())
    assert unequal, "units of different images keep different numbers of filters"


def test_a_budget_out_of_reach_of_gates_names_the_range():
    saliency = {"a": torch.rand(5, 6), "b": torch.rand(5, 8)}
    with pytest.raises(ValueError, match=r"reduction=0.99 is out of reach of gates.*up to 0\."):
        across_units(chain(), saliency, reduction=0.99)


def test_predictors_learn_targets_by_a_rule_of_ones_own():
    dynamic, images = chain(), torch.randn(200, 3, 6, 6)
    bright = images.mean((1, 2, 3)) > 0
    targets = {"a": bright[:, None].expand(-1, 6), "b": torch.arange(8).expand(200, -1) < 4}
    told = fit_predictors(dynamic, images.split(64), targets=targets)
    assert min(told.accuracy.values()) > 0.9 and told.constant["a"] < 0.7
    _, gates = dynamic(images, return_gates=True)
    assert (gates["b"].mask == targets["b"]).all()


def test_targets_that_do_not_fit_are_refused():
    dynamic, images = chain(), [torch.randn(20, 3, 6, 6)]
    right = {"a": torch.ones(20, 6, dtype=torch.bool), "b": torch.ones(20, 8, dtype=torch.bool)}
    for change, message in (
        ({"b": right["b"][:9]}, r"targets of b are torch.bool of shape \(9, 8\); give bool of"),
        ({"b": right["b"].float()}, r"targets of b are torch.float32 of shape \(20, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_predictors(dynamic, images, targets=right | change)
    with pytest.raises(ValueError, match="no targets for b"):
        fit_predictors(dynamic, images, targets={"a": right["a"]})
