"""The report as one HTML file: everything in it, nothing fetched, made from result files alone."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .words import AnswerWords

MOST_BYTES = 8_000_000  # of a page
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Args:
        id: Of its elements, letters and dashes.
        title: What it shows.
        caption: How to read it.
        made_by: The commands that made its files.
        columns: Names of the data's columns.
        rows: The data that is drawn, and all that its files give.
        drawing: An `svg` element.
        wide: Whether it takes the page's whole width.
    """

    id: str
    title: str
    caption: str
    made_by: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    drawing: Markup
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page; `numeric` are the places of columns that stand to the right."""

    id: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class StripItem:
    """A picture of a strip: its address, its label, and what to say below."""

    picture: str
    label: str
    note: str


@dataclass(frozen=True)
class Strip:
    """A row of pictures; `sharp` is the class of pictures that are shown larger than they are."""

    title: str
    items: tuple[StripItem, ...]
    sharp: str = ""


@dataclass(frozen=True)
class Ends:
    """The images at both ends: their strips, and their data as a figure has them."""

    title: str
    strips: tuple[Strip, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    made_by: tuple[str, ...]
    id: str = "extremes"


@dataclass(frozen=True)
class Gap:
    """Something that the report does not show, and the command that would make it."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Page:
    """All that the page shows: words, tables, figures, explorers."""

    title: str
    heading: str
    subheading: str
    answer: AnswerWords | None
    settings: Table | None
    figures: tuple[Figure, ...]
    explorers: tuple[dict[str, Any], ...]
    explorer_text: str
    explorer_made_by: tuple[str, ...]
    ends: Ends | None
    tables: tuple[Table, ...]
    missing: tuple[Gap, ...]
    files: Table
    footer: str

    @property
    def sections(self) -> list[tuple[str, str]]:
        """The parts that this page has: id and name."""
        parts = [
            ("answer", "Answer", True),
            ("figures", "Figures", self.figures),
            ("explorer", "Explorer", self.explorers),
            ("images", "Images", self.ends),
            ("tables", "Tables", self.tables),
            ("missing", "Not shown", self.missing),
            ("files", "Files", True),
        ]
        return [(id, name) for id, name, there in parts if there]


def render(page: Page) -> str:
    """Write a page as HTML that needs nothing else: no network, no other file.

    Names from files are escaped; the browser is told to run the scripts of this page alone and to
    fetch nothing.
    """
    held: list[Figure | Ends] = [*page.figures, *([page.ends] if page.ends else [])]
    data = {
        "tables": [
            {"id": one.id, "data": {"columns": one.columns, "rows": one.rows}} for one in held
        ],
        "explorer": page.explorers,
    }
    scripts = {"page_js": _asset("page.js"), "explorer_js": _asset("explorer.js")}
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_asset("page.html"))
    safe = {name: Markup(text) for name, text in scripts.items()}
    return template.render(
        page=page,
        policy=_policy(*scripts.values()),
        version=version("ftwt"),
        css=Markup(_asset("page.css")),
        data=packed(json.dumps(data, allow_nan=False, separators=(",", ":"))),
        **safe,
    )


def packed(text: str) -> str:
    """Text as base64 of gzip, the same each time; the page unpacks it with DecompressionStream."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def unpacked(text: str) -> str:
    """What `packed` packed."""
    return gzip.decompress(base64.b64decode(text)).decode()


def _policy(*scripts: str) -> str:
    """What the browser may do with the page: run these scripts, show what is inside; no more."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    return "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{value}'" for value in hashes),
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
