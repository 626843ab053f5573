"""The table of those that no other is both as fast and more accurate than."""

from __future__ import annotations

from .files import ROOT, read
from .layout import commits, percent, table


def contest() -> str:
    """The front of each network's contest, the fastest first, and the dense networks beside it."""
    paths = sorted((ROOT / "results/contest").glob("*.json"))
    found = [read(str(path.relative_to(ROOT))) for path in paths]
    if not found:
        return "No results yet: `python benchmarks/accuracy_latency.py cifar10-resnet20`.\n"
    rows = []
    for one in found:
        for entry in sorted(one["entries"], key=lambda entry: entry["latency_ms"]):
            name = f"{entry['pruning']}, {entry['runtime']} {entry['precision']}"
            if name in one["front"] or entry["pruning"] == "dense":
                rows.append(
                    (
                        f"{one['network']}, {one['images']:,} images",
                        name,
                        percent(entry["top1"], 2),
                        f"{entry['latency_ms']:.2f} ms",
                        "in front" if name in one["front"] else "",
                    )
                )
    head = ("network, test images", "contestant", "top-1", "an image", "")
    made = commits(one["provenance"] for one in found)
    cpus = ", ".join(sorted({one["provenance"]["hardware"]["cpu"] for one in found}))
    where = "[results/contest](results/contest)"
    return table(head, rows) + f"\n`accuracy_latency.py` at {made}, {cpus}, 1 thread: {where}.\n"
