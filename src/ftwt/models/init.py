"""The first weights of networks that are trained from scratch."""

from torch import nn


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
