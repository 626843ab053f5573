"""What ftwt makes of every network of torchvision and of each family of timm.

    python tools/coverage.py torchvision            # all of its classifiers
    python tools/coverage.py timm                   # one of each family
    python tools/coverage.py timm --only resnet vgg # these families, or networks
    python tools/coverage.py timm --again           # those that crashed or were wrong, once more
    python tools/coverage.py timm --stages convert open macs   # of all, these stages alone

Writes results/coverage/LIBRARY.json after each network, so that a run can be interrupted and goes
on where it was; a network that is in the file is not tried again unless asked for. Each network has
a process of its own, with limits: one that dies is a line in the table and not the end. With
--stages, what the others found stays; a network whose stages are of this commit is not tried again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import resource
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import families
import stages
import torch

from ftwt.files.json import read_json, write_json
from ftwt.files.provenance import provenance

FOLDER = Path(__file__).resolve().parent.parent / "results" / "coverage"
GIB = 2**30


def main() -> int:
    """Sweep; return 1 if anything crashed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("library", choices=("torchvision", "timm"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--again", action="store_true", help="also those that failed before")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--minutes", type=float, default=15, help="of the CPU, for one at most")
    parser.add_argument("--memory", type=float, default=12, metavar="GIB", help="at most, for one")
    parser.add_argument("--stages", nargs="+", choices=stages.STAGES, default=stages.STAGES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = FOLDER / f"{options.library}.json"
    known: dict[str, Any] = read_json(path)["networks"] if path.exists() else {}
    keys = families.families() if options.library == "timm" else families.torchvision_names()
    commit = (provenance(seed=0)["git"] or {}).get("commit")
    anew = tuple(options.stages) != stages.STAGES
    wanted = [
        key
        for key in keys
        if (not options.only or key.split(":")[-1] in options.only)
        and (
            key not in known
            or options.only
            or (options.again and failed(known[key]))
            or (anew and known[key].get("stages_at", {}).get(options.stages[-1]) != commit)
        )
    ]
    if options.library == "torchvision":
        wanted.sort(key=families.parameters)  # the most is known soonest
    for key, found in sweep(wanted, known, options):
        made = provenance(seed=0)
        made["versions"][options.library] = version(options.library)
        before = known.get(key, {})
        at = before.get("stages_at") or dict.fromkeys(
            before.get("stages", {}), before.get("commit")
        )
        if anew and found["stages"]["convert"]["ok"] and before:
            found = before | found | {"stages": before["stages"] | found["stages"]}
        known[key] = found | {
            "commit": commit,
            "stages_at": at | dict.fromkeys(options.stages, commit),
        }
        order = {key: known[key] for key in keys if key in known}
        write_json(path, {"all": len(keys), "networks": order, "provenance": made})
        print(line(key, known[key]), flush=True)
    return int(any(ended(found, "crashed", "wrong") for found in known.values()))


def sweep(
    keys: list[str], known: dict[str, Any], options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Take networks through all stages, each in a process of its own; yield them as they end."""
    context = multiprocessing.get_context("fork")  # torch and the libraries are loaded once
    waiting, at_work = list(keys), {}
    while waiting or at_work:
        while waiting and len(at_work) < options.jobs:
            key = waiting.pop(0)
            mine, theirs = context.Pipe(duplex=False)
            arguments = (theirs, key, known.get(key), options)
            process = context.Process(target=_child, args=arguments)
            process.start()
            theirs.close()
            at_work[mine] = (key, process)
        for mine in multiprocessing.connection.wait(list(at_work)):
            key, process = at_work.pop(mine)
            try:
                found = mine.recv()
                process.join()
            except EOFError:
                process.join()
                found = died(key, "crashed", f"its process ended with {process.exitcode}")
                if process.exitcode == -signal.SIGXCPU:
                    why = f"more than {options.minutes:g} minutes of one thread"
                    found = died(key, "size", why)
            yield key, found


def _child(pipe: Any, key: str, before: dict[str, Any] | None, options: argparse.Namespace) -> None:
    memory, seconds = int(options.memory * GIB), int(60 * options.minutes)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
    chosen: dict[str, Any] | None = {"name": key}
    if ":" not in key:
        chosen = before if before and before.get("members") else families.choose(key)
    if chosen is None:
        pipe.send(died(key, "refused", "no member of the family can be built without data"))
        return
    try:
        found = stages.examine(chosen["name"], options.stages)
    except MemoryError as error:
        found = died(chosen["name"], "size", f"more than {options.memory:g} GiB: {error}")
    except Exception as error:  # it could not even be built
        found = died(chosen["name"], "crashed", f"{type(error).__name__}: {error}")
    pipe.send({"members": chosen.get("members")} | found)


def died(name: str, end: str, reason: str) -> dict[str, Any]:
    """Return what is known of a network that no stage tells about."""
    stage = {"ok": False, "end": end, "reason": " ".join(reason.split())[:400]}
    return {"name": name, "stages": {"convert": stage}}


def failed(found: dict[str, Any]) -> bool:
    """Whether a network did not convert, or met a defect."""
    return not found["stages"]["convert"]["ok"] or ended(found, "crashed", "wrong")


def ended(found: dict[str, Any], *ends: str) -> bool:
    """Whether any of a network's stages had one of these ends."""
    return any(not s["ok"] and s["end"] in ends for s in found["stages"].values())


def line(key: str, found: dict[str, Any]) -> str:
    """Tell of a network in one line."""
    told = []
    for stage, result in found["stages"].items():
        told.append(
            stage if result["ok"] else f"{stage}: {result['end'].upper()} {result['reason']}"
        )
    units = found["stages"]["convert"].get("units", "-")
    return f"{key} {found['name']} units {units} {found.get('seconds', '')} s: " + ", ".join(told)


if __name__ == "__main__":
    sys.exit(main())
