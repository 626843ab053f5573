"""What a compiled network says of image files, and what that took: `ftwt run`. Needs no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from .. import runtime
from ..files.pictures import SUFFIX, Preprocessing, read_picture
from ..runtime.engine import Kind

REPEATS = 5  # of each image, for its time


@dataclass(frozen=True)
class Guess:
    """A class and the probability that the network gives it."""

    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What the network says of one image.

    Args:
        path: The image.
        guesses: The likeliest classes, best first.
        keep: Share of filters that were computed, mean over the gates; 1 without gates.
        executed_macs: Multiply-accumulates, predictors included.
        reduction: Share of the dense network's MACs that was saved.
        latency_ms: Time that the engine takes for it, without reading the file: median of 5 runs
            after one that is not timed.
    """

    path: str
    guesses: tuple[Guess, ...]
    keep: float
    executed_macs: int
    reduction: float
    latency_ms: float


@dataclass(frozen=True)
class Answers:
    """What the network says of all images. It prints as a table."""

    engine: str
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("image", "guesses", title=self.engine)
        for column in ("filters kept", "MACs", "fewer MACs", "time"):
            table.add_column(column, justify="right")
        for answer in self.answers:
            table.add_row(
                answer.path,
                ", ".join(f"{g.name} {g.probability:.1%}" for g in answer.guesses),
                f"{answer.keep:.1%}",
                f"{answer.executed_macs / 1e6:.2f} M",
                f"{answer.reduction:.1%}",
                f"{answer.latency_ms:.3f} ms",
            )
        yield table


def classify(
    path: str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    *,
    top: int = 5,
    engine: Kind = "native",
    threads: int = 1,
    normal: tuple[Sequence[float], Sequence[float]] | None = None,
    name: str | None = None,
) -> Answers:
    """Show image files to a compiled network.

    Args:
        path: What `ftwt compile` wrote.
        images: Files that Pillow reads.
        top: How many guesses to tell.
        engine: `native` or `reference`.
        threads: Of the native engine.
        normal: Mean and standard deviation of red, green and blue, of pixels in [0, 1]; those
            that the file says if not given.
        name: What to call the network; the path if not given.

    Raises:
        OSError: There is no such file.
        ValueError: A file is no compiled network's, or no image; or the network was compiled
            without saying how images are prepared for it.
        RuntimeError: The native engine was not built.
    """
    if top < 1:
        raise ValueError(f"top={top}: ask for one guess at least")
    asked = [os.fspath(image) for image in images]
    if not asked:
        raise ValueError("no images; name at least one file")
    if Path(path).suffix != SUFFIX:
        raise ValueError(f"{os.fspath(path)!r} is no {SUFFIX} file; `ftwt compile` makes them")
    network = runtime.load(path, engine=engine, threads=threads)
    program, how, side = network.program, network.preprocessing, network.program.maps[0][-1]
    if normal is not None:
        sizes = how if isinstance(how, dict) else {"resize": side, "crop": side}
        how = {**sizes, "mean": tuple(normal[0]), "std": tuple(normal[1])}
    if how is None:
        raise ValueError(
            f"{path} does not say how images are prepared; give mean and std of its training, "
            "such as ImageNet's, --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225, or make the "
            "file with `ftwt compile`"
        )
    prepare = Preprocessing.from_json(how)
    shapes = program.maps[0], program.maps[program.output][1:]
    if shapes != ((3, prepare.crop, prepare.crop), (1, 1)):
        raise ValueError(f"{path} takes no images of {prepare.crop}x{prepare.crop} to classes")
    found = tuple(_answer(network, image, prepare, top) for image in asked)
    return Answers(engine=f"{name or os.fspath(path)}: {network!r}", answers=found)


def is_compiled(source: str) -> bool:
    """Whether a source is a file, rather than a network that has yet to be compiled."""
    return Path(source).suffix == SUFFIX or Path(source).is_file()


def _answer(engine: runtime.Engine, path: str, how: Preprocessing, top: int) -> Answer:
    image = read_picture(path, how)[None]
    (logits,), stats = engine.run(image)
    if not np.isfinite(logits).all():
        raise ValueError(f"the network's answer to {path} is not finite; its weights are broken")
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        engine(image)
        seconds.append(time.perf_counter() - start)
    shares = np.exp(logits - logits.max(), dtype=np.float64)
    shares /= shares.sum()
    classes = engine.classes or [f"class {number}" for number in range(len(logits))]
    best = np.argsort(-shares, kind="stable")[:top]
    return Answer(
        path=path,
        guesses=tuple(Guess(classes[number], float(shares[number])) for number in best),
        keep=float(stats.keep[0]),
        executed_macs=int(stats.executed_macs[0]),
        reduction=float(stats.reduction[0]),
        latency_ms=1e3 * median(seconds),
    )
