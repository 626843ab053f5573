"""From a network to an engine, in one call."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from .convert import convert
from .dynamic import DynamicModel
from .lowering import lower
from .runtime import Engine, Predict, Program
from .runtime.engine import Kind

DRAWN = 1024  # masks drawn in advance for each gate; sample n takes those of n modulo this


def compile(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    engine: Kind = "native",
    threads: int = 1,
    keep: float | None = None,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> Engine:
    """Make an engine that computes, for each input, only the filters that it needs.

    Args:
        model: A dynamic network; or any network that `torch.fx` can trace, which is then dense. It
            is read in eval mode, never changed, and need not outlive the call.
        example: Input (B, C, H, W) of a plain network; a dynamic one knows its size.
        engine: `native`, or `reference`: plain numpy, slow and obviously right.
        threads: How many threads a run of the native engine uses.
        keep: For benchmarks alone: every gate keeps this share of its filters, in (0, 1], drawn by
            lot for each sample; a plain network is given all gates that it can have. What the
            network says then means nothing; the predictors run, and are paid for.
        seed: Of these draws.
        classes: Names of the outputs, kept in the engine's program and its file.

    Returns:
        The engine.

    Raises:
        ValueError: If the network cannot be lowered, naming the operation and its node, or if an
            option is out of its range.
        RuntimeError: If the native engine was not built; the message says what to install.
    """
    if keep is None:
        return Engine(lower(model, example, classes=classes), engine=engine, threads=threads)
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: give the share of filters that each gate keeps, in (0, 1]")
    if not isinstance(model, DynamicModel):
        if example is None:
            raise ValueError("example=None: a plain network needs an input, (B, C, H, W)")
        model = convert(model, example, min_gain=-math.inf)
    program = lower(model, classes=classes)
    return ForcedEngine(program, engine=engine, threads=threads, keep=keep, seed=seed)


class ForcedEngine(Engine):
    """An engine whose gates' decisions are drawn by lot, to measure what a keep ratio is worth.

    Args:
        program: What it runs.
        keep: Share of its filters that each gate keeps, at least one.
        seed: Of the draws. They depend on it and on how many samples were run before, alone.
        options: As of `Engine`.
    """

    def __init__(self, program: Program, *, keep: float, seed: int = 0, **options: Any) -> None:
        super().__init__(program, **options)
        random = np.random.default_rng(seed)
        self._drawn: dict[int, np.ndarray] = {}
        for operation in program.operations:
            if isinstance(operation, Predict):
                filters = program.gates[operation.mask].channels
                kept = max(1, round(keep * filters))
                ranks = random.random((DRAWN, filters)).argsort(1).argsort(1)
                self._drawn[operation.mask] = (ranks < kept).astype(np.uint8)
        self._samples, self._lock = 0, threading.Lock()

    def _masks(self, masks: Mapping[str, Any], samples: int) -> dict[int, np.ndarray]:
        with self._lock:
            first = self._samples % DRAWN
            self._samples += samples
        if first + samples <= DRAWN:  # views cost nothing beside the network
            drawn = {index: drawn[first : first + samples] for index, drawn in self._drawn.items()}
        else:
            rows = (first + np.arange(samples)) % DRAWN
            drawn = {index: drawn[rows] for index, drawn in self._drawn.items()}
        return drawn | super()._masks(masks, samples)
