"""How far a run has come: what a training checkpoint holds beside its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..config import TrainConfig
from .journal import Epoch
from .learner import Totals

FORMAT = 2  # of a training checkpoint
MOST_Z = 100.0  # a controller's state, a logarithm, stays far below


@dataclass(frozen=True)
class Progress:
    """A run after some steps.

    Args:
        step: Steps done, of all epochs.
        steps_per_epoch: Of the run's batches.
        config: The run's settings.
        controller: State of its `BudgetController`.
        history: What each epoch so far came to.
        logged: Sums of the epoch's figures when a line was last written.
        seconds: Since the run began, and since its epoch did.
    """

    step: int
    steps_per_epoch: int
    config: TrainConfig
    controller: Mapping[str, Any]
    history: tuple[Epoch, ...]
    logged: Totals
    seconds: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "format": FORMAT,
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "config": self.config.to_json(),
            "controller": self.controller,
            "history": [asdict(record) for record in self.history],
            "logged": self.logged,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Take back what `to_json` gave, and check that a run can have come so far.

        Raises:
            ValueError: It is of another format, or no state that a run can be in.
            KeyError, TypeError, AttributeError: A part is missing, or of another kind.
        """
        if state.get("format") != FORMAT:
            raise ValueError(f"has format {state.get('format')}, this ftwt reads {FORMAT}")
        step, steps = _whole(state["step"]), _whole(state["steps_per_epoch"])
        history = tuple(_epoch(record) for record in state["history"])
        ended = step // steps if steps else 0  # the last one perhaps without its validation
        if not steps or len(history) not in (ended, ended - (step % steps == 0)):
            raise ValueError(f"tells of {len(history)} epochs of {steps} steps after step {step}")
        lost, z = state["controller"]["lost"], *_numbers([state["controller"]["z"]])
        if not all(0 <= value <= 1 for value in _numbers(lost.values())) or abs(z) > MOST_Z:
            raise ValueError(f"has a controller whose z is {z:g} and lost mass outside [0, 1]")
        whole, epoch = _numbers(state["seconds"])
        return cls(
            step=step,
            steps_per_epoch=steps,
            config=TrainConfig.from_json(state["config"]),
            controller={"lost": lost, "z": z},
            history=history,
            logged=Totals(*_numbers(state["logged"])),
            seconds=(whole, epoch),
        )


def _epoch(record: Mapping[str, Any]) -> Epoch:
    _numbers(value for value in record.values() if value is not None)
    return Epoch(**record)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"counts {value!r} steps")
    return value


def _numbers(values: Iterable[Any]) -> list[Any]:
    found = list(values)
    for value in found:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"holds {value!r} where a number belongs")
    return found
