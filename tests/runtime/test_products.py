"""What the kernels multiply is what `executed` counts, or more by what docs/engine.md names.

Needs a native module that counts (`make sanitize`).
"""

import importlib
from typing import Any

import numpy as np
import pytest

from ftwt.runtime import Program
from ftwt.runtime.engine import build_native
from programs import Builder, mask

SIZES = ((24, 8, 8), (32, 9, 7), (48, 14, 14), (16, 28, 20))
HALO = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}


@pytest.fixture(params=["amx", "avx512", "avx2", "portable"])
def isa(request):
    native = pytest.importorskip("ftwt.runtime._native")
    if not hasattr(native, "products"):
        pytest.skip("this native module does not count")
    if request.param not in native.isas():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


def counted(program: Program, isa: str, *, algorithm: str = "auto") -> tuple[dict[str, int], Any]:
    """What kernels multiplied for three samples; the MACs, and how much each mask kept."""
    native = importlib.import_module("ftwt.runtime._native")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *program.maps[0])).astype(np.float32)
    masks = {
        i: mask("random", 3, gate.channels, rng).astype(np.uint8)
        for i, gate in enumerate(program.gates)
    }
    found = []
    for threads in (1, 2):
        _, network = build_native(program, threads, isa, algorithm)
        native.products()
        _, _, macs = network.run(x, masks)
        found.append(native.products())
    if algorithm != "winograd":  # its rows of tiles are shared out
        assert found[0] == found[1]
    return found[0], (int(macs.sum()), {i: m.sum(1) for i, m in masks.items()})


def masked(shape: tuple[int, int, int], filters: int, **conv: Any) -> Program:
    """A convolution behind one mask, under another."""
    build = Builder(shape)
    build.fixed(np.ones(shape[0]))
    build.fixed(np.ones(filters))
    x = build.silence(0, 0)
    build.conv(x, filters, mask=1, **conv)
    return build.program()


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    "conv",
    [
        {"kernel": (1, 1)},
        {**HALO, "stride": (2, 2)},
        {**HALO, "groups": 8},
        {"kernel": (5, 5), "padding": (2, 2, 2, 2)},
    ],
)
def test_direct_multiplies_what_is_executed(shape, conv, isa):
    products, (macs, _) = counted(masked(shape, 40, **conv), isa, algorithm="direct")
    assert products["direct"] == macs > 0
    assert not any(products[kind] for kind in ("winograd", "dot", "panel", "columns"))


@pytest.mark.parametrize("shape", [*SIZES, (16, 4, 4), (16, 2, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_multiplies_what_is_executed(shape, stride, size, isa):
    border = (size // 2,) * 4
    fields = {"kernel": (size, size), "padding": border, "stride": (stride, stride)}
    products, (macs, _) = counted(masked(shape, shape[0], groups=shape[0], **fields), isa)
    assert products["depthwise"] == macs > 0


@pytest.mark.parametrize("shape", SIZES)
def test_winograd_multiplies_four_ninths_and_the_borders_tiles(shape, isa):
    products, (macs, active) = counted(masked(shape, 40, **HALO), isa, algorithm="winograd")
    pairs = (active[0] * active[1]).sum()
    _, height, width = shape
    assert macs == pairs * 9 * height * width
    tiles = -(-height // 2) * -(-width // 2)
    least, most = pairs * tiles * 16, pairs * (tiles + 3 * -(-height // 2)) * 16
    assert least <= products["winograd"] <= most
    if not (height % 2 or width % 2 or tiles % 4):
        assert 9 * products["winograd"] == 4 * macs


@pytest.mark.parametrize("side", [2, 4])
def test_dot_multiplies_blocks_of_sixteen_inputs_and_no_padding(side, isa):
    shape, filters = (64, side, side), 40
    products, (macs, active) = counted(masked(shape, filters, **HALO), isa, algorithm="dot")
    overlaps = (3 * side - 2) ** 2  # pairs of an input and an output position that meet
    assert macs == (active[0] * active[1]).sum() * 9 * side**2
    assert products["dot"] <= (64 * active[1]).sum() * overlaps
    assert products["dot"] >= (active[0] * active[1]).sum() * overlaps


def test_predictors_multiply_what_is_counted(isa):
    build = Builder((48, 6, 6))
    build.fixed(np.ones(48))
    x = build.silence(0, 0)
    build.predict((build.pool(x, "mean"),), 40)
    build.conv(x, 40, mask=1)
    products, (macs, active) = counted(build.program(), isa, algorithm="direct")
    assert products["columns"] == active[0].sum() * 40
    assert products["columns"] + products["direct"] == macs


def test_panels_multiply_all_of_a_network_without_gates(isa):
    build = Builder((256, 5, 5))
    build.conv(0, 64)
    products, (macs, _) = counted(build.program(), isa)
    assert products["panel"] == macs


@pytest.mark.parametrize("shape", [*SIZES, (40, 4, 4), (40, 1, 1)])
@pytest.mark.parametrize(
    "conv", [{"kernel": (1, 1)}, HALO, {**HALO, "stride": (2, 2)}, {**HALO, "groups": 8}]
)
def test_integers_multiply_what_is_executed_and_dwords_or_tiles_filled_up(shape, conv, isa):
    build = Builder(shape)
    build.fixed(np.ones(shape[0]))
    build.fixed(np.ones(40))
    x = build.silence(build.quantize(0, "s8", 0.05), 0)
    build.qconv(x, 40, mask=1, **conv)
    products, (macs, active) = counted(build.program(), isa)
    groups = conv.get("groups", 1)
    _, height, width = build.maps[-1]
    # of a sample's inputs, at most three more to a dword, and a dword more to each tile of sixteen
    spare = np.minimum(active[0] // groups + 3 + 4 * (active[0] // 64 + 1), shape[0]).sum()
    most = macs + (spare + 3 * groups) * 40 * np.prod(conv["kernel"]) * height * width
    assert macs <= products["integer"] <= most
    assert not products["direct"] + products["dot"] + products["winograd"]


@pytest.mark.parametrize("kind", ["u8", "s8"])
@pytest.mark.parametrize("shape", [(64, 4, 4), (128, 2, 2), (192, 1, 1)])
def test_integers_of_small_planes_multiply_blocks_of_inputs_and_no_padding(shape, kind, isa):
    if isa == "amx":
        pytest.skip("its matrix unit takes these as it takes others")
    build = Builder(shape)
    build.fixed(np.ones(shape[0]))
    build.fixed(np.ones(40))
    build.qconv(build.silence(build.quantize(0, kind, 0.05), 0), 40, mask=1, **HALO)
    products, (macs, active) = counted(build.program(), isa)
    overlaps = (3 * shape[1] - 2) ** 2
    assert macs == (active[0] * active[1]).sum() * 9 * shape[1] ** 2
    assert (active[0] * active[1]).sum() * overlaps <= products["integer"]
    assert products["integer"] <= shape[0] * active[1].sum() * overlaps


@pytest.mark.parametrize("size", [3, 5])
def test_integers_multiply_fours_of_taps_of_depthwise_filters(size, isa):
    shape, border = (24, 9, 7), (size // 2,) * 4
    build = Builder(shape)
    build.fixed(np.ones(24))
    x = build.silence(build.quantize(0, "u8", 0.05), 0)
    build.qconv(x, 24, kernel=(size, size), padding=border, groups=24)
    products, (macs, active) = counted(build.program(), isa)
    assert macs == active[0].sum() * size * size * 63
    assert macs < products["integer"] <= 4 * macs
