"""The engine around both networks: what it takes, what it gives back, what it says of the work."""

import dataclasses
import importlib
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
import torch

from ftwt.runtime import Engine, load, save
from ftwt.runtime.reference import Network
from mutations import small_program
from programs import Builder, random_program

X = np.random.default_rng(0).standard_normal((3, 2, 6, 5)).astype(np.float32)
KINDS = ["reference", "native"]


def build(kind: str = "reference", program: Any = None, **options: Any) -> Engine:
    if kind == "native":
        pytest.importorskip("ftwt.runtime._native")
    return Engine(program or small_program(), engine=kind, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_is_its_network(kind):
    program = small_program()
    out, masks, macs = Network(program).run(X, {})
    engine = build(kind, program)
    logits, stats = engine.run(X)
    np.testing.assert_allclose(engine(X), out[:, :, 0, 0], rtol=1e-4, atol=1e-5)
    assert np.array_equal(engine(X), logits) and logits.shape == (3, 3)
    assert np.array_equal(stats.macs, macs)
    assert list(stats.masks) == ["unit0", "unit1", "unit2"]
    assert all(mask.dtype == np.bool_ for mask in stats.masks.values())
    assert np.array_equal(np.concatenate(list(stats.masks.values()), axis=1), masks.astype(bool))
    assert "3 samples" in repr(stats)


def test_statistics():
    program = small_program()
    _, stats = build("reference", program).run(X)
    kept = [stats.masks[g.unit].sum(1) / g.prior for g in program.gates]
    assert program.gates[0].prior == 5 and program.gates[0].channels == 4
    np.testing.assert_allclose(stats.keep, np.mean(kept, axis=0))
    assert np.array_equal(stats.executed_macs, stats.macs.sum(1))
    np.testing.assert_allclose(stats.reduction, 1 - stats.executed_macs / program.dense_macs)
    plain = Builder((2, 3, 3))
    plain.conv(0, 4)
    _, stats = build("reference", plain.program()).run(X[:, :, :3, :3])
    assert stats.keep.tolist() == [1, 1, 1] and stats.reduction.tolist() == [0, 0, 0]
    pools = Builder((2, 3, 3))
    pools.pool(0, "max")
    _, stats = build("reference", pools.program()).run(X[:, :, :3, :3])
    assert stats.reduction.tolist() == [0, 0, 0] and stats.executed_macs.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_in_and_out(kind):
    engine = build(kind)
    wanted = engine(X)
    tensor = torch.from_numpy(X).requires_grad_()
    out = engine(tensor)
    assert isinstance(out, torch.Tensor) and not out.requires_grad
    assert np.array_equal(out.numpy(), wanted)
    last = torch.from_numpy(X).contiguous(memory_format=torch.channels_last)
    assert np.array_equal(engine(last).numpy(), wanted)
    out, stats = engine.run(tensor, {"unit0": torch.ones(3, 4, dtype=torch.bool)})
    assert isinstance(out, torch.Tensor) and isinstance(stats.keep, np.ndarray)
    assert stats.masks["unit0"].all()


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_layout(kind):
    engine = build(kind)
    wanted = engine(X)
    assert np.array_equal(engine(np.asfortranarray(X)), wanted)
    assert np.array_equal(engine(np.repeat(X, 2, axis=0)[::2]), wanted)
    frozen = X.copy()
    frozen.flags.writeable = False
    assert np.array_equal(engine(frozen), wanted)
    assert np.array_equal(engine(X[1:2]), wanted[1:2])
    before = X.copy()
    engine(X)[:] = 0
    assert np.array_equal(X, before) and np.array_equal(engine(X), wanted)


def test_a_map_comes_out_as_a_map():
    conv = Builder((2, 6, 5))
    conv.conv(0, 4, (3, 3))
    assert build("reference", conv.program())(X).shape == (3, 4, 4, 3)


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (X.astype(np.float64), r"float64, must be float32; convert it with"),
        (X.astype(">f4"), ">f4"),
        (np.zeros((3, 2, 6, 5), np.uint8), "uint8, must be float32"),
        (X[:, :1], r"\(3, 1, 6, 5\), must be \(B, 2, 6, 5\)"),
        (X[:, :, :5], r"\(3, 2, 5, 5\)"),
        (X[0], r"\(2, 6, 5\), must be \(B, 2, 6, 5\)"),
        (X[:0], r"B > 0"),
        (X.tolist(), "list, must be a numpy array or torch tensor"),
        (None, "NoneType"),
        (torch.zeros(3, 2, 6, 5, dtype=torch.float64), "torch.float64"),
        (torch.zeros(3, 2, 6, 5, dtype=torch.bfloat16), "torch.bfloat16"),
        (torch.zeros(3, 2, 6, 5, device="meta"), "on meta"),
        (torch.zeros(3, 2, 6, 4), r"\(3, 2, 6, 4\)"),
    ],
)
def test_inputs_that_are_refused(x, word):
    with pytest.raises(ValueError, match=word):
        build()(x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_not_finite_are_refused(kind, value):
    engine = build(kind)
    for place in ((0, 0, 0, 0), (1, 1, 5, 4), (2, 0, 3, 2)):
        x = X.copy()
        x[place] = value
        with pytest.raises(ValueError, match=f"image {place[0]} holds a value that is not finite"):
            engine(x)
    assert np.isfinite(engine(X)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_refused(kind, tmp_path):
    for operation in small_program().operations:
        for field, name in operation.constants.items():
            for value in (np.nan, np.inf):
                program = small_program()
                if program.constants[name].dtype != np.float32:
                    continue
                constants = {**program.constants, name: program.constants[name].copy()}
                constants[name].flat[-1] = value
                program = dataclasses.replace(program, constants=constants)
                with pytest.raises(ValueError, match=f"{operation.name}.*{field} is .*finite"):
                    build(kind, program)
                with pytest.raises(ValueError, match="finite numbers"):
                    save(program, tmp_path / "net.ftwt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_overflow_keep_their_filters(kind):
    program = Builder((2, 1, 1))
    weight = program.constant([[3e38, -3e38], [0, 0], [0, 0]])
    bias = program.constant([0, 1, -1])
    mask = program.predict((0,), 3, weight=weight, bias=bias)
    program.conv(0, 3, mask=mask)
    x = np.full((1, 2, 1, 1), 1e38, np.float32)  # 3e76 - 3e76
    masks = build(kind, program.program()).run(x)[1].masks["unit0"]
    assert masks.tolist() == [[True, True, False]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_without_parameters_is_saved_and_loaded(kind, tmp_path):
    program = Builder((2, 6, 5))
    program.pool(program.activate(0, "relu"), "max")
    engine = build(kind, program.program())
    engine.save(tmp_path / "net.ftwt")
    assert np.array_equal(load(tmp_path / "net.ftwt", engine=kind)(X), engine(X))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_override_the_gates_that_are_counted_nevertheless(kind):
    engine = build(kind)
    _, own = engine.run(X)
    given = {"unit0": np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool)}
    out, stats = engine.run(X, given)
    assert np.array_equal(stats.masks["unit0"], given["unit0"])
    predictors = [type(op).__name__ == "Predict" for op in engine.program.operations]
    assert np.array_equal(stats.macs[:, predictors], own.macs[:, predictors])
    assert (stats.macs[:, predictors] > 0).all()
    fixed = {"unit2": np.zeros((3, 4), bool)}
    assert not engine.run(X, fixed)[1].masks["unit2"].any()
    reference = build().run(X, given)
    np.testing.assert_allclose(out, reference[0], rtol=1e-4, atol=1e-5)
    assert np.array_equal(stats.macs, reference[1].macs)


@pytest.mark.parametrize(
    ("masks", "word"),
    [
        ({"unti0": np.ones((3, 4), bool)}, "no gate has unit 'unti0'; there are unit0"),
        ({0: np.ones((3, 4), bool)}, "no gate has unit 0"),
        ({"unit0": np.ones((3, 5), bool)}, r"bool of shape \(3, 5\), must be .* \(3, 4\)"),
        ({"unit0": np.ones(4, bool)}, r"must be bool of shape \(3, 4\)"),
        ({"unit0": np.ones((3, 4))}, "float64"),
        ({"unit0": [[True] * 4] * 3}, "list"),
    ],
)
def test_masks_that_are_refused(masks, word):
    with pytest.raises(ValueError, match=word):
        build().run(X, masks)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"engine": "fast"}, "'native' or 'reference'"),
        ({"threads": 0}, "from 1 to"),
        ({"threads": True}, "from 1 to"),
        ({"threads": 10**6}, "from 1 to"),
        ({"isa": "avx512"}, "reference engine has none"),
    ],
)
def test_options_that_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Engine(small_program(), **({"engine": "reference"} | options))


def test_a_native_engine_says_what_it_uses():
    native = pytest.importorskip("ftwt.runtime._native")
    engine = build("native", threads=2)
    assert (engine.kind, engine.isa, engine.threads) == ("native", native.isas()[0], 2)
    assert repr(engine) == f"Engine(2x6x5 -> 3x1x1, 3 gates, {engine.isa}, threads=2)"
    assert build("native", isa="portable").isa == "portable"
    with pytest.raises(ValueError, match="isa is 'neon', must be one of .*portable"):
        build("native", isa="neon")
    assert repr(build()) == "Engine(2x6x5 -> 3x1x1, 3 gates, reference)"


def test_without_the_native_module_the_error_says_what_to_install(monkeypatch):
    real = importlib.import_module

    def missing(name: str, *arguments: Any) -> Any:
        if name.endswith("_native"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RuntimeError, match=r"C\+\+17 compiler .*engine='reference'"):
        Engine(small_program())
    assert Engine(small_program(), engine="reference")(X).shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_may_share_an_engine(kind):
    program = random_program(7)
    engine = build(kind, program, **({"threads": 2} if kind == "native" else {}))
    rng = np.random.default_rng(1)
    inputs = [
        rng.standard_normal((1 + i % 3, *program.maps[0])).astype(np.float32) for i in range(8)
    ]
    wanted = [engine(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not np.array_equal(engine(inputs[index]), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_loading_and_running_imports_numpy_alone(kind, tmp_path):
    build(kind).save(tmp_path / "net.ftwt")
    code = """
        import sys
        import numpy
        before = set(sys.modules)
        from ftwt.runtime import load
        engine = load(sys.argv[1], engine=sys.argv[2])
        print(engine(numpy.zeros((1, 2, 6, 5), numpy.float32)).shape)
        print(*{name.split(".")[0] for name in set(sys.modules) - before})
        """
    shape, modules = python(code, str(tmp_path / "net.ftwt"), kind).splitlines()
    assert shape == "(1, 3)"
    assert set(modules.split()) - sys.stdlib_module_names <= {"ftwt", "numpy"}


def test_engines_that_live_to_the_end_are_no_leak(tmp_path):
    build("native").save(tmp_path / "net.ftwt")
    code = """
        import sys
        from ftwt.runtime import load, _native
        _native.engine = sys.engine = load(sys.argv[1])
        sys.engine.itself = sys.engine
        """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "net.ftwt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_that_fails_leaves_nothing_behind(kind, tmp_path):
    build(kind)
    (tmp_path / "net.ftwt").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "net.ftwt", engine=kind)


def test_a_profile_has_a_time_for_each_operation():
    program = small_program()
    engine = build("native", program)
    times = engine.profile(X, runs=3)
    assert times.shape == (len(program.operations),) and (times > 0).all()
    assert np.array_equal(engine(X), build("native", program)(X))  # and the clock is off again
    with pytest.raises(ValueError, match="at least 1"):
        engine.profile(X, runs=0)
    with pytest.raises(ValueError, match="native"):
        build("reference", program).profile(X)
