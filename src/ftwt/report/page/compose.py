"""What goes on the page: all that was found, in the order in which a reader asks for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...records.recording import Recording
from ..answer import Answer, answers
from ..plots.sheets import Sheet, sheets_of, sheets_of_runs, sheets_of_timings
from ..reading.found import Found
from ..reading.records import Pruned, Run
from ..rows_of_run import Subject, extreme_rows, subjects
from .drawing import svg_of
from .explorer import LOSSLESS, data_address, explorer
from .html import Ends, Figure, Gap, Page, Strip, StripItem, Table
from .tables import settings_table, tables
from .words import in_words, macs, percent

MOST_SUBJECTS = 3  # networks with figures of their own
MOST_TIMED = 4  # figures of latency
MOST_COMMANDS = 8  # below a figure
ENDS = 6  # pictures in a strip
ROOM = 2_500_000  # bytes of explorers in the page, before they are packed
ABOUT = (
    "ftwt computes only those filters of a trained network that an image needs, or that any image "
    "needs."
)
EXPLORER_TEXT = (
    "Each row is a layer, each cell one of its filters. Choose an image and see which filters its "
    "own predictors let compute; choose a second one to compare the two routes. Only the images "
    "shown here are in the page; how often a filter fires is counted over all recorded images. "
    "With the keyboard, arrow keys move, a and b choose."
)


def compose(found: Found) -> Page:
    """Everything that the page shows, from what was found."""
    settings = answers(found)
    networks = tuple(dict.fromkeys(answer.network for answer in settings)) or found.networks
    recorded, looks, left = _explorers(found)
    shown = [*((values["name"], recording) for values, recording in recorded), *looks]
    one = networks[0] if len(networks) == 1 else f"{len(networks)} networks"
    heading = f"{one}, made faster by ftwt" if settings else "Results of ftwt"
    return Page(
        title=f"{', '.join(networks[:3]) or 'results'} - ftwt report",
        heading=heading,
        subheading=_subheading(settings, found),
        answer=in_words(settings[0]) if settings else None,
        settings=settings_table(settings) if len(settings) > 1 else None,
        figures=_figures(found),
        explorers=tuple(values for values, _ in recorded),
        explorer_text=EXPLORER_TEXT,
        explorer_made_by=tuple(
            dict.fromkeys(str(r.provenance.get("command", "")) for _, r in recorded)
        ),
        ends=_ends(*shown[0]) if shown else None,
        tables=tables(found),
        missing=(*_gaps(found), *_no_room(found), *left),
        files=_files(found),
        footer=f"Made by ftwt {version('ftwt')} from result files alone; nothing is fetched, "
        "nothing is sent.",
    )


def _figures(found: Found) -> tuple[Figure, ...]:
    """Figures over all runs, and those about some."""
    listed: list[Sheet] = [*sheets_of_runs(found), *_timings(found)[:MOST_TIMED]]
    for subject in _subjects(found)[:MOST_SUBJECTS]:
        listed += sheets_of(subject)
    return tuple(_figure(sheet) for sheet in listed if sheet.draw is not None and sheet.caption)


def _figure(sheet: Sheet) -> Figure:
    id = re.sub(r"[^a-z0-9]+", "-", sheet.name.lower()).strip("-")
    rows = sheet.rows()
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Figure(
        id=id,
        title=sheet.title,
        caption=sheet.caption,
        made_by=_few(sheet.made_by),
        columns=columns,
        rows=tuple(tuple(row.get(name) for name in columns) for row in rows),
        drawing=Markup(svg_of(sheet, id)),
        wide=sheet.wide,
    )


def _few(commands: Sequence[str]) -> tuple[str, ...]:
    if len(commands) <= MOST_COMMANDS:
        return tuple(commands)
    more = len(commands) - MOST_COMMANDS
    return (*commands[:MOST_COMMANDS], f"... and {more} more, in the table of files")


def _timings(found: Found) -> list[Sheet]:
    """Figures of latency on one thread, or on as many as there are timings of."""
    listed = sheets_of_timings(found)
    return [sheet for sheet in listed if sheet.name.endswith("threads1")] or listed


def _subjects(found: Found) -> list[Subject]:
    """Whom figures of single networks are about: the recorded first, there is more to show."""
    return sorted(subjects(found), key=lambda one: getattr(one, "recording_path", "") is None)


def _no_room(found: Found) -> list[Gap]:
    """Figures that a page of many networks leaves out."""
    gaps = []
    for what, names, most in (
        ("layers, training and work", [one.name for one in _subjects(found)], MOST_SUBJECTS),
        (
            "latency",
            [sheet.title.rpartition(": latency")[0] for sheet in _timings(found)],
            MOST_TIMED,
        ),
    ):
        if len(names) > most:
            left = ", ".join(names[most : most + 6]) + (", ..." if len(names) > most + 6 else "")
            gaps.append(Gap(f"figures of {what} of {left}: name their files alone to see them"))
    return gaps


def _subheading(told: tuple[Answer, ...], found: Found) -> str:
    if not told:
        return f"{ABOUT} No network with gates is among the files."
    first = told[0]
    runs = "1 run" if first.seeds == 1 else f"mean of {first.seeds} runs"
    more = f"; {len(told) - 1} more below" if len(told) > 1 else ""
    of = "" if len({answer.network for answer in told}) == 1 else f"{first.network}, "
    return f"{ABOUT} Here: {of}{first.name}; {runs}, {first.images:,} test images{more}."


def _explorers(
    found: Found,
) -> tuple[list[tuple[dict[str, Any], Recording]], list[tuple[str, Recording]], list[Gap]]:
    """The recordings that the page has room for, the first answer's first; and those left out.

    Between them the first second look, which has no routes of its own: its passes have.
    """
    kept: list[tuple[dict[str, Any], Recording]] = []
    looks: list[tuple[str, Recording]] = []
    left: list[Gap] = []
    room = ROOM
    for name, path, source in _recordings(found):
        if room <= 0:
            left.append(
                Gap(
                    f"the explorer of {name}: the page has no room for more than {len(kept)}",
                    f"ftwt report {path} -o {name}.html",
                )
            )
            continue
        recording = source.recording()
        if recording is not None and recording.passes is not None:
            looks = looks or [(name, recording)]
            continue
        if recording is None or not recording.units or not len(recording.shown):
            left.append(Gap(f"routes of {name}: the recording holds no gates or no pictures"))
            continue
        values = explorer(recording, name)
        room -= sum(map(len, (*values["pictures"], values["masks"], values["heatmaps"]["values"])))
        kept.append((values, recording))
    return kept, looks, left


def _recordings(found: Found) -> list[tuple[str, str, Any]]:
    sources: list[Pruned | Run] = [
        *(run for part in found.groups if part.kind == "dynamic" for run in part.runs),
        *found.pruned,
        *(run for run in found.runs if run.kind != "dynamic"),
    ]
    listed = [
        (source.name, str(source.path), source)
        for source in sources
        if source.recording_path is not None
    ]
    return [*listed, *((lone.name, str(lone.path), lone) for lone in found.recordings)]


def _ends(name: str, recording: Recording) -> Ends | None:
    """The cheapest and the dearest of the images that are kept as pictures."""
    rows = extreme_rows(recording, ENDS)
    if not rows:
        return None
    sharp = "pixels" if max(recording.pictures.shape[1:3]) <= LOSSLESS else ""
    strips = []
    for end in ("cheapest", "dearest"):
        items = []
        for row in (row for row in rows if row["end"] == end):
            right = "" if row["label"] == row["prediction"] else f", taken for {row['prediction']}"
            again = ", looked at again" if row.get("passes", 1) > 1 else ""
            told = f"{macs(row['executed_macs'])}, {percent(row['reduction'])} saved{right}{again}"
            picture = data_address(recording.pictures[row["picture"]])
            items.append(StripItem(picture, row["label"], told))
        strips.append(Strip(end.capitalize(), tuple(items), sharp))
    made = (str(recording.provenance.get("command", "")),)
    columns = tuple(rows[0])
    data = tuple(tuple(row[column] for column in columns) for row in rows)
    caption = f"The cheapest and the dearest images of {name}"
    if recording.passes is not None:
        caption += f". {recording.looks}"
    return Ends(caption, tuple(strips), columns, data, made)


def _gaps(found: Found) -> list[Gap]:
    gaps = []
    for gap in found.missing:
        of = ", ".join(gap.of[:3]) + (f" and {len(gap.of) - 3} more" if len(gap.of) > 3 else "")
        gaps.append(Gap(f"{gap.what} ({of})" if of else gap.what, gap.command))
    return gaps


def _files(found: Found) -> Table:
    rows = []
    kinds = (
        ("pruning", found.pruned),
        ("evaluation", found.evaluations),
        ("benchmark", found.benchmarks),
        ("contest", found.contests),
        ("estimate", found.curves),
        ("corruptions", found.corruptions),
    )
    for run in found.runs:
        rows.append(_file(run, f"{run.kind} run"))
    for kind, files in kinds:
        rows += [_file(file, kind) for file in files]
    rows += [
        (f"{lone.path.parent.name}/{lone.path.name}", "recording", "", "")
        for lone in found.recordings
    ]
    rows += [(f"{log.path.parent.name}/{log.path.name}", "metrics", "", "") for log in found.logs]
    made: list[Run | Pruned] = [*found.runs, *found.pruned]
    beside = [one.recording_path for one in made if one.recording_path is not None]
    others = [(path, "recording") for path in (*beside, *(one.path for one in found.recordings))]
    others += [
        (log.path, "metrics of a training" + ("" if log.finished else " that is not finished"))
        for log in found.logs
    ]
    others += [(path, f"not shown: {why}") for path, why in found.left_out]
    rows += [(_short(path), kind, "", "") for path, kind in others]
    columns = ("file", "kind", "command", "date")
    return Table("files-table", "What this page was made from", columns, tuple(rows))


def _file(source: Any, kind: str) -> tuple[str, str, str, str]:
    made = source.provenance
    commit = (made.get("git") or {}).get("commit")
    command = str(made.get("command", "")) + (f" (at {commit[:7]})" if commit else "")
    return _short(source.path), kind, command, str(made.get("date", ""))[:10]


def _short(path: Path) -> str:
    """A file's name and its folder's: enough to find it, and nothing of the machine."""
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name
