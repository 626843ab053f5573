"""What stands around a network is named, with the way out; no name is believed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import ftwt

X = torch.rand(2, 3, 9, 9)


class Net(nn.Module):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)
        self.rest = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        for layer in self.rest.values():
            y = layer(y)
        return self.head(F.relu(self.second(y)).mean((2, 3)))


def compiled_in_place() -> nn.Module:
    model = Net()
    model.compile(backend="eager")
    return model


def scripted(function: Callable[..., Any], *more: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that scripts are to go
        return function(Net().second, *more)


def second(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(model.second)
    return model


WRAPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "DataParallel": (lambda: nn.DataParallel(Net()), "it is wrapped .*unwrap it with model.module"),
    "inside": (
        lambda: nn.Sequential(nn.DataParallel(Net())),
        "its module '0' is wrapped .*unwrap it with model.0.module",
    ),
    "torch.compile": (lambda: torch.compile(Net(), backend="eager"), "unwrap .* model._orig_mod"),
    "compile in place": (compiled_in_place, "convert it before .compile"),
    "torch.jit.script": (lambda: scripted(torch.jit.script), "by torch.jit: give the nn.Module"),
    "torch.jit.trace": (
        lambda: scripted(torch.jit.trace, torch.rand(1, 8, 9, 9)), "by torch.jit: give the nn.Mod"
    ),
    "a script inside": (
        lambda: Net(inner=scripted(torch.jit.script)), "module 'rest.inner' was made by torch.jit"
    ),
    "weight_norm": (
        lambda: second(nn.utils.weight_norm), "'second' has a weight .*remove_weight_norm"
    ),
    "spectral_norm": (lambda: second(spectral_norm), "'second' .*remove_spectral_norm"),
    "prune": (
        lambda: second(lambda m: prune.l1_unstructured(m, "weight", 0.5)), "prune.remove"
    ),
    "two prunings": (
        lambda: second(
            lambda m: [prune.random_unstructured(m, "weight", 0.5) for _ in range(2)]
        ),
        "prune.remove",
    ),
    "a key that is a word of Python": (
        lambda: Net(**{"class": nn.Conv2d(8, 8, 1)}), "'rest.class' is named by a word of Python's"
    ),
    "lazy": (lambda: Net(inner=nn.LazyConv2d(8, 1)), "'rest.inner' has weights whose sizes .*once"),
    "meta": (lambda: Net().to("meta"), "module 'first' has weights on the meta device"),
    "AveragedModel": (
        lambda: torch.optim.swa_utils.AveragedModel(Net()), "unwrap it with model.module"
    ),
    "None": (lambda: Net(**{"None": nn.Conv2d(8, 8, 1)}), "'rest.None' is named by a word"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_wrapped_is_refused_with_the_way_out(name: str) -> None:
    make, why = WRAPPED[name]
    model = make()
    for act in (lambda: ftwt.convert(model, X), lambda: ftwt.count_macs(model, X)):
        with pytest.raises(ValueError, match=why) as told:
            act()
        assert "branch on the values" not in str(told.value)


@pytest.mark.filterwarnings("ignore:not counted, .*matrix_exp")
@pytest.mark.parametrize(
    "model",
    [
        second(parametrizations.weight_norm),
        second(parametrizations.spectral_norm),
        second(parametrizations.orthogonal),
        Net(**{"a-b 1": nn.Conv2d(8, 8, 1)}),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "a key that is no name"],
)
def test_what_can_be_copied_and_traced_converts(model: nn.Module) -> None:
    dynamic = ftwt.convert(model.eval(), X).eval()
    assert {"first", "second"} <= {unit.name for unit in dynamic.units}
    with torch.no_grad():
        torch.testing.assert_close(dynamic(X, gates="open"), model(X))


def test_a_tensor_that_cannot_be_copied_is_named() -> None:
    model = Net()
    model.second.doubled = model.second.weight * 2
    with pytest.raises(ValueError, match="cannot copy Net: .*second.doubled: computed from others"):
        ftwt.convert(model, X)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "after": lambda m: m.register_forward_hook(lambda m, i, o: o * 2),
    "after, in place": lambda m: m.register_forward_hook(lambda m, i, o: (o.mul_(2), None)[1]),
    "before": lambda m: m.register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_change_a_layer_are_refused_and_others_stay(name: str) -> None:
    model, seen = Net().eval(), []
    HOOKS[name](model.second)
    with pytest.raises(ValueError, match="hooks on 'second' change what the network computes"):
        ftwt.convert(model, X)
    model = Net().eval()
    model.second.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    dynamic = ftwt.convert(model, X)
    seen.clear()
    dynamic.eval()(X)
    assert len(seen) == 1


def test_hooks_on_a_block_are_part_of_the_graph_and_those_on_the_network_are_not() -> None:
    model = Net(block=nn.Sequential(nn.Conv2d(8, 8, 1))).eval()
    model.rest["block"].register_forward_hook(lambda m, i, o: o * 2)
    dynamic = ftwt.convert(model, X).eval()
    with torch.no_grad():
        assert torch.equal(dynamic(X, gates="open"), model(X))
    model.register_forward_hook(lambda m, i, o: o * 2)
    with pytest.raises(ValueError, match="it has hooks, which a graph does not keep"):
        ftwt.convert(model, X)


def test_a_forward_that_was_replaced_is_looked_into_or_named() -> None:
    model = Net().eval()
    original = model.second.forward
    model.second.forward = lambda x: original(x) * 2
    count = ftwt.count_macs(model, X)
    assert [layer.kind for layer in count.layers] == ["conv", "conv2d", "linear"]
    with pytest.raises(ValueError, match="cannot trace Net: .*forward of second was replaced"):
        ftwt.convert(model, X)  # the copy's forward is still the original's
    model = Net().eval()
    model.forward = lambda x: model.head(model.first(x).mean((2, 3)))
    with pytest.raises(ValueError, match="forward of the network was replaced on the object"):
        ftwt.convert(model, X)


@torch.fx.wrap
def nothing(x: Tensor) -> None:
    """Return None."""


@torch.fx.wrap
def two(x: Tensor) -> int:
    return x.dim() - 2


@torch.fx.wrap
def lifts(x: Tensor) -> None:
    x.add_(1)


def uses_nothing(y: Tensor) -> Tensor:
    mask = nothing(y)
    return y if mask is None else y + mask


def uses_a_number(y: Tensor) -> Tensor:
    return y * two(y) if two(y) == 2 else y


def uses_what_it_changes(y: Tensor) -> Tensor:
    lifts(y)
    return y if y.shape[2] == 7 else -y  # only told sizes can it be traced


class Does(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("function", [uses_nothing, uses_a_number, uses_what_it_changes])
def test_wrapped_functions_may_return_what_is_no_tensor(function: Any, capfd: Any) -> None:
    model = Net(inner=Does(function)).eval()
    dynamic = ftwt.convert(model, X).eval()
    with torch.no_grad():
        assert torch.equal(dynamic(X, gates="open"), model(X))
    count = dynamic.macs({"first": torch.arange(8)[None] < 4}).layers["second"].item()
    lifted = function is uses_what_it_changes
    assert count == 5 * 5 * 9 * (8 if lifted else 4) * 8
    assert capfd.readouterr().err == ""


@torch.fx.wrap
def relu(x: Tensor) -> Tensor:
    """Not what its name says."""
    return x + 1


class DropPath(nn.Module):
    """Not what its name says."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x + 1


class Passing(nn.Module):
    """What a DropPath does, under another name."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5)) if self.training else x


def frozen_norm(eps: float) -> nn.Module:
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, 0.01 + torch.rand(8) / 10)

        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight / (self.running_var + eps).sqrt()
            return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]

    return FrozenBatchNorm2d()


def test_names_are_not_believed() -> None:
    def counted(layer: nn.Module) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dynamic = ftwt.convert(Net(inner=layer), X)
        return dynamic.macs({"first": torch.arange(8)[None] < 4}).layers["second"].item()

    dense = 5 * 5 * 9 * 8 * 8
    assert counted(Does(relu)) == dense
    assert counted(Passing()) == dense / 2
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropPath(), nn.Conv2d(8, 4, 3), nn.Flatten())
    dynamic = ftwt.convert(model.eval(), X)
    assert any("DropPath" in name for name in dynamic.channels.unknown)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_a_frozen_norm_is_what_it_computes(eps: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), frozen_norm(eps), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    ).eval()
    dynamic = ftwt.convert(model, X).eval()
    assert [unit.end for unit in dynamic.units] == ["_2"]
    engine = ftwt.compile(dynamic, engine="reference")
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(engine(X)), dynamic(X), rtol=1e-4, atol=1e-4)
