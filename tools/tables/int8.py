"""The table of what eight bits cost in accuracy."""

from __future__ import annotations

from .files import ROOT, read
from .layout import commits, percent, table


def eight_bits() -> str:
    """Float engine beside int8, ranges by each rule, on the same test images."""
    paths = sorted((ROOT / "results/int8").glob("*.json"))
    if not paths:
        return "No results yet: `python benchmarks/eight_bits.py cifar10-resnet20`.\n"
    results = [read(str(path.relative_to(ROOT))) for path in paths]
    rows = []
    for result in results:
        found = {row["rule"]: row for row in result["rows"]}
        best = found.get("minmax") or next(iter(found.values()))
        masks = [row["same_masks"] for row in found.values() if row["same_masks"] is not None]
        rows.append(
            (
                f"{result['network']}, {result['images']:,} images",
                percent(result["f32_top1"], 2),
                *(
                    percent(found[rule]["top1"], 2) if rule in found else ""
                    for rule in ("minmax", "percentile", "mse")
                ),
                percent(best["same_guess"], 1),
                percent(best["same_masks"], 2) if masks else "",
                str(len(best["float_layers"])),
            )
        )
    head = (
        "network, test images", "float32", "int8: min-max", "percentile", "squared error",
        "same guess", "same masks", "layers left float",
    )  # fmt: skip
    made = commits(result["provenance"] for result in results)
    return table(head, rows) + f"\n`eight_bits.py` at {made}: [results/int8](results/int8).\n"
