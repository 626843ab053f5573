"""A traced network learns as the original does, or is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ftwt

X = torch.rand(4, 3, 9, 9)


class Round(torch.autograd.Function):
    """Rounds; its gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


rounded = Round.apply


class Net(nn.Module):
    """Two convolutions, and a function of the network and the image between."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.round = body, Round.apply
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.body(self, x)).mean((2, 3)))


def feature(n: Any, x: Tensor) -> Tensor:
    return F.relu(n.norm(n.first(x)))


def frozen(n: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return feature(n, x)


def frozen_parts(n: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        left, right = feature(n, x).chunk(2, 1)
    return torch.cat([left, right], 1)


@torch.no_grad()
def decorated(n: Any, x: Tensor) -> Tensor:
    return feature(n, x)


def inner(n: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = n.first(x)
        with torch.enable_grad():
            return F.relu(n.norm(y))


def dropped(function: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def body(n: Any, x: Tensor) -> Tensor:
        return function(feature(n, x).flatten(2), 0.5, n.training).unflatten(2, (7, 7))

    return body


KEPT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "no_grad": frozen,
    "no_grad, several": frozen_parts,
    "no_grad, as a decorator": decorated,
    "enable_grad inside": inner,
    "detach": lambda n, x: feature(n, x).detach(),
    "a straight-through function": lambda n, x: Round.apply(4 * feature(n, x)),
    "under another name": lambda n, x: rounded(4 * feature(n, x)),
    "as an attribute": lambda n, x: n.round(4 * feature(n, x)),
    "by detaching": lambda n, x: (lambda y: y + (y.round() - y).detach())(4 * feature(n, x)),
    "dropout": dropped(F.dropout),
    "dropout1d": dropped(F.dropout1d),
    "alpha_dropout": dropped(F.alpha_dropout),
    "feature_alpha_dropout": dropped(F.feature_alpha_dropout),
    "torch.dropout": dropped(torch.dropout),
    "dropout in place": lambda n, x: F.dropout(n.first(x), 0.5, n.training, True),
    "checkpointed": lambda n, x: checkpoint(lambda y: feature(n, y), x, use_reentrant=False),
    "dropout that is always on": lambda n, x: F.dropout(feature(n, x), 0.5),
}


def learned(model: nn.Module, *options: Any, **named: Any) -> dict[str, Tensor | None]:
    """Outputs and gradients of one pass with a seed."""
    torch.manual_seed(0)
    model.train()
    images = X.clone().requires_grad_()
    output = model(images, *options, **named)
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "ftwt_gates" not in name}
    return {"output": output.detach(), "input": images.grad} | gradients


@pytest.mark.parametrize("name", KEPT)
def test_it_learns_as_the_original(name: str) -> None:
    model = Net(KEPT[name])
    dynamic = ftwt.convert(model, X)
    for key, value in model.named_buffers():
        assert torch.equal(dynamic.state_dict().get(f"network.{key}", value), value), key
    wanted = learned(copy.deepcopy(model))
    found = learned(dynamic, gates="open")
    for key, value in wanted.items():
        ours = found.get(key, found.get(f"network.{key}"))
        if value is None:
            assert ours is None, key
        else:
            torch.testing.assert_close(ours, value, msg=key)


def test_what_no_gradient_reaches_stands_still() -> None:
    dynamic = ftwt.convert(Net(frozen), X, mode="joint")
    still = {name for name, p in dynamic.named_parameters() if not p.requires_grad}
    trunk = ("first.weight", "first.bias", "norm.weight", "norm.bias")
    assert still == {f"network.{name}" for name in trunk}


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "batch_norm": (
        lambda n, x: F.batch_norm(
            n.first(x), n.norm.running_mean, n.norm.running_var, training=n.training
        ),
        r"other outputs .* from 'second' on \(batch_norm was told",
    ),
    "rrelu": (
        lambda n, x: F.rrelu(n.first(x) - 1, training=n.training),
        r"other outputs .*rrelu was told",
    ),
    "a branch": (
        lambda n, x: feature(n, x) * (2 if n.training else 1),
        "other outputs than the network in training, from 'second' on",
    ),
    "noise": (
        lambda n, x: feature(n, x) + (torch.randn(8, 1, 1) if n.training else 0),
        "other outputs",
    ),
    "dropout that is always off": (
        lambda n, x: F.dropout(feature(n, x), 0.5, False),
        "other outputs than the network in training, from 'second' on",
    ),
    "gradients by mode": (
        lambda n, x: feature(n, x) if n.training else feature(n, x).detach(),
        "gives norm.bias another gradient",
    ),
    "parameters without their names": (
        lambda n, x: n.first(x) * sum(p.sum() for p in n.norm.parameters()),
        "gives norm.bias another gradient",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_training_does_is_refused_by_name(name: str) -> None:
    body, why = REFUSED[name]
    model = Net(body).train()
    with pytest.raises(ValueError, match=f"cannot trace Net: .*{why}.*must be a module"):
        ftwt.convert(model, X)
    assert all(module.training for module in model.modules())


def test_a_hook_on_a_gradient_is_refused_by_name() -> None:
    model = Net(feature)
    model.second.weight.register_hook(lambda gradient: gradient * 0)
    with pytest.raises(ValueError, match="'second.weight' has a hook on its gradient"):
        ftwt.convert(model, X)


def test_comparing_changes_nothing() -> None:
    model = Net(feature)
    model.norm.eval()
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    with torch.random.fork_rng():
        dynamic = ftwt.convert(model, X)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
        assert torch.equal(dynamic.state_dict()[f"network.{name}"], value)
    assert all(p.grad is None for p in (*model.parameters(), *dynamic.parameters()))
    assert not model.norm.training and model.training


def test_what_a_forward_keeps_in_its_modules_is_not_what_it_was_traced_with() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[str, Any] = {}
            self.places = nn.Parameter(torch.rand(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            if "places" not in self.kept or self.training:
                self.kept["places"] = self.places * 2
            return x + self.kept["places"]

    model = Net(lambda n, x: n.caching(feature(n, x)))
    model.caching = Caching()
    dynamic = ftwt.convert(model.eval(), X)
    assert not model.caching.kept
    with torch.no_grad():
        assert torch.equal(dynamic(X, gates="open"), model(X))


def test_outputs_that_only_training_has_are_left_out_and_that_is_said() -> None:
    class Aided(Net):
        def forward(self, x: Tensor) -> Any:
            output = super().forward(x)
            return (output, output * 2) if self.training else output

    with pytest.warns(UserWarning, match="Aided returns something else in training"):
        dynamic = ftwt.convert(Aided(feature), X)
    assert isinstance(dynamic.train()(X), Tensor)
