"""The reference engine: values against torch, activity and MACs against cases counted by hand."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ftwt.runtime import Engine, Program, check
from ftwt.runtime.program import ACTIVATIONS
from ftwt.runtime.reference import ACTIVATE
from programs import Builder

TORCH: dict[str, Any] = {
    "none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "silu": F.silu,
    "hardswish": F.hardswish, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid,
    "leaky_relu": F.leaky_relu, "elu": F.elu, "gelu": F.gelu, "tanh": torch.tanh,
}  # fmt: skip
KEEP = [True, False, True, True, False, False]  # of six channels


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def run(program: Program, x: np.ndarray, masks: Any = None) -> tuple[np.ndarray, Any]:
    return Engine(program, engine="reference").run(x, masks)


def close(ours: np.ndarray, theirs: torch.Tensor) -> None:
    theirs_ = theirs.numpy().reshape(ours.shape)
    np.testing.assert_allclose(ours, theirs_, rtol=1e-5, atol=1e-5 * np.abs(theirs_).max())


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act):
    x = np.concatenate([np.linspace(-8, 8, 1001), [0.0, -100.0, 100.0]]).astype(np.float32)
    with np.errstate(over="ignore"):
        ours = ACTIVATE[act](x)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, TORCH[act](torch.from_numpy(x)).numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (7, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 3, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize(("groups", "filters"), [(1, 5), (2, 8), (6, 6), (6, 18)])
def test_conv(kernel, stride, padding, dilation, groups, filters):
    build = Builder((6, 15, 13))
    build.conv(0, filters, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    program, x = build.program(), images(3, 6, 15, 13)
    top, left, bottom, right = padding
    padded = F.pad(torch.from_numpy(x), (left, right, top, bottom))
    weight, bias = (torch.from_numpy(array) for array in build.constants.values())
    out, stats = run(program, x)
    close(out, F.conv2d(padded, weight, bias, stride, 0, dilation, groups))
    assert (stats.macs == program.dense_macs).all()


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize("size", [(8, 9), (1, 5), (13, 13)])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_pool(kind, size, kernel, stride, ceil_mode, inside):
    for padding in ((0, 0), (1, 1), (1, 0)):
        if size[0] + 2 * padding[0] < kernel[0]:
            continue
        build, x = Builder((3, *size)), images(2, 3, *size)
        options = {"kernel": kernel, "stride": stride, "padding": padding}
        build.pool(0, kind, **options, ceil_mode=ceil_mode, include_padding=not inside)
        arguments = (torch.from_numpy(x), kernel, stride, padding)
        if kind == "max":
            theirs = F.max_pool2d(*arguments, ceil_mode=ceil_mode)
        else:
            theirs = F.avg_pool2d(*arguments, ceil_mode=ceil_mode, count_include_pad=not inside)
        out, stats = run(build.program(), x)
        close(out, theirs)
        assert not stats.macs.any()


@pytest.mark.parametrize("out", [(1, 1), (7, 7), (3, 5), (4, 1), (2, 9)])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (13, 4)])
def test_adaptive_pool(out, size):
    x = images(2, 3, *size)
    for kind, theirs in (("max", F.adaptive_max_pool2d), ("mean", F.adaptive_avg_pool2d)):
        build = Builder((3, *size))
        build.pool(0, kind, out)
        close(run(build.program(), x)[0], theirs(torch.from_numpy(x), out))


def test_everything_that_follows_a_conv():
    build = Builder((4, 5, 5))
    keep = build.fixed(KEEP)
    after = build.fixed([True, True, True, False, False, True])
    add = build.conv(0, 6)
    out = build.conv(0, 6, act="silu", mask=keep, add=add, post="relu6", after=after)
    program, x = build.program(), images(2, 4, 5, 5)
    weights = [torch.from_numpy(a) for a in build.constants.values() if a.dtype == np.float32]
    first, second = (F.conv2d(torch.from_numpy(x), *weights[i : i + 2]) for i in (0, 2))
    kept, rest = (torch.tensor(m).view(-1, 1, 1) for m in (KEEP, [1, 1, 1, 0, 0, 1]))
    close(run(program, x)[0], rest * F.relu6(kept * F.silu(second) + first))
    assert out == program.output


def test_plain_operations():
    x = images(2, 6, 4, 3)
    there = torch.from_numpy(x)
    build = Builder((6, 4, 3))
    build.affine(0, act="tanh")
    scale, shift = (torch.from_numpy(a).view(-1, 1, 1) for a in build.constants.values())
    close(run(build.program(), x)[0], torch.tanh(scale * there + shift))
    build = Builder((6, 4, 3))
    build.combine(build.activate(0, "elu"), build.pool(0, "mean"), "mul", act="relu")
    close(run(build.program(), x)[0], F.relu(F.elu(there) * there.mean((2, 3), keepdim=True)))
    build = Builder((6, 4, 3))
    build.combine(0, 0, "add", act="hardswish")
    close(run(build.program(), x)[0], F.hardswish(2 * there))
    build = Builder((6, 4, 3))
    index = np.arange(12).reshape(2, 6).T.reshape(-1)  # two halves, one channel from each in turn
    build.gather((build.activate(0, "relu"), 0), index)
    both = torch.cat([F.relu(there), there], 1)
    close(run(build.program(), x)[0], both.view(2, 2, 6, 4, 3).transpose(1, 2).reshape(2, 12, 4, 3))
    build = Builder((6, 4, 3))
    build.flatten(0)
    close(run(build.program(), x)[0], there.flatten(1))
    build = Builder((6, 4, 3))
    build.silence(0, build.fixed(KEEP))
    close(run(build.program(), x)[0], there * torch.tensor(KEEP).view(-1, 1, 1))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_predictors(softmax, rank):
    build = Builder((5, 3, 3), seed=2)
    features = (build.pool(0, "max"), build.pool(0, "mean"))
    unit = build.predict(features, 6, rank=rank, softmax=softmax, threshold=0.3)
    build.conv(0, 6, mask=unit)
    x = images(64, 5, 3, 3)
    there = torch.from_numpy(x)
    f = torch.cat([there.amax((2, 3)), there.mean((2, 3))], 1)
    f = f.softmax(1) if softmax else f
    op = next(op for op in build.operations if type(op).__name__ == "Predict")
    named = {field: torch.from_numpy(build.constants[c]) for field, c in op.constants.items()}
    g = f @ named["reduce"].T if rank else f
    logits = g @ named["weight"].T + named["bias"]
    wanted = (logits > 0.3) | (logits == logits.amax(1, keepdim=True))
    stats = run(build.program(), x)[1]
    assert np.array_equal(stats.masks["unit0"], wanted.numpy())
    assert 0 < wanted.float().mean() < 1
    assert (stats.macs[:, 2] == (10 * rank + rank * 6 if rank else 10 * 6)).all()


def test_the_largest_logit_is_kept_although_none_passes():
    build = Builder((4, 2, 2))
    unit = build.predict((build.pool(0, "max"),), 7, threshold=1e6)
    build.silence(build.conv(0, 7), unit)
    masks = run(build.program(), images(9, 4, 2, 2))[1].masks["unit0"]
    assert (masks.sum(1) == 1).all()


def macs(build: Builder, x: np.ndarray, masks: Any = None) -> list[list[int]]:
    """Of the convolutions and predictors, each sample's."""
    program = build.program()
    check(program)
    count = run(program, x, masks)[1].macs
    work = [type(op).__name__ in ("Conv", "Predict") for op in program.operations]
    assert not count[:, ~np.array(work)].any()
    return count[:, work].tolist()


def test_macs_of_a_conv_are_pairs_of_active_input_and_computed_output():
    build = Builder((2, 4, 4))
    mask = build.fixed(KEEP)
    y = build.conv(0, 6, (3, 3), padding=(1, 1, 1, 1), mask=mask)  # 3 of 6 filters
    after = build.fixed([False, True, True, True])
    build.conv(y, 4, (2, 2), mask=build.fixed([True, True, True, False]), after=after)
    x = images(2, 2, 4, 4)
    assert macs(build, x) == [[2 * 3 * 16 * 9, 3 * 2 * 9 * 4]] * 2
    given = np.array([[True] * 6, [False] * 5 + [True]])
    assert macs(build, x, {"unit0": given}) == [
        [2 * 6 * 16 * 9, 6 * 2 * 9 * 4],
        [2 * 1 * 16 * 9, 1 * 2 * 9 * 4],
    ]


def test_macs_count_pairs_of_the_same_group():
    build = Builder((2, 1, 1))
    y = build.conv(0, 6, mask=build.fixed(KEEP))
    build.conv(y, 6, groups=2, mask=build.fixed([True, False, False, True, True, False]))
    build.conv(y, 12, groups=6)
    assert macs(build, images(1, 2, 1, 1)) == [[2 * 3, 2 * 1 + 1 * 2, 3 * 2]]


def probe(build: Builder, x: int) -> int:
    """How many channels of a map are active: the MACs of a filter that reads it."""
    build.conv(x, 1, build.maps[x][1:])
    space = build.maps[x][1] * build.maps[x][2]
    count = macs(build, images(1, *build.maps[0]))[0][-1]
    assert count % space == 0
    return count // space


def masked() -> tuple[Builder, int]:
    """A builder with a map of 3 of 6 active channels: 0, 2 and 3."""
    build = Builder((3, 4, 4))
    return build, build.conv(0, 6, mask=build.fixed(KEEP))


def other(build: Builder) -> int:
    """Active: 0 and 1."""
    return build.conv(0, 6, mask=build.fixed([True, True, False, False, False, False]))


ACTIVE: dict[str, tuple[Any, int]] = {
    "input": (lambda b, x: 0, 3),
    "conv": (lambda b, x: b.conv(x, 5), 5),
    "mask": (lambda b, x: x, 3),
    "sum with another": (lambda b, x: b.conv(0, 6, mask=0, add=other(b)), 4),
    "sum with another, unmasked": (lambda b, x: b.conv(0, 6, add=other(b)), 6),
    "after alone": (lambda b, x: b.conv(0, 6, after=0), 3),
    "after a sum": (lambda b, x: b.conv(x, 6, add=other(b), after=0), 3),
    "mask, sum, after": (
        lambda b, x: b.conv(0, 6, add=other(b), mask=0, after=b.fixed([0, 1, 1, 0, 0, 1])), 2
    ),
    "pool": (lambda b, x: b.pool(x, "max"), 3),
    "affine": (lambda b, x: b.affine(x), 6),
    "relu": (lambda b, x: b.activate(x, "relu"), 3),
    "sigmoid": (lambda b, x: b.activate(x, "sigmoid"), 6),
    "hardsigmoid": (lambda b, x: b.activate(x, "hardsigmoid"), 6),
    "add": (lambda b, x: b.combine(x, other(b), "add"), 4),
    "mul": (lambda b, x: b.combine(x, other(b), "mul"), 1),
    "mul, then sigmoid": (lambda b, x: b.combine(x, other(b), "mul", act="sigmoid"), 6),
    "add, then hardsigmoid": (lambda b, x: b.combine(x, x, "add", act="hardsigmoid"), 6),
    "gather": (lambda b, x: b.gather((x, other(b)), [0, 0, 1, 2, 6, 8]), 4),
    "gather nothing": (lambda b, x: b.gather((x,), [-1, 0, -1, 2]), 2),
    "flatten": (lambda b, x: b.flatten(x), 3 * 16),
    "silence": (lambda b, x: b.silence(x, b.fixed([1, 1, 1, 0, 0, 0])), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVE)
def test_active_channels(name):
    step, count = ACTIVE[name]
    build, x = masked()
    assert probe(build, step(build, x)) == count


def test_what_is_inactive_is_zero():
    build, x = masked()
    build.combine(build.conv(0, 6, act="sigmoid", mask=0), x, "add")
    out, _ = run(build.program(), images(2, 3, 4, 4))
    assert (out != 0).all((2, 3)).tolist() == [KEEP] * 2
    assert (out == 0).all((2, 3)).tolist() == [[not keep for keep in KEEP]] * 2


def test_macs_of_a_predictor_are_its_active_inputs():
    build, x = masked()
    pools = (build.pool(x, "max"), build.pool(0, "mean"))
    build.conv(0, 5, mask=build.predict(pools, 5))
    build.conv(0, 5, mask=build.predict(pools, 5, rank=2))
    build.conv(0, 5, mask=build.predict(pools, 5, softmax=True))
    build.conv(0, 5, mask=build.predict(pools, 5, softmax=True, rank=2))
    count = macs(build, images(1, 3, 4, 4))[0]
    assert count[1::2] == [6 * 5, 6 * 2 + 2 * 5, 9 * 5, 9 * 2 + 2 * 5]
