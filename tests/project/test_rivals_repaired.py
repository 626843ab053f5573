"""What Torch-Pruning leaves, as fixed masks: the same network, so that it can be repaired alike."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning", reason='torch-pruning is not installed: ".[static]"')
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import masked  # noqa: E402
import repair as benchmark  # noqa: E402
import repair_cost  # noqa: E402
import structured  # noqa: E402
import subjects  # noqa: E402
from photographs import Padded  # noqa: E402
from structured import Task, prune_to, replay  # noqa: E402

import ftwt  # noqa: E402
from ftwt.files.json import read_json  # noqa: E402
from ftwt.models.mobilenet import mobilenet_v1  # noqa: E402
from ftwt.models.resnet import resnet  # noqa: E402
from ftwt.runs.candidates import prunable  # noqa: E402


@pytest.fixture(autouse=True)
def histories(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Few steps, near enough; what was taken out is noted."""
    found: list[Any] = []

    def coarse(*given: Any, **options: Any) -> Any:
        found.append(prune_to(*given, **options, tolerance=0.04))
        return found[-1]

    monkeypatch.setattr(structured, "STEPS", 12)
    monkeypatch.setattr(masked, "prune_to", coarse)
    return found


def padded() -> nn.Sequential:
    """Layers with biases that pad after, not before, as TensorFlow's do."""
    layers = [(3, 8, 2, 1), (8, 8, 1, 8), (8, 16, 1, 1), (16, 16, 2, 16), (16, 32, 1, 1)]
    convolutions = [
        Padded(torch.randn(out, fan_in // groups, 3, 3) / 3, torch.rand(out), stride=stride)
        for fan_in, out, stride, groups in layers
    ]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


@pytest.mark.parametrize("build", [lambda: resnet(8), lambda: mobilenet_v1(width=0.25), padded])
def test_masks_compute_what_the_smaller_network_computes(build, histories):
    network = build().eval()
    task = Task(network, torch.zeros(1, 3, 32, 32))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found, saved = masked.pruned_as_masks(task, 0.4)
    small = replay(task, histories[0])
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(found(images), small(images), rtol=1e-3, atol=1e-4)
    counted = found.macs({n: gate.mask[None] for n, gate in found.gates.items()})
    assert float(counted.reduction[0]) == pytest.approx(saved, abs=0.005)
    assert saved == pytest.approx(0.4, abs=0.04)
    assert all(torch.equal(before[n], value) for n, value in network.state_dict().items())


def test_the_rival_may_be_held_to_our_units():
    network = resnet(8).eval()
    inner = prunable(network, torch.zeros(2, 3, 32, 32))
    found, _ = masked.pruned_as_masks(Task(network, torch.zeros(1, 3, 32, 32)), 0.3, inner=inner)
    assert found.gates.keys() == inner.gates.keys()


def test_masks_that_compute_something_else_are_refused(monkeypatch):
    network = resnet(8).eval()
    monkeypatch.setattr(
        masked,
        "left",
        lambda task, _: {
            name: torch.arange(len(module.weight)) > 0
            for name, module in task.dense.named_modules()
            if hasattr(module, "weight")
        },
    )
    with pytest.raises(ValueError, match="something else than the network that Torch-Pruning"):
        masked.pruned_as_masks(Task(network, torch.zeros(1, 3, 32, 32)), 0.3)


def test_all_candidates_are_scored_with_repair_and_without():
    torch.manual_seed(0)
    network, images = resnet(8).eval(), torch.randn(40, 3, 32, 32)
    test = [(images[20:], torch.zeros(20, dtype=torch.long))]
    subject = subjects.subject_of("toy", network, images[:20].split(10), 20, test)
    with pytest.warns(UserWarning, match="unknowns"):
        rows = list(benchmark.compare(subject, 0.2, benchmark.KINDS))
    *rows, auto = rows
    refused = next(row for row in rows if "refused" in row)
    assert refused["kind"] == "mixed" and "no unit's gate leaves less" in refused["refused"]
    rows.remove(refused)
    assert [row["weights"] for row in rows] == 5 * [*benchmark.WAYS]
    assert len({row["kind"] for row in rows}) == 5
    ours = {row["kind"]: row for row in rows if row["weights"] == "repaired"}
    assert auto["weights"] == "repaired" and auto["judged"] == 10
    assert {*auto["chosen"].split(", ")} <= ours.keys()
    for row in rows:
        assert row["reduction"] == pytest.approx(0.2, abs=0.06)
        assert 0 <= row["agreement"] <= 1
    assert ftwt.evaluate(network, test).top1 == subject.top1


def test_kept_outputs_are_not_fitted_again(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network, images = resnet(8).eval(), torch.randn(40, 3, 32, 32)
    test = [(images[20:], torch.zeros(20, dtype=torch.long))]
    subject = subjects.subject_of("toy", network, images[:20].split(10), 20, test)
    options = {"kinds": ("static", "dynamic"), "ways": ("as it is", "repaired")}
    kept = benchmark.Kept(tmp_path / "outputs", "toy-20-seed0", {"commit": "abc"})
    fitted = list(benchmark.compare(subject, 0.2, **options, kept=kept))
    assert len(list(kept.folder.iterdir())) == 4
    asked: list[str] = []

    def refused(kind: str, *_: Any) -> Any:
        asked.append(kind)
        raise ValueError("fitted again")

    monkeypatch.setattr(benchmark, "candidate", refused)
    later = benchmark.Kept(kept.folder, kept.subject, {"commit": "def"})
    again = list(benchmark.compare(subject, 0.2, **options, kept=later))
    of_then = {"fitted_at": {"commit": "abc"}}
    assert again == [row if row["kind"] == "auto" else row | of_then for row in fitted]
    other = benchmark.Kept(kept.folder, "toy-20-seed1", None)  # other images to fit to
    assert "fitted again" in str(list(benchmark.compare(subject, 0.2, **options, kept=other)))
    assert asked == ["static", "dynamic"]


def test_what_is_chosen_by_one_half_is_scored_on_the_other():
    labels, dense = torch.zeros(12, dtype=torch.long), torch.eye(2)[torch.zeros(12, dtype=int)]
    subject = subjects.Subject("toy", resnet(8), [], 4, [(torch.zeros(12, 1), labels, dense)], 1.0)

    def scored(agrees: torch.Tensor) -> benchmark.Scored:
        outputs = torch.eye(2)[(~agrees).long()]
        return benchmark.Scored(outputs, agrees, agrees, torch.full((12,), 0.3))

    half = torch.arange(12) % 2 == 0  # here the gates agree with the dense network, there the mask
    found = benchmark.chosen(subject, {"greedy": scored(~half), "dynamic": scored(half)})
    assert found["top1"] == found["agreement"] == 0.0 and found["chosen"] == "dynamic, greedy"
    assert found["reduction"] == pytest.approx(0.3) and found["judged"] == 4
    everywhere = {"greedy": scored(torch.arange(12) > 1), "dynamic": scored(half | ~half)}
    found = benchmark.chosen(subject, everywhere)
    assert found["top1"] == 1.0 and found["chosen"] == "dynamic"


def test_what_a_repair_takes_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(repair_cost, "OUTPUT", tmp_path)
    network, images = resnet(8).eval(), torch.randn(20, 3, 32, 32)
    test = [(images[:2], torch.zeros(2, dtype=torch.long))]
    subject = subjects.subject_of("toy", network, images.split(10), 20, test)
    names = {"network": "/home/me/runs/toy", "weights": None, "imagenet": None}
    given = argparse.Namespace(reduction=0.2, threads=1, **names)
    repair_cost.measure(subject, given)
    found = read_json(tmp_path / "toy.json")
    assert found["images"] == 20 and found["layers"] == 3
    assert found["provenance"]["config"]["network"] == "toy"  # no place on this machine
    assert found["processor_s"] > 0 and found["ranking_s"] > 0 and found["peak_mb"] > 50
