"""All figures for papers and tables as files: which there are, and their data beside them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from ...files.atomic import replacing
from ..reading.found import Found
from ..reading.records import Demo, Run
from ..rows import (
    Row,
    accuracy_rows,
    compute_rows,
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
)
from .images import extremes, heatmaps, work
from .layers import core_filters, keep_ratios, training
from .results import accuracy, corruptions, curve, latency
from .style import Figure, matplotlib, styled

Format = Literal["png", "svg", "pdf"]


@dataclass(frozen=True)
class Sheet:
    """A figure or a table of a report, to be made when it is needed.

    Args:
        name: Of its files, without an ending.
        title: What it shows.
        rows: Makes its data; a figure's first, where it has two kinds.
        draw: Makes the figure; None for a table.
        made_by: The commands that made the files it shows.
    """

    name: str
    title: str
    rows: Callable[[], list[Row]]
    draw: Callable[[], Figure] | None
    made_by: tuple[str, ...]


def sheets(found: Found) -> list[Sheet]:
    """All figures and tables that there are files for, in the order in which one reads them."""
    listed = [*_over_runs(found)]
    for subject in subjects(found):
        listed += _of_subject(subject)
    for log in found.logs:
        if log.history:
            listed.append(
                Sheet(f"training-{log.name}", f"{log.name}: the course of training",
                      partial(training_rows, log), partial(training, log), ())
            )  # fmt: skip
    return [*listed, *_tables(found)]


def _over_runs(found: Found) -> Iterator[Sheet]:
    for network in found.networks:
        runs = _commands(run for run in found.runs if run.network == network)
        demos = _commands(demo for demo in found.demos if demo.network == network)
        yield Sheet(
            f"accuracy-{network}",
            f"{network}: accuracy against reduction",
            partial(accuracy_rows, found, network),
            partial(accuracy, found, network),
            runs + demos,
        )
        if curve_rows(found, network):
            yield Sheet(
                f"curve-{network}",
                f"{network}: reduction against r, predicted and achieved",
                partial(curve_rows, found, network),
                partial(curve, found, network),
                _commands(found.curves) + runs + demos,
            )
    for network in dict.fromkeys(file.network for file in found.corruptions):
        yield Sheet(
            f"corruptions-{network}",
            f"{network}: accuracy under corruption",
            partial(corruption_rows, found, network),
            partial(corruptions, found, network),
            _commands(file for file in found.corruptions if file.network == network),
        )
    for threads in sorted({bench.threads for bench in found.benchmarks}):
        yield Sheet(
            f"latency-threads{threads}",
            f"latency against MACs, threads: {threads}",
            partial(_timed, found, threads),
            partial(latency, found, threads),
            _commands(bench for bench in found.benchmarks if bench.threads == threads),
        )


def _timed(found: Found, threads: int) -> list[Row]:
    return [row for row in latency_rows(found) if row["threads"] == threads]


def _of_subject(subject: Subject) -> Iterator[Sheet]:
    name = subject.name
    made = _commands([subject])
    if isinstance(subject, Run | Demo) and subject.history:
        yield Sheet(f"training-{name}", f"{name}: the course of training",
                    partial(training_rows, subject), partial(training, subject), made)  # fmt: skip
    recorded = not isinstance(subject, Run | Demo) or subject.recording_path is not None
    if recorded:
        recording = recording_of(subject)
        made += tuple(filter(None, [recording.provenance.get("command")]))
        gated = bool(recording.units)
    else:
        gated = bool(unit_rows(subject))
    if gated:
        yield Sheet(f"keep-{name}", f"{name}: filters computed in each layer",
                    partial(unit_rows, subject), partial(keep_ratios, subject), made)  # fmt: skip
        yield Sheet(f"core-{name}", f"{name}: filters that fire always, sometimes, never",
                    partial(unit_rows, subject), partial(core_filters, subject), made)  # fmt: skip
    if not recorded:
        return
    # What is held is the subject, not its recording, of which there may be many.
    if recording.dense_heatmaps and len(recording.shown):
        yield Sheet(f"heatmaps-{name}", f"{name}: heatmaps, dense and dynamic",
                    lambda: heatmap_rows(recording_of(subject)), partial(heatmaps, subject),
                    made)  # fmt: skip
    yield Sheet(f"work-{name}", f"{name}: the work for each image",
                lambda: image_rows(recording_of(subject)), partial(work, subject),
                made)  # fmt: skip
    yield Sheet(f"classes-{name}", f"{name}: the work for each class",
                lambda: class_rows(recording_of(subject)), None, made)  # fmt: skip
    if gated and len(recording.shown) > 1:
        yield Sheet(f"extremes-{name}", f"{name}: the cheapest and the dearest images",
                    lambda: extreme_rows(recording_of(subject)), partial(extremes, subject),
                    made)  # fmt: skip


def _tables(found: Found) -> Iterator[Sheet]:
    made = _commands(found.runs)
    if found.runs:
        yield Sheet("table-summary", "all settings, mean and standard deviation over runs",
                    partial(summary_rows, found), None, made)  # fmt: skip
        yield Sheet("table-compute", "hours of training", partial(compute_rows, found), None, made)
    if joint_rows(found):
        yield Sheet(
            "table-joint", "joint against decoupled", partial(joint_rows, found), None, made
        )


def _commands(files: Any) -> tuple[str, ...]:
    told = (getattr(file, "provenance", {}).get("command") for file in files)
    return tuple(dict.fromkeys(command for command in told if command))


def save_figures(
    found: Found, directory: str | os.PathLike[str], format: Format = "svg"
) -> list[Path]:
    """Write every figure, and the data of every figure and table as CSV beside it.

    Args:
        found: What `ftwt.report.read` found.
        directory: A folder, made if need be; files of the same names are replaced.
        format: `png`, `svg` or `pdf`.

    Returns:
        The files, in the order of `sheets`.

    Raises:
        ValueError: There is nothing to draw, or no such format.
        ImportError: matplotlib is not installed.
        OSError: The folder cannot be written.
    """
    if format not in get_args(Format):
        raise ValueError(f"format={format!r}: use one of {', '.join(get_args(Format))}")
    matplotlib()  # or say now that it is not installed
    folder, written = Path(directory), list[Path]()
    taken: dict[str, int] = {}  # runs in different folders may have one name
    for sheet in sheets(found):
        stem = re.sub(r"[^\w.-]+", "-", sheet.name)
        taken[stem] = taken.get(stem, 0) + 1
        stem += f"-{taken[stem]}" if taken[stem] > 1 else ""
        if sheet.draw is not None:
            path = folder / f"{stem}.{format}"
            save_figure(sheet.draw(), path, sheet)
            written.append(path)
        path = folder / f"{stem}.csv"
        with replacing(path) as temporary:
            temporary.write_text(to_csv(sheet.rows()), encoding="utf-8")
        written.append(path)
    if not written:
        raise ValueError("no figure to write: none of the files is a run, demo or recording")
    return written


def save_figure(drawn: Figure, path: Path, sheet: Sheet) -> None:
    """Write a figure, with its title and the commands behind it in the file; the same each time."""
    made = "; ".join(sheet.made_by)
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": sheet.title, "Description": made},
        "svg": {"Title": sheet.title, "Description": made, "Date": None},
        "pdf": {"Title": sheet.title, "Subject": made, "CreationDate": None},
    }
    kind = path.suffix[1:]
    with styled(), replacing(path) as temporary:
        drawn.savefig(temporary, format=kind, metadata=metadata[kind])


def to_csv(rows: list[Row]) -> str:
    """Rows as CSV with a line of names; a value that is itself a list is written as JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (row.get(name) for name in names)
        writer.writerow([json.dumps(v) if isinstance(v, list | dict) else v for v in values])
    return file.getvalue()
