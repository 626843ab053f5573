"""A dynamic network and pruned ones on our engine, in turns, until one is found that is as fast."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from structured import History, Task, replay, walk
from torch import nn

import ftwt
from ftwt.contest.steered import DECIDE, Steered, contestant
from ftwt.contest.turns import disturbance, time_in_turns
from ftwt.runtime.engine import Kind

IMAGES = 16  # that are timed, one by one
SEARCH_ROUNDS = 7


class Race:
    """A dynamic network on our engine, and pruned ones beside it: single images, one thread.

    Args:
        dynamic: The network.
        images: (N, C, H, W), what it was made for.
        engine: Kind of engine.
    """

    def __init__(self, dynamic: nn.Module, images: torch.Tensor, engine: Kind) -> None:
        self.engine: Kind = engine
        self.images = np.ascontiguousarray(images[:IMAGES, None].cpu().numpy())
        self.dynamic = self._engine(dynamic)

    def _engine(self, network: nn.Module) -> Steered:
        network = copy.deepcopy(network).cpu().eval()
        program = ftwt.compile(
            network, torch.from_numpy(self.images[0]), engine=self.engine
        ).program
        return Steered(program, engine=self.engine)

    def measure(self, pruned: nn.Module, *, rounds: int) -> dict[str, Any]:
        """Time both in turns.

        Returns:
            Latencies as `ftwt.bench` has them (median over rounds, mean over images), their ratio,
            pruned to dynamic, and its quartiles over rounds.
        """
        engines = {"dynamic": self.dynamic, "static": self._engine(pruned)}
        decide = [DECIDE] * len(self.images)
        with disturbance() as disturbed:
            seconds = time_in_turns(
                {name: contestant(e, self.images, decide) for name, e in engines.items()},
                len(self.images),
                rounds=rounds,
            )
        ms = {name: 1e3 * float(np.median(s, axis=0).mean()) for name, s in seconds.items()}
        ratios = seconds["static"].mean(1) / seconds["dynamic"].mean(1)
        low, high = np.percentile(ratios, [25, 75])
        return {
            "isa": self.dynamic.isa,
            "threads": 1,
            "images": len(self.images),
            "rounds": rounds,
            "dynamic_ms": ms["dynamic"],
            "static_ms": ms["static"],
            "ratio": ms["static"] / ms["dynamic"],
            "ratio_low": float(low),
            "ratio_high": float(high),
            "disturbance": disturbed[0] if disturbed else None,
        }


def as_fast(task: Task, race: Race) -> History:
    """Find how much to take out for the latency of the dynamic network.

    Raises:
        ValueError: The dense network is as fast already, or the smallest is slower.
    """
    stages = [([], 0.0), *walk(task)]
    ratios: dict[int, float] = {}

    def slower(stage: int) -> bool:
        history, saved = stages[stage]
        ratios[stage] = race.measure(replay(task, history), rounds=SEARCH_ROUNDS)["ratio"]
        print(f"{saved:.1%} fewer MACs: {ratios[stage]:.3f} of the dynamic network's latency")
        return ratios[stage] > 1

    low, high = 0, len(stages) - 1
    if not slower(low):
        raise ValueError("the dense network is as fast as the dynamic one: nothing to match")
    if slower(high):
        raise ValueError(
            f"the dynamic network's latency is out of reach: at {stages[high][1]:.1%} fewer MACs, "
            f"the most that Torch-Pruning takes, it takes {ratios[high]:.2f} times as long"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if slower(middle) else (low, middle)
    return stages[min((low, high), key=lambda stage: abs(ratios[stage] - 1))][0]
