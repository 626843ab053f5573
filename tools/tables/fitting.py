"""Tables of what is made without labels and without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .files import grouped
from .layout import commits, over, percent, table

MISSING = "No results yet: `python benchmarks/{}.py cifar10-resnet20`.\n"


KINDS = {
    "greedy": "fixed mask",
    "static": "fixed mask, by energy",
    "dynamic": "gates",
    "mixed": "gates where they win",
    "auto": "what `auto` takes of these",
    "torch-pruning, magnitude": "Torch-Pruning, magnitude",
    "torch-pruning, Taylor": "Torch-Pruning, Taylor",
}
STEPS = ("as it is", "batch norm re-estimated", "repaired")
Cells = dict[tuple[str, str], list[float]]


GLANCE = 0.3  # the cut that the README shows
GLANCES = ("greedy", "dynamic", "mixed", "torch-pruning, magnitude", "torch-pruning, Taylor")


def pruned() -> str:
    """What each way keeps at one cut: a row for each network."""
    groups, looks = by_network("results/repair"), dict(grouped("results/second-look"))
    rows = []
    for name, dense, asked, cells in cells_by_cut(groups):
        if asked != GLANCE or ("greedy", STEPS[2]) not in cells:
            continue
        told = [over(cells[k, STEPS[2]]) if (k, STEPS[2]) in cells else "" for k in GLANCES]
        look = ""
        if name in looks:
            look = over(each["top1"] for each in looked(looks[name], asked))
        rows.append((name, percent(dense, 2), told[0], look, *told[1:]))
    head = ("network", "dense", KINDS["greedy"], "second look", *(KINDS[k] for k in GLANCES[1:]))
    return table(head, rows) + _made(groups, "repair")


def repair() -> str:
    """The same as they are, with batch norm re-estimated, and repaired."""
    groups = by_network("results/repair")
    if not groups:
        return MISSING.format("repair")
    rows = []
    for name, dense, asked, cells in cells_by_cut(groups):
        there = {kind for kind, step in cells if step == STEPS[2]}
        told = [_steps(cells, kind) if kind in there else "" for kind in KINDS]
        if any(told):
            rows.append((f"{name} ({percent(dense, 2)})", percent(asked, 0), *told))
    return table(("network (dense)", "fewer MACs", *KINDS.values()), rows) + _made(groups, "repair")


def _steps(cells: Cells, kind: str) -> str:
    return " / ".join(
        over(cells[kind, step]).replace("%", "") if (kind, step) in cells else "-" for step in STEPS
    )


RULES = {
    "what least squares cannot make up for": ("greedy", "dynamic"),
    "energy": ("static", None),
    "first order": ("first-order", "first-order gates"),
}


def rules() -> str:
    """By which rule filters go: fixed masks and gates, repaired, where all rules were run."""
    groups, rows = by_network("results/repair"), []
    for name, dense, asked, cells in cells_by_cut(groups):
        if ("first-order", STEPS[2]) not in cells:
            continue
        for rule, kinds in RULES.items():
            told = [over(cells[k, STEPS[2]]) if (k, STEPS[2]) in cells else "" for k in kinds]
            rows.append((f"{name} ({percent(dense, 2)})", percent(asked, 0), rule, *told))
    head = ("network (dense)", "fewer MACs", "filters by", "fixed mask", "gates")
    kinds = 'repair.py cifar10-resnet20 --kinds greedy static first-order "first-order gates"'
    return table(head, rows) if rows else f"No results yet: `python benchmarks/{kinds}`.\n"


def by_network(folder: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Result files of a folder by network, whatever candidates each is of."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in (seed for _, seeds in grouped(folder) for seed in seeds):
        found.setdefault(result["network"], []).append(result)
    return list(found.items())


def cells_by_cut(
    groups: list[tuple[str, list[dict[str, Any]]]],
) -> Iterator[tuple[str, float, float, Cells]]:
    """Yield network, its accuracy, cut, and candidate and step -> the accuracy of each seed."""
    for name, results in groups:
        seeds: dict[tuple[float, str, str], dict[int, float]] = {}
        for result in sorted(results, key=lambda result: result["provenance"]["date"]):
            for row in result["rows"]:
                if "refused" in row:
                    continue
                cell_of = seeds.setdefault((row["asked"], row["kind"], row["weights"]), {})
                cell_of[result["provenance"]["seed"]] = row["top1"]  # the latest of each seed
        found: dict[float, Cells] = {}
        for (asked, kind, step), values in seeds.items():
            found.setdefault(asked, {})[kind, step] = list(values.values())
        for asked in sorted(found):
            yield name, results[0]["dense_top1"], asked, found[asked]


def repair_cost() -> str:
    """Time and memory of choosing a fixed mask and repairing it."""
    found = [seeds[0] for _, seeds in grouped("results/repair-cost")]
    if not found:
        return MISSING.format("repair_cost")
    rows = [
        (
            one["network"],
            f"{one['images']:,}",
            percent(one["reduction"], 0),
            str(one["layers"]),
            str(one["threads"]),
            f"{one['ranking_s'] + one['repair_s']:.0f} s",
            f"{one['processor_s']:.0f} s",
            f"{one['peak_mb'] / 1024:.1f} GiB",
        )
        for one in found
    ]
    head = (
        "network", "images", "fewer MACs", "layers repaired", "threads", "by the clock",
        "of the processor", "peak memory",
    )  # fmt: skip
    made = [one["provenance"] for one in found]
    cpu = " and ".join(dict.fromkeys(one["hardware"]["cpu"] for one in made))
    path = "results/repair-cost"
    return table(head, rows) + f"\n`repair_cost.py` at {commits(made)}, {cpu}: [{path}]({path}).\n"


def second_look() -> str:
    """A second look beside the repaired fixed mask, at equal average cuts."""
    groups = grouped("results/second-look")
    if not groups:
        return MISSING.format("second_look")
    rows = []
    for name, seeds in groups:
        for average in sorted({row["average_cut"] for row in seeds[0]["rows"]}):
            looks, gated = looked(seeds, average), looked(seeds, average, kind="mixed")
            alone = [look["alone"] for look in looks if look["alone"] is not None]
            firsts = dict.fromkeys(first for look in looks for first in look["firsts"])
            rows.append(
                (
                    f"{name} ({percent(seeds[0]['dense_top1'], 2)})",
                    percent(average, 0),
                    over(alone) if alone else "",
                    over(look["top1"] for look in looks),
                    over(look["top1"] for look in gated) if gated else "",
                    over(look["reduction"] for look in looks),
                    " or ".join(sorted(firsts)),
                    percent(mean_of(looks, "again")),
                    percent(mean_of(looks, "by_lot_top1"), 2),
                    percent(mean_of(looks, "first_top1"), 2),
                )
            )
    head = (
        "network (dense)", "fewer MACs on average", "fixed mask alone", "second look",
        "after gates where they win", "achieved", "cut of its first pass", "looked at again",
        "as many at random", "first pass alone",
    )  # fmt: skip
    return table(head, rows) + _made(groups, "second-look")


def looked(
    seeds: list[dict[str, Any]], average: float, *, kind: str = "greedy"
) -> list[dict[str, Any]]:
    """Of each seed, a second look at an average cut, and the fixed mask alone.

    Of the first passes of a kind, or those that were trained, each half takes the one that agrees
    most with the dense network: on the half that sets the threshold; the other one is scored.
    """
    found = []
    for result in seeds:
        alone = {_first(row): row["top1"] for row in result["firsts"]}
        halves: dict[int, list[dict[str, Any]]] = {}
        for row in result["rows"]:
            if row["average_cut"] == average and row.get("kind", "greedy") == kind:
                halves.setdefault(row["threshold_from_half"], []).append(row)
        if not halves:
            continue
        best = [max(rows, key=lambda row: row["agreement"]) for rows in halves.values()]
        figures = ("top1", "reduction", "again", "by_lot_top1")
        found.append(
            {name: mean_of(best, name) for name in figures}
            | {
                "alone": alone.get(("greedy", average)),
                "first_top1": sum(alone[_first(row)] for row in best) / len(best),
                "firsts": [
                    f"{percent(row['first_cut'], 0)} {row.get('first', '')}".strip() for row in best
                ],
            }
        )
    return found


def _first(row: dict[str, Any]) -> tuple[str, float]:
    """The trained network that looks first, or the kind of a repaired one; and its cut."""
    return row.get("first") or row["kind"], row["first_cut" if "first_cut" in row else "cut"]


def mean_of(rows: list[dict[str, Any]], name: str) -> float:
    """Average a figure over rows."""
    return sum(row[name] for row in rows) / len(rows)


def _made(groups: list[tuple[str, list[dict[str, Any]]]], folder: str) -> str:
    made = [seed["provenance"] for _, seeds in groups for seed in seeds]
    cpu = " and ".join(dict.fromkeys(one["hardware"]["cpu"] for one in made))
    counts = sorted({seed["images"] for _, seeds in groups for seed in seeds}, reverse=True)
    images = " or ".join(f"{count:,}" for count in counts)
    path = f"results/{folder}"
    return (
        f"\nFrom {images} images without labels, scored on all test images; at "
        f"{commits(made)}, {cpu}, 1 thread: [{path}]({path}).\n"
    )
