"""Which figures and tables there are files for: the same list for the page and for papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..reading.found import Found
from ..reading.records import Log, Run
from ..rows import (
    EXECUTED,
    Row,
    accuracy_rows,
    compute_rows,
    contest_rows,
    corruption_rows,
    curve_rows,
    joint_rows,
    latency_rows,
    summary_rows,
)
from ..rows_of_run import (
    Subject,
    class_rows,
    extreme_rows,
    heatmap_rows,
    image_rows,
    recording_of,
    subjects,
    training_rows,
    unit_rows,
    work_rows,
)
from .contest import contest
from .images import classes, extremes, heatmaps, work
from .layers import core_filters, keep_ratios, training
from .results import accuracy, corruptions, curve, latency
from .style import Figure


@dataclass(frozen=True)
class Sheet:
    """A figure or a table of a report, to be made when it is needed.

    Args:
        name: Of its files, without an ending.
        title: What it shows.
        rows: Makes its data; a figure's first, where it has two kinds.
        draw: Makes the figure; None for a table.
        made_by: The commands that made the files it shows.
        caption: How to read the figure; empty where the page shows its data otherwise.
        wide: Whether it needs the page's whole width.
    """

    name: str
    title: str
    rows: Callable[[], list[Row]]
    draw: Callable[[], Figure] | None = None
    made_by: tuple[str, ...] = ()
    caption: str = ""
    wide: bool = False


def sheets(found: Found) -> list[Sheet]:
    """All figures and tables that there are files for, in the order in which one reads them."""
    listed = [*sheets_of_runs(found), *sheets_of_timings(found)]
    for subject in subjects(found):
        listed += sheets_of(subject)
    listed += [_training(log, ()) for log in found.logs if log.history]
    return [*listed, *_tables(found)]


def sheets_of_runs(found: Found) -> Iterator[Sheet]:
    """Figures in which all runs of a network stand together."""
    for network in found.networks:
        commands = _commands(one for one in (*found.runs, *found.pruned) if one.network == network)
        rows = accuracy_rows(found, network)
        caption = ["Each point is a setting, the mean of its runs; bars: one standard deviation."]
        if any(row["method"] == "dense" for row in rows):
            caption.append("The dashed line is the dense network.")
        caption.append("Reductions are of executed multiply-accumulates, predictors included.")
        if any(row["counted"] != EXECUTED for row in rows):
            caption.append("Hollow: published, counted as each paper counts, which flatters.")
        yield Sheet(
            f"accuracy-{network}",
            f"{network}: accuracy against reduction",
            partial(accuracy_rows, found, network),
            partial(accuracy, found, network),
            commands,
            " ".join(caption),
        )
        if curve_rows(found, network):
            yield Sheet(
                f"curve-{network}",
                f"{network}: reduction against r, predicted and achieved",
                partial(curve_rows, found, network),
                partial(curve, found, network),
                _commands(found.curves) + commands,
                "Lines: the estimate, from one pass before any training. Hollow: what it predicted "
                "for a setting. Full: what the trained network achieved on test images.",
            )
    for network in dict.fromkeys(str(file.name) for file in found.contests):
        yield Sheet(
            f"contest-{network}",
            f"{network}: accuracy against milliseconds",
            partial(contest_rows, found, network),
            partial(contest, found, network),
            _commands(file for file in found.contests if file.name == network),
            "Each mark is one way of running the network, one image at a time on one thread, all "
            "timed in turns. Full: eight bits; half: bfloat16; hollow: float32. The line joins "
            "those that none is both as fast and more accurate than.",
            wide=True,
        )
    for network in dict.fromkeys(file.result.network for file in found.corruptions):
        yield Sheet(
            f"corruptions-{network}",
            f"{network}: accuracy under corruption",
            partial(corruption_rows, found, network),
            partial(corruptions, found, network),
            _commands(file for file in found.corruptions if file.name == network),
            "Above: means over all corruptions at each severity; 0 is the clean test set. Below: "
            "means over the severities of each corruption.",
            wide=True,
        )


def sheets_of_timings(found: Found) -> list[Sheet]:
    """A figure of latency for each network and number of threads; networks of runs first."""
    known = {*found.networks}
    timings = {(one.result.network, one.result.threads): one.result for one in found.benchmarks}
    order = sorted(timings, key=lambda one: found.run(one[0]) is None and one[0] not in known)
    return [
        Sheet(
            f"latency-{network}-threads{threads}",
            f"{network}: latency against MACs, threads: {threads}",
            partial(_timed, found, network, threads),
            partial(latency, found, network, threads),
            _commands(
                one
                for one in found.benchmarks
                if (one.result.network, one.result.threads) == (network, threads)
            ),
            "Small points: single images on our engine with gates. Other marks: medians over "
            "rounds, bars their quartiles. Dashed: latency in proportion to MACs."
            + (
                ""
                if timings[network, threads].forced_keep is None
                else " The gates keep a share that is drawn by lot."
            ),
        )
        for network, threads in order
    ]


def _timed(found: Found, network: str, threads: int) -> list[Row]:
    return [
        row for row in latency_rows(found) if (row["network"], row["threads"]) == (network, threads)
    ]


def sheets_of(subject: Subject) -> Iterator[Sheet]:
    """Figures and tables about one run, pruned network or recording."""
    name = subject.name
    commands = _commands([subject])
    recorded = getattr(subject, "recording_path", name) is not None
    if recorded:
        recording = recording_of(subject)
        commands += tuple(filter(None, [recording.provenance.get("command")]))
        gated = bool(recording.units)
    else:
        gated = bool(unit_rows(subject))
    if gated:
        below = " At the right: the layer's share of the dense network's MACs." if recorded else ""
        yield Sheet(
            f"keep-{name}",
            f"{name}: filters computed in each layer",
            partial(unit_rows, subject),
            partial(keep_ratios, subject),
            commands,
            "Share of a layer's filters that are computed: mean over images, bars one standard "
            f"deviation. Without a bar, every image takes as many.{below}",
        )
        yield Sheet(
            f"core-{name}",
            f"{name}: filters that fire always, sometimes, never",
            partial(unit_rows, subject),
            partial(core_filters, subject),
            commands,
            "Filters that fire for every image (core), for some, and for none. Where all fire "
            "always or never, the mask does not depend on the image.",
        )
    if isinstance(subject, Run) and subject.history:
        yield _training(subject, commands)
    if not recorded:
        return
    # What is held is the subject, not its recording, of which there may be many.
    if recording.dense_heatmaps and len(recording.shown):
        yield Sheet(
            f"heatmaps-{name}",
            f"{name}: heatmaps, dense and dynamic",
            lambda: heatmap_rows(recording_of(subject)),
            partial(heatmaps, subject),
            commands,
        )
    yield Sheet(
        f"work-{name}",
        f"{name}: the work for each image",
        lambda: work_rows(recording_of(subject)),
        partial(work, subject),
        commands,
        f"How the {len(recording):,} recorded images spread over executed MACs; the dense network "
        f"takes {recording.dense_macs / 1e6:.2f} M for each.",
    )
    yield Sheet(
        f"classes-{name}",
        f"{name}: the work for each class",
        lambda: class_rows(recording_of(subject)),
        partial(classes, subject),
        commands,
        "Dot: the median over the class's images. Thick line: the middle half of them. Thin line: "
        "the middle nine tenths. The cheapest class is at the bottom.",
    )
    yield Sheet(
        f"images-{name}",
        f"{name}: each image",
        lambda: image_rows(recording_of(subject)),
        made_by=commands,
    )
    if gated and len(recording.shown) > 1:
        yield Sheet(
            f"extremes-{name}",
            f"{name}: the cheapest and the dearest images",
            lambda: extreme_rows(recording_of(subject)),
            partial(extremes, subject),
            commands,
        )


def _training(subject: Run | Log, made: tuple[str, ...]) -> Sheet:
    return Sheet(
        f"training-{subject.name}",
        f"{subject.name}: the course of training",
        partial(training_rows, subject),
        partial(training, subject),
        made,
        "Losses, mask accuracy and reduction over the epochs, on training and held-out images.",
    )


def _tables(found: Found) -> Iterator[Sheet]:
    made = _commands(found.runs)
    if found.runs:
        yield Sheet(
            "table-summary",
            "all settings, mean and standard deviation over runs",
            partial(summary_rows, found),
            made_by=made,
        )
        yield Sheet(
            "table-compute", "hours of training", partial(compute_rows, found), made_by=made
        )
    if joint_rows(found):
        yield Sheet(
            "table-joint", "joint against decoupled", partial(joint_rows, found), made_by=made
        )


def _commands(files: Any) -> tuple[str, ...]:
    told = (getattr(file, "provenance", {}).get("command") for file in files)
    return tuple(dict.fromkeys(command for command in told if command))
