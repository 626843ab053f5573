"""Figures about one run's layers and training: keep ratios, core filters, curves."""

from __future__ import annotations

from typing import Any

from .. import palette
from ..reading.records import Log, Run
from ..rows_of_run import Source, training_rows, unit_rows
from .style import WIDTH, Axes, Figure, drawing, figure, note, nothing, only, percent, tell

TALLEST = 9.5  # inches: a page


def _units(subject: Source) -> list[dict[str, Any]]:
    rows = unit_rows(subject)
    if not rows:
        raise ValueError(f"{subject.name} has no gates, so no layer has masks to show")
    return rows


def _height(layers: int) -> float:
    return min(TALLEST, 1.1 + 0.165 * layers)


def _layers(axes: Axes, rows: list[dict[str, Any]], height: float) -> None:
    """Name the layers at the left, the first on top."""
    room = 72 * (height - 1.1) / len(rows)  # points for a name
    axes.set_yticks(range(len(rows)), [row["unit"] for row in rows])
    axes.tick_params(axis="y", length=0, labelsize=min(7.0, 0.85 * room))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    only(axes, "x")


@drawing
def keep_ratios(subject: Source) -> Figure:
    """Draw each layer's keep ratio, and its spread over images, beside its share of the MACs.

    Args:
        subject: A run, pruned network or recording.

    Returns:
        A figure; its data is `rows_of_run.unit_rows`. Without a recording the shares of the MACs
        are not known, and their panel says so.

    Raises:
        ValueError: The network has no gates.
    """
    rows = _units(subject)
    height, places = _height(len(rows)), range(len(rows))
    sheet = figure(height=height)
    left, right = sheet.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    points, *_ = left.errorbar(
        [100 * row["keep"] for row in rows], places, xerr=[100 * row["keep_std"] for row in rows],
        fmt="o", color=palette.DYNAMIC[0], elinewidth=1.0, markersize=3.8,
    )  # fmt: skip
    tell(points, *(f"{row['unit']}: {row['keep']:.1%} ± {row['keep_std']:.1%}" for row in rows))
    left.set_xlim(0, 103)
    left.set_xlabel("filters computed, mean ± std over images")
    percent(left.xaxis)
    _layers(left, rows, height)
    left.set_title(subject.name)
    if any(row["macs_share"] is None for row in rows):
        nothing(right, "shares of the MACs\nneed a recording")
    else:
        own = [100 * row["macs_share"] for row in rows]
        cost = [100 * row["predictor_share"] for row in rows]
        grey, blue = palette.FAINT, palette.DYNAMIC[0]
        bars = (
            (right.barh(places, own, height=0.62, color=grey, label="convolution"), own),
            (
                right.barh(places, cost, left=own, height=0.62, color=blue, label="its predictor"),
                cost,
            ),
        )
        for kind, shares in bars:
            for bar, row, share in zip(kind, rows, shares, strict=True):
                tell(bar, f"{row['unit']}, {kind.get_label()}: {share:.1f}% of the dense MACs")
        right.set_xlabel("share of the dense MACs")
        right.tick_params(axis="y", length=0)
        right.spines["left"].set_visible(True)
        percent(right.xaxis)
        only(right, "x")
        right.set_xlim(0, 1.05 * max(a + b for a, b in zip(own, cost, strict=True)))
        sheet.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return sheet


@drawing
def core_filters(subject: Source) -> Figure:
    """Draw how many filters of each layer fire always (core), sometimes and never.

    Args:
        subject: A run, pruned network or recording.

    Returns:
        A figure; its data is `rows_of_run.unit_rows`.

    Raises:
        ValueError: The network has no gates.

    Source: figure 2 of the paper's supplement.
    """
    rows = _units(subject)
    height, places = _height(len(rows)), range(len(rows))
    sheet = figure(height=height)
    axes = sheet.subplots()
    start = [0] * len(rows)
    for name, colour in (
        ("always", palette.ALWAYS),
        ("sometimes", palette.SOMETIMES),
        ("never", palette.NEVER),
    ):
        counts = [row[name] for row in rows]
        bars = axes.barh(places, counts, left=start, height=0.72, color=colour, label=name)
        for bar, row in zip(bars, rows, strict=True):
            tell(bar, f"{row['unit']}: {row[name]} of {row['channels']} filters fire {name}")
        start = [a + b for a, b in zip(start, counts, strict=True)]
    _layers(axes, rows, height)
    axes.set_xlim(0, max(start) * 1.01)
    axes.set_xlabel("filters")
    axes.set_title(subject.name)
    sheet.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3,
                 title="over the test images, a filter fires", title_fontsize=7)  # fmt: skip
    return sheet


@drawing
def training(run: Run | Log) -> Figure:
    """Draw the course of a training: task loss, mask loss, mask accuracy, reduction.

    Args:
        run: A run, finished or not.

    Returns:
        A figure; its data is `rows_of_run.training_rows`.

    Raises:
        ValueError: There is no epoch yet.
    """
    rows = training_rows(run)
    if not any(row["kind"] == "epoch" for row in rows):
        raise ValueError(f"{run.name} has not finished an epoch, so there is no course to draw")
    sheet = figure(width=WIDTH, height=4.2)
    panels = sheet.subplots(2, 2, sharex=True).ravel()
    _course(panels[0], rows, "task_loss", "val_task_loss", "task loss", scale=1)
    _course(panels[1], rows, "mask_loss", None, "mask loss", scale=1)
    _course(panels[2], rows, "mask_accuracy", None, "mask accuracy", scale=100)
    _course(panels[3], rows, "reduction", "val_reduction", "reduction of MACs", scale=100)
    if isinstance(run, Run):
        for value, words, line in (
            (run.asked, "asked", "--"),
            (run.predicted, "predicted", ":"),
        ):
            if value is not None and run.kind == "dynamic":
                panels[3].axhline(100 * value, color=palette.INK, linestyle=line, linewidth=0.9,
                                  label=words)  # fmt: skip
    for axes in panels[2:]:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.lines:
            percent(axes.yaxis)
    for axes in panels:
        if axes.lines:
            axes.legend()
    panels[0].set_title(run.name)
    if any(row["task_loss"] is None and row["loss"] is not None for row in rows):
        note(sheet, "training's task loss is shown where the mask loss took no part in the loss")
    return sheet


def _course(
    axes: Axes,
    rows: list[dict[str, Any]],
    train: str,
    held_out: str | None,
    words: str,
    *,
    scale: int,
) -> None:
    """One figure of a training over its epochs; of training batches by steps, where it is known."""
    steps = any(row["kind"] == "step" and row[train] is not None for row in rows)
    blue = {"color": palette.DYNAMIC[0], "label": "training"}
    red = {"color": palette.DYNAMIC[2], "label": "validation", "marker": "s", "markersize": 3}
    drawn = False
    for kind, name, options in (
        ("step" if steps else "epoch", train, blue | ({} if steps else {"marker": "o"})),
        ("epoch", held_out, red),
    ):
        if name is None:
            continue
        mine = [row for row in rows if row["kind"] == kind and row[name] is not None]
        if mine:
            x, y = [row["epoch"] for row in mine], [scale * row[name] for row in mine]
            (line,) = axes.plot(x, y, **({"markersize": 3, "linewidth": 1.2} | options))
            if "marker" in options:
                tell(line, *(f"epoch {a:g}: {b:.4g}" for a, b in zip(x, y, strict=True)))
            drawn = True
    axes.set_ylabel(words)
    if not drawn:
        nothing(axes, f"no {words}: no targets")
