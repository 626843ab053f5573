"""A network and images so small that training them takes a second, and what tests do with them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ftwt import DynamicModel, convert
from ftwt.config import TrainConfig
from ftwt.data import Batches, Images
from ftwt.training.loop import TrainResult, train


class Toy(nn.Module):
    """Three convolutions, with batch norm, dropout, and 4 classes."""

    def __init__(self, *, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for fan_in in (3, width, width):
            layers += [nn.Conv2d(fan_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images to (B, 4) logits."""
        return self.classifier(self.dropout(self.features(images).mean((2, 3))))


def classifier() -> nn.Sequential:
    """Two convolutions and 4 classes, the same each time: what `prune` takes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def images(count: int = 128, *, seed: int = 0) -> Images:
    """Noise of 8x8 pixels that a class brightens in one channel, or in none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 130, (count, 3, 8, 8), generator=generator)
    for channel in range(3):
        pixels[labels == channel, channel] += 120
    return Images(
        images=pixels.to(torch.uint8),
        labels=labels,
        classes=("red", "green", "blue", "grey"),
        name="toys",
        mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.2, 0.2),
    )


def printed(result: Any) -> str:
    """What a result prints, in one line."""
    console = Console(width=200, file=io.StringIO())
    console.print(result)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def pixels(count: int, *, seed: int = 0) -> Tensor:
    """The same images as (N, 3, 8, 8), normalised."""
    return next(iter(Batches(images(count, seed=seed), batch_size=count)))[0]


def batches(*, train: bool, shard: tuple[int, int] = (0, 1)) -> Batches:
    """Training: 8 batches of 16. Validation: 2 of 32."""
    if train:
        return Batches(images(), batch_size=16, train=True, augment=False, shard=shard)
    return Batches(images(64, seed=1), batch_size=32, shard=shard)


def dynamic(*, dropout: float = 0.1, **options: object) -> DynamicModel:
    """The toy network with gates."""
    return convert(Toy(dropout=dropout), torch.zeros(2, 3, 8, 8), **({"r": 0.8} | options))  # type: ignore[arg-type]


CONFIG = TrainConfig(epochs=4, lr=0.1, seed=3)
FULL = replace(  # everything that has a state of its own
    CONFIG,
    target_reduction=0.3,
    predictor_warmup_steps=3,
    anneal_epochs=1.0,
    cooldown=0.75,
    ema_decay=0.9,
    clip_norm=5.0,
    precision="bf16",
    channels_last=True,
)


def fit(model: nn.Module, config: TrainConfig = CONFIG, **options: Any) -> TrainResult:
    """Train on the toys, silently."""
    given = {"progress": False} | options
    return train(model, batches(train=True), batches(train=False), config, **given)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks are the same bit for bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


class Watched:
    """Batches, the toys' if not given, that do something before the n-th step of a run."""

    def __init__(self, step: int, action: Any, given: Batches | None = None) -> None:
        self.batches, self.left, self.action = given or batches(train=True), step, action
        self.batch_size = self.batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def iterate(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches.iterate(start):
            self.left -= 1
            if self.left == 0:
                self.action()
            yield batch


def untimed(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without what no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


NUMPY_ALONE = """
import sys


class NumpyAlone:
    known = sys.stdlib_module_names | {"numpy", "ftwt"}

    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in NumpyAlone.known:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)


sys.meta_path.insert(0, NumpyAlone)
"""


def run_numpy_alone(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that finds ftwt and numpy, and no other package."""
    return run_python("-c", NUMPY_ALONE + program)


def run_python(
    *arguments: str, timeout: float = 60, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    environment |= variables
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=timeout, check=False
    )
