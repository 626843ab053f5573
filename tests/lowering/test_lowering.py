"""One operation at a time: what it is lowered to, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from forced import build, check_against, close, scramble
from ftwt.lowering import lower
from ftwt.runtime import Conv, Engine, Gather, Operation, Program
from ftwt.runtime.check import check

Body = Callable[[Any, Tensor], Any]


class Network(nn.Module):
    """A function of an image and of some layers."""

    def __init__(self, body: Body, **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def conv(fan_in: int = 4, fan_out: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, kernel, **({"padding": kernel // 2} | options))


def lowered(body: Body, *, size: tuple[int, int] = (6, 5), **layers: nn.Module) -> Program:
    """Lower a network, and hold what engines say of it to what it says."""
    model = scramble(Network(body, **layers)).eval()
    x = torch.randn(3, 4, *size)
    program = lower(model, x)
    check(program)
    with torch.no_grad():
        expected = model(x.clone())
    for engine in build(program):
        close(engine(x), expected.flatten(1) if expected[0, 0].numel() == 1 else expected)
    return program


def kinds(program: Program) -> list[str]:
    return [type(operation).__name__ for operation in program.operations]


def only(program: Program, kind: type[Operation]) -> Any:
    (found,) = (operation for operation in program.operations if isinstance(operation, kind))
    return found


BODIES: dict[str, Body] = {
    "relu": lambda n, x: F.relu(x),
    "relu, in place": lambda n, x: torch.relu_(x + 0),
    "relu, method": lambda n, x: x.relu(),
    "relu6": lambda n, x: F.relu6(4 * x),
    "hardtanh": lambda n, x: F.hardtanh(4 * x, 0.0, 6.0),
    "silu": lambda n, x: F.silu(x),
    "hardswish": lambda n, x: F.hardswish(3 * x),
    "sigmoid": lambda n, x: torch.sigmoid(x),
    "hardsigmoid": lambda n, x: F.hardsigmoid(3 * x),
    "leaky_relu": lambda n, x: F.leaky_relu(x, 0.01),
    "elu": lambda n, x: F.elu(x),
    "gelu": lambda n, x: F.gelu(x),
    "tanh": lambda n, x: x.tanh(),
    "max pool": lambda n, x: F.max_pool2d(x, 3, 2, 1),
    "max pool, ceil": lambda n, x: F.max_pool2d(x, 2, ceil_mode=True),
    "mean pool": lambda n, x: F.avg_pool2d(x, 2),
    "mean pool, padded": lambda n, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "mean pool, not counting": lambda n, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive mean": lambda n, x: F.adaptive_avg_pool2d(x, (4, 2)),
    "adaptive mean, larger": lambda n, x: F.adaptive_avg_pool2d(x, 7),
    "adaptive maximum": lambda n, x: F.adaptive_max_pool2d(x, (3, 3)),
    "adaptive, as it is": lambda n, x: F.relu(F.adaptive_avg_pool2d(x, (6, None))),
    "global mean": lambda n, x: x.mean((2, 3)),
    "global mean, kept": lambda n, x: torch.mean(x, dim=[-1, -2], keepdim=True),
    "global maximum": lambda n, x: x.amax((2, 3)),
    "dropout": lambda n, x: F.dropout(F.relu(x), 0.5, n.training),
    "sum": lambda n, x: x + F.relu(x),
    "sum with itself": lambda n, x: x + x,
    "sum, spread": lambda n, x: x.mean((2, 3), keepdim=True) + x,
    "product": lambda n, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "product, the other way": lambda n, x: x.mean((2, 3), keepdim=True) * x,
    "numbers": lambda n, x: (2 * x + 1 - 0.5) / 4,
    "chunk": lambda n, x: x.chunk(2, 1)[1],
    "split": lambda n, x: torch.cat([(parts := x.split([1, 3], 1))[1], parts[0]], 1),
    "cat": lambda n, x: torch.cat([x, F.relu(x), x[:, 1:2]], 1),
    "every second pixel": lambda n, x: x[:, :, ::2, ::2],
    "every third row": lambda n, x: x[:, 1:, ::3],
    "option A": lambda n, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 1)),
    "flatten": lambda n, x: torch.flatten(F.relu(x), 1),
    "flatten, channels last": lambda n, x: F.relu(x).permute(0, 2, 3, 1).flatten(1),
    "flatten two": lambda n, x: torch.cat([F.relu(x).flatten(1), x.mean((2, 3))], 1),
    "shuffle": lambda n, x: F.channel_shuffle(x, 2),
    "shuffle by views": lambda n, x: (
        x.view(x.size(0), 2, x.shape[1] // 2, x.size(2), -1).transpose(1, 2).reshape(x.shape)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_operations(name: str) -> None:
    lowered(BODIES[name])


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": conv,
    "no bias": lambda: conv(bias=False),
    "stride": lambda: conv(stride=(2, 1)),
    "dilation": lambda: conv(dilation=2, padding=(1, 2)),
    "same": lambda: conv(padding="same", dilation=(2, 3)),
    "valid": lambda: conv(padding="valid"),
    "groups": lambda: conv(4, 6, groups=2),
    "depthwise": lambda: conv(4, 8, groups=4),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm, bare": lambda: nn.BatchNorm2d(4, affine=False),
    "modules": lambda: nn.Sequential(nn.ReLU6(), nn.Hardtanh(0, 6), nn.Hardswish(), nn.SiLU()),
    "more": lambda: nn.Sequential(nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.Tanh(), nn.Sigmoid()),
    "pools": lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.Hardsigmoid()),
    "adaptive": lambda: nn.Sequential(nn.AdaptiveMaxPool2d((4, 2)), nn.AdaptiveAvgPool2d(1)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(120, 3), nn.ReLU(), nn.Linear(3, 2)),
    "vectors": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)
    ),
    "movements": lambda: nn.Sequential(nn.ChannelShuffle(2), nn.Identity(), nn.Flatten()),
    "padded": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), conv(padding=1)),
    "shuffled, then linear": lambda: nn.Sequential(
        nn.ChannelShuffle(2), nn.Flatten(), nn.Linear(120, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    lowered(lambda n, x: n.layer(x), layer=LAYERS[name]())


def test_what_follows_a_convolution_becomes_part_of_it() -> None:
    program = lowered(
        lambda n, x: F.relu(n.norm(n.conv(x)) + x), conv=conv(bias=False), norm=nn.BatchNorm2d(4)
    )
    assert kinds(program) == ["Conv"]
    assert (operation := only(program, Conv)).name == "conv"
    assert (operation.act, operation.add, operation.post) == ("none", 0, "relu")
    assert {array.dtype for array in program.constants.values()} == {np.dtype(np.float32)}
    assert len(program.constants) == 2


def test_what_others_read_stays_as_it_is() -> None:
    program = lowered(
        lambda n, x: torch.cat([y := n.conv(x), F.relu(n.norm(y))], 1),
        conv=conv(), norm=nn.BatchNorm2d(4),
    )  # fmt: skip
    assert kinds(program) == ["Conv", "Affine", "Gather"]


def test_batch_norms_are_rounded_once() -> None:
    layer, norm = conv(4, 64, 1), nn.BatchNorm2d(64)
    program = lower(scramble(nn.Sequential(layer, norm)).eval(), torch.randn(1, 4, 2, 2))
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = (layer.weight.double() * scale[:, None, None, None]).float()
    bias = ((layer.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()).float()
    (operation,) = program.operations
    assert isinstance(operation, Conv)
    exact = weight.detach().numpy(), bias.detach().numpy()
    assert np.array_equal(program.constants[operation.weight], exact[0])
    np.testing.assert_array_max_ulp(program.constants[operation.bias], exact[1], 1)


def test_a_linear_layer_reads_the_map_itself() -> None:
    for body in (
        lambda n, x: n.fc(F.relu(x).flatten(1)),
        lambda n, x: n.fc(F.relu(x).permute(0, 2, 3, 1).flatten(1)),
        lambda n, x: n.fc(torch.flatten(F.channel_shuffle(F.relu(x), 2), 1)),
    ):
        program = lowered(body, fc=nn.Linear(120, 7))
        assert kinds(program) == ["Activate", "Conv"]
        assert program.constants[only(program, Conv).weight].shape == (7, 4, 6, 5)


def test_a_movement_of_nothing_is_nothing() -> None:
    program = lowered(lambda n, x: n.conv(torch.cat(x.chunk(4, 1), 1)), conv=conv())
    assert kinds(program) == ["Conv"]


def test_concatenations_are_gathered_at_once() -> None:
    program = lowered(
        lambda n, x: F.channel_shuffle(torch.cat([n.conv(x), x[:, 2:]], 1), 3), conv=conv()
    )
    index = program.constants[only(program, Gather).index]
    assert index.tolist() == [0, 2, 6, 1, 3, 7]


def test_what_is_read_twice_is_gathered_once() -> None:
    program = lowered(
        lambda n, x: n.a(y := torch.cat([x, F.relu(x)], 1)) + n.b(y), a=conv(8), b=conv(8)
    )
    assert kinds(program).count("Gather") == 1


def test_an_operation_in_place_changes_what_is_read_later() -> None:
    def body(n: Any, x: Tensor) -> Tensor:
        y = n.conv(x)
        z = F.relu(y, inplace=True)
        return torch.cat([y, z + 1], 1)

    lowered(body, conv=conv())
    lowered(lambda n, x: (y := n.conv(x)).add_(x) * y, conv=conv())


def test_calls_of_one_layer_have_names() -> None:
    program = lowered(lambda n, x: n.conv(F.relu(n.conv(x))), conv=conv())
    assert [operation.name for operation in program.operations] == ["conv", "conv (call 2)"]


def test_a_program_shares_no_memory_with_its_network() -> None:
    model, x = (
        nn.Sequential(conv(), nn.Flatten(), nn.Linear(120, 2)).eval(),
        torch.randn(2, 4, 6, 5),
    )
    (engine,) = (Engine(lower(model, x), engine="reference"),)
    before = engine(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(engine(x), before)


REFUSED: dict[str, tuple[Body, str]] = {
    "softmax": (lambda n, x: x.softmax(1), r"softmax \(node softmax\): there is no rule"),
    "a module": (lambda n, x: n.layer(x), r"LayerNorm \(node layer\): there is no rule"),
    "slope": (lambda n, x: F.leaky_relu(x, 0.2), "negative_slope=0.2; only 0.01"),
    "dimensions": (lambda n, x: x.mean(1), r"mean \(node mean\): dim=1; only rows and columns"),
    "mixed samples": (lambda n, x: x.flatten(0, 1), "flatten .*moves data between samples"),
    "flipped": (lambda n, x: F.relu(x.transpose(2, 3)), "not consist of whole channels"),
    "cropped": (lambda n, x: F.relu(x[:, :, 1:]), "not consist of whole channels"),
    "padded with ones": (lambda n, x: F.relu(F.pad(x, (1, 1), value=1.0)), "elements were changed"),
    "shapes": (lambda n, x: x + x[:, :1], r"shapes \(4, 6, 5\) and \(1, 6, 5\)"),
    "a linear layer over columns": (lambda n, x: n.columns(x), "only vectors"),
    "two outputs": (lambda n, x: (x, x), "returns a tuple; an engine needs one tensor"),
    "tokens": (lambda n, x: F.relu(x.flatten(2)), "only .C, H, W. and .C,. can be"),
    "tokens, gathered": (lambda n, x: x.flatten(2).mean((1, 2)), "only rows and columns"),
    "another type": (lambda n, x: x.mean((2, 3), dtype=torch.float64), "dtype=torch.float64"),
    "a factor": (lambda n, x: torch.add(x, x, alpha=2), "alpha=2; only 1 can be"),
    "a difference": (lambda n, x: x - F.relu(x), "only numbers can be subtracted"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_refused_by_name(name: str) -> None:
    body, message = REFUSED[name]
    model = Network(body, layer=nn.LayerNorm([4, 6, 5]), columns=nn.Linear(5, 5))
    with pytest.raises(ValueError, match=message):
        lower(model, torch.randn(2, 4, 6, 5))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (conv(padding_mode="reflect"), r"cannot lower Conv2d \(node layer\): padding_mode"),
        (nn.ConvTranspose2d(4, 4, 2), r"ConvTranspose2d \(node layer\): there is no rule"),
        (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
        (nn.MaxPool2d(2, dilation=2), "dilation=2"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override=3"),
        (nn.GELU(approximate="tanh"), "approximate=tanh; only none"),
    ],
)  # fmt: skip
def test_layers_with_options_that_cannot_be_lowered(layer: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower(Network(lambda n, x: n.layer(x), layer=layer), torch.randn(2, 4, 6, 5))


def test_inputs_that_are_no_image_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    image = torch.randn(2, 4, 6, 5)
    with pytest.raises(ValueError, match="second input, y"):
        lower(Two(), (image, image))
    with pytest.raises(ValueError, match="example=None"):
        lower(nn.ReLU())
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 6\)"):
        lower(nn.ReLU(), torch.randn(2, 4, 6))
    with pytest.raises(ValueError, match="3 classes for 4 outputs"):
        lower(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU()), image, classes="abc")


def gated(model: nn.Module, **options: Any) -> ftwt.DynamicModel:
    example = torch.randn(2, 4, 6, 5)
    return scramble(ftwt.convert(model, example, min_gain=-1e9, **options)).eval()


def test_gates_that_read_one_map_share_its_pool() -> None:
    model = Network(
        lambda n, x: n.last(torch.cat([n.a(y := F.relu(n.stem(x))), n.b(y), n.c(y)], 1)),
        stem=conv(), a=conv(), b=conv(), c=conv(), last=conv(12, 2),
    )  # fmt: skip
    dynamic = gated(model, pool="both")
    program = lower(dynamic)
    assert [gate.unit for gate in program.gates] == ["stem", "a", "b", "c"]
    assert kinds(program).count("Pool") == 4  # two of the image, two for a, b and c
    for how in ("random", "predicted"):
        check_against(dynamic, build(program), torch.randn(3, 4, 6, 5), how)


def test_shortcuts_and_scales_compute_only_what_masks_leave() -> None:
    def body(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.stem(x))
        y = F.relu(n.short(y) + n.right(F.relu(n.left(y))))
        return n.last(y)

    def squeezed(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.stem(x))
        scale = torch.sigmoid(n.up(F.relu(n.down(y.mean((2, 3), keepdim=True)))))
        return n.last(scale * y)

    layers = {name: conv() for name in ("stem", "left", "right", "short")}
    dynamic = gated(Network(body, **layers, last=conv(4, 2)), residual="after")
    program = lower(dynamic)
    convs = {o.name: o for o in program.operations if isinstance(o, Conv)}
    unit = [gate.unit for gate in program.gates].index("right")
    assert (convs["right"].mask, convs["right"].after, convs["right"].post) == (None, unit, "relu")
    assert (convs["short"].mask, convs["short"].after) == (unit, None)
    check_against(dynamic, build(program), torch.randn(3, 4, 6, 5), "random")

    layers = {"down": conv(4, 2, 1), "up": conv(2, 4, 1), "stem": conv(), "last": conv(4, 2)}
    dynamic = gated(Network(squeezed, **layers))
    program = lower(dynamic)
    convs = {o.name: o for o in program.operations if isinstance(o, Conv)}
    assert (convs["up"].mask, convs["up"].act) == (convs["stem"].mask, "sigmoid")
    check_against(dynamic, build(program), torch.randn(3, 4, 6, 5), "random")


@pytest.mark.parametrize("head", ["standardized", "softmax"])
@pytest.mark.parametrize("pool", ["max", "mean", "both"])
def test_gates_read_zeros_around_a_map(pool: str, head: str) -> None:
    body = (nn.ZeroPad2d((0, 1, 0, 1)), conv(padding=0, stride=2), nn.ReLU())
    more = (nn.ZeroPad2d((0, 1, 0, 1)), conv(padding=0), nn.ReLU(), conv(4, 2))
    dynamic = gated(nn.Sequential(*body, *more), pool=pool, head=head)
    program = lower(dynamic)
    x = torch.randn(8, 4, 6, 5)
    x[:4] -= 4.0  # the zeros are the largest
    for how in ("random", "predicted"):
        check_against(dynamic, build(program), x, how)


def test_gates_in_odd_places() -> None:
    def body(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)  # read before and after its activation
        z = torch.cat([F.relu(y), torch.sigmoid(n.b(y))], 1)
        return n.last(F.max_pool2d(z, 2))

    dynamic = gated(Network(body, a=conv(), b=conv(), last=conv(8, 2)))
    program = lower(dynamic)
    for how in ("random", "one", "predicted"):
        check_against(dynamic, build(program), torch.randn(3, 4, 6, 5), how)


def test_a_static_twin_is_lowered_with_its_masks() -> None:
    dynamic = gated(nn.Sequential(conv(), nn.ReLU(), conv(4, 8), nn.ReLU(), conv(8, 2)))
    x = torch.randn(5, 4, 6, 5)
    ftwt.calibrate(dynamic, [(x, torch.zeros(5))], reduction=0.3)
    assert any(float(gate.threshold) for gate in dynamic.gates.values())
    check_against(dynamic, build(lower(dynamic)), x, "predicted")
    twin = dynamic.freeze([(x, torch.zeros(5))])
    program = lower(twin)
    assert kinds(program).count("Fixed") == 2 and "Predict" not in kinds(program)
    with torch.no_grad():
        expected, gates = twin(x, return_gates=True)
    for engine in build(program):
        output, stats = engine.run(x)
        close(output, expected)
        for unit, gate in gates.items():
            assert np.array_equal(stats.masks[unit], gate.mask.numpy())
        done = twin.macs({unit: gate.mask for unit, gate in gates.items()}).executed
        assert stats.executed_macs.tolist() == done.tolist()


def test_a_bottleneck_that_saves_nothing_is_multiplied_out() -> None:
    model = nn.Sequential(conv(4, 8), nn.ReLU(), conv(8, 2))
    for rank, kept in ((2, True), (3, False)):
        program = lower(gated(model, rank=rank))
        (predict,) = (o for o in program.operations if type(o).__name__ == "Predict")
        assert (predict.reduce is not None) is kept


class NormAct(nn.BatchNorm2d):
    """A batch norm that holds its activation, as timm's does."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        stats = (self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(self.drop(F.batch_norm(x, *stats, self.training, 0.1, self.eps)))


def test_an_activation_in_place_behind_a_norm_leaves_the_norms_input() -> None:
    lowered(lambda n, x: n.a(x) + n.b(x) + x, a=NormAct(4), b=NormAct(4))


def test_a_layer_that_reads_no_image_is_refused() -> None:
    def shifted(net: Any, x: Tensor) -> Tensor:
        return x + net.layer(net.other.weight[:1, :, :1, :1])

    model = Network(shifted, layer=conv(kernel=1), other=conv())
    with pytest.raises(ValueError, match="cannot lower Conv2d.*the same for all images"):
        lower(model, torch.randn(1, 4, 6, 6))
