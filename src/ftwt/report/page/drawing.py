"""A figure of `plots` as SVG that lies inside the page: its colours by theme, words to hover on."""

from __future__ import annotations

import io
import json
import re
from xml.etree import ElementTree

from .. import palette
from ..plots.sheets import Sheet
from ..plots.style import TOLD, for_screen, matplotlib, styled

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
THEMED = {  # colour of the palette -> variable of page.css
    palette.INK: "ink",
    palette.DENSE: "ink",
    palette.FAINT: "soft",
    palette.GRID: "grid",
    palette.NEVER: "off",
    "#FFFFFF": "ground",
}
MARKS = {f"{{{SVG}}}{tag}" for tag in ("use", "path")}
UNUSED = {f"{{{SVG}}}metadata", f"{{{SVG}}}style"}


def svg_of(sheet: Sheet, id: str) -> str:
    """Draw a figure for the page.

    Args:
        sheet: With a figure.
        id: Of the figure in the page; the ids inside begin with it.

    Returns:
        An `svg` element. Text is text; black, greys and white are variables of the page's theme;
        marks have titles. The same for the same data.
    """
    assert sheet.draw is not None
    file = io.StringIO()
    with for_screen(wide=sheet.wide), styled(), matplotlib().rc_context({"svg.fonttype": "none"}):
        sheet.draw().savefig(file, format="svg", transparent=True, metadata={"Date": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    root = ElementTree.fromstring(file.getvalue())
    for side in ("width", "height", "version"):
        root.attrib.pop(side)
    root.attrib |= {"role": "img", "aria-label": sheet.title}
    for part in list(root.iter()):
        for child in [child for child in part if child.tag in UNUSED]:
            part.remove(child)
    _entitle(root)
    _rename(root, id)
    for part in root.iter():
        if "style" in part.attrib:
            part.attrib["style"] = _themed(part.attrib["style"])
        part.text, part.tail = ((text or "").strip() or None for text in (part.text, part.tail))
    return ElementTree.tostring(root, encoding="unicode")


def _entitle(root: ElementTree.Element) -> None:
    """Give the marks that `style.tell` named their titles."""
    for group in root.iter(f"{{{SVG}}}g"):
        name = group.get("id", "")
        if not name.startswith(TOLD):
            continue
        words = json.loads(name.removeprefix(TOLD))
        drawn = {f"{{{SVG}}}defs"}
        marks = [
            mark
            for child in group
            if child.tag not in drawn
            for mark in child.iter()
            if mark.tag in MARKS
        ]
        uses = [mark for mark in marks if mark.tag == f"{{{SVG}}}use"]
        for mark, text in zip(uses or marks[-1:], words, strict=True):
            ElementTree.SubElement(mark, f"{{{SVG}}}title").text = text


def _rename(root: ElementTree.Element, id: str) -> None:
    """Make ids unique in the page; those that nothing refers to go."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    for part in root.iter():
        own = part.attrib.pop("id", None)
        if own in used:
            part.attrib["id"] = f"{id}-{own}"
        for name, value in part.attrib.items():
            if name == f"{{{LINK}}}href":
                part.attrib[name] = value.replace("#", f"#{id}-")
            else:
                part.attrib[name] = value.replace("url(#", f"url(#{id}-")


def _themed(style: str) -> str:
    for colour, name in THEMED.items():
        style = re.sub(rf"{colour}\b", f"var(--{name})", style, flags=re.IGNORECASE)
    return re.sub(r"'DejaVu Sans'[^;]*", "var(--sans)", style)
