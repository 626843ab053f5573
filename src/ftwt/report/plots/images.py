"""Figures about images: heatmaps, how work is distributed, the cheapest and the dearest."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import palette
from ..rows_of_run import (
    Source,
    class_rows,
    extreme_rows,
    heatmap_rows,
    recording_of,
    subject_name,
    work_rows,
)
from .style import WIDTH, Axes, Figure, drawing, figure, note, only, percent, tell


@drawing
def heatmaps(
    subject: Source, *, units: list[str] | None = None, images: list[int] | None = None
) -> Figure:
    """Draw triplets: an image, a layer's heatmap when all is computed, and when its gates decide.

    Args:
        subject: A recording with heatmaps, or what has one.
        units: Layers; if not given, the one a quarter of the way down those with
            heatmaps.
        images: Numbers of recorded images that are kept as pictures; if not given, four from the
            cheapest to the dearest.

    Returns:
        A figure; its data is `rows_of_run.heatmap_rows`. The two heatmaps of a triplet have one
        scale.

    Raises:
        ValueError: There are no heatmaps, no such layer, or no such picture.

    Source: figure 3 of the paper's supplement.
    """
    recording = recording_of(subject)
    rows = heatmap_rows(recording, units=units, images=images)
    if not rows:
        raise ValueError("the recording holds no heatmaps; record a network with gates")
    side = 1.28
    across = min(2, len(rows))
    down = -(-len(rows) // across)
    sheet = figure(width=across * 3 * side + 0.2, height=down * (side + 0.36) + 0.35)
    parts = np.atleast_1d(sheet.subfigures(down, across, wspace=0.04, squeeze=False)).ravel()
    for part, row in zip(parts, rows, strict=False):
        _triplet(part, row)
    note(sheet, "mean over the layer's filters of |output|; a triplet's heatmaps have one scale")
    return sheet


def _triplet(part: Any, row: dict[str, Any]) -> None:
    dense, dynamic = np.array(row["dense"]), np.array(row["dynamic"])
    top = max(dense.max(), dynamic.max(), 1e-12)
    wrong = "" if row["label"] == row["prediction"] else f", guessed {row['prediction']}"
    panels = part.subplots(1, 3)
    for axes, values, words in (
        (panels[0], np.array(row["input"], np.uint8), f"{row['label']}{wrong}"),
        (panels[1], dense, "all filters"),
        (panels[2], dynamic, f"{row['computed']:.0%} of them"),
    ):
        options = {} if values.ndim == 3 else {"cmap": palette.HEAT, "vmin": 0, "vmax": top}
        axes.imshow(values, **options)
        axes.set_title(words, fontsize=6.8, fontweight="normal", loc="center", pad=2)
        _bare(axes)
    part.suptitle(f"{row['unit']}: image {row['image']}, {row['reduction']:.0%} fewer MACs in all",
                  fontsize=7, fontweight="bold")  # fmt: skip


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


@drawing
def work(subject: Source) -> Figure:
    """Draw how many images take how much work, those guessed right and those guessed wrong.

    Args:
        subject: A recording, or what has one.

    Returns:
        A figure; its data is `rows_of_run.work_rows`. Each of the two lines encloses 100%.

    Raises:
        ValueError: There is no recording.
    """
    rows = work_rows(recording_of(subject))
    edges = [rows[0]["from_macs"] / 1e6, *(row["to_macs"] / 1e6 for row in rows)]
    sheet = figure(height=3.0)
    axes = sheet.subplots()
    for name, colour in (("right", palette.DYNAMIC[0]), ("wrong", palette.DYNAMIC[2])):
        total = sum(row[name] for row in rows)
        if total:
            shares = [100 * row[name] / total for row in rows]
            axes.stairs(shares, edges, linewidth=1.2, color=colour,
                        label=f"guessed {name} ({total:,})")  # fmt: skip
    axes.set_xlabel("executed MACs, millions")
    axes.set_ylabel("share of these images")
    axes.set_ylim(bottom=0, top=1.25 * axes.get_ylim()[1])
    axes.legend(loc="upper left")
    axes.set_title(f"{subject_name(subject)}: work for each image")
    percent(axes.yaxis)
    only(axes, "y")
    return sheet


@drawing
def classes(subject: Source) -> Figure:
    """Draw how the work is distributed over the images of each class.

    Args:
        subject: A recording, or what has one.

    Returns:
        A figure; its data is `rows_of_run.class_rows`. A class has a line from the 5th to the 95th
        percentile, a bar between the quartiles, a dot at the median.

    Raises:
        ValueError: There is no recording.
    """
    rows = class_rows(recording_of(subject))
    shown = rows if len(rows) <= MOST_CLASSES else [*rows[:HALF], *rows[-HALF:]]
    sheet = figure(height=max(2.4, 0.9 + 0.2 * len(shown)))
    axes = sheet.subplots()
    places = range(len(shown))

    def macs(name: str) -> list[float]:
        return [row[name] / 1e6 for row in shown]

    blue = palette.DYNAMIC[0]
    axes.hlines(places, macs("p5_macs"), macs("p95_macs"), color=blue, linewidth=0.9)
    axes.hlines(places, macs("p25_macs"), macs("p75_macs"), color=palette.DYNAMIC[1], linewidth=5)
    (medians,) = axes.plot(macs("median_macs"), places, "o", color=blue, markersize=3.6)
    tell(medians, *(f"{row['class']}: {row['images']} images, {row['top1']:.1%} right, median "
                    f"{row['median_macs'] / 1e6:.2f} M MACs" for row in shown))  # fmt: skip
    axes.set_yticks(places, [f"{row['class']}  {row['top1']:.0%}" for row in shown])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("executed MACs, millions")
    axes.set_title(f"{subject_name(subject)}: by class, with its accuracy")
    only(axes, "x")
    text = "median, quartiles, 5th to 95th percentile"
    if len(shown) < len(rows):
        text += f"; the {HALF} cheapest and the {HALF} dearest of {len(rows)} classes"
    note(sheet, text)
    return sheet


MOST_CLASSES, HALF = 24, 10  # of many classes, the ends are shown


@drawing
def extremes(subject: Source, count: int = 8) -> Figure:
    """Draw the cheapest and the dearest images, with label and executed MACs.

    Args:
        subject: A recording, or what has one.
        count: Of each.

    Returns:
        A figure; its data is `rows_of_run.extreme_rows`.

    Raises:
        ValueError: There is no recording, or it has no pictures.
    """
    recording = recording_of(subject)
    rows = extreme_rows(recording, count)
    if not rows:
        raise ValueError("the recording keeps fewer than two pictures; record with images=64")
    ends = {end: [row for row in rows if row["end"] == end] for end in ("cheapest", "dearest")}
    across = len(ends["cheapest"])
    side = WIDTH / 8
    sheet = figure(width=max(2.2, across * side), height=2 * (side + 0.68))
    parts = sheet.subfigures(2, 1)
    for part, (end, mine) in zip(parts, ends.items(), strict=True):
        for axes, row in zip(np.atleast_1d(part.subplots(1, across)), mine, strict=True):
            axes.imshow(recording.pictures[row["picture"]])
            wrong = row["label"] != row["prediction"]
            text = f"{row['label']}\n{row['executed_macs'] / 1e6:.1f} M"
            axes.set_xlabel(f"{text}\n(as {row['prediction']})" if wrong else text,
                            fontsize=6, color=palette.INK)  # fmt: skip
            _bare(axes)
        part.suptitle(end, fontsize=7.5, fontweight="bold", x=0.01, ha="left")
    return sheet
