"""Tables of what is made without labels and without training."""

from __future__ import annotations

from typing import Any

from .files import grouped
from .layout import commits, over, percent, table

MISSING = "No results yet: `python benchmarks/{}.py cifar10-resnet20`.\n"


def repair() -> str:
    """Fixed masks and gates at equal cuts: as they are, batch norm re-estimated, repaired."""
    groups = grouped("results/repair")
    if not groups:
        return MISSING.format("repair")
    rows = []
    for name, seeds in groups:
        dense = percent(seeds[0]["dense_top1"], 2)
        found: dict[float, dict[tuple[str, str], list[float]]] = {}
        for row in (row for seed in seeds for row in seed["rows"]):
            cell = found.setdefault(row["asked"], {})
            cell.setdefault((row["kind"], row["weights"]), []).append(row["top1"])
        for asked in sorted(found):
            cells = [over(found[asked][column]) if column in found[asked] else ""
                     for column in COLUMNS]  # fmt: skip
            rows.append((f"{name} ({dense})", percent(asked, 0), *cells))
    head = (
        "network (dense)", "fewer MACs", "fixed mask, as it is", "batch norm re-estimated",
        "fixed mask, repaired", "gates, as they are", "gates, repaired",
    )  # fmt: skip
    return table(head, rows) + _made(groups, "repair")


COLUMNS = (
    ("static", "as it is"),
    ("static", "batch norm re-estimated"),
    ("static", "repaired"),
    ("dynamic", "as it is"),
    ("dynamic", "repaired"),
)


def second_look() -> str:
    """A second look beside the repaired fixed mask, at equal average cuts."""
    groups = grouped("results/second-look")
    if not groups:
        return MISSING.format("second_look")
    rows = []
    for name, seeds in groups:
        result = seeds[0]
        alone = {row["cut"]: row["top1"] for row in result["fixed_masks"]}
        for average in sorted({row["average_cut"] for row in result["rows"]}):
            chosen = best([row for row in result["rows"] if row["average_cut"] == average])
            rows.append(
                (
                    f"{name} ({percent(result['dense_top1'], 2)})",
                    percent(average, 0),
                    percent(alone[average], 2) if average in alone else "",
                    percent(mean_of(chosen, "top1"), 2),
                    percent(mean_of(chosen, "reduction"), 2),
                    percent(chosen[0]["first_cut"], 0),
                    percent(mean_of(chosen, "again")),
                    percent(mean_of(chosen, "by_lot_top1"), 2),
                    percent(alone[chosen[0]["first_cut"]], 2),
                )
            )
    head = (
        "network (dense)", "fewer MACs on average", "fixed mask alone", "second look", "achieved",
        "cut of its first pass", "looked at again", "as many by lot", "first pass alone",
    )  # fmt: skip
    return table(head, rows) + _made(groups, "second-look")


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both halves of the first pass that agrees most on the images that set the threshold."""
    cuts: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        cuts.setdefault(row["first_cut"], []).append(row)
    return max(cuts.values(), key=lambda both: mean_of(both, "agreement"))


def mean_of(rows: list[dict[str, Any]], name: str) -> float:
    """Average a figure over rows."""
    return sum(row[name] for row in rows) / len(rows)


def _made(groups: list[tuple[str, list[dict[str, Any]]]], folder: str) -> str:
    made = [seed["provenance"] for _, seeds in groups for seed in seeds]
    cpu = " and ".join(dict.fromkeys(one["hardware"]["cpu"] for one in made))
    images = groups[0][1][0]["images"]
    path = f"results/{folder}"
    return (
        f"\nFrom {images:,} training images without labels, scored on all test images; at "
        f"{commits(made)}, {cpu}, 1 thread: [{path}]({path}).\n"
    )
