"""The page's figures over runs: accuracy, curve, latency, corruptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import palette
from ..reading.found import Found
from ..rows import (
    PUBLISHED,
    Row,
    accuracy_rows,
    corruption_rows,
    curve_rows,
    latency_rows,
    mean_std,
)
from .html import Figure
from .style import SHARE, Looks, axis, bars, commands, figure, marker, plain, scatter

DASHES = ("solid", "dot", "dash", "dashdot")
RIVALS = "s^v<>*"  # markers of the other contestants, all of one colour
FEW = 8  # settings up to which half of the page's width is enough
MOST_TIMED = 4  # networks whose latencies are drawn


def figures_of_runs(found: Found) -> Iterator[Figure]:
    """All figures over runs that the files allow."""
    looks = Looks(found)
    for network in found.networks:
        yield from _accuracy(found, network, looks)
        yield from _curve(found, network, looks)
    yield from _latency(found, looks)
    for network in found.networks:
        yield from _corruptions(found, network, looks)


def _split(rows: list[Row], name: str) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(str(row[name]), []).append(row)
    return parts


def _accuracy(found: Found, network: str, looks: Looks) -> Iterator[Figure]:
    rows = accuracy_rows(found, network)
    ours = [row for row in rows if row["counted"] != PUBLISHED]
    published = [row for row in rows if row["counted"] == PUBLISHED]
    if not ours:
        return
    parts = sorted(_split(ours, "method").items(), key=lambda item: item[0].startswith("dynamic"))
    traces = [*_published(published, looks)]
    for method, part in parts:  # ours last, so that they lie on top
        runs = [f"{row['runs']} run{'s' if row['runs'] > 1 else ''}" for row in part]
        told = [f"{row['setting'] or method}, {n}" for row, n in zip(part, runs, strict=True)]
        traces.append(
            scatter(
                method,
                [row["reduction"] for row in part],
                [row["top1"] for row in part],
                mode="markers",
                cliponaxis=False,
                marker=looks.marker(method),
                error_x=bars([row["reduction_std"] for row in part]),
                error_y=bars([row["top1_std"] for row in part]),
                customdata=list(map(plain, told)),
                hovertemplate="%{customdata}<br>%{y:.2%} at %{x:.1%} fewer<extra></extra>",
            )
        )
    dense = next((row["top1"] for row in ours if row["method"] == "dense"), None)
    line = {"color": "@soft", "width": 1, "dash": "dot"}
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": dense, "y1": dense}
    caption = ["Each point is a setting, the mean of its runs, bars one standard deviation."]
    if dense is not None:
        caption.append("The dotted line is the dense network.")
    caption.append("Reductions are of executed multiply-accumulates, predictors included.")
    if published:
        caption.append("Hollow: published, counted as each paper counts, which flatters.")
    yield figure(
        f"accuracy {network}",
        f"Accuracy against work saved: {network}",
        " ".join(caption),
        rows=rows,
        traces=traces,
        layout={
            "xaxis": axis("reduction of executed MACs", rangemode="tozero", **SHARE),
            "yaxis": axis("top-1 accuracy, test images", **(SHARE | {"tickformat": ".1%"})),
            "shapes": [] if dense is None else [across | {"line": line, "layer": "below"}],
            "hovermode": "closest",
            "height": 430 if len(rows) > FEW else 380,
        },
        made_by=commands(found, network),
        wide=len(rows) > FEW,
    )


def _published(rows: list[Row], looks: Looks) -> Iterator[dict[str, Any]]:
    """Published rows: the paper's own, and those of others, each with its name beside it."""
    rows = sorted(rows, key=lambda row: row["reduction"])
    above = {id(row): place % 2 == 0 for place, row in enumerate(rows)}  # names out of the way
    own = [row for row in rows if row["method"].startswith("FTWT")]
    others = [row for row in rows if not row["method"].startswith("FTWT")]
    for name, part in (("the paper", own), ("other methods, published", others)):
        if part:
            yield scatter(
                name,
                [row["reduction"] for row in part],
                [row["top1"] for row in part],
                mode="markers+text",
                text=[plain(row["setting"]) for row in part],
                textposition=[f"{'top' if above[id(row)] else 'bottom'} center" for row in part],
                textfont={"size": 10, "color": "@soft"},
                cliponaxis=False,
                marker=looks.marker(part[0]["method"], hollow=True),
                error_x=bars([row["reduction_std"] for row in part]),
                error_y=bars([row["top1_std"] for row in part]),
                customdata=[plain(row["source"]) for row in part],
                hovertemplate="%{text}<br>%{y:.2%} at %{x:.1%} fewer<br>%{customdata}"
                "<extra></extra>",
            )


def _curve(found: Found, network: str, looks: Looks) -> Iterator[Figure]:
    rows = curve_rows(found, network)
    if not rows:
        return
    traces = []
    lines = _split([row for row in rows if row["kind"] == "curve"], "setting")
    for name, part in lines.items():
        traces.append(
            scatter(
                "estimate" if len(lines) == 1 else f"estimate {name}",
                [row["r"] for row in part],
                [row["reduction"] for row in part],
                mode="lines",
                line={"color": "@soft", "width": 2},
            )
        )
    for method, part in _split([row for row in rows if row["kind"] != "curve"], "method").items():
        for kind, points in _split(part, "kind").items():
            traces.append(
                scatter(
                    f"{method}, {kind}",
                    [row["r"] for row in points],
                    [row["reduction"] for row in points],
                    mode="markers",
                    marker=looks.marker(method, hollow=kind == "predicted"),
                    error_y=bars([row["reduction_std"] for row in points]),
                    customdata=[plain(row["setting"]) for row in points],
                    hovertemplate=f"%{{customdata}}: {kind} %{{y:.1%}}<br>r = %{{x:.3f}}"
                    "<extra></extra>",
                )
            )
    made = [str(curve.provenance.get("command", "")) for curve in found.curves]
    low = max(0.0, min(row["r"] for row in rows) - 0.05)
    yield figure(
        f"curve {network}",
        f"r and what it saves: {network}",
        "The line is the estimate from one pass before any training; hollow markers are what it "
        "predicted for a setting, full ones what the trained network achieved on test images."
        if lines
        else "Hollow markers are what the estimate predicted for a setting before any training, "
        "full ones what the trained network achieved on test images.",
        rows=rows,
        traces=traces,
        layout={
            "xaxis": axis("r, share of heatmap mass to keep", range=[low, 1.01]),
            "yaxis": axis("reduction of executed MACs", rangemode="tozero", **SHARE),
            "hovermode": "closest",
        },
        made_by=[*made, *commands(found, network)],
    )


def timed(found: Found) -> dict[str, list[Row]]:
    """Latencies of single images on one thread, by network: those of runs that are shown first."""
    rows = [row for row in latency_rows(found) if row["batch"] == 1]
    alone = _split([row for row in rows if row["threads"] == 1] or rows, "network")
    known = {*found.networks}
    order = sorted(alone, key=lambda name: found.run(name) is None and name not in known)
    return {name: alone[name] for name in order}


def _latency(found: Found, looks: Looks) -> Iterator[Figure]:
    for network, part in list(timed(found).items())[:MOST_TIMED]:
        images = [row for row in part if row["kind"] == "image"]
        others = [row for row in part if row["kind"] == "contestant"]
        traces = []
        if images:
            traces.append(
                scatter(
                    "an image, ftwt gated",
                    [row["macs"] / 1e6 for row in images],
                    [row["latency_ms"] for row in images],
                    mode="markers",
                    marker=marker(palette.DYNAMIC[0], size=5, line={"width": 0}, opacity=0.55),
                    hovertemplate="%{x:.2f} M MACs<br>%{y:.3f} ms<extra></extra>",
                )
            )
        for number, (name, points) in enumerate(_split(others, "name").items()):
            ours, gated = name.startswith("ftwt"), name == "ftwt gated"
            colour = palette.DYNAMIC[0] if gated else palette.DENSE if ours else palette.OTHERS
            low = [max(row["latency_ms"] - row["low_ms"], 0) for row in points]
            high = [max(row["high_ms"] - row["latency_ms"], 0) for row in points]
            traces.append(
                scatter(
                    name,
                    [row["macs"] / 1e6 for row in points],
                    [row["latency_ms"] for row in points],
                    mode="markers",
                    marker=marker(colour, "o" if gated else "D" if ours else RIVALS[number % 6]),
                    error_y=bars(high, symmetric=False, arrayminus=low),
                    hovertemplate="%{x:.2f} M MACs<br>%{y:.3f} ms",
                )
            )
        forced = " The gates keep a share that is drawn by lot." if part[0]["forced"] else ""
        benches = [bench for bench in found.benchmarks if bench.network == network]
        yield figure(
            f"latency {network}",
            f"Latency against work: {network}",
            "One image at a time. Small points are single images on the gated engine; the others "
            f"are medians of each contestant, bars their quartiles.{forced}",
            rows=part,
            traces=traces,
            layout={
                "xaxis": axis("executed MACs, millions", rangemode="tozero"),
                "yaxis": axis("latency, ms", rangemode="tozero"),
                "hovermode": "closest",
            },
            made_by=[str(bench.provenance.get("command", "")) for bench in benches],
        )


def _corruptions(found: Found, network: str, looks: Looks) -> Iterator[Figure]:
    rows = corruption_rows(found, network)
    if not rows:
        return
    named = [row | {"who": f"{row['method']}, {row['setting']}".strip(", ")} for row in rows]
    traces = []
    for place, value in ((1, "top1"), (2, "reduction")):
        for number, (who, part) in enumerate(_split(named, "who").items()):
            by_severity: dict[int, list[float]] = {}
            for row in part:
                by_severity.setdefault(row["severity"], []).append(row[value])
            severities = sorted(by_severity)
            means = [mean_std(by_severity[s])[0] for s in severities]
            traces.append(
                scatter(
                    who,
                    severities,
                    means,
                    mode="lines+markers",
                    marker=looks.marker(part[0]["method"], size=8),
                    line={
                        "color": looks.colour(part[0]["method"]),
                        "width": 2,
                        "dash": DASHES[number % len(DASHES)],
                    },
                    yaxis="y" if place == 1 else "y2",
                    xaxis="x" if place == 1 else "x2",
                    legendgroup=plain(who),
                    showlegend=place == 1,
                    hovertemplate="severity %{x}: %{y:.2%}<extra>" + plain(who) + "</extra>",
                )
            )
    yield figure(
        f"corruptions {network}",
        f"On corrupted images: {network}",
        "Left, accuracy; right, work saved: means over all corruptions at each severity; 0 is the "
        "clean test set. The data hold each corruption.",
        rows=rows,
        traces=traces,
        layout={
            "xaxis": axis("severity", domain=[0, 0.44], dtick=1),
            "xaxis2": axis("severity", domain=[0.56, 1], dtick=1),
            "yaxis": axis("top-1 accuracy", **SHARE),
            "yaxis2": axis("reduction", anchor="x2", **SHARE),
        },
        made_by=[str(file.provenance.get("command", "")) for file in found.corruptions],
        wide=True,
    )
