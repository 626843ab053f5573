"""Tables of what several processes send one another."""

from __future__ import annotations

from typing import Any

from .files import ROOT, read
from .layout import origin, percent, table

PATH = "results/scaling/communication.json"


def communication() -> str:
    """Gradient bytes of a step, by phase, and how a step divides on the CPU."""
    if not (ROOT / PATH).exists():
        return "No results yet: `python benchmarks/communication.py`.\n"
    result = read(PATH)
    rows = []
    for step in result["steps"]:
        buckets = " + ".join(f"{each / 1e6:.2f}" for each in step["buckets_bytes"])
        rows.append(
            (
                f"{step['network']}, {step['phase']}",
                f"{step['parameters'] / 1e6:.3f} M",
                f"{step['gradient_bytes'] / 1e6:.2f} MB",
                percent(step["gradient_bytes"] / dense(result, step["network"]) - 1),
                f"{buckets} MB",
                f"{step['buffer_bytes'] / 1e6:.2f} MB",
                f"{step['step_ms'] - step['all_reduce_ms']:.0f} ms",
                f"{step['all_reduce_ms']:.0f} ms",
            )
        )
    head = (
        "network, phase", "parameters", "gradients, counted", "more than dense", "buckets, seen",
        "buffers", "rest of a step, CPU", "all-reduce, CPU, gloo",
    )  # fmt: skip
    return table(head, rows) + origin(PATH, result)


def dense(result: dict[str, Any], network: str) -> int:
    """Gradient bytes of a network without gates."""
    phases = {(step["network"], step["phase"]): step for step in result["steps"]}
    return phases[network, "dense"]["gradient_bytes"]
