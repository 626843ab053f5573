"""All figures for papers and tables as files, their data beside them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

from ...files.atomic import replacing
from ...files.text import printable
from ..reading.found import Found
from ..rows import Row
from .sheets import Sheet, sheets
from .style import Figure, styled

Format = Literal["png", "svg", "pdf"]


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
        OSError: The folder cannot be written.
    """
    if format not in get_args(Format):
        raise ValueError(f"format={format!r}: use one of {', '.join(get_args(Format))}")
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
        raise ValueError(
            "no figure to write: none of the files is a run, pruned network or recording"
        )
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
    """Rows as CSV with a line of names; a value that is itself a list is written as JSON.

    Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_cell, names))
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value)
    if not isinstance(value, str):
        return value
    return ("'" if value.startswith(("=", "+", "-", "@", "\t")) else "") + printable(value)
