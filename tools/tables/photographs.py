"""Tables of the trained MobileNetV1 that was shown photographs."""

from __future__ import annotations

from .files import ROOT, read
from .layout import origin, percent, table

RESULT = "results/photographs/mobilenet-v1.json"
MISSING = "No results yet: `python benchmarks/photographs.py FOLDER`.\n"


def photograph_targets() -> str:
    """What the targets themselves leave to do at each r."""
    if not (ROOT / RESULT).exists():
        return MISSING
    result = read(RESULT)
    both = result["targets"]
    shown = [(f"{row['r']:.2f}", row) for row in both["gate"]["rows"]]
    shown.append(("1.00, depthwise inherits", both["inherit"]["rows"][0]))
    rows = [
        (
            name,
            percent(row["reduction"]),
            percent(row["published_reduction"]),
            percent(row["predicted"]),
            percent(row["kept"]),
            f"{percent(row['sometimes'], 0)} / {percent(row['never'], 0)}",
            percent(row["same_guess"], 0),
        )
        for name, row in shown
    ]
    head = (
        "r", "executed", "published", "predicted from unmasked features", "filters kept",
        "fire sometimes / never", "first guess as the dense network's",
    )  # fmt: skip
    right = round(both["gate"]["dense_top1"] * result["photographs"])
    told = f"\nThe dense network recognises {right} of the {result['photographs']} photographs.\n"
    return table(head, rows) + told + origin(RESULT, result)


def photograph_gates() -> str:
    """What predictors learn from some photographs, judged on the others."""
    if not (ROOT / RESULT).exists():
        return MISSING
    result = read(RESULT)
    rows = [
        (
            f"{row['r']:.2f}, {name}",
            percent(row[kind]["mask_accuracy"]),
            percent(row[kind]["reduction"]),
            percent(row[kind]["sometimes"]),
            percent(row[kind]["same_guess"], 0),
        )
        for row in result["learned"]
        for kind, name in (("gates", "gates"), ("twin", "one fixed mask"))
    ]
    head = (
        "r",
        "mask accuracy",
        "executed",
        "fire sometimes",
        "first guess as the dense network's",
    )
    return table(head, rows)
