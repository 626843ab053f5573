"""What must hold for every network that people use: gates that stand open change nothing."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ftwt
from brute_force import executed, positive, random_gates
from ftwt import models

OURS = ("vgg16-bn", "resnet20", "resnet56", "mobilenet-v1", "mobilenet-v2")
SIZES = {  # of torchvision's networks: pixels of the smallest image that they take
    "alexnet": 63,
    "vgg11": 32,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 299,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "shufflenet_v2_x1_0": 32,
    "squeezenet1_0": 32,
    "mnasnet1_0": 32,
    "efficientnet_b0": 32,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
}
NAMES = [f"cifar10-{name}" for name in OURS] + [f"torchvision:{name}" for name in SIZES]
LARGE = {  # of kinds that smaller ones stand for in a default run
    "cifar10-resnet56",
    *(
        f"torchvision:{name}"
        for name in (
            "alexnet",
            "convnext_tiny",
            "densenet121",
            "efficientnet_b0",
            "inception_v3",
            "mnasnet1_0",
            "mobilenet_v2",
            "regnet_y_400mf",
            "resnet50",
            "resnext50_32x4d",
            "vgg11",
        )
    ),
}
PLAIN = ("cifar10-vgg16-bn", "torchvision:alexnet", "torchvision:vgg11")
AUXILIARY = ("AuxLogits", "aux1", "aux2")
pytestmark = pytest.mark.filterwarnings("ignore:.* returns something else in training")


def create(name: str) -> tuple[nn.Module, Tensor]:
    options = {"num_classes": 10} if ":" in name else {}
    size = SIZES.get(name.removeprefix("torchvision:"), 32)
    return models.create(name, **options), torch.randn(2, 3, size, size)  # type: ignore[arg-type]


def logits(output: Any) -> Tensor:
    """The main output of a network with auxiliary heads."""
    return output if isinstance(output, Tensor) else output.logits


def step(model: nn.Module, images: Tensor, **options: Any) -> Tensor:
    torch.manual_seed(1)
    output = logits(model(images, **options))
    F.cross_entropy(output, torch.tensor([3, 7])).backward()
    return output


def all_but(names: Iterable[str]) -> list[Any]:
    """Every network; these are slow."""
    return [pytest.param(n, marks=pytest.mark.slow if n in names else ()) for n in NAMES]


@pytest.mark.parametrize("name", all_but(LARGE))
def test_open_gates_change_nothing(name: str) -> None:
    model, images = create(name)
    for head in set(AUXILIARY) & dict(model.named_children()).keys():
        model.get_submodule(head).eval()  # the converted network has none: draw no dropout there
    dynamic = ftwt.convert(model, images, mode="joint")
    assert dynamic.units

    expected = step(model, images)
    assert torch.equal(step(dynamic, images, gates="open"), expected)
    gradients = {n: p.grad for n, p in model.named_parameters() if n.split(".")[0] not in AUXILIARY}
    found = {n: p.grad for n, p in dynamic.network.named_parameters() if "ftwt_gates" not in n}
    assert found.keys() == gradients.keys()
    assert all(torch.equal(found[n], gradient) for n, gradient in gradients.items())
    assert all(parameter.grad is None for parameter in dynamic.predictor_parameters())
    buffers = dict(dynamic.network.named_buffers())
    assert all(torch.equal(buffers[n], b) for n, b in model.named_buffers() if n in buffers)

    model.eval(), dynamic.eval()
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(dynamic(images, gates="open"), expected)
        output, gates = dynamic(images, gates="open", return_gates=True)
        assert torch.equal(output, expected)
        assert gates.keys() == dynamic.gates.keys()
        with FlopCounterMode(display=False) as counter:
            model(images[:1])
    assert 2 * ftwt.count_macs(model, images).total == counter.get_total_flops()
    assert dynamic.macs({}).dense == ftwt.count_macs(model, images).total


@pytest.mark.parametrize("name", all_but({*LARGE, *PLAIN, "cifar10-mobilenet-v2"}))
def test_executed_macs_are_those_that_matter(name: str) -> None:
    model, images = create(name)
    images = images.double().abs()
    dynamic = ftwt.convert(positive(model), images)
    random_gates(dynamic, len(images))
    layers, predictors = executed(dynamic, images)
    gates = dynamic(images, return_gates="masks")[1]
    count = dynamic.macs({unit: gate.mask for unit, gate in gates.items()})
    assert not dynamic.channels.unknown
    assert {n: macs.tolist() for n, macs in count.layers.items()} == {
        n: macs.tolist() for n, macs in layers.items()
    }
    assert {n: macs.tolist() for n, macs in count.predictors.items()} == {
        n: macs.tolist() for n, macs in predictors.items()
    }
