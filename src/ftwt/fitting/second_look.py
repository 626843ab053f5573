"""Set the threshold of a second look, on images without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor

from ..files.tables import Shown
from ..graph.trace import evaluating
from ..processes import first as first_images
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook, margin, run_counted

CONFIDENCE = 0.95  # with which the promised agreement holds


@dataclass(frozen=True)
class SecondLookFit(Shown):
    """A second look, and what it comes to on the images that its threshold was set on.

    Args:
        network: The network.
        threshold: Images with a smaller margin are looked at again.
        again: Share of the images looked at again.
        reduction: Executed reduction, both passes counted.
        agreement: Share of the images whose guess is the second network's.
        promised: Agreement that holds for other such images with 95% confidence.
        images: Images looked at.
    """

    network: SecondLook = field(repr=False)
    threshold: float
    again: float
    reduction: float
    agreement: float
    promised: float
    images: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield (
            f"{self.again:.1%} of {self.images:,} images are looked at again (margin below "
            f"{self.threshold:.3f}): {self.reduction:.2%} fewer MACs, both passes counted; "
            f"{self.agreement:.2%} of the guesses are the second network's (at least "
            f"{self.promised:.2%} on other such images, with 95% confidence)"
        )


@torch.no_grad()
def second_look(
    first: DynamicModel,
    second: DynamicModel,
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    reduction: float | None = None,
    agreement: float | None = None,
    images: int = 2048,
) -> SecondLookFit:
    """Let a dearer network look again at the images that a cheap one is unsure of.

    Take images that neither network was trained on: on its training images a network is surer of
    itself, and more images than asked would be looked at again. Labels are not used.

    Args:
        first: The cheap network, pruned beyond the budget.
        second: The dearer one, for the same images.
        batches: Images (B, C, H, W), with or without labels.
        reduction: Average share of the second network's dense MACs to save, both passes counted.
        agreement: Instead: share of the images whose guess must be the second network's. It holds
            for other such images with 95% confidence, so that fewer images promise less.
        images: How many images to look at, at most.

    Returns:
        The network with its threshold, and its figures on these images.

    Raises:
        ValueError: Neither or both are given, or what is asked is out of reach (the message names
            the range); there are no images; or outputs are no class scores.
    """
    if (reduction is None) == (agreement is None):
        raise ValueError(f"reduction={reduction}, agreement={agreement}: give one of them")
    network = SecondLook(first, second, 0.0)
    sure, cheap, dear, same = [], [], [], []
    device = next(first.parameters()).device
    with evaluating(network):
        for _, part in first_images(batches, images):
            part = part.to(device)
            outputs, _, cost = network.look_once(part)
            wanted, extra = run_counted(second, part)
            sure.append(margin(outputs).double().cpu())
            cheap.append(cost)
            dear.append(extra)
            same.append((outputs.argmax(1) == wanted.argmax(1)).cpu())
    if not sure:
        raise ValueError("no images to set the threshold on; give batches of images")
    margins, order = torch.cat(sure).sort(stable=True)
    count, dense = len(margins), network.dense_macs
    executed = torch.cat(cheap).sum() + torch.cat(
        (torch.zeros(1), torch.cat(dear)[order].cumsum(0))
    )
    saved = 1 - executed / (count * dense)  # if so many are looked at again
    wrong = (~torch.cat(same)[order]).flip(0).cumsum(0).flip(0)  # among those that are not
    wrong = torch.cat((wrong, torch.zeros(1, dtype=wrong.dtype)))
    if reduction is not None:
        enough = (saved >= reduction).nonzero()[:, 0]
        if reduction > float(saved[0]) or not len(enough):
            raise ValueError(
                f"reduction={reduction} is out of reach: a second look saves from "
                f"{float(saved[-1]):.3f} (all images) to {float(saved[0]):.3f} (none); prune the "
                "first network further"
            )
        looks = int(enough[-1])
    else:
        assert agreement is not None
        looks = _looks_for(agreement, wrong.tolist(), count)
    threshold = _between(margins, looks)
    network.threshold.fill_(threshold)
    looks = int((margins.float() < network.threshold.cpu()).sum())
    missed = int(wrong[looks])
    return SecondLookFit(
        network=network.eval(),
        threshold=threshold,
        again=looks / count,
        reduction=float(saved[looks]),
        agreement=1 - missed / count,
        promised=1 - largest_rate(missed, count),
        images=count,
    )


def _looks_for(agreement: float, wrong: list[int], count: int) -> int:
    """The fewest second looks that promise an agreement."""
    if not 0 < agreement < 1:
        raise ValueError(f"agreement={agreement} is outside (0, 1); 0.995 is usual")
    best = 1 - largest_rate(0, count)
    if agreement > best:
        raise ValueError(
            f"agreement={agreement} cannot be promised from {count:,} images: without one miss "
            f"they promise {best:.4f}; give more images"
        )
    low, high = 0, count  # wrong falls with the number of looks
    while low < high:
        middle = (low + high) // 2
        if 1 - largest_rate(wrong[middle], count) >= agreement:
            high = middle
        else:
            low = middle + 1
    return low


def _between(margins: Tensor, looks: int) -> float:
    """A threshold that so many margins lie below, as far as they differ."""
    if looks == 0:
        return 0.0
    if looks == len(margins):
        return 2.0  # above every margin
    return float((margins[looks - 1] + margins[looks]) / 2)


def largest_rate(misses: int, count: int) -> float:
    """The largest rate at which so few misses are not too unlikely (5%).

    Args:
        misses: Of them in `count` independent trials.
        count: Trials.

    Returns:
        The rate, in [0, 1].

    Source: Clopper and Pearson 1934, the one-sided upper limit.
    """
    if misses >= count:
        return 1.0

    def chance(rate: float) -> float:
        """Of at most so many misses."""
        logs = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(rate) + (count - k) * math.log1p(-rate)
            for k in range(misses + 1)
        ]  # fmt: skip
        return sum(map(math.exp, logs))

    low, high = misses / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if middle in (0.0, 1.0) or chance(middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high
