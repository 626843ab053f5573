"""Training can be stopped and resumed at any step, and loses nothing."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from ftwt.config import TrainConfig
from ftwt.networks.pretrained import load_tensors
from ftwt.training.loop import Interrupted, train
from toys import CONFIG, FULL, Watched, fit, run_python, same, untimed


@pytest.mark.parametrize(
    ("make", "config", "step", "number"),
    [
        (toys.Toy, CONFIG, 13, signal.SIGTERM),
        (toys.dynamic, CONFIG, 8, signal.SIGINT),  # at the end of an epoch
        (toys.dynamic, FULL, 2, signal.SIGINT),  # in the warm-up, before any epoch was saved
        (toys.dynamic, FULL, 13, signal.SIGINT),
        (toys.dynamic, FULL, 24, signal.SIGINT),  # right before the cooldown's calibration
        (toys.dynamic, FULL, 30, signal.SIGINT),
        (toys.dynamic, FULL, 32, signal.SIGTERM),  # when all is done but the end
    ],
)
def test_an_interrupted_run_ends_as_if_it_was_not(
    make: Any, config: TrainConfig, step: int, number: int, tmp_path: Path
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    whole, parts = make(), make()
    expected = fit(whole, config, output=tmp_path / "whole")
    stopping = Watched(step, lambda: os.kill(os.getpid(), number))
    validation = toys.batches(train=False)
    with pytest.raises(Interrupted, match=f"after step {step} of 32: .*resume=True"):
        train(parts, stopping, validation, config, output=tmp_path / "parts", progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    parts = make()
    result = fit(parts, config, output=tmp_path / "parts", resume=True)
    assert same(whole, parts)
    assert result.evaluation == expected.evaluation
    assert result.calibration == expected.calibration
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


KILLED = """
import os, signal, sys, toys
batches = toys.Watched(21, lambda: os.kill(os.getpid(), signal.SIGKILL))
validation = toys.batches(train=False)
toys.train(toys.dynamic(), batches, validation, toys.FULL, output=sys.argv[1], progress=False)
"""


def test_a_killed_run_ends_as_if_it_was_not(tmp_path: Path) -> None:
    whole, parts = toys.dynamic(), toys.dynamic()
    fit(whole, FULL, output=tmp_path / "whole")
    done = run_python("-c", KILLED, str(tmp_path / "parts"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 20, "lo')  # as if it had died while writing
    fit(parts, FULL, output=tmp_path / "parts", resume=True)
    assert same(whole, parts)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    one, other = toys.dynamic(), toys.dynamic()
    first = fit(one, FULL, output=tmp_path)
    again = fit(other, FULL, output=tmp_path, resume=True)
    assert same(one, other) and again.history == first.history


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_epoch(tmp_path: Path) -> None:
    model = toys.Toy()

    def poison() -> None:
        with torch.no_grad():
            model.classifier.bias.fill_(float("nan"))

    batches, validation = Watched(14, poison), toys.batches(train=False)
    with pytest.raises(FloatingPointError, match=r"at step 13 .*from before it; lower lr"):
        train(model, batches, validation, CONFIG, output=tmp_path, progress=False)
    tensors, state = load_tensors(tmp_path / "checkpoint.safetensors")
    assert state["step"] == 8
    assert all(value.isfinite().all() for value in tensors.values())
    whole, parts = toys.Toy(), toys.Toy()
    fit(whole)
    fit(parts, output=tmp_path, resume=True)
    assert same(whole, parts)


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write(self, data[:100])
        raise OSError(28, "No space left on device")

    validation = toys.batches(train=False)
    batches = Watched(20, lambda: monkeypatch.setattr(Path, "write_bytes", full))
    with pytest.raises(OSError, match="No space left.*free space"):
        train(toys.Toy(), batches, validation, CONFIG, output=tmp_path, progress=False)
    monkeypatch.undo()
    assert load_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == 16
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]
    whole, parts = toys.Toy(), toys.Toy()
    fit(whole)
    fit(parts, output=tmp_path, resume=True)
    assert same(whole, parts)


def test_without_write_permission_no_step_is_wasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    model = toys.Toy()
    with pytest.raises(PermissionError, match="get write permission"):
        fit(model, output=tmp_path / "run")
    assert same(model, toys.Toy())


def test_what_cannot_be_resumed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        fit(toys.Toy(), output=tmp_path, resume=True)
    with pytest.raises(ValueError, match="give output="):
        fit(toys.Toy(), resume=True)
    fit(toys.Toy(), output=tmp_path)
    with pytest.raises(ValueError, match="already holds a run.*--resume.*another folder"):
        fit(toys.Toy(), output=tmp_path)
    with pytest.raises(ValueError, match=r"lr was 0\.1, is 0\.2; seed was 3, is 4"):
        fit(toys.Toy(), replace(CONFIG, lr=0.2, seed=4), output=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"another architecture.*shape: features\.0\.weight"):
        fit(toys.Toy(width=6), output=tmp_path, resume=True)
    fewer = list(toys.batches(train=True))[:5]
    size = replace(CONFIG, batch_size=16)
    with pytest.raises(ValueError, match="another dataset: 8 steps an epoch, now 5"):
        train(toys.Toy(), fewer, fewer, size, output=tmp_path, resume=True)


def test_more_epochs_follow_the_schedule_of_so_many(tmp_path: Path) -> None:
    model, longer = toys.Toy(), replace(CONFIG, epochs=CONFIG.epochs + 2)
    fit(model, CONFIG, output=tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    more = toys.Toy()
    result = fit(more, longer, output=tmp_path, resume=True)
    assert [record.epoch for record in result.history] == list(range(1, longer.epochs + 1))
    assert any(not torch.equal(value, before[name]) for name, value in more.state_dict().items())
    whole = fit(toys.Toy(), longer).history
    assert [r.lr for r in result.history[-2:]] == [r.lr for r in whole[-2:]]
    assert result.history[-3].lr != whole[-3].lr  # the end of the shorter schedule
    with pytest.raises(ValueError, match=f"epochs was {longer.epochs}, is {CONFIG.epochs}"):
        fit(toys.Toy(), CONFIG, output=tmp_path, resume=True)
