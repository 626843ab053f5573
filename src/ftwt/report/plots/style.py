"""How figures look: size, type, lines; and matplotlib, which is imported when it is needed."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from .. import palette

Figure = Any  # matplotlib.figure.Figure: matplotlib is imported when something is drawn
Axes = Any  # matplotlib.axes.Axes

WIDTH = 5.6  # inches of a figure: a page's text, or two thirds of a slide
NOTE = 6.5  # points of what stands below a figure
NARROW = 0.72  # of that width, on a screen: type stays legible on a phone
TOLD = "told:"  # begins the id of marks that say in words what they show

_screen: ContextVar[float | None] = ContextVar("screen", default=None)

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.edgecolor": palette.FAINT,
    "axes.labelcolor": palette.INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', {list(palette.DYNAMIC)})",
    "axes.grid": True,
    "grid.color": palette.GRID,
    "grid.linewidth": 0.5,
    "text.color": palette.INK,
    "xtick.color": palette.INK,
    "ytick.color": palette.INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "errorbar.capsize": 2,
    "figure.dpi": 110,
    "savefig.dpi": 220,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # names of files may hold dollar signs
    "svg.fonttype": "path",
    "svg.hashsalt": "ftwt",  # the same figure, the same file
    "pdf.fonttype": 42,
    "image.interpolation": "nearest",
}


def matplotlib() -> Any:
    """The package matplotlib, imported when a figure is drawn: that takes half a second."""
    import matplotlib

    return matplotlib


def styled() -> AbstractContextManager[Any]:
    """While it lasts, what is drawn or saved has the style of this module."""
    return matplotlib().rc_context(STYLE)


def drawing(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a function that draws a figure do so in the style of this module."""

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Figure:
        with styled():
            return function(*args, **kwargs)

    return draw


@functools.cache
def _figure_class() -> Any:
    matplotlib()
    from matplotlib.figure import Figure as Plain

    class Shown(Plain):
        """A figure that notebooks show by itself, without pyplot."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            with styled():
                self.savefig(file, format="png")
            return file.getvalue()

    return Shown


def figure(*, width: float = WIDTH, height: float = 3.4) -> Figure:
    """A new figure of this size in inches, laid out so that nothing overlaps."""
    share = _screen.get() or 1.0
    return _figure_class()(figsize=(width * share, height), layout="constrained")


@contextmanager
def for_screen(*, wide: bool = False) -> Iterator[None]:
    """Draw for a page: narrower unless `wide`, without notes, marks with words to hover on."""
    token = _screen.set(1.0 if wide else NARROW)
    try:
        yield
    finally:
        _screen.reset(token)


def tell(mark: Any, *words: str) -> None:
    """Say what a mark, or each point of a line, shows: on a page, where one points at it."""
    if _screen.get() is not None:
        mark.set_gid(TOLD + json.dumps(words))


def percent(axis: Any) -> None:
    """Write an axis's numbers, which are percentages, with their sign."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))


def only(axes: Axes, axis: str) -> None:
    """Leave grid lines across one axis alone: `x` or `y`."""
    axes.grid(False)
    axes.grid(True, axis=axis)


def note(figure: Figure, text: str) -> None:
    """Say something below a figure, in small type; a page has captions instead."""
    if _screen.get() is None:
        figure.supxlabel(text, fontsize=NOTE, color=palette.FAINT, ha="left", x=0.01)


def nothing(axes: Axes, text: str) -> None:
    """Say in an empty panel why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=palette.FAINT, wrap=True,
              transform=axes.transAxes)  # fmt: skip


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    lines: Sequence[float] = (),
    size: float = 6.5,
) -> None:
    """Write labels beside points, each where it hides no other label and no point if that can be.

    Args:
        axes: With its limits set.
        points: x, y, label; an empty label is a point to keep clear of.
        lines: y of horizontal lines to keep clear of.
        size: Of the type, in points.
    """
    canvas = axes.figure
    width, height = (side * 72 for side in canvas.get_size_inches() * 0.82)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    at = [((x - left) / (right - left) * width, (y - low) / (high - low) * height)
          for x, y, _ in points]  # fmt: skip
    taken = [(x - 3.0, y - 3.0, x + 3.0, y + 3.0) for x, y in at]
    for y in lines:
        place = (y - low) / (high - low) * height
        taken.append((0.0, place - 0.6, width, place + 0.6))
    for (x, y), (px, py, text) in zip(at, points, strict=True):
        if not text:
            continue
        long, tall = 0.54 * size * len(text), 1.15 * size
        best: tuple[float, tuple[float, float], tuple[float, float, float, float]] | None = None
        for dx, dy in (
            (6, -tall / 2), (-6 - long, -tall / 2), (-long / 2, 5), (-long / 2, -5 - tall),
            (5, 4), (5, -4 - tall), (-5 - long, 4), (-5 - long, -4 - tall),
            (-long / 2, 13), (-long / 2, -13 - tall), (6, 12), (6, -12 - tall),
        ):  # fmt: skip
            box = (x + dx, y + dy, x + dx + long, y + dy + tall)
            cost = sum(_overlap(box, other) for other in taken)
            cost += 50 * (max(0, -box[0]) + max(0, box[2] - width))
            cost += 50 * (max(0, -box[1]) + max(0, box[3] - height))
            if best is None or cost < best[0] - 1e-9:
                best = (cost, (dx, dy), box)
        assert best is not None
        taken.append(best[2])
        axes.annotate(text, (px, py), xytext=best[1], textcoords="offset points", fontsize=size,
                      color=palette.INK, ha="left", va="bottom", annotation_clip=False)  # fmt: skip


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    wide = min(one[2], two[2]) - max(one[0], two[0])
    tall = min(one[3], two[3]) - max(one[1], two[1])
    return wide * tall if wide > 0 and tall > 0 else 0.0
