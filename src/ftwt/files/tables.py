"""Results that print as tables, in a terminal and in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Iterator
from typing import Any

WIDTH = 120  # columns, where a result is printed by print()


class Shown:
    """A result that prints as rich tables; notebooks show it as tables of their own."""

    def __str__(self) -> str:
        from .console import PlainConsole

        console = PlainConsole(width=WIDTH, file=io.StringIO(), color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        from .console import PlainConsole

        return "\n".join(_to_html(self, PlainConsole(width=200)))


def _to_html(part: Any, console: Any) -> Iterator[str]:
    """HTML of what `__rich_console__` yields: tables, lines of text, and other such results."""
    from rich.table import Table

    def plain(cell: Any) -> str:
        return html.escape(str(cell))

    if isinstance(part, Table):
        title = f"<caption>{plain(part.title)}</caption>" if part.title else ""
        sides = [column.justify if column.justify == "right" else "left" for column in part.columns]
        columns = [[plain(cell) for cell in column.cells] for column in part.columns]
        heads = [plain(column.header) for column in part.columns]
        yield f"<table>{title}"
        if part.show_header and any(heads):
            yield f"<thead>{_html_row('th', heads, sides)}</thead>"
        rows = [_html_row("td", row, sides) for row in zip(*columns, strict=True)]
        yield f"<tbody>{''.join(rows)}</tbody></table>"
    elif hasattr(part, "__rich_console__"):
        for inner in part.__rich_console__(console, console.options):
            yield from _to_html(inner, console)
    else:
        yield f"<p>{plain(part)}</p>"


def _html_row(tag: str, cells: Iterable[str], sides: Iterable[str]) -> str:
    told = [
        f'<{tag} style="text-align: {side}">{cell}</{tag}>'
        for cell, side in zip(cells, sides, strict=True)
    ]
    return f"<tr>{''.join(told)}</tr>"
