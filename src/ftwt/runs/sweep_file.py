"""The trainings of a sweep, from the lines of a file."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..names import nearest
from ..records.folder import CHECKPOINT, RESULT


@dataclass(frozen=True)
class Line:
    """One training of a sweep.

    Args:
        recipe: Of `ftwt train`.
        flags: What follows it, without `--output`.
        output: Folder of the run.
        after: Folders of runs of this sweep that it reads: they come first.
    """

    recipe: str
    flags: tuple[str, ...]
    output: str
    after: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether it has its result."""
        return (Path(self.output) / RESULT).exists()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (Path(self.output) / CHECKPOINT).exists()

    def command(self) -> list[str]:
        """Arguments of `ftwt`."""
        resume = ["--resume"] if self.begun else []
        return ["train", self.recipe, *self.flags, "--output", self.output, *resume]


def read_sweep(
    path: str | os.PathLike[str], vary: Mapping[str, Sequence[str]] | None = None
) -> tuple[Line, ...]:
    """Read the trainings of a sweep.

    Args:
        path: A text file: a line for each training, as `ftwt train` takes it; `#` begins a remark.
            A line that names the `--output` of another comes after it.
        vary: Flag without dashes -> values. Each line is taken once for each combination, with
            these flags, its folder's name and those of the runs it reads made longer by them.

    Raises:
        ValueError: A line is no training, two have one folder, a flag to vary stands in a line, or
            runs wait for one another. The message names the line.
        OSError: The file cannot be read.
    """
    lines: dict[str, tuple[int, Line]] = {}
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not words:
            continue
        line = _line(words[words[0] == "ftwt" :], where, vary or {})
        if line.output in lines:
            raise ValueError(
                f"{where} has the folder of line {lines[line.output][0]}, {line.output}; give one "
                "of them another --output"
            )
        lines[line.output] = number, line
    if not lines:
        raise ValueError(f"{path} has no training; give lines such as train RECIPE --output DIR")
    named = [line for _, line in lines.values()]
    found: list[Line] = []
    for values in itertools.product(*(vary or {}).values()):
        chosen = dict(zip(vary or {}, values, strict=True))
        found += _varied(named, chosen)
    if len({line.output for line in found}) < len(found):
        raise ValueError(f"{path} gives two trainings one folder; vary each flag by other values")
    return _ordered(found, path)


def _line(words: list[str], where: str, vary: Mapping[str, Sequence[str]]) -> Line:
    if words[:1] != ["train"]:
        verb = words[0] if words else "nothing"
        raise ValueError(f"{where} begins with {verb!r}; a sweep has lines of `train RECIPE ...`")
    if len(words) < 2 or words[1].startswith("-"):
        raise ValueError(f"{where}: the recipe comes first: train RECIPE [OPTIONS]")
    recipe, flags, output = words[1], [], f"runs/{words[1].replace(':', '-')}"
    rest = iter(words[2:])
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--output":
            output = (value if equals else next(rest, "")).rstrip("/")
            if not output:
                raise ValueError(f"{where}: --output needs a folder")
        elif name == "--resume":
            raise ValueError(f"{where}: leave --resume out, a sweep goes on by itself")
        elif name[:2] == "--" and name[2:].replace("_", "-") in vary:
            raise ValueError(f"{where} has {name} already, which is to be varied; leave it out")
        else:
            flags.append(word)
    return Line(recipe, tuple(flags), output)


def _varied(lines: list[Line], chosen: Mapping[str, str]) -> list[Line]:
    """The lines with some flags, in folders of their own; each knows which others it reads."""
    end = "".join(f"-{name.split('-')[-1]}{value}" for name, value in chosen.items())
    more = [word for name, value in chosen.items() for word in (f"--{name}", *value.split())]
    folders = {line.output: line.output + end for line in lines}
    found = []
    for line in lines:
        read = {word.rstrip("/") for flag in line.flags for word in (flag, flag.partition("=")[2])}
        after = [folder for folder in folders if folder in read and folder != line.output]
        flags = tuple(_renamed(flag, folders) for flag in line.flags)
        found.append(
            Line(
                line.recipe,
                (*flags, *more),
                folders[line.output],
                tuple(folders[folder] for folder in after),
            )
        )
    return found


def _renamed(flag: str, folders: Mapping[str, str]) -> str:
    name, equals, value = flag.partition("=")
    if equals:
        return f"{name}={folders.get(value.rstrip('/'), value)}"
    return folders.get(flag.rstrip("/"), flag)


def _ordered(lines: list[Line], path: str | os.PathLike[str]) -> tuple[Line, ...]:
    """The lines in the file's order, but for those that read a later one: they come behind it."""
    left, found = list(lines), list[Line]()
    while left:
        there = {line.output for line in found}
        ready = next((line for line in left if there.issuperset(line.after)), None)
        if ready is None:
            circle = ", ".join(line.output for line in left)
            raise ValueError(f"{path}: these wait for one another: {circle}")
        found.append(ready)
        left.remove(ready)
    return tuple(found)


def read_vary(given: Iterable[str]) -> dict[str, list[str]]:
    """Turn `r=0.8,0.9` into a flag and its values.

    Raises:
        ValueError: There is no `=`, no value, or a flag comes twice.
    """
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        name = name.lstrip("-").replace("_", "-")
        chosen = [value for value in values.split(",") if value]
        if not equals or not name or not chosen:
            raise ValueError(f"--set {text}: give a flag and its values, such as r=0.8,0.9")
        if name in found:
            raise ValueError(f"--set {text}: {name} comes twice; give all its values at once")
        found[name] = chosen
    return found


def check_varied(vary: Mapping[str, Sequence[str]], flags: Iterable[str]) -> None:
    """Make sure that `ftwt train` has the flags that are varied.

    Raises:
        ValueError: It has not; the message names the nearest.
    """
    known = list(flags)
    for name in vary:
        if name not in known:
            raise ValueError(
                f"--set {name}=...: ftwt train has no --{name}; {nearest(name, known)}"
            )


def with_seeds(vary: Mapping[str, Sequence[str]], seeds: int | None) -> dict[str, Sequence[str]]:
    """Vary the seed as well: 0, 1, ... of so many.

    Raises:
        ValueError: There are fewer than one, or seeds are varied already.
    """
    if seeds is None:
        return dict(vary)
    if seeds < 1 or "seed" in vary:
        raise ValueError(f"--seeds {seeds}: give 1 or more, and no --set seed=...")
    return {**vary, "seed": [str(seed) for seed in range(seeds)]}
