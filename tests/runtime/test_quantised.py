"""Programs on maps of eight bits: values by hand, what is refused, and native = reference.

Further seeds than the suite's:

    python tests/runtime/test_quantised.py FIRST COUNT
"""

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import pytest
from test_fuzz import close_calls

from ftwt.runtime import Engine, Program, QConv, check, load, load_program, save
from ftwt.runtime.engine import build_native
from ftwt.runtime.limits import MAX_PRODUCTS
from ftwt.runtime.reference import Network
from programs import MASKS, Builder, mask
from quantised import images, random_quantised

PROGRAMS, MANY = 100, 3000


def reference(program: Program, x: Any) -> np.ndarray:
    shape = (-1, *program.maps[0])
    return Engine(program, engine="reference")(np.array(x, np.float32).reshape(shape))


def one(kind: str, scale: float) -> Program:
    build = Builder((1, 1, 1))
    build.dequantize(build.quantize(0, kind, scale))
    return build.program()


def test_rounding_is_to_the_even_neighbour_and_ends_at_the_bounds():
    values = [0.25, 0.75, 1.25, -0.25, 127.4, 1e30, -1e30]
    found = reference(one("u8", 0.5), values)[:, 0]
    np.testing.assert_array_equal(found, [0.0, 1.0, 1.0, 0.0, 127.5, 127.5, 0.0])
    found = reference(one("s8", 0.5), values)[:, 0]
    np.testing.assert_array_equal(found, [0.0, 1.0, 1.0, 0.0, 63.5, 63.5, -63.5])


def small(out: Any = None, **fields: Any) -> Program:
    """Two values, u8 of scale 0.5, and two filters."""
    build = Builder((2, 1, 1))
    x = build.quantize(0, "u8", 0.5)
    build.qconv(
        x, 2, out=out, weight=build.constant([[3, -2], [127, 1]], np.int8),
        scale=build.constant([0.25, 0.5]), bias=build.constant([1.0, -128.0]), **fields,
    )  # fmt: skip
    weight = next(op for op in build.operations if isinstance(op, QConv)).weight
    build.constants[weight] = build.constants[weight].reshape(2, 2, 1, 1)
    if out:
        build.dequantize(len(build.maps) - 1)
    return build.program()


def test_a_convolution_by_hand():
    # 1.0 and 2.6 are 2 and 5; sums -4 and 259; -4 / 4 + 1 = 0, 259 / 2 - 128 = 1.5
    np.testing.assert_array_equal(reference(small(), [1.0, 2.6]), [[0.0, 1.5]])
    np.testing.assert_array_equal(reference(small(("u8", 1.0)), [1.0, 2.6]), [[0.0, 2.0]])
    # 0 and 5: -10 / 4 + 1 = -1.5 and 5 / 2 - 128 = -125.5
    np.testing.assert_array_equal(reference(small(), [0.0, 2.6]), [[-1.5, -125.5]])
    np.testing.assert_array_equal(reference(small(("s8", 0.5)), [0.0, 2.6]), [[-1.5, -63.5]])
    np.testing.assert_array_equal(reference(small(act="relu"), [0.0, 2.6]), [[0.0, 0.0]])
    leaky = [[np.float32(-1.5) * np.float32(0.01), np.float32(-125.5) * np.float32(0.01)]]
    np.testing.assert_array_equal(reference(small(act="leaky_relu"), [0.0, 2.6]), leaky)


@pytest.mark.parametrize("kind", ["u8", "s8"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (2, 4), (1, 3), (1, 1)])
def test_depthwise_filters_read_planes_of_any_size(kernel, stride, kind):
    native = pytest.importorskip("ftwt.runtime._native")
    rng = np.random.default_rng(kernel[0] * 10 + stride[1])
    for shape in ((3, 40, 35), (5, 17, 16), (9, 7, 7), (4, 11, 33), (2, 5, 64), (6, 4, 1)):
        for padding, dilation in (
            ((1, 0, 1, 2), (1, 1)),
            ((2, 3, 0, 1), (2, 1)),
            ((0,) * 4, (1,) * 2),
        ):
            reach = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
            rows, columns = (shape[1 + i] + padding[i] + padding[2 + i] for i in (0, 1))
            if rows < reach[0] or columns < reach[1]:
                continue
            build = Builder(shape, seed=int(rng.integers(1000)))
            x = build.silence(
                build.quantize(0, kind, 0.02), build.fixed(np.arange(shape[0]) % 3 > 0)
            )
            out = (str(rng.choice(["u8", "s8"])), 0.05)
            how = {"padding": padding, "dilation": dilation, "stride": stride, "act": "relu6"}
            build.dequantize(build.qconv(x, shape[0], kernel, out, groups=shape[0], **how))
            program, images = build.program(), rng.normal(size=(2, *shape)).astype(np.float32)
            wanted = Engine(program, engine="reference")(images)
            for isa in native.isas():
                np.testing.assert_array_equal(Engine(program, isa=isa)(images), wanted, isa)


def test_what_is_added_counts_by_its_scale_and_inactive_channels_are_zero():
    build = Builder((2, 1, 1))
    x = build.quantize(0, "s8", 0.5)
    keep = build.fixed([1, 0])
    identity = build.constant(np.eye(2).reshape(2, 2, 1, 1), np.int8)
    rest = {"scale": build.constant([0.5, 0.5]), "bias": build.constant([10.0, 10.0])}
    silent = build.silence(x, build.fixed([0, 1]))
    out = build.qconv(x, 2, weight=identity, mask=keep, add=silent, post="relu", **rest)
    program = build.program(out)
    # filter 0 is computed and nothing is added; filter 1 is what is added
    np.testing.assert_array_equal(
        reference(program, [[1.0, 3.0], [-20.0, -3.0]]), [[11, 3], [0, 0]]
    )


def test_pools_and_sums_by_hand():
    build = Builder((1, 1, 3))
    x = build.quantize(0, "s8", 0.5)
    mean, most = build.pool(x, "mean"), build.pool(x, "max")
    wide = build.typed(build.pool(x, "max", kernel=(1, 2)), build.quantised[x])
    first = build.typed(build.combine(x, x, "add", act="relu"), ("u8", 2.0))
    flat = [build.flatten(build.dequantize(i)) for i in (wide, first)]
    build.gather((mean, most, *flat), np.arange(7))
    found = reference(build.program(), [-1.0, 2.0, 0.5])[0]  # -2, 4 and 1
    third = np.float32(3) * (np.float32(0.5) / np.float32(3))
    np.testing.assert_array_equal(found, [third, 2.0, 2.0, 2.0, 0.0, 4.0, 0.0])


def refused(program: Program, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check(program)
    for word in words:
        assert word in str(caught.value), caught.value


def test_types_and_scales_must_fit_the_maps():
    program = small(("u8", 1.0))
    types, scales = program.types, program.scales
    replace = dataclasses.replace
    refused(replace(program, types=types[:-1]), "number of types", "one for each map")
    refused(replace(program, scales=()), "number of scales")
    refused(replace(program, types=("f32", "u4", "u8", "f32")), "types", "u4")
    for wrong in (0.0, -1.0, float("nan"), float("inf"), 1e-40, 0.1):
        refused(replace(program, scales=(1.0, wrong, 1.0, 1.0)), "scale of map 1")
    refused(replace(program, scales=(2.0, *scales[1:])), "scale of map 0", "f32")
    refused(replace(program, types=("u8", *types[1:])), "type of map 0", "input or output")
    refused(replace(program, types=("f32", "f32", "u8", "f32"), scales=(1.0,) * 4), "type of")
    refused(replace(program, output=1), "type of map 1")


def test_operations_take_the_types_that_they_know():
    build = Builder((2, 4, 4))
    x = build.quantize(0, "u8", 0.5)
    y = build.quantize(0, "s8", 0.5)

    def after(make: Any, *words: str) -> None:
        other = Builder((2, 4, 4))
        other.quantize(0, "u8", 0.5), other.quantize(0, "s8", 0.5)
        made = make(other)
        if made in other.quantised:
            other.dequantize(made)
        refused(other.program(), *words)

    after(lambda b: b.conv(x, 2), "type of map 1", "f32")
    after(lambda b: b.qconv(x, 2, act="silu"), "act", "hardswish")
    after(lambda b: b.qconv(x, 2, add=y, post="tanh"), "post")
    after(lambda b: b.activate(x, "relu"), "type of map 1", "f32")
    after(lambda b: b.typed(b.combine(x, y, "mul"), ("u8", 0.5)), "kind", "add")
    after(lambda b: b.typed(b.combine(x, y, "add", act="elu"), ("u8", 0.5)), "act")
    after(lambda b: b.combine(x, y, "add"), "type of out")
    after(lambda b: b.typed(b.gather((x, y), [0, 3]), ("u8", 0.5)), "type and scale of map 2")
    after(lambda b: b.typed(b.flatten(x), ("u8", 0.25)), "type and scale of map 1")
    after(lambda b: b.typed(b.pool(x, "mean"), ("u8", 0.5)), "for a mean")
    after(lambda b: b.pool(x, "max", (2, 2)), "only a global pool")
    after(lambda b: b.dequantize(0), "type of x", "u8 or s8")
    after(lambda b: b.quantize(x, "s8", 0.5), "type of x", "f32")


def test_constants_of_eight_bits():
    program = small()
    op = next(op for op in program.operations if isinstance(op, QConv))

    def having(**arrays: np.ndarray) -> Program:
        named = {getattr(op, field): array for field, array in arrays.items()}
        return dataclasses.replace(program, constants={**program.constants, **named})

    refused(having(weight=np.ones((2, 2, 1, 1), np.float32)), "weight", "int8")
    refused(having(scale=np.ones(3, np.float32)), "scale", "(2,)")
    with pytest.raises(ValueError, match="-128"):
        Engine(having(weight=np.full((2, 2, 1, 1), -128, np.int8)), engine="reference")
    with pytest.raises(ValueError, match="finite"):
        Engine(having(scale=np.array([1, np.inf], np.float32)), engine="reference")


def deep(products: int) -> Program:
    """A sum of so many of the largest products, as whole numbers."""
    build = Builder((products, 1, 1))
    x = build.quantize(0, "u8", 1.0)
    weight = build.constant(np.full((1, products, 1, 1), -127), np.int8)
    build.qconv(x, 1, weight=weight, scale=build.constant([1.0]), bias=build.constant([0.0]))
    return build.program()


def test_sums_fit_32_bits():
    refused(deep(MAX_PRODUCTS + 1), "products in a sum", str(MAX_PRODUCTS))
    program, x = deep(MAX_PRODUCTS), np.full((1, MAX_PRODUCTS, 1, 1), 255, np.float32)
    wanted = np.float32(-255 * 127 * MAX_PRODUCTS)
    assert Network(program).run(x, {})[0].item() == wanted
    native = pytest.importorskip("ftwt.runtime._native")
    for isa in native.isas():
        assert Engine(program, isa=isa)(x).item() == wanted


def compare(seed: int) -> None:
    """Outputs, masks and MACs of a random program."""
    program, rng = random_quantised(seed), np.random.default_rng([seed, 3])
    compare_program(program, seed, rng, int(rng.choice((1, 1, 2, 3, 5))))


def compare_program(program: Program, seed: int, rng: np.random.Generator, samples: int) -> None:
    """On each instruction set, with one thread and two."""
    native = pytest.importorskip("ftwt.runtime._native")
    check(program)
    x = images(seed, program, samples)
    forced = {
        index: mask(str(rng.choice(MASKS)), samples, gate.channels, rng).astype(np.uint8)
        for index, gate in enumerate(program.gates)
    }
    cases: list[dict[int, np.ndarray]] = [forced]
    if not close_calls(program, x):
        cases.append({})
    wanted = [Network(program).run(x, given) for given in cases]
    for isa in native.isas():
        for threads in (1, 2):
            _, network = build_native(program, threads, isa)
            for given, results in zip(cases, wanted, strict=True):
                names = ("output", "masks", "MACs")
                for name, one, other in zip(names, network.run(x, given), results, strict=True):
                    where = f"seed {seed}, {isa}, {threads} threads, {name}"
                    np.testing.assert_array_equal(one, other, where)


HALO = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
SMALL = (
    ((64, 4, 4), HALO), ((100, 4, 4), HALO), ((200, 2, 2), HALO), ((64, 1, 1), HALO),
    ((128, 2, 2), {}), ((96, 1, 3), {}), ((520, 1, 1), {}), ((20, 3, 3), {"kernel": (3, 3)}),
    ((96, 4, 4), {}),
)  # fmt: skip


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_small_planes_and_linear_layers_have_kernels_of_their_own(case):
    shape, conv = SMALL[case]
    for seed in range(8):
        rng = np.random.default_rng([case, seed])
        build, filters = Builder(shape, seed=seed), int(rng.integers(1, 45))
        size = int(np.prod(shape[1:])) if conv is HALO or not conv else 1
        x = build.quantize(0, ("u8", "s8")[seed % 2], 0.01)
        if seed % 4 < 3:
            x = build.silence(x, build.fixed(np.ones(shape[0])))
        fields: dict[str, Any] = {"act": str(rng.choice(("none", "relu", "hardswish")))}
        if seed % 3:
            fields["mask"] = build.fixed(np.ones(filters))
        if seed % 2 or seed == 4:
            other = build.qconv(x, filters, out=(None, ("s8", 0.02))[seed % 4 // 2], **conv)
            hidden = build.fixed(np.ones(filters))
            fields |= {"add": build.silence(other, hidden), "post": "relu"}
        out = (None, ("u8", 0.01), ("s8", 0.02))[int(rng.integers(3))]
        made = build.qconv(x, filters, out=out, **conv, **fields)
        if out:
            made = build.dequantize(made)
        assert build.maps[made][1] * build.maps[made][2] == size
        compare_program(build.program(), seed, rng, 2)


@pytest.mark.parametrize("kind", ["u8", "s8"])
@pytest.mark.parametrize("side", [2, 4, 6, 8, 14, 20])
def test_pools_of_whole_maps_and_of_whole_planes(side, kind):
    for channels in (1, 5, 33):
        rng = np.random.default_rng([side, channels])
        build = Builder((channels, side, side))
        x = build.silence(build.quantize(0, kind, 0.02), build.fixed(np.ones(channels)))
        how = build.quantised[build.typed(x, (kind, 0.02))]
        half = build.typed(build.pool(x, "max", kernel=(2, 2), stride=(2, 2)), how)
        most, mean = build.pool(x, "max"), build.pool(x, "mean")
        flat = [build.flatten(i) for i in (build.dequantize(half), most, mean)]
        total = sum(build.maps[i][0] for i in flat)
        build.gather(tuple(flat), np.arange(total))
        compare_program(build.program(), side, rng, 2)


@pytest.mark.parametrize("start", range(0, PROGRAMS, 10))
def test_native_equals_reference_to_the_last_bit(start):
    for seed in range(start, start + 10):
        compare(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_native_equals_reference_on_many_programs():
    for seed in range(PROGRAMS, MANY):
        compare(seed)


def test_random_programs_hold_everything():
    programs = [random_quantised(seed) for seed in range(PROGRAMS)]
    kinds = {type(op).__name__ for program in programs for op in program.operations}
    wanted = {"QConv", "Quantize", "Dequantize", "Pool", "Combine", "Gather", "Flatten", "Silence"}
    assert wanted <= kinds and "Conv" not in kinds
    convs = [op for p in programs for op in p.operations if isinstance(op, QConv)]
    for field in ("mask", "add", "after"):
        assert sum(getattr(op, field) is not None for op in convs) > 20, field
    outs = [p.type_of(op.out) for p in programs for op in p.operations if isinstance(op, QConv)]
    assert {"f32", "u8", "s8"} == set(outs)


def test_files_say_which_version_reads_them(tmp_path):
    path = tmp_path / "net.ftwt"
    for seed in range(20):
        program = random_quantised(seed)
        save(program, path)
        read = load_program(path)
        assert (read.types, read.scales) == (program.types, program.scales)
        assert read.operations == program.operations
        x = images(seed, program, 2)
        wanted = Engine(program, engine="reference")(x)
        np.testing.assert_array_equal(load(path, engine="reference")(x), wanted)
        whole = path.read_bytes()
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        assert header["__metadata__"]["version"] == "2"


if __name__ == "__main__":
    first, number = map(int, sys.argv[1:])
    for seed in range(first, first + number):
        compare(seed)
    print(f"{number} programs: native equals reference to the last bit")
