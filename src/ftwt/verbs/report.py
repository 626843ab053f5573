"""The verb that shows results: report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from ..report.plots.save import Format
from ..report.write import write_report
from .options import Json


@dataclass(frozen=True)
class ReportCommand:
    """Turn result files into a page to send to a colleague, and figures for papers.

    Reads files alone: what `ftwt prune`, `demo`, `train`, `evaluate`, `estimate`, `robustness` and
    `bench` wrote. Images, their routes and heatmaps need a recording: `ftwt evaluate RUN --record`.
    """

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH ...")]
    """Folders of runs, result files, or folders of such."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "report.html"
    """The page, a file that needs no other."""
    figures: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder to write figures to, drawn for papers, and the data of each as CSV."""
    format: Format = "svg"
    """Of these figures."""
    as_json: Json = False

    def __call__(self) -> Any:
        """Write the report."""
        result = write_report(
            self.sources, self.output, figures=self.figures, figure_format=self.format
        )
        return result.to_json() if self.as_json else [result]
