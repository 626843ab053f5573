"""The table of ImageNet recipes that were tried on a few images."""

from __future__ import annotations

from .files import ROOT, read
from .layout import origin, percent, table

PATH = "results/imagenet/recipes.json"


def recipes() -> str:
    """What came of each recipe: that it runs, and resumes to the same network."""
    if not (ROOT / PATH).exists():
        return "No results yet: `python tools/try_recipes.py`.\n"
    result = read(PATH)
    rows = []
    for name, trial in result["trials"].items():
        predicted = trial["predicted_reduction"]
        rows.append(
            (
                name,
                str(trial["steps"]),
                f"{trial['task_loss']:.3f}",
                "" if predicted is None else percent(predicted),
                "" if predicted is None else percent(trial["reduction"]),
                f"stopped after step {trial['stopped_after']}",
                "the same network" if trial["same"] else "**another network**",
            )
        )
    head = ("recipe", "steps", "task loss", "predicted", "achieved", "the other run", "resumed to")
    return table(head, rows) + origin(PATH, result)
