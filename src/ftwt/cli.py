"""The command line: a verb each for what the library does."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro

from . import recipes
from .config import RunConfig
from .run import run


@dataclass(frozen=True)
class Where:
    """Where a run leaves its files."""

    output: str
    """Folder of the run."""
    resume: bool = False
    """Go on with the run that is in the folder."""


def _train(arguments: list[str]) -> None:
    name, rest = arguments[0], arguments[1:]

    default = recipes.get(name)
    config, where = tyro.cli(
        tyro.conf.OmitArgPrefixes[tuple[RunConfig, Where]],
        default=(default, Where(f"runs/{name}")),
        args=rest,
    )
    run(config, output=where.output, resume=where.resume)


def main() -> None:
    """Run the verb that the command line names."""
    _train(sys.argv[2:])
