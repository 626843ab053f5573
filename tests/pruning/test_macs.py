from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ftwt
from brute_force import executed, positive, random_gates
from ftwt import models


def conv(fan_in: int, fan_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2, **({"bias": False} | options))


class Network(nn.Module):
    """A function of an image and of some layers, with a classifier on its 8 channels."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self, x))


def unit(fan_in: int, fan_out: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        conv(fan_in, fan_out, kernel, **options), nn.BatchNorm2d(fan_out), nn.ReLU()
    )


def bare(fan_in: int, fan_out: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(conv(fan_in, fan_out, **options), nn.ReLU())


def shortcut(n: Any, x: Tensor) -> Tensor:
    y = n.stem(x)
    return F.relu(n.right(n.left(y)) + n.short(y))


def dense_block(n: Any, x: Tensor) -> Tensor:
    a = n.stem(x)
    b = torch.cat([a, n.grow(F.relu(n.norm(a)))], 1)
    return n.squeeze(torch.cat([b, n.more(b)], 1))


def shuffled(n: Any, x: Tensor) -> Tensor:
    left, right = n.stem(x).chunk(2, 1)
    both = torch.cat([left, n.branch(right)], 1)
    b, c, h, w = both.shape
    return n.out(both.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))


def squeezed(n: Any, x: Tensor) -> Tensor:
    y = n.stem(x)
    scale = torch.sigmoid(n.up(F.relu(n.down(y.mean((2, 3), keepdim=True)))))
    return n.out(scale * y)


def attended(n: Any, x: Tensor) -> Tensor:
    y = n.stem(x)
    where = n.where(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1))
    return n.out(y * torch.sigmoid(where))


def u_shaped(n: Any, x: Tensor) -> Tensor:
    y = n.stem(x)
    below = F.interpolate(n.down(F.max_pool2d(y, 2)), scale_factor=2)
    return n.out(torch.cat([y, below], 1))


def unused(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    n.b(y)
    return n.c(y)


def parts(n: Any, x: Tensor) -> Tensor:
    y = n.stem(x)
    few, many = y.split([3, 5], 1)
    return n.few(few) + n.many(many) + n.middle(y[:, 2:6])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "option-A shortcuts": lambda: models.create("cifar10-resnet20"),
    "shortcut convolutions": lambda: Network(
        shortcut, stem=unit(3, 6), left=unit(6, 8), right=conv(8, 8), short=conv(6, 8, 1)
    ),
    "concatenation": lambda: Network(
        dense_block, stem=unit(3, 8), norm=nn.BatchNorm2d(8), grow=conv(8, 4), more=bare(12, 4),
        squeeze=unit(16, 8, 1),
    ),
    "groups": lambda: Network(
        lambda n, x: n.c(n.b(n.a(x))), a=bare(3, 8), b=bare(8, 12, groups=4),
        c=bare(12, 8, groups=2),
    ),
    "groups, with bias": lambda: Network(
        lambda n, x: n.c(n.b(n.a(x))), a=bare(3, 8), b=conv(8, 12, groups=4, bias=True),
        c=conv(12, 8),
    ),
    "a branch that nothing uses": lambda: Network(
        unused, a=bare(3, 8), b=conv(8, 8), c=bare(8, 8)
    ),
    "depthwise": lambda: Network(
        lambda n, x: n.c(n.b(n.a(x))), a=unit(3, 8), b=unit(8, 8, groups=8), c=unit(8, 8, 1)
    ),
    "depthwise, bare, two filters a channel": lambda: Network(
        lambda n, x: n.c(n.b(n.a(x))), a=bare(3, 8), b=bare(8, 16, groups=8), c=bare(16, 8)
    ),
    "channel shuffle": lambda: Network(
        shuffled, stem=bare(3, 8), branch=bare(4, 4), out=bare(8, 8, groups=2)
    ),
    "channel shuffle, as a module": lambda: Network(
        lambda n, x: n.b(n.shuffle(n.a(x))), a=bare(3, 8), shuffle=nn.ChannelShuffle(4),
        b=bare(8, 8, groups=2),
    ),
    "squeeze and excitation": lambda: Network(
        squeezed, stem=bare(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), out=bare(8, 8)
    ),
    "attention over space": lambda: Network(
        attended, stem=bare(3, 8), where=conv(2, 1), out=bare(8, 8)
    ),
    "no norm, with bias": lambda: Network(
        lambda n, x: n.c(n.b(n.a(x))), a=bare(3, 8, bias=True), b=bare(8, 8, bias=True),
        c=bare(8, 8),
    ),
    "an activation that lifts zero": lambda: Network(
        lambda n, x: n.c(F.softplus(n.a(x))), a=conv(3, 8), c=bare(8, 8)
    ),
    "flattened space": lambda: nn.Sequential(
        bare(3, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 6, bias=False), nn.ReLU(),
        nn.Linear(6, 4),
    ),
    "linear layers on pixels": lambda: Network(
        lambda n, x: F.relu(n.mlp(n.stem(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        stem=bare(3, 6), mlp=nn.Linear(6, 8, bias=False),
    ),
    "channels to pixels": lambda: Network(
        lambda n, x: n.out(n.shuffle(n.stem(x))), stem=bare(3, 16), shuffle=nn.PixelShuffle(2),
        out=bare(4, 8),
    ),
    "pixels to channels": lambda: Network(
        lambda n, x: n.out(n.shuffle(n.stem(x))), stem=bare(3, 4), shuffle=nn.PixelUnshuffle(2),
        out=bare(16, 8),
    ),
    "a U": lambda: Network(u_shaped, stem=bare(3, 8), down=bare(8, 8), out=bare(16, 8)),
    "parts": lambda: Network(
        parts, stem=bare(3, 8), few=conv(3, 8), many=conv(5, 8), middle=conv(4, 8)
    ),
    "transposed": lambda: Network(
        lambda n, x: n.out(F.relu(n.up(n.stem(x)))), stem=bare(3, 8),
        up=nn.ConvTranspose2d(8, 6, 2, 2, groups=2, bias=False), out=bare(6, 8),
    ),
    "arithmetic with numbers": lambda: Network(
        lambda n, x: (lambda y: sum([n.a(y / 2), n.b(y + 1), n.c(2 * y), n.d(y + y)]))(n.stem(x)),
        stem=bare(3, 8), a=conv(8, 8), b=conv(8, 8), c=conv(8, 8), d=conv(8, 8),
    ),
    "a squared activation": lambda: Network(
        lambda n, x: n.c(n.b(n.a(x) ** 2).relu().pow(3)), a=bare(3, 8), b=conv(8, 8), c=bare(8, 8)
    ),
    "padded input beside masked channels": lambda: Network(
        lambda n, x: n.out(torch.cat([F.pad(x, (0, 0, 0, 0, 0, 2)), n.stem(x)], 1)),
        stem=bare(3, 8), out=bare(13, 8),
    ),
    "padding by reflection": lambda: Network(
        lambda n, x: n.out(n.pad(n.stem(x))), stem=bare(3, 8), pad=nn.ReflectionPad2d(1),
        out=bare(8, 8),
    ),
}  # fmt: skip
PLACES = ({}, {"residual": "after", "depthwise": "gate"})
HEADS = ({}, {"pool": "both", "rank": 2}, {"head": "softmax"}, {"head": "softmax", "rank": 3})


def convert_positive(name: str, **options: Any) -> tuple[ftwt.DynamicModel, Tensor]:
    size = 32 if name == "option-A shortcuts" else 8
    images = torch.rand(3, 3, size, size, dtype=torch.float64)
    dynamic = ftwt.convert(positive(NETWORKS[name]()), images, **options)
    random_gates(dynamic, len(images))
    return dynamic, images


def assert_counted(dynamic: ftwt.DynamicModel, images: Tensor) -> None:
    layers, predictors = executed(dynamic, images)
    count = dynamic.macs(
        {name: g.mask for name, g in dynamic(images, return_gates="masks")[1].items()}
    )
    assert {name: macs.tolist() for name, macs in count.layers.items()} == {
        name: macs.tolist() for name, macs in layers.items()
    }
    assert {name: macs.tolist() for name, macs in count.predictors.items()} == {
        name: macs.tolist() for name, macs in predictors.items()
    }
    total = sum(layers.values()) + sum(predictors.values())
    assert torch.equal(count.executed, total)
    assert torch.allclose(count.reduction, 1 - total / count.dense)


@pytest.mark.parametrize("place", PLACES, ids=["before, inherit", "after, gate"])
@pytest.mark.parametrize("name", NETWORKS)
def test_executed_macs_are_those_that_matter(name: str, place: dict[str, Any]) -> None:
    dynamic, images = convert_positive(name, **place)
    assert not dynamic.channels.unknown
    assert_counted(dynamic, images)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_predictors_cost_what_their_heads_execute(head: dict[str, Any]) -> None:
    assert_counted(*convert_positive("concatenation", **head))


@pytest.mark.parametrize("name", ["groups", "depthwise", "option-A shortcuts"])
def test_a_static_twin_pays_for_what_it_computes_alone(name: str) -> None:
    dynamic, images = convert_positive(name, depthwise="gate")
    twin = dynamic.freeze([(images, torch.zeros(3))])
    assert_counted(twin, images)
    masks = {n: g.mask for n, g in twin(images.detach(), return_gates="masks")[1].items()}
    assert twin.macs(masks).executed.mean() < dynamic.macs(masks).executed.mean()


def test_all_that_multiplies_is_counted_by_name() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = ftwt.count_macs(model.train(), torch.rand(5, 4, 8, 8))
    assert {layer.name: layer.macs for layer in count.layers} == {
        "0": 3 * 3 * 3 * 3 * 4 * 6 // 2,
        "3": 54 * 10,
    }
    assert [layer.kind for layer in count.layers] == ["conv", "linear"]
    assert count.total == 972 + 540
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def flops(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images[:1])
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NETWORKS)
def test_dense_macs_are_half_of_torchs_flops(name: str) -> None:
    model, images = NETWORKS[name](), torch.rand(2, 3, 8, 8)
    assert 2 * ftwt.count_macs(model, images).total == flops(model, images)


def test_a_layer_called_twice_counts_twice_and_so_does_space_in_the_batch() -> None:
    def windows(n: Any, x: Tensor) -> Tensor:
        y = n.b(n.b(n.a(x))).permute(0, 2, 3, 1)
        return n.mlp(y.reshape(-1, 16, 8)).reshape(-1, 8, 8, 8).permute(0, 3, 1, 2)

    model = Network(windows, a=bare(3, 8), b=bare(8, 8), mlp=nn.Linear(8, 8))
    images = torch.rand(2, 3, 8, 8)
    count = ftwt.count_macs(model, images)
    names = [layer.name for layer in count.layers]
    assert names == ["a.0", "b.0", "b.0 (call 2)", "mlp", "last.2"]
    assert 2 * count.total == flops(model, images)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda n, y: torch.cumsum(y, 1), "cumsum"),
        (lambda n, y: F.pad(y, (1, 1, 1, 1), value=1.0), "pad"),
        (lambda n, y: F.pad(y[:, 1:], (0, 0, 0, 0, 0, 1), value=1.0), "pad"),
        (
            lambda n, y: F.avg_pool1d(y.flatten(2).transpose(1, 2), 3, 1, 1).reshape(2, 8, 8, 8),
            "avg_pool1d",
        ),
        (lambda n, y: torch.einsum("bchw,cd->bdhw", y, n.c.weight[:, :, 0, 0]), "einsum"),
    ],
    ids=["unknown", "constant border", "constant channel", "pooled channels", "einsum"],
)
def test_an_operation_without_a_rule_is_named_and_all_active(operation: Any, name: str) -> None:
    model = Network(lambda n, x: n.c(operation(n, n.a(x))), a=bare(3, 8), c=conv(8, 8))
    images = torch.rand(2, 3, 8, 8)
    dynamic = ftwt.convert(model, images, skip=["c"])
    layers = {layer.name: layer for layer in dynamic.channels.layers}
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, 0] = True
    count = dynamic.macs({"a.0": mask})
    assert any(name in operation for operation in dynamic.channels.unknown)
    assert name in str(dynamic.summary())
    assert count.layers["c"].tolist() == [layers["c"].macs] * 2
    if name == "einsum":
        assert layers["einsum"].macs == 8 * 8 * 8 * 8
        assert count.layers["einsum"].tolist() == [8 * 8 * 8 * 8] * 2


def test_published_macs_follow_the_papers_formula() -> None:
    model = nn.Sequential(
        *(unit(3, 4), unit(4, 8), nn.MaxPool2d(2), unit(8, 8, groups=8), unit(8, 6, 1)),
        *(nn.Flatten(), nn.Linear(96, 4)),
    )
    dynamic = ftwt.convert(model, torch.rand(2, 3, 8, 8), depthwise="gate")
    assert [u.name for u in dynamic.units] == ["0.0", "1.0", "3.0", "4.0"]
    masks = {u.name: torch.ones(2, u.out_channels, dtype=torch.bool) for u in dynamic.units}
    masks["0.0"][0, 0] = masks["1.0"][0, :3] = masks["3.0"][0, :4] = masks["4.0"][0, :2] = False
    published = dynamic.macs(masks).published
    sparse = 3 * 3 * 64 * 9 + 5 * 3 * 64 * 9 + 0 + 4 * 4 * 16  # 5 inputs // 8 groups = 0
    dense = 4 * 3 * 64 * 9 + 8 * 4 * 64 * 9 + 8 * 16 * 9 + 6 * 8 * 16
    assert published.tolist() == [sparse, dense]
    total = dense + 96 * 4  # the classifier counts in the reference alone
    assert dynamic.macs(masks).dense == total
    assert torch.allclose(
        dynamic.macs(masks).published_reduction[1], torch.tensor(96 * 4 / total).double()
    )


def test_published_macs_of_an_inherited_mask_are_its_producers() -> None:
    model = nn.Sequential(
        unit(3, 8), unit(8, 8, groups=8), unit(8, 6, 1), nn.Flatten(), nn.Linear(384, 4)
    )
    dynamic = ftwt.convert(model, torch.rand(1, 3, 8, 8))
    assert dynamic.units[1].inherits == "0.0"
    masks = {"0.0": torch.arange(8)[None] < 7, "2.0": torch.arange(6)[None] < 6}
    assert dynamic.macs(masks).published.item() == 7 * 3 * 64 * 9 + 0 + 6 * 7 * 64
    assert dynamic.macs({}).published.item() == 8 * 3 * 64 * 9 + 8 * 64 * 9 + 6 * 8 * 64


def test_missing_masks_are_open_and_masks_may_be_empty() -> None:
    dynamic, images = convert_positive("no norm, with bias")
    count = dynamic.macs({})
    assert sum(count.layers.values()).item() == count.dense
    assert count.executed.item() == count.dense + 3 * 8 + 8 * 8 + 8 * 8
    assert count.reduction.item() < 0
    nothing = torch.zeros(2, 8, dtype=torch.bool)
    assert dynamic.macs({"c.0": nothing}).layers["c.0"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("masks", "why"),
    [
        ({"a.0": torch.ones(0, 8).bool()}, "'a.0' is of no sample"),
        ({"a.1": torch.ones(2, 8).bool()}, "unknown unit 'a.1'; did you mean 'a.0'"),
        ({"b": torch.ones(2, 8).bool()}, "unknown unit 'b'; .*Known: a.0, b.0, c.0"),
        ({"a.0": torch.ones(2, 7).bool()}, r"'a.0' has shape \(2, 7\); give .* = \(2, 8\)"),
        ({"a.0": torch.ones(8).bool()}, r"'a.0' has shape \(8,\)"),
        ({"a.0": torch.ones(2, 8).bool(), "c.0": torch.ones(3, 8).bool()}, r"\(3, 8\).*\(2, 8\)"),
        ({"a.0": torch.ones(2, 8)}, "'a.0' is torch.float32; give a tensor of bool"),
        ({"a.0": [[True] * 8]}, "'a.0' is list; give a tensor of bool"),
    ],
)
def test_masks_that_fit_no_unit_are_refused(masks: Any, why: str) -> None:
    dynamic, _ = convert_positive("no norm, with bias")
    with pytest.raises(ValueError, match=why):
        dynamic.macs(masks)


def test_a_mask_of_a_unit_that_inherits_its_own_is_refused() -> None:
    dynamic, _ = convert_positive("depthwise")
    unit = next(unit for unit in dynamic.units if unit.inherits)
    with pytest.raises(ValueError, match=f"{unit.name!r} takes the mask of {unit.inherits!r}"):
        dynamic.macs({unit.name: torch.ones(2, unit.out_channels).bool()})
