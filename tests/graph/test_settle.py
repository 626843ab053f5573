"""What changes in place is read as it was changed: masks never hide work that must be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from brute_force import executed, positive, random_gates
from ftwt.graph.settle import changed, settle
from ftwt.graph.trace import trace

X = torch.rand(2, 3, 9, 9)
LABELS = torch.tensor([0, 1])
DENSE, HALF = 5 * 5 * 9 * 8 * 8, 5 * 5 * 9 * 4 * 8  # of the second layer


class Net(nn.Module):
    """A convolution with a gate, a statement about its map, and a second convolution."""

    def __init__(self, statement: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.statement = statement
        self.first, self.second = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3)
        self.head, self.shift = nn.Linear(8, 4), nn.Parameter(torch.rand(8, 1, 1) + 0.1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        self.statement(self, y)
        return self.head(self.second(y).mean((2, 3)))


def of_view(n: Any, y: Tensor) -> None:
    part = y[:, :4]
    part.add_(3)


def of_reshaped(n: Any, y: Tensor) -> None:
    y.view(y.shape[0], 8, -1).add_(n.shift[:, 0])


def through_two_views(n: Any, y: Tensor) -> None:
    part = y[:, 2:]
    part[:, :2].add_(1)


def indexed(n: Any, y: Tensor) -> None:
    y[:, :1] = 1


LIFTING: dict[str, Callable[[Any, Tensor], Any]] = {
    "add_ of a parameter": lambda n, y: y.add_(n.shift),
    "add_ of a number": lambda n, y: y.add_(1),
    "sub_": lambda n, y: y.sub_(-1),
    "+=": lambda n, y: y.__iadd__(n.shift),
    "sigmoid_": lambda n, y: y.sigmoid_(),
    "exp_": lambda n, y: y.exp_(),
    "fill_": lambda n, y: y.fill_(1),
    "copy_": lambda n, y: y.copy_(torch.ones_like(y)),
    "clamp_": lambda n, y: y.clamp_(min=0.1),
    "hardtanh_": lambda n, y: F.hardtanh_(y, 0.1, 1),
    "masked_fill_": lambda n, y: y.masked_fill_(y < 0.1, 0.1),
    "lerp_": lambda n, y: y.lerp_(torch.ones_like(y), 0.5),
    "addcmul_": lambda n, y: y.addcmul_(n.shift, n.shift),
    "index assignment": indexed,
    "of a view": of_view,
    "of a reshaped view": of_reshaped,
    "of a view's view": through_two_views,
}
KEEPING: dict[str, Callable[[Any, Tensor], Any]] = {
    "relu_": lambda n, y: y.relu_(),
    "mul_": lambda n, y: y.mul_(2),
    "div_": lambda n, y: y.div_(2),
    "a module in place": lambda n, y: n.relu(y),
    "not in place": lambda n, y: y + 1,
}


def converted(statement: Callable[[Any, Tensor], Any]) -> ftwt.DynamicModel:
    model = positive(Net(statement))
    dynamic = ftwt.convert(model, X.double(), skip=["second"]).eval()
    with torch.no_grad():
        found = dynamic(X.double(), gates="open")
        assert torch.equal(found, model(X.double()))
    return dynamic


def counted(dynamic: ftwt.DynamicModel) -> float:
    return dynamic.macs({"first": torch.arange(8)[None] < 4}).layers["second"].item()


@pytest.mark.parametrize("name", LIFTING)
def test_what_a_statement_in_place_lifts_is_active(name: str) -> None:
    assert counted(converted(LIFTING[name])) == DENSE


@pytest.mark.parametrize("name", KEEPING)
def test_what_keeps_zero_is_still_saved(name: str) -> None:
    assert counted(converted(KEEPING[name])) == HALF


@pytest.mark.parametrize("name", [*LIFTING, *KEEPING])
def test_no_count_is_below_the_multiplications_that_matter(name: str) -> None:
    dynamic = converted((LIFTING | KEEPING)[name])
    random_gates(dynamic, 2)
    images = X.double()
    masks = {n: g.mask for n, g in dynamic(images, return_gates="masks")[1].items()}
    layers, _ = executed(dynamic, images)
    found = dynamic.macs(masks).layers
    assert all((found[layer] >= macs).all() for layer, macs in layers.items())


def test_a_sum_with_what_was_changed_reads_the_change() -> None:
    class Both(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z = self.relu(y)
            return self.head(self.second(z + y).mean((2, 3)))

    network = trace(Both(lambda n, y: None).eval(), (X,))
    add = next(node for node in network.graph.nodes if node.name == "add")
    assert [node.name for node in add.args] == ["relu", "relu"]


def test_parts_that_share_no_element_are_left_alone() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = x[:, :1], x[:, 1:]
            left.add_(1)
            return torch.cat([left, right], 1)

    network = trace(Parts(), (X,))
    assert not any(node.target is changed for node in network.graph.nodes)
    whole = torch.fx.symbolic_trace(Parts())
    settle(whole, (X.clone(),))
    assert torch.equal(whole(X.clone()), Parts()(X.clone()))


@pytest.mark.parametrize(
    "first",
    [
        lambda x: x.sub_(0.5).div_(0.25),
        lambda x: x.mul_(2),
        lambda x: x.clamp_(0, 1),
    ],
    ids=["normalise", "scale", "clamp"],
)
def test_inputs_may_be_prepared_in_place(first: Callable[[Tensor], Tensor]) -> None:
    class Prepared(Net):
        def forward(self, x: Tensor) -> Tensor:
            first(x)
            return super().forward(x)

    model = Prepared(lambda n, y: None).eval()
    example = X.clone()
    dynamic = ftwt.convert(model, example).eval()
    assert torch.equal(example, X)
    with torch.no_grad():
        assert torch.equal(dynamic(example, gates="open"), model(X.clone()))
        assert torch.equal(example, X)
    wanted = ftwt.evaluate(model, [(X, LABELS)]).loss
    batches = [(X.clone(), LABELS)]
    for network in (model, dynamic, model):
        assert ftwt.evaluate(network, batches).loss == pytest.approx(wanted)
