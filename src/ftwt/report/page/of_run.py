"""The page's figures about one run, demo or recording: layers, training, classes, images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...records.recording import Recording
from .. import palette
from ..reading.records import Demo, Run
from ..rows import Row
from ..rows_of_run import Subject, class_rows, training_rows, unit_rows
from .html import Figure
from .style import SHARE, axis, bars, figure, marker, plain, scatter, themed

BINS = 40
MANY_EPOCHS = 16  # from here on, a curve has no markers
MANY_LAYERS = 24  # from here on, a figure of layers takes the page's width


def figures_of_run(subject: Subject) -> Iterator[Figure]:
    """All figures about a run, demo or recording that its files allow."""
    made = [str(getattr(subject, "provenance", {}).get("command", ""))]
    recording = subject.recording()
    if recording is not None:
        made.append(str(recording.provenance.get("command", "")))
    layers = unit_rows(subject if recording is None else recording)
    if layers:
        yield _keep(subject.name, layers, made)
        yield _core(subject.name, layers, made)
    if isinstance(subject, Run | Demo) and subject.history:
        yield from _training(subject, made)
    if recording is not None and recording.units:
        yield _classes(subject.name, recording, made)
        yield _work(subject.name, recording, made)


def _bar(name: str, xs: list[Any], ys: list[Any], colour: str, **settings: Any) -> dict[str, Any]:
    look = {"color": themed(colour), "line": {"width": 0}}
    return {"type": "bar", "name": name, "x": xs, "y": ys, "marker": look, **settings}


def _layers() -> dict[str, Any]:
    """The axis of layers: each by its name."""
    return {"type": "category", "tickangle": -60, "tickfont": {"size": 10}, "title": {"text": ""}}


def _keep(name: str, rows: list[Row], made: list[str]) -> Figure:
    names = [plain(row["unit"]) for row in rows]
    shares = rows[0]["macs_share"] is not None
    traces = [
        scatter(
            "filters computed",
            names,
            [row["keep"] for row in rows],
            mode="markers",
            marker=marker(palette.DYNAMIC[0], size=8),
            error_y=bars([row["keep_std"] for row in rows]),
            hovertemplate="%{x}: %{y:.1%} of the filters<extra></extra>",
        )
    ]
    layout: dict[str, Any] = {
        "xaxis": _layers(),
        "yaxis": axis("filters computed", range=[0, 1.03], **SHARE),
        "height": 380,
    }
    if shares:
        about = "%{x}: %{y:.1%} of the dense MACs<extra>"
        for what, key, colour in (
            ("convolution", "macs_share", palette.OTHERS),
            ("predictor", "predictor_share", palette.OKABE_ITO["vermillion"]),
        ):
            traces.append(
                _bar(
                    f"{what}, share of MACs",
                    names,
                    [row[key] for row in rows],
                    colour,
                    yaxis="y2",
                    hovertemplate=f"{about}{what}</extra>",
                )
            )
        layout |= {
            "yaxis": axis("filters computed", domain=[0.42, 1], range=[0, 1.03], **SHARE),
            "yaxis2": axis("share of MACs", domain=[0, 0.32], **SHARE),
            "xaxis": _layers() | {"anchor": "y2"},
            "barmode": "stack",
            "legend": {"traceorder": "normal"},
            "height": 460,
        }
    below = (
        " Below, what share of the dense network's work the layer and its predictor are."
        if shares
        else ""
    )
    return figure(
        f"layers {name}",
        f"What each layer computes: {name}",
        "Share of a layer's filters that are computed, mean over images, bars one standard "
        f"deviation: where there are none, every image takes as many.{below}",
        rows=rows,
        traces=traces,
        layout=layout,
        made_by=made,
        wide=True,
    )


def _core(name: str, rows: list[Row], made: list[str]) -> Figure:
    names = [plain(row["unit"]) for row in rows]
    kinds = (
        ("always", palette.ALWAYS),
        ("sometimes", palette.SOMETIMES),
        ("never", palette.NEVER),
    )
    traces = [
        _bar(
            kind,
            names,
            [row[kind] / row["channels"] for row in rows],
            colour,
            customdata=[[row[kind], row["channels"]] for row in rows],
            hovertemplate=f"%{{x}}: %{{customdata[0]}} of %{{customdata[1]}} filters {kind}"
            "<extra></extra>",
        )
        for kind, colour in kinds
    ]
    return figure(
        f"core filters {name}",
        f"Core filters: {name}",
        "Filters that fire for every image (core), for some, and for none. Where all fire always "
        "or never, the mask does not depend on the image.",
        rows=rows,
        traces=traces,
        layout={
            "xaxis": _layers(),
            "yaxis": axis("share of filters", range=[0, 1], **SHARE),
            "barmode": "stack",
            "legend": {"traceorder": "normal"},
            "bargap": 0.18,
            "height": 400,
        },
        made_by=made,
        wide=len(rows) > MANY_LAYERS,
    )


def _training(run: Run | Demo, made: list[str]) -> Iterator[Figure]:
    rows = training_rows(run)
    panels = (  # axis, title, of what: column, name, colour, dash
        (
            "y3",
            "loss",
            (
                ("task_loss", "task loss", palette.DENSE, "solid"),
                ("val_task_loss", "task loss, validation", palette.DENSE, "dot"),
                ("mask_loss", "mask loss", palette.OKABE_ITO["vermillion"], "solid"),
            ),
        ),
        (
            "y2",
            "accuracy",
            (
                ("val_accuracy", "accuracy, validation", palette.DYNAMIC[0], "dot"),
                ("mask_accuracy", "mask accuracy", palette.OKABE_ITO["reddish purple"], "solid"),
            ),
        ),
        (
            "y",
            "reduction",
            (
                ("reduction", "reduction", palette.OKABE_ITO["bluish green"], "solid"),
                (
                    "val_reduction",
                    "reduction, validation",
                    palette.OKABE_ITO["bluish green"],
                    "dot",
                ),
            ),
        ),
    )
    traces = []
    for place, _, curves in panels:
        for column, title, colour, dash in curves:
            known = [(row["epoch"], row[column]) for row in _finest(rows, column)]
            if known:
                traces.append(
                    scatter(
                        title,
                        [epoch for epoch, _ in known],
                        [value for _, value in known],
                        mode="lines+markers" if len(known) < MANY_EPOCHS else "lines",
                        marker={"color": themed(colour), "size": 5},
                        line={"color": themed(colour), "width": 2, "dash": dash},
                        yaxis=place,
                    )
                )
    if not traces:
        return
    yield figure(
        f"training {run.name}",
        f"Training: {run.name}",
        "Losses (logarithmic), accuracies and the reduction; dotted, on held-out images.",
        rows=rows,
        traces=traces,
        layout={
            "xaxis": axis("epoch", anchor="y"),
            "yaxis3": axis("loss", domain=[0.7, 1], type="log"),
            "yaxis2": axis("accuracy", domain=[0.35, 0.63], **SHARE),
            "yaxis": axis("reduction", domain=[0, 0.28], **SHARE),
            "height": 520,
        },
        made_by=made,
    )


def _finest(rows: list[Row], column: str) -> list[Row]:
    """The rows that know a figure: those of steps if there are any, else those of epochs."""
    known = [row for row in rows if row[column] is not None]
    steps = [row for row in known if row["kind"] == "step"]
    return steps or known


def _classes(name: str, recording: Recording, made: list[str]) -> Figure:
    rows = class_rows(recording)
    names = [plain(row["class"]) for row in rows]
    median = [row["median_macs"] / 1e6 for row in rows]

    def reach(low: str, high: str, **look: Any) -> dict[str, Any]:
        return {
            "type": "data",
            "symmetric": False,
            "array": [row[high] / 1e6 - m for row, m in zip(rows, median, strict=True)],
            "arrayminus": [m - row[low] / 1e6 for row, m in zip(rows, median, strict=True)],
            "color": themed(palette.DYNAMIC[0]),
            "width": 0,
            **look,
        }

    told = [
        f"{row['images']} images, {row['top1']:.1%} right, mean {row['mean_macs'] / 1e6:.2f} M"
        for row in rows
    ]
    shared = {
        "mode": "markers",
        "customdata": told,
        "hovertemplate": "%{y}: %{customdata}<extra></extra>",
    }
    small = marker(palette.DYNAMIC[0], size=8)
    return figure(
        f"classes {name}",
        f"Work for each class: {name}",
        "Point: the median over the class's images; thick line: the middle half of them; thin "
        "line: the middle nine tenths. The cheapest class is at the bottom.",
        rows=rows,
        traces=[
            scatter("5% to 95%", median, names, error_x=reach("p5_macs", "p95_macs", thickness=1.2),
                    marker=small, **shared),
            scatter("25% to 75%", median, names, error_x=reach("p25_macs", "p75_macs", thickness=5),
                    marker=small, **shared),
        ],
        layout={
            "xaxis": axis("executed MACs, millions"),
            "yaxis": {"type": "category", "title": {"text": ""}},
            "showlegend": False,
            "height": max(240, 90 + 26 * len(rows)),
        },
        made_by=made,
    )  # fmt: skip


def _work(name: str, recording: Recording, made: list[str]) -> Figure:
    rows = work_rows(recording)
    middle = [(row["from_macs"] + row["to_macs"]) / 2e6 for row in rows]
    wide = [(row["to_macs"] - row["from_macs"]) / 1e6 for row in rows]
    traces = [
        _bar(
            title,
            middle,
            [row[key] for row in rows],
            colour,
            width=wide,
            hovertemplate=f"%{{x:.2f}} M MACs: %{{y}} images<extra>{title}</extra>",
        )
        for title, key, colour in (
            ("guessed right", "right", palette.DYNAMIC[0]),
            ("guessed wrong", "wrong", palette.OTHERS),
        )
    ]
    return figure(
        f"work {name}",
        f"Work for each image: {name}",
        f"How many of the {len(recording):,} recorded images took how much; the dense network "
        f"takes {recording.dense_macs / 1e6:.2f} M for each.",
        rows=rows,
        traces=traces,
        layout={
            "xaxis": axis("executed MACs, millions"),
            "yaxis": axis("images"),
            "barmode": "stack",
            "legend": {"traceorder": "normal"},
            "bargap": 0.06,
            "height": max(240, 90 + 26 * len(recording.classes)),
        },
        made_by=made,
    )


def work_rows(recording: Recording) -> list[Row]:
    """How many images took how much: a row for each of 40 equal spans of executed MACs."""
    macs = recording.executed_macs.astype(np.float64)
    edges = np.histogram_bin_edges(macs, BINS)
    right, _ = np.histogram(macs[recording.correct], edges)
    wrong, _ = np.histogram(macs[~recording.correct], edges)
    return [
        {"from_macs": float(low), "to_macs": float(high), "right": int(r), "wrong": int(w)}
        for low, high, r, w in zip(edges[:-1], edges[1:], right, wrong, strict=True)
    ]
