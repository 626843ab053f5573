"""The table of the long run in one process."""

from __future__ import annotations

from .files import read
from .layout import origin, table


def soak() -> str:
    """What a process holds after the warm-up, and how much more at the end."""
    path = "results/soak.json"
    result = read(path)
    minutes = result["provenance"]["duration_s"] / 60
    rows = [
        ("minutes", f"{minutes:.0f}"),
        ("rounds", f"{result['rounds']:,}"),
        ("training steps", f"{result['training_steps']:,}"),
        ("stopped and resumed", f"{result['resumes']:,}"),
        ("engines made", f"{result['engines']:,}"),
        ("batches inferred", f"{result['engine_runs']:,}"),
        ("growth of memory, MB an hour", f"{result['growth_mb_per_hour']:.1f}"),
        ("allowed", f"{result['bound_mb_per_hour']:.0f}"),
        ("open files, first and last third", " and ".join(map(str, result["files"]))),
        ("threads, first and last third", " and ".join(map(str, result["threads"]))),
    ]
    return table(("", ""), rows) + origin(path, result)
