"""What changes during training, as pure functions of the step: there is no state to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rates and phases of a run at any step.

    Args:
        config: The training's settings.
        steps_per_epoch: Batches in an epoch, on each process.
    """

    config: TrainConfig
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def network_lr(self, step: int) -> float:
        """Learning rate of the network: linear warm-up, then cosine to zero or drops."""
        config = self.config
        rising = config.warmup_epochs * self.steps_per_epoch
        if step < rising:
            return config.lr * (step + 1) / (rising + 1)
        if config.schedule == "cosine":
            progress = (step - rising) / max(1, self.steps - rising)
            return config.lr * (1 + math.cos(math.pi * progress)) / 2
        drops = sum(step >= round(milestone * self.steps) for milestone in config.milestones)
        return config.lr * config.lr_decay**drops

    @property
    def steering_start(self) -> int:
        """First step at which the budget is steered: warm-up and annealing are over."""
        falling = round(self.config.anneal_epochs * self.steps_per_epoch)
        return max(self.warm_up, falling)

    @property
    def warm_up(self) -> int:
        """Steps of the predictors' warm-up: as set, or half of those before the cooldown if that
        begins earlier.
        """
        steps, most = self.config.predictor_warmup_steps, self.cooldown_start
        return steps if steps <= most else most // 2

    @property
    def cooldown_start(self) -> int:
        """First step at which the predictors stand still."""
        return round(self.config.cooldown * self.steps)

    def warms_up(self, step: int) -> bool:
        """Whether only the predictors learn, behind open gates."""
        return step < self.warm_up

    def cools_down(self, step: int) -> bool:
        """Whether the predictors stand still."""
        return step >= self.cooldown_start

    def steers(self, step: int) -> bool:
        """Whether r moves: it is annealed, or follows a budget."""
        moves = self.config.anneal_epochs > 0 or self.config.target_reduction is not None
        return moves and not self.cools_down(step)

    def anneal(self, step: int) -> float:
        """How far r has come from 1 to its target, in [0, 1]."""
        falling = self.config.anneal_epochs * self.steps_per_epoch
        return min(1.0, (step + 1) / falling) if falling else 1.0
