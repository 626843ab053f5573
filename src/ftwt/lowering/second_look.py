"""A second look as two engines."""

from __future__ import annotations

from typing import Any

from ..pruning.second_look import SecondLook
from ..runtime.second_look import SecondLookEngine
from .compile import compile


def compile_second_look(network: SecondLook, **options: Any) -> SecondLookEngine:
    """Compile both networks of a second look.

    Args:
        network: From `ftwt.second_look`.
        options: Of `ftwt.compile`, for both.

    Returns:
        The engines with their rule.
    """
    first, second = (compile(part, **options) for part in (network.first, network.second))
    return SecondLookEngine(first, second, float(network.threshold))
