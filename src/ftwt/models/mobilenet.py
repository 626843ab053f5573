"""MobileNetV1 and V2 for 32x32 images: the ImageNet networks with fewer strides."""

from collections import OrderedDict

from torch import Tensor, nn

from .init import he_init


def mobilenet_v1(*, num_classes: int = 10, width: float = 1.0) -> nn.Module:
    """Build a MobileNetV1 for 32x32 images, its stem at stride 1.

    Args:
        num_classes: outputs of the classifier.
        width: multiplies every layer's channels, rounded to a multiple of 8.

    Returns:
        A module that maps (B, 3, 32, 32) to logits (B, num_classes).

    Raises:
        ValueError: `width` is not positive.

    Source: Howard et al. 2017, table 1.
    """
    in_channels = _scaled(32, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_unit(3, in_channels, kernel=3))
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2))
    for i, (channels, stride) in enumerate((*plan, (1024, 1)), start=1):
        out_channels = _scaled(channels, width)
        layers[f"depthwise{i}"] = _unit(
            in_channels, in_channels, kernel=3, stride=stride, groups=in_channels
        )
        layers[f"pointwise{i}"] = _unit(in_channels, out_channels)
        in_channels = out_channels
    return _with_classifier(layers, in_channels, num_classes)


def mobilenet_v2(*, num_classes: int = 10, width: float = 1.0) -> nn.Module:
    """Build a MobileNetV2 for 32x32 images, its stem and first two stages at stride 1.

    Args:
        num_classes: outputs of the classifier.
        width: multiplies every layer's channels, rounded to a multiple of 8; the last
            convolution keeps at least its 1280.

    Returns:
        A module that maps (B, 3, 32, 32) to logits (B, num_classes).

    Raises:
        ValueError: `width` is not positive.

    Source: Sandler et al. 2018, table 2.
    """
    in_channels = _scaled(32, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=_unit(3, in_channels, kernel=3, act=nn.ReLU6)
    )
    stages = (  # expansion, channels, blocks, stride of the first block
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for stage, (expansion, channels, blocks, first_stride) in enumerate(stages, start=1):
        out_channels = _scaled(channels, width)
        stack = nn.Sequential()
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            stack.append(InvertedResidual(in_channels, out_channels, stride, expansion))
            in_channels = out_channels
        layers[f"stage{stage}"] = stack
    head = _scaled(1280, max(1.0, width))
    layers["head"] = _unit(in_channels, head, act=nn.ReLU6)
    return _with_classifier(layers, head, num_classes)


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; added to the input where shapes allow it.

    Source: Sandler et al. 2018, section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _unit(in_channels, hidden, act=nn.ReLU6)
        self.depthwise = _unit(hidden, hidden, kernel=3, stride=stride, groups=hidden, act=nn.ReLU6)
        self.project = _unit(hidden, out_channels, act=None)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.adds else out


def _unit(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Build a convolution with its normalisation and activation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    layers["bn"] = nn.BatchNorm2d(out_channels)
    if act is not None:
        layers["act"] = act(inplace=True)
    return nn.Sequential(layers)


def _with_classifier(
    layers: OrderedDict[str, nn.Module], channels: int, num_classes: int
) -> nn.Module:
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return he_init(nn.Sequential(layers))


def _scaled(channels: int, width: float) -> int:
    """Scale a layer's channels to a multiple of 8, never losing more than a tenth by rounding."""
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
