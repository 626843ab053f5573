"""The report: one page, and on request figures for papers, from result files alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from ..files.atomic import replacing
from .answer import Answer, answers
from .page.compose import compose
from .page.html import MOST_BYTES, render
from .page.words import accuracy, in_words, macs, percent, percent_spread
from .plots.save import Format, save_figures
from .reading.found import Missing
from .reading.read import read


@dataclass(frozen=True)
class Report:
    """What a report says and holds.

    Args:
        page: The file.
        size: Its bytes.
        answers: What each setting costs and achieves, the page's own first.
        figures: Names of the page's figures.
        files: Figures for papers, and their data, that were written.
        missing: What there is no file for.
    """

    page: Path
    size: int
    answers: tuple[Answer, ...]
    figures: tuple[str, ...]
    files: tuple[Path, ...] = ()
    missing: tuple[Missing, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "page": str(self.page),
            "bytes": self.size,
            "answers": [answer.to_json() for answer in self.answers],
            "figures": list(self.figures),
            "files": [str(path) for path in self.files],
            "missing": [asdict(gap) for gap in self.missing],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.answers:
            words = in_words(self.answers[0])
            yield f"{self.answers[0].network}, {self.answers[0].name}"
            yield words.verdict
            yield words.twin
            yield _table(self.answers)
        for gap in self.missing:
            yield f"not shown: {gap.what} ({', '.join(gap.of[:3])}). To have it: {gap.command}"
        for path in self.files:
            yield f"figure: {path}"
        yield f"page: {self.page} ({self.size / 1e6:.1f} MB, {len(self.figures)} figures)"


def _table(told: Sequence[Answer]) -> Table:
    table = Table("setting", title="± over runs; reduction of executed MACs")
    columns = (
        "runs",
        "images",
        "accuracy",
        "paid",
        "MACs",
        "asked",
        "predicted",
        "achieved",
        "twin",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for one in told:
        table.add_row(
            f"{one.network}, {one.name}",
            str(one.seeds),
            f"{one.images:,}",
            accuracy(one.top1),
            "" if one.paid is None else f"{100 * one.paid:.1f}",
            f"{macs(one.dense_macs)} -> {macs(one.executed_macs.mean)}",
            "" if one.asked is None else percent(one.asked),
            "" if one.predicted is None else percent(one.predicted.mean),
            percent_spread(one.achieved),
            "" if one.twin_top1 is None else accuracy(one.twin_top1),
        )
    return table


def write_report(
    sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    output: str | os.PathLike[str] = "report.html",
    *,
    figures: str | os.PathLike[str] | None = None,
    figure_format: Format = "svg",
) -> Report:
    """Write the page of all results in files and folders, and figures for papers if asked.

    Args:
        sources: Folders of runs, result files, or folders of such.
        output: The page; it is whole or, on an error, as it was before.
        figures: Folder for the figures, drawn by matplotlib, and their data as CSV.
        figure_format: `png`, `svg` or `pdf`.

    Returns:
        What the page says, and where it is.

    Raises:
        ValueError: Nothing was found, a file is damaged or foreign, or the page would be too large.
        OSError: A file cannot be written.
    """
    found = read(sources)
    page = compose(found)
    text = render(page).encode()
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"the page would have {len(text) / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} MB can "
            "be sent and opened everywhere: name fewer files"
        )
    with replacing(output) as temporary:
        temporary.write_bytes(text)
    return Report(
        page=Path(output),
        size=len(text),
        answers=answers(found),
        figures=tuple(figure.id for figure in page.figures),
        files=tuple(save_figures(found, figures, figure_format)) if figures is not None else (),
        missing=found.missing,
    )
