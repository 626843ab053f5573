"""Networks with given masks, and engines to hold against them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ftwt import DynamicModel, models
from ftwt.models.init import he_init
from ftwt.pruning.macs import MaskedMacs
from ftwt.pruning.method import MaskPredictor
from ftwt.runtime import Engine, Program, Stats

TOLERANCE = 1e-4  # of the largest output, for float32
MASKS = ("all", "one", "all but one", "random", "predicted")


class Kind(NamedTuple):
    """Options of an engine."""

    engine: str
    isa: str | None = None
    threads: int = 1


def kinds() -> list[Kind]:
    """The reference engine, and all paths of the native one where it is built."""
    try:
        from ftwt.runtime import _native
    except ImportError:
        return [Kind("reference")]
    isas = _native.isas()
    paths = [Kind("native", isa) for isa in isas]
    return [Kind("reference"), *paths, Kind("native", isas[0], 2)]


def build(program: Program) -> list[Engine]:
    """An engine of each kind."""
    return [Engine(program, engine=k.engine, isa=k.isa, threads=k.threads) for k in kinds()]


def create(name: str) -> nn.Module:
    """A network in eval mode whose every layer matters to the result."""
    model = models.create(name, num_classes=10)
    if "vgg" in name or "alexnet" in name:
        shrink(model)
    he_init(model)
    return scramble(model).eval()


def shrink(model: nn.Module) -> None:
    """Make the wide classifiers of old networks narrow: they are most of the work to test."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for layer in linears[:-1]:
        width = layer.in_features if layer is linears[0] else 32
        layer.__init__(width, 32)
    if len(linears) > 1:
        linears[-1].__init__(32, linears[-1].out_features)


def scramble(model: nn.Module) -> nn.Module:
    """Draw shifts, and statistics of batch norms, predictors' included, and their weights."""
    for module in model.modules():
        if isinstance(module, MaskPredictor):
            layers = [module.linear] if module.reduce is None else [module.linear, module.reduce]
            for layer in layers:
                scale = 30 if module.head == "softmax" else 1  # its features sum to 1
                nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)
            nn.init.normal_(module.linear.bias)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model


def draw(program: Program, how: str, samples: int) -> dict[str, np.ndarray]:
    """Masks for all units; none for `predicted`."""
    masks = {}
    if how == "predicted":
        return masks
    for gate in program.gates:
        mask = torch.ones(samples, gate.channels, dtype=torch.bool)
        chosen = torch.randint(gate.channels, (samples, 1))
        if how == "one":
            mask.zero_().scatter_(1, chosen, True)
        elif how == "all but one" and gate.channels > 1:
            mask.scatter_(1, chosen, False)
        elif how == "random":
            mask = (torch.rand(samples, gate.channels) < torch.rand(())).scatter(1, chosen, True)
        masks[gate.unit] = mask.numpy()
    return masks


@contextmanager
def forced(dynamic: DynamicModel, masks: Mapping[str, np.ndarray]) -> Iterator[dict[str, Tensor]]:
    """Let gates decide as given; what predictors say is put into the dict that is yielded."""
    said: dict[str, Tensor] = {}
    predictors = dynamic.predictors
    for name, predictor in predictors.items():
        threshold = dynamic.gates[name].threshold
        logits = threshold + torch.from_numpy(masks[name]).float() * 2 - 1

        def forward(features: Tensor, name=name, predictor=predictor, logits=logits) -> Tensor:
            said[name] = MaskPredictor.forward(predictor, features) - dynamic.gates[name].threshold
            return logits

        predictor.forward = forward  # type: ignore[method-assign]
    try:
        yield said
    finally:
        for predictor in predictors.values():
            del predictor.forward


@torch.no_grad()
def check_against(
    dynamic: DynamicModel, engines: Iterable[Engine], images: Tensor, how: str
) -> None:
    """Hold engines to what the network says and is counted to do under the same masks."""
    applied: dict[str, np.ndarray] = {}
    for engine in engines:
        given = (
            applied if applied and how != "predicted" else draw(engine.program, how, len(images))
        )
        output, stats = engine.run(images, given)
        if not applied or not same(applied, stats.masks):
            applied = stats.masks
            with forced(dynamic, applied) as said:
                expected, gates = dynamic(images, return_gates="masks")
            assert how == "one" or expected.std() > 0  # one filter may well be silent
            masks = {unit: gate.mask for unit, gate in gates.items()}
            count = dynamic.macs(masks)
            for unit, logits in said.items():
                if how == "predicted":
                    check_prediction(masks[unit], logits)
        assert same(applied, given or applied)
        close(output, expected)
        check_macs(engine.program, stats, count)


def same(some: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    return some.keys() == others.keys() and all(
        np.array_equal(some[unit], others[unit]) for unit in some
    )


def check_prediction(mask: Tensor, logits: Tensor) -> None:
    """Filters of positive logit and of the largest; rounding may decide on those near zero."""
    unsure = logits.abs() < 1e-4 * logits.abs().amax()
    largest = logits == logits.amax(1, keepdim=True)
    assert ((mask == (logits > 0)) | unsure | largest).all()
    assert mask.any(1).all()


def check_macs(program: Program, stats: Stats, count: MaskedMacs) -> None:
    """Hold what each operation did to what its layer or predictor is counted to do."""
    found: dict[str, dict[str, list[float]]] = {"Conv": {}, "Predict": {}}
    for column, operation in enumerate(program.operations):
        if type(operation).__name__ in found:
            found[type(operation).__name__][operation.name] = stats.macs[:, column].tolist()
    assert found["Conv"] == {name: done.tolist() for name, done in count.layers.items()}
    assert found["Predict"] == {unit: done.tolist() for unit, done in count.predictors.items()}
    assert stats.executed_macs.tolist() == count.executed.tolist()
    assert program.dense_macs == count.dense


def close(found: Tensor, expected: Tensor) -> None:
    """Hold two outputs to be equal up to rounding."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
