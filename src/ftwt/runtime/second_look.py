"""Engines of growing cost: each looks at the images that the one before it is unsure of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .engine import Engine, Kind, Stats
from .file import load_passes, save
from .passes import Passes, check_passes, margin


@dataclass(frozen=True, eq=False, repr=False)
class Looks(Stats):
    """What a batch took, all passes together, sample by sample.

    Of `Stats`: `keep` is that of the pass that answered, `masks` is empty, and `macs` has the
    operations of all passes, one pass after the other. `reduction` is below 0 for images that went
    through all of them.

    Args:
        passes: (B,) int64, how many passes each image went through.
    """

    passes: np.ndarray

    @property
    def again(self) -> np.ndarray:
        """(B,) bool, looked at a second time."""
        return self.passes > 1


class SecondLookEngine(Engine):
    """Run a cheap engine, and a dearer one for images whose margin is small.

    An image that is looked at again takes the time of both: the mean falls, the worst case rises.
    From `ftwt.compile` of a second look, or from `load`.

    Args:
        passes: Engines of growing cost, which give (B, classes) logits.
        thresholds: Of each but the last: images with a smaller margin between their two best class
            probabilities go to the next.

    Attributes:
        passes: As given.
        thresholds: As given.
        program: That of the last pass, with the names of the classes and the notes.

    Raises:
        ValueError: The engines are of different tasks, or the thresholds are not as many.
    """

    def __init__(self, passes: Sequence[Engine], thresholds: Sequence[float]) -> None:
        self.passes, self.thresholds = tuple(passes), tuple(map(float, thresholds))
        check_passes(tuple(one.program for one in passes), self.thresholds)
        last = passes[-1]
        self.program, self.kind, self.threads, self.isa = (
            last.program, last.kind, last.threads, last.isa
        )  # fmt: skip

    def __call__(self, x: Any) -> Any:
        """Return (B, classes) logits, each image's of the pass that answered for it.

        Args:
            x: (B, C, H, W) float32, a numpy array or a torch tensor on the CPU.
        """
        images = self._images(x)
        outputs = np.array(self.passes[0](images))
        for left, engine in self._unsure(outputs):
            outputs[left] = engine(images[left])
        return self._like(x, outputs)

    def run(self, x: Any, masks: Mapping[str, Any] | None = None) -> tuple[Any, Looks]:
        """Return the logits, as a call does, and what the images took.

        Args:
            x: (B, C, H, W) float32, a numpy array or a torch tensor on the CPU.
            masks: None; the passes have masks of their own, see `passes`.
        """
        if masks:
            self._refuse("takes no masks")
        images = self._images(x)
        found, stats = self.passes[0].run(images)
        outputs, keep = np.array(found), stats.keep.copy()
        macs, looks = [stats.macs], np.ones(len(images), np.int64)
        for left, engine in self._unsure(outputs):
            outputs[left], stats = engine.run(images[left])
            looks[left] += 1
            keep[left] = stats.keep
            macs.append(np.zeros((len(images), stats.macs.shape[1]), np.int64))
            macs[-1][left] = stats.macs
        for engine in self.passes[len(macs) :]:
            macs.append(np.zeros((len(images), len(engine.program.operations)), np.int64))
        joined = np.concatenate(macs, axis=1)
        executed, dense = joined.sum(1), self.program.dense_macs
        reduction = 1 - executed / dense if dense else np.zeros(len(images))
        return self._like(x, outputs), Looks(keep, executed, reduction, {}, joined, looks)

    def _unsure(self, outputs: np.ndarray) -> Iterator[tuple[np.ndarray, Engine]]:
        """The images that are left to each further pass, given what the last ones made of them."""
        left = np.arange(len(outputs))
        for threshold, engine in zip(self.thresholds, self.passes[1:], strict=True):
            left = left[margin(outputs[left]) < threshold]
            if not len(left):
                return
            yield left, engine

    def profile(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: each of the `passes` has a profile of its own."""
        self._refuse("has no profile of its own")

    def save(self, path: str | os.PathLike[str], **notes: Any) -> None:
        """Write all passes to one file that `load` reads; what is equal in them is written once.

        Args:
            path: The file.
            notes: As of `Engine.save`, for the last pass.

        Raises:
            OSError: The folder cannot be written or the disk is full; an older file survives.
        """
        *before, last = (one.program for one in self.passes)
        save(Passes((*before, last.described(**notes)), self.thresholds), path)

    def __repr__(self) -> str:
        return " then ".join(map(repr, self.passes))

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise ValueError(f"a second look {what}; ask one of its `passes`")


def load(
    path: str | os.PathLike[str],
    *,
    engine: Kind = "native",
    threads: int = 1,
    isa: str | None = None,
) -> Engine:
    """Load what `Engine.save` wrote; needs numpy alone.

    Args:
        path: The file. It is read when the engine is built, and by `Engine.save`.
        engine: As of `Engine`, and so are the others.
        threads: Of the native engine.
        isa: Of the native engine.

    Returns:
        The engine; a `SecondLookEngine` if the file holds a second look.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is truncated, altered, of a later version, or no program's.
        RuntimeError: The native engine was not built.
    """
    found = load_passes(path)
    engines = [Engine(p, engine=engine, threads=threads, isa=isa) for p in found.programs]
    return engines[0] if len(engines) == 1 else SecondLookEngine(engines, found.thresholds)
