"""The picture that decides: accuracy against milliseconds, in one panel a network."""

from __future__ import annotations

from ...records.contest import OURS
from .. import palette
from ..reading.found import Found
from ..rows import Row, contest_rows
from .style import WIDTH, Axes, Figure, drawing, figure, note, percent, tell

MARKERS = {OURS: "o", "openvino": "s", "onnxruntime": "^"}  # by runtime
FILLS = {"f32": "none", "bf16": "left", "int8": "full"}  # by precision
COLOURS = {  # by what the name of a pruning begins with
    "dense": palette.DENSE,
    "gates": palette.DYNAMIC[0],
    "fixed mask": palette.TWIN,
    "second look": palette.DYNAMIC[2],
    "Torch-Pruning": palette.STATIC[0],
}
ACROSS = 2  # panels


@drawing
def contest(found: Found, network: str | None = None) -> Figure:
    """Draw accuracy against milliseconds for one network.

    Args:
        found: What `ftwt.report.read` found.
        network: As its file calls it; the first if not given.

    Returns:
        A figure; its data is `rows.contest_rows`.

    Raises:
        ValueError: There is no such file, or not of this network.
    """
    network = _networks(found, network)[0]
    sheet = figure(height=3.9)
    axes = sheet.subplots()
    _draw(axes, contest_rows(found, network))
    axes.set_title(network)
    _legend(sheet, [axes])
    note(sheet, "one image at a time, one thread, all timed in turns; line: none is both as fast "
                "and more accurate")  # fmt: skip
    return sheet


@drawing
def contests(found: Found) -> Figure:
    """Draw the same for all networks, side by side.

    Args:
        found: What `ftwt.report.read` found.

    Returns:
        A figure; its data is `rows.contest_rows`, network by network.

    Raises:
        ValueError: There is no such file.
    """
    networks = _networks(found, None)
    down = -(-len(networks) // ACROSS)
    sheet = figure(width=1.6 * WIDTH, height=0.9 + 2.9 * down)
    panels = sheet.subplots(down, min(ACROSS, len(networks)), squeeze=False).ravel()
    for axes, network in zip(panels, networks, strict=False):
        _draw(axes, contest_rows(found, network))
        axes.set_title(network)
    for axes in panels[len(networks) :]:
        axes.set_axis_off()
    _legend(sheet, panels[: len(networks)])
    return sheet


def _networks(found: Found, network: str | None) -> list[str]:
    names = list(dict.fromkeys(str(file.name) for file in found.contests))
    if not names:
        raise ValueError("no contest among the files; make one with benchmarks/accuracy_latency.py")
    if network is not None and network not in names:
        raise ValueError(f"no contest of {network!r}; there are {', '.join(names)}")
    return names if network is None else [network]


def _draw(axes: Axes, rows: list[Row]) -> None:
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["latency_ms"])
    axes.plot(
        [row["latency_ms"] for row in front], [100 * row["top1"] for row in front],
        color=palette.FAINT, linewidth=0.8, zorder=1, drawstyle="steps-post",
    )  # fmt: skip
    for row in rows:
        x, y = row["latency_ms"], 100 * row["top1"]
        reach = [[max(x - row["low_ms"], 0)], [max(row["high_ms"] - x, 0)]]
        colour = _colour(row["pruning"])
        axes.errorbar(x, y, xerr=reach, fmt="none", ecolor=colour, elinewidth=0.5, zorder=2)
        (mark,) = axes.plot(
            x, y, MARKERS.get(row["runtime"], "d"), color=colour, markersize=6, zorder=3,
            fillstyle=FILLS.get(row["precision"], "full"), markerfacecoloralt="white",
            markeredgewidth=0.9, label=f"{row['pruning']}, {row['runtime']} {row['precision']}",
        )  # fmt: skip
        tell(mark, f"{mark.get_label()}: {y:.2f}% in {x:.3f} ms")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if _first(value) in "25" else "")
    axes.set_xlabel("an image, ms")
    axes.set_ylabel("top-1 accuracy")
    axes.margins(0.08)
    percent(axes.yaxis)


def _first(value: float) -> str:
    return f"{value:e}"[0]


def _colour(pruning: str) -> str:
    known = next((name for name in COLOURS if pruning.startswith(name)), None)
    return palette.OTHERS if known is None else COLOURS[known]


def _legend(sheet: Figure, panels: list[Axes]) -> None:
    """Colours of prunings, shapes of runtimes, fillings of precisions."""
    marks = [line.get_label() for axes in panels for line in axes.lines]
    there = " ".join(str(mark) for mark in marks)

    def sample(label: str, marker: str, colour: str, fill: str) -> None:
        panels[0].plot([], [], marker, color=colour, label=label, fillstyle=fill,
                       markerfacecoloralt="white")  # fmt: skip

    handles = len(panels[0].lines)
    for name, colour in COLOURS.items():
        if name in there:
            sample(name, "o", colour, "full")
    for name, marker in MARKERS.items():
        if f", {name} " in there:
            sample(name, marker, palette.FAINT, "none")
    for name, fill in FILLS.items():
        if there.find(f" {name}") >= 0:
            sample(name, "o", palette.FAINT, fill)
    made = panels[0].lines[handles:]
    sheet.legend(made, [line.get_label() for line in made], loc="outside upper left", ncols=6)
