"""Many trainings, one after another or a few at a time, until each has its result."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..files.json import parse_json, read_json
from ..files.tables import Shown
from ..records.folder import METRICS, RESULT, SETTINGS
from ..training.interrupts import Interrupted, requests
from ..training.lock import held, holder
from .sweep_file import Line

JOURNAL = "journal.jsonl"  # in the sweep's folder: what was started, how it ended, when
FTWT = (sys.executable, "-m", "ftwt")
LOWEST = 19  # priority: other work goes first
POLL_S = 0.2
State = Literal["done", "running", "ready", "waiting", "failed"]


@dataclass(frozen=True)
class LineStatus:
    """How far a training is.

    Args:
        output: Folder of the run.
        state: `waiting` for another run, `ready` to start, `running` in some process, `done`, or
            `failed` when it was last tried, or one that it needs.
        epoch: Epochs that are finished.
        epochs: Of how many; None before the run began.
        seconds_left: Time that is left, from its own pace or that of runs of the same recipe; None
            if nothing is known.
    """

    output: str
    state: State
    epoch: int
    epochs: int | None
    seconds_left: float | None


@dataclass(frozen=True)
class SweepStatus(Shown):
    """How far a sweep is.

    Args:
        lines: Each training.
        at_once: How many run at a time.
    """

    lines: tuple[LineStatus, ...]
    at_once: int

    @property
    def seconds_left(self) -> float | None:
        """Time that is left at this pace; None if it is unknown of a training."""
        left = [line.seconds_left for line in self.lines if line.state != "done"]
        known = [seconds for seconds in left if seconds is not None]
        return sum(known) / self.at_once if len(known) == len(left) else None

    def count(self, state: State) -> int:
        """How many trainings are in a state."""
        return sum(line.state == state for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        lines = [vars(line) for line in self.lines]
        return {"lines": lines, "at_once": self.at_once, "seconds_left": self.seconds_left}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table()
        for column, justify in (("run", "left"), ("", "left"), ("epochs", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        table.add_column("time left", justify="right")
        for line in self.lines:
            epochs = "" if line.epochs is None else f"{line.epoch} of {line.epochs}"
            left = "" if line.state == "done" else _duration(line.seconds_left)
            table.add_row(line.output, line.state, epochs, left)
        yield table
        done, left = self.count("done"), _duration(self.seconds_left)
        end = f"; {left} left, {self.at_once} at a time" if done < len(self.lines) else ""
        yield f"{done} of {len(self.lines)} are done{end}"


@dataclass
class Sweep:
    """A sweep at work.

    Args:
        lines: From `read_sweep`.
        folder: For the journal, and for what the trainings print: `NAME.log`.
        at_once: How many train at a time.
        threads: Of each.
        command: How `ftwt` is started.
    """

    lines: tuple[Line, ...]
    folder: Path
    at_once: int = 1
    threads: int = 1
    command: Sequence[str] = FTWT
    failed: set[str] = field(default_factory=set)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("at_once", self.at_once), ("threads", self.threads)):
            if value < 1:
                raise ValueError(f"{name}={value}: give 1 or more")

    def run(self) -> SweepStatus:
        """Train all that have no result, and return how it ended.

        A training that fails lets those that read its folder wait; the others go on. Ctrl-C stops
        all after their step; each goes on from there when the sweep is started again, as after a
        crash of the machine.

        Raises:
            ValueError: Another process works at this sweep.
            Interrupted: After Ctrl-C.
        """
        with held(self.folder):
            self._note("sweep", "", pid=os.getpid())
            with requests() as asked:
                while not asked.is_set() and self._step():
                    asked.wait(POLL_S)
                if asked.is_set():
                    self._stop()
                    left = sum(not line.done for line in self.lines)
                    raise Interrupted(
                        f"stopped; {left} of {len(self.lines)} have no result yet. Start the sweep "
                        "again to go on"
                    )
        return self.status()

    def status(self) -> SweepStatus:
        """How far each training is, whoever runs it."""
        told: dict[str, list[dict[str, Any]]] = {line.output: [] for line in self.lines}
        for event in _events(self.folder / JOURNAL):
            if "event" in event and event.get("run") in told:
                told[event["run"]].append(event)
        paces = {line.output: _pace(line, told[line.output]) for line in self.lines}
        found = (self._status(line, paces, told[line.output]) for line in self.lines)
        return SweepStatus(tuple(found), self.at_once)

    def signal(self, *, stop: bool) -> list[str]:
        """Halt the sweep and its trainings where they are, or let them go on.

        Returns:
            The folders of the trainings that were told.

        Raises:
            ValueError: There are no such signals on this system.
        """
        if not hasattr(signal, "SIGSTOP"):
            raise ValueError("this system cannot halt processes; stop the sweep with Ctrl-C")
        told, number = [], signal.SIGSTOP if stop else signal.SIGCONT
        for place in (str(self.folder), *(line.output for line in self.lines)):
            pid = holder(place)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    told.append(place)
        return [place for place in told if place != str(self.folder)]

    def _step(self) -> bool:
        """Note what has ended, start what can be; False when nothing is left to do."""
        for output, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[output]
                self._ended(output, process.returncode)
        busy = [line for line in self.lines if self._state(line) == "running"]
        for line in self.lines:
            if len(busy) < self.at_once and self._state(line) == "ready":
                self._start(line)
                busy.append(line)
        return bool(busy)

    def _state(self, line: Line) -> State:
        if line.output in self.running:
            return "running"
        if line.done:
            return "done"
        if line.output in self.failed or self.failed.intersection(line.after):
            self.failed.add(line.output)
            return "failed"
        if holder(line.output) is not None:
            return "running"  # in another process: of a sweep that was killed, say
        there = {one.output for one in self.lines if one.done}
        return "ready" if there.issuperset(line.after) else "waiting"

    def _start(self, line: Line) -> None:
        self._note("resume" if line.begun else "start", line.output, epoch=_epoch(line.output))
        log = self.folder / f"{Path(line.output).name}.log"
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        with open(log, "ab") as told:
            process = subprocess.Popen(
                [*self.command, *line.command()],
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
                env=os.environ | threads,
                start_new_session=True,  # Ctrl-C is for the sweep, which tells the trainings
            )
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST)
        self.running[line.output], self.since[line.output] = process, time.monotonic()

    def _ended(self, output: str, status: int) -> None:
        seconds = round(time.monotonic() - self.since[output], 1)
        if (Path(output) / RESULT).exists():
            self._note("done", output, seconds=seconds)
        elif holder(output) is None:
            self.failed.add(output)
            self._note("failed", output, seconds=seconds, status=status)

    def _stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        for output, process in self.running.items():
            process.wait()
            seconds = round(time.monotonic() - self.since[output], 1)
            self._note("stopped", output, seconds=seconds, epoch=_epoch(output))

    def _note(self, event: str, run: str, **told: Any) -> None:
        """Add a line to the journal; it is on the disk when this returns."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with open(self.folder / JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(json.dumps({"time": now, "event": event, "run": run, **told}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def _status(
        self, line: Line, paces: Mapping[str, float | None], told: list[dict[str, Any]]
    ) -> LineStatus:
        state, epochs, epoch = self._state(line), _epochs(line.output), _epoch(line.output)
        if state == "ready" and told and told[-1]["event"] == "failed":
            state = "failed"
        alike = [one.output for one in self.lines if one.recipe == line.recipe]
        known = [pace for output in alike if (pace := paces[output]) is not None]
        pace = paces[line.output] or (fmean(known) if known else None)
        total = epochs or max((found for one in alike if (found := _epochs(one))), default=None)
        left = None if pace is None or total is None else pace * (total - epoch)
        return LineStatus(line.output, state, epoch, epochs, 0.0 if state == "done" else left)


def _pace(line: Line, told: list[dict[str, Any]]) -> float | None:
    """Seconds an epoch, of a finished run or since it was last started."""
    epochs = _epochs(line.output)
    if line.done and epochs:
        return float(read_json(Path(line.output) / RESULT)["training"]["seconds"]) / epochs
    starts = [event for event in told if event["event"] in ("start", "resume")]
    metrics = Path(line.output) / METRICS
    since = _epoch(line.output) - int(starts[-1].get("epoch", 0)) if starts else 0
    if since <= 0 or not metrics.exists():
        return None
    began = datetime.datetime.fromisoformat(starts[-1]["time"]).timestamp()
    return max(0.0, metrics.stat().st_mtime - began) / since


def sweep_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a sweep, beside its file."""
    return Path(path).with_name(f"{Path(path).stem}-sweep")


def _events(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; one that a crash left unfinished is not read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    found = []
    for line in text.split("\n")[:-1]:
        with suppress(ValueError):
            if isinstance(event := parse_json(line), dict):
                found.append(event)
    return found


def _epoch(output: str) -> int:
    """Epochs that a run has finished."""
    return sum(event.get("kind") == "epoch" for event in _events(Path(output) / METRICS))


def _epochs(output: str) -> int | None:
    """Epochs that a run will have; None before it began."""
    path = Path(output) / SETTINGS
    if not path.exists():
        return None
    return int(read_json(path)["train"]["epochs"])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
