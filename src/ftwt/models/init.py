"""The first weights of networks that are trained from scratch, or timed without any training."""

import torch
from torch import Tensor, nn


def he_init(model: nn.Module) -> nn.Module:
    """Draw the weights of convolutions and linear layers by He's rule and clear biases, in place.

    The variance is 2 / fan-in: what passes through ReLUs keeps its scale, and unlike fan-out it
    is right for depthwise convolutions too.

    Returns:
        The same model.

    Source: He et al. 2015, equation 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


@torch.no_grad()
def measure_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """Set the statistics of batch norms to what images show, in place; eval mode after that.

    With those that it begins with, random weights can let the signal die: MobileNetV2's outputs are
    of the order of 1e-9, which other runtimes take for zero in eight bits.

    Args:
        model: With random weights.
        images: (B, C, H, W), B > 1.

    Returns:
        The same model.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return model.eval()
