"""Draw docs/contest.svg: accuracy against milliseconds, from the files in results/contest.

python tools/plot_contest.py
"""

from __future__ import annotations

from pathlib import Path

from ftwt.report import plots, read
from ftwt.report.plots.sheets import Sheet

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Read and draw."""
    found = read([ROOT / "results" / "contest"])
    made = tuple(str(file.provenance.get("command")) for file in found.contests)
    sheet = Sheet("contest", "accuracy against milliseconds", list, made_by=made)
    plots.save_figure(plots.contests(found), ROOT / "docs" / "contest.svg", sheet)


if __name__ == "__main__":
    main()
