"""What does not fit is refused when it is saved, or before anything large is built."""

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

import ftwt
from ftwt import models
from ftwt.files.tensors import save_tensors
from ftwt.networks.outline import outline

GATED = {
    "r": 0.9, "mode": "decoupled", "saliency": "peak", "variant": "mass", "pool": "mean",
    "head": "standardized", "rank": None, "straight_through": False, "residual": "before",
    "depthwise": "inherit", "linear": False, "skip": [],
}  # fmt: skip


def folder(path: Path, name: str, arguments: dict, shape: list[int] | None = None) -> Path:
    """A stranger's folder: weights of a few bytes, and a config that asks for much."""
    config = {
        "format": 1, "library": "ftwt", "model": name, "arguments": arguments, "classes": None,
        "input_shape": shape, "convert": None if shape is None else GATED,
    }  # fmt: skip
    save_tensors(path / "model.safetensors", {"0.weight": torch.zeros(2)}, config)
    return path


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "said"),
    [
        ("cifar10-mobilenet-v1", {"width": 24}, None, "another architecture"),
        ("cifar10-mobilenet-v2", {"width": 31}, [3, 32, 32], "another architecture"),
        ("cifar10-mobilenet-v1", {"width": 4000}, None, "argument width is 4000.*at most 32"),
        ("cifar10-resnet20", {"depth": 4000}, None, "argument depth is 4000.*at most 32"),
        ("torchvision:vit_h_14", {}, None, "another architecture"),
        ("torchvision:regnet_y_128gf", {"num_classes": 10**6}, None, "num_classes.*at most 32"),
        ("cifar10-resnet20", {}, [3, 1600, 1600], "another architecture"),
    ],
)
def test_a_small_folder_that_asks_for_much_is_refused_before_it_is_built(
    name, arguments, shape, said, tmp_path
) -> None:
    source = folder(tmp_path, name, arguments, shape)
    outline("torchvision:resnet18", {})  # libraries are imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=said):
        ftwt.from_pretrained(source)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # KiB


def test_images_of_which_layers_make_too_much_are_refused(tmp_path) -> None:
    dynamic = ftwt.convert(models.create("cifar10-resnet20"), torch.zeros(1, 3, 32, 32))
    ftwt.save_pretrained(dynamic, tmp_path, name="cifar10-resnet20")
    config = json.loads((tmp_path / "config.json").read_text())
    config["input_shape"] = [3, 1600, 1600]
    state = dynamic.state_dict()
    save_tensors(tmp_path / "model.safetensors", state, config)
    with pytest.raises(ValueError, match=r"input_shape is \[3, 1600, 1600\], of which its layers"):
        ftwt.from_pretrained(tmp_path)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("torchvision:resnet18", {}, r"fc\.weight \(5, 512\) for \(1000, 512\).*num_classes"),
        ("torchvision:resnet34", {"num_classes": 5}, "another architecture|missing"),
        ("torchvision:resnet1", {}, "unknown torchvision model 'resnet1'; the nearest: resnet18"),
        ("cifar10-resnet20", {}, "another architecture"),
    ],
)
def test_a_name_that_does_not_build_the_network_is_refused_when_saving(
    name, arguments, said, gated, tmp_path
) -> None:
    network = models.create("torchvision:resnet18", num_classes=5)
    if gated and name == "torchvision:resnet34":
        pytest.skip("all of an 18's names are names of a 34; the gates' names differ")
    model = ftwt.convert(network, torch.zeros(1, 3, 64, 64)) if gated else network
    with pytest.raises(ValueError, match=said):
        ftwt.save_pretrained(model, tmp_path / "net", name=name, arguments=arguments)
    assert not (tmp_path / "net").exists()


def test_a_network_with_its_arguments_comes_back(tmp_path) -> None:
    network = models.create("torchvision:resnet18", num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    for model in (network, ftwt.convert(network, images).eval()):
        ftwt.save_pretrained(
            model, tmp_path, name="torchvision:resnet18", arguments={"num_classes": 5}
        )
        assert torch.equal(ftwt.from_pretrained(tmp_path)(images), model(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_another_precision_comes_back(dtype, tmp_path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    network = network.to(dtype).eval()
    images = torch.randn(2, 3, 8, 8).to(dtype)
    dynamic = ftwt.convert(network, images).eval()
    for model in (dynamic, dynamic.to(dtype), dynamic.freeze([images])):
        ftwt.save_pretrained(model, tmp_path)
        again = ftwt.from_pretrained(tmp_path, model=network)
        found = again(images)
        assert found.dtype == dtype and torch.equal(found, model.eval()(images))


def test_a_network_of_two_inputs_is_refused_when_saving(tmp_path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 4)

        def forward(self, a, b):
            return self.head((self.left(a).relu() + self.right(b).relu()).mean((2, 3)))

    images = torch.randn(2, 3, 8, 8)
    dynamic = ftwt.convert(Two(), (images, images))
    with pytest.raises(ValueError, match=r"of the inputs a, b would not come back.*state_dict"):
        ftwt.save_pretrained(dynamic, tmp_path)


def test_a_program_without_parameters_comes_back(tmp_path) -> None:
    class Means(nn.Module):
        def forward(self, images):
            return images.relu().mean((2, 3))

    images = torch.randn(2, 3, 8, 8)
    engine = ftwt.compile(Means(), images)
    engine.save(tmp_path / "means.ftwt")
    again = ftwt.runtime.load(tmp_path / "means.ftwt")
    assert torch.equal(torch.as_tensor(again(images)), torch.as_tensor(engine(images)))
    torch.testing.assert_close(torch.as_tensor(again(images)), Means()(images))
