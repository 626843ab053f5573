"""What a program may cost: the limits at their edges, and that programs at them run rightly."""

import _thread
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ftwt.runtime import Activate, Conv, Gather, Pool, Program, check, limits, save
from ftwt.runtime.engine import build_native
from programs import Builder

native = pytest.importorskip("ftwt.runtime._native")


class Claimed(dict[str, np.ndarray]):
    """Says what its constants are without having them, as those of a file do."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__({name: np.zeros(1) for name in shapes})
        self.specs = {name: (np.dtype("f4"), shape) for name, shape in shapes.items()}


def convs(image: tuple[int, int, int], filters: int, kernel: tuple[int, int], count: int = 1,
          **fields: Any) -> Program:  # fmt: skip
    """Convolutions of one image by the same weights."""
    channels, *size = image
    stride = fields.get("stride", (1, 1))
    out = [(n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True)]
    groups = fields.get("groups", 1)
    constants = Claimed(w=(filters, channels // groups, *kernel), b=(filters,))
    given: dict[str, Any] = {"x": 0, "weight": "w", "bias": "b", **fields}
    operations = tuple(Conv(name="a", out=1 + i, **given) for i in range(count))
    maps = (image, *[(filters, out[0], out[1])] * count)
    return Program(maps, (), operations, 1, constants, 0)


def pools(image: tuple[int, int, int], kernel: tuple[int, int], count: int = 1) -> Program:
    channels, *size = image
    out = (size[0] - kernel[0] + 1, size[1] - kernel[1] + 1)
    operations = tuple(
        Pool(name="a", x=0, out=1 + i, kind="max", kernel=kernel) for i in range(count)
    )
    return Program((image, *[(channels, *out)] * count), (), operations, 1, {}, 0)


def activations(shape: tuple[int, int, int], count: int) -> Program:
    operations = tuple(Activate(name="a", x=i, out=i + 1, act="relu") for i in range(count))
    return Program((shape,) * (count + 1), (), operations, count, {}, 0)


def kept(shape: tuple[int, int, int], count: int) -> Program:
    """All maps are needed until the end."""
    operations = [Activate(name="a", x=0, out=i + 1, act="relu") for i in range(count)]
    total = count * shape[0]
    gather = Gather(name="g", xs=tuple(range(1, count + 1)), out=count + 1, index="i")
    constants = {"i": np.zeros(1, np.int32)}
    maps = ((shape,) * (count + 1)) + ((1, *shape[1:]),)
    assert total <= limits.MAX_SIZE
    return Program(maps, (), (*operations, gather), count + 1, constants, 0)


def pieces(count: int) -> Program:
    gather = Gather(name="g", xs=(0,) * count, out=1, index="i")
    return Program(((1, 1, 1),) * 2, (), (gather,), 1, {"i": np.zeros(1, np.int32)}, 0)


EDGES: dict[str, tuple[Callable[[int], Program], int, str]] = {
    "channels": (lambda n: activations((n, 1, 1), 15), 2**20, "channels of all maps"),
    "live": (lambda n: kept((8, 2**11, n), 7), 2**11, "elements of maps needed at once"),
    "reads": (pieces, 2**16, "at most 65536, all operations"),
    "plan, taps": (lambda n: convs((1, 1, 2**20), 1, (1, 2**20), n), 15, "taps and vectors"),
    "plan, vectors": (lambda n: convs((1, 2**21, 1), 1, (1, 1), n), 3, "taps and vectors"),
    "staged": (
        lambda n: convs((n, 1, 2**10), 1, (1, 2**10), stride=(1, 2**10)), 4032, "input, laid out"
    ),
    "MACs": (lambda n: convs((2**14, 2**5, 2**5), 2**10, (1, 1), n), 2**9, "MACs is"),
    "pooled": (
        lambda n: pools((2**5, 2**8 + 2**9, 2**10 + 2**9 - 1), (2**9, 2**9), n), 6,
        "elements that windows read",
    ),
    "row": (lambda n: pools((1, 2**5, 2**16 + n), (1, n)), 16382, "a row of windows reads"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_limits_at_their_edges(name: str) -> None:
    make, most, words = EDGES[name]
    check(make(most))
    with pytest.raises(ValueError, match=words):
        check(make(most + 1))


def threads_agree(program: Program, algorithm: str = "auto", batch: int = 1) -> None:
    """A program gives on many threads what it gives on one, and that is not nothing."""
    check(program)
    x = np.random.default_rng(0).standard_normal((batch, *program.maps[0]), np.float32)
    wanted = build_native(program, 1, None, algorithm)[1].run(x, {})[0]
    assert wanted[-1].any() and np.isfinite(wanted).all()
    for threads in (2, 3, 40):
        found = build_native(program, threads, None, algorithm)[1].run(x, {})[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_million_inputs() -> None:
    build = Builder((1_002_252, 1, 5))
    build.conv(0, 1)
    threads_agree(build.program())
    x = np.random.default_rng(0).standard_normal((1, 1_002_252, 1, 5), np.float32)
    weight = build.constants["c0"][0, :, 0, 0].astype(np.float64)
    wanted = weight @ x[0, :, 0].astype(np.float64) + build.constants["c1"][0]
    found = build_native(build.program(), 1, None)[1].run(x, {})[0]
    np.testing.assert_allclose(found[0, 0, 0], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_millions_of_rows_of_tiles() -> None:
    build = Builder((8, 3_200_000, 1))
    build.conv(0, 1, (3, 3), padding=(1, 1, 1, 1))
    program = build.program()
    x = np.random.default_rng(0).standard_normal((1, *program.maps[0]), np.float32)
    by_definition = build_native(program, 1, None, "direct")[1].run(x, {})[0]
    found = build_native(program, 3, None, "winograd")[1].run(x, {})[0]
    np.testing.assert_allclose(found, by_definition, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_as_many_channels_as_there_may_be() -> None:
    threads_agree(activations((limits.MAX_CHANNELS // 2, 1, 1), 1))


@pytest.mark.slow
def test_as_many_filters_as_there_may_be() -> None:
    build = Builder((1, 1, 1))
    build.conv(0, limits.MAX_CHANNELS - 1)
    threads_agree(build.program(), batch=2)


@pytest.mark.parametrize("algorithm", ["direct", "dot"])
def test_many_filters_by_each_kernel(algorithm: str) -> None:
    build = Builder((2, 2, 2))
    build.conv(0, 2**17, (3, 3), padding=(1, 1, 1, 1))
    threads_agree(build.program(), algorithm, batch=2)


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_that_convolutions_share_are_held_once(tmp_path) -> None:
    build = Builder((256, 1, 1))
    weight, bias = build.normal(256, 256, 1, 1, scale=1 / 16), build.normal(256)
    x = 0
    for _ in range(2000):  # 512 MB, if each had its own
        x = build.conv(x, 256, weight=weight, bias=bias, act="tanh")
    save(build.program(), tmp_path / "net.ftwt")
    code = """
        import sys
        import numpy
        from ftwt.runtime import load
        engine = load(sys.argv[1])
        engine(numpy.ones((1, 256, 1, 1), numpy.float32))
        with open("/proc/self/status") as status:
            print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
        """
    assert int(python(code, str(tmp_path / "net.ftwt"))) < 200_000  # kB


def long(kind: str) -> Program:
    """Minutes of work in one operation."""
    if kind == "pool":
        side = 2**13
        build = Builder((2, side, side))
        build.pool(0, "mean", kernel=(2**10, 2**10), stride=(2, 2))
        return build.program()
    if kind == "depthwise":
        build = Builder((2, 2**11, 2**11))
        build.conv(0, 2, (512, 512), groups=2)
        return build.program()
    build = Builder((512, 512, 512))
    if kind == "panel":
        build = Builder((512, 512, 512))
        build.conv(0, 256)
        for _ in range(50):
            build.conv(0, 256, weight="c0", bias="c1")
        return build.program(51)
    if kind == "gated":
        build.predict((build.pool(0, "mean"),), 4)
    kernel, border = ((3, 3), (1, 1, 1, 1)) if kind == "winograd" else ((5, 5), (2, 2, 2, 2))
    build.conv(0, 256, kernel, padding=border)
    return build.program()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C: a shell's background jobs begin without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["direct", "winograd", "panel", "depthwise", "pool"])
def test_a_long_run_hears_ctrl_c_within_a_second(kind: str, threads: int) -> None:
    program = long(kind)
    network = build_native(program, threads, None)[1]
    x = np.ones((1, *program.maps[0]), np.float32)
    asked: list[float] = []

    def ask() -> None:
        asked.append(time.perf_counter())
        _thread.interrupt_main()

    for _ in range(2):  # and again, after it was interrupted
        timer = threading.Timer(1.0, ask)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            network.run(x, {})
        assert time.perf_counter() - asked.pop() < 1


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_hears_ctrl_c_and_the_engine_goes_on() -> None:
    build = Builder((2, 2**10, 2**10))
    build.conv(0, 2, (256, 256), groups=2)
    program = build.program()
    network = build_native(program, 2, None)[1]
    x = np.ones((1, *program.maps[0]), np.float32)
    heard: list[float] = []
    for _ in range(2):
        timer = threading.Timer(0.2, _thread.interrupt_main)
        start = time.perf_counter()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            network.run(x, {})
        heard.append(time.perf_counter() - start)
    assert max(heard) < 1.2


def test_other_threads_run_while_an_engine_does() -> None:
    program = convs_that_take_a_while()
    network = build_native(program, 1, None)[1]
    x = np.ones((1, *program.maps[0]), np.float32)
    thread = threading.Thread(target=network.run, args=(x, {}))
    beats = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        beats += 1
    assert beats > 5


def convs_that_take_a_while() -> Program:
    build = Builder((64, 128, 128))
    x = build.conv(0, 64, (3, 3), padding=(1, 1, 1, 1))
    for _ in range(20):
        x = build.conv(x, 64, (3, 3), padding=(1, 1, 1, 1), weight="c0", bias="c1", act="tanh")
    return build.program()
