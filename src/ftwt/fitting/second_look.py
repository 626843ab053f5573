"""Set the thresholds of a second look, on images without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor, nn

from ..files.tables import Shown
from ..graph.trace import evaluating
from ..processes import alone
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import Looked, SecondLook, check_scores, margin, run_counted
from .passes import check_steady, repeatable, shown

CONFIDENCE = 0.95  # with which the promised agreement holds
ABOVE = 2.0  # every margin
STEPS = 40  # of the share of images that a second of three passes looks at


@dataclass(frozen=True)
class SecondLookFit(Shown):
    """A second look, and what it comes to on the images that its thresholds were set on.

    Args:
        network: The network.
        thresholds: Of each pass but the last: images with a smaller margin go to the next.
        shares: Of each pass but the first: share of the images that it looks at.
        reduction: Executed reduction, all passes counted.
        agreement: Share of the images whose guess is the last network's.
        promised: Agreement that holds for other such images with 95% confidence.
        images: Images looked at.
    """

    network: SecondLook = field(repr=False)
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    reduction: float
    agreement: float
    promised: float
    images: int

    @property
    def again(self) -> float:
        """Share of the images that are looked at a second time."""
        return self.shares[0]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        further = "".join(f", {share:.1%} a third time" for share in self.shares[1:])
        margins = ", ".join(f"{threshold:.3f}" for threshold in self.thresholds)
        yield (
            f"{self.again:.1%} of {self.images:,} images are looked at again{further} (margin "
            f"below {margins}): {self.reduction:.2%} fewer MACs, all passes counted; "
            f"{self.agreement:.2%} of the guesses are the last network's (at least "
            f"{self.promised:.2%} on other such images, with 95% confidence)"
        )


@torch.no_grad()
def second_look(
    passes: Sequence[DynamicModel],
    batches: Iterable[tuple[Tensor, Any] | Tensor],
    *,
    reduction: float | None = None,
    agreement: float | None = None,
    images: int = 2048,
    accelerator: Any = None,
) -> SecondLookFit:
    """Let dearer networks look again at the images that a cheap one is unsure of.

    Take images that no network was trained on: on its training images a network is surer of itself,
    and more images than asked would be looked at again. Labels are not used.

    Args:
        passes: Two or three networks for the same images, of growing cost: the first pruned beyond
            the budget, the last as good as can be.
        batches: Images (B, C, H, W), with or without labels.
        reduction: Average share of the last network's dense MACs to save, all passes counted.
        agreement: Instead: share of the images whose guess must be the last network's. It holds
            for other such images with 95% confidence, so that fewer images promise less.
        images: How many images to look at, at most, over all processes together.
        accelerator: As for `repair`: then all get the thresholds of one process.

    Returns:
        The network with its thresholds, and its figures on these images. With three passes, many
        pairs of thresholds meet a budget: it is the pair of best agreement. Of those that promise
        an agreement, it is the cheapest. Since one pair of many is picked, three passes promise
        less than two.

    Raises:
        ValueError: Neither or both are given, or what is asked is out of reach (the message names
            the range); there are no images, or others at each pass; outputs are no class scores, or
            of different classes; or a pass is no `DynamicModel`.
    """
    if (reduction is None) == (agreement is None):
        raise ValueError(f"reduction={reduction}, agreement={agreement}: give one of them")
    if isinstance(passes, nn.Module):
        raise ValueError("passes is one network; give a list of two or three")
    batches = repeatable(batches)
    check_steady(batches)
    network = SecondLook(passes, [0.0] * (len(passes) - 1))
    passes_seen = [see(one, batches, images, accelerator=accelerator) for one in network.networks]
    widths = [outputs.shape[1] for outputs, _ in passes_seen]
    if len(set(widths)) > 1:
        raise ValueError(
            f"the networks tell {widths} classes apart; give networks of the same ones"
        )
    seen = Seen(passes_seen, network.dense_macs)
    return fitted_to(seen, network, reduction=reduction, agreement=agreement)


def fitted_to(
    seen: Seen,
    network: SecondLook,
    *,
    reduction: float | None = None,
    agreement: float | None = None,
) -> SecondLookFit:
    """As `second_look`, for passes that were asked already; the thresholds are written."""
    plan = seen.best(reduction=reduction, agreement=agreement)
    network.thresholds.copy_(torch.tensor(plan.thresholds))
    return SecondLookFit(
        network=network.eval(),
        thresholds=plan.thresholds,
        shares=plan.shares,
        reduction=plan.reduction,
        agreement=1 - plan.missed / seen.count,
        promised=1 - largest_rate(plan.missed, seen.count, tries=len(seen.earlier)),
        images=seen.count,
    )


@torch.no_grad()
def see(
    network: DynamicModel, batches: Iterable[Any], images: int, *, accelerator: Any = None
) -> tuple[Tensor, Tensor]:
    """Return a pass's outputs (N, classes) for images, and (N,) float64 executed MACs.

    With an `accelerator`, those of all processes together, in the order of one process's images.
    """
    found = []
    with evaluating(network):
        for place, part in shown(network, batches, images, accelerator=accelerator):
            outputs, cost = run_counted(network, part)
            check_scores(outputs)
            if (margin(outputs) < 0).any():
                raise ValueError(
                    "a pass gives outputs that are not finite; look for NaN or infinity in the "
                    "images and its weights"
                )
            found.append((place, outputs.cpu(), cost.cpu()))
    if not alone(accelerator):
        found = gather_object(found)
    if not found:
        raise ValueError("no images to set the threshold on; give batches of images")
    _, outputs, costs = zip(*sorted(found, key=lambda part: part[0]), strict=True)
    return torch.cat(outputs), torch.cat(costs)


@dataclass(frozen=True)
class Plan:
    """Thresholds, and what they come to on the images that they were set on.

    Args:
        thresholds: Of each pass but the last.
        shares: Of each pass but the first: share of the images that it looks at.
        reduction: Executed reduction.
        missed: Images that get another guess than the last network's.
    """

    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    reduction: float
    missed: int

    def better(self, other: Plan, *, by_agreement: bool) -> bool:
        """Whether it agrees with the last network more often, or else saves more."""
        if by_agreement:
            return (-self.missed, self.reduction) > (-other.missed, other.reduction)
        return self.reduction > other.reduction


class Seen:
    """What each pass makes of each image.

    Args:
        passes: Of each, from `see`: outputs (N, classes) and executed MACs (N,).
        dense: MACs of the last network with all its filters, for one image.
    """

    def __init__(self, passes: Sequence[tuple[Tensor, Tensor]], dense: int) -> None:
        self.outputs, self.costs = [one[0] for one in passes], [one[1] for one in passes]
        self.margins = [margin(outputs) for outputs in self.outputs]
        guesses = [outputs.argmax(1) for outputs in self.outputs]
        self.wrong = [guess != guesses[-1] for guess in guesses]
        self.count, self.dense = len(self.margins[0]), dense

    def select(self, index: Tensor) -> Seen:
        """The same of some images."""
        passes = zip(self.outputs, self.costs, strict=True)
        return Seen([(outputs[index], costs[index]) for outputs, costs in passes], self.dense)

    def halves(self) -> list[tuple[Tensor, Tensor]]:
        """Every other image and the rest, and the same with places changed."""
        even, odd = (torch.arange(half, self.count, 2) for half in (0, 1))
        return [(even, odd), (odd, even)]

    def looked(self, thresholds: Sequence[float]) -> Looked:
        """What a `SecondLook` with these thresholds gives each image."""
        outputs, executed = self.outputs[0].clone(), self.costs[0].clone()
        passes = torch.ones(self.count, dtype=torch.int64)
        left = torch.arange(self.count)
        for number, threshold in enumerate(torch.tensor(list(thresholds)).float()):
            left = left[self.margins[number][left] < threshold]
            outputs[left] = self.outputs[number + 1][left]
            executed[left] += self.costs[number + 1][left]
            passes[left] += 1
        return Looked(outputs, passes, executed)

    def crossed(self, *, reduction: float) -> Looked:
        """What each image gets by thresholds from the other half of the images.

        The thresholds of `best` are chosen on the very images that they then look good on; these
        judge them fairly.
        """
        outputs, executed = torch.empty_like(self.outputs[-1]), torch.empty_like(self.costs[0])
        passes = torch.empty(self.count, dtype=torch.int64)
        for mine, others in self.halves():
            plan = self.select(mine).best(reduction=reduction)
            found = self.select(others).looked(plan.thresholds)
            outputs[others], passes[others], executed[others] = found
        return Looked(outputs, passes, executed)

    def best(self, *, reduction: float | None = None, agreement: float | None = None) -> Plan:
        """Set thresholds for an average budget, or for an agreement; as `second_look`."""
        best: Plan | None = None
        refused: list[ValueError] = []
        for earlier in self.earlier:
            try:
                plan = self.plan(earlier, reduction, agreement)
            except ValueError as error:
                refused.append(error)
                continue
            if best is None or plan.better(best, by_agreement=reduction is not None):
                best = plan
        if best is None:
            raise refused[0]
        return best

    @cached_property
    def earlier(self) -> list[float | None]:
        """Thresholds of the first of three passes to try; of two there is nothing to try."""
        if len(self.margins) == 2:
            return [None]
        sure = self.margins[0].double().sort().values
        looks = {self.count * step // STEPS for step in range(STEPS + 1)}
        return [_between(sure, number) for number in sorted(looks)]

    def plan(self, earlier: float | None, reduction: float | None, agreement: float | None) -> Plan:
        """Set the last threshold, given that of a pass before it."""
        left = torch.ones(self.count, dtype=torch.bool)
        if earlier is not None:
            left = self.margins[0] < earlier
        *_, cheap, dear = self.costs
        sure, order = self.margins[-2][left].double().sort(stable=True)
        base = self.costs[0].sum() + (0 if earlier is None else cheap[left].sum())
        steps = torch.cat((torch.zeros(1), dear[left][order].cumsum(0)))
        saved = 1 - (base + steps) / (self.count * self.dense)  # if so many are looked at again
        gone = int(self.wrong[0][~left].sum())  # of those that are answered earlier
        wrong = self.wrong[-2][left][order].flip(0).cumsum(0).flip(0) + gone
        wrong = torch.cat((wrong, torch.tensor([gone])))
        if reduction is not None:
            enough = (saved >= reduction).nonzero()[:, 0]
            if reduction > float(saved[0]) or not len(enough):
                raise ValueError(
                    f"reduction={reduction} is out of reach: a second look saves from "
                    f"{float(saved[-1]):.3f} (all images) to {float(saved[0]):.3f} (none); prune "
                    "the first network further"
                )
            looks = int(enough[-1])
        else:
            assert agreement is not None
            looks = _looks_for(agreement, wrong.tolist(), self.count, len(self.earlier))
        threshold = _between(sure, looks)
        if agreement is not None and 0 < looks < len(sure) and sure[looks - 1] == sure[looks]:
            surer = sure[sure > sure[looks]]  # all that are as unsure look again: the more agree
            threshold = float(surer[0]) if len(surer) else ABOVE
        looks = int((sure.float() < torch.tensor(threshold).float()).sum())
        share = looks / self.count
        return Plan(
            thresholds=(threshold,) if earlier is None else (earlier, threshold),
            shares=(share,) if earlier is None else (len(sure) / self.count, share),
            reduction=float(saved[looks]),
            missed=int(wrong[looks]),
        )


def _looks_for(agreement: float, wrong: list[int], count: int, tries: int) -> int:
    """The fewest second looks that promise an agreement."""
    if not 0 < agreement < 1:
        raise ValueError(f"agreement={agreement} is outside (0, 1); 0.995 is usual")
    best = 1 - largest_rate(0, count, tries=tries)
    if agreement > best:
        raise ValueError(
            f"agreement={agreement} cannot be promised from {count:,} images: without one miss "
            f"they promise {best:.4f}; give more images"
        )
    low, high = 0, len(wrong) - 1  # wrong falls with the number of looks
    if 1 - largest_rate(wrong[high], count, tries=tries) < agreement:
        raise ValueError(
            f"agreement={agreement} is out of reach: {wrong[high]} of {count:,} images go with "
            "another guess than the last network's"
        )
    while low < high:
        middle = (low + high) // 2
        if 1 - largest_rate(wrong[middle], count, tries=tries) >= agreement:
            high = middle
        else:
            low = middle + 1
    return low


def _between(margins: Tensor, looks: int) -> float:
    """A threshold that so many margins lie below, as far as they differ."""
    if looks == 0:
        return 0.0
    if looks == len(margins):
        return ABOVE
    return float((margins[looks - 1] + margins[looks]) / 2)


def largest_rate(misses: int, count: int, *, tries: int = 1) -> float:
    """The largest rate at which so few misses are not too unlikely (5%).

    Args:
        misses: Of them in `count` independent trials.
        count: Trials.
        tries: Among how many such counts this one was picked: it holds for all of them at once.

    Returns:
        The rate, in [0, 1].

    Source: Clopper and Pearson 1934, the one-sided upper limit; of several, Bonferroni's bound.
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
        if middle in (0.0, 1.0) or chance(middle) > (1 - CONFIDENCE) / tries:
            low = middle
        else:
            high = middle
    return high
