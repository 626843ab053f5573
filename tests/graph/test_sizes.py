"""Networks whose forward computes with sizes, and convolutions with a forward of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from ftwt.graph.convolutions import is_convolution, is_linear
from ftwt.graph.sized import LENGTHS
from ftwt.graph.trace import trace


class Same(nn.Conv2d):
    """Pad as TensorFlow does: how much depends on the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            reach = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [reach // 2, reach - reach // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, groups=self.groups)


class Standardised(nn.Conv2d):
    """Standardise the weight before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).std(1) + 1e-3).reshape(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class Ranked(nn.Conv2d):
    """No mere convolution: each filter's output depends on the others'."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Bright(nn.Conv2d):
    """No mere convolution: a channel that is zero adds something at the border."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), self.weight, self.bias)


class Own(nn.Conv2d):
    """No mere convolution: the weight depends on the image."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class Net(nn.Module):
    """Two convolutions of a kind, what stands between them, and a classifier."""

    def __init__(
        self, kind: type[nn.Conv2d], between: Callable[[Any, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.stem = kind(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv = kind(8, 16, 3)
        self.head = nn.Linear(16, 5)
        self.between = between
        self.register_buffer("shift", torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x if self.between is None else self.between(self, x)
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def odd(net: Any, x: Tensor) -> Tensor:
    return F.pad(x, (0, 1)) if x.shape[-1] % 2 else x


def rows(net: Any, x: Tensor) -> Tensor:
    return torch.stack([x[:, :, row] * (row + 1) for row in range(x.shape[2])], 2)


def windows(net: Any, x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    parts = x.view(count, channels, height // 3, 3, width // 3, 3).permute(0, 2, 4, 1, 3, 5)
    parts = parts.reshape(-1, channels, 3, 3)
    count = parts.shape[0] // (height // 3 * width // 3)
    parts = parts.view(count, height // 3, width // 3, channels, 3, 3).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(count, channels, height, width)


def positions(net: Any, x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[-1], device=x.device) * net.shift


def written(net: Any, x: Tensor) -> Tensor:
    x = x * 2
    x[:, :1, :, : x.shape[-1] // 2] = x[:, 1:2, :, : x.shape[-1] // 2]
    return x


KINDS = pytest.mark.parametrize("kind", [Same, Standardised])
BETWEEN = pytest.mark.parametrize("between", [odd, rows, windows, positions, written])


@KINDS
def test_a_convolution_with_its_own_padding_or_weight_is_a_unit(kind: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    model, images = Net(kind).eval(), torch.randn(2, 3, 19, 19)
    before = set(vars(model))
    dynamic = ftwt.convert(model, images)
    assert set(vars(model)) == before
    assert [unit.name for unit in dynamic.units] == ["stem", "conv"]
    assert dict(dynamic.network.named_parameters()).keys() >= dict(model.named_parameters()).keys()
    assert not dynamic.channels.unknown
    with torch.no_grad():
        for count in (1, 2, 5):
            images = torch.randn(count, 3, 19, 19)
            assert torch.equal(dynamic(images, gates="open"), model(images))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model(images[:1])
    assert 2 * dynamic.macs({}).dense == counter.get_total_flops()
    restored = dynamic.restore()
    assert torch.equal(restored(images), model(images))


@KINDS
def test_the_engine_lowers_them(kind: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    model, images = Net(kind).eval(), torch.randn(2, 3, 19, 20)
    dynamic = ftwt.convert(model, images).eval()
    for predictor in dynamic.predictors.values():
        nn.init.normal_(predictor.linear.weight)
        nn.init.zeros_(predictor.linear.bias)
    found, stats = ftwt.compile(dynamic, engine="reference").run(images.numpy())
    with torch.no_grad():
        wanted, gates = dynamic(images, return_gates="masks")
    masks = {name: gate.mask for name, gate in gates.items()}
    assert all(np.array_equal(stats.masks[name], mask.numpy()) for name, mask in masks.items())
    assert not all(bool(mask.all()) for mask in masks.values())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert stats.executed_macs.tolist() == dynamic.macs(masks).executed.tolist()


@pytest.mark.parametrize("kind", [Ranked, Bright, Own])
def test_one_that_does_more_is_no_unit_and_is_named(kind: type[nn.Conv2d]) -> None:
    assert not is_convolution(kind(8, 16, 3))
    model, images = Net(nn.Conv2d).eval(), torch.randn(2, 3, 19, 19)
    model.conv = kind(8, 16, 3)
    dynamic = ftwt.convert(model, images)
    assert [unit.name for unit in dynamic.units] == ["stem"]
    assert any("conv2d" in name for name in dynamic.channels.unknown)
    assert torch.equal(dynamic(images, gates="open"), model(images))


@BETWEEN
def test_what_depends_on_sizes_is_traced_for_those_of_the_example(between: Any) -> None:
    torch.manual_seed(0)
    model, images = Net(nn.Conv2d, between).eval(), torch.randn(2, 3, 19, 19)
    if between in (odd, rows, written):
        with pytest.raises(ValueError, match="cannot trace Net"):
            trace(model)
    dynamic = ftwt.convert(model, images).eval()
    assert [unit.name for unit in dynamic.units] == ["stem", "conv"]
    with torch.no_grad():
        for count in (1, 2, 5):
            images = torch.randn(count, 3, 19, 19)
            assert torch.equal(dynamic(images, gates="open"), model(images))
        if between is odd:  # of another size, it would silently be another network
            with pytest.raises(ValueError, match=r"shape \(3, 21, 21\).*traced for \(3, 19, 19\)"):
                dynamic(torch.randn(1, 3, 21, 21), gates="open")


def test_what_is_computed_from_a_buffer_follows_it() -> None:
    model, images = (
        Net(nn.Conv2d, lambda net, x: x * (net.shift * 2)).eval(),
        torch.randn(1, 3, 9, 9),
    )
    for network in (trace(model), trace(model, (images,))):
        model.shift.normal_()
        assert torch.equal(network(images), model(images))


def of_value(net: Any, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def of_count(net: Any, x: Tensor) -> Tensor:
    return x if len(x) == 2 else -x


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (of_value, "branches on the values of a tensor"),
        (of_count, "the number of images"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_line(between: Any, why: str) -> None:
    model = Net(nn.Conv2d, between).train()
    with pytest.raises(ValueError, match=f"cannot trace Net: .*{why}.*test_sizes.py, line") as told:
        ftwt.convert(model, torch.randn(2, 3, 19, 19))
    assert "\n" not in str(told.value)
    assert model.training and all(module.training for module in model.modules())


def test_a_graph_that_computes_something_else_is_never_returned() -> None:
    def asks(net: Any, x: Any) -> Tensor:
        return x if isinstance(x, Tensor) else -x  # no stand-in is a tensor

    with pytest.raises(ValueError, match="something else than the network"):
        ftwt.convert(Net(nn.Conv2d, asks), torch.randn(2, 3, 19, 19))


@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 1, 1, 1), (1, 2, 1, 2)])
def test_a_border_that_wins_no_maximum_is_the_pools_padding(padding: Any) -> None:
    def pooled(net: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad((x + 1) * -1, padding, value=-math.inf), 3, 2)

    torch.manual_seed(0)
    model, images = Net(nn.Conv2d, pooled).eval(), torch.randn(2, 3, 22, 22)
    dynamic = ftwt.convert(model, images).eval()
    assert not dynamic.channels.unknown
    found = ftwt.compile(dynamic, engine="reference")(images.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, dynamic(images).numpy(), rtol=1e-4, atol=1e-5)


def test_a_gate_reads_a_map_with_zeros_around() -> None:
    torch.manual_seed(0)
    model = Net(nn.Conv2d, lambda net, x: F.pad(x, (0, 1, 0, 1))).eval()
    images = torch.randn(4, 3, 19, 19)
    dynamic = ftwt.convert(model, images).eval()
    predictor = dynamic.predictors["conv"]
    nn.init.normal_(predictor.linear.weight)
    nn.init.normal_(predictor.linear.bias, std=0.1)
    predictor.standardize.running_mean.uniform_(0, 0.5)
    predictor.standardize.running_var.uniform_(0.1, 0.2)
    _, stats = ftwt.compile(dynamic, engine="reference").run(images.numpy())
    mask = dynamic(images, return_gates="masks")[1]["conv"].mask
    assert np.array_equal(stats.masks["conv"], mask.numpy()) and 0.1 < mask.float().mean() < 0.9


def test_one_channel_may_scale_many() -> None:
    def focused(net: Any, x: Tensor) -> Tensor:
        return x * net.body(x)[:, :1].mean((2, 3), keepdim=True)

    model = Net(nn.Conv2d, focused)
    model.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
    dynamic = ftwt.convert(model, torch.randn(1, 3, 19, 19))
    kept = torch.arange(8) < torch.tensor([[0], [4]])  # without its one channel, all is zero
    count = dynamic.macs({"body.0": kept})
    dense = {layer.name: layer.macs for layer in dynamic.channels.layers}
    assert count.layers["conv"].tolist() == [0, dense["conv"]]
    assert count.layers["body.0"].tolist() == [0, dense["body.0"] / 8]


def test_the_lengths_of_the_batches_do_not_meet_in_a_division() -> None:
    assert all(LENGTHS[0] // n != LENGTHS[1] // n for n in range(1, 2048))


def test_work_on_weights_alone_is_done_once_for_a_batch() -> None:
    model = Net(nn.Conv2d, lambda net, x: x * net.scale(net.shift.flatten())[:, None, None])
    model.scale = nn.Linear(8, 8)
    count = ftwt.count_macs(model, torch.zeros(1, 3, 19, 19))
    assert {layer.name: layer.macs for layer in count.layers}["scale"] == 64

    def for_each(net: Any, x: Tensor) -> Tensor:
        return x * net.scale(net.shift.flatten().expand(x.shape[0], -1))[:, :, None, None]

    model.between = for_each
    count = ftwt.count_macs(model, torch.zeros(1, 3, 19, 19))
    assert {layer.name: layer.macs for layer in count.layers}["scale"] == 64


class Cast(nn.Linear):
    """A linear layer that does as one does, in its own words."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Doubled(nn.Linear):
    """No mere linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_in_its_own_words_is_one(bias: bool) -> None:
    assert is_linear(Cast(16, 5, bias=bias)) and not is_linear(Doubled(16, 5, bias=bias))
    model, images = Net(nn.Conv2d).eval(), torch.randn(2, 3, 19, 19)
    model.head = Cast(16, 5, bias=bias)
    dynamic = ftwt.convert(model, images).eval()
    assert not dynamic.channels.unknown
    count = dynamic.macs({"conv": torch.arange(16)[None] < 4})
    assert count.layers["head"].tolist() == [4 * 5]
    found = ftwt.compile(dynamic, engine="reference")(images.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, dynamic(images).numpy(), rtol=1e-4, atol=1e-5)
