"""Networks with gates compile to one graph each, without breaks, and do the same as before.

`fullgraph` makes a break an error. The eager backend runs the graph that was captured, so that what
is compared are the captures; tests/training/test_train.py compiles whole training steps for real.
"""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toys
from ftwt import DynamicModel
from ftwt.pruning.method import mask_loss

CASES: list[dict[str, Any]] = [
    {"head": "standardized", "saliency": "peak", "pool": "mean"},
    {"head": "softmax", "saliency": "energy", "pool": "max", "mode": "joint"},
    {"head": "standardized", "saliency": "norm", "pool": "both", "straight_through": True},
    {"head": "softmax", "saliency": "mean", "variant": "uniform", "rank": 4},
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    """What was compiled before counts towards a limit."""
    torch.compiler.reset()


def whole(function: Any) -> Any:
    """The function as one graph."""
    return torch.compile(function, fullgraph=True, backend="eager")


def mixed(**options: Any) -> DynamicModel:
    """The toy network with gates that decide one way or the other."""
    dynamic = toys.dynamic(dropout=0, **options)
    for predictor in dynamic.predictors.values():
        nn.init.normal_(predictor.linear.weight)
        nn.init.normal_(predictor.linear.bias, std=0.3)
    return dynamic


def step(network: DynamicModel, images: Tensor, labels: Tensor) -> Any:
    """The losses of a training step."""
    outputs, gates = network(images, return_gates=True)
    return F.cross_entropy(outputs, labels) + mask_loss(gates), gates


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {k: p.grad for k, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values())))
def test_a_training_step_is_one_graph(options: dict[str, Any]) -> None:
    dynamic = mixed(**options).train()
    plain = copy.deepcopy(dynamic)
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 4
    expected, decided = step(plain, images, labels)
    expected.backward()
    found, gates = whole(step)(dynamic, images, labels)
    found.backward()
    assert torch.equal(found, expected)
    for unit, gate in decided.items():
        assert 0 < gate.mask.float().mean() < 1
        assert torch.equal(gates[unit].mask, gate.mask)
        assert torch.equal(gates[unit].target, gate.target)
    wanted = gradients(plain)
    assert wanted.keys() == gradients(dynamic).keys() and wanted
    for name, gradient in gradients(dynamic).items():
        torch.testing.assert_close(gradient, wanted[name])
    assert toys.same(dynamic, plain)  # statistics of norms too


@pytest.mark.parametrize("gates", ["predicted", "target", "open"])
def test_a_forward_pass_is_one_graph(gates: Any) -> None:
    dynamic, images = mixed().eval(), torch.randn(3, 3, 8, 8)
    assert torch.equal(whole(dynamic)(images, gates=gates), dynamic(images, gates=gates))
    output, masks = whole(dynamic)(images, gates=gates, return_gates="masks")
    expected, decided = dynamic(images, gates=gates, return_gates="masks")
    assert torch.equal(output, expected)
    assert all(torch.equal(masks[unit].mask, gate.mask) for unit, gate in decided.items())


def test_a_static_twin_is_one_graph() -> None:
    images = torch.randn(3, 3, 8, 8)
    twin = mixed().freeze([(images, torch.zeros(3))])
    assert torch.equal(whole(twin)(images), twin(images))


def test_a_break_is_an_error() -> None:
    dynamic, images = mixed().eval(), torch.randn(3, 3, 8, 8)

    def breaks(images: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return dynamic(images)

    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole(breaks)(images)
