"""The native engine in a process: how it was linked, forks, its end, and numbers of any size."""

import os
import re
import struct
import subprocess
import sys
import textwrap
from math import erfc, sqrt
from pathlib import Path

import numpy as np
import pytest

from ftwt.runtime import Engine
from programs import Builder

native = pytest.importorskip("ftwt.runtime._native")


def python(code: str) -> None:
    helpers = str(Path(__file__).parents[1] / "helpers")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 3])
def test_an_engine_that_was_used_before_a_fork(threads: int) -> None:
    """It runs in the child, with threads of its own; and it can just be dropped there."""
    python(f"""
        import os, signal
        import numpy as np
        from ftwt.runtime import Engine
        from mutations import small_program

        x = np.ones((3, 2, 6, 5), np.float32)
        engine = Engine(small_program(), threads={threads})
        wanted = engine(x)
        for run in (False, True):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                right = not run or np.array_equal(engine(x), wanted)
                del engine
                os._exit(0 if right else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert np.array_equal(engine(x), wanted)
        """)


def test_nothing_is_said_of_engines_that_live_at_the_end() -> None:
    python("""
        import builtins
        from ftwt.runtime import Engine
        from mutations import small_program
        builtins.kept = [Engine(small_program(), threads=2)]
        builtins.kept.append(builtins.kept)
        """)


def test_no_element_of_a_choice_is_read() -> None:
    """Of `(c ? a : b)[i]` GCC 12 computes i for a alone, if it is to find undefined behaviour."""
    choice = re.compile(r"\([^()]*\?[^()]*:[^()]*\)\s*\[")
    assert choice.search("x = (f < 3 ? w : others)[f % 3 * row];")
    folder = Path(__file__).parents[2] / "native"
    files = [*folder.glob("*.h"), *folder.glob("*.cpp")]
    found = [(path.name, line) for path in files for line in choice.findall(path.read_text())]
    assert len(files) > 30 and not found


def test_the_module_is_linked_with_guards() -> None:
    content = Path(native.__file__).read_bytes()
    if content[:5] != b"\x7fELF\x02" or hasattr(native, "products"):
        pytest.skip("no 64-bit ELF, or built with sanitizers")
    (start,), (size, count) = (
        struct.unpack_from("<Q", content, 32),
        struct.unpack_from("<HH", content, 54),
    )
    segments = [struct.unpack_from("<IIQQQQ", content, start + i * size) for i in range(count)]
    kinds = {segment[0]: segment for segment in segments}
    assert 0x6474E552 in kinds  # PT_GNU_RELRO
    assert not kinds[0x6474E551][1] & 1  # PT_GNU_STACK: not executable
    offset, length = kinds[2][2], kinds[2][5]  # PT_DYNAMIC
    entries = dict(struct.iter_unpack("<QQ", content[offset : offset + length]))
    assert entries.get(30, 0) & 8 or entries.get(0x6FFFFFFB, 0) & 1  # BIND_NOW
    assert b"__stack_chk_fail" in content


ACTS = ("silu", "hardswish", "sigmoid", "hardsigmoid", "relu", "relu6", "leaky_relu", "elu", "gelu",
        "tanh")  # fmt: skip
FAR = np.array([s * m * 10.0**e for s in (1, -1) for m in (1, 2.5) for e in range(-38, 39)] + [0.0])
NEAR = np.linspace(-110, 110, 4001)


def exactly(act: str, x: np.ndarray) -> np.ndarray:
    """Activations in float64."""
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
    hard = np.clip(x / 6 + 0.5, 0, 1)
    return {
        "silu": lambda: x * sigmoid,
        "hardswish": lambda: x * hard,
        "sigmoid": lambda: sigmoid,
        "hardsigmoid": lambda: hard,
        "relu": lambda: np.maximum(x, 0),
        "relu6": lambda: np.clip(x, 0, 6),
        "leaky_relu": lambda: np.where(x > 0, x, 0.01 * x),
        "elu": lambda: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        "gelu": lambda: x * np.array([erfc(-v / sqrt(2)) for v in x]) / 2,
        "tanh": lambda: np.tanh(x),
    }[act]()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("where", ["alone", "of a convolution"])
def test_activations_of_any_size(act: str, where: str) -> None:
    values = np.concatenate([FAR, NEAR]).astype(np.float32)
    values = values[np.isfinite(values)]
    build = Builder((1, 1, len(values)))
    if where == "alone":
        build.activate(0, act)
    else:
        weight, bias = build.constant([[[[1.0]]]]), build.constant([0.0])
        build.conv(0, 1, act=act, weight=weight, bias=bias)
    wanted = exactly(act, values.astype(np.float64))
    engines = [Engine(build.program(), engine="reference")]
    engines += [Engine(build.program(), isa=isa) for isa in native.isas()]
    for engine in engines:
        found = engine(values.reshape(1, 1, 1, -1)).reshape(-1).astype(np.float64)
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6, err_msg=str(engine))
