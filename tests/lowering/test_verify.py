"""An engine is held to its network when it is compiled, and never for what is rounding."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from forced import scramble
from ftwt.lowering import compile as compiling
from ftwt.lowering import lower
from ftwt.lowering.operations import HANDLERS, activation
from ftwt.pruning.dynamic import DynamicModel
from ftwt.runtime import Engine, Predict, Program

X = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """A convolution, a function of its result, and a convolution."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 3)
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self, self.first(x)))


def network(body: Callable[[Any, Tensor], Tensor] = lambda n, y: F.relu(y), **layers: nn.Module):
    torch.manual_seed(0)
    return scramble(Network(body, **layers)).eval()


def compiled(model: nn.Module, *args: Any, **options: Any) -> Engine:
    return ftwt.compile(model, *args, **({"engine": "reference"} | options))


def right(model: nn.Module) -> None:
    """What compiles is right, also unchecked."""
    for check in (True, False):
        engine = compiled(model, X, check=check)
        with torch.no_grad():
            expected = model(X)
        assert (engine(X) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("example", "passes"),
    [(X, 0), (X.abs(), 1), (torch.zeros_like(X), 1), (1e-6 * X, 1), (X * torch.inf, 1)],
)
def test_a_network_is_run_no_more_than_it_has_to_be(example, passes, monkeypatch):
    """Again on noise alone, and only where the example may hide something."""
    model, seen = network(), []
    forward, verify = Network.forward, compiling.verify

    def counted(self: Network, x: Tensor) -> Tensor:
        seen.append(1)
        return forward(self, x)

    def verified(*args: Any, **options: Any) -> None:
        seen.clear()
        verify(*args, **options)

    monkeypatch.setattr(Network, "forward", counted)
    monkeypatch.setattr(compiling, "verify", verified)
    compiled(model, example)
    assert seen == [1] * passes


def test_a_dynamic_network_is_run_once_with_filters_on_and_off(monkeypatch):
    """Also where its predictors keep everything, as `convert` leaves them."""
    seen: list[tuple[str, bool]] = []
    forward = DynamicModel.forward

    def counted(self: DynamicModel, *inputs: Any, **options: Any) -> Any:
        output, decided = forward(self, *inputs, **options)
        masks = torch.cat([gate.mask for gate in decided.values()], 1)
        seen.append((options["gates"], bool(masks.any() and not masks.all())))
        return output, decided

    untrained = ftwt.convert(network(), X, min_gain=-1e9, r=0.7)
    deciding = dynamic()
    monkeypatch.setattr(DynamicModel, "forward", counted)
    compiled(untrained)
    compiled(deciding)
    assert seen == [("target", True), ("predicted", True)]


def test_untrained_predictors_are_held_to_their_program(monkeypatch):
    """One that has come to close filters since, unseen by its weights, decides otherwise."""
    model = ftwt.convert(network(), X, min_gain=-1e9, r=0.7).eval()
    compiled(model)
    predictor = model.gates["first"].predictor
    predictor.register_forward_hook(lambda module, inputs, logits: logits - torch.arange(8))
    with pytest.raises(ValueError, match="the gate of unit 'first' decides otherwise"):
        compiled(model)


@pytest.mark.parametrize("example", [X, X.abs(), torch.zeros_like(X)])
def test_what_differs_is_found_whatever_the_example(example, monkeypatch):
    def wrong(*args: Any, **options: Any) -> Program:
        program = lower(*args, **options)
        (name, *_) = [op.weight for op in program.operations if type(op).__name__ == "Conv"]
        weights = {**program.constants, name: 1.01 * program.constants[name]}
        return dataclasses.replace(program, constants=weights)

    monkeypatch.setattr(compiling, "lower", wrong)
    with pytest.raises(ValueError, match="does not compute what the network does"):
        compiled(network(), example)


def statement(change: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    """A body that changes something in place and goes on with the whole."""

    def body(n: Any, y: Tensor) -> Tensor:
        change(y)
        return y

    return body


def alias_is_read(n: Any, y: Tensor) -> Tensor:
    half = y[:, 4:]
    y.mul_(2)
    return torch.cat([half, y[:, :4]], 1)


def through_dropout(n: Any, y: Tensor) -> Tensor:
    F.relu_(F.dropout(y, 0.5, n.training))
    return y


IN_PLACE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a slice": statement(lambda y: y[:, :4].mul_(3)),
    "a chunk": statement(lambda y: F.relu_(y.chunk(2, 1)[0])),
    "both chunks": statement(lambda y: [F.relu_(y.chunk(2, 1)[0]), y.chunk(2, 1)[1].mul_(2)]),
    "a slice of a slice": statement(lambda y: y[:, 2:][:, :3].add_(1.5)),
    "every second channel": statement(lambda y: y[:, ::2].div_(4)),
    "what a view shows": alias_is_read,
    "what a dropout returns": through_dropout,
    "a copy": statement(lambda y: y.clone().mul_(3)),
    "narrow": statement(lambda y: y.narrow(1, 2, 3).add_(2)),
    "split": statement(lambda y: y.split([3, 5], 1)[1].mul_(2)),
    "what is detached": statement(lambda y: y.detach().add_(1)),
    "what was cloned before": lambda n, y: y.clone() + y.mul_(2),
    "a part of what is read again": lambda n, y: torch.cat(
        [F.relu_((parts := y.chunk(2, 1))[0]), parts[1], y], 1
    )[:, :8],
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_operations_in_place_on_views_are_right(name: str) -> None:
    right(network(IN_PLACE[name]))
    if name in ("what a dropout returns", "what is detached"):
        return  # refused, for what they do in training
    model = dynamic(network(IN_PLACE[name]))  # gates lie between what is changed and its readers
    with torch.no_grad():
        expected = model(X)
    assert (compiled(model)(X) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_map_that_is_changed_as_a_vector_is_refused() -> None:
    model = network(statement(lambda y: y.view(y.shape[0], -1).mul_(0.5)))
    with pytest.raises(ValueError, match=r"Conv2d \(node last\).*not consist of whole channels"):
        compiled(model, X)


def test_hooks_that_change_are_refused_and_those_that_look_are_not() -> None:
    model = network()
    seen: list[Any] = []
    handle = model.first.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    right(model)
    assert seen
    handle.remove()
    model.first.register_forward_hook(lambda m, i, o: o * 2)
    with pytest.raises(ValueError, match="hooks on 'first' change what the network computes"):
        compiled(model, X)
    model = network()
    model.last.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    with pytest.raises(ValueError, match="hooks on 'last' change what the network computes"):
        compiled(model, X)


def test_forwards_that_were_replaced_are_looked_into() -> None:
    model = network()
    original = model.last.forward
    model.last.forward = lambda x: 2 * original(x)  # type: ignore[method-assign]
    right(model)


def frozen(eps: float, factor: float = 1.0) -> nn.Module:
    class FrozenBatchNorm2d(nn.Module):
        """As detectors have it, with an eps that nothing names."""

        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.rand(8) / 10)

        def forward(self, x: Tensor) -> Tensor:
            scale = factor * self.weight * (self.running_var + eps).rsqrt()
            return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]

    return FrozenBatchNorm2d()


class DropPath(nn.Module):
    """Not what its name says."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else 0.9 * x


def test_names_of_classes_are_not_believed() -> None:
    for eps in (1e-5, 0.0, 1e-3):
        right(network(lambda n, y: n.norm(y), norm=frozen(eps)))
    right(network(lambda n, y: n.norm(y), norm=frozen(1e-5, factor=1.2)))
    with pytest.raises(ValueError, match=r"DropPath \(node drop\): there is no rule"):
        compiled(network(lambda n, y: n.drop(y), drop=DropPath()), X)


class Clamping(nn.Module):
    """In training it passes, and in eval mode small values do."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.clamp(max=20)


class Dropping(nn.Module):
    """Of most images it drops nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x * (torch.rand(len(x), 1, 1, 1) > 0.01)


def test_what_looks_at_values_or_draws_lots_is_no_identity_and_no_norm() -> None:
    for layer in (Clamping(), Dropping()):
        with pytest.raises(ValueError, match=r"\(node layer\): there is no rule"):
            compiled(network(lambda n, y: n.layer(y), layer=layer), X)
    norm = frozen(1e-5)
    whole = type(norm).forward
    type(norm).forward = lambda self, x: torch.where(x > 50, 0 * x, whole(self, x))
    with pytest.raises(ValueError, match="there is no rule"):
        compiled(network(lambda n, y: n.norm(y), norm=norm), X)


class Doubled(nn.Conv2d):
    """Torch's forward, with another weight."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


def test_what_a_convolutions_forward_calls_may_be_replaced() -> None:
    right(network(lambda n, y: n.layer(y), layer=Doubled(8, 8, 3, padding=1)))
    model = network()
    original = model.last._conv_forward
    model.last._conv_forward = lambda *given: 2 * original(*given)  # type: ignore[method-assign]
    right(model)


def test_what_a_network_does_to_its_input_is_no_difference() -> None:
    class Prepared(Network):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5).div_(0.25)
            return super().forward(x)

    torch.manual_seed(0)
    model, example = scramble(Prepared(lambda n, y: F.relu(y))).eval(), X.clone()
    with torch.no_grad():
        expected = model(X.clone())
    for given in (X.abs().clone(), example):  # run again on noise, and not
        assert torch.allclose(compiled(model, given)(X), expected, atol=1e-4)
    assert torch.equal(example, X)
    dynamic = scramble(ftwt.convert(model, X, min_gain=-1e9)).eval()
    engine = compiled(dynamic)
    assert torch.allclose(engine(example), dynamic(example), atol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        lambda n, y: y * y.shape[0],
        lambda n, y: y + y.size(0),
        lambda n, y: y / torch.full((1,), y.size(0)),
        lambda n, y: y[:2],
    ],
    ids=["times", "plus", "over", "two of them"],
)
def test_how_many_images_there_are_is_no_number_of_a_program(body) -> None:
    for model, example in (
        (network(body), X),
        (ftwt.convert(network(body), X, min_gain=-1e9), None),
    ):
        with pytest.raises(ValueError, match="does not compute|moves data between samples"):
            compiled(model, example)


ALWAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": lambda n, y: F.dropout(y, 0.5),
    "dropout2d": lambda n, y: F.dropout2d(y, 0.5, True),
    "torch.dropout": lambda n, y: torch.dropout(y, 0.5, train=True),
}


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("check", [True, False])
def test_dropout_that_is_always_on_is_refused(name: str, check: bool) -> None:
    with pytest.raises(ValueError, match="it drops values in eval mode, too"):
        compiled(network(ALWAYS[name]), X, check=check)
    right(network(lambda n, y: F.dropout(y, 0.0)))


def test_a_network_that_says_something_else_each_time_is_refused() -> None:
    class Shaken(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + torch.randn_like(weight)

    model = network()
    nn.utils.parametrize.register_parametrization(model.first, "weight", Shaken())
    with pytest.raises(ValueError, match=r"each time that it runs, first at .* \(node first\)"):
        compiled(model, X)


def test_the_first_operation_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HANDLERS, "hardswish", activation("silu"))
    model = network(lambda n, y: F.relu(n.middle(F.hardswish(y))), middle=nn.Conv2d(8, 8, 1))
    with pytest.raises(ValueError, match=r"first differ at hardswish \(node hardswish\), by 0\.\d"):
        compiled(model, X)
    assert compiled(model, X, check=False).kind == "reference"  # for benchmarks


def test_wrong_weights_are_found_in_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(*args: Any, **options: Any) -> Program:
        program = lower(*args, **options)
        constants = {name: 1.001 * array for name, array in program.constants.items()}
        return dataclasses.replace(program, constants=constants)

    monkeypatch.setattr(compiling, "lower", tampered)
    with pytest.raises(ValueError, match=r"its output is off by 0\.00.*none of its operations"):
        compiled(network(), X)


def dynamic(model: nn.Module | None = None, **options: Any) -> DynamicModel:
    options = {"min_gain": -1e9, "r": 0.7} | options
    return scramble(ftwt.convert(model or network(), X, **options)).eval()


def test_gates_that_decide_otherwise_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(*args: Any, **options: Any) -> Program:
        program = lower(*args, **options)
        (predict,) = (op for op in program.operations if isinstance(op, Predict))
        constants = dict(program.constants)
        constants[predict.bias] = -constants[predict.bias]
        return dataclasses.replace(program, constants=constants)

    model = dynamic()
    compiled(model)
    with torch.no_grad():
        model.gates["first"].predictor.linear.bias.copy_(torch.linspace(-9, 9, 8))
    monkeypatch.setattr(compiling, "lower", tampered)
    with pytest.raises(ValueError, match="the gate of unit 'first' decides otherwise"):
        compiled(model)


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("head", ["standardized", "softmax"])
def test_filters_at_their_threshold_are_no_difference(head: str, engine: str) -> None:
    if engine == "native":
        pytest.importorskip("ftwt.runtime._native")
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    deep = scramble(nn.Sequential(nn.Conv2d(4, 8, 1), *layers)).eval()
    model = dynamic(deep, head=head)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.randn(2, *model.input_shape)[:1]  # what the check will look at
    for unit in model.gates:
        with torch.no_grad():
            logits = model(image, return_gates=True)[1][unit].logits
        model.gates[unit].threshold.fill_(float(logits.median()))
    for shift in (-1e-7, 0.0, 1e-7):
        other = copy.deepcopy(model)
        for gate in other.gates.values():
            gate.threshold += shift
        compiled(other, engine=engine)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_rounding_is_no_difference_however_much_a_network_makes_of_it(engine: str) -> None:
    if engine == "native":
        pytest.importorskip("ftwt.runtime._native")
    torch.manual_seed(3)

    class Chaos(nn.Module):
        """Rounding grows by a factor of four a layer: every digit of the output is rounding."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(12))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(8 * layer(x))
            return x

    chaos = Chaos().eval()
    x = torch.randn(1, 16, 8, 8)
    made = compiled(chaos, x, engine=engine)
    with torch.no_grad():
        off = (made(x) - chaos(x)).abs().max()
    assert off > 1e-4 or engine == "reference"  # plain comparison would refuse it


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e12])
def test_outputs_of_any_size_compile(scale: float) -> None:
    model = network()
    with torch.no_grad():
        model.first.weight *= scale
    compiled(model, X)
    compiled(dynamic(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_precision_compile(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    engine = compiled(model, X.to(dtype))
    with torch.no_grad():
        expected = model.float()(X)
    assert (engine(X) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_check_leaves_no_trace() -> None:
    model = dynamic().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    compiled(model)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_twin_and_a_plain_network_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = dynamic().freeze([X])
    assert np.isfinite(compiled(twin)(X.numpy())).all()
    monkeypatch.setitem(HANDLERS, "relu", activation("relu6"))
    with pytest.raises(ValueError, match="first differ at relu"):
        compiled(network(lambda n, y: F.relu(9 * y)), X)
    with pytest.raises(ValueError, match="first differ at relu"):
        compiled(dynamic(network(lambda n, y: F.relu(9 * y))).freeze([X]))
