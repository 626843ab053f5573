"""A network and images so small that training them takes a second."""

import torch
from torch import Tensor, nn

from ftwt import DynamicModel, convert
from ftwt.data import Batches, Images


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


def batches(*, train: bool, shard: tuple[int, int] = (0, 1)) -> Batches:
    """Training: 8 batches of 16. Validation: 2 of 32."""
    if train:
        return Batches(images(), batch_size=16, train=True, augment=False, shard=shard)
    return Batches(images(64, seed=1), batch_size=32, shard=shard)


def dynamic(*, dropout: float = 0.1, **options: object) -> DynamicModel:
    """The toy network with gates."""
    return convert(Toy(dropout=dropout), torch.zeros(2, 3, 8, 8), **({"r": 0.8} | options))  # type: ignore[arg-type]
