"""How every result is kept: JSON with where it came from, written whole or not at all."""

from __future__ import annotations

import dataclasses
import datetime
import html
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .files import parse_json
from .files import replacing as replacing


class Shown:
    """A result that prints as rich tables; notebooks show it as tables of their own."""

    def _repr_html_(self) -> str:
        from rich.console import Console

        return "\n".join(_to_html(self, Console(width=200)))


def _to_html(part: Any, console: Any) -> Iterator[str]:
    """HTML of what `__rich_console__` yields: tables, lines of text, and other such results."""
    from rich.table import Table
    from rich.text import Text

    def plain(cell: Any) -> str:
        return html.escape(Text.from_markup(cell).plain if isinstance(cell, str) else str(cell))

    if isinstance(part, Table):
        title = f"<caption>{plain(part.title)}</caption>" if part.title else ""
        sides = [column.justify if column.justify == "right" else "left" for column in part.columns]
        columns = [[plain(cell) for cell in column.cells] for column in part.columns]
        heads = [plain(column.header) for column in part.columns]
        yield f"<table>{title}"
        if part.show_header and any(heads):
            yield f"<thead>{_html_row('th', heads, sides)}</thead>"
        rows = [_html_row("td", row, sides) for row in zip(*columns, strict=True)]
        yield f"<tbody>{''.join(rows)}</tbody></table>"
    elif hasattr(part, "__rich_console__"):
        for inner in part.__rich_console__(console, console.options):
            yield from _to_html(inner, console)
    else:
        yield f"<p>{plain(part)}</p>"


def _html_row(tag: str, cells: Iterable[str], sides: Iterable[str]) -> str:
    told = [
        f'<{tag} style="text-align: {side}">{cell}</{tag}>'
        for cell, side in zip(cells, sides, strict=True)
    ]
    return f"<tr>{''.join(told)}</tr>"


def provenance(
    *, config: Any = None, seed: int | None = None, duration_s: float | None = None
) -> dict[str, Any]:
    """What a reader needs to repeat a result: command, config, seed, versions, hardware, commit.

    Args:
        config: A dataclass or a dict of JSON values.
        seed: The seed that decided everything random.
        duration_s: How long the work took, in seconds.
    """
    return {
        "command": command_line(),
        "config": _plain(config),
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            "torch": _version("torch"),
            "ftwt": _version("ftwt"),
        },
        "hardware": _hardware(),
        "git": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "duration_s": None if duration_s is None else round(duration_s, 3),
    }


def command_line() -> str:
    """The command as typed, without this machine's folders."""
    program, *arguments = sys.argv or ["python"]
    return " ".join([Path(program).name or "python", *map(_relative, arguments)])


def _relative(argument: str) -> str:
    flag, equals, value = argument.rpartition("=")
    return flag + equals + (os.path.relpath(value) if os.path.isabs(value) else value)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a dataclass or JSON value; the file is whole or, on an error, as it was before.

    Raises:
        OSError: The folder cannot be written or the disk is full.
        ValueError: The value holds a NaN or an infinity, which JSON has not.
    """
    text = json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not JSON (truncated, or another kind of file), or JSON that
            `write_json` never writes: with a NaN, a key twice, or nested too deeply.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); write it again") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_name(), "cores": torch.get_num_threads(), "gpu": gpu}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any] | None:
    """Commit of the checkout that this very file is tracked in; None for an installed package."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    here = Path(__file__)
    try:
        git("ls-files", "--error-unmatch", here.name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
