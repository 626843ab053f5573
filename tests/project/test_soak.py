"""The soak's judgement: what leaks is found in a short run, what does not passes."""

import itertools
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import soak

    yield soak
    del sys.modules["soak"]


def samples(soak, *, rounds=60, growth=0.0, files=6, threads=2, jump=0):
    """Half an hour: a warm-up of 40 MB, noise of 8 MB, and what grows."""
    return [
        soak.Sample(
            seconds=30.0 * (n + 1),
            round=n,
            memory_mb=400 - 40 * 0.5**n + 8 * (n * 7919 % 13) / 13 + growth * n,
            files=files + jump * n // 20,
            threads=threads,
            objects=1000,
        )
        for n in range(rounds)
    ]


def test_noise_and_a_warm_up_are_no_growth(soak):
    judged = soak.judge(samples(soak))
    assert judged.faults == () and abs(judged.growth_mb_per_hour) < 10
    assert judged.samples == 49  # of 60, a fifth of the time left out


@pytest.mark.parametrize(
    ("growing", "said"),
    [
        ({"growth": 1.0}, "memory grows by 1[12][0-9]\\.. MB an hour, more than 60"),
        ({"jump": 1}, "open files grew from 7 to 8"),
    ],
)
def test_what_grows_is_named(soak, growing, said):
    [fault] = soak.judge(samples(soak, **growing)).faults
    assert re.search(said, fault), fault


def test_a_run_that_is_too_short_is_not_judged(soak):
    with pytest.raises(ValueError, match="6 are needed; give more --minutes"):
        soak.judge(samples(soak, rounds=6))
    with pytest.raises(ValueError, match="0 rounds"):
        soak.judge([])


@pytest.mark.slow
def test_a_leak_is_caught_in_a_short_run_and_none_without(soak, monkeypatch):
    kept: list[object] = []

    def leak(number: int) -> None:
        # Straight from the system: what other tests gave back would serve an ordinary allocation.
        kept.append(mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        kept[-1].write(b"x" * 2**20)  # type: ignore[attr-defined]
        kept.append(open(__file__))  # noqa: SIM115

    def work(number: int) -> None:
        bytearray(b"x" * 2**20)

    seconds = itertools.count()  # a clock that moves on by itself: 12 rounds, however busy it is
    monkeypatch.setattr(soak, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    told: list[str] = []
    clean = soak.judge(soak.soak(0.4, rounds=work, show=told.append), bound=1000)
    assert clean.faults == () and told
    leaking = soak.judge(soak.soak(0.4, rounds=leak, show=told.append), bound=1000)
    for file in kept[1::2]:
        file.close()  # type: ignore[attr-defined]
    assert len(leaking.faults) == 2
    assert "memory grows" in leaking.faults[0] and "open files grew" in leaking.faults[1]


@pytest.mark.slow
def test_rounds_do_all_of_it(soak):
    work = soak.Soak()
    work.round(0)
    assert work.done == {"training_steps": 6, "resumes": 1, "engines": 12, "engine_runs": 78}
