"""Two engines: a cheap one for every image, a dearer one for those that it is unsure of."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files.atomic import replacing
from ..files.json import parse_json
from .engine import Engine, Kind, load

FIRST, SECOND, RULE = "first.ftwt", "second.ftwt", "second_look.json"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Looks:
    """What a batch took, image by image.

    Args:
        again: (B,) bool, looked at a second time.
        executed_macs: (B,) int64 multiply-accumulates of all passes.
        reduction: (B,) share of the second network's dense MACs that was saved; below 0 for images
            that were looked at again.
    """

    again: np.ndarray
    executed_macs: np.ndarray
    reduction: np.ndarray


class SecondLookEngine:
    """Run a cheap engine, and a dearer one for images whose margin is small.

    An image that is looked at again takes the time of both: the mean falls, the worst case rises.

    Args:
        first: The engine for every image; gives (B, classes) logits.
        second: The one that looks again.
        threshold: Images with a smaller margin between their two best class probabilities are
            looked at again.

    Raises:
        ValueError: The engines take or give arrays of different shapes.
    """

    def __init__(self, first: Engine, second: Engine, threshold: float) -> None:
        shapes = [(e.program.maps[0], e.program.maps[e.program.output]) for e in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the first engine maps {shapes[0][0]} to {shapes[0][1]}, the second "
                f"{shapes[1][0]} to {shapes[1][1]}; they must be of one task"
            )
        self.first, self.second, self.threshold = first, second, float(threshold)

    def __call__(self, x: Any) -> np.ndarray:
        """Return (B, classes) logits, each image's of the pass that answered for it.

        Args:
            x: (B, C, H, W) float32, a numpy array or a torch tensor on the CPU.
        """
        images = np.asarray(x)
        outputs = np.array(self.first(images))
        again = margin(outputs) < self.threshold
        if again.any():
            outputs[again] = self.second(np.ascontiguousarray(images[again]))
        return outputs

    def run(self, x: Any) -> tuple[np.ndarray, Looks]:
        """Return the logits, as a call does, and what the images took."""
        images = np.asarray(x)
        found, stats = self.first.run(images)
        outputs, executed = np.array(found), stats.executed_macs.copy()
        again = margin(outputs) < self.threshold
        if again.any():
            outputs[again], more = self.second.run(np.ascontiguousarray(images[again]))
            executed[again] += more.executed_macs
        return outputs, Looks(again, executed, 1 - executed / self.second.program.dense_macs)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write both programs and the rule to a folder that `load_second_look` reads.

        Raises:
            OSError: The folder cannot be written or the disk is full.
        """
        place = Path(folder)
        self.first.save(place / FIRST)
        self.second.save(place / SECOND)
        rule = {"format": "ftwt second look", "version": VERSION, "threshold": self.threshold}
        with replacing(place / RULE) as temporary:
            temporary.write_text(json.dumps(rule, indent=2) + "\n", encoding="utf-8")


def load_second_look(
    folder: str | os.PathLike[str], *, engine: Kind = "native", threads: int = 1
) -> SecondLookEngine:
    """Read what `SecondLookEngine.save` wrote. Needs numpy alone.

    Args:
        folder: The folder.
        engine: As of `Engine`.
        threads: As of `Engine`.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged, or of a later version.
    """
    place = Path(folder)
    rule = parse_json((place / RULE).read_text(encoding="utf-8"))
    threshold = rule.get("threshold") if isinstance(rule, dict) else None
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"{place / RULE} holds no threshold; save the engine anew")
    if rule.get("version") != VERSION:
        raise ValueError(
            f"{place / RULE} has version {rule.get('version')!r}, this ftwt reads {VERSION}: "
            "update it"
        )
    first, second = (load(place / name, engine=engine, threads=threads) for name in (FIRST, SECOND))
    return SecondLookEngine(first, second, threshold)


def margin(outputs: np.ndarray) -> np.ndarray:
    """The distance between the two largest class probabilities, (B,), of (B, classes) logits."""
    shares = np.exp(outputs - outputs.max(1, keepdims=True))
    best = np.partition(shares, -2, axis=1)[:, -2:] / shares.sum(1, keepdims=True)
    return best[:, 1] - best[:, 0]
