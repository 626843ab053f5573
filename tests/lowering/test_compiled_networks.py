"""What must hold for every network that people use: engines give what the masked network gives."""

import itertools
from typing import Any

import pytest
import torch

import ftwt
from forced import MASKS, build, check_against, close, create, scramble
from ftwt.lowering import lower

pytestmark = pytest.mark.filterwarnings("ignore:.* returns something else in training")
OURS = ("resnet20", "resnet56", "vgg16-bn", "mobilenet-v1", "mobilenet-v2")
THEIRS = (
    "resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "vgg16", "alexnet", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0",
    "squeezenet1_1", "densenet121", "googlenet", "efficientnet_b0", "regnet_y_400mf",
    "regnet_x_400mf",
)  # fmt: skip
NETWORKS = [
    *(f"cifar10-{name}" for name in OURS),
    *(f"torchvision:{name}" for name in THEIRS),
    "timm:mobilenetv1_100",
]
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"residual": "after", "head": "softmax", "pool": "max"},
    {"pool": "both", "rank": 4},
    {"residual": "after", "depthwise": "gate", "pool": "max"},
    {"head": "softmax", "pool": "both", "rank": 3},
)
LARGE = (  # of kinds that smaller ones stand for in a default run
    "cifar10-resnet56",
    "cifar10-vgg16-bn",
    *(
        f"torchvision:{name}"
        for name in (
            "alexnet",
            "densenet121",
            "efficientnet_b0",
            "googlenet",
            "mnasnet1_0",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "regnet_x_400mf",
            "regnet_y_400mf",
            "resnet18",
            "resnet50",
            "resnext50_32x4d",
            "vgg11_bn",
            "vgg16",
        )
    ),
)
SOME = [  # a form for each network, and each form for one
    *(
        pytest.param(name, OPTIONS[i % len(OPTIONS)], marks=[pytest.mark.slow][: name in LARGE])
        for i, name in enumerate(NETWORKS)
    ),
    *(("cifar10-resnet20", options) for options in OPTIONS[1:]),
    ("torchvision:alexnet", {"linear": True, "rank": 4}),  # more than the first layer has
]

PLAIN = ("resnet20", "mobilenet_v3_small", "squeezenet1_1")


def images(name: str, count: int = 3) -> torch.Tensor:
    size = 32 if name.startswith("cifar10") else 64
    return torch.randn(count, 3, size, size)


def label(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={option}" for key, option in value.items()) or "default"
    return str(value)


@pytest.mark.parametrize(("name", "options"), SOME, ids=label)
def test_an_engine_gives_what_the_masked_network_gives(name: str, options: dict[str, Any]) -> None:
    x = images(name)
    dynamic = scramble(ftwt.convert(create(name), x, **options)).eval()
    assert len(dynamic.gates) > 4
    engines = build(lower(dynamic))
    for how in MASKS if name.startswith("cifar10") else ("one", "predicted"):
        check_against(dynamic, engines, x, how)
    check_against(dynamic, engines, x[:1], "random")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith(PLAIN) else pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_a_plain_network_is_a_program_too(name: str) -> None:
    model, x = create(name), images(name, 2)
    for engine in build(lower(model, x)):
        output, stats = engine.run(x)
        with torch.no_grad():
            close(output, model(x))
        assert not engine.program.gates
        assert (stats.keep == 1).all() and (stats.reduction == 0).all()
        assert engine.program.dense_macs == ftwt.count_macs(model, x).total


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=label)
@pytest.mark.parametrize("name", NETWORKS)
def test_large_batches_and_all_forms(name: str, options: dict[str, Any]) -> None:
    x = images(name, 64)
    dynamic = scramble(ftwt.convert(create(name), x[:1], **options)).eval()
    engines = build(lower(dynamic))
    for how, count in itertools.product(MASKS, (1, 3)):
        check_against(dynamic, engines, x[:count], how)
    check_against(dynamic, engines, x, "random")
