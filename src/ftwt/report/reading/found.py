"""All that was found: what belongs together, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ... import shipped
from ...files.json import read_json
from ...names import is_own
from ...records.benchmark import Benchmark
from ...records.contest import Contest
from ...records.corruptions import NetworkRobustness
from ...records.curve import Curve
from ...records.fields import Fields
from ...records.recording import Recording
from . import parse
from .groups import Group, Method, group, method_of, twin_of
from .records import Filed, Log, Measured, Pruned, Run

USUAL = {
    "dataset": "cifar10",
    "data_root": None,
    "validation": None,
    "size": None,
    "mean": None,
    "std": None,
}  # of the settings of images, what no flag need say


@dataclass(frozen=True)
class Missing:
    """Something that the report could show, were there a file.

    Args:
        what: What is not shown.
        of: Of which runs or networks.
        command: What makes the file, for the first of them.
    """

    what: str
    of: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class LoneRecording:
    """A recording that lies beside no run: its network's name and its file."""

    name: str
    path: Path

    def recording(self) -> Recording:
        """What the network did with each image, read from the file."""
        return Recording.load(self.path)


@dataclass(frozen=True)
class Baseline:
    """A dense network, the file that says so, and whether its images are those of what it began."""

    network: str
    result: Measured
    path: Path
    same_images: bool = True


@dataclass(frozen=True)
class Found:
    """All results that were found, each by kind; `left_out` are files of other kinds, and why.

    Attributes:
        runs: Finished runs, by name; networks of other pruning libraries are among them.
        pruned: Results of `ftwt prune`.
        evaluations: Evaluations that stand by themselves.
        benchmarks: Latencies.
        curves: Estimates r -> reduction.
        corruptions: Results on corrupted images.
        contests: Accuracy against time, of all ways of running a network.
        recordings: Recordings that belong to no run or pruning that was found.
        logs: Figures of trainings that are not finished.
        left_out: File -> why it is not shown.
    """

    runs: tuple[Run, ...] = ()
    pruned: tuple[Pruned, ...] = ()
    evaluations: tuple[Filed[Measured], ...] = ()
    benchmarks: tuple[Filed[Benchmark], ...] = ()
    curves: tuple[Filed[Curve], ...] = ()
    corruptions: tuple[Filed[NetworkRobustness], ...] = ()
    contests: tuple[Filed[Contest], ...] = ()
    recordings: tuple[LoneRecording, ...] = ()
    logs: tuple[Log, ...] = ()
    left_out: tuple[tuple[Path, str], ...] = ()

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The runs, those that differ only in seed together."""
        return group(self.runs)

    @property
    def networks(self) -> tuple[str, ...]:
        """The architectures of runs and prunings, each once."""
        names = [one.network for one in (*self.runs, *self.pruned)]
        return tuple(dict.fromkeys(names))

    def method(self, run: Run) -> Method:
        """The method of a run: its name, colour and marker, the same throughout a report."""
        return method_of(run, self.runs)

    def run(self, name: str | None) -> Run | None:
        """The run that a name or a folder in another file means; None if it was not found."""
        wanted = Path(name or "").name
        return next((run for run in self.runs if wanted and wanted in run.aliases), None)

    def dense(self, run: Run | Pruned | Group) -> Baseline | None:
        """The dense network that a run began with; None if no file says what it achieves.

        It is looked for in the pruning itself, among the dense runs, the evaluations and what comes
        with ftwt; first for one that was tested on the run's images.
        """
        if isinstance(run, Pruned):
            return Baseline(run.network, run.dense, run.path)
        one = run.runs[0] if isinstance(run, Group) else run
        known = [
            Baseline(one.network, result, path, one.test.same_images(result))
            for result, path in self._tested(one)
        ]
        return next((before for before in known if before.same_images), next(iter(known), None))

    def _tested(self, one: Run) -> Iterator[tuple[Measured, Path]]:
        """Tests of the dense network that a run began with."""
        start = one.config.get("weights")
        if start not in (None, "pretrained"):
            before = self.run(str(start))
            if before is not None and before.kind == "dense":
                yield before.test, before.path
        for other in self.evaluations:
            named = {one.network, str(start)} if start != "pretrained" else {one.network}
            if other.name in named and not other.result.units:
                yield other.result, other.path
        path = shipped.catalogue.FOLDER / one.network / shipped.RUN
        if start == "pretrained" and path.exists():
            values = read_json(path)
            images = parse.dataset(values["config"])
            yield parse.measured(Fields(path, values).inside("test"), images), path

    @cached_property
    def missing(self) -> tuple[Missing, ...]:
        """What the report could show besides, and the command that makes the file for it."""
        return tuple(_missing(self))


def _missing(found: Found) -> Iterator[Missing]:
    def lacks(what: str, which: list[Any], command: Callable[[Any], str]) -> Iterator[Missing]:
        if which:
            names = tuple(one if isinstance(one, str) else one.name for one in which)
            yield Missing(what, names, command(which[0]))

    dynamic = [run for run in found.runs if run.kind == "dynamic"]
    names = [run.network for run in dynamic]
    networks = list(dict.fromkeys(names))
    of = {run.network: run for run in reversed(dynamic)}
    known = {curve.name for curve in found.curves}
    for run in dynamic:
        curves = {*run.aliases, run.folder, run.config.get("weights")}
        known |= {run.network} if known & curves else set()
    yield from lacks(
        "the result of a training that is not finished",
        [log for log in found.logs if not log.finished],
        lambda log: f"ftwt train RECIPE --output {log.path.parent} --resume",
    )
    yield from lacks(
        "what a network that was trained in Python achieves on test images",
        [log for log in found.logs if log.finished],
        lambda log: f"ftwt.evaluate(network, test_batches), or ftwt.run(..., output={log.name!r})",
    )
    yield from lacks(
        "images, their routes, heatmaps, and the work for each class",
        [run for run in found.runs if run.kind == "dynamic" and run.recording_path is None],
        lambda run: (
            f"ftwt evaluate {_itself(run)} --record"
            + (f" {run.name}.safetensors" if run.shipped else "")
        ),
    )
    yield from lacks(
        "the static twin, which shows what the gates are worth",
        [run for run in dynamic if twin_of(run, found.runs) is None],
        _make_twin,
    )
    yield from lacks(
        "what the dense network achieved on the same images",
        [
            run
            for run in dynamic
            if run.config.get("weights")
            and ((one := found.dense(run)) is None or not one.same_images)
        ],
        lambda run: f"ftwt evaluate {_dense(run)} --output dense.json",
    )
    yield from lacks(
        "a spread over seeds, of which there is one",
        [part.runs[0] for part in found.groups if part.kind == "dynamic" and len(part.runs) == 1],
        _next_seed,
    )
    yield from lacks(
        "the curve r -> reduction",
        [name for name in networks if not known & {name, None}],
        lambda name: f"ftwt estimate {_dense(of[name])} --output estimate.json",
    )
    if not found.corruptions:
        yield from lacks(
            "accuracy under corruption",
            [run for run in dynamic if _data(run).get("dataset") != "folder"],  # of CIFAR
            lambda run: (
                f"ftwt robustness {_itself(run)}{_images(run, 'dataset', 'data_root')} "
                "--output corrupted"
            ),
        )
    if not found.benchmarks:
        yield from lacks(
            "latencies",
            dynamic,
            lambda run: f"ftwt bench {_itself(run)} --output bench.json",
        )


def _data(run: Run) -> dict[str, Any]:
    data = run.config.get("data")
    return data if isinstance(data, dict) else {}


def _itself(run: Run) -> str:
    """What names a run's network, which knows its own images; code of your own is named, too."""
    return f"{run.network} --weights {run.folder}" if is_own(run.network) else run.folder


def _dense(run: Run) -> str:
    """What names the network that a run began with, and shows it the run's images.

    One that began with random weights is named itself.
    """
    start = run.config.get("weights")
    if start is None:
        return _itself(run)
    name = run.network if start == "pretrained" else f"{run.network} --weights {start}"
    return name + _images(run, *USUAL)


def _images(run: Run, *names: str) -> str:
    """The flags that name a run's images, as far as they are not the usual ones."""
    data, told = _data(run), ""
    for name in names:
        if (value := data.get(name, USUAL[name])) != USUAL[name]:
            values = value if isinstance(value, list) else [value]
            told += f" --{name.replace('_', '-')} {' '.join(map(str, values))}"
    return told


def _make_twin(run: Run) -> str:
    """The command that shows a run beside its twin: one that comes with ftwt, or one to train."""
    twin = run.name.replace("-dynamic-", "-static-")
    if run.shipped and twin != run.name and twin in shipped.names():
        return f"ftwt report {run.name} {twin}"
    made = _command(run, "output", "target-reduction", "allocate")  # which it has from the run
    return f"{made} --twin-of {run.folder} --output {_beside(run)}-twin"


def _next_seed(run: Run) -> str:
    """The command that made a run, with another seed and in another folder."""
    made = _command(run, "output", "seed")
    return f"{made} --output {_beside(run)}-seed{run.seed + 1} --seed {run.seed + 1}"


def _command(run: Run, *without: str) -> str:
    """The command that made a run, without some flags."""
    flags = "|".join(name.replace("-", "[-_]") for name in without)
    return re.sub(rf" --({flags})\b([= ](?!--)\S+)?", "", run.command or "ftwt train RECIPE")


def _beside(run: Run) -> str:
    return f"runs/{run.name}" if run.shipped else run.folder
