"""Tables that set dynamic networks beside others: static pruning, corrupted images."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean
from typing import Any

from .files import ROOT, grouped, read
from .layout import commits, over, percent, table

EACH = "corrupted"  # key of a corruptions file: figures by corruption and severity
NO_CORRUPTIONS = "No results yet: `ftwt robustness MODEL ... --output results/corruptions`.\n"


def static() -> str:
    """Static pruning beside the dynamic runs that it was matched to, and their twins."""
    made = [result for _, runs in grouped("results/static") for result in runs]
    if not made:
        return "No results yet: `python benchmarks/static_pruning.py runs/NAME`.\n"
    runs = [read(str(path.relative_to(ROOT))) for path in sorted(ROOT.glob("results/*/*.json"))]
    twins = [run for run in runs if (run.get("config") or {}).get("twin_of")]
    # network, run, method, epochs -> figures
    rows: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for result in made:
        name = result["matched"]["to"]
        network = result["config"]["model"].removeprefix("cifar10-")
        run = re.sub(r"-seed\d+$", "", name)
        on = {"macs": "MACs"}.get(result["matched"]["on"], result["matched"]["on"])
        method = f"Torch-Pruning, {result['importance']}, equal {on}"
        found = [("dynamic", result["dynamic"])]
        found += [
            ("static twin", outcome(twin))
            for twin in twins
            if Path(twin["config"]["twin_of"]).name == name
        ]
        for kind, figures in (*found, (method, outcome(result))):
            same = rows.setdefault((network, run, kind, figures["epochs"]), [])
            if figures not in same:  # one dynamic run, pruned several ways
                same.append(figures)
    order = {"dynamic": 0, "static twin": 1}
    lines = [
        (
            network,
            run,
            method,
            over(figures["top1"] for figures in seeds),
            over(figures["reduction"] for figures in seeds),
            ratio(seeds),
            str(epochs),
            str(len(seeds)),
        )
        for (network, run, method, epochs), seeds in sorted(
            rows.items(), key=lambda row: (*row[0][:2], order.get(row[0][2], 2), row[0][2:])
        )
    ]
    head = ("network", "run", "method", "top-1", "executed", "latency / dynamic", "epochs", "seeds")
    version = ", ".join(sorted({result["library"]["version"] for result in made}))
    return table(head, lines) + (
        f"\nTorch-Pruning {version}, `benchmarks/static_pruning.py` at "
        f"{commits(result['provenance'] for result in made)}, "
        f"{made[0]['provenance']['hardware']['cpu']}: "
        "[results/static](results/static).\n"
    )


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What a run achieved, as a static-pruning file tells of the dynamic one."""
    train = result["config"]["train"]
    return {
        "top1": result["test"]["top1"],
        "reduction": result["test"]["reduction"],
        "epochs": train["epochs"],
        "seed": train["seed"],
        **({"latency": result["latency"]["ratio"]} if "latency" in result else {}),
    }


def ratio(seeds: list[dict[str, Any]]) -> str:
    """Mean latency beside the dynamic network's, where it was measured."""
    latencies = [figures["latency"] for figures in seeds if "latency" in figures]
    return f"{mean(latencies):.2f}" if latencies else ""


def corruptions() -> str:
    """What severity does to accuracy, reduction and keep ratio, networks side by side."""
    files = corrupted()
    if not files:
        return NO_CORRUPTIONS
    severities = sorted({entry["severity"] for result in files.values() for entry in result[EACH]})
    rows = []
    for key, figure in (("top1", "top-1"), ("reduction", "reduction"), ("keep", "filters kept")):
        for name, result in files.items():
            levels = [
                [entry[key] for entry in result[EACH] if entry["severity"] == severity]
                for severity in severities
            ]
            shares = [result["clean"][key], *map(mean, levels), result["mean"][key]]
            rows.append((f"{figure}, {name}", *(percent(share, 2) for share in shares)))
    head = ("", "clean", *(f"severity {n}" for n in severities), "mean of corrupted")
    return table(head, rows) + origin_of_corruptions(files)


def corruption_kinds() -> str:
    """Top-1 by corruption, over all severities, networks side by side."""
    files = corrupted()
    if not files:
        return NO_CORRUPTIONS
    kinds = dict.fromkeys(e["corruption"] for result in files.values() for e in result[EACH])
    rows = []
    for kind in kinds:
        found = [
            [entry["top1"] for entry in result[EACH] if entry["corruption"] == kind]
            for result in files.values()
        ]
        rows.append((kind.replace("_", " "), *(percent(mean(shares), 2) for shares in found)))
    return table(("corruption", *files), rows) + origin_of_corruptions(files)


def corrupted() -> dict[str, dict[str, Any]]:
    """Result files of `ftwt robustness` by file name, dense networks first."""
    paths = sorted((ROOT / "results/corruptions").glob("*.json"))
    files = {path.stem: read(str(path.relative_to(ROOT))) for path in paths}
    seen = {(result["images"], result["source"], len(result[EACH])) for result in files.values()}
    if len(seen) > 1:
        raise SystemExit(
            f"results/corruptions: made of different images, {seen}; make them at once"
        )
    return dict(sorted(files.items(), key=lambda f: (f[1]["clean"]["reduction"] > 0, f[0])))


def origin_of_corruptions(files: dict[str, dict[str, Any]]) -> str:
    """Say on which images and by which commands a table of corruptions was made."""
    result = next(iter(files.values()))
    images = {"ftwt": "corrupted by ftwt", "cifar-10-c": "and the published files of CIFAR-10-C"}
    made = [each["provenance"] for each in files.values()]
    commands = ", ".join(f"`{command}`" for command in sorted({p["command"] for p in made}))
    return (
        f"\n{result['images']:,} test images, {images[result['source']]}. "
        f"{commands} at {commits(made)}: "
        f"[results/corruptions](results/corruptions).\n"
    )
