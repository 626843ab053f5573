"""A network for CIFAR images that trains in a moment, known to ftwt by a name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftwt.config import DataConfig, PruneConfig, RunConfig, TrainConfig
from ftwt.models import registry
from ftwt.networks.pretrained import save_pretrained
from ftwt.shipped import catalogue

NAME = "cifar10-tiny"
DATA = ("--dataset", "cifar10-embedded", "--validation", "400")
CONFIG = RunConfig(
    model=NAME,
    weights="pretrained",
    data=DataConfig(dataset="cifar10-embedded", validation=400),
    prune=PruneConfig(r=0.7),
    train=TrainConfig(epochs=2, batch_size=160, lr=0.05, seed=3),
)
DENSE = replace(CONFIG, prune=None)


def network(num_classes: int = 10) -> nn.Module:
    """Three convolutions of stride 2."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 8), (8, 16), (16, 16)):
        conv = nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def register(folder: Path, patch: Any = None) -> None:
    """Make the network the one that comes with ftwt, in the folder `shipped` of `folder`."""
    networks = folder / "shipped"
    if patch is None:
        registry._FAMILIES["tiny"] = network  # type: ignore[index]
        catalogue.FOLDER = networks
    else:
        patch.setitem(registry._FAMILIES, "tiny", network)
        patch.setattr(catalogue, "FOLDER", networks)
    if not (networks / NAME).exists():
        torch.manual_seed(0)
        save_pretrained(network(), networks / NAME / catalogue.MODEL, name=NAME)
