"""Time several ways of running one network, in turns, so that all of them see the same machine."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REST_S, WARMUP_S = 0.05, 0.02  # before each turn
PRIORITY = 50  # of 1 to 99, among what runs before everything else
_realtime: ContextVar[bool] = ContextVar("realtime", default=False)


@dataclass(frozen=True)
class Contestant:
    """One way of running a network.

    Args:
        take: Makes batch number i the next to be run. Not timed.
        infer: Runs it and returns the output, (B, classes). Timed.
        settings: How it was set up, for the reader.
    """

    take: Callable[[int], None]
    infer: Callable[[], np.ndarray]
    settings: str


def time_in_turns(
    contestants: Mapping[str, Contestant], batches: int, *, rounds: int
) -> dict[str, np.ndarray]:
    """Let each in turn run all batches, each of them `rounds` times.

    A turn begins with a rest and a warm-up that are not timed. After its last call, ONNX Runtime's
    workers wait in a busy loop for some 30 ms more, OpenMP's for 5: on two cores that made OpenVINO
    look 1.7 times slower than it is, and forbidding the loop makes ONNX Runtime 1.7 times slower on
    small networks. A rest of 50 ms ends it, as measured on an idle machine: each is then as fast as
    it is alone, so they need no processes of their own. The warm-up brings back caches and workers.

    Returns:
        Contestant -> (rounds, batches) seconds.
    """
    seconds = {name: np.empty((rounds, batches)) for name in contestants}
    with _no_garbage():
        for round_ in range(rounds):
            for name, contestant in contestants.items():
                time.sleep(REST_S)
                with _before_others(_realtime.get()):
                    _warm_up(contestant)
                    for batch in range(batches):
                        seconds[name][round_, batch] = _time(contestant, batch)
    return seconds


def time_shuffled(
    contestant: Contestant, batches: int, *, rounds: int, random: np.random.Generator
) -> np.ndarray:
    """Run all batches in a new order each round, as if they came from a stream.

    Returns:
        (rounds, batches) seconds.
    """
    seconds = np.empty((rounds, batches))
    with _no_garbage():
        for row in seconds:
            time.sleep(REST_S)
            with _before_others(_realtime.get()):
                _warm_up(contestant)
                for batch in random.permutation(batches):
                    row[batch] = _time(contestant, int(batch))
    return seconds


def faster_half(seconds: np.ndarray) -> np.ndarray:
    """Of each batch the faster half of its rounds: what others on the machine take only adds.

    Other guests of a host can take half of a core's speed for half of the time, and nothing in the
    guest shows it. Two runs on such a machine found one speed-up to be 1.11 and 1.25 by the medians
    of all rounds, 1.30 and 1.31 by those of the faster half; on quiet ones both agree within 2%.

    Args:
        seconds: (rounds, batches).

    Returns:
        (half of the rounds, rounded up; batches), each column rising.
    """
    return np.sort(seconds, axis=0)[: -(-len(seconds) // 2)]


def quartiles(seconds: np.ndarray) -> np.ndarray:
    """Lower quartile, median and upper quartile of each batch's faster half: (3, batches)."""
    return np.percentile(faster_half(seconds), [25, 50, 75], axis=0)


def fastest(variants: Sequence[Contestant]) -> Contestant:
    """The one of least time for the first batch: the median of its faster half."""
    named = {str(number): variant for number, variant in enumerate(variants)}
    taken = time_in_turns(named, 1, rounds=9)
    medians = {name: quartiles(seconds)[1, 0] for name, seconds in taken.items()}
    return named[min(medians, key=medians.__getitem__)]


def _time(contestant: Contestant, batch: int) -> float:
    contestant.take(batch)
    start = time.perf_counter()
    contestant.infer()
    return time.perf_counter() - start


def _warm_up(contestant: Contestant) -> None:
    contestant.take(0)
    end = time.perf_counter() + WARMUP_S
    while time.perf_counter() < end:
        contestant.infer()


@contextmanager
def disturbance() -> Iterator[list[float]]:
    """Measure what other processes do meanwhile.

    Yields:
        A list that holds, when all is done, the mean number of cores that others kept busy; it
        stays empty where the system does not tell.
    """
    others: list[float] = []
    start, before, mine = time.perf_counter(), _busy_s(), time.process_time()
    yield others
    after = _busy_s()
    if before is not None and after is not None:
        used = (after - before) - (time.process_time() - mine)
        others.append(max(0.0, used / (time.perf_counter() - start)))


@contextmanager
def realtime(wanted: bool = True) -> Iterator[None]:
    """While it lasts, threads of this process come before all others during a turn (Linux).

    Raises:
        RuntimeError: The system has no such thing, or does not let this user.
    """
    if wanted:
        with _before_others(True):  # tell now if the system refuses
            pass
    token = _realtime.set(wanted or _realtime.get())
    try:
        yield
    finally:
        _realtime.reset(token)


@contextmanager
def _before_others(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    try:
        _schedule(os.SCHED_FIFO, PRIORITY)
    except (AttributeError, OSError) as refused:
        raise RuntimeError(
            f"realtime: the system refuses ({refused}); it needs Linux and the right to, as root "
            "or by CAP_SYS_NICE; or leave it out and measure on an idle machine"
        ) from refused
    try:
        yield
    finally:
        _schedule(os.SCHED_OTHER, 0)


def _schedule(policy: int, priority: int) -> None:
    """Schedule all threads of this process so; those that end meanwhile do not matter."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def _busy_s() -> float | None:
    """CPU seconds that all processes, and other guests of the host, used since the start."""
    try:
        _, *ticks = Path("/proc/stat").read_text().splitlines()[0].split()
        user, nice, system, _, _, interrupts, soft, stolen = map(int, ticks[:8])
    except (OSError, ValueError):
        return None  # not Linux
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Keep the garbage collector from running inside a call that is timed."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
