"""Fixed masks: which units have them, which filters they keep, at which budget."""

import pytest
import torch
from torch import Tensor, nn

import toys
from ftwt import convert
from ftwt.fitting.masks import fixed_masks, inner_units, mean_saliency


class Blocks(nn.Module):
    """A residual block, and a convolution that is concatenated with its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.grow, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(torch.cat([x, torch.relu(self.grow(x))], 1)).mean((2, 3))


def blocks():
    return convert(Blocks(), torch.randn(2, 3, 8, 8), saliency="energy", min_gain=-1.0).eval()


def test_inner_units_are_those_that_no_sum_reads():
    dynamic = blocks()
    assert [unit.name for unit in dynamic.units] == ["stem", "a", "b", "grow"]
    assert inner_units(dynamic) == ["a", "grow"]


class Streams(nn.Module):
    """A depthwise layer hands its producer's mask to a sum; a difference is a sum, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.deep(torch.relu(self.narrow(x)))
        x = x - torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_what_reaches_a_stream_through_a_depthwise_layer_or_a_difference_is_not_inner():
    dynamic = convert(Streams(), torch.randn(2, 3, 8, 8), min_gain=-1.0).eval()
    assert {"stem", "narrow", "b"} < dynamic.gates.keys()
    assert inner_units(dynamic) == ["a", "last"]


def test_mean_saliency_is_the_mean_over_all_images():
    dynamic, images = blocks(), torch.randn(10, 3, 8, 8)
    found = mean_saliency(dynamic, images.split(4), images=10)
    _, gates = dynamic(images, gates="open", return_gates="saliency")
    assert found.keys() == gates.keys()
    for name, mean in found.items():
        torch.testing.assert_close(mean.float(), gates[name].saliency.mean(0))
    with pytest.raises(ValueError, match="no images to rank filters on"):
        mean_saliency(dynamic, [])
    partly = dynamic.fix({"grow": torch.arange(8) < 4}, partly=True)
    with pytest.raises(ValueError, match="grow is fixed, and so has no saliency"):
        mean_saliency(partly, [images])


@pytest.mark.parametrize("reduction", [0.1, 0.3, 0.6])
def test_masks_keep_the_strongest_filters_at_the_budget(reduction):
    dynamic = toys.dynamic()
    saliency = {name: torch.rand(8).double() + 0.1 for name in dynamic.gates}
    masks = fixed_masks(dynamic, saliency, reduction=reduction)
    for name, mask in masks.items():
        if not mask.all():
            assert saliency[name][mask].min() > saliency[name][~mask].max()
    twin = dynamic.fix(masks)
    saved = float(twin.macs({n: m[None] for n, m in masks.items()}).reduction[0])
    assert saved >= reduction
    more = fixed_masks(dynamic, saliency, reduction=saved)
    assert all(torch.equal(more[name], mask) for name, mask in masks.items())  # by as little


def test_a_budget_out_of_reach_names_the_range():
    dynamic = toys.dynamic()
    saliency = {name: torch.ones(8).double() for name in dynamic.gates}
    with pytest.raises(ValueError, match=r"0.999 is out of reach; .* from 0.000 to 0\.\d+"):
        fixed_masks(dynamic, saliency, reduction=0.999)


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, -1.0])
def test_a_saliency_that_is_none_is_refused(spoilt):
    dynamic = toys.dynamic()
    saliency = {name: torch.ones(8).double() for name in dynamic.gates}
    saliency["features.3"][2] = spoilt
    with pytest.raises(ValueError, match=r"the saliency of features\.3 holds NaN, inf or negative"):
        fixed_masks(dynamic, saliency, reduction=0.3)


def test_silent_filters_go_whatever_is_asked():
    dynamic = toys.dynamic()
    saliency = {name: torch.arange(8).double().clamp(max=4) for name in dynamic.gates}
    masks = fixed_masks(dynamic, saliency, reduction=0.01)
    assert all(mask.tolist() == [False] + [True] * 7 for mask in masks.values())


def test_a_fixed_network_computes_what_its_masks_say():
    dynamic = toys.dynamic()
    images = torch.randn(4, 3, 8, 8)
    masks = {name: torch.arange(8) % 2 == 0 for name in dynamic.gates}
    twin = dynamic.fix(masks)
    assert not twin.predictors and twin.config["static"] and dynamic.predictors
    _, gates = twin.eval()(images, return_gates="masks")
    assert all(torch.equal(g.mask, masks[n].expand(4, -1)) for n, g in gates.items())


def test_masks_that_do_not_fit_are_refused():
    dynamic = toys.dynamic()
    good = {name: torch.ones(8, dtype=torch.bool) for name in dynamic.gates}
    first = next(iter(good))
    with pytest.raises(ValueError, match=f"no unit 'typo'; .*{first}"):
        dynamic.fix(good | {"typo": good[first]})
    with pytest.raises(ValueError, match=f"mask of unit '{first}' has shape .* each of 8"):
        dynamic.fix({name: mask for name, mask in good.items() if name != first})
    for mask in (torch.ones(7, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)):
        with pytest.raises(ValueError, match=f"mask of unit '{first}'"):
            dynamic.fix(good | {first: mask})
