"""The table of ImageNet recipes that were tried on a few images."""

from __future__ import annotations

from .files import ROOT, read
from .layout import commits, percent, table

FOLDER = "results/imagenet"


def recipes() -> str:
    """What came of each recipe: that it runs, and resumes to the same network."""
    found = [read(str(path.relative_to(ROOT))) for path in (ROOT / FOLDER).glob("imagenet-*.json")]
    if not found:
        return "No results yet: `python tools/try_recipes.py`.\n"
    rows = []
    for trial in sorted(found, key=lambda trial: trial["recipe"]):
        predicted = trial["predicted_reduction"]
        rows.append(
            (
                trial["recipe"],
                str(trial["steps"]),
                f"{trial['task_loss']:.3f}",
                "" if predicted is None else percent(predicted),
                "" if predicted is None else percent(trial["reduction"]),
                f"step {trial['stopped_after']}",
                "the same network" if trial["same"] else "**another network**",
            )
        )
    head = ("recipe", "steps", "task loss", "predicted", "achieved", "stopped after", "resumed to")
    made = [trial["provenance"] for trial in found]
    told = f"`tools/try_recipes.py` at {commits(made)}, {made[0]['hardware']['cpu']}"
    return table(head, rows) + f"\n{told}: [{FOLDER}]({FOLDER}).\n"
