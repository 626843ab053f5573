"""The verb that trains many networks, one after another or a few at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from ..config import DataConfig, FixedConfig, PruneConfig, RunConfig, TrainConfig
from ..runs.sweep import Sweep, sweep_folder
from ..runs.sweep_file import check_varied, read_sweep, read_vary, with_seeds
from .options import Json


@dataclass(frozen=True)
class SweepCommand:
    """Train many networks, some at a time, until each has its result."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """A text file: a line for each training, `train RECIPE [OPTIONS]`; # begins a remark. A line
    that names the --output of another comes after it."""
    at_once: int = 1
    """How many train at a time."""
    threads: int = 1
    """Threads of each."""
    vary: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FLAG=VALUE,VALUE ...")] = ()
    """Take each line once for each value, and each combination of them."""
    seeds: int | None = None
    """Take each line with so many seeds, from 0 on."""
    status: bool = False
    """Only say how far it is, and how long it will take."""
    pause: bool = False
    """Halt the sweep that is at work, and its trainings, where they are: for a quiet machine."""
    go_on: bool = False
    """Let them go on."""
    as_json: Json = False

    def __call__(self) -> Any:
        """Train all that have no result."""
        if self.status + self.pause + self.go_on > 1:
            raise ValueError("--status, --pause, --go-on: give one of them")
        vary = with_seeds(read_vary(self.vary), self.seeds)
        configs = (RunConfig, DataConfig, PruneConfig, FixedConfig, TrainConfig)
        check_varied(vary, [f.name.replace("_", "-") for one in configs for f in fields(one)])
        folder = sweep_folder(self.file)
        sweep = Sweep(read_sweep(self.file, vary), folder, self.at_once, self.threads)
        if self.pause or self.go_on:
            told = sweep.signal(stop=self.pause)
            done = "halted" if self.pause else "go on"
            return {done: told} if self.as_json else [f"{done}: {', '.join(told) or 'none runs'}"]
        found = sweep.status() if self.status else sweep.run()
        if not self.status and (failed := found.count("failed")):
            names = ", ".join(line.output for line in found.lines if line.state == "failed")
            raise ValueError(
                f"{found.count('done')} of {len(found.lines)} are done, {failed} failed or wait "
                f"for one that did: {names}; NAME.log in {folder} says why. Start the sweep "
                "again to try them again"
            )
        if self.as_json:
            return found.to_json()
        more = [] if self.status else [f"what came of it: ftwt report {self._folders(found)}"]
        return [found, *more]

    @staticmethod
    def _folders(found: Any) -> str:
        return " ".join(line.output for line in found.lines)
