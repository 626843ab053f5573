"""The whole way of networks that nobody would build: what holds at each step for all of them."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_random_networks import IMAGE, network
from torch import Tensor

import ftwt
from forced import build, check_against, kinds, scramble
from ftwt.lowering import lower
from ftwt.runtime import load
from toys import same

CLASSES = 5
QUICK, MANY = 4, 300


@dataclass(frozen=True)
class Case:
    """A network, how it gets gates, and how it is trained."""

    seed: int
    samples: int
    r: float
    options: dict[str, Any]
    training: dict[str, Any]


CASES = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    samples=st.integers(2, 5),
    r=st.floats(0.3, 1.0),
    options=st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["decoupled", "joint"]),
            "saliency": st.sampled_from(["peak", "mean", "norm", "energy"]),
            "variant": st.sampled_from(["mass", "uniform"]),
            "pool": st.sampled_from(["max", "mean", "both"]),
            "head": st.sampled_from(["softmax", "standardized"]),
            "rank": st.sampled_from([None, 1, 2]),
            "residual": st.sampled_from(["before", "after"]),
            "depthwise": st.sampled_from(["inherit", "gate"]),
            "straight_through": st.booleans(),
        }
    ),
    training=st.fixed_dictionaries(
        {
            "cooldown": st.sampled_from([0.0, 0.5, 1.0]),
            "ema_decay": st.sampled_from([None, 0.9]),
            "channels_last": st.booleans(),
            "clip_norm": st.sampled_from([None, 1.0]),
        }
    ),
)


def logits(x: Tensor, network: Any) -> Tensor:
    with torch.no_grad():
        return network(x)


def check(case: Case) -> None:
    torch.manual_seed(case.seed)
    plain = scramble(network(case.seed)).eval()
    images = [torch.randn(case.samples, *IMAGE) for _ in range(2)]
    batches = [(x, torch.randint(CLASSES, (len(x),))) for x in images]
    x = images[0]
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    expected = logits(x, plain)

    dynamic = ftwt.convert(plain, x, r=case.r, min_gain=-1e9, **case.options)
    dynamic.eval()
    with torch.no_grad():
        assert torch.equal(dynamic(x, gates="open"), expected)
    assert torch.equal(logits(x, dynamic.restore().eval()), expected)
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    if not dynamic.units:
        return

    if case.options["variant"] == "mass":
        curve = ftwt.estimate(dynamic, batches, images=2 * case.samples)
        cost = []
        for one in images:
            with torch.no_grad():
                gates = dynamic(one, gates="open", return_gates=True)[1]
            masks = {unit: gate.target for unit, gate in gates.items() if gate.target is not None}
            cost.append(dynamic.macs(masks).reduction)
        found = curve.reduction_at(dynamic.r)
        assert found == pytest.approx(torch.cat(cost).mean().item(), abs=1e-6)

    config = ftwt.TrainConfig(epochs=1, batch_size=case.samples, lr=0.01, **case.training)
    ftwt.train(dynamic, batches, batches, config, progress=False)
    dynamic.to(memory_format=torch.contiguous_format)  # or sums come in another order
    scramble(dynamic)  # predictors that decide, where one step taught them nothing
    dynamic.eval()
    assert all(t.isfinite().all() for t in dynamic.state_dict().values() if t.is_floating_point())

    with tempfile.TemporaryDirectory() as name:
        ftwt.save_pretrained(dynamic, name)
        loaded = ftwt.from_pretrained(name, model=plain)
        assert isinstance(loaded, ftwt.DynamicModel)
        assert same(loaded, dynamic) and loaded.config == dynamic.config
        assert torch.equal(logits(x, loaded), logits(x, dynamic))

        evaluation = ftwt.evaluate(loaded, batches)
        gates = loaded(x, return_gates="masks")[1]
        count = loaded.macs({unit: gate.mask for unit, gate in gates.items()})
        layers = torch.stack(list(count.layers.values())).sum(0)
        assert (layers <= count.dense).all()  # what predictors cost comes on top
        assert evaluation.dense_macs == count.dense and 0 <= evaluation.top1 <= 1

        program = lower(loaded)
        check_against(loaded, build(program), x, "predicted")
        check_against(loaded, build(program), x, "random")
        path = Path(name) / "net.ftwt"
        kind = "native" if len(kinds()) > 1 else "reference"
        engine = ftwt.compile(loaded, engine=kind)
        engine.save(path)
        assert torch.equal(load(path, engine=kind)(x), engine(x))
        assert sorted(os.listdir(name)) == ["config.json", "model.safetensors", "net.ftwt"]


def properties(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],  # to shrink takes minutes, and shrinks no seed
    )


@properties(QUICK)
@given(CASES)
def test_what_holds_at_each_step(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@properties(MANY)
@given(CASES)
def test_what_holds_at_each_step_of_many(case: Case) -> None:
    check(case)
