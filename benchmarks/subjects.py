"""The networks and images of benchmarks that prune without labels.

A network is a name with weights or a folder, of CIFAR-10's images; or an ImageNet network: a file
of weights, those of a ResNet-50 (torchvision's names; it strides in the first convolution of a
block) or of a MobileNetV1 (see photographs.py), and a folder of `NNN_*.jpg`, NNN the label. Every
second of these is fitted to or calibrates, the others test.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from photographs import VIEW, mobilenet
from safetensors.torch import load_file
from torch import Tensor, nn

import ftwt
from ftwt.config import DataConfig
from ftwt.data import Batches
from ftwt.files.pictures import Preprocessing, read_picture
from ftwt.fitting.columns import rank_filters
from ftwt.fitting.masks import Ranking, mean_saliency
from ftwt.graph.inputs import images_of
from ftwt.models.vision import import_vision
from ftwt.networks.sources import resolve
from ftwt.networks.splits import Splits, load_splits
from ftwt.pruning.dynamic import DynamicModel
from ftwt.runs.candidates import prunable

AT_ONCE = 50
IMAGENET = Preprocessing(
    resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


@dataclass(frozen=True, eq=False)  # each is itself alone
class Subject:
    """A dense network and images.

    Args:
        name: Of the network.
        dense: The network.
        fitted: Batches of images to fit to.
        images: How many these are.
        test: Batches of images, labels and the dense network's outputs.
        top1: The dense network's accuracy.
    """

    name: str
    dense: nn.Module
    fitted: Any
    images: int
    test: list[tuple[Tensor, Tensor, Tensor]]
    top1: float

    @cached_property
    def inner(self) -> DynamicModel:
        """Ready to be pruned."""
        return prunable(self.dense, images_of(next(iter(self.fitted))))

    @cached_property
    def ranking(self) -> Ranking:
        """Of its filters, by what least squares cannot make up for."""
        return rank_filters(self.inner, self.fitted)

    @cached_property
    def first_order(self) -> dict[str, Tensor]:
        """Of its filters, by what the network's own guess depends on, for each image."""
        return ftwt.first_order(self.inner, self.fitted, images=self.images)

    @cached_property
    def energy(self) -> dict[str, Tensor]:
        """Of its filters, on average."""
        return mean_saliency(self.inner, self.fitted, images=self.images)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read a benchmark's flags, and those that name the dense network and its images."""
    parser.add_argument("network", nargs="?", help="a name with weights, or a network's folder")
    parser.add_argument("--name", help="what to call it in the result; by default, the network")
    parser.add_argument("--images", type=int, default=2048, help="to fit to, at most")
    parser.add_argument("--data-root")
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--std", type=float, nargs=3)
    parser.add_argument("--imagenet", type=Path, help="folder of images")
    parser.add_argument("--weights", type=Path, help="of an ImageNet network")
    given = parser.parse_args()
    if (given.network is None) == (given.imagenet is None or given.weights is None):
        parser.error("give a network, or --imagenet with --weights")
    torch.set_num_threads(1)
    return given


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """The flags for a result, without places on this machine."""
    told = {k: value.name if isinstance(value, Path) else value for k, value in vars(given).items()}
    return told | {
        "network": given.network and Path(given.network).name,
        "data_root": None,
        "imagenet": bool(given.imagenet),
    }


def load(given: argparse.Namespace, seed: int = 0, *, few: bool = False) -> Subject:
    """The network that the flags name; few images to test on if only its cost is measured."""
    if given.imagenet:
        return of_imagenet(given, few=few)
    return of_cifar(given, seed, few=few)


def splits_of(given: argparse.Namespace) -> Splits:
    """CIFAR-10's images, prepared as the flags say."""
    return load_splits(
        DataConfig(
            data_root=given.data_root,
            mean=None if given.mean is None else tuple(given.mean),
            std=None if given.std is None else tuple(given.std),
        )
    )


def drawn(splits: Splits, images: int, seed: int) -> Batches:
    """So many training images, drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(splits.plain.images), generator=generator)
    return Batches(splits.plain.images.select(order[:images]), batch_size=256)


def of_cifar(given: argparse.Namespace, seed: int, *, few: bool) -> Subject:
    """A network of CIFAR-10's images."""
    splits = splits_of(given)
    fitted = drawn(splits, given.images, seed)
    name = given.name or given.network.replace(":", "-")
    dense = resolve(given.network).load().eval()
    test = islice(splits.test, 1) if few else splits.test
    return subject_of(name, dense, fitted, given.images, test)


def of_imagenet(given: argparse.Namespace, *, few: bool) -> Subject:
    """An ImageNet network; one without weights is random, of which only the cost means anything."""
    if given.weights is None:
        dense, how = ftwt.models.create(given.network).eval(), IMAGENET
    else:
        dense, how = imagenet(given.weights)
    images, labels = pictures(given.imagenet, how)
    places = torch.arange(len(images))
    if few:
        fitted, test = places[: given.images], places[:1]
    else:
        fitted, test = places[::2][: given.images], places[1::2]
    name = given.name or given.network or f"imagenet-{given.weights.stem}"
    return subject_of(
        name.replace(":", "-"),
        dense,
        images[fitted].split(AT_ONCE),
        len(fitted),
        [(images[test], labels[test])],
    )


@torch.inference_mode()
def subject_of(
    name: str,
    dense: nn.Module,
    fitted: Any,
    images: int,
    test: Iterable[tuple[Tensor, Tensor]],
) -> Subject:
    """Note what the dense network says of the test images."""
    parts = [
        (part, right, dense(part))
        for batch, labels in test
        for part, right in zip(batch.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
    ]
    hits = sum(int((outputs.argmax(1) == right).sum()) for _, right, outputs in parts)
    count = sum(len(right) for _, right, _ in parts)
    return Subject(name, dense, fitted, images, parts, hits / count)


def imagenet(weights: Path) -> tuple[nn.Module, Preprocessing]:
    """A trained ImageNet network, and how it takes images."""
    if weights.stem.startswith("mobilenet"):
        return mobilenet(weights), VIEW
    network = import_vision("torchvision").models.resnet50()
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    state = {name: value.float() for name, value in load_file(weights).items()}
    network.load_state_dict(state | {k: v for k, v in network.state_dict().items() if "num_b" in k})
    return network.eval(), IMAGENET


def pictures(folder: Path, how: Preprocessing) -> tuple[Tensor, Tensor]:
    """All images of a folder, and their labels."""
    paths = sorted(folder.glob("[0-9][0-9][0-9]_*.jpg"))
    images = torch.stack([torch.from_numpy(read_picture(path, how)) for path in paths])
    return images, torch.tensor([int(path.name[:3]) for path in paths])
