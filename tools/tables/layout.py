"""How figures are written, and tables laid out in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a Markdown table."""
    head = list(head)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def commits(made: Iterable[dict[str, Any]]) -> str:
    """Name the commits at which results with these provenances were made."""
    return ", ".join(sorted({(each.get("git") or {}).get("commit", "")[:7] for each in made}))


def origin(path: str, result: dict[str, Any]) -> str:
    """Say which file and command made a table, on what."""
    made = result["provenance"]
    hardware = f"{made['hardware']['cpu']}, {made['hardware']['cores']} threads"
    return f"\n`{made['command']}` at {commits([made])}, {hardware}: [{path}]({path}).\n"


def percent(share: float, digits: int = 1) -> str:
    """Write a share as a percentage."""
    return f"{round(100 * share, digits) + 0.0:.{digits}f}%"  # + 0.0: no minus before a zero


def million(evaluation: dict[str, Any]) -> str:
    """Write executed MACs in millions."""
    return f"{evaluation['executed_macs'] / 1e6:.2f} M"


def over(shares: Iterable[float]) -> str:
    """Mean, and standard deviation where there are several seeds."""
    values = list(shares)
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{percent(mean(values), 2)}{spread}"
