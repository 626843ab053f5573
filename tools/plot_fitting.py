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
from tables.fitting import best, by_network, mean_of  # noqa: E402

PATH = Path(__file__).parent.parent / "docs" / "pruned.svg"
LINES = {
    ("static", "as it is"): ("fixed mask by energy, as it is", "#999999", ":"),
    ("dynamic", "repaired"): ("gates, repaired", "#0072b2", "-"),
    ("static", "repaired"): ("fixed mask by energy, repaired", "#009e73", "-"),
    ("greedy", "repaired"): ("fixed mask, repaired", "#cc79a7", "-"),
}


def main() -> None:
    """Draw one panel a network."""
    looks = dict(grouped("results/second-look"))
    groups = by_network("results/repair")
    figure, axes = plt.subplots(1, len(groups), figsize=(4.6 * len(groups), 3.4), squeeze=False)
    for axis, (name, seeds) in zip(axes[0], groups, strict=True):
        first = [seed for seed in seeds if seed["provenance"]["seed"] == 0]
        rows = [row for seed in first for row in seed["rows"]]
        for key, (label, colour, style) in LINES.items():
            points = sorted(
                (100 * row["reduction"], 100 * row["top1"])
                for row in rows
                if (row["kind"], row["weights"]) == key
            )
            if key == ("greedy", "repaired") and name in looks:
                alone = looks[name][0]["fixed_masks"]
                points = sorted((100 * row["reduction"], 100 * row["top1"]) for row in alone)
            if points:
                axis.plot(*zip(*points, strict=True), style, color=colour, marker="o", label=label)
        if name in looks:
            found = looks[name][0]["rows"]
            cuts = sorted({row["average_cut"] for row in found})
            chosen = [best([row for row in found if row["average_cut"] == cut]) for cut in cuts]
            points = [(100 * mean_of(b, "reduction"), 100 * mean_of(b, "top1")) for b in chosen]
            axis.plot(
                *zip(*points, strict=True), "-", color="#d55e00", marker="s", label="second look"
            )
        dense = 100 * seeds[0]["dense_top1"]
        axis.axhline(dense, color="black", linewidth=0.8)
        axis.set_xlim(15, 55)
        axis.annotate("dense", (54, dense), va="bottom", ha="right", fontsize=8)
        axis.set_ylim(dense - 14, dense + 1.2)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("fewer MACs executed, %")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("top-1, 10,000 test images, %")
    lines = {
        text: line
        for axis in axes[0]
        for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    axes[0][-1].legend(lines.values(), lines.keys(), fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(PATH, metadata={"Date": None})


if __name__ == "__main__":
    main()
