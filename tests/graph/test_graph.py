from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftwt import models
from ftwt.graph.activity import ChannelGraph
from ftwt.graph.trace import trace
from ftwt.graph.units import find_units


class Lambda(nn.Module):
    """A forward as a function, beside the layers that it calls."""

    def __init__(self, body: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class StochasticDepth(nn.Module):
    """A module of no known library that reads its training flag."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x if self.training else x


def conv(fan_in: int, fan_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2, **options)


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


# --- trace


def test_a_traced_network_has_the_modules_and_names_of_the_original() -> None:
    model = models.create("cifar10-resnet20")
    network = trace(model)
    assert dict(network.named_parameters()) == dict(model.named_parameters())
    assert network.get_submodule("stage2.0.conv1") is model.get_submodule("stage2.0.conv1")


@pytest.mark.parametrize("training", [True, False])
def test_tracing_keeps_all_training_flags(training: bool) -> None:
    model = models.create("cifar10-resnet20").train(training)
    model.get_submodule("stage1").train(not training)
    flags = {name: module.training for name, module in model.named_modules()}
    assert trace(model).training is training
    assert {name: module.training for name, module in model.named_modules()} == flags

    def branches(model: Any, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    broken = Lambda(branches, act=nn.ReLU()).train(training)
    broken.act.train(not training)
    with pytest.raises(ValueError, match="cannot trace Lambda: .*control flow.*must not branch"):
        trace(broken)
    assert broken.training is training and broken.act.training is not training


def test_auxiliary_heads_are_left_out() -> None:
    def forward(model: Any, x: Tensor) -> Any:
        return (model.main(x), model.auxiliary(x)) if model.training else model.main(x)

    model = Lambda(forward, main=nn.Linear(3, 2), auxiliary=nn.Linear(3, 2)).train()
    network = trace(model)
    x = torch.randn(2, 3)
    assert network.training and torch.equal(network(x), model.main(x))
    assert not any("auxiliary" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.dropout(x, 0.7, m.training),
        lambda m, x: F.dropout(x, p=0.7, training=m.training),
        lambda m, x: F.dropout(input=x, training=m.training, p=0.7, inplace=False),
        lambda m, x: F.dropout2d(x, 0.7, training=m.training),
        lambda m, x: F.dropout3d(x[..., None], 0.7, m.training),
        lambda m, x: F.alpha_dropout(x, 0.7, m.training),
        lambda m, x: m.depth(x),
        lambda m, x: m.dropout(x),
    ],
)
def test_what_depends_on_the_mode_still_does(call: Callable[[Any, Tensor], Tensor]) -> None:
    model = Lambda(call, depth=StochasticDepth(), dropout=nn.Dropout(0.7))
    network, x = trace(model), torch.randn(4, 6, 5, 5)
    for training in (True, False, True):
        model.train(training), network.train(training)
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        assert torch.equal(network(x), expected)
        assert training != torch.equal(expected.reshape(x.shape), x)


def test_dropout_that_is_always_on_stays_on() -> None:
    network = trace(Lambda(lambda m, x: F.dropout(x))).eval()
    assert 0 < (network(torch.ones(100)) == 0).sum() < 100


# --- units


def found(model: nn.Module, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    network = trace(model)
    units, reasons = find_units(network, **options)
    convs = [n for n, m in network.named_modules() if isinstance(m, nn.modules.conv._ConvNd)]
    names = [unit.name for unit in units]
    assert sorted([*names, *reasons]) == sorted(convs)  # each is a unit, or has its reason
    nodes = [node.name for node in network.graph.nodes]
    assert [nodes.index(u.layer) for u in units] == sorted(nodes.index(u.layer) for u in units)
    return {unit.name: unit for unit in units}, reasons


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (lambda m, x: m.conv(x), "conv"),
        (lambda m, x: m.norm(m.conv(x)), "norm"),
        (lambda m, x: m.act(m.norm(m.conv(x))), "act"),
        (lambda m, x: m.act(m.conv(x)), "act"),
        (lambda m, x: F.relu(m.norm(m.conv(x))), "relu"),
        (lambda m, x: F.silu(m.conv(x)), "silu"),
        (lambda m, x: m.conv(x).relu(), "relu"),
        (lambda m, x: torch.relu(m.conv(x)), "relu"),
        (lambda m, x: m.conv(x).sigmoid(), "sigmoid"),
        (lambda m, x: m.act(m.same(m.same(m.conv(x)))), "act"),
        (lambda m, x: F.max_pool2d(m.same(m.conv(x)), 2), "conv"),
        (lambda m, x: m.norm(m.act(m.conv(x))), "act"),  # the norm comes too late
        (lambda m, x: F.max_pool2d(m.conv(x), 2), "conv"),
        (lambda m, x: (lambda y: m.act(y) + m.norm(y))(m.conv(x)), "conv"),  # used twice
    ],
)
def test_a_unit_ends_with_its_norm_and_its_activation(body: Any, end: str) -> None:
    model = Lambda(
        lambda m, x: m.head(body(m, x)), conv=conv(3, 8), norm=nn.BatchNorm2d(8),
        act=nn.Hardswish(), same=nn.Identity(), head=head(8),
    )  # fmt: skip
    units, _ = found(model)
    assert units["conv"].end == end
    assert (units["conv"].in_channels, units["conv"].out_channels) == (3, 8)
    assert units["conv"].inherits is None


def test_units_of_other_dimensions_are_found() -> None:
    for kind, norm in ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv3d, nn.BatchNorm3d)):
        body = nn.Sequential(kind(3, 8, 3), norm(8), nn.ReLU())
        units, _ = found(nn.Sequential(body, nn.Flatten(), nn.Linear(8, 4)))
        assert units["0.0"].end == "_0_2"


class Block(nn.Module):
    """A residual block, with its activation behind the sum."""

    def __init__(self, fan_in: int, fan_out: int, *, swapped: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(fan_in, fan_out), conv(fan_out, fan_out)
        self.norm = nn.BatchNorm2d(fan_out)
        self.short = conv(fan_in, fan_out, 1) if fan_in != fan_out else nn.Identity()
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        short = self.short(x) if self.swapped else None
        main = self.norm(self.conv2(F.relu(self.conv1(x))))
        return F.relu(short + main) if self.swapped else F.relu(main + self.short(x))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_branch_is_masked_before_or_after_the_sum(swapped: bool) -> None:
    model = nn.Sequential(conv(3, 8), Block(8, 8, swapped=swapped), Block(8, 6), head(6))
    units, reasons = found(model, residual="before")
    assert (units["1.conv2"].end, units["1.conv1"].end) == ("_1_norm", "relu")
    assert reasons == {"2.short": "a shortcut: the main branch of its block has the gate"}
    units, reasons = found(model, residual="after")
    assert (units["1.conv2"].end, units["1.conv1"].end) == ("relu_1", "relu")
    assert units["2.conv2"].end == "relu_3"
    assert list(reasons) == ["2.short"]


def test_what_reaches_the_output_is_no_place_for_a_mask() -> None:
    model = nn.Sequential(conv(3, 6), Block(6, 8), Block(8, 8), nn.AdaptiveAvgPool2d(1))
    for residual in ("before", "after"):
        units, reasons = found(model, residual=residual)
        assert list(units) == ["0", "1.conv1", "2.conv1"]
        assert reasons["1.conv2"] == reasons["2.conv2"] == "its filters are the network's outputs"


def test_of_two_equal_branches_one_has_the_gate_after_their_sum() -> None:
    model = Lambda(
        lambda m, x: m.head(F.relu(m.a(x) + m.b(x))), a=conv(3, 8), b=conv(3, 8), head=head(8)
    )
    units, reasons = found(model, residual="before")
    assert (units["a"].end, units["b"].end) == ("a", "b")
    units, reasons = found(model, residual="after")
    assert units["a"].end == "relu"
    assert reasons == {"b": "its block's output has the gate of a"}


class Padded(nn.Module):
    """Zeros after a map, by a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1))


@pytest.mark.parametrize(
    "between", [nn.Identity(), nn.Dropout(0.1), nn.ZeroPad2d((0, 1, 0, 1)), Padded()]
)
def test_a_depthwise_convolution_takes_its_producers_mask(between: nn.Module) -> None:
    model = nn.Sequential(
        nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU6()), between,
        nn.Sequential(conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.ReLU6()), conv(8, 6, 1), head(6),
    )  # fmt: skip
    units, reasons = found(model)
    assert not reasons
    assert [u.inherits for u in units.values()] == [None, "0.0", None]
    units, _ = found(model, depthwise="gate")
    assert [u.inherits for u in units.values()] == [None, None, None]


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: F.pad(x, (1, 1), value=1.0),
        lambda m, x: F.pad(x, (1, 1), mode="reflect"),
        lambda m, x: F.pad(x[:, 1:], (0, 0, 0, 0, 1, 0)),
        lambda m, x: m.ones(x),
    ],
)
def test_a_depthwise_convolution_behind_another_border_takes_no_mask(between: Any) -> None:
    model = Lambda(
        lambda m, x: m.head(F.relu(m.depthwise(between(m, F.relu(m.stem(x)))))),
        stem=conv(3, 8), depthwise=conv(8, 8, groups=8), ones=nn.ConstantPad2d(1, 1.0),
        head=head(8),
    )  # fmt: skip
    units, reasons = found(model)
    assert list(units) == ["stem"]
    assert reasons == {"depthwise": "depthwise, and its producer has no gate"}


def test_a_chain_of_depthwise_convolutions_takes_one_mask() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8, groups=8), conv(8, 8, groups=8), head(8))
    assert [u.inherits for u in found(model)[0].values()] == [None, "0", "0"]


def test_a_depthwise_convolution_with_two_filters_a_channel_takes_no_mask() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 16, groups=8), head(16))
    units, reasons = found(model)
    assert list(units) == ["0"] and list(reasons) == ["2"]
    assert [u.inherits for u in found(model, depthwise="gate")[0].values()] == [None, None]


def test_every_convolution_that_is_no_unit_has_its_reason() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.twice(m.twice(m.stem(x)))
        y = F.max_pool2d(m.alone(F.max_pool2d(y, 2)), 2)
        return m.last(m.wider(m.up(m.left(y))))

    model = Lambda(
        forward, stem=conv(3, 8), twice=conv(8, 8), alone=conv(8, 8, groups=8), left=conv(8, 8),
        up=nn.ConvTranspose2d(8, 8, 2, 2), wider=conv(8, 16, groups=8), last=conv(16, 4, 1),
    )  # fmt: skip
    units, reasons = found(model, skip={"left": "skipped on request"})
    assert list(units) == ["stem"]
    assert reasons == {
        "twice": "called 2 times: one mask cannot serve them all",
        "alone": "depthwise, and its producer has no gate",
        "left": "skipped on request",
        "up": "a transposed convolution",
        "wider": "depthwise, and its producer has no gate",
        "last": "its filters are the network's outputs",
    }


def test_the_networks_of_the_paper_have_the_units_of_the_paper() -> None:
    assert len(found(models.create("cifar10-vgg16-bn"))[0]) == 13
    assert len(found(models.create("cifar10-resnet56"))[0]) == 55
    assert len(found(models.create("cifar10-mobilenet-v1"))[0]) == 27
    units, reasons = found(models.create("cifar10-mobilenet-v2"))
    assert len(units) == 52 and not reasons
    assert sum(u.inherits is not None for u in units.values()) == 17


# --- activity


def test_space_and_channels_are_told_apart() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 2))
    graph = ChannelGraph(trace(model), (torch.rand(1, 3, 4, 4),))
    assert graph.shapes["_0"] == (4, 4, 4) and graph.shapes["_2"] == (64,)
    assert [(layer.name, layer.positions) for layer in graph.layers] == [("0", 144), ("3", 1)]
    assert graph.unknown == ()


def test_the_shape_pass_leaves_no_trace() -> None:
    model = models.create("cifar10-resnet20").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    ChannelGraph(trace(model), (torch.rand(1, 3, 32, 32, generator=torch.Generator()),))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
