"""Which candidate is taken, and what is known of its time."""

import re

import numpy as np
import pytest
import torch

import toys
from ftwt import prune
from ftwt.fitting.repair import Repair
from ftwt.fitting.second_look import SecondLookFit
from ftwt.pruning.second_look import SecondLook
from ftwt.runs import latency
from ftwt.runs.candidates import Candidate, prunable
from ftwt.runs.choice import choose, timed

IMAGES = toys.pixels(200)


def candidate(kind: str, agreement: float, error: float, latency_ms: float | None) -> Candidate:
    told, look = Repair((), {}, 1), None
    if kind == "second-look":
        look = SecondLookFit(
            SecondLook([prunable(toys.classifier(), IMAGES)] * 2, [0.1]),
            (0.1,),
            (0.1,),
            0.3,
            0.97,
            0.95,
            50,
        )
    return Candidate(
        kind, 0.3, error, agreement, toys.classifier(), told, look, latency_ms=latency_ms
    )


@pytest.mark.parametrize(
    ("agreements", "errors", "times", "chosen", "why"),
    [
        (
            (0.94, 0.88, 0.97),
            (0.1, 0.2, 0.3),
            (0.8, 0.9, 0.98),
            "static",
            "but saving less than half .* second-look",
        ),
        (
            (0.94, 0.88, 0.97),
            (0.1, 0.2, 0.3),
            (0.8, 0.9, 0.88),
            "second-look",
            "static is the fastest",
        ),
        (
            (0.97, 0.96, 0.9),
            (0.2, 0.1, 0.0),
            (0.8, 0.85, 1.2),
            "dynamic",
            "error of 0.1000 .* on 96.0% .* and is 1.18 times as fast; static is the fastest",
        ),
        (
            (0.97, 0.94, 0.96),
            (0.2, 0.1, 0.3),
            (None, None, None),
            "second-look",
            "second-look is taken: it .* on 96.0%",
        ),
        (
            (0.94, 0.88, 0.97),
            (0.1, 0.2, 0.3),
            (1.1, 1.2, 1.3),
            "second-look",
            "0.77 times as fast",
        ),
    ],
)
def test_the_nearest_is_taken_of_what_saves_time(agreements, errors, times, chosen, why):
    kinds = ("static", "dynamic", "second-look")
    made = [candidate(*one) for one in zip(kinds, agreements, errors, times, strict=True)]
    best, told = choose(made, None if times[0] is None else 1.0)
    assert best.kind == chosen and re.search(why, told)


def test_times_are_those_of_more_images_than_a_batch_leaves(monkeypatch):
    """Batches of 81 leave the judges 2 images of one batch, and then 38 of the next."""
    seen = []

    def timed(made, whole, watch):
        seen.append(watch.images)
        return made, None, ""

    monkeypatch.setattr("ftwt.runs.prune.timed", timed)
    prune(toys.classifier(), IMAGES.split(81), reduction=0.3, gates="static")
    assert len(seen[0]) == 32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_second_look_of_another_precision_is_timed(dtype):
    pytest.importorskip("ftwt.runtime._native")
    dense, images = toys.classifier().to(dtype), IMAGES[:40].to(dtype)
    *_, one = prune(dense, [images], reduction=0.2, gates="second-look").candidates
    assert one.latency_ms is not None and one.latency_ms > 0


def test_why_says_that_times_were_not_measured(monkeypatch):
    def missing(watch, networks):
        raise RuntimeError("the engine was not built")

    monkeypatch.setattr(latency.Stopwatch, "times", missing)
    pruned = prune(toys.classifier(), [IMAGES], reduction=0.2, gates="static")
    assert pruned.why.endswith("; times were not measured: the engine was not built")
    assert pruned.dense_ms is None


def test_times_are_averages_over_images(monkeypatch):
    times = np.array([1.0, 2.0, 9.0])
    monkeypatch.setattr(
        latency.Stopwatch, "times", lambda _, networks: dict.fromkeys(networks, times)
    )
    dynamic, watch = prunable(toys.classifier(), IMAGES), latency.Stopwatch(IMAGES[:3].numpy())
    (one,), dense, untimed = timed([candidate("static", 1.0, 0.1, None)], dynamic, watch)
    assert (one.latency_ms, dense, untimed) == (4.0, 4.0, "")
