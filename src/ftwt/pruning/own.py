"""Rules of your own: how strongly a filter fires, and what predicts it.

Both are passed to `convert`, as the function (or class) or as its name `module:function`. The name
is what a saved network holds; `from_pretrained` must be given it again, since no file may choose
code that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..graph.trace import evaluating
from ..graph.work import count_work
from ..names import find_own, is_own, own_name
from .method import Head, MaskPredictor, Pool, Saliency, pooled

OwnSaliency = Callable[[Tensor], Tensor]
OwnHead = Callable[[int, int], nn.Module]


class CheckedSaliency:
    """A saliency of your own, whose results are looked at before they are believed.

    Args:
        rule: Maps (B, C, *spatial) outputs of a unit to (B, C) saliencies.
        name: `module:function`.
    """

    def __init__(self, rule: OwnSaliency, name: str) -> None:
        self.rule, self.name = rule, name

    def __call__(self, features: Tensor) -> Tensor:
        """Apply the rule.

        Raises:
            ValueError: It returns something else than a saliency for each sample and filter.
        """
        found = self.rule(features)
        wanted = tuple(features.shape[:2])
        if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"saliency {self.name} returned {what} for features of "
                f"{tuple(features.shape)}; it must return a tensor of {wanted}: a saliency for "
                "each sample and filter"
            )
        if not (found >= 0).all():
            raise ValueError(
                f"saliency {self.name} returned values below 0 or NaN; it must say how strongly "
                "filters fire, from 0 on"
            )
        return found


class OwnPredictor(MaskPredictor):
    """A predictor of your own: a module of pooled features to logits.

    Args:
        in_channels: Channels of the unit's input.
        out_channels: Filters of the unit.
        pool: How the input is pooled over space.
        build: Called with the width of pooled features and the number of filters.
        name: `module:function`.

    Attributes:
        own: The module.
        build: What built it.
        macs: Multiply-accumulates of it for one sample.

    Raises:
        ValueError: It builds no module, or one that gives no logits for pooled features.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, pool: Pool, build: OwnHead, name: str
    ) -> None:
        nn.Module.__init__(self)
        self.pool, self.head, self.build = pool, name, build  # type: ignore[assignment]
        self.standardize = self.reduce = None
        width = in_channels * (2 if pool == "both" else 1)
        self.own = build(width, out_channels)
        wanted = f"head {name} must map (B, {width}) pooled features to (B, {out_channels}) logits"
        if not isinstance(self.own, nn.Module):
            raise ValueError(f"{wanted}: it built {type(self.own).__name__}, not a module")
        with evaluating(self.own), torch.no_grad():
            try:
                found = self.own(torch.zeros(2, width))
            except RuntimeError as error:
                raise ValueError(f"{wanted}: {error}") from error
            if not isinstance(found, Tensor) or found.shape != (2, out_channels):
                what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(f"{wanted}: for 2 samples it gave {what}")
            self.macs = count_work(self.own, torch.zeros(1, width)).macs

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C_in, *spatial) inputs of the unit to (B, C) logits."""
        return self.own(pooled(features, self.pool))

    def fold(self) -> tuple[Tensor, Tensor]:
        """Refuse: what it computes is not known."""
        raise ValueError(f"head {self.head} does not fold; convert with head='standardized'")


def resolve_saliency(given: Any) -> tuple[Any, str]:
    """Return what a gate is given, and its name.

    Args:
        given: A known saliency, a function, or `module:function`.

    Raises:
        ValueError: It is none of these.
    """
    rule, name = _resolve(given, "saliency", get_args(Saliency))
    return (name if rule is None else CheckedSaliency(rule, name)), name


def resolve_head(given: Any) -> tuple[OwnHead | None, str]:
    """Return what builds a head of your own, None for a known one, and its name.

    Args:
        given: A known head, a function or class, or `module:function`.

    Raises:
        ValueError: It is none of these.
    """
    return _resolve(given, "head", get_args(Head))


def _resolve(given: Any, what: str, known: tuple[str, ...]) -> tuple[Any, str]:
    if isinstance(given, str) and is_own(given):
        return find_own(given), given
    if callable(given):
        return given, own_name(given)
    if given not in known:
        raise ValueError(
            f"{what}={given!r}: use one of {', '.join(known)}, a function, or MODULE:FUNCTION"
        )
    return None, given


def refuse_nameless(predictors: Iterable[MaskPredictor], saliencies: Iterable[Any]) -> None:
    """Refuse to save rules that their names do not lead to.

    Args:
        predictors: Of a network.
        saliencies: Of its gates.

    Raises:
        ValueError: One is a lambda, say, or was defined inside a function.
    """
    own: list[tuple[str, str, Any]] = [
        ("head", p.head, p.build) for p in predictors if isinstance(p, OwnPredictor)
    ]
    own += [("saliency", s.name, s.rule) for s in saliencies if isinstance(s, CheckedSaliency)]
    for what, name, given in own:
        try:
            found: Any = find_own(name)
        except (ValueError, ImportError):
            found = None
        if found is not given:
            raise ValueError(
                f"{what} {name} is not found again by that name; define it at the top of a module, "
                "not as a lambda or inside a function, and pass that"
            )
