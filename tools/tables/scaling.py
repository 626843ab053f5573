"""Tables of what several processes send one another."""

from __future__ import annotations

from typing import Any

from .files import ROOT, read
from .layout import origin, percent, table

PATH = "results/scaling/communication.json"
LINKS = {"NVLink, 450 GB/s": 450e9, "400 Gb/s": 50e9, "100 Gb/s": 12.5e9}  # bytes/s, each way
GPUS = (8, 64)


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


def ring() -> str:
    """A model, not a measurement: how long these bytes take on links of a speed."""
    if not (ROOT / PATH).exists():
        return "No results yet: `python benchmarks/communication.py`.\n"
    result = read(PATH)
    rows = []
    for step in result["steps"]:
        if step["phase"] == "dense" or step["phase"].startswith("gated"):
            sent = [2 * (n - 1) / n * sum(step["buckets_bytes"]) for n in GPUS]
            times = [f"{1e3 * b / speed:.3f} ms" for speed in LINKS.values() for b in sent]
            rows.append((f"{step['network']}, {step['phase']}", *times))
    head = ("modelled", *(f"{n} GPUs, {link}" for link in LINKS for n in GPUS))
    return table(head, rows)


def dense(result: dict[str, Any], network: str) -> int:
    """Gradient bytes of a network without gates."""
    phases = {(step["network"], step["phase"]): step for step in result["steps"]}
    return phases[network, "dense"]["gradient_bytes"]
