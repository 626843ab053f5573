"""Where a result comes from: command, configuration, seed, versions, hardware and commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .json import plain

CODE = (":/", ":(top,exclude)results")  # a result that was made anew changes no other


class Start:
    """When some work began and with which code: made before it, for `provenance` after it."""

    def __init__(self) -> None:
        self.at, self.commit = time.perf_counter(), _commit()

    def seconds(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self.at


def provenance(
    *, config: Any = None, seed: int | None = None, since: Start | None = None
) -> dict[str, Any]:
    """What a reader needs to repeat a result: command, config, seed, versions, hardware, commit.

    Args:
        config: A dataclass or a dict of JSON values.
        seed: The seed that decided everything random.
        since: The start of the work, which says with which code it began and how long it took; if
            not given, the code is what lies here now.
    """
    return {
        "command": command_line(),
        "config": plain(config),
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            "torch": _version("torch"),
            "ftwt": _version("ftwt"),
        },
        "hardware": _hardware(),
        "git": _commit() if since is None else since.commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "duration_s": None if since is None else round(since.seconds(), 3),
    }


def command_line() -> str:
    """The command as typed, without this machine's folders."""
    program, *arguments = sys.argv or ["python"]
    return " ".join([Path(program).name or "python", *map(_relative, arguments)])


def _relative(argument: str) -> str:
    flag, equals, value = argument.rpartition("=")
    return flag + equals + (os.path.relpath(value) if os.path.isabs(value) else value)


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
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", *CODE)),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
