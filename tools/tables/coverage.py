"""Tables of what becomes of other libraries' networks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .files import ROOT, read
from .layout import commits, percent, table

FILES = {name: f"results/coverage/{name}.json" for name in ("torchvision", "timm")}
STAGES = ("convert", "open", "macs", "estimate", "step", "save", "engine")
HEADS = (
    "converts", "open gates equal", "MACs equal", "estimate", "training step", "save and load",
    "engine",
)  # fmt: skip
Found = dict[str, Any]


def coverage() -> str:
    """How many networks came how far."""
    rows = []
    for group, networks in groups().items():
        rows.append(
            (group, len(networks), *(count(networks, stage) for stage in STAGES), crashed(networks))
        )
    head = ("", "networks", *HEADS, "crashed or wrong")
    return table(head, ([str(cell) for cell in row] for row in rows)) + untried() + made()


def coverage_torchvision() -> str:
    """A line for each of torchvision's classifiers."""
    found = networks("torchvision")
    return each((found[key]["name"].split(":")[1], found[key]) for key in found)


def coverage_timm() -> str:
    """A line for each of timm's families."""
    found = networks("timm")
    return each((f"{key}: {found[key]['name'].split(':')[-1]}", found[key]) for key in found)


def coverage_reasons() -> str:
    """Why networks did not come further, the same reasons together."""
    together: dict[tuple[str, str], list[str]] = {}
    for library in FILES:
        for found in networks(library).values():
            for stage, result in found["stages"].items():
                if not result["ok"]:
                    reason = general(result["reason"])
                    together.setdefault((stage, reason), []).append(found["name"].split(":")[-1])
    order = sorted(together.items(), key=lambda item: (STAGES.index(item[0][0]), -len(item[1])))
    rows = [
        (stage, reason.replace("|", "or"), str(len(names)), some(names))
        for (stage, reason), names in order
    ]
    return table(("stage", "reason", "networks", "which"), rows)


def groups() -> dict[str, list[Found]]:
    """All networks, by what they are made of."""
    vision, timm = networks("torchvision").values(), networks("timm").values()
    return {
        "torchvision, convolutional": [n for n in vision if not n.get("attention")],
        "torchvision, with attention": [n for n in vision if n.get("attention")],
        "timm, families with convolutions": [n for n in timm if n.get("convolutions", 2) > 1],
        "timm, at most a patch embedding": [n for n in timm if n.get("convolutions", 2) <= 1],
    }


def networks(library: str) -> dict[str, Found]:
    """What is known of a library's networks."""
    path = FILES[library]
    return read(path)["networks"] if (ROOT / path).exists() else {}


def count(found: Iterable[Found], stage: str) -> int:
    """How many networks came through a stage."""
    return sum(answer(n["stages"].get(stage)) in ("yes", "named") for n in found)


def crashed(found: Iterable[Found]) -> int:
    """How many networks ended with a raw error or a wrong figure."""
    return sum(
        any(s.get("end") in ("crashed", "wrong") for s in n["stages"].values()) for n in found
    )


def each(found: Iterable[tuple[str, Found]]) -> str:
    """Lay out a line for each network."""
    rows = []
    for name, network in found:
        stages = network["stages"]
        first = stages["convert"]
        units = str(first["units"]) if first["ok"] else ""
        share = percent(first["gated_share"], 0) if first["ok"] else ""
        answers = [answer(stages.get(stage)) for stage in STAGES]
        size = "x".join(map(str, network["image"][1:])) if "image" in network else ""
        parameters = f"{network['parameters'] / 1e6:.1f} M" if "parameters" in network else ""
        rows.append((name, size, parameters, units, share, *answers))
    head = ("network", "image", "parameters", "units", "of all MACs", *HEADS)
    return table(head, rows)


def answer(result: Found | None) -> str:
    """Say in a word how a stage ended."""
    if result is None:
        return ""
    if result["ok"] and "dense" in result and "off" not in result:
        return "not yet"  # tried before there was a second count
    if result.get("uncounted"):
        return "named"
    return "yes" if result["ok"] else {"size": "left out"}.get(result["end"], result["end"])


def general(reason: str) -> str:
    """Leave out of a reason what differs from network to network."""
    reason = re.sub(r" \(node [^)]*\)", "", reason)
    reason = re.sub(r"\([\d, ]+\)|\b\d[\d,.]*(e-\d+)?\b", "N", reason)
    return reason.split("; ")[0].split(". Its forward")[0]


def some(names: list[str]) -> str:
    """Name a few."""
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")


def untried() -> str:
    """Say how many networks the sweep has not come to."""
    left = []
    for library, path in FILES.items():
        tried = networks(library)
        every = read(path).get("all", len(tried)) if tried else 0
        if len(tried) < every:
            left.append(f"{every - len(tried)} of {every} of {library}")
    told = f"\nNot tried yet: {', '.join(left)}.\n" if left else ""
    found = [n for library in FILES for n in networks(library).values()]
    old = sum(answer(n["stages"].get("macs")) == "not yet" for n in found)
    if old:
        told += f"\nNot yet held to the second count of MACs: {old} of {len(found)} networks.\n"
    return told


def latest() -> dict[str, Any]:
    """Where the younger of the two files comes from."""
    made = [read(path)["provenance"] for path in FILES.values() if (ROOT / path).exists()]
    return max(made, key=lambda provenance: provenance["date"])


def made() -> str:
    """Say where the figures come from."""
    found = [n for library in FILES for n in networks(library).values()]
    at = commits({"git": {"commit": n.get("commit") or ""}} for n in found)
    if (several := at.count(",") + 1) > 4:  # a long sweep; each network has its own in the files
        at = f"{several} commits, the last {commits([latest()])}"
    files = " and ".join(f"[{path}]({path})" for path in FILES.values())
    command = "`python tools/coverage.py torchvision`, `python tools/coverage.py timm`"
    return f"\n{command} at {at}: {files}.\n"
