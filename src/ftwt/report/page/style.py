"""How the page's figures look: colours, axes and traces, as plotly.js takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .. import palette
from ..reading.found import Found
from ..reading.records import Demo, Run
from ..rows import Row
from .html import Figure

THEMED = {palette.DENSE: "@ink", palette.OTHERS: "@soft", palette.GRID: "@off"}  # by the theme
SYMBOLS = {  # matplotlib's markers as plotly calls them
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "d": "diamond-tall",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "P": "cross",
    "X": "x",
    "*": "star",
}
SHARE = {"tickformat": ".0%", "hoverformat": ".2%"}
MOST_COMMANDS = 8


def themed(colour: str) -> str:
    """A colour of the palette; black and greys are the theme's, to be seen on dark grounds too."""
    return THEMED.get(colour, colour)


def plain(text: Any) -> str:
    """Text from a file as plotly.js takes it, which reads a little HTML."""
    return escape(str(text), quote=False)


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": {"text": title}, **settings}


def bars(values: Iterable[float | None], **settings: Any) -> dict[str, Any] | None:
    """Error bars; None where no value has any."""
    known = [value or 0.0 for value in values]
    if not any(known):
        return None
    return {"type": "data", "array": known, "thickness": 1.2, "width": 3, **settings}


def scatter(name: str, xs: Sequence[Any], ys: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """Points or lines; settings that are None are left out."""
    kept = {key: value for key, value in settings.items() if value is not None}
    return {"type": "scatter", "name": plain(name), "x": list(xs), "y": list(ys), **kept}


def marker(colour: str, symbol: str = "o", **settings: Any) -> dict[str, Any]:
    """How points look."""
    colour = themed(colour)
    look = {"color": colour, "symbol": SYMBOLS[symbol], "size": 10}
    return look | {"line": {"color": "@ground", "width": 1}} | settings


def figure(
    id: str,
    title: str,
    caption: str,
    *,
    rows: Sequence[Row],
    traces: Sequence[dict[str, Any]],
    layout: dict[str, Any],
    made_by: Iterable[str],
    wide: bool = False,
) -> Figure:
    """A figure of the page; its data are the rows, column by column."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    commands = [command for command in dict.fromkeys(made_by) if command]
    if len(commands) > MOST_COMMANDS:
        more = len(commands) - MOST_COMMANDS
        commands = [*commands[:MOST_COMMANDS], f"... and {more} more, in the table of files"]
    return Figure(
        id=re.sub(r"[^a-z0-9]+", "-", id.lower()).strip("-"),
        title=title,
        caption=caption,
        made_by=tuple(commands),
        columns=columns,
        rows=tuple(tuple(row.get(name) for name in columns) for row in rows),
        traces=tuple(traces),
        layout={"height": 380, **layout},
        wide=wide,
    )


def commands(found: Found, network: str) -> list[str]:
    """What made the runs and demos of a network."""
    made: list[Run | Demo] = [*found.runs, *found.demos]
    return [str(one.provenance.get("command", "")) for one in made if one.network == network]


class Looks:
    """Each method's colour and marker, the same in all figures."""

    def __init__(self, found: Found) -> None:
        methods = [part.method for part in found.groups]
        self._known = {method.label: (method.colour, method.marker) for method in methods}

    def colour(self, method: str) -> str:
        """The colour of a method, or of a published one."""
        return themed(palette.look(method, self._known)[0])

    def marker(self, method: str, *, hollow: bool = False, **settings: Any) -> dict[str, Any]:
        """Points of a method; those of published rows and of predictions are hollow."""
        colour, symbol = palette.look(method, self._known)
        if hollow:
            edge = {"color": themed(colour), "width": 1.8}
            settings = {"color": "@ground", "line": edge} | settings
        return marker(colour, symbol, **settings)
