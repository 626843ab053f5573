"""Networks that nobody would build, with all operations in odd places: engines still agree."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from forced import MASKS, build, close, draw, forced, scramble
from ftwt.lowering import lower
from ftwt.lowering.economies import fix_constant, lay_out, open_gates, remove_fixed, remove_silent
from ftwt.runtime import Engine
from ftwt.runtime.check import check

IMAGE = (4, 9, 8)
ACTIVATIONS = (
    nn.ReLU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.ELU, nn.GELU, nn.Identity,
)  # fmt: skip


class Block(nn.Module):
    """A function of a map and of two layers."""

    def __init__(
        self, body: Callable[[nn.Module, nn.Module, Tensor], Tensor], a: nn.Module, b: nn.Module
    ) -> None:
        super().__init__()
        self.body, self.a, self.b = body, a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.a, self.b, x)


def unit(
    dice: random.Random,
    fan_in: int,
    fan_out: int,
    kernel: int = 0,
    stride: int = 1,
    groups: int = 0,
) -> nn.Module:
    kernel = kernel or dice.choice([1, 2, 3])
    groups = groups or dice.choice([1, 1, 2, fan_in])
    if fan_in % groups or fan_out % groups:
        groups = 1
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2, groups=groups)
    norm = nn.BatchNorm2d(fan_out) if dice.random() < 0.6 else nn.Identity()
    return nn.Sequential(conv, norm, dice.choice(ACTIVATIONS)())


def block(dice: random.Random, channels: int) -> nn.Module:
    """Draw a block for a map of so many channels."""

    def same(kernel: int = 3, groups: int = 0) -> nn.Module:
        return unit(dice, channels, channels, kernel, groups=groups)

    stride, half = dice.choice([1, 2]), channels // 2
    project = unit(dice, channels, 8, 3, stride), unit(dice, channels, 8, 1, stride)
    scale = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1),
        nn.Sigmoid(),
    )  # fmt: skip
    kinds = [
        unit(dice, channels, dice.choice([4, 8, 12])),
        nn.Sequential(same(1), same(3, channels)),
        Block(lambda a, b, x: F.relu(b(a(x)) + x), same(), same(1)),
        Block(lambda a, b, x: x + b(a(x)), same(), same()),
        Block(lambda a, b, x: F.relu(a(x) + b(x)), *project),
        Block(lambda a, b, x: b(x) + a(x), *project),
        Block(lambda a, b, x: torch.cat([b(a(x)), x], 1), same(), unit(dice, channels, 4, 3)),
        Block(lambda a, b, x: b(torch.cat([x, a(x)], 1)), same(), nn.BatchNorm2d(2 * channels)),
        Block(lambda a, b, x: b(x) * a(b(x)), scale, same()),
        dice.choice(
            [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True)]
        ),
    ]
    if channels % 2 == 0:
        part = unit(dice, half, half, 3)
        kinds += [
            nn.ChannelShuffle(2),
            Block(lambda a, b, x: torch.cat([x[:, :half], a(x[:, half:])], 1), part, part),
        ]
    return dice.choice(kinds)


def network(seed: int) -> nn.Module:
    dice = random.Random(seed)
    layers = [unit(dice, IMAGE[0], 8, 3, groups=1)]
    shape = torch.Size((2, 8, *IMAGE[1:]))
    for _ in range(dice.randint(2, 6)):
        layers.append(block(dice, shape[1]).eval())
        with torch.no_grad():
            shape = layers[-1](torch.zeros(shape)).shape
    pools = [nn.AdaptiveAvgPool2d(1)] if dice.random() < 0.5 else []
    width = shape[1] if pools else shape[1:].numel()
    layers += [*pools, nn.Flatten()]
    for _ in range(dice.randint(0, 2)):
        norm = nn.BatchNorm1d(7) if dice.random() < 0.5 else nn.Identity()
        layers += [nn.Linear(width, 7), norm, dice.choice(ACTIVATIONS)()]
        width = 7
    return nn.Sequential(*layers, nn.Linear(width, 5))


def dynamic(seed: int) -> ftwt.DynamicModel:
    torch.manual_seed(seed)
    dice = random.Random(-seed)
    model = ftwt.convert(
        scramble(network(seed)).eval(),
        torch.randn(2, *IMAGE),
        residual=dice.choice(["before", "after"]),
        depthwise=dice.choice(["inherit", "gate"]),
        pool=dice.choice(["max", "mean", "both"]),
        head=dice.choice(["softmax", "standardized"]),
        rank=dice.choice([None, None, 1]),
        linear=True,
        min_gain=-1e9,
    )
    return scramble(model).eval()


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=pytest.mark.slow if n >= 20 else ()) for n in range(200)]
)
def test_random_networks(seed: int) -> None:
    model, x = dynamic(seed), torch.randn(3, *IMAGE)
    program = lower(model)
    check(program)
    for engine in build(program):
        for how in MASKS:
            output, stats = engine.run(x, draw(program, how, 3))
            with forced(model, stats.masks), torch.no_grad():
                close(output, model(x))
    expected, stats = Engine(program, engine="reference").run(x)
    masks = {index: stats.masks[gate.unit] for index, gate in enumerate(program.gates)}
    for passed in (lay_out, remove_silent, fix_constant):
        less = passed(program, masks)
        for engine in build(less):
            close(engine(x), expected)
    opened = open_gates(program, [gate.unit for gate in program.gates])
    with torch.no_grad():
        close(Engine(opened, engine="reference")(x), model(x, gates="open"))
        twin = model.freeze([(x, torch.zeros(3))])
        for engine in build(remove_fixed(lower(twin))):
            close(engine(x), twin(x))
    assert all(np.isfinite(array).all() for array in program.constants.values())
