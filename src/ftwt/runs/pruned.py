"""A whole pruning: from a named network and its images to files, figures and a page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..config import DataConfig, TrainConfig
from ..contest.bench import bench
from ..data import Epochs
from ..evaluation.evaluate import evaluate
from ..evaluation.record import record
from ..files.json import write_json
from ..files.provenance import provenance
from ..files.tables import Shown
from ..lowering.compile import Precision, compile
from ..lowering.quantize import CALIBRATE
from ..networks.pretrained import save_pretrained
from ..networks.sources import resolve
from ..networks.splits import check_classes, described, load_splits
from ..processes import first
from ..pruning.dynamic import DynamicModel
from ..records.benchmark import Benchmark
from ..records.contestants import by_candidate
from ..records.evaluation import Evaluation
from ..records.folder import ENGINE, MODEL, PAGE, PRUNED
from ..records.recording import RECORDING
from ..report.write import write_report
from ..runtime.engine import Engine, Kind
from ..runtime.program import PREPROCESSING
from ..training.lock import held
from ..training.loop import train
from .prune import FEWEST, Gates, Pruned, prune

RIVALS = ("openvino", "onnxruntime")
LR = 0.02  # of training after repair, as of the recipes under fixed masks
SHORT = 0.05  # of the MACs: so much less saved on test images is said
TIMED, ROUNDS = 128, 7  # test images, and how often each contestant runs them


@dataclass(frozen=True)
class PrunedRun(Shown):
    """A network before and after pruning: accuracy, work and time of every candidate.

    Args:
        model: The network that was pruned, as it was named.
        network: Its architecture's name.
        folder: Where the files are.
        pruned: How the pruned network was made and chosen.
        test: `dense` and each candidate -> what it achieves on test images.
        latency: Time for an image: dense, each candidate, installed rivals, all in turns.
        precision: Of our engines that were timed, and of the file.
        engine_top1: Accuracy of the file on the test images.
        provenance: Where the figures come from.
    """

    model: str
    network: str
    folder: Path
    pruned: Pruned
    test: dict[str, Evaluation]
    latency: Benchmark
    precision: Precision
    engine_top1: float
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all figures (not the networks) as JSON values."""
        return {
            "model": self.model,
            "network": self.network,
            "pruned": self.pruned.to_json(),
            "test": {kind: found.to_json() for kind, found in self.test.items()},
            "latency": self.latency.to_json(),
            "precision": self.precision,
            "engine_top1": self.engine_top1,
            "provenance": self.provenance,
        }

    @property
    def latency_ms(self) -> dict[str, float]:
        """Milliseconds for an image: `dense`, each candidate, and each rival by its name."""
        times = {timing.name: timing.latency_ms for timing in self.latency.timings}
        return by_candidate(times, self.pruned.kind)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        images, ms = self.test["dense"].images, self.latency_ms
        table = Table("", title=f"{self.model} on {images:,} test images")
        for kind in self.test:
            chosen = ", chosen" if kind == self.pruned.kind else ""
            table.add_column(f"{kind}{chosen}", justify="right")
        found = list(self.test.values())
        table.add_row("top-1 accuracy", *(f"{one.top1:.1%}" for one in found))
        macs = (f"{one.executed_macs / 1e6:.2f} M" for one in found)
        table.add_row("MACs executed per image", *macs)
        asked = ("" if kind == "dense" else f"{self.pruned.asked:.1%}" for kind in self.test)
        table.add_row("reduction: asked", *asked)
        achieved = ("" if k == "dense" else f"{one.reduction:.1%}" for k, one in self.test.items())
        table.add_row("reduction: achieved", *achieved)
        how = f"an image, our engine, one thread, {self.precision}"
        table.add_row(f"{how}, on average", *(f"{ms[k]:.2f} ms" for k in self.test))
        for figure, name in (("p99_ms", "99th percentile"), ("worst_ms", "the slowest")):
            spread = {one.name: getattr(one, figure) for one in self.latency.timings}
            times = by_candidate(spread, self.pruned.kind)
            table.add_row(name, *(f"{times[kind]:.2f} ms" for kind in self.test))
        yield table
        for one in self.pruned.candidates:
            if (saved := self.test[one.kind].reduction) < one.reduction - SHORT:
                yield (
                    f"{one.kind} saves {saved:.1%} on test images, and {one.reduction:.1%} on "
                    "those held out: a network is surer of images that it was trained on; hold out "
                    "others"
                )
        yield f"{ENGINE}, {self.precision}: top-1 accuracy {self.engine_top1:.1%}"
        rivals = {name: ms[name] for name in ms if name not in self.test}
        for name, taken in rivals.items():
            faster = taken < ms[self.pruned.kind]
            how = "faster than" if faster else "slower than"
            yield f"{name}, dense: {taken:.2f} ms, {how} the pruned network"


def prune_named(
    model: str,
    weights: str | None = None,
    *,
    data: DataConfig,
    output: str | os.PathLike[str],
    reduction: float | None = None,
    latency_ms: float | None = None,
    gates: Gates = "auto",
    images: int = 2048,
    epochs: int = 0,
    precision: Precision = "f32",
    engine: Kind = "native",
    realtime: bool = False,
    config: Any = None,
) -> PrunedRun:
    """Prune a trained network; evaluate, time, compile and save it; write a page.

    Args:
        model: As of `resolve`: a name, a run's folder, a saved network, a Hub repository.
        weights: As of `resolve`: of an architecture by name; its own if not given.
        data: Its images: those to fit to, those held out to choose by, and those to test on.
        output: Folder for `model/`, `net.ftwt`, `prune.json`, `recording.safetensors` and the page
            `index.html`.
        reduction: Share of the dense MACs to save; see `ftwt.prune`.
        latency_ms: Instead: time of one image on this machine, in this precision.
        gates: `static`, `dynamic`, `mixed`, `second-look` or `auto`.
        images: How many to fit to, at most.
        epochs: Then train each candidate so long, with labels and the dense network as teacher.
        precision: Of our engines that are timed, and of the file; `int8` takes ranges of maps from
            the images that are fitted to.
        engine: Which of our engines to time; `reference` is for tests.
        realtime: As of `ftwt.bench`.
        config: Kept in the provenance.

    Returns:
        All figures, as in `prune.json`.

    Raises:
        ValueError: The network is pruned already, tells other classes apart than the images have,
            or has no unit to prune; the budget is out of reach; or the folder holds another
            network.
    """
    with held(output):
        folder = Path(output)
        if (folder / PRUNED).exists():
            raise ValueError(f"{folder} holds a pruned network already; choose another --output")
        if epochs < 0:
            raise ValueError(f"epochs={epochs}: give 0 for no training, or more")
        source = resolve(model, weights or "pretrained")
        network, name = source.load(), source.model
        if isinstance(network, DynamicModel):
            raise ValueError(f"{model} is pruned already; name a dense network")
        splits = load_splits(data, source=source, labels=epochs > 0)
        check_classes(network, splits, source)
        training = TrainConfig(epochs=max(1, epochs), lr=LR, distillation=1.0)

        def teach(made: DynamicModel) -> None:
            """Train a candidate, its weights and its gates; the budget is settled afterwards."""
            train(made, splits.train, splits.validation, training, teacher=network)

        held_out: Epochs | None = splits.validation
        fitted: Iterable[Any] = splits.plain
        if len(splits.validation.images) < FEWEST:  # too few to judge: a fifth of all will
            fitted, held_out = Joined(splits.plain, splits.validation), None
        pruned = prune(
            network,
            fitted,
            reduction=reduction,
            latency_ms=latency_ms,
            gates=gates,
            images=images,
            held_out=held_out,
            teach=teach if epochs else None,
            precision=precision,
        )
        options: dict[str, Any] = {}
        if precision == "int8":
            seen = [part for _, part in first(splits.plain, CALIBRATE)]
            options = {"precision": precision, "calibrate": seen}
        file = compile(pruned.network, engine=engine, **options)
        origin = provenance(config=config) | {"duration_s": pruned.provenance["duration_s"]}
        others = {one.kind: one.network for one in pruned.candidates if one.kind != pruned.kind}
        result = PrunedRun(
            model=model,
            network=name,
            folder=folder,
            pruned=pruned,
            test={"dense": evaluate(network, splits.test)}
            | {one.kind: evaluate(one.network, splits.test) for one in pruned.candidates},
            latency=bench(
                pruned.network,
                images=next(iter(splits.test))[0][:TIMED].cpu().contiguous(),
                rivals=RIVALS,
                rounds=ROUNDS,
                realtime=realtime,
                engine=engine,
                beside=others,
                name=name,
                **options,
            ),
            precision=precision,
            engine_top1=_accuracy(file, splits.test),
            provenance=origin,
        )
        description = described(source, pruned.network, splits)
        save_pretrained(pruned.network, folder / MODEL, **description)
        notes = {"network": name, PREPROCESSING: description["preprocessing"].to_json()}
        file.save(folder / ENGINE, classes=description["classes"] or (), notes=notes)
        kept = record(pruned.network, splits.test, network=name, provenance=origin)
        kept.save(folder / RECORDING)
        write_json(folder / PRUNED, result.to_json())
        write_report([folder], folder / PAGE)
    return result


class Joined:
    """Batches, and then others."""

    def __init__(self, *parts: Epochs) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        return chain(*self.parts)


def _accuracy(engine: Engine, batches: Epochs) -> float:
    """Share of the images whose label is the engine's first guess."""
    right = images = 0
    for batch, labels in batches:
        guesses = engine(batch.float().cpu().contiguous()).argmax(1)
        right += int((guesses == labels.cpu()).sum())
        images += len(labels)
    return right / images
