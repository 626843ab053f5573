"""Learning rates and phases, in closed form."""

import pytest

from ftwt.config import TrainConfig
from ftwt.training.schedules import Schedule


def test_published_milestones_fall_at_epochs_81_122_151_of_200() -> None:
    schedule = Schedule(TrainConfig(epochs=200, lr=0.1, schedule="step"), steps_per_epoch=391)
    rates = [schedule.network_lr(epoch * 391) for epoch in range(200)]
    drops = [e for e in range(1, 200) if rates[e] < rates[e - 1]]
    assert drops == [81, 122, 151]
    assert rates[-1] == pytest.approx(1e-4)


def test_cosine_falls_from_the_peak_to_zero_after_a_linear_warm_up() -> None:
    config = TrainConfig(epochs=10, lr=0.2, warmup_epochs=2, schedule="cosine")
    schedule = Schedule(config, steps_per_epoch=10)
    rates = [schedule.network_lr(step) for step in range(100)]
    steps = [b - a for a, b in zip(rates[:20], rates[1:21], strict=True)]
    assert steps == pytest.approx([0.2 / 21] * 20)
    assert max(rates) == rates[20] == 0.2
    assert rates[60] == pytest.approx(0.1)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[99] < 1e-3


def test_phases() -> None:
    config = TrainConfig(epochs=4, predictor_warmup_steps=3, cooldown=0.5, anneal_epochs=1)
    schedule = Schedule(config, steps_per_epoch=10)
    assert [step for step in range(40) if schedule.warms_up(step)] == [0, 1, 2]
    assert [step for step in range(40) if schedule.cools_down(step)] == list(range(20, 40))
    anneal = [schedule.anneal(step) for step in range(40)]
    assert anneal[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(anneal[9:]) == {1.0}


def test_a_warm_up_that_does_not_fit_takes_half_of_the_steps_before_the_cooldown() -> None:
    config = TrainConfig(epochs=2, predictor_warmup_steps=200, target_reduction=0.3)
    schedule = Schedule(config, steps_per_epoch=14)
    assert [step for step in range(28) if schedule.warms_up(step)] == list(range(7))
    assert schedule.steering_start == schedule.warm_up == 7
    assert Schedule(config, steps_per_epoch=200).warm_up == 200


def test_phases_can_be_off() -> None:
    schedule = Schedule(TrainConfig(epochs=2, cooldown=1), steps_per_epoch=5)
    assert not any(schedule.warms_up(s) or schedule.cools_down(s) for s in range(10))
    assert {schedule.anneal(s) for s in range(10)} == {1.0}
