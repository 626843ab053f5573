"""Fire Together Wire Together: the method, in one file.

A *unit* is a convolution with the normalisation and the activation that follow it. For each sample
a small predictor looks at the unit's input and says which of its filters to compute; it learns from
the unit's own output, which tells afterwards which were worth computing.

Source: Elkerdawy, Elhoushi, Zhang, Ray, "Fire Together Wire Together: A Dynamic Pruning Approach
with Self-Supervised Mask Prediction", CVPR 2022, arXiv 2110.08232 ("the paper" below).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Saliency = Literal["peak", "energy", "norm", "mean"]
Variant = Literal["mass", "uniform"]
Pool = Literal["max", "mean", "both"]
Head = Literal["softmax", "standardized"]
Mode = Literal["decoupled", "joint"]
Apply = Literal["predicted", "target", "open"]
Explain = bool | Literal["saliency"]

SILENT = 1e-5  # a filter with at most this share of its unit's saliency fires nowhere
STARTS_OPEN = 1.0  # first bias of a predictor (logits): until it has learned, all is computed


def saliency(features: Tensor, kind: Saliency | Callable[[Tensor], Tensor] = "peak") -> Tensor:
    """Say how strongly each filter fires for each sample.

    Args:
        features: (B, C, *spatial) outputs of a unit.
        kind: `peak` is the heatmap's largest absolute value, as published; `energy` the sum of its
            squares, `norm` the root of that, `mean` the mean absolute value; or a rule of your own.

    Returns:
        (B, C) non-negative saliencies.
    """
    if callable(kind):
        return kind(features)
    if kind == "peak":
        return pooled(features.abs(), "max")
    if kind == "mean":
        return pooled(features.abs(), "mean")
    energy = pooled(features.float().square(), "mean") * features[0, 0].numel()
    return energy if kind == "energy" else energy.sqrt()


def mass(saliency: Tensor) -> Tensor:
    """Share a sample's (B, C) saliency among its filters: s / sum(s), zero where it is <= 1e-5."""
    share = F.normalize(saliency.float(), p=1.0, dim=1, eps=1e-30)
    return F.normalize(share * (share > SILENT), p=1.0, dim=1)


def entry(saliency: Tensor, variant: Variant = "mass") -> Tensor:
    """Return, as (B, C), the r above which each filter is kept: what lies before it in rank.

    That is the heatmap mass of the larger filters (`mass`), or their share of all filters
    (`uniform`). Zero for the largest filter; infinite, for `mass`, where a filter is silent.
    """
    ranked, order = mass(saliency).sort(dim=1, descending=True, stable=True)
    if variant == "uniform":
        count = ranked.shape[1]
        before = torch.arange(count, device=ranked.device).expand_as(ranked) / count
    else:
        before = (ranked.cumsum(1) - ranked).clamp(0, 1 - 1e-7)  # r = 1 takes all that fire
        before[ranked == 0] = torch.inf
        before[:, 0] = 0
    return torch.empty_like(ranked).scatter(1, order, before)


def target_mask(saliency: Tensor, r: float | Tensor, variant: Variant = "mass") -> Tensor:
    """Keep, per sample, the fewest filters whose heatmap mass reaches `r`.

    Filters are taken from the largest on until their cumulative mass is at least `r`. r = 1 keeps
    every filter that fires at all. One filter is always kept.

    Args:
        saliency: (B, C) non-negative saliencies.
        r: Share of the mass to keep, in (0, 1].
        variant: `mass`, or `uniform`: the largest ceil(r C) filters of every sample.

    Returns:
        (B, C) bool, true where a filter is kept.

    Source: section 3 of the paper, the criterion on the mass of heatmaps.
    """
    return entry(saliency, variant) < r


class Standardize(nn.BatchNorm1d):
    """Batch norm of (B, width) features without scale and shift; one sample uses running values."""

    running_mean: Tensor
    running_var: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Standardize the features."""
        learn = self.training and len(input) > 1
        stats = (self.running_mean, self.running_var)
        return F.batch_norm(input, *stats, training=learn, momentum=0.1, eps=self.eps)


class MaskPredictor(nn.Module):
    """Guess from a unit's input which of its filters will fire.

    The input is pooled over space (`max`, `mean`, or `both` side by side), scaled by the head, and
    mapped to one logit a filter by a linear layer, through a bottleneck of width `rank` if given.
    The `softmax` head is the published one. The `standardized` head (mean 0, variance 1) folds into
    the linear layer: then a channel that is zero adds nothing and need not be read.

    Source: section 3 and figure 2 of the paper (softmax of the global maximum, a linear layer).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        pool: Pool = "mean",
        head: Head = "standardized",
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.pool, self.head = pool, head
        width = in_channels * (2 if pool == "both" else 1)
        self.standardize = Standardize(width, affine=False) if head == "standardized" else None
        self.reduce = None if rank is None else nn.Linear(width, rank, bias=False)
        self.linear = nn.Linear(rank or width, out_channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, STARTS_OPEN)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C_in, *spatial) inputs of the unit to (B, C) logits."""
        x = pooled(features, self.pool).to(self.linear.weight.dtype)
        scaled = x.softmax(1) if self.standardize is None else self.standardize(x)
        return self.linear(scaled if self.reduce is None else self.reduce(scaled))

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return the (C, width) weight and (C,) bias that map pooled features to logits."""
        if self.standardize is None:
            raise ValueError("a softmax head does not fold; convert with head='standardized'")
        weight, reduce = self.linear.weight, self.reduce
        weight = weight if reduce is None else weight @ reduce.weight
        scale = (self.standardize.running_var + self.standardize.eps).rsqrt()
        return weight * scale, self.linear.bias - weight @ (scale * self.standardize.running_mean)


class GateOutput(NamedTuple):
    """What a gate did for a batch: masks are outputs of a network, never hidden state."""

    mask: Tensor  # (B, C) bool: the filters that were computed
    logits: Tensor | None = None  # (B, C): the predictor's guess, if one was made
    target: Tensor | None = None  # (B, C) bool: what the rule would keep, if asked for
    saliency: Tensor | None = None  # (B, C): how strongly each filter fired, if asked for


class Gate(nn.Module):
    """Decide per sample which filters of a unit are computed, and silence the others.

    The mask is what `predictor` says. Its targets keep a share `r` of the mass (`saliency`, or of
    the filters: `variant`). `mode` decoupled stops the mask loss at the predictor's input, joint
    does not; `straight_through` lets the task loss reach the predictor through the 0/1 mask.
    """

    r: Tensor
    threshold: Tensor

    def __init__(
        self,
        predictor: MaskPredictor,
        *,
        r: float = 0.9,
        mode: Mode = "decoupled",
        saliency: Saliency | Callable[[Tensor], Tensor] = "peak",
        variant: Variant = "mass",
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        self.predictor, self.mode, self.saliency = predictor, mode, saliency
        self.variant, self.straight_through = variant, straight_through
        self.register_buffer("r", torch.tensor(float(r)))
        self.register_buffer("threshold", torch.tensor(0.0))

    def forward(
        self, inputs: Tensor, outputs: Tensor, apply: Apply = "predicted", explain: Explain = False
    ) -> tuple[Tensor, GateOutput]:
        """Mask a unit's (B, C, *spatial) outputs, by what its (B, C_in, *spatial) inputs predict.

        `apply` chooses the mask: `predicted`, `target`, or none (`open`). `explain` also returns
        what `apply` does not need: logits, target and saliency (True), or the saliency alone.
        """
        strength = target = logits = None
        if explain or apply == "target":
            with torch.no_grad():
                strength = saliency(outputs, self.saliency)
                if explain != "saliency" or apply == "target":
                    target = target_mask(strength, self.r, self.variant)
        if explain is True or apply == "predicted":
            logits = self.predictor(inputs if self.mode == "joint" else inputs.detach())
        if apply == "predicted" and logits is not None:
            mask = hard_mask(logits, self.threshold)
        elif apply == "target" and target is not None:
            mask = target
        else:
            mask = torch.ones(outputs.shape[:2], dtype=torch.bool, device=outputs.device)
            return outputs, GateOutput(mask, logits, target, strength)
        scale = mask.to(outputs.dtype)
        if self.straight_through and logits is not None:
            scale = scale + (logits.sigmoid() - logits.sigmoid().detach()).to(outputs.dtype)
        return silence(outputs, scale), GateOutput(mask, logits, target, strength)


def hard_mask(logits: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
    """Keep filters whose logit exceeds the threshold (0: sigmoid > 0.5), the largest, and NaN."""
    return ~(logits <= threshold) | (logits == logits.amax(1, keepdim=True))


def silence(outputs: Tensor, mask: Tensor) -> Tensor:
    """Multiply (B, C, *spatial) outputs by their (B, C) mask: M * O."""
    return outputs * mask.to(outputs.dtype).reshape(*mask.shape, *[1] * (outputs.dim() - 2))


def mask_loss(gates: Mapping[str, GateOutput]) -> Tensor:
    """Score predictions: mean over units of the mean over samples of the filters' summed BCE.

    Units without logits or target (static gates) do not count; with none at all it is zero.
    """
    bce = F.binary_cross_entropy_with_logits
    losses = [
        bce(gate.logits, gate.target.to(gate.logits.dtype), reduction="none").sum(1).mean()
        for gate in gates.values()
        if gate.logits is not None and gate.target is not None
    ]
    return torch.stack(losses).mean() if losses else torch.zeros(())


def pooled(features: Tensor, kind: Pool) -> Tensor:
    """Pool (B, C, *spatial) over space to (B, C), or (B, 2 C): the maxima, then the means."""
    if kind == "both":
        return torch.cat([pooled(features, "max"), pooled(features, "mean")], 1)
    if features.dim() == 2 or kind == "mean":
        return features.mean(tuple(range(2, features.dim()))) if features.dim() > 2 else features
    if features.dim() == 4 and not features.is_contiguous():  # amax crawls in channels-last memory
        return F.adaptive_max_pool2d(features, 1).flatten(1)
    return features.flatten(2).amax(2)
