"""Ridge regression from sums over batches, with part of the samples held out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # shares of the mean variance of an input
GAIN = 1e-4  # by which an error must fall for a smaller ridge to be taken: less may be rounding
SLIGHT = 1e-6  # of the variance: an error so small is none
ROWS = 512  # of a sum of squares that are computed at once


class Moments:
    """Sums of x, y, x x', x y' and y^2 over samples, for several regressions of one shape.

    Args:
        groups: Independent regressions.
        inputs: Inputs of each.
        outputs: Outputs of each.
        device: Where the sums are kept, in float64.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self.weight = zeros()
        self.x, self.y, self.yy = zeros(inputs), zeros(outputs), zeros(outputs)
        self.xx, self.xy = zeros(inputs, inputs), zeros(inputs, outputs)

    def add(
        self, x: Tensor, y: Tensor, weight: Tensor | None = None, inputs: Tensor | None = None
    ) -> None:
        """Add samples.

        Args:
            x: (groups, N, inputs).
            y: (groups, N, outputs).
            weight: (groups, N) of 0 and 1: which samples count; None for all.
            inputs: The places of the inputs that x holds, where all others are 0; None for all.
        """
        x, y = x.double(), y.double()
        if weight is None:
            self.weight += x.shape[1]
        else:
            weight = weight.double()
            self.weight += weight.sum(1)
            x, y = x * weight[..., None], y * weight[..., None]
        self.y += y.sum(1)
        self.yy += y.square().sum(1)
        if inputs is None:
            self.x += x.sum(1)
            self.xx += squared(x)
            self.xy += x.mT @ y
        else:
            self.x[:, inputs] += x.sum(1)
            places = (inputs[:, None] * self.xx.shape[2] + inputs).flatten()
            self.xx.view(len(x), -1).index_add_(1, places, squared(x).flatten(1))
            self.xy[:, inputs] += x.mT @ y

    def tensors(self) -> list[Tensor]:
        """All sums, for several processes to add up."""
        return [self.weight, self.x, self.y, self.yy, self.xx, self.xy]

    def replace(self, tensors: list[Tensor]) -> None:
        """Take sums over all processes."""
        self.weight, self.x, self.y, self.yy, self.xx, self.xy = tensors

    def __add__(self, other: Moments) -> Moments:
        both = object.__new__(Moments)
        both.replace([a + b for a, b in zip(self.tensors(), other.tensors(), strict=True)])
        return both

    def of(self, inputs: Tensor) -> Moments:
        """The sums of some inputs alone."""
        part = object.__new__(Moments)
        xx = self.xx[:, inputs[:, None], inputs]
        part.replace([self.weight, self.x[:, inputs], self.y, self.yy, xx, self.xy[:, inputs]])
        return part

    def means(self) -> tuple[Tensor, Tensor]:
        """Of x, (groups, inputs, 1), and of y, (groups, 1, outputs)."""
        n = self.weight.clamp(min=1)[:, None, None]
        return self.x[:, :, None] / n, self.y[:, None, :] / n

    def error(self, weights: Tensor, offset: Tensor) -> Tensor:
        """Sum of squared errors of y = weights' x + offset over all samples, (groups, outputs)."""
        n = self.weight[:, None]
        fitted = (weights * (self.xx @ weights)).sum(1)
        along = (weights * self.xy).sum(1)
        mean = (self.x[:, :, None] * weights).sum(1)
        return (self.yy + fitted - 2 * along + 2 * offset * (mean - self.y) + n * offset**2).clamp(
            min=0
        )

    def variance(self) -> Tensor:
        """Sum of squared distances of y from its mean, (groups, outputs)."""
        return (self.yy - self.y**2 / self.weight.clamp(min=1)[:, None]).clamp(min=0)


@dataclass(frozen=True)
class Fit:
    """A regression that was fitted.

    Args:
        weights: (groups, inputs, outputs) float64.
        offset: (groups, outputs) float64.
        ridge: The ridge that was chosen; None if the weights at hand were best.
        before: Squared error of the weights at hand on held-out samples, as a share of the
            variance; of the squares, if they do not vary.
        after: That of the fit, made without these samples.
    """

    weights: Tensor
    offset: Tensor
    ridge: float | None
    before: float
    after: float


def covariances(moments: Moments, centred: bool) -> tuple[Tensor, Tensor]:
    """Means of x x' and x y', (groups, inputs, ...); about their means where centred."""
    n = moments.weight.clamp(min=1)[:, None, None]
    gram, cross = moments.xx / n, moments.xy / n
    if centred:
        mx, my = moments.means()
        gram, cross = gram - mx @ mx.mT, cross - mx @ my
    return gram, cross


def squared(x: Tensor) -> Tensor:
    """The product x' x of (groups, N, inputs) samples: half of it is computed, the rest copied."""
    inputs = x.shape[2]
    found = x.new_empty(len(x), inputs, inputs)
    for start in range(0, inputs, ROWS):
        end = start + ROWS
        found[:, start:end, start:] = x[:, :, start:end].mT @ x[:, :, start:]
        found[:, end:, start:end] = found[:, start:end, end:].mT
    return found


def mean_variance(gram: Tensor) -> Tensor:
    """The mean diagonal of (groups, inputs, inputs) covariances, (groups,)."""
    return gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)


def solved(gram: Tensor, ridge: Tensor, right: Tensor | None = None) -> Tensor:
    """Solve (gram + ridge) w = right by Cholesky, unless rounding has left no positive matrix.

    Args:
        gram: (groups, inputs, inputs) covariances.
        ridge: (groups,) to add to their diagonals.
        right: (groups, inputs, outputs); None for the inverse.
    """
    left = gram.clone()
    left.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    factor, failed = torch.linalg.cholesky_ex(left)
    if failed.any():
        return torch.linalg.inv(left) if right is None else torch.linalg.solve(left, right)
    return torch.cholesky_inverse(factor) if right is None else torch.cholesky_solve(right, factor)


def fit(
    fitted: Moments, held: Moments, weights: Tensor, offset: Tensor, *, free_offset: bool
) -> Fit:
    """Fit with the ridge that is best on held-out samples, or keep the weights at hand.

    Args:
        fitted: Sums over the samples to fit.
        held: Sums over the samples held out.
        weights: (groups, inputs, outputs) weights at hand.
        offset: (groups, outputs) offset at hand.
        free_offset: Whether the offset may change.

    Returns:
        The fit. Once the ridge is chosen, the weights are fitted to all samples. Inputs that are 0
        throughout keep their weights.
    """
    lives = ((fitted.xx + held.xx).diagonal(dim1=1, dim2=2) > 0).any(0).nonzero()[:, 0]
    share = len(lives) / weights.shape[1]  # of the inputs: the others' variance of 0 counts, too
    fitted, held = fitted.of(lives), held.of(lives)
    goal = float(held.variance().sum()) or float(held.yy.sum())  # one sample does not vary
    start = weights[:, lives], offset
    before = float(held.error(*start).sum())
    best, ridge = before, None
    solve = Solver(fitted, *start, free_offset=free_offset, share=share)
    for candidate in RIDGES:
        if best <= SLIGHT * goal:
            break
        error = float(held.error(*solve(candidate)).sum())
        if error < (1 - GAIN) * best:
            best, ridge = error, candidate
    if ridge is not None:
        found, offset = Solver(fitted + held, *start, free_offset=free_offset, share=share)(ridge)
        weights = weights.index_copy(1, lives, found)
    return Fit(
        weights, offset, ridge, *(each / goal if goal > 0 else 0.0 for each in (before, best))
    )


class Solver:
    """Minimises the squared error plus a ridge on the distance from the weights at hand.

    Args:
        moments: The samples.
        weights: (groups, inputs, outputs) weights at hand.
        offset: (groups, outputs) offset at hand.
        free_offset: Whether the offset may change; it has no ridge.
        share: What to multiply the mean variance of the inputs by: a ridge is a share of that.
    """

    def __init__(
        self,
        moments: Moments,
        weights: Tensor,
        offset: Tensor,
        *,
        free_offset: bool,
        share: float = 1.0,
    ) -> None:
        self.x, self.y = moments.means()
        self.gram, cross = covariances(moments, free_offset)
        if not free_offset:
            cross = cross - self.x @ offset[:, None, :]
        self.weights, self.offset, self.free_offset = weights, offset, free_offset
        self.wanted = cross - self.gram @ weights
        self.scale = mean_variance(self.gram) * share

    def __call__(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights and offset with a ridge."""
        weights = self.weights + solved(self.gram, ridge * self.scale, self.wanted)
        if not self.free_offset:
            return weights, self.offset
        return weights, (self.y - self.x.mT @ weights)[:, 0]
