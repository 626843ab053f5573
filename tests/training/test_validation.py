"""What goes wrong after the steps of an epoch: it is told, and the checkpoint is whole."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from ftwt.files.tensors import load_tensors
from ftwt.training import journal
from ftwt.training.loop import train
from toys import CONFIG, fit, same


def spoilt(batches: Any, value: float) -> list[Any]:
    images, labels = next(iter(batches))
    images = images.clone()
    images[0, 0, 0, 0] = value
    return [(images, labels)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_spoilt_validation_image_is_told_and_the_epoch_is_kept(
    value: float, tmp_path: Path
) -> None:
    train_batches, val_batches = toys.batches(train=True), toys.batches(train=False)
    broken = toys.dynamic()
    with pytest.raises(ValueError, match=r"validation after epoch 1: image 0 .*not finite.*resume"):
        train(broken, train_batches, spoilt(val_batches, value), CONFIG, output=tmp_path)
    load_tensors(tmp_path / "checkpoint.safetensors")
    resumed, whole = toys.dynamic(), toys.dynamic()
    result = train(resumed, train_batches, val_batches, CONFIG, output=tmp_path, resume=True)
    expected = train(whole, train_batches, val_batches, CONFIG)
    assert same(resumed, whole)
    assert [e.val_loss for e in result.history] == [e.val_loss for e in expected.history]


def test_a_network_that_diverges_in_the_last_step_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss was finite; its weights are not any more. The older checkpoint stays."""
    from ftwt.training.learner import Learner

    model, learn = toys.Toy(), Learner.learn
    per_epoch = len(toys.batches(train=True))

    def diverge(self: Learner, step: int, images: Any, labels: Any) -> None:
        learn(self, step, images, labels)
        if step == 2 * per_epoch - 1:
            next(iter(model.parameters())).data.fill_(torch.nan)

    monkeypatch.setattr(Learner, "learn", diverge)
    said = r"validation loss became nan after epoch 2; .*checkpoint.*from before it; lower lr"
    with pytest.raises(FloatingPointError, match=said):
        fit(model, output=tmp_path)
    tensors, state = load_tensors(tmp_path / "checkpoint.safetensors")
    assert len(state["history"]) == 1
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line and json.loads(line)


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.json, "dumps", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        fit(toys.Toy(), output=tmp_path)


def test_a_folder_without_a_name_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="folder's name is empty; name one, or leave it out"):
        fit(toys.Toy(), output="")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", [(torch.zeros(0, 3, 8, 8), torch.zeros(0).long())])
def test_validation_without_images_is_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match="no batches to evaluate on"):
        train(toys.Toy(), toys.batches(train=True), [batch], CONFIG, progress=False)
