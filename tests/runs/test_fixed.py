"""Training under fixed masks: alone, with the dense network's second look, and both passes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import toys
from ftwt import convert, models, train
from ftwt.config import FixedConfig, RunConfig, TrainConfig
from ftwt.networks.pretrained import from_pretrained
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.pruning.dynamic import DynamicModel
from ftwt.pruning.second_look import SecondLook
from ftwt.runs.fixed import masked
from ftwt.runs.run import run
from ftwt.training.losses import divergence, task_loss

TRAIN = replace(tiny.DENSE.train, epochs=1, distillation=1.0)
SHARED = FixedConfig(0.3, "shared", 0.2)


def config(fixed: FixedConfig, **train: Any) -> RunConfig:
    return replace(tiny.DENSE, fixed=fixed, train=replace(TRAIN, **train))


def weights(network: DynamicModel) -> dict[str, torch.Tensor]:
    """Of its layers, without batch norm: the tiny network's are at 1, 4 and 7."""
    found = dict(network.network.named_parameters())
    return {name: value for name, value in found.items() if name.split(".")[0] not in "147"}


def test_a_fixed_mask_is_repaired_and_trained(tiny_home: Path) -> None:
    result = run(config(FixedConfig(0.3), lr=0.0), output="runs/fixed")
    network = resolve("runs/fixed").load()
    assert isinstance(network, DynamicModel) and not network.predictors
    assert result.test.reduction_std < 1e-12 and 0.3 <= result.test.reduction < 0.4
    dense = models.create(tiny.NAME, pretrained=True)
    refitted = network.restore().state_dict()["3.weight"]
    assert not torch.equal(refitted, dense.state_dict()["3.weight"])
    assert result.second_look is None and "second_look" not in result.to_json()


def test_the_dense_network_looks_again_as_it_is(tiny_home: Path) -> None:
    result = run(config(FixedConfig(0.3, "dense", 0.2)), output="runs/look")
    network = from_pretrained("runs/look/model")
    assert isinstance(network, SecondLook)
    assert toys.same(network.last.restore(), models.create(tiny.NAME, pretrained=True))
    assert not toys.same(network.first.restore(), network.last.restore())
    assert result.to_json()["asked_reduction"] == 0.2
    found = result.second_look
    assert found is not None and found["images"] == 400  # all that were held out
    assert result.validation.reduction == pytest.approx(found["reduction"])
    assert found["reduction"] == pytest.approx(0.2, abs=0.01)
    assert found["second_reduction"] == 0 and found["first_reduction"] > 0.3


def test_shared_weights_serve_both_passes_each_with_its_own_batch_norm(tiny_home: Path) -> None:
    run(config(SHARED), output="runs/sandwich")
    network = from_pretrained("runs/sandwich/model")
    assert isinstance(network, SecondLook)
    cheap, dear = weights(network.first), weights(network.last)
    assert cheap.keys() == dear.keys() and len(cheap) == 8
    assert all(torch.equal(cheap[name], dear[name]) for name in cheap)
    dense = models.create(tiny.NAME, pretrained=True).state_dict()
    assert not torch.equal(dear["3.weight"], dense["3.weight"])  # it was trained, too
    for name in ("4.running_mean", "4.weight"):
        first, second = (one.network.state_dict()[name] for one in (network.first, network.last))
        assert not torch.equal(first, second)


def test_a_step_of_both_passes_is_that_of_its_losses(tiny_home: Path) -> None:
    splits = load_splits(tiny.DENSE.data, batch_size=160)
    images, labels = next(iter(splits.train))
    dense = models.create(tiny.NAME, pretrained=True)
    network, twin = (masked(SHARED, dense, splits.plain).train() for _ in range(2))
    settings = TrainConfig(epochs=1, batch_size=160, lr=0.1, momentum=0.0, weight_decay=0.0,
                           distillation=0.5, temperature=2.0)  # fmt: skip
    train(network, [(images, labels)], splits.validation, settings, progress=False)
    assert isinstance(twin, SecondLook)
    cheap, dear = twin.first(images), twin.last(images)
    loss = torch.nn.functional.cross_entropy
    whole = loss(cheap, labels) + loss(dear, labels) + 0.5 * divergence(cheap, dear.detach(), 2.0)
    torch.testing.assert_close(task_loss((cheap, dear), labels, settings), whole)
    whole.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter -= 0.1 * parameter.grad  # type: ignore[operator]
    found = dict(network.named_parameters())
    for name, value in twin.named_parameters():
        torch.testing.assert_close(found[name], value)


def test_what_cannot_be_trained_for_both_passes_is_told() -> None:
    dynamic = convert(toys.Toy(), torch.zeros(2, 3, 8, 8), min_gain=-1.0)
    batches = [(toys.pixels(4), torch.zeros(4, dtype=torch.long))]
    look = SecondLook([dynamic, dynamic], [0.0])
    with pytest.raises(ValueError, match="freeze it"):
        train(look, batches, batches, TrainConfig(epochs=1))
    with pytest.raises(ValueError, match="leave out the teacher"):
        train(look, batches, batches, TrainConfig(epochs=1, distillation=1.0), teacher=toys.Toy())


@pytest.mark.parametrize(
    "values",
    [
        {"mask_reduction": 1.0},
        {"second_look": "dense"},
        {"average_reduction": 0.3},
        {"second_look": "shared", "average_reduction": 0.5},
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        FixedConfig(**values)


def test_fixed_masks_want_a_trained_network_and_nothing_beside_them() -> None:
    with pytest.raises(ValueError, match="a trained network"):
        replace(tiny.DENSE, fixed=SHARED, weights=None)
    with pytest.raises(ValueError, match="give one of them"):
        replace(tiny.CONFIG, fixed=SHARED)
