"""Eight-bit programs: native equals reference bit for bit, and both stay near the float program."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ftwt
import tiny
import toys
from ftwt import cli
from ftwt.lowering.lower import lower
from ftwt.lowering.quantize import QuantizedLayer, quantize, rounded
from ftwt.runtime import Engine, load
from ftwt.runtime.program import QConv
from programs import Builder, random_integer_program, random_program

native = pytest.importorskip("ftwt.runtime._native")


def images(program, count=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *program.maps[0])).astype(np.float32)


@pytest.fixture(autouse=True)
def every_layer(request, monkeypatch):
    """Random weights may lose much; here they are integers all the same."""
    if "random" in request.node.name:
        monkeypatch.setattr("ftwt.lowering.quantize.LEAST_DB", -100.0)


def quantized(program, **options):
    return quantize(program, [images(program, 12, seed=1)], **options)


def same(program, x):
    """Hold the native engine, on every instruction set, to the reference."""
    wanted, told = Engine(program, engine="reference").run(x)
    for isa in native.isas():
        for threads in (1, 2):
            found, stats = Engine(program, isa=isa, threads=threads).run(x)
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(stats.macs, told.macs)
            for unit, mask in told.masks.items():
                np.testing.assert_array_equal(stats.masks[unit], mask)
    return wanted


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_give_the_same_bits(seed):
    program = random_integer_program(seed)
    integer, layers = quantized(program)
    assert {layer.precision for layer in layers} <= {"int8"}
    same(integer, images(program))


@pytest.mark.parametrize("seed", range(15))
def test_random_programs_with_float_parts_are_near_the_reference(seed):
    program = random_program(seed)
    integer, _ = quantized(program)
    x = images(program)
    wanted, told = Engine(integer, engine="reference").run(x)
    found, _ = Engine(integer).run(x, told.masks)
    scale = abs(wanted).max() + 1e-6
    assert np.median(abs(found - wanted)) <= 1e-4 * scale
    assert abs(found - wanted).max() <= 0.1 * scale  # a rounding that fell to the other side


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_many_random_programs_give_the_same_bits(seed):
    program = random_integer_program(seed)
    same(quantized(program)[0], images(program, 3))


def block() -> Builder:
    """A residual block, pools, a classifier."""
    build = Builder((3, 12, 12))
    first = build.conv(0, 16, (3, 3), padding=(1, 1, 1, 1), act="relu")
    mask = build.predict((build.pool(first, "mean"),), 16)
    inner = build.conv(first, 16, (3, 3), padding=(1, 1, 1, 1), act="relu", mask=mask)
    out = build.conv(inner, 16, (3, 3), padding=(1, 1, 1, 1), add=first, post="relu")
    small = build.pool(out, "max", kernel=(2, 2), stride=(2, 2))
    build.conv(build.pool(small, "mean"), 5, (1, 1))
    return build


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
def test_eight_bits_stay_near_the_floats(rule):
    program = block().program()
    integer, layers = quantized(program, rule=rule)
    x = images(program, 32)
    wanted, found = Engine(program)(x), same(integer, x)
    noise = np.square(wanted - found).sum() / np.square(wanted - wanted.mean(0)).sum()
    assert noise < 0.03
    assert [layer.precision for layer in layers] == ["int8"] * 4
    assert all(layer.snr_db > 20 for layer in layers)
    assert integer.notes["quantization"]["rule"] == rule
    assert len(integer.notes["quantization"]["layers"]) == 4


def test_inner_maps_are_integers_and_nothing_is_converted_twice():
    integer, _ = quantized(block().program())
    kinds = [type(op).__name__ for op in integer.operations]
    assert kinds.count("Quantize") == 2 and "Dequantize" not in kinds  # the image, and a mean
    assert kinds.count("QConv") == 4 and "Conv" not in kinds
    for op in integer.operations:
        if isinstance(op, QConv):
            weight = integer.constants[op.weight]
            assert weight.dtype == np.int8 and abs(weight.astype(int)).max() == 127
            assert integer.type_of(op.x) in ("u8", "s8")


def test_a_layer_that_would_lose_too_much_stays_float_and_is_named():
    build = Builder((8, 6, 6))
    spread = np.array([1e4, *[1] * 7], np.float32)  # one channel takes the whole range
    x = build.conv(0, 8, weight=build.constant(spread.reshape(8, 1, 1, 1), np.float32), groups=8)
    weight = np.zeros((4, 8, 1, 1), np.float32)
    weight[:, 1:] = 1.0  # and is not read
    y = build.conv(x, 4, weight=build.constant(weight, np.float32), act="relu")
    build.conv(y, 4)
    program = build.program()
    integer, layers = quantized(program, rule="minmax")
    assert isinstance(layers[0], QuantizedLayer)
    assert layers[1].precision == "f32" and "signal to noise" in layers[1].why
    assert layers[1].snr_db < 12 and layers[0].precision == layers[2].precision == "int8"
    same(integer, images(program))


def test_files_hold_eight_bits_and_old_ones_stay_as_they_were(tmp_path):
    program = block().program()
    integer, _ = quantized(program)
    x = images(program)
    for name, one in (("float", program), ("integer", integer)):
        Engine(one).save(tmp_path / name)
        np.testing.assert_array_equal(load(tmp_path / name)(x), Engine(one)(x))
    assert integer.quantised and not program.quantised
    again = load(tmp_path / "integer").program
    assert (again.types, again.scales) == (integer.types, integer.scales)
    weights = sum(np.prod(integer.constants[op.weight].shape) for op in integer.operations
                  if isinstance(op, QConv))  # fmt: skip
    assert (tmp_path / "float").stat().st_size - (tmp_path / "integer").stat().st_size > 2 * weights


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "calibrate holds no images"),
        ([np.zeros((2, 3, 4, 4), np.float32)], "must be .B, 3, 12, 12"),
        ([np.full((2, 3, 12, 12), np.nan, np.float32)], "not finite"),
    ],
)
def test_images_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        quantize(block().program(), given)
    with pytest.raises(ValueError, match="rule='best': use one of minmax"):
        quantize(block().program(), [images(block().program())], rule="best")


def test_a_range_that_overflows_is_refused_and_one_of_zero_gives_zeros():
    build = Builder((2, 4, 4))
    x = build.conv(0, 2, weight=build.constant(np.full((2, 2, 1, 1), 1e30), np.float32))
    build.conv(x, 2, weight=build.constant(np.full((2, 2, 1, 1), 1e30), np.float32))
    program = build.program()
    with pytest.raises(ValueError, match="map 2 overflows on a calibration image"):
        quantize(program, [np.ones((1, 2, 4, 4), np.float32)])
    black = np.zeros((1, 3, 12, 12), np.float32)
    integer, _ = quantize(block().program(), [black])
    assert np.isfinite(integer.scales).all() and min(integer.scales) > 0
    same(integer, black)


def test_what_has_no_eight_bit_form_stays_float_and_is_named():
    build = Builder((4, 6, 6))
    x = build.conv(0, 4)
    build.conv(x, 4, add=x, post="silu")
    integer, layers = quantized(build.program())
    assert [layer.precision for layer in layers] == ["int8", "f32"]
    assert layers[1].snr_db is None and layers[1].why == "silu after a sum"
    assert "Conv" in {type(op).__name__ for op in integer.operations}


def test_predictors_rows_become_whole_numbers_of_a_scale():
    matrix = np.random.default_rng(0).standard_normal((7, 40)).astype(np.float32)
    matrix[3] = 0
    near = rounded(matrix)
    scale = np.abs(near).max(1, keepdims=True) / np.float32(127)
    whole = np.rint(near / np.where(scale > 0, scale, 1))
    np.testing.assert_array_equal(whole * scale, near)
    assert (np.abs(near - matrix) <= scale * 0.5001).all() and (near != matrix).any()
    np.testing.assert_array_equal(rounded(near), near)
    tiny_one = matrix * np.float32(1e-35)
    np.testing.assert_array_equal(rounded(tiny_one), tiny_one)


@pytest.mark.parametrize(("channels", "rank"), [(64, 0), (37, 0), (50, 19)])
def test_predictors_of_eight_bits_decide_as_the_reference_does(channels, rank):
    build = Builder((24, 5, 5), seed=channels)
    mask = build.predict((build.pool(0, "max"),), channels, rank=rank)
    build.conv(0, channels, (3, 3), padding=(1, 1, 1, 1), mask=mask)
    integer, _ = quantized(build.program())
    x = images(integer, 40)
    _, wanted = Engine(integer, engine="reference").run(x)
    for isa in native.isas():
        for threads in (1, 2):
            _, found = Engine(integer, isa=isa, threads=threads).run(x)
            for unit, decided in wanted.masks.items():
                assert 0.1 < decided.mean() < 0.9
                np.testing.assert_array_equal(found.masks[unit], decided)


def test_a_dynamic_network_keeps_its_masks():
    network = toys.dynamic(dropout=0.0).eval()
    program = lower(network, None)
    given = images(program, 64)
    integer, _ = quantize(program, [given])
    _, wanted = Engine(program).run(given)
    _, found = Engine(integer).run(given)
    shares = [(wanted.masks[unit] == found.masks[unit]).mean() for unit in wanted.masks]
    assert min(shares) > 0.95
    json.dumps(integer.notes, allow_nan=False)


# --- By ftwt.compile ----------------------------------------------------------------------------


def test_compile_makes_an_engine_of_eight_bits():
    dynamic = toys.dynamic(dropout=0.0).eval()
    given = torch.from_numpy(images(lower(dynamic, None), 64))
    engine = ftwt.compile(dynamic, precision="int8", calibrate=[given, (given, None)])
    assert "int8" in repr(engine) and "int8" not in repr(ftwt.compile(dynamic))
    told = ftwt.quantized_layers(engine)
    assert told.images == 128 and told.rule == "minmax"
    assert {layer.precision for layer in told.layers} == {"int8"}
    for text in ("signal to noise", "layers in eight bits", told.layers[0].name):
        assert text in str(told)
    with pytest.raises(ValueError, match="the engine is float32; compile it with precision"):
        ftwt.quantized_layers(ftwt.compile(dynamic))


def test_a_plain_network_of_eight_bits_guesses_alike():
    network = toys.dynamic().restore().eval()
    x = torch.randn(200, *toys.dynamic().input_shape)
    engine = ftwt.compile(network, x[:1], precision="int8", calibrate=[x[:100]])
    with torch.inference_mode():
        wanted = network(x[100:])
    found = engine(x[100:])
    assert (wanted - found).square().sum() < 0.01 * (wanted - wanted.mean(0)).square().sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "calibrate=None: int8 takes ranges of maps from images"),
        ({"precision": "int8", "calibrate": []}, "calibrate holds no images"),
        ({"precision": "int4"}, "precision='int4': use one of f32, int8"),
        ({"calibrate": [torch.zeros(1, 3, 8, 8)]}, "it belongs to 'int8'"),
        ({"precision": "int8", "calibrate": [torch.zeros(1, 3, 5, 5)]}, "must be .B, "),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ftwt.compile(toys.dynamic().eval(), **options)


def test_the_command_line_compiles_runs_and_times_eight_bits(tiny_home, capsys):
    command = ["compile", tiny.NAME, "-o", "net.ftwt", *tiny.DATA, "--precision", "int8",
               "--calibrate", "50"]  # fmt: skip
    assert cli.main(command) == 0
    assert "layers in eight bits" in capsys.readouterr().out
    Image.new("RGB", (32, 32), "teal").save("picture.png")
    assert cli.main(["run", "net.ftwt", "picture.png"]) == 0
    bench = ["bench", tiny.NAME, "--rounds", "1", "--singles", "1", "--rivals", "torch",
             "--precision", "int8", "--keep", "0.5"]  # fmt: skip
    assert cli.main(bench) == 0
    assert "int8, " in capsys.readouterr().out
    assert cli.main([*command[:-1], "0"]) == 1
    assert "calibrate=0: take ranges from one image or more" in capsys.readouterr().err
