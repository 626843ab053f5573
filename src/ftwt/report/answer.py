"""The answer that a report starts with: what it cost, what it costs now, what that took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..records.contestants import DENSE, GATED
from ..records.recording import Recording
from .reading.found import Found
from .reading.groups import Group, twin_of
from .reading.records import Filed, Measured, Pruned, Run


@dataclass(frozen=True)
class Spread:
    """A figure of several runs.

    Args:
        mean: Their mean.
        std: Their standard deviation, of a sample; None of one run.
        count: Runs.
    """

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Answer:
    """One setting, before and after; accuracies and reductions are shares, as in the files.

    Args:
        name: The setting.
        network: The architecture.
        images: Test images.
        seeds: Runs of the setting.
        dense_top1: Accuracy of the dense network on the same images; None if no file says it.
        top1: Accuracy with gates.
        dense_macs: MACs for an image, dense.
        executed_macs: Mean MACs for an image with gates, predictors included.
        asked: Reduction asked for.
        predicted: Reduction that the estimate gave before any training.
        achieved: Reduction on test images.
        over_images: Its standard deviation over images, mean over runs.
        twin_top1: Accuracy of the static twins; None if there are none.
        twin_achieved: Their reduction.
        gain: Accuracy of a run less that of its twin, over the runs that have one.
        dense_ms: Time of an image on the engine, dense; None if it was not measured.
        dynamic_ms: The same with gates.
        timed: Where and how that was measured.
        kind: `dynamic`, `static` (one mask for all images), `mixed` or `second-look`.
        other: Of an untrained network: kind, accuracy and reduction of the best other candidate.
        dense_elsewhere: Of a dense network that was tested on other images alone, which is no
            comparison: its accuracy, and how many they are.
        twin_elsewhere: The same of a static twin.
    """

    name: str
    network: str
    images: int
    seeds: int
    dense_top1: float | None
    top1: Spread
    dense_macs: int
    executed_macs: Spread
    asked: float | None
    predicted: Spread | None
    achieved: Spread
    over_images: float
    twin_top1: Spread | None = None
    twin_achieved: Spread | None = None
    gain: Spread | None = None
    dense_ms: float | None = None
    dynamic_ms: float | None = None
    timed: str = ""
    kind: str = "dynamic"
    other: tuple[str, float, float] | None = None
    dense_elsewhere: tuple[float, int] | None = None
    twin_elsewhere: tuple[float, int] | None = None

    @property
    def paid(self) -> float | None:
        """Accuracy that was lost; negative if it was gained."""
        return None if self.dense_top1 is None else self.dense_top1 - self.top1.mean

    @property
    def noise(self) -> float:
        """How large a difference to the twins must be to say anything.

        It is the larger of its standard deviation over pairs of runs and of what chance alone does
        on so many test images, were the two networks' errors independent.
        """
        if self.gain is None:
            return 0.0
        chance = math.sqrt(2 * self.top1.mean * (1 - self.top1.mean) / self.images)
        return max(self.gain.std or 0.0, chance / math.sqrt(self.gain.count))

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return asdict(self) | {"paid": self.paid, "noise": self.noise}


def answers(found: Found) -> tuple[Answer, ...]:
    """The answer for each setting, the one to begin with first.

    That is the one with the most runs; among equals one with a twin, then the cheapest to describe:
    the usual gates, the least reduction.
    """
    groups = [part for part in found.groups if part.kind == "dynamic"]
    told = [_of_group(part, found) for part in groups]
    told.sort(key=lambda answer: (-answer.seeds, answer.gain is None))  # stable: groups have order
    told += [_of_pruned(one) for one in found.pruned]
    told += [_of_evaluation(one) for one in found.evaluations if one.result.units]
    lone = [(one.name, one.recording()) for one in found.recordings]
    return (*told, *(_of_recording(name, held) for name, held in lone if held.units))


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of one value or more."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(math.fsum(values) / len(values), std, len(values))


def _of_group(part: Group, found: Found) -> Answer:
    runs, before = part.runs, found.dense(part)
    both = [(run, twin) for run in runs if (twin := twin_of(run, found.runs)) is not None]
    pairs = [(run, twin) for run, twin in both if run.test.same_images(twin.test)]
    twins = [twin.test for _, twin in pairs]
    fair = before is not None and before.same_images
    predicted = [run.predicted for run in runs if run.predicted is not None]
    dense_ms, dynamic_ms, timed = _times(runs, found)
    return Answer(
        name=", ".join(word for word in (part.method.label, part.label) if word),
        network=part.network,
        images=runs[0].test.images,
        seeds=len(runs),
        dense_top1=before.result.top1 if before is not None and fair else None,
        top1=spread([run.test.top1 for run in runs]),
        dense_macs=runs[0].test.dense_macs,
        executed_macs=spread([run.test.executed_macs for run in runs]),
        asked=runs[0].asked,
        predicted=spread(predicted) if predicted else None,
        achieved=spread([run.test.reduction for run in runs]),
        over_images=spread([run.test.reduction_std for run in runs]).mean,
        twin_top1=spread([twin.top1 for twin in twins]) if twins else None,
        twin_achieved=spread([twin.reduction for twin in twins]) if twins else None,
        gain=spread([run.test.top1 - twin.test.top1 for run, twin in pairs]) if pairs else None,
        dense_elsewhere=None if before is None or fair else _tested(before.result),
        twin_elsewhere=_tested(both[0][1].test) if both and not pairs else None,
        dense_ms=dense_ms,
        dynamic_ms=dynamic_ms,
        timed=timed,
    )


def _tested(result: Measured) -> tuple[float, int]:
    return result.top1, result.images


def _times(runs: Sequence[Run], found: Found) -> tuple[float | None, float | None, str]:
    """Latencies of our engine, dense and gated, of the first run that a benchmark timed."""
    for timing in (file.result for file in found.benchmarks):
        run = found.run(timing.network)
        if run not in runs or timing.batch != 1 or timing.threads != 1:
            continue
        took = {one.name: one.latency_ms for one in timing.timings}
        dense, gated = took.pop(DENSE, None), took.pop(GATED, None)
        if dense is None or gated is None:
            continue
        cpu = (timing.provenance.get("hardware") or {}).get("cpu") or "CPU"
        how = f"our engine, one thread, {cpu}"
        if took:
            rival = min(took, key=lambda name: took[name])
            how += f"; the fastest dense rival, {rival}: {took[rival]:.2f} ms"
        return dense, gated, how
    return None, None, ""


def _of_evaluation(file: Filed[Measured]) -> Answer:
    result = file.result
    return Answer(
        name="evaluated by itself",
        network=str(file.name),
        images=result.images,
        seeds=1,
        dense_top1=None,
        top1=spread([result.top1]),
        dense_macs=result.dense_macs,
        executed_macs=spread([result.executed_macs]),
        asked=None,
        predicted=None,
        achieved=spread([result.reduction]),
        over_images=result.reduction_std,
    )


def _of_recording(name: str, recording: Recording) -> Answer:
    return Answer(
        name=f"recording {name}",
        network=recording.network,
        images=len(recording),
        seeds=1,
        dense_top1=None,
        top1=spread([float(recording.correct.mean())]),
        dense_macs=recording.dense_macs,
        executed_macs=spread([float(recording.executed_macs.mean(dtype="float64"))]),
        asked=None,
        predicted=None,
        achieved=spread([float(recording.reduction.mean())]),
        over_images=float(recording.reduction.std()),
    )


def _of_pruned(one: Pruned) -> Answer:
    after, ms = one.test, one.latency_ms
    others = [(kind, found) for kind, found in one.candidates.items() if kind != one.kind]
    best = max(others, key=lambda other: other[1].top1, default=None)
    rivals = {name: ms[name] for name in ms if name not in (*one.candidates, "dense")}
    timed = "our engine, one thread"
    if rivals:
        fastest = min(rivals, key=lambda name: rivals[name])
        timed += f"; the fastest dense rival, {fastest}: {rivals[fastest]:.2f} ms"
    return Answer(
        name=f"{one.kind}, repaired without training, {one.asked:.0%} asked",
        network=one.network,
        images=after.images,
        seeds=1,
        dense_top1=one.dense.top1,
        top1=spread([after.top1]),
        dense_macs=after.dense_macs,
        executed_macs=spread([after.executed_macs]),
        asked=one.asked,
        predicted=None,
        achieved=spread([after.reduction]),
        over_images=after.reduction_std,
        dense_ms=ms.get("dense"),
        dynamic_ms=ms.get(one.kind),
        timed=timed,
        kind=one.kind,
        other=(best[0], best[1].top1, best[1].reduction) if best else None,
    )
