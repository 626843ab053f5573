"""Write the tables of README.md and docs/ from the result files in results/.

    python tools/write_tables.py           # rewrite what stands between the markers
    python tools/write_tables.py --check   # only say whether anything would change

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is one of the functions below.
Nothing between the markers is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

from tables.comparisons import corruption_kinds, corruptions, static
from tables.contest import contest
from tables.coverage import coverage, coverage_reasons, coverage_timm, coverage_torchvision
from tables.exports import exports
from tables.files import ROOT
from tables.fitting import pruned, repair, repair_cost, rules, second_look
from tables.fuzz import fuzz
from tables.imagenet import recipes
from tables.int8 import (
    eight_bits,
    eight_bits_operations,
    eight_bits_speed,
    eight_bits_threads,
    footprint,
    speed,
)
from tables.photographs import photograph_gates, photograph_targets
from tables.scaling import communication
from tables.soak import soak
from tables.speed import engine, rivals, traffic
from tables.training import (
    baseline,
    budget,
    candidates,
    cost,
    demo,
    five,
    gates_only,
    networks,
    overhead,
    queue,
    sandwich,
    self_check,
    short,
    study,
    thirty,
)

PAGES = (
    "README.md",
    "docs/coverage.md",
    "docs/engine.md",
    "docs/export.md",
    "docs/imagenet.md",
    "docs/models.md",
    "docs/reliability.md",
    "docs/results.md",
    "docs/scaling.md",
)
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        demo,
        baseline,
        networks,
        study,
        candidates,
        gates_only,
        thirty,
        five,
        short,
        cost,
        queue,
        sandwich,
        static,
        budget,
        overhead,
        self_check,
        engine,
        speed,
        traffic,
        rivals,
        corruptions,
        corruption_kinds,
        repair,
        pruned,
        second_look,
        repair_cost,
        rules,
        eight_bits,
        eight_bits_operations,
        eight_bits_speed,
        eight_bits_threads,
        contest,
        footprint,
        fuzz,
        soak,
        recipes,
        photograph_targets,
        photograph_gates,
        exports,
        coverage,
        coverage_reasons,
        coverage_torchvision,
        coverage_timm,
        communication,
    )
}


def main() -> int:
    """Rewrite, or check, the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        up = "../" * page.count("/")
        made = BLOCK.sub(
            lambda found, up=up: found[1] + TABLES[found[2]]().replace("](", f"]({up}") + found[3],
            text,
        )
        if made != text:
            stale.append(page)
            if not check:
                (ROOT / page).write_text(made, encoding="utf-8")
    print("\n".join(f"{'stale' if check else 'written'}: {page}" for page in stale) or "up to date")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
