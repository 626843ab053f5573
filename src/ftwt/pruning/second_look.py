"""Two networks: a cheap one looks at every image, a dearer one again at those it is unsure of."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..graph.operations import BatchNorm
from .dynamic import DynamicModel


class Looked(NamedTuple):
    """What a batch got, image by image."""

    outputs: Tensor  # (B, classes): those of the pass that answered
    again: Tensor  # (B,) bool: looked at a second time
    executed: Tensor  # (B,) float64: multiply-accumulates of all passes it went through


def margin(outputs: Tensor) -> Tensor:
    """How sure a network is: the distance between its two largest class probabilities.

    Args:
        outputs: (B, classes) logits.

    Returns:
        (B,) in [0, 1].
    """
    best = outputs.float().softmax(1).topk(2, 1).values
    return best[:, 0] - best[:, 1]


class SecondLook(nn.Module):
    """A cheap network, and a dearer one for the images whose margin is small.

    Made by `ftwt.second_look`. Called like either of its networks; both passes are counted.

    Args:
        first: The network that looks at every image.
        second: The one that looks again: a `DynamicModel`, whose gates may be open.
        threshold: Images with a smaller `margin` are looked at again.

    Raises:
        ValueError: The networks take images of different sizes.
    """

    threshold: Tensor

    def __init__(self, first: DynamicModel, second: DynamicModel, threshold: float) -> None:
        super().__init__()
        if first.input_shape != second.input_shape:
            raise ValueError(
                f"the first network takes images of {first.input_shape}, the second of "
                f"{second.input_shape}; convert both with the same example"
            )
        self.first, self.second = first, second
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    @property
    def dense_macs(self) -> int:
        """MACs of the second network with all its filters, for one image."""
        return sum(layer.macs for layer in self.second.channels.layers)

    def forward(self, images: Tensor, *, both: bool = False) -> Any:
        """Return (B, classes): each image's logits, of the pass that answered for it.

        Args:
            images: (B, C, H, W).
            both: Return the logits of both passes instead, for all images, as training wants them.
        """
        if both:
            self.first.check_input(images)
            return self.first(images), self.second(images)
        outputs, again = self.look_once(images)[:2]
        if again.any():
            outputs = outputs.clone()
            outputs[again] = self.second(images[again])
        return outputs

    def look(self, images: Tensor) -> Looked:
        """Run the network and count what each image took.

        Args:
            images: (B, C, H, W).

        Returns:
            Outputs, which images were looked at again, and executed MACs with both passes.
        """
        outputs, again, executed = self.look_once(images)
        if again.any():
            outputs, executed = outputs.clone(), executed.clone()
            outputs[again], cost = run_counted(self.second, images[again])
            executed[again.cpu()] += cost
        return Looked(outputs, again, executed)

    def look_once(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the first network: its outputs, which images are to be looked at again, and MACs."""
        self.first.check_input(images)
        outputs, executed = run_counted(self.first, images)
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[1] < 2:
            shown = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"the network returns {shown}, no scores (B, classes) of two classes or more: "
                "there is no margin between its best guesses"
            )
        return outputs, margin(outputs) < self.threshold, executed


def run_counted(network: DynamicModel, images: Tensor) -> tuple[Any, Tensor]:
    """Run a network with the masks it decides.

    Args:
        network: With gates, or a static one.
        images: (B, C, H, W).

    Returns:
        Its outputs, and (B,) float64 executed MACs, predictors included.
    """
    outputs, gates = network(images, return_gates="masks")
    work = network.macs({unit: gate.mask for unit, gate in gates.items()})
    return outputs, work.executed.double().expand(len(images))


def opened(dynamic: DynamicModel) -> DynamicModel:
    """A copy without gates in effect: the network as it was, with every filter computed."""
    widths = {unit.name: unit.out_channels for unit in dynamic.units}
    masks = {name: torch.ones(widths[name], dtype=torch.bool) for name in dynamic.gates}
    return copy.deepcopy(dynamic).fix(masks)


def share_weights(network: SecondLook) -> None:
    """Let both passes compute with the second's weights, in place; each keeps its own batch norm.

    Args:
        network: Of one architecture, as `fix` and `opened` make of one network.

    Source: Yu et al., "Slimmable Neural Networks", section 3.3 (switchable batch normalisation).
    """
    cheap = dict(network.first.network.named_modules())
    for name, module in network.second.network.named_modules():
        if not isinstance(module, BatchNorm):
            for key, parameter in module.named_parameters(recurse=False):
                setattr(cheap[name], key, parameter)
