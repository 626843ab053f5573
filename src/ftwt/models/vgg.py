"""VGG with batch normalisation for 32x32 images (Simonyan & Zisserman 2015, table 1)."""

from collections import OrderedDict

from torch import nn

from .init import he_init

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {  # 3x3 convolutions before each of the five max-poolings
    11: (1, 1, 2, 2, 2),  # configuration A
    13: (2, 2, 2, 2, 2),  # B
    16: (2, 2, 3, 3, 3),  # D
    19: (2, 2, 4, 4, 4),  # E
}


def vgg(depth: int, *, num_classes: int = 10) -> nn.Module:
    """Build a VGG for 32x32 images, whose classifier is one linear layer, as is usual there.

    Args:
        depth: 11, 13, 16 or 19: the layers with weights of the ImageNet network of that name.
        num_classes: outputs of the classifier.

    Returns:
        A module that maps (B, 3, 32, 32) to logits (B, num_classes).

    Raises:
        ValueError: another depth.

    Source: Simonyan & Zisserman 2015, table 1, configurations A, B, D, E.
    """
    if depth not in _CONVOLUTIONS:
        raise ValueError(f"depth must be one of {', '.join(map(str, _CONVOLUTIONS))}, got {depth}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    in_channels = 3
    stages = zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True)
    for stage, (channels, convolutions) in enumerate(stages, start=1):
        for i in range(1, convolutions + 1):
            # No bias: the normalisation that follows has one.
            layers[f"conv{stage}_{i}"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
            layers[f"bn{stage}_{i}"] = nn.BatchNorm2d(channels)
            layers[f"act{stage}_{i}"] = nn.ReLU(inplace=True)
            in_channels = channels
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(in_channels, num_classes)
    return he_init(nn.Sequential(layers))
