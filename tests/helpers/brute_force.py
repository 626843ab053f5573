"""The slow twin of `ftwt.macs`: look at numbers instead of following rules.

In a network whose weights, shifts and inputs are all positive nothing cancels. So a channel that
is zero for a sample cannot be non-zero, and nothing needs one that has no gradient.
"""

import math

import torch
from torch import Tensor, nn

from ftwt import DynamicModel
from ftwt.pruning.dynamic import GATES
from ftwt.pruning.method import Gate


def positive(model: nn.Module) -> nn.Module:
    """Make a network in eval mode and double precision in which nothing cancels or saturates."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            random = 0.1 + 0.1 * torch.rand(parameter.shape, dtype=torch.float64)
            parameter.data = random / math.prod(parameter.shape[1:])
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.double()
            module.running_mean.copy_(-0.1 * torch.rand_like(module.running_mean))
            module.running_var.copy_(1 + torch.rand_like(module.running_var))
    return model.double().eval()


def random_gates(dynamic: DynamicModel, samples: int, *, keep: float = 0.4) -> None:
    """Let each gate decide by lot, for each sample anew but always the same."""
    for name, gate in dynamic.gates.items():
        if isinstance(gate, Gate):
            logits = keep - torch.rand(samples, _filters(dynamic, name))
            gate.predictor.forward = lambda _, logits=logits: logits


def executed(dynamic: DynamicModel, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return layer -> (B,) multiplications that matter, and unit -> (B,) those of its predictor."""
    seen: dict[str, list[tuple[nn.Module, Tensor, Tensor]]] = {}
    read: dict[str, Tensor] = {}
    hooks = []
    for name, module in dynamic.network.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not name.startswith(GATES):

            def record(module, inputs, output, name=name):
                output.retain_grad()
                seen.setdefault(name, []).append((module, inputs[0].detach().clone(), output))
                return output.clone()  # what follows may change its input in place

            hooks.append(module.register_forward_hook(record))
    for name, gate in dynamic.gates.items():
        hooks.append(
            gate.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0]}))
        )
    output, decided = dynamic(images.requires_grad_(), return_gates="masks")
    for hook in hooks:
        hook.remove()
    predictors = dynamic.predictors
    total = output.sum() + sum(read[name].sum() for name in predictors)  # a predictor reads it all
    total.backward()
    layers = {name: sum(_pairs(*call) for call in calls) for name, calls in seen.items()}
    costs = {}
    for name, predictor in predictors.items():
        width = predictor.linear.out_features
        inputs = _nonzero(read[name], 1).sum(1).double()
        if predictor.head == "softmax":
            inputs = torch.full_like(inputs, read[name].shape[1])
        inputs = inputs * (2 if predictor.pool == "both" else 1)
        rank = None if predictor.reduce is None else predictor.reduce.out_features
        full = read[name].shape[1] * (2 if predictor.pool == "both" else 1)
        if rank is not None and rank * (full + width) >= full * width:
            rank = None  # cheaper as one matrix
        costs[name] = inputs * width if rank is None else inputs * rank + rank * width
    return layers, costs


def _filters(dynamic: DynamicModel, unit: str) -> int:
    return next(u.out_channels for u in dynamic.units if u.name == unit)


def _nonzero(values: Tensor, channel: int) -> Tensor:
    """Channels (B, C) that are not zero everywhere."""
    return (values != 0).movedim(channel, 1).flatten(2).any(2) if values.dim() > 2 else values != 0


def _pairs(module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
    needed_values = torch.zeros_like(output) if output.grad is None else output.grad
    if isinstance(module, nn.Linear):
        active, needed = _nonzero(inputs, -1), _nonzero(needed_values, -1)
        return active.sum(1).double() * needed.sum(1) * math.prod(output.shape[1:-1])
    active, needed = _nonzero(inputs, 1), _nonzero(needed_values, 1)
    place = inputs if module.transposed else output
    positions = math.prod(place.shape[2:]) * math.prod(module.kernel_size)
    pairs = sum(
        a.sum(1).double() * n.sum(1)
        for a, n in zip(active.chunk(module.groups, 1), needed.chunk(module.groups, 1), strict=True)
    )
    return pairs * positions
