"""The results that a report shows, as they stand in their files: frozen, each field checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...records.contestants import by_candidate
from ...records.folder import RESULT
from ...records.recording import Recording
from ...shipped import catalogue


@dataclass(frozen=True)
class UnitWork:
    """How one unit's mask behaved over the images; as `ftwt.evaluate` tells it."""

    name: str
    channels: int
    keep: float
    keep_std: float
    always: int
    never: int
    entropy: float
    distinct: int
    mask_accuracy: float | None

    @property
    def sometimes(self) -> int:
        """Filters that fired for some images and not for others."""
        return self.channels - self.always - self.never


@dataclass(frozen=True)
class Measured:
    """What a network achieved on a set of images; as `ftwt.evaluate` tells it.

    Shares lie in [0, 1]; reductions are of executed MACs and may be negative. `of` names the images
    (a dataset), where the file does.
    """

    images: int
    loss: float
    top1: float
    top5: float
    dense_macs: int
    executed_macs: float
    reduction: float
    reduction_std: float
    published_reduction: float
    mask_accuracy: float | None
    units: tuple[UnitWork, ...]
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
        kind: `dense`, `dynamic`, `twin`, or `static`, the network of another pruning library.
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
class Evaluated:
    """An evaluation by itself, as `ftwt evaluate --output` writes it."""

    network: str
    path: Path
    result: Measured
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """How long one contestant of a benchmark takes for an image."""

    name: str
    settings: str
    latency_ms: float
    low_ms: float
    high_ms: float
    executed_macs: float | None = None


@dataclass(frozen=True)
class TimedImage:
    """What a single image took on the gated engine."""

    keep: float
    executed_macs: int
    latency_ms: float


@dataclass(frozen=True)
class Benchmark:
    """Latencies of one network, as `ftwt bench --output` writes them."""

    network: str
    path: Path
    batch: int
    threads: int
    isa: str | None
    forced_keep: float | None
    dense_macs: int
    reduction: float | None
    achieved: float | None
    theoretical: float | None
    contestants: tuple[Contestant, ...]
    images: tuple[TimedImage, ...]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Pruned(_Made):
    """What `ftwt prune` and `ftwt demo` wrote: a network before and after, without training.

    Args:
        name: The folder, or the file without the ending.
        path: Its `prune.json`.
        kind: Of the candidate that was chosen: `static` or `dynamic`.
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
        times = {one.name: one.latency_ms for one in self.latency.contestants}
        return by_candidate(times, self.kind)


@dataclass(frozen=True)
class Curve:
    """The estimate r -> reduction, as `ftwt estimate --output` writes it.

    Args:
        network: Name of the network, if the file says it.
        path: The file.
        r: Ascending, each in (0, 1].
        reduction: Executed, for each r.
        published_reduction: As the paper counts, for each r.
        unit_macs: Unit -> executed MACs of its convolution, for each r.
        dense_macs: MACs of the dense network for one image.
        images: Images that were looked at.
        provenance: Where it comes from.
    """

    network: str | None
    path: Path
    r: tuple[float, ...]
    reduction: tuple[float, ...]
    published_reduction: tuple[float, ...]
    unit_macs: dict[str, tuple[float, ...]]
    dense_macs: int
    images: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Corrupted:
    """A network under one corruption; severity 0 is the clean test set, `mean` over all."""

    corruption: str
    severity: int | None
    top1: float
    reduction: float
    keep: float | None


@dataclass(frozen=True)
class Corruptions:
    """A network's accuracy and cost on corrupted test images."""

    network: str
    run: str | None
    path: Path
    images: int
    clean: Corrupted
    corrupted: tuple[Corrupted, ...]
    mean: Corrupted
    provenance: dict[str, Any]
