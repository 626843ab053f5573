"""Tables of the engine's speed beside its rivals'."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .files import ROOT, read
from .layout import commits, origin, percent, table


def engine() -> str:
    """What skipping is worth on the engine, against the fastest dense rival."""
    rows = []
    for _, result in measured():
        latency = {timing["name"]: timing["latency_ms"] for timing in result["timings"]}
        rival = result["fastest_rival"]
        rows.append(
            (
                subject(result),
                str(result["threads"]),
                f"{rival}, {latency[rival]:.2f} ms",
                f"{latency['ftwt dense']:.2f} ms",
                f"{result['dense_ratio']:.2f}",
                f"{latency['ftwt gated']:.2f} ms",
                percent(result["reduction"]),
                f"{result['theoretical']:.2f}",
                f"{result['achieved']:.2f}",
                f"{result['efficiency']:.2f}",
                f"{result['achieved_over_dense']:.2f}",
                "" if result["correlation"] is None else f"{result['correlation']:.3f}",
            )
        )
    head = (
        "network", "threads", "fastest dense rival", "ours, dense", "rival / ours",
        "ours, gated", "fewer MACs", "theoretical", "achieved", "efficiency",
        "over ours, dense", "r (MACs, latency)",
    )  # fmt: skip
    return table(head, rows) + origins()


def traffic() -> str:
    """How near the late layers of VGG16-BN come to the memory's speed."""
    path = "results/engine-traffic.json"
    if not (ROOT / path).exists():
        return "No results yet: `python benchmarks/traffic.py`.\n"
    result = read(path)
    rows = [
        (
            layer["name"],
            f"{layer['megabytes']:.2f} MB",
            f"{layer['bound_ms']:.3f} ms",
            f"{layer['measured_ms']:.3f} ms",
        )
        for layer in (
            *result["layers"],
            {"name": "together", "megabytes": sum(x["megabytes"] for x in result["layers"])}
            | {key: result[key] for key in ("bound_ms", "measured_ms")},
        )
    ]
    head = ("layer", "weights read", f"at {result['stream_gb_per_s']:.1f} GB/s", "measured")
    return table(head, rows) + origin(path, result)


def rivals() -> str:
    """Everybody's latency, with quartiles."""
    found = list(measured())
    names = dict.fromkeys(t["name"] for _, result in found for t in result["timings"])
    rows = []
    for _, result in found:
        cells = {
            t["name"]: f"{t['latency_ms']:.2f} ({t['low_ms']:.2f} - {t['high_ms']:.2f})"
            for t in result["timings"]
        } | dict.fromkeys(result["left_out"], "left out")
        rows.append((subject(result), str(result["threads"]), *(cells.get(n, "") for n in names)))
    return table(("network", "threads", *names), rows) + origins()


def measured() -> Iterable[tuple[str, dict[str, Any]]]:
    """Result files of benchmarks/engine.py, smallest images and networks first."""
    paths = [str(path.relative_to(ROOT)) for path in (ROOT / "results/engine").glob("*.json")]
    files = [(path, read(path)) for path in paths]
    return sorted(
        files, key=lambda f: (f[1]["input_shape"], f[1]["dense_macs"], f[0], f[1]["threads"])
    )


def subject(result: dict[str, Any]) -> str:
    """Name a network that was timed, with its masks."""
    keep = result["forced_keep"]
    masks = "trained" if keep is None else f"keep {keep:g}"
    return f"{result['network']}, {result['input_shape'][-1]}, {masks}"


def origins() -> str:
    """Say which files made a table, on what."""
    files = list(measured())
    if not files:
        return "\nNo results yet: `python benchmarks/engine.py`.\n"
    made = [result["provenance"] for _, result in files]
    commands = sorted({p["command"] for p in made})
    return (
        f"\n{', '.join(f'`{command}`' for command in commands)} at {commits(made)}, "
        f"{made[0]['hardware']['cpu']}, {files[0][1]['isa']}: [results/engine](results/engine).\n"
    )
