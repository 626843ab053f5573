"""Networks of growing cost: each looks again at the images that the one before is unsure of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..graph.operations import BatchNorm
from .dynamic import DynamicModel, refuse_dense


class Looked(NamedTuple):
    """What a batch got, image by image."""

    outputs: Tensor  # (B, classes): those of the pass that answered
    passes: Tensor  # (B,) int64: how many it went through
    executed: Tensor  # (B,) float64: multiply-accumulates of all of these


def margin(outputs: Tensor) -> Tensor:
    """How sure a network is: the distance between its two largest class probabilities.

    Args:
        outputs: (B, classes) logits.

    Returns:
        (B,) in [0, 1]; -1, below every threshold, where an output is not finite.
    """
    best = outputs.float().softmax(1).topk(2, 1).values
    return (best[:, 0] - best[:, 1]).nan_to_num(nan=-1.0)


class SecondLook(nn.Module):
    """A cheap network, and a dearer one for the images whose margin is small; or three of them.

    Made by `ftwt.second_look`. Called like one of its networks; all passes are counted.

    Args:
        passes: Networks of growing cost: each a `DynamicModel`, whose gates may be open. The first
            looks at every image.
        thresholds: Of each but the last: images with a smaller `margin` go to the next.

    Raises:
        ValueError: The networks take images of different sizes, there are not two or three, or one
            is no `DynamicModel`.
    """

    thresholds: Tensor

    def __init__(self, passes: Sequence[DynamicModel], thresholds: Sequence[float]) -> None:
        super().__init__()
        for one in passes:
            refuse_dense(one)
        if len(passes) not in (2, 3) or len(thresholds) != len(passes) - 1:
            raise ValueError(
                f"{len(passes)} networks and {len(thresholds)} thresholds: give two or three "
                "networks of growing cost, and a threshold for each but the last"
            )
        shapes = [one.input_shape for one in passes]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"the networks take images of {', '.join(map(str, shapes))}; convert all with the "
                "same example"
            )
        self.passes = nn.ModuleList(passes)
        numbers = torch.tensor(list(thresholds), dtype=torch.float64)
        self.register_buffer("thresholds", numbers.float())

    @property
    def last(self) -> DynamicModel:
        """The dearest network."""
        return self.networks[-1]

    @property
    def first(self) -> DynamicModel:
        """The cheapest network."""
        return self.networks[0]

    @property
    def networks(self) -> list[DynamicModel]:
        """The networks, the cheapest first."""
        return [cast(DynamicModel, one) for one in self.passes]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return self.last.input_shape

    @property
    def dense_macs(self) -> int:
        """MACs of the last network with all its filters, for one image."""
        return sum(layer.macs for layer in self.last.channels.layers)

    def forward(self, images: Tensor, *, both: bool = False) -> Any:
        """Return (B, classes): each image's logits, of the pass that answered for it.

        Args:
            images: (B, C, H, W).
            both: Return a tuple instead, each pass's logits for all images, as training wants them.
        """
        if both:
            self.last.check_input(images)
            return tuple(one(images) for one in self.passes)
        return self.look(images).outputs

    def look(self, images: Tensor) -> Looked:
        """Run the network and count what each image took.

        Args:
            images: (B, C, H, W).

        Returns:
            Outputs, how many passes each image went through, and executed MACs of all of them.
        """
        self.last.check_input(images)
        outputs, executed = run_counted(self.networks[0], images)
        check_scores(outputs)
        outputs, executed = outputs.clone(), executed.clone()
        passes = torch.ones(len(images), dtype=torch.int64, device=outputs.device)
        left = torch.arange(len(images), device=outputs.device)
        for threshold, network in zip(self.thresholds, self.networks[1:], strict=True):
            left = left[margin(outputs[left]) < threshold]
            if not len(left):
                break
            outputs[left], cost = run_counted(network, images[left])
            executed[left.cpu()] += cost
            passes[left] += 1
        return Looked(outputs, passes, executed)


def are_scores(outputs: Any) -> bool:
    """Say whether outputs are scores (B, classes) of two classes or more."""
    return isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1


def check_scores(outputs: Any) -> None:
    """Refuse outputs between whose two best there is no margin.

    Raises:
        ValueError: They are no scores (B, classes) of two classes or more.
    """
    if not are_scores(outputs):
        shown = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the network returns {shown}, no scores (B, classes) of two classes or more: "
            "there is no margin between its best guesses"
        )


def run_counted(network: DynamicModel, images: Tensor) -> tuple[Any, Tensor]:
    """Run a network with the masks it decides.

    Args:
        network: With gates, or a static one.
        images: (B, C, H, W).

    Returns:
        Its outputs, and (B,) float64 executed MACs, predictors included.
    """
    outputs, gates = network(images, return_gates="masks")
    if not len(images):
        return outputs, torch.zeros(0, dtype=torch.float64)
    work = network.macs({unit: gate.mask for unit, gate in gates.items()})
    return outputs, work.executed.double().expand(len(images))


def opened(dynamic: DynamicModel) -> DynamicModel:
    """A copy without gates in effect: the network as it was, with every filter computed."""
    widths = {unit.name: unit.out_channels for unit in dynamic.units}
    masks = {name: torch.ones(widths[name], dtype=torch.bool) for name in dynamic.gates}
    return dynamic.fix(masks)


def share_weights(network: SecondLook) -> None:
    """Let both passes compute with the last one's weights, in place; each keeps its own batch norm.

    Args:
        network: Of one architecture, as `fix` and `opened` make of one network.

    Source: Yu et al., "Slimmable Neural Networks", section 3.3 (switchable batch normalisation).
    """
    cheap = dict(network.first.network.named_modules())
    for name, module in network.last.network.named_modules():
        if not isinstance(module, BatchNorm):
            for key, parameter in module.named_parameters(recurse=False):
                setattr(cheap[name], key, parameter)
