"""Damaged files: loaded to the same values, or refused by a ValueError that names the file."""

import json
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import result_files
import synthetic
import tiny
import toys
from damage import Damage, joined, split
from ftwt import Recording, from_pretrained, save_pretrained
from ftwt.config import TrainConfig
from ftwt.files import tensors
from ftwt.files.json import write_json
from ftwt.records import recording
from ftwt.records.folder import SETTINGS
from ftwt.report import read, write_report
from ftwt.report.reading.read import read_metrics
from ftwt.runs.run import _recall
from ftwt.training.interrupts import requests
from ftwt.training.loop import _Run

QUICK, MANY = 40, 1000
SECONDS, MEMORY = 30, 2**31  # that one file may take at most


@dataclass
class Target:
    """A file to damage.

    Args:
        path: The file.
        read: Reads it, or the folder that it is in.
        same: Whether what was read is what a whole file holds; None where nobody can tell.
        sign: Gives a file of tensors the digest of its content.
    """

    path: Path
    read: Callable[[], Any]
    same: Callable[[Any], bool] | None = None
    sign: Callable[[bytes], bytes] | None = None


def signed(digest: Callable[[Any, str], str], load: Callable[[bytes], Any]) -> Any:
    def sign(content: bytes) -> bytes:
        header, data = split(content)
        try:
            text = header["__metadata__"]["ftwt"]
            header["__metadata__"]["sha256"] = digest(load(content), text)
        except Exception:  # it is no safetensors file any more
            return content
        return joined(header, data)

    return sign


SIGN = signed(tensors._digest, safetensors.torch.load)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, NaN or not."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a
    )


def network(folder: Path) -> Target:
    model = toys.dynamic()
    save_pretrained(model, folder)

    def load() -> Any:
        loaded: Any = from_pretrained(folder, model=toys.Toy())
        return loaded.state_dict(), loaded.config

    before, config = load()
    return Target(
        folder / "model.safetensors",
        load,
        same=lambda found: equal(found[0], before) and found[1] == config,
        sign=SIGN,
    )


def training(folder: Path) -> Target:
    config = replace(toys.FULL, epochs=2, precision="fp32", batch_size=16)
    toys.fit(toys.dynamic(), config, output=folder)
    given: tuple[TrainConfig, Path, None] = (config, folder, None)

    def resume() -> Any:
        batches = toys.batches(train=True), toys.batches(train=False)
        with requests() as stop:
            run = _Run(toys.dynamic(), *batches, *given, stop)
            run.restore(folder / "checkpoint.safetensors")
        state = {name: tensor.clone() for name, tensor in run.learner.state().items()}
        return state, (run.step, run.history, run.logged, run.learner.controller.state())

    before = resume()
    return Target(
        folder / "checkpoint.safetensors",
        resume,
        same=lambda found: equal(found[0], before[0]) and found[1] == before[1],
        sign=SIGN,
    )


def settings(folder: Path) -> Target:
    def resume() -> None:
        _recall(tiny.CONFIG, folder, resume=True)

    write_json(folder / SETTINGS, tiny.CONFIG.to_json())
    return Target(folder / SETTINGS, resume, same=lambda _: True)  # others than asked are refused


def metrics(folder: Path) -> Target:
    toys.fit(toys.dynamic(), replace(toys.CONFIG, epochs=2), output=folder)
    path = folder / "metrics.jsonl"
    return Target(path, lambda: read_metrics(path))


def recorded(folder: Path) -> Target:
    path = folder / "recording.safetensors"
    synthetic.recording(images=30, shown=4, channels=(4, 8), side=6).save(path)

    def bits(record: Recording) -> Any:
        arrays = (
            record.labels,
            record.executed_macs,
            record.pictures,
            *record.packed_masks.values(),
        )
        return [array.tobytes() for array in arrays], record.units, record.classes

    before = bits(Recording.load(path))
    return Target(
        path,
        lambda: Recording.load(path),
        same=lambda record: bits(record) == before,
        sign=signed(recording._digest, safetensors.numpy.load),
    )


def result(values: Any, *, page: bool = False) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        path = result_files.write(folder / "result.json", values)
        if page:
            return Target(path, lambda: write_report([path], folder / "page.html"))
        return Target(path, lambda: read([path]))

    return make


RUN = result_files.run(0.93, 0.3)
TARGETS: dict[str, Callable[[Path], Target]] = {
    "weights": network,
    "checkpoint": training,
    "settings": settings,
    "metrics": metrics,
    "recording": recorded,
    "run": result(RUN),
    "evaluation": result(result_files.evaluation(0.9) | {"provenance": result_files.provenance()}),
    "estimate": result(result_files.estimate()),
    "benchmark": result(result_files.benchmark()),
    "corruptions": result(result_files.corruptions("runs/a", 0.9)),
    "page of a run": result(RUN, page=True),
    "page of an estimate": result(result_files.estimate(), page=True),
    "page of a benchmark": result(result_files.benchmark(), page=True),
}
COSTLY = {"checkpoint", "page of a run", "page of an estimate", "page of a benchmark"}


@contextmanager
def bounded() -> Iterator[None]:
    """Neither a hang nor a huge allocation goes by unseen."""

    def hang(number: int, frame: Any) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def fuzz(target: Target, start: int, count: int) -> Counter[str]:
    """Damage a file in ways that have numbers, and read each; whatever is wrong escapes."""
    whole, told = target.path.read_bytes(), Counter[str]()
    damage = Damage(whole, target.sign)
    for seed in range(start, start + count):
        content, sign = damage.make(seed)
        target.path.write_bytes(content)
        try:
            with bounded():
                found = target.read()
        except ValueError as error:
            near = (str(target.path), str(target.path.parent))
            assert any(place in str(error) for place in near), f"{seed}: which file? {error}"
            for cause in causes(error):
                lack = isinstance(cause, MemoryError) or "allocate memory" in str(cause)
                assert not lack, f"{seed}: {error}"
            told["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(f"damage {seed}") from error
        told["loaded"] += 1
        if target.same is not None and not sign:
            assert target.same(found), f"damage {seed} loads to something else"
    target.path.write_bytes(whole)
    return told


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.filterwarnings("default")  # of numbers that overflow, before they are refused
def test_damaged_files_are_refused_or_whole(kind: str, tmp_path: Path) -> None:
    count = QUICK // 4 if kind in COSTLY else QUICK
    told = fuzz(TARGETS[kind](tmp_path), 0, count)
    assert told["refused"] > 0.2 * count
    assert told["refused"] + told["loaded"] == count


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.filterwarnings("default")
def test_many_damaged_files_are_refused_or_whole(kind: str, tmp_path: Path) -> None:
    count = MANY // 4 if kind in COSTLY else MANY
    told = fuzz(TARGETS[kind](tmp_path), QUICK, count)
    print(f"\n{kind}: {dict(told)}")  # -s shows it


def test_the_fuzz_finds_a_reader_that_is_not_careful(tmp_path: Path) -> None:
    path = result_files.write(tmp_path / "a.json", {"weights": [1, 2, 3], "kind": {"a": 1}})
    whole = json.loads(path.read_text())

    def careless() -> Any:
        return json.loads(path.read_text())

    with pytest.raises(AssertionError, match=r"which file\?|loads to something else|damage \d+"):
        fuzz(Target(path, careless, same=lambda found: found == whole), 0, QUICK)
    with pytest.raises(AssertionError, match="damage"):
        fuzz(Target(path, lambda: np.zeros(2**33), same=None), 0, 1)
