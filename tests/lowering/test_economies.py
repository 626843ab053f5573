import numpy as np
import pytest
import torch
from torch import nn

import ftwt
from forced import MASKS, close, create, draw, scramble
from ftwt.lowering import lower
from ftwt.lowering.channels import reindex, silent, ties
from ftwt.lowering.economies import (
    cofiring,
    fix_constant,
    lay_out,
    open_gates,
    remove_fixed,
    remove_silent,
    runs,
)
from ftwt.runtime import Conv, Engine, Predict, Program, Stats
from ftwt.runtime.check import check

pytestmark = pytest.mark.filterwarnings("ignore:.* returns something else in training")
NETWORKS = (
    "cifar10-resnet20", "torchvision:regnet_x_400mf", "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x1_0", "torchvision:squeezenet1_1",
)  # fmt: skip
MORE = (
    "cifar10-mobilenet-v1", "cifar10-mobilenet-v2", "cifar10-vgg11-bn", "torchvision:resnet18",
    "torchvision:googlenet", "torchvision:efficientnet_b0", "torchvision:regnet_y_400mf",
    "torchvision:densenet121",
)  # fmt: skip
each_network = pytest.mark.parametrize(
    "name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)


def dynamic(name: str, **options: object) -> ftwt.DynamicModel:
    x = torch.randn(2, 3, 32, 32)
    return scramble(ftwt.convert(create(name), x, **options)).eval()  # type: ignore[arg-type]


def small(**options: object) -> ftwt.DynamicModel:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    return scramble(ftwt.convert(model, x, min_gain=-1e9, **options)).eval()  # type: ignore[arg-type]


def run(program: Program, x: torch.Tensor, masks: object = None) -> tuple[torch.Tensor, Stats]:
    check(program)
    return Engine(program, engine="reference").run(x, masks)  # type: ignore[arg-type]


def decided(program: Program, x: torch.Tensor) -> dict[int, np.ndarray]:
    masks = run(program, x)[1].masks
    return {index: masks[gate.unit] for index, gate in enumerate(program.gates)}


def weights(program: Program) -> int:
    return sum(array.size for array in program.constants.values())


@each_network
@pytest.mark.parametrize("form", [{}, {"residual": "after", "depthwise": "gate"}], ids=str)
def test_what_a_twin_never_computes_is_gone(name: str, form: dict[str, str]) -> None:
    x = torch.randn(4, 3, 32, 32)
    twin = dynamic(name, **form).freeze([(x, torch.zeros(4))])
    program = lower(twin)
    less = remove_fixed(program)
    expected, before = run(program, x)
    output, stats = run(less, x)
    close(output, expected)
    masks = {unit: torch.from_numpy(mask) for unit, mask in before.masks.items()}
    excess = before.executed_macs - twin.macs(masks).executed.numpy()
    if "regnet" in name:  # where a group is masked whole, what it alone reads is computed still
        excess[excess <= 0.002 * before.executed_macs] = 0
    assert (excess == 0).all()
    assert np.array_equal(stats.executed_macs, before.executed_macs)
    assert np.allclose(stats.keep, before.keep) and stats.keep.max() < 1
    assert weights(less) < weights(program)
    removed = less.notes["economies"]["removed"]
    masked = less.notes["economies"]["masked"]
    for gate in less.gates:
        assert gate.prior - gate.channels == removed.get(gate.unit, 0)
        assert (stats.masks[gate.unit] == 0).sum(1).tolist() == [masked.get(gate.unit, 0)] * 4


def test_a_network_without_additions_has_nothing_left_to_mask() -> None:
    x = torch.randn(4, 3, 32, 32)
    program = remove_fixed(lower(dynamic("cifar10-mobilenet-v1").freeze([(x, torch.zeros(4))])))
    assert not program.notes["economies"]["masked"]
    assert all(o.mask is None for o in program.operations if isinstance(o, Conv))


@each_network
def test_filters_that_never_fire_are_removed(name: str) -> None:
    program, x = lower(dynamic(name, residual="after")), torch.randn(5, 3, 32, 32)
    masks = decided(program, x)
    expected, before = run(program, x)
    less = remove_silent(program, masks)
    output, stats = run(less, x)
    close(output, expected)
    layers = {o.name: i for i, o in enumerate(program.operations) if isinstance(o, Conv)}
    for column, operation in enumerate(less.operations):
        if isinstance(operation, Conv):
            assert np.array_equal(stats.macs[:, column], before.macs[:, layers[operation.name]])
    assert weights(less) < weights(program)
    assert np.allclose(stats.keep, before.keep)
    other = run(less, 3 * torch.randn(5, 3, 32, 32))[1]  # what was removed stays removed
    for mask, gate in enumerate(less.gates):
        silent = int((~masks[mask].any(0)).sum())
        assert (other.masks[gate.unit].sum(1) <= gate.prior - silent).all()


def test_a_softmax_counts_channels_that_are_zero() -> None:
    program, x = lower(small(head="softmax")), torch.randn(5, 3, 32, 32)
    masks = decided(program, x)
    masks[0] &= np.arange(8) < 5
    less = remove_silent(program, masks)
    assert less.notes["economies"]["masked"]["0"] >= 3  # the gate of the next unit reads them
    assert less.gates[0].channels == 8
    units = [gate.unit for gate in program.gates]
    masks = {unit: masks[i] for i, unit in enumerate(units)}
    close(run(less, x)[0], run(program, x, {"0": masks["0"]})[0])


def test_masks_that_never_change_need_no_predictor() -> None:
    network, x = small(), torch.randn(5, 3, 32, 32)
    first, second = network.predictors.values()
    with torch.no_grad():
        first.linear.weight.zero_()
        first.linear.bias.fill_(1)
        second.linear.weight.zero_()
        second.linear.bias.copy_(torch.arange(16) - 10)
    program = lower(network)
    less = fix_constant(program, decided(program, x))
    assert less.notes["economies"]["constant"] == ["0", "2"]
    assert less.notes["economies"]["removed"] == {"2": 11}
    assert [type(o).__name__ for o in less.operations].count("Pool") == 1  # the network's own
    assert not any(isinstance(o, Predict) for o in less.operations)
    assert all(o.mask is None for o in less.operations if isinstance(o, Conv))
    output, stats = run(less, x)
    expected, before = run(program, x)
    close(output, expected)
    assert np.array_equal(stats.keep, before.keep)
    assert (stats.executed_macs < before.executed_macs).all()


def test_masks_that_change_keep_their_predictor() -> None:
    program = lower(small(pool="max"))
    masks = decided(program, torch.randn(9, 3, 32, 32) * torch.arange(9).reshape(9, 1, 1, 1))
    assert all(mask.any(0).sum() > mask.all(0).sum() for mask in masks.values())
    less = fix_constant(program, masks)
    assert less.operations == program.operations
    assert less.notes["economies"]["constant"] == []


@each_network
def test_layout_changes_nothing_but_places(name: str) -> None:
    program, x = lower(dynamic(name, pool="both")), torch.randn(3, 3, 32, 32)
    calm = lay_out(program, decided(program, x))
    before, after = calm.notes["economies"]["runs"]
    assert 1 <= after < before
    expected, old = run(program, x)
    output, new = run(calm, x)
    close(output, expected)
    assert np.array_equal(new.macs, old.macs) and np.array_equal(new.keep, old.keep)
    for unit, mask in old.masks.items():
        assert np.array_equal(new.masks[unit].sum(1), mask.sum(1))
    weight = {o.name: program.constants[o.weight] for o in program.operations if type(o) is Conv}
    for operation in calm.operations:
        if isinstance(operation, Conv):
            moved = calm.constants[operation.weight]
            assert np.array_equal(
                np.sort(moved, axis=None), np.sort(weight[operation.name], axis=None)
            )


def test_cofiring_puts_filters_together_that_fire_together() -> None:
    generator = np.random.default_rng(0)
    groups = generator.random((64, 4)) < 0.5
    fires = np.repeat(groups, 8, axis=1)[:, generator.permutation(32)]
    order = cofiring(fires)
    assert sorted(order) == list(range(32))
    assert runs(fires[:, order]) <= 2 < runs(fires)
    assert runs(np.array([[1, 1, 0, 1], [0, 0, 0, 0]], bool)) == 1


@each_network
def test_open_gates_compute_everything(name: str) -> None:
    program, x = lower(dynamic(name, residual="after")), torch.randn(2, 3, 32, 32)
    units = [gate.unit for gate in program.gates][::2]
    for some in (units, [gate.unit for gate in program.gates]):
        less = open_gates(program, some)
        assert [g.unit for g in less.gates] == [g.unit for g in program.gates if g.unit not in some]
        masks = draw(program, "random", 2)
        for unit in some:
            masks[unit][:] = True
        left = {unit: mask for unit, mask in masks.items() if unit not in some}
        close(run(less, x, left)[0], run(program, x, masks)[0])
        assert sum(isinstance(o, Predict) for o in less.operations) == len(less.gates)
    assert run(less, x)[1].executed_macs.tolist() == [program.dense_macs] * 2


def test_ties_join_what_must_agree() -> None:
    program = lower(dynamic("cifar10-mobilenet-v2"))
    found = ties(program)
    assert sum(len(tie.keys) for tie in found) == len(program.maps) + len(program.gates)
    owner = {key: tie for tie in found for key in tie.keys}
    assert not owner["map", 0].movable and not owner["map", program.output].removable
    for operation in program.operations:
        if isinstance(operation, Conv) and operation.groups > 1:
            assert owner["map", operation.x] is owner["map", operation.out]
        if isinstance(operation, Conv) and operation.add is not None:
            assert owner["map", operation.add] is owner["map", operation.out]


def test_nothing_is_silent_without_masks() -> None:
    program = lower(dynamic("cifar10-resnet20"))
    padded = [x for x, zero in silent(program, {}).items() if zero.any()]
    assert len(padded) == 2  # by the shortcuts, which pad with zeros
    same = reindex(program, {})
    assert same.operations == program.operations
    assert all(np.array_equal(same.constants[n], a) for n, a in program.constants.items())


@pytest.mark.parametrize("how", MASKS)
def test_economies_add_up(how: str) -> None:
    program, x = lower(dynamic("cifar10-resnet20")), torch.randn(6, 3, 32, 32)
    masks = decided(program, x)
    less = remove_silent(program, masks)
    less = fix_constant(less, decided(less, x))
    less = lay_out(less, decided(less, x))
    assert {"removed", "masked", "constant", "runs"} <= less.notes["economies"].keys()
    close(run(less, x)[0], run(program, x)[0])
    given = {unit: m for unit, m in draw(less, how, 6).items()}
    assert torch.isfinite(run(less, x, given)[0]).all()
