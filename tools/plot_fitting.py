"""Draw docs/pruned.svg: accuracy against work saved, without labels and without training.

    python tools/plot_fitting.py

From the files in results/repair and results/second-look.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "ftwt"  # the same file each time

import matplotlib.pyplot as plt  # noqa: E402
from tables.files import grouped  # noqa: E402
from tables.fitting import by_network, cells_by_cut, looked, mean_of  # noqa: E402

PATH = Path(__file__).parent.parent / "docs" / "pruned.svg"
REPAIRED = "repaired"
LINES = {
    "greedy": ("fixed mask", "#cc79a7", "o"),
    "dynamic": ("gates", "#0072b2", "o"),
    "mixed": ("gates where they win", "#009e73", "o"),
    "torch-pruning, magnitude": ("Torch-Pruning, magnitude", "#999999", "o"),
    "torch-pruning, Taylor": ("Torch-Pruning, Taylor", "#999999", "^"),
    "look": ("second look", "#d55e00", "s"),
}
CUTS = 3  # at least, of networks that are drawn
COLUMNS = 3


def main() -> None:
    """Draw one panel a network: each way repaired, on average over draws of the images."""
    looks = dict(grouped("results/second-look"))
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    dense: dict[str, float] = {}
    for name, top1, asked, cells in cells_by_cut(by_network("results/repair")):
        dense[name] = 100 * top1
        for (kind, step), seeds in cells.items():
            if step == REPAIRED and kind in LINES:
                points = lines.setdefault(name, {}).setdefault(kind, [])
                points.append((100 * asked, 100 * sum(seeds) / len(seeds)))
    lines = {name: kinds for name, kinds in lines.items() if len(kinds["greedy"]) >= CUTS}
    for name in lines.keys() & looks.keys():
        for cut in sorted({row["average_cut"] for row in looks[name][0]["rows"]}):
            draws = looked(looks[name], cut)
            point = (100 * mean_of(draws, "reduction"), 100 * mean_of(draws, "top1"))
            lines[name].setdefault("look", []).append(point)
    rows = -(-len(lines) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(12, 3.6 * rows), squeeze=False)
    for axis in axes.flat[len(lines) :]:
        axis.set_axis_off()
    for axis, (name, kinds) in zip(axes.flat, lines.items(), strict=False):
        for kind, (label, colour, marker) in LINES.items():
            if kind in kinds:
                axis.plot(*zip(*kinds[kind], strict=True), color=colour, marker=marker, label=label)
        axis.axhline(dense[name], color="black", linewidth=0.8)
        axis.annotate("dense", (54, dense[name]), va="top", ha="right", fontsize=8)
        axis.set_xlim(15, 55)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("fewer MACs executed, %")
        axis.set_ylabel("top-1, %")
        axis.grid(alpha=0.3)
    shown = {
        text: line
        for axis in axes.flat
        for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    axes[0][0].legend(shown.values(), shown.keys(), fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(PATH, metadata={"Date": None})


if __name__ == "__main__":
    main()
