"""Batch norm over all processes: the statistics of the whole batch, not of a process's part of it.

`torch.nn.SyncBatchNorm` does this on GPUs, by replacing modules. Here the modules stay what they
are, and any device and backend will do: while `SynchronizedBatchNorm` is active, every training
call of `torch.nn.functional.batch_norm` is answered by `synchronized_batch_norm`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SynchronizedBatchNorm(TorchFunctionMode):
    """A context in which batch norm that learns does so over all processes.

    All of them must call the same norms in the same order.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answer `batch_norm`, in training, ourselves."""
        if function is F.batch_norm and _learns(*args, **(kwargs or {})):
            return synchronized_batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _learns(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *rest: float,
    **named: float,
) -> bool:
    return training


def synchronized_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise by the mean and variance of all processes' samples; learn the running ones.

    Args:
        input: (B, C, *spatial); B may differ between processes.
        running_mean: (C,), or None; moves towards the batch's mean.
        running_var: (C,), or None; moves towards the batch's unbiased variance.
        weight: (C,) factor, or None.
        bias: (C,) summand, or None.
        training: True: this is the norm of training.
        momentum: How far the running values move, in [0, 1].
        eps: Added to the variance.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", equation 2.1, for the variance of samples that are in several places.
    """
    output, mean, var, count = _BatchNorm.apply(input, weight, bias, eps)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = var * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return output


class _BatchNorm(torch.autograd.Function):
    """Two collective calls: the parts' statistics forward, the parts' gradient sums back."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        var, mean = torch.var_mean(values, _dims(input), correction=0)
        number = mean.new_full((1,), input.numel() / input.shape[1])
        mine = torch.cat([mean, var, number])
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        parts = torch.stack(gathered)
        (means, variances), counts = parts[:, :-1].chunk(2, dim=1), parts[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean, scale, count)
        ctx.shift = bias is not None
        output = (values - _wide(mean, input)) * _wide(scale, input)
        if weight is not None:
            output = output * _wide(weight, input)
        if bias is not None:
            output = output + _wide(bias, input)
        ctx.mark_non_differentiable(mean, var, count)
        return output.to(input.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        input, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)
        scaled = (input.to(mean.dtype) - _wide(mean, input)) * _wide(scale, input)
        sums = torch.stack([gradient.sum(_dims(input)), (gradient * scaled).sum(_dims(input))])
        own = sums.clone()  # of weight and bias, which are averaged as all gradients are
        dist.all_reduce(sums)
        plain, along = sums / count
        result = gradient - _wide(plain, input) - scaled * _wide(along, input)
        result = result * _wide(scale if weight is None else scale * weight, input)
        of_weight = None if weight is None else own[1].to(weight.dtype)
        return result.to(input.dtype), of_weight, own[0] if ctx.shift else None, None


def _dims(input: Tensor) -> list[int]:
    return [0, *range(2, input.dim())]


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Lay (C,) values out to be combined with (B, C, *spatial)."""
    return values.view(-1, *[1] * (like.dim() - 2))
