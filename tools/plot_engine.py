"""Draw latency against MACs over single images, from the result files of benchmarks/engine.py.

    python tools/plot_engine.py --output docs/engine.svg

Needs matplotlib, which nothing else here does.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update(
    {"svg.fonttype": "none", "svg.hashsalt": "ftwt", "font.size": 8, "path.simplify": False}
)
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of its output)

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 3


def main() -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results/engine")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/engine.svg")
    arguments = parser.parse_args()
    files = sorted(arguments.results.glob("*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    results = [result for result in results if result["images"]]
    if not results:
        raise SystemExit(f"no single images in {arguments.results}; run benchmarks/engine.py")
    rows = -(-len(results) // COLUMNS)
    figure, grid = plt.subplots(
        rows, COLUMNS, figsize=(3 * COLUMNS, 2.4 * rows), layout="constrained", squeeze=False
    )
    for axes, result in zip(grid.flat, results, strict=False):
        draw(axes, result)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    figure.supxlabel("executed MACs of an image, millions")
    figure.supylabel("latency, ms")
    svg = io.StringIO()
    figure.savefig(svg, metadata={"Date": None})  # the same results, the same file
    text = re.sub(r"(\.\d\d)\d+", r"\1", svg.getvalue())  # hundredths of a point are enough
    arguments.output.write_text(text, encoding="utf-8")
    print(f"{arguments.output}: {len(text) / 1e3:.0f} kB")


def draw(axes: Any, result: dict[str, Any]) -> None:
    """One network: its images; the fastest dense rival, and what it would take if MACs were all."""
    macs = [image["executed_macs"] / 1e6 for image in result["images"]]
    times = [image["latency_ms"] for image in result["images"]]
    # One path of lines without length, whose round ends are dots: a tenth of a file of markers.
    dots = [[value for n in axis for value in (n, n, math.nan)] for axis in (macs, times)]
    axes.plot(*dots, linewidth=2, solid_capstyle="round", color="tab:blue")
    latency = {timing["name"]: timing["latency_ms"] for timing in result["timings"]}
    dense, rival = result["dense_macs"] / 1e6, result["fastest_rival"]
    if rival is not None:
        axes.axhline(latency[rival], color="tab:gray", linewidth=1, linestyle="--")
        axes.plot([0, dense], [0, latency[rival]], color="tab:gray", linewidth=0.5)
        axes.annotate(f"{rival}, dense", (0, latency[rival]), (2, 2), textcoords="offset points")
    axes.set_xlim(0, dense)
    axes.set_ylim(0, 1.1 * max(*times, latency.get(rival, 0)))
    axes.set_title(f"{result['network']}, r = {result['correlation']:.3f}", fontsize=8)


if __name__ == "__main__":
    main()
