"""A terminal that shows names as they are: no markup in them, and nothing that steers it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from .text import one_line, printable


class PlainConsole(Console):
    """A rich console for texts that hold names of files, layers and classes.

    A folder may be called `[/]` or `:smile:`, and a class name may hold an escape sequence: neither
    is markup, what cannot be printed is shown as a question mark, and each text is one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a text, a cell or a title, as one line."""
        return super().render_str(one_line(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render as rich does, without control characters in texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
