"""The table of altered programs."""

from __future__ import annotations

from .files import ROOT, read
from .layout import commits, origin, table


def fuzz() -> str:
    """What became of altered programs, and which took longest."""
    head = ("build", "programs", "refused", "run", "slowest", "instruction sets", "commit")
    paths = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("results/fuzz/*.json"))
    rows, results = [], [read(path) for path in paths]
    for result in results:
        found = result["outcomes"]
        rows.append(
            (
                "sanitized" if result["sanitized"] else "as installed",
                f"{result['programs']:,}",
                f"{found['refused']:,}",
                f"{found['ran']:,}",
                f"{found['slowest_s']:.1f} s",
                ", ".join(result["instruction_sets"]),
                commits([result["provenance"]]),
            )
        )
    return table(head, rows) + "".join(
        origin(path, result) for path, result in zip(paths, results, strict=True)
    )
