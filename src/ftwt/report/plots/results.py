"""Figures over runs: accuracy against reduction, the curve, latency, corruption."""

from __future__ import annotations

from ...records.contestants import DENSE, GATED, OUR
from .. import palette
from ..reading.found import Found
from ..rows import (
    EXECUTED,
    Row,
    accuracy_rows,
    corruption_rows,
    curve_rows,
    latency_rows,
)
from .style import Axes, Figure, drawing, figure, label_points, note, nothing, only, percent, tell

MOST_LABELS = 16  # of our own points; of more, the method alone is told
FLATTERED = "hollow: published, MACs counted as each paper counts, which flatters"


def looks(found: Found) -> dict[str, tuple[str, str]]:
    """Label of each method of the runs -> colour and marker."""
    methods = [part.method for part in found.groups]
    return {method.label: (method.colour, method.marker) for method in methods}


def one_network(found: Found, network: str | None) -> str:
    """The network to draw: the one that is named, or the only or first one.

    Raises:
        ValueError: It is not among those that were found, or there is none.
    """
    if not found.networks:
        raise ValueError("no run and no pruned network among the files, so there is none to draw")
    if network is None:
        return found.networks[0]
    if network not in found.networks:
        raise ValueError(f"no network {network!r}; there are {', '.join(found.networks)}")
    return network


@drawing
def accuracy(found: Found, network: str | None = None) -> Figure:
    """Draw accuracy against executed reduction, with published rows as labelled hollow markers.

    Args:
        found: What `ftwt.report.read` found.
        network: Which architecture; the first if not given.

    Returns:
        A figure; its data is `rows.accuracy_rows`. Points are means over seeds, error bars
        standard deviations.

    Raises:
        ValueError: There is no such network.
    """
    network = one_network(found, network)
    rows, known = accuracy_rows(found, network), looks(found)
    sheet = figure(height=3.7)
    axes = sheet.subplots()
    labelled: list[tuple[float, float, str]] = []
    few = sum(row["counted"] == EXECUTED for row in rows) <= MOST_LABELS
    for row in rows:
        colour, marker = palette.look(row["method"], known)
        x, y = 100 * row["reduction"], 100 * row["top1"]
        own = row["counted"] == EXECUTED
        if row["method"] == "dense":
            axes.axhline(y, color=colour, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.errorbar(x, y, xerr=_bar(row["reduction_std"]), yerr=_bar(row["top1_std"]),
                      fmt="none", ecolor=colour, elinewidth=0.8, zorder=2)  # fmt: skip
        (mark,) = axes.plot(
            x, y, marker, color=colour, markerfacecolor=colour if own else "white",
            markeredgewidth=0.9, markersize=8 if marker == "*" else 5.5 if own else 5,
            zorder=4 if own else 3, label=row["method"] if own else None,
        )  # fmt: skip
        name = ", ".join(word for word in (row["method"], row["setting"]) if word)
        tell(mark, f"{name}: {y:.2f}% at {x:.1f}% fewer MACs")
        labelled.append((x, y, row["setting"] if not own or few else ""))
    axes.margins(x=0.12, y=0.12)
    axes.set_xlim(left=min(-2.0, axes.get_xlim()[0]))
    label_points(axes, labelled, lines=[y for (_, y, _), row in zip(labelled, rows, strict=True)
                                        if row["method"] == "dense"])  # fmt: skip
    axes.set_xlabel("reduction of MACs")
    axes.set_ylabel("top-1 accuracy")
    percent(axes.xaxis)
    percent(axes.yaxis)
    axes.set_title(network)
    _legend_once(axes, loc="lower left")
    caption = "filled: executed MACs, predictors included; bars: standard deviation over seeds"
    published = any(row["counted"] != EXECUTED for row in rows)
    note(sheet, f"{caption}\n{FLATTERED}" if published else caption)
    return sheet


def _bar(std: float | None) -> float | None:
    return None if std is None else 100 * std


def _legend_once(axes: Axes, **options: object) -> None:
    """A legend that names each method once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.legend(once.values(), once.keys(), **options)


@drawing
def curve(found: Found, network: str | None = None) -> Figure:
    """Draw reduction against r: the estimate's curve, and what runs predicted and achieved.

    Args:
        found: What `ftwt.report.read` found.
        network: Which architecture; the first if not given.

    Returns:
        A figure; its data is `rows.curve_rows`. A predicted point is hollow, an achieved one
        filled, and a line joins those of one setting.

    Raises:
        ValueError: There is no such network.
    """
    network = one_network(found, network)
    rows, known = curve_rows(found, network), looks(found)
    sheet = figure(height=3.4)
    axes = sheet.subplots()
    if not rows:
        nothing(axes, "no estimate and no dynamic run")
        return sheet
    for setting in dict.fromkeys(row["setting"] for row in rows if row["kind"] == "curve"):
        mine = [row for row in rows if row["kind"] == "curve" and row["setting"] == setting]
        r = [row["r"] for row in mine]
        for name, line, label in (
            ("reduction", "-", "estimate, executed MACs"),
            ("published_reduction", ":", "estimate, as the paper counts"),
        ):
            axes.plot(r, [100 * row[name] for row in mine], line, color=palette.INK, linewidth=1.1,
                      label=label)  # fmt: skip
    points = [row for row in rows if row["kind"] != "curve"]
    for row in points:
        colour, marker = palette.look(row["method"], known)
        filled = row["kind"] == "achieved"
        if filled and row["asked"] is not None:
            marker = "P"
        axes.errorbar(row["r"], 100 * row["reduction"], yerr=_bar(row["reduction_std"]),
                      fmt="none", ecolor=colour, elinewidth=0.8, zorder=2)  # fmt: skip
        (mark,) = axes.plot(row["r"], 100 * row["reduction"], marker, color=colour, zorder=3,
                            markerfacecolor=colour if filled else "white",
                            label=f"{row['method']}: {_how(row)}")  # fmt: skip
        told = f"{row['kind']} {100 * row['reduction']:.1f}% at r = {row['r']:.3f}"
        tell(mark, f"{row['method']} {row['setting']}: {told}")
    for low, high in zip(points, points[1:], strict=False):
        same = all(low[name] == high[name] for name in ("method", "setting", "r"))
        if same and (low["kind"], high["kind"]) == ("predicted", "achieved"):
            colour, _ = palette.look(low["method"], known)
            axes.plot([low["r"]] * 2, [100 * low["reduction"], 100 * high["reduction"]],
                      color=colour, linewidth=0.8, zorder=2)  # fmt: skip
    if points and len(points) < len(rows):
        low = min(row["r"] for row in points)
        axes.set_xlim(max(0.0, min(0.5, low - 0.1)), 1.01)
    axes.set_xlabel("r, the share of the heatmap mass that masks keep")
    axes.set_ylabel("reduction of MACs")
    percent(axes.yaxis)
    axes.set_title(network)
    _legend_once(axes, loc="best")
    note(
        sheet, "where a budget steered r, r is its last value; bars: standard deviation over seeds"
    )
    return sheet


def _how(row: Row) -> str:
    if row["kind"] == "predicted":
        return "predicted"
    return "achieved" if row["asked"] is None else "achieved, steered to a budget"


@drawing
def latency(found: Found, network: str | None = None, threads: int | None = None) -> Figure:
    """Draw latency against executed MACs for a network that was timed.

    Args:
        found: What `ftwt.report.read` found.
        network: As its benchmark calls it; the first if not given.
        threads: Of which timings; the fewest if not given.

    Returns:
        A figure; its data is `rows.latency_rows`: an image is a small point, a contestant a mark
        with its quartiles, and a line leads from our own dense engine to the origin (latency in
        proportion to MACs).

    Raises:
        ValueError: Nothing was timed, or not this network, or not with so many threads.
    """
    rows = latency_rows(found)
    if not rows:
        raise ValueError("no benchmark among the files; make one with `ftwt bench RUN --output F`")
    names = list(dict.fromkeys(row["network"] for row in rows))
    network = names[0] if network is None else network
    if network not in names:
        raise ValueError(f"no timings of {network!r}; there are {', '.join(names)}")
    rows = [row for row in rows if row["network"] == network]
    known = sorted({row["threads"] for row in rows})
    threads = known[0] if threads is None else threads
    if threads not in known:
        raise ValueError(f"threads={threads}: timings were made with {known}")
    rows = [row for row in rows if row["threads"] == threads]
    sheet = figure(height=3.4)
    axes = sheet.subplots()
    images = [row for row in rows if row["kind"] == "image"]
    (points,) = axes.plot(
        [row["macs"] / 1e6 for row in images], [row["latency_ms"] for row in images], "o",
        color=palette.DYNAMIC[0], markersize=2.4, alpha=0.5, markeredgewidth=0, zorder=2,
        label="ours, single images with gates" if images else None,
    )  # fmt: skip
    tell(points, *(_time(row, "an image") for row in images))
    others = [row["name"] for row in rows if row["kind"] == "contestant"]
    rivals = [name for name in dict.fromkeys(others) if not name.startswith(OUR)]
    for row in (row for row in rows if row["kind"] == "contestant"):
        name, x, y = row["name"], row["macs"] / 1e6, row["latency_ms"]
        if name == DENSE:
            axes.plot([0, x], [0, y], color=palette.FAINT, linewidth=0.7, linestyle=(0, (4, 3)),
                      zorder=1)  # fmt: skip
        colour, marker, face = _contestant(name, rivals)
        reach = [[max(y - row["low_ms"], 0)], [max(row["high_ms"] - y, 0)]]
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=colour, elinewidth=0.8, zorder=3)
        (mark,) = axes.plot(x, y, marker, color=colour, markersize=5, markerfacecolor=face,
                            zorder=4, label=name)  # fmt: skip
        tell(mark, _time(row, name))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("latency, ms an image")
    axes.set_xlabel("executed MACs, millions")
    axes.set_title(network)
    sheet.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    note(sheet, f"threads: {threads}; dashed: in proportion to MACs, from our dense engine")
    return sheet


def _contestant(name: str, rivals: list[str]) -> tuple[str, str, str]:
    """Colour, marker and face of a contestant; the rivals' marks are hollow."""
    if name == GATED:
        return palette.DYNAMIC[0], "o", palette.DYNAMIC[0]
    if name.startswith(OUR):
        return palette.DENSE, "D", palette.DENSE
    return palette.OTHERS, "s^v<>*"[rivals.index(name) % 6], "white"


def _time(row: Row, name: str) -> str:
    return f"{name}: {row['latency_ms']:.3f} ms, {row['macs'] / 1e6:.2f} M MACs"


@drawing
def corruptions(found: Found, network: str | None = None) -> Figure:
    """Draw accuracy and reduction on corrupted test images: by severity, and by corruption.

    Args:
        found: What `ftwt.report.read` found.
        network: Which architecture; the first if not given.

    Returns:
        A figure; its data is `rows.corruption_rows`. Above, means over corruptions for each
        severity (0: clean); below, means over severities for each corruption.

    Raises:
        ValueError: There is no such network, or no file about it.
    """
    network = one_network(found, network) if network is None else network
    rows, known = corruption_rows(found, network), looks(found)
    if not rows:
        raise ValueError(f"no file about {network} on corrupted images")
    order = ["dense", *known]
    series = sorted(
        dict.fromkeys((row["method"], row["setting"]) for row in rows),
        key=lambda one: order.index(one[0]) if one[0] in order else len(order),
    )
    names = sorted({row["corruption"] for row in rows} - {"clean"})
    sheet = figure(height=2.6 + 0.16 * len(names) + 0.8)
    upper, lower = sheet.subfigures(2, 1, height_ratios=(2.3, 0.16 * len(names) + 1.0))
    sides = (("top1", "top-1 accuracy"), ("reduction", "reduction of MACs"))
    for (name, words), above, below in zip(
        sides, upper.subplots(1, 2), lower.subplots(1, 2, sharey=True), strict=True
    ):
        for method, setting in series:
            mine = [r for r in rows if (r["method"], r["setting"]) == (method, setting)]
            colour, marker = palette.look(method, known)
            by_severity = _means(mine, "severity", name)
            label = ", ".join(word for word in (method, setting) if word)
            (line,) = above.plot(list(by_severity), [100 * v for v in by_severity.values()],
                                 marker=marker, color=colour, label=label)  # fmt: skip
            tell(line, *(f"{label}, severity {s}: {v:.2%}" for s, v in by_severity.items()))
            by_name = _means([r for r in mine if r["severity"]], "corruption", name)
            told = [(100 * by_name[n], i) for i, n in enumerate(names) if n in by_name]
            (points,) = below.plot(*zip(*told, strict=True), marker, color=colour)
            tell(points, *(f"{label}, {names[i]}: {v:.2f}%" for v, i in told))
        above.set_xlabel("severity (0: clean)")
        above.set_ylabel(words)
        percent(above.yaxis)
        percent(below.xaxis)
        below.set_xlabel("mean over severities")
        below.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
        below.set_ylim(len(names) - 0.5, -0.5)
        only(above, "y")
    sheet.suptitle(network, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    handles, labels = upper.axes[0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside upper right", ncols=min(3, len(labels)))
    return sheet


def _means(rows: list[Row], by: str, name: str) -> dict:
    """Mean of a figure for each value of a column, in order."""
    values: dict = {}
    for row in rows:
        values.setdefault(row[by], []).append(row[name])
    return {key: sum(found) / len(found) for key, found in sorted(values.items())}
