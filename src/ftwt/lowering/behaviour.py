"""Whether modules that are known by the name of their class compute what that name says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.trace import evaluating

KNOWN_EPS = (1e-5, 0.0, 1e-3)  # of frozen batch norms that have no name for theirs
PIXELS = 3  # rows and columns of the map that is shown to a module


@torch.no_grad()
def is_identity(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a module returns its input in eval mode.

    Args:
        module: Any that keeps shapes.
        shape: Of one sample, channels first.
    """
    x = _images(shape)
    return torch.equal(_shown(module, x), x)


@torch.no_grad()
def eps_of_norm(module: nn.Module, fields: Mapping[str, Any]) -> float | None:
    """Return the eps with which a module is the batch norm of its statistics; None if it is none.

    Args:
        module: A frozen batch norm.
        fields: Its `running_mean`, `running_var`, `weight` and `bias`.
    """
    mean, variance = (fields[name].float() for name in ("running_mean", "running_var"))
    x = _images((len(mean), PIXELS, PIXELS)).to(mean.device)
    found = _shown(module, x)
    own = getattr(module, "eps", None)
    for eps in (own, *KNOWN_EPS) if isinstance(own, float) else KNOWN_EPS:
        scale = fields["weight"].float() * (variance + eps).rsqrt()
        expected = scale[:, None, None] * (x - mean[:, None, None]) + fields["bias"][:, None, None]
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
            return float(eps)
    return None


def _images(shape: Sequence[int]) -> Tensor:
    sizes = (shape[0], *[min(size, PIXELS) for size in shape[1:]])
    return torch.randn(2, *sizes, generator=torch.Generator().manual_seed(0))


def _shown(module: nn.Module, x: Tensor) -> Tensor:
    with evaluating(module), torch.random.fork_rng(devices=[]):
        result: Tensor = module(x.clone())
    return result
