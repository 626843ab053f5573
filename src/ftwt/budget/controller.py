"""Hold a budget during training: steer r by the reduction that is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SLOPE = 0.2  # reduction gained when the lost mass grows e-fold, a typical network at moderate r
START = 0.005  # lost mass that a controller starts from where every r is 1
LEAST, MOST = 1e-4, 0.95  # bounds of the largest lost mass
MARGIN = 0.05  # how far the targets' own reduction may be led away from the budget
LARGEST_MOVE = 0.2  # of the logarithm of the lost mass, at one observation


class BudgetController:
    """Steer r so that the measured executed reduction meets a target.

    A unit *loses* the mass 1 - r. All units' lost masses are multiplied by one factor exp(z), so
    that a mapping of unequal r keeps its shape (and r = 1 stays 1, unless it is 1 everywhere).
    Integral control: a reduction that was e short of its target for n steps adds
    n e / (0.2 horizon) to z; a gap closes to about a third in `horizon` steps.

    Predictors follow their targets late, and not exactly. An integral would meanwhile lead r far
    astray, so e is clipped such that the reduction that the *targets* themselves would give, which
    answers to r at once, stays within 0.05 of the budget. `calibrate` takes up the rest.

    Args:
        r: Each unit's r at the start.
        target: The executed reduction to hold, in (0, 1); None holds r where it is.
        horizon: Steps in which a gap closes to about a third.
    """

    def __init__(
        self, r: Mapping[str, float], *, target: float | None = None, horizon: int = 200
    ) -> None:
        self.target, self.horizon = target, horizon
        self.lost = {unit: 1 - value for unit, value in r.items()}
        if target is not None and not any(self.lost.values()):
            self.lost = dict.fromkeys(r, START)
        self.z = 0.0

    def r(self, progress: float = 1.0) -> dict[str, float]:
        """Each unit's r now; `progress` in [0, 1] says how far annealing has come from r = 1."""
        factor = math.exp(self.z) * progress
        return {unit: 1 - min(MOST, lost * factor) for unit, lost in self.lost.items()}

    def observe(self, executed: float, targets: float, *, steps: int = 1) -> None:
        """Take in what was measured over the last `steps` steps.

        Args:
            executed: The executed reduction of the predicted masks.
            targets: That of the target masks.
            steps: Steps since the last observation.
        """
        if self.target is None:
            return
        room = self.target - targets
        error = min(max(self.target - executed, room - MARGIN), room + MARGIN)
        move = steps * error / (SLOPE * self.horizon)
        largest = math.log(max(self.lost.values()))
        self.z += max(-LARGEST_MOVE, min(LARGEST_MOVE, move))
        self.z = max(math.log(LEAST) - largest, min(math.log(MOST) - largest, self.z))

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""
        return {"lost": self.lost, "z": self.z}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.lost, self.z = dict(state["lost"]), state["z"]
