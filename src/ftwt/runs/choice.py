"""Which candidate `ftwt.prune` takes, and how long each of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook, opened
from .candidates import Candidate, nearest
from .latency import Stopwatch

DENSE = "dense"
FELT = 0.5  # of the time that the fastest candidate saves: less is not taken


def timed(
    candidates: Sequence[Candidate], dynamic: DynamicModel, watch: Stopwatch
) -> tuple[list[Candidate], float | None, str]:
    """Measure the candidates' times, in turns with the dense network's.

    Args:
        candidates: Of one budget.
        dynamic: The network that all are made from.
        watch: That measures them.

    Returns:
        The candidates with their average times, the dense network's, and an empty string. Where
        the native engine is missing or cannot run one of them: the candidates as they were, None,
        and why.
    """
    networks: dict[str, DynamicModel | SecondLook] = {DENSE: opened(dynamic).eval()}
    networks |= {one.kind: one.network for one in candidates}
    try:
        ms = watch.times(networks)
    except (RuntimeError, ValueError) as error:  # not built, or it has no such operation
        return list(candidates), None, str(error)
    dense = float(ms[DENSE].mean())
    found = [
        replace(one, latency_ms=_average(one, ms[one.kind], dense, watch.images))
        for one in candidates
    ]
    return found, dense, ""


@torch.inference_mode()
def _average(one: Candidate, ms: np.ndarray, dense_ms: float, images: np.ndarray) -> float:
    """Milliseconds of an image; of second looks, with their share among all images that judge."""
    if not isinstance(one.network, SecondLook):
        return float(ms.mean())
    shown = torch.from_numpy(images).to(next(one.network.parameters()))
    again = (one.network.look(shown).passes > 1).cpu().numpy()
    if again.all():
        twice = float(ms.mean())
        once = max(0.0, twice - dense_ms)
    else:
        once = float(ms[~again].mean())
        twice = float(ms[again].mean()) if again.any() else once + dense_ms
    return (1 - one.again) * once + one.again * twice


def choose(candidates: Sequence[Candidate], dense_ms: float | None) -> tuple[Candidate, str]:
    """Take the best candidate of those that save time, and say why.

    Args:
        candidates: Of one budget.
        dense_ms: The dense network's time; None where times were not measured.

    Returns:
        The candidate nearest to the dense network of those that save at least half of the time
        that the fastest one saves, and the reason.
    """
    saved = {one.kind: _saved(one, dense_ms) for one in candidates}
    least = FELT * max(saved.values())
    felt = [one for one in candidates if saved[one.kind] >= least]
    best = nearest(felt)
    if len(candidates) == 1:
        return best, f"{best.kind}: the only one to choose from"
    why = f"{best.kind} is taken: it {_told(best, dense_ms)}"
    slow = [one.kind for one in candidates if one not in felt and nearest([best, one]) is one]
    if slow:
        far = "saving less than half of the time that the fastest saves"
        why += f"; nearer to the dense network, but {far}: {', '.join(slow)}"
    fastest = max(candidates, key=lambda one: saved[one.kind])
    if dense_ms is not None and fastest is not best:
        why += f"; {fastest.kind} is the fastest"
    return best, why


def _saved(one: Candidate, dense_ms: float | None) -> float:
    """Share of the dense network's time that a candidate saves; 1 where no time was measured."""
    if dense_ms is None or one.latency_ms is None:
        return 1.0
    return max(0.0, 1 - one.latency_ms / dense_ms)


def _told(one: Candidate, dense_ms: float | None) -> str:
    parts = [f"has an error of {one.error:.4f} beside the dense network"]
    if one.agreement is not None:
        parts.append(f"agrees with it on {one.agreement:.1%} of the held-out images")
    if dense_ms is not None and one.latency_ms is not None:
        parts.append(f"is {dense_ms / one.latency_ms:.2f} times as fast")
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
