"""Residual networks for 32x32 images (He et al. 2016, section 4.2)."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from .init import he_init


class Subsample(nn.Module):
    """Parameter-free shortcut: keep every `stride`-th pixel, pad the new channels with zeros.

    Args:
        channels: how many zero channels to append.
        stride: step between the pixels kept.

    Source: He et al. 2016, option A.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, added before the last activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = Subsample(out_channels - in_channels, stride)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.act2(out + self.shortcut(x))


def resnet(depth: int, *, num_classes: int = 10) -> nn.Module:
    """Build a ResNet for 32x32 images: a stem, three stages of 16, 32, 64 channels, a classifier.

    Args:
        depth: layers with weights on the longest path, 6n + 2 (20, 32, 44, 56, 110 are usual).
        num_classes: outputs of the classifier.

    Returns:
        A module that maps (B, 3, 32, 32) to logits (B, num_classes).

    Raises:
        ValueError: `depth` is not 6n + 2.

    Source: He et al. 2016, section 4.2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    layers["bn"] = nn.BatchNorm2d(16)
    layers["act"] = nn.ReLU(inplace=True)
    in_channels = 16
    for stage, channels in enumerate((16, 32, 64), start=1):
        stack = nn.Sequential()
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            stack.append(BasicBlock(in_channels, channels, stride))
            in_channels = channels
        layers[f"stage{stage}"] = stack
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(64, num_classes)
    return he_init(nn.Sequential(layers))
