"""The colours of all figures, in one place: one for each method, and legible for everybody."""

from __future__ import annotations

OKABE_ITO = {  # Okabe and Ito, "Color Universal Design", 2008
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "bluish green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish purple": "#CC79A7",
}

INK, FAINT, GRID = "#1A1A1A", "#767676", "#DDDDDD"  # text; what stands back; lines behind marks

DENSE = OKABE_ITO["black"]
DYNAMIC = (  # ours, and variants of it
    OKABE_ITO["blue"],
    OKABE_ITO["sky blue"],
    OKABE_ITO["vermillion"],
)
TWIN = OKABE_ITO["orange"]
STATIC = (OKABE_ITO["bluish green"], OKABE_ITO["yellow"])  # other libraries
PUBLISHED = OKABE_ITO["reddish purple"]  # the paper's own rows
OTHERS = FAINT  # other published methods, told apart by their names

ALWAYS, SOMETIMES, NEVER = OKABE_ITO["blue"], OKABE_ITO["sky blue"], "#D0D0D0"
HEAT = "magma"  # of heatmaps; even in lightness, legible in grey


def look(method: str, known: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Colour and marker of a method by its label.

    Args:
        method: As rows name it.
        known: Label -> colour and marker, of the methods of the runs that were found.
    """
    if method in known:
        return known[method]
    if method == "dense":
        return DENSE, "D"
    if method.startswith("dynamic"):
        return DYNAMIC[0], "o"
    if method.startswith("fixed mask"):
        return TWIN, "p"
    if method == "static twin" or method.startswith("static,"):
        return TWIN, "s"
    if method.startswith("second look"):
        return DYNAMIC[2], "^"
    if method.startswith("FTWT"):
        return PUBLISHED, "*"
    return OTHERS, "d"
