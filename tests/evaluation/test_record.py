"""Recordings: masks, work, pictures and heatmaps are what the network computes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import ftwt
import tiny
import toys
from ftwt import DynamicModel, Recording, record
from ftwt.cli import main
from ftwt.data import Batches
from ftwt.evaluation.record import choose
from ftwt.pruning.second_look import margin
from ftwt.records.recording import RECORDING

COUNT = 96


@pytest.fixture(scope="module")
def dynamic() -> DynamicModel:
    """Gates that say something else for each image."""
    network = toys.dynamic(dropout=0.0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for predictor in network.predictors.values():
            shape = predictor.linear.weight.shape
            predictor.linear.weight.copy_(4 * torch.randn(shape, generator=generator))
            predictor.linear.bias.copy_(2 * torch.randn(shape[0], generator=generator))
    return network


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(toys.images(COUNT, seed=5), batch_size=20)


@pytest.fixture(scope="module")
def recording(dynamic, batches) -> Recording:
    return record(dynamic, batches, images=16, network="toy", provenance={"command": "a test"})


@torch.no_grad()
def layer_by_layer(dynamic: DynamicModel, images: torch.Tensor, gated: bool):
    """What each unit puts out and its masks, from the layers themselves: no gate, no hook."""
    layers = dynamic.network.features
    put_out, masks, features = [], [], images
    for number, predictor in enumerate(dynamic.predictors.values()):
        conv, norm = (
            layers.get_submodule(str(3 * number)),
            layers.get_submodule(str(3 * number + 1)),
        )
        after = torch.relu(norm(conv(features)))
        logits = predictor(features)
        mask = torch.sigmoid(logits) > 0.5
        mask[torch.arange(len(mask)), logits.argmax(1)] = True
        features = after * mask[:, :, None, None] if gated else after
        put_out.append(features)
        masks.append(mask)
    return put_out, masks, dynamic.network.classifier(features.mean((2, 3)))


@pytest.fixture(scope="module")
def images(batches) -> torch.Tensor:
    return torch.cat([batch for batch, _ in batches])


def test_masks_guesses_and_core_filters_are_those_of_a_direct_computation(
    dynamic, recording, images
):
    _, masks, outputs = layer_by_layer(dynamic, images, gated=True)
    assert len(recording) == COUNT
    np.testing.assert_array_equal(recording.predictions, outputs.argmax(1))
    np.testing.assert_allclose(
        recording.confidence, outputs.softmax(1).amax(1).numpy(), atol=1e-3, rtol=0
    )
    rows = ftwt.report.rows_of_run.unit_rows(recording)
    kinds = set()
    for unit, mask, row in zip(recording.units, masks, rows, strict=True):
        np.testing.assert_array_equal(recording.masks(unit.name), mask)
        always = never = sometimes = 0
        for filter_ in range(unit.channels):
            fired = sum(bool(mask[image, filter_]) for image in range(COUNT))
            always += fired == COUNT
            never += fired == 0
            sometimes += 0 < fired < COUNT
        assert (row["always"], row["sometimes"], row["never"]) == (always, sometimes, never)
        assert row["keep"] == pytest.approx(float(mask.float().mean()))
        assert row["keep_std"] == pytest.approx(float(mask.float().mean(1).std(correction=0)))
        kinds |= {name for name in ("always", "sometimes", "never") if row[name]}
    assert kinds == {"always", "sometimes", "never"}  # or the test would show little


def test_heatmaps_are_those_of_a_direct_computation(dynamic, recording, images):
    shown = images[torch.from_numpy(recording.shown).long()]
    for maps, gated in ((recording.dense_heatmaps, False), (recording.dynamic_heatmaps, True)):
        put_out, _, _ = layer_by_layer(dynamic, shown, gated=gated)
        assert list(maps) == [unit.name for unit in recording.units]
        for unit, features in zip(recording.units, put_out, strict=True):
            for image in range(len(shown)):
                wanted = sum(features[image, c].abs() for c in range(unit.channels))
                wanted = wanted / unit.channels
                np.testing.assert_allclose(
                    maps[unit.name][image].astype(float), wanted.double(), rtol=2e-3, atol=1e-3
                )
    unit = recording.units[-1].name
    assert not np.array_equal(recording.dense_heatmaps[unit], recording.dynamic_heatmaps[unit])


def test_work_is_what_evaluate_counts(dynamic, recording, batches):
    result = ftwt.evaluate(dynamic, batches)
    assert recording.reduction.mean() == pytest.approx(result.reduction, abs=1e-6)
    assert recording.reduction.std() == pytest.approx(result.reduction_std, abs=1e-6)
    assert recording.correct.mean() == result.top1
    assert recording.dense_macs == result.dense_macs
    for unit, row in zip(result.units, ftwt.report.rows_of_run.unit_rows(recording), strict=True):
        assert (unit.always, unit.never) == (row["always"], row["never"])
    layers = ftwt.count_macs(toys.Toy(), torch.zeros(1, 3, 8, 8)).layers
    assert [unit.macs for unit in recording.units] == [layer.macs for layer in layers[:3]]


def test_pictures_are_the_raw_pixels_of_the_images_they_are_of(recording):
    raw = toys.images(COUNT, seed=5)
    assert recording.classes == raw.classes
    np.testing.assert_array_equal(recording.labels, raw.labels)
    wanted = raw.images[torch.from_numpy(recording.shown).long()].permute(0, 2, 3, 1)
    np.testing.assert_array_equal(recording.pictures, wanted)


def test_without_mean_and_std_a_picture_is_stretched_and_grey_is_grey():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    image = torch.tensor([[-2.0, 0.0], [2.0, 2.0]]).repeat(2, 2)[None, None]
    held = record(network, [(image, torch.tensor([1]))])
    assert set(held.pictures[0, :, :, 0].ravel().tolist()) == {0, 128, 255}
    assert (held.pictures == held.pictures[..., :1]).all()
    assert held.classes == ("0", "1")


def test_a_plain_network_has_no_masks_and_costs_the_same_for_each_image(batches):
    held = record(toys.Toy(dropout=0.0), batches, images=8)
    assert held.units == () and held.packed_masks == {} and held.dense_heatmaps == {}
    assert held.executed_macs.std() == 0 and held.executed_macs[0] == held.dense_macs
    assert sorted(held.labels[held.shown].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_masks_may_be_the_targets_or_none(dynamic, batches):
    held = record(dynamic, batches, images=2, gates="open")
    assert all(held.masks(unit.name).all() for unit in held.units)
    targets = record(dynamic, batches, images=2, gates="target")
    first, (image, _) = targets.units[0].name, next(iter(batches))
    _, gates = dynamic(image, return_gates=True)
    np.testing.assert_array_equal(targets.masks(first)[:20], gates[first].target)


def test_a_unit_that_inherits_its_mask_is_named_where_it_comes_from():
    network = ftwt.models.create("cifar10-mobilenet-v1")
    dynamic = ftwt.convert(network, torch.zeros(2, 3, 32, 32))
    held = record(dynamic, [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))], images=1)
    inherited = {unit.name: unit.inherits for unit in dynamic.units if unit.inherits}
    assert {o: unit.name for unit in held.units for o in unit.inherited_by} == inherited
    assert len(inherited) > 10
    assert len(held.dense_heatmaps) == 6


def test_shown_are_the_cheapest_the_dearest_and_some_of_each_label():
    random = np.random.default_rng(0)
    labels, macs = random.integers(10, size=1000), random.permutation(1000).astype(np.float32)
    shown = choose(labels, macs, count=64)
    assert len(set(shown.tolist())) == 64 and (np.diff(shown) > 0).all()
    taken = set(macs[shown].tolist())
    assert set(range(12)) | set(range(988, 1000)) <= taken
    rest = [i for i in shown if 12 <= macs[i] < 988]
    assert np.bincount(labels[rest], minlength=10).min() == 4
    assert choose(labels[:5], macs[:5], count=64).tolist() == [0, 1, 2, 3, 4]
    rare = np.array([0] * 99 + [1])
    assert len(choose(rare, np.ones(100, np.float32), count=10)) == 10


def same(one: Recording, two: Recording) -> bool:
    plain = ("network", "classes", "dense_macs", "units", "provenance")
    arrays = ("labels", "predictions", "confidence", "executed_macs", "shown", "pictures")
    maps = ("packed_masks", "dense_heatmaps", "dynamic_heatmaps")
    return (
        all(getattr(one, name) == getattr(two, name) for name in plain)
        and all(_equal(getattr(one, name), getattr(two, name)) for name in arrays)
        and all(
            list(getattr(one, name)) == list(getattr(two, name))
            and all(map(_equal, getattr(one, name).values(), getattr(two, name).values()))
            for name in maps
        )
    )


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    return one.dtype == two.dtype and np.array_equal(one, two)


def test_what_is_saved_is_what_is_loaded(recording, tmp_path):
    path = tmp_path / "there" / "net.safetensors"
    recording.save(path)
    loaded = Recording.load(path)
    assert same(loaded, recording)
    assert not same(replace(loaded, labels=loaded.labels[::-1].copy()), recording)
    assert os.listdir(path.parent) == [path.name]
    tensors = load_file(path)
    assert tensors["labels"].dtype == np.int16
    assert tensors["masks.features.0"].shape == (COUNT, 1)
    assert tensors["shown.images"].shape == (16, 8, 8, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": -1}, "images=-1: keep none"),
        ({"units": ["features.1"]}, "no unit 'features.1'"),
        ({"classes": ("a", "b")}, "classes names 2 labels, the network has 4 outputs"),
    ],
)
def test_what_cannot_be_recorded_is_told(dynamic, batches, options, said):
    with pytest.raises(ValueError, match=said):
        record(dynamic, batches, **options)


def test_batches_must_come_twice_in_one_order(dynamic, batches):
    with pytest.raises(ValueError, match="can be gone through once"):
        record(dynamic, iter(batches))
    with pytest.raises(ValueError, match="no batches to record"):
        record(dynamic, [])

    class Shuffled:
        turn = 0

        def __iter__(self):
            self.turn += 1
            yield from reversed(list(batches)) if self.turn > 1 else batches

    with pytest.raises(ValueError, match="other images the second time"):
        record(dynamic, Shuffled())


def damaged(recording: Recording, path: Path, change) -> None:
    """Write a recording whose tensors and head were changed."""
    recording.save(path)
    tensors = load_file(path)
    head = {
        "format": 1,
        "network": recording.network,
        "classes": list(recording.classes),
        "dense_macs": recording.dense_macs,
        "units": [
            {
                "name": u.name,
                "channels": u.channels,
                "macs": u.macs,
                "predictor_macs": u.predictor_macs,
                "inherited_by": list(u.inherited_by),
            }
            for u in recording.units
        ],
        "provenance": {},
    }
    change(tensors, head)
    save_file(tensors, path, metadata={"ftwt": json.dumps(head)})


def _nan(tensors, head):
    tensors["confidence"][3] = np.nan


def _short(tensors, head):
    tensors["masks.features.3"] = tensors["masks.features.3"][:5]


def _wrong_type(tensors, head):
    tensors["labels"] = tensors["labels"].astype(np.int64)


def _other_label(tensors, head):
    tensors["labels"][0] = 7


def _outside(tensors, head):
    tensors["shown.indices"][0] = COUNT


def _half_a_pair(tensors, head):
    del tensors["heatmaps.features.0.dynamic"]


FAULTS = {
    "`confidence` holds a NaN": _nan,
    r"`masks.features.3` is uint8 of shape \(5, 1\); expected uint8 of \(96, 1\)": _short,
    r"`labels` is int64 of shape \(96,\); expected int16 of \(any\)": _wrong_type,
    r"`labels` go from 0 to 7; expected \[0, 3\]": _other_label,
    r"`shown.indices` must lie in \[0, 95\]": _outside,
    "`heatmaps.features.0.dynamic` is missing": _half_a_pair,
    "`executed_macs` is missing": lambda tensors, head: tensors.pop("executed_macs"),
    "`dense_macs` is 'many'; expected a whole": lambda t, head: head.update(dense_macs="many"),
    r"`units\[1\].channels` is 0; expected": lambda t, head: head["units"][1].update(channels=0),
    "`format` is 2, this ftwt reads 1": lambda tensors, head: head.update(format=2),
    "`classes` must be names": lambda tensors, head: head.update(classes=[1, 2, 3, 4]),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_damaged_recording_is_told_by_file_and_field(recording, tmp_path, said):
    path = tmp_path / "bad.safetensors"
    damaged(recording, path, lambda tensors, head: None)
    Recording.load(path)
    damaged(recording, path, FAULTS[said])
    with pytest.raises(ValueError, match=f"bad.safetensors: {said}"):
        Recording.load(path)


def test_a_truncated_or_foreign_file_is_no_recording(recording, dynamic, tmp_path):
    path = tmp_path / "cut.safetensors"
    recording.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut.safetensors is truncated or not a safetensors file"):
        Recording.load(path)
    ftwt.save_pretrained(dynamic, tmp_path / "net")
    with pytest.raises(ValueError, match="is not a recording, but another file of tensors"):
        Recording.load(tmp_path / "net" / "model.safetensors")
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="no metadata `ftwt`; make it with `ftwt evaluate"):
        Recording.load(path)
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "nowhere")


def test_the_command_line_records_a_run_into_its_folder(tiny_home, capsys):
    ftwt.run(tiny.CONFIG, output="runs/one")
    assert main(["evaluate", "runs/one", *tiny.DATA, "--record"]) == 0
    assert f"recorded: runs/one/{RECORDING}" in capsys.readouterr().out
    held = Recording.load(f"runs/one/{RECORDING}")
    result = json.loads(Path("runs/one/run.json").read_text())["test"]
    assert (held.network, len(held), len(held.shown)) == (tiny.NAME, 1000, 64)
    assert held.classes[3] == "cat"
    assert held.correct.mean() == pytest.approx(result["top1"])
    assert held.reduction.mean() == pytest.approx(result["reduction"], abs=1e-6)
    assert held.provenance["command"] and held.provenance["config"]["model"] == "runs/one"
    assert ftwt.report.read("runs").run("one").recording_path == Path(f"runs/one/{RECORDING}")

    assert main(["evaluate", tiny.NAME, *tiny.DATA, "--record", "dense.safetensors"]) == 0
    assert Recording.load("dense.safetensors").units == ()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--record"], "is not the folder of a run: name a file, --record FILE"),
        (["--record", "a", "b"], "--record a b: one file, after MODEL"),
    ],
)
def test_the_command_line_says_at_once_what_it_cannot_record(tiny_home, capsys, flags, said):
    assert main(["evaluate", tiny.NAME, *tiny.DATA, *flags]) == 1
    assert said in capsys.readouterr().err


def test_of_a_second_look_it_is_recorded_which_images_look_again(dynamic, batches, tmp_path):
    dear = toys.dynamic(dropout=0.0, r=1.0).eval()
    with torch.inference_mode():
        sure = torch.cat([margin(dynamic(images)) for images, _ in batches])
        network = ftwt.SecondLook([dynamic, dear], [float(sure.median())]).eval()
        passes = torch.cat([network.look(images).passes for images, _ in batches])
    assert 0 < int((passes > 1).sum()) < COUNT
    found = record(network, batches, images=8)
    assert found.passes is not None and found.passes.tolist() == passes.tolist()
    found.save(tmp_path / "look.safetensors")
    again = Recording.load(tmp_path / "look.safetensors")
    assert again.passes is not None and again.passes.tolist() == passes.tolist()
    right = float(found.correct[found.passes > 1].mean())
    assert f"{(passes > 1).double().mean():.1%} of 96 images are looked at again" in found.looks
    assert f"top-1 {right:.1%}; of the others" in toys.printed(again)
    with pytest.raises(ValueError, match="`passes` are 0 for an image"):
        replace(found, passes=found.passes * 0).save(tmp_path / "none.safetensors")
        Recording.load(tmp_path / "none.safetensors")
