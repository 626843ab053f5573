"""The results that a report shows, as they stand in their files: frozen, each field checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...records.benchmark import Benchmark
from ...records.contestants import by_candidate
from ...records.evaluation import Evaluation
from ...records.folder import RESULT
from ...records.recording import Recording
from ...shipped import catalogue

T = TypeVar("T")


@dataclass(frozen=True)
class Measured(Evaluation):
    """An evaluation of a file; `of` names its images (a dataset), where the file does."""

    of: str | None = None

    def same_images(self, other: Measured) -> bool:
        """Whether both were measured on the same images, as far as their files tell."""
        known = self.of is not None and other.of is not None
        return self.images == other.images and (not known or self.of == other.of)


class _Made:
    """A network that was made: what it is called, and what it did with each image."""

    config: dict[str, Any]
    recording_path: Path | None

    @property
    def network(self) -> str:
        """Name of the architecture."""
        return str(self.config["model"])

    def recording(self) -> Recording | None:
        """What the network did with each image, read from its file; None if there is none."""
        return None if self.recording_path is None else Recording.load(self.recording_path)


@dataclass(frozen=True)
class Run(_Made):
    """A finished run.

    Args:
        name: The run's folder, or its file without the ending.
        path: Its `run.json`.
        kind: `dense`, `dynamic`, `twin`, `fixed`, which is trained under one mask, or `static`, the
            network of another pruning library.
        config: Its settings, JSON values.
        asked: Reduction asked for.
        predicted: Reduction that the estimate gave before training.
        test: What came of it, on test images.
        validation: The same on held-out images.
        history: A dict of figures for each epoch.
        steps: A dict of figures for each line of `metrics.jsonl` of kind `step`.
        seconds: Time of the training.
        library: Of a `static` network: name and version.
        importance: Of a `static` network: by what its filters were chosen.
        matched: Of a `static` network: to which run its cost was matched, on what.
        latency: Of a `static` network: its times for an image, where they were measured.
        provenance: Where the figures come from.
        recording_path: The recording of this network, if there is one.
        also: Names of copies of this run.
    """

    name: str
    path: Path
    kind: str
    config: dict[str, Any]
    asked: float | None
    predicted: float | None
    test: Measured
    validation: Measured | None
    history: tuple[dict[str, Any], ...]
    steps: tuple[dict[str, Any], ...]
    seconds: float
    provenance: dict[str, Any]
    library: str | None = None
    importance: str | None = None
    matched: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    recording_path: Path | None = None
    also: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """The training's seed."""
        return int(self.config["train"]["seed"])

    @property
    def command(self) -> str:
        """The command that made it."""
        return str(self.provenance.get("command", ""))

    @property
    def aliases(self) -> set[str]:
        """Names by which other files may mean this run: its own, and the folder it was made in."""
        return {self.name, Path(self.folder).name, Path(self.made_in or self.name).name, *self.also}

    @property
    def made_in(self) -> str | None:
        """The folder that its command names, if it does."""
        words = self.command.replace("=", " ").split()
        named = zip(words, words[1:], strict=False)
        return next((after for flag, after in named if flag == "--output"), None)

    @property
    def shipped(self) -> bool:
        """Whether it comes with ftwt: a network's name means it, and nothing is written there."""
        return self.path.parent.parent == catalogue.FOLDER

    @property
    def folder(self) -> str:
        """What commands call it: its folder, as far as its files tell, or a network's name."""
        if self.shipped:
            return self.name
        if self.path.name == RESULT:
            return str(self.path.parent)
        return self.made_in or f"runs/{self.name}"


@dataclass(frozen=True)
class Log:
    """The figures of a training that has no `run.json` (yet).

    `finished` tells whether it has a result: `ftwt.train` in Python writes one, and no `run.json`,
    for it sees no test images.
    """

    name: str
    path: Path
    history: tuple[dict[str, Any], ...]
    steps: tuple[dict[str, Any], ...]
    finished: bool = False


@dataclass(frozen=True)
class Filed(Generic[T]):
    """A result in a file by itself: an evaluation, a benchmark, an estimate, corruptions.

    Args:
        name: Of the network, as far as the file says it.
        path: The file.
        result: What it holds.
    """

    name: str | None
    path: Path
    result: T

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the figures come from."""
        return self.result.provenance  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Pruned(_Made):
    """What `ftwt prune` and `ftwt demo` wrote: a network before and after, without training.

    Args:
        name: The folder, or the file without the ending.
        path: Its `prune.json`.
        kind: Of the candidate that was chosen: `static`, `dynamic`, `mixed` or `second-look`.
        asked: Reduction asked for.
        dense: The network as it was, on test images.
        candidates: What each candidate achieves, by kind.
        latency: Time for an image: dense, each candidate, rivals.
        config: `model` is the architecture's name.
        provenance: Where the figures come from.
        recording_path: The recording of the chosen network, if there is one.
    """

    name: str
    path: Path
    kind: str
    asked: float
    dense: Measured
    candidates: dict[str, Measured]
    latency: Benchmark
    config: dict[str, Any]
    provenance: dict[str, Any]
    recording_path: Path | None = None

    @property
    def test(self) -> Measured:
        """What the chosen network achieves."""
        return self.candidates[self.kind]

    @property
    def latency_ms(self) -> dict[str, float]:
        """Milliseconds for an image: `dense`, each candidate, and each rival by its name."""
        times = {one.name: one.latency_ms for one in self.latency.timings}
        return by_candidate(times, self.kind)
