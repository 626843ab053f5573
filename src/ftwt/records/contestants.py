"""How contestants of a benchmark are called, for those who time them and those who read it."""

from __future__ import annotations

from collections.abc import Mapping

OUR = "ftwt "  # begins the names of our own contestants
DENSE, GATED = OUR + "dense", OUR + "gated"


def by_candidate(latency_ms: Mapping[str, float], chosen: str) -> dict[str, float]:
    """Name the times of a pruning by what was timed.

    Args:
        latency_ms: Contestant -> milliseconds.
        chosen: The candidate that was timed as the gated network.

    Returns:
        `dense`, each candidate, and each rival by its own name -> milliseconds.
    """
    names = {DENSE: "dense", GATED: chosen}
    return {names.get(name, name.removeprefix(OUR)): ms for name, ms in latency_ms.items()}
