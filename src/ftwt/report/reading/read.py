"""Find result files in what the user names, tell their kinds apart, and read them."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors

from ... import shipped
from ...files.json import parse_json, read_json
from ...records.contest import KIND as CONTEST
from ...records.fields import Fields
from ...records.folder import METRICS, PRUNED, TRAINING
from ...records.folder import RESULT as RUN
from ...records.recording import RECORDING, Recording
from . import parse
from .found import Found as Found
from .found import LoneRecording
from .records import Filed, Log, Pruned, Run

NOT_RESULTS = {"settings.json", "result.json", "config.json"}  # of runs and of saved networks
NO_RECORDINGS = {"checkpoint.safetensors", "model.safetensors"}
EXPECTED = (
    "name the folder of a run or of a pruning, a run.json, prune.json, metrics.jsonl or "
    "recording.safetensors, a network that comes with ftwt, a file that `ftwt bench`, `estimate` "
    "or `evaluate` wrote with --output, or a folder of such"
)


def read(sources: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> Found:
    """Find and read all results in files and folders.

    A file that is named must be a result. In a folder, files of other kinds are left out and
    named; those of our kinds that are faulty are errors.

    Args:
        sources: Files and folders, also folders of folders; and names of networks that come with
            ftwt.

    Returns:
        Everything that was found; a copy of a run counts once.

    Raises:
        ValueError: Nothing was found, or a file is missing, empty, truncated, foreign, or has a
            field that is not what it must be. The message names file and field.
    """
    named = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not named:
        raise ValueError(f"nothing to report on; {EXPECTED}")
    search = _Search()
    for source in named:
        path = shipped.find(source) or Path(source)
        if path.is_dir():
            before = search.count
            search.folder(path)
            if search.count == before:
                raise ValueError(f"{path} holds no results; {EXPECTED}")
        elif path.exists():
            search.file(path, named=True)
        else:
            close = difflib.get_close_matches(str(source), shipped.names(), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path} does not exist{hint}; {EXPECTED}")
    return search.found()


class _Search:
    """Files found so far, by kind."""

    def __init__(self) -> None:
        self.seen: set[Path] = set()
        self.of: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
        self.recordings: list[LoneRecording] = []
        self.logs: dict[Path, Log] = {}
        self.left_out: list[tuple[Path, str]] = []
        self.count = 0  # of files that were read

    def folder(self, path: Path) -> None:
        for here, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if "config.json" in files and "model.safetensors" in files:
                folders[:] = []
                continue  # a saved network
            for name in sorted(files):
                if name not in NOT_RESULTS | NO_RECORDINGS and not name.startswith("."):
                    self.file(Path(here) / name, named=False)

    def file(self, path: Path, *, named: bool) -> None:
        readers: dict[str, Callable[[Path, bool], None]] = {
            ".json": self.json,
            ".jsonl": self.metrics,
            ".safetensors": self.recording,
        }
        reader = readers.get(path.suffix)
        if reader is None:
            if named:
                raise ValueError(f"{path} is not a result file; {EXPECTED}")
            return
        if path.resolve() not in self.seen:
            self.seen.add(path.resolve())
            reader(path, named)

    def json(self, path: Path, named: bool) -> None:
        values = read_json(path)
        kind = kind_of(values)
        if kind is None:
            if named:
                raise ValueError(f"{path} is not a result that a report shows; {EXPECTED}")
            self.left_out.append((path, "not a result that a report shows"))
            return
        fields = Fields(path, values, fix=_KINDS[kind][1])
        self.of[kind].append(_KINDS[kind][0](fields, name_of(path)))
        self.count += 1

    def metrics(self, path: Path, named: bool) -> None:
        history, steps = read_metrics(path)
        finished = (path.parent / TRAINING).is_file()
        self.logs[path.parent] = Log(name_of(path), path, history, steps, finished)
        self.count += 1

    def recording(self, path: Path, named: bool) -> None:
        if not named and not _is_recording(path):
            self.left_out.append((path, "tensors that are no recording"))
            return
        recording = Recording.load(path)  # here, so that faults are told now
        name = name_of(path)
        config = recording.provenance.get("config")
        if path.name != RECORDING and isinstance(config, dict) and config.get("model"):
            name = Path(str(config.get("weights") or config["model"])).name
        self.recordings.append(LoneRecording(name, path))
        self.count += 1

    def found(self) -> Found:
        logs, lone = dict(self.logs), list(self.recordings)
        runs, pruned = self._runs(logs, lone), []
        same: dict[str, Pruned] = {}
        for one in sorted(self.of["pruned"], key=lambda one: not _has_recording(one.path)):
            what = json.dumps([one.network, one.asked, one.test.loss, one.test.executed_macs])
            if what in same:
                self.left_out.append((one.path, f"a copy of {same[what].path}"))
                continue
            same[what] = one
            beside = _taken(lone, one.path.parent, {one.name}, alone=one.path.name == PRUNED)
            pruned.append(replace(one, recording_path=beside))
        return Found(
            runs=tuple(sorted(runs, key=lambda run: run.name)),
            pruned=tuple(pruned),
            evaluations=tuple(self.of["evaluation"]),
            benchmarks=(
                *self.of["benchmark"],
                *(Filed(one.latency.network, one.path, one.latency) for one in pruned),
            ),
            curves=tuple(self.of["estimate"]),
            corruptions=tuple(self.of["corruptions"]),
            contests=tuple(self.of[CONTEST]),
            recordings=tuple(lone),
            logs=tuple(logs.values()),
            left_out=tuple(self.left_out),
        )

    def _runs(self, logs: dict[Path, Log], lone: list[LoneRecording]) -> list[Run]:
        """The runs, each once, with the metrics and the recording that belong to it."""
        kept: dict[str, Run] = {}
        own: list[Run] = sorted(self.of["run"], key=lambda run: run.path.name != RUN)
        for run in own:
            what = json.dumps([run.kind, run.config, run.test.loss, run.test.executed_macs])
            if what in kept:
                first = kept[what]
                kept[what] = replace(first, also=(*first.also, *sorted(run.aliases)))
                self.left_out.append((run.path, f"a copy of {first.path}"))
                logs.pop(run.path.parent, None)
                continue
            if run.path.name == RUN and (log := logs.pop(run.path.parent, None)) is not None:
                same = len(log.history) == len(run.history)  # with the steps of each epoch
                run = replace(run, steps=log.steps, history=log.history if same else run.history)
            kept[what] = run
        for what, run in kept.items():
            beside = _taken(lone, run.path.parent, run.aliases, alone=run.path.name == RUN)
            kept[what] = replace(run, recording_path=beside)
        return list(kept.values())


def _taken(lone: list[LoneRecording], folder: Path, names: set[str], *, alone: bool) -> Path | None:
    """Take the recording out of a list that lies in a result's own folder, or goes by its name."""
    for recording in lone:
        beside = alone and recording.path == folder / RECORDING
        if beside or (recording.path.name != RECORDING and recording.name in names):
            lone.remove(recording)
            return recording.path
    return None


def name_of(path: Path) -> str:
    """What to call a result: its folder if the file has a name that all of its kind have."""
    if path.name in (RUN, METRICS, PRUNED, RECORDING):
        return path.resolve().parent.name
    return path.stem


def kind_of(values: Any) -> str | None:
    """Tell a result's kind from its fields; None for a file of another kind."""
    if not isinstance(values, dict):
        return None
    if values.get("kind") in ("corruptions", CONTEST):
        return str(values["kind"])
    if values.get("kind") == "static" or {"config", "test", "training"} <= values.keys():
        return "run"
    for kind, fields in (
        ("pruned", {"pruned", "test", "latency"}),
        ("benchmark", {"network", "timings"}),
        ("estimate", {"r", "reduction", "units"}),
        ("evaluation", {"top1", "executed_macs", "units"}),
    ):
        if fields <= values.keys():
            return kind
    return None


_KINDS: dict[str, tuple[Callable[[Fields, str], Any], str]] = {  # reader, and what makes the file
    "run": (parse.run, "`ftwt train`"),
    "pruned": (parse.pruned, "`ftwt prune`"),
    "evaluation": (parse.evaluated, "`ftwt evaluate MODEL --output FILE`"),
    "benchmark": (parse.benchmark, "`ftwt bench MODEL --output FILE`"),
    "estimate": (parse.curve, "`ftwt estimate MODEL --output FILE`"),
    "corruptions": (parse.corruptions, "the command that its provenance names"),
    CONTEST: (parse.contest, "`benchmarks/accuracy_latency.py`"),
}


def read_metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """Read a run's `metrics.jsonl`: the figures of its epochs, and those of its steps.

    A last line that a crash left unfinished is not read.

    Raises:
        ValueError: The file is missing or empty, or a line is not as it must be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text, so these are no metrics ({error.reason})") from error
    history, steps = [], []
    lines = text.split("\n")
    if len(lines) == 1:  # none is whole
        raise ValueError(f"{path} is empty; expected a line of JSON for each epoch")
    for number, line in enumerate(lines[:-1], 1):
        try:
            values = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
        fields = Fields(path, {f"line {number}": values}).inside(f"line {number}")
        kind = fields.text("kind")
        if kind == "epoch":
            history.append(parse.epoch(fields))
        elif kind == "step":
            steps.append(parse.step(fields))
        else:
            raise fields.fault("kind", "`step` or `epoch`")
    return tuple(history), tuple(steps)


def _has_recording(path: Path) -> bool:
    return (path.parent / RECORDING).exists()


def _is_recording(path: Path) -> bool:
    """Whether a file's header is a recording's; a file that has no whole header may be one."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("ftwt", "{}")
    except safetensors.SafetensorError:
        return path.name == RECORDING
    return '"units"' in text
