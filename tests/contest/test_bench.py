"""The benchmark: turns, rivals that are let in or left out, masks that were timed, what follows."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ftwt
import tiny
import toys
from ftwt.contest import rivals, turns
from ftwt.contest.steered import Steered, draw, opened, took
from ftwt.contest.turns import Contestant
from ftwt.files.console import PlainConsole
from ftwt.files.json import read_json
from ftwt.records.benchmark import DENSE, GATED, Benchmark, ImageTiming, Timing


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "REST_S", 0)
    monkeypatch.setattr(turns, "WARMUP_S", 0)


def bench(model: nn.Module, **options: Any) -> Benchmark:
    if not {"example", "images"} & options.keys() and not isinstance(model, ftwt.DynamicModel):
        options["example"] = torch.zeros(1, 3, 32, 32)
    short = {"rounds": 2, "singles": 0, "rivals": [], "engine": "reference"}
    return ftwt.bench(model, **short | options)


def rival(answer: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Builds a contestant that answers so."""

    def build(network: nn.Module, batches: np.ndarray, *_: Any) -> Contestant:
        chosen = [0]

        @torch.inference_mode()
        def infer() -> np.ndarray:
            return answer(network(torch.from_numpy(batches[chosen[0]]))).numpy()

        return Contestant(lambda batch: chosen.__setitem__(0, batch), infer, "made up")

    return build


# --- Turns --------------------------------------------------------------------------------------


def test_contestants_take_turns_and_every_batch_is_timed_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[tuple[str, int]] = []
    clock = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])

    def contestant(name: str, cost: float) -> Contestant:
        chosen = [0]

        def infer() -> np.ndarray:
            log.append((name, chosen[0]))
            clock[0] += cost * (1 + chosen[0])
            return np.zeros(1)

        def take(batch: int) -> None:
            clock[0] += 100  # not timed
            chosen[0] = batch

        return Contestant(take, infer, "")

    seconds = turns.time_in_turns({"a": contestant("a", 1), "b": contestant("b", 2)}, 3, rounds=2)
    assert log == [(name, batch) for _ in range(2) for name in "ab" for batch in range(3)]
    assert seconds["a"].tolist() == [[1, 2, 3]] * 2 and seconds["b"].tolist() == [[2, 4, 6]] * 2

    log.clear()
    monkeypatch.setattr(turns, "WARMUP_S", 2.5)
    found = turns.time_shuffled(contestant("a", 1), 4, rounds=2, random=np.random.default_rng(0))
    assert found.tolist() == [[1, 2, 3, 4]] * 2
    orders = [log[:7], log[7:]]
    assert all(order[:3] == [("a", 0)] * 3 for order in orders)  # the warm-up
    assert all(sorted(order[3:]) == [("a", n) for n in range(4)] for order in orders)
    assert orders[0] != orders[1]
    assert turns.fastest([contestant("slow", 3), quick := contestant("q", 1)]) is quick


def test_what_other_guests_take_in_half_of_the_rounds_does_not_show() -> None:
    alone = np.linspace(1, 1.06, 7)[:, None] * [1.0, 2.0]
    assert turns.faster_half(alone[::-1]).tolist() == alone[:4].tolist()
    disturbed = alone.copy()
    disturbed[[0, 2, 5, 6]] *= 3
    assert np.all(np.median(disturbed, axis=0) > [2.0, 4.0])
    assert np.all(np.median(turns.faster_half(disturbed), axis=0) < [1.06, 2.12])
    assert turns.faster_half(np.array([[5.0]])).tolist() == [[5.0]]


def test_what_others_do_meanwhile_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with turns.disturbance() as alone:
        before = time.process_time()
        while time.process_time() < before + 0.2:
            pass
    busy = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(busy) as other, turns.disturbance() as found:
        time.sleep(1)
        other.kill()
    if not alone:
        pytest.skip("the system does not tell")
    assert found[0] > 0.25  # of a core: this machine may be busy
    monkeypatch.setattr(turns.Path, "read_text", lambda self: "nothing of the kind")
    with turns.disturbance() as found:
        pass
    assert found == []


# --- Rivals -------------------------------------------------------------------------------------


def test_only_rivals_with_pytorchs_answers_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Contestant:
        raise ModuleNotFoundError("No module named 'fast'", name="fast")

    def broken(*_: Any) -> Contestant:
        raise TypeError("no such operator\nand much more")

    made = {
        "honest": rival(lambda y: y * (1 + 1e-5)),
        "rounded": rival(lambda y: y.bfloat16().float()),
        "other": rival(lambda y: y[:, :-1]),
        "nan": rival(lambda y: y * float("nan")),
        "missing": missing,
        "broken": broken,
    }
    monkeypatch.setattr(rivals, "BUILDERS", made)
    found = bench(tiny.network(), rivals=made)
    assert [timing.name for timing in found.timings] == ["honest", DENSE]
    assert list(found.left_out) == ["rounded", "other", "nan", "missing", "broken"]
    assert found.left_out["rounded"].startswith(
        "refused: its answers differ from PyTorch's by 0.00"
    )
    assert found.left_out["other"].startswith("refused: ")
    assert found.left_out["nan"].startswith("refused: ")
    assert found.left_out["missing"] == "fast is not installed: pip install 'ftwt[bench]'"
    assert found.left_out["broken"] == "failed: TypeError: no such operator"
    assert found.fastest_rival is found["honest"]
    with pytest.raises(ValueError, match="unknown rival 'onnx'; Known: honest, rounded"):
        bench(tiny.network(), rivals=["onnx"])


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_a_rival_runs_a_network_as_pytorch_does(name: str) -> None:
    for package in {"torch": (), "onnxruntime": ("onnx",)}.get(name, ("onnx", name)):
        pytest.importorskip(package)
    for batch in (1, 3):
        found = bench(tiny.network(), rivals=[name], batch=batch)
        assert not found.left_out
        assert found.fastest_rival is found[name] and found[name].latency_ms > 0


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-bf16", "openvino-int8"])
def test_a_rival_in_fewer_bits_comes_near(name: str, capsys: Any) -> None:
    library, kind = name.split("-")
    needed = ("onnx", library, "nncf") if name == "openvino-int8" else ("onnx", library)
    if missing := [package for package in needed if not find_spec(package)]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    images = torch.randn(21, 3, 32, 32)
    found = bench(tiny.network(), rivals=[name], batch=3, calibrate=[images[:9], images[9:]])
    if name in found.left_out:
        assert kind == "bf16" and "does not compute in bfloat16" in found.left_out[name]
        return
    settings = found[name].settings
    assert ("bfloat16" if kind == "bf16" else "21 images") in settings
    assert not capsys.readouterr().out  # no progress: it would stand before our JSON


def test_rivals_in_fewer_bits_may_round_but_not_compute_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[np.ndarray] = []

    def near(network: nn.Module, batches: np.ndarray, *rest: Any) -> Contestant:
        seen.append(rest[-1])
        return rival(lambda y: y.bfloat16().float())(network, batches)

    made = {"rounded": near, "other": rival(lambda y: -y), "nan": rival(lambda y: y * float("nan"))}
    monkeypatch.setattr(rivals, "BUILDERS", made)
    monkeypatch.setattr(rivals, "FEWER_BITS", made)
    images = torch.randn(7, 3, 32, 32)
    found = bench(tiny.network(), rivals=made, batch=3, calibrate=[(images, torch.zeros(7))])
    assert "rounded" in [timing.name for timing in found.timings]
    assert list(found.left_out) == ["other", "nan"]
    assert np.array_equal(seen[0], images[:6].reshape(2, 3, 3, 32, 32).numpy())
    with pytest.raises(ValueError, match="calibrate: 7 images are less than a batch of 8"):
        bench(tiny.network(), rivals=made, batch=8, calibrate=[images])
    with pytest.raises(ValueError, match="calibrate holds no images"):
        bench(tiny.network(), rivals=made, calibrate=[])


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "openvino"):
        pytest.importorskip(package)
    monkeypatch.setitem(sys.modules, "nncf", None)
    found = bench(tiny.network(), rivals=["openvino-int8"])
    assert found.left_out == {"openvino-int8": "nncf is not installed: pip install 'ftwt[int8]'"}


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals")
def test_a_signal_after_rivals_have_gone_does_not_end_the_process() -> None:
    for package in ("onnx", "openvino", "nncf"):
        pytest.importorskip(package)
    code = """
        import gc, os, signal
        import numpy as np, torch
        import toys
        from ftwt.contest.rivals import invite

        seen = []
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        images = torch.rand(1, 2, 3, 16, 16)
        network = toys.Toy().eval()
        with torch.no_grad():
            answers = torch.stack([network(batch) for batch in images]).numpy()
        for name in ("openvino", "openvino-int8", "openvino"):
            invited = invite([name], network, images.numpy(), answers, threads=1)
            assert list(invited[0]) == [name], invited
        del invited
        gc.collect()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen
        """
    done = toys.run_python("-c", textwrap.dedent(code))
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.slow
def test_a_compiled_network_runs_as_pytorch_does() -> None:
    found = bench(tiny.network(), rivals=["torch.compile"])
    assert not found.left_out and found["torch.compile"].latency_ms > 0


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_what_is_not_installed_is_told(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "onnx":
        pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, missing, None)
    found = bench(tiny.network(), rivals=["onnxruntime"])
    assert found.left_out == {
        "onnxruntime": f"{missing} is not installed: pip install 'ftwt[bench]'"
    }
    assert found.fastest_rival is found.dense_ratio is None


# --- Masks --------------------------------------------------------------------------------------


def test_forced_masks_keep_what_they_should_and_are_counted() -> None:
    model = tiny.network()
    found = bench(model, keep=0.5, singles=30, batch=2)
    assert found.forced_keep == found.keep == 0.5 and found.batches == 16
    assert 0.5 < found.reduction < 0.75  # type: ignore[operator]
    keeps = [image.keep for image in found.images]
    assert len(keeps) == 30 and min(keeps) < 0.25 and max(keeps) > 0.85
    macs = [image.executed_macs for image in found.images]
    assert np.corrcoef(keeps, macs)[0, 1] > 0.9
    again = bench(model, keep=0.5, singles=30, batch=2)
    assert [image.executed_macs for image in again.images] == macs
    assert again.reduction == found.reduction
    other = bench(model, keep=0.5, singles=30, seed=1)
    assert [image.executed_macs for image in other.images] != macs


def test_a_steered_engine_applies_masks_and_pays_its_predictors() -> None:
    dynamic = ftwt.convert(tiny.network(), torch.zeros(1, 3, 32, 32))
    program = ftwt.compile(dynamic, engine="reference").program
    engine = Steered(program, engine="reference")
    masks = draw(program, np.array([0.0, 0.3, 1.0]), np.random.default_rng(0))
    assert [mask.sum(1).tolist() for mask in masks.values()] == [[1, 2, 8], [1, 5, 16], [1, 5, 16]]
    images = np.random.default_rng(0).standard_normal((1, 3, 3, 32, 32), dtype=np.float32)
    (stats,) = took(engine, images, [masks])
    assert [found.sum(1).tolist() for found in stats.masks.values()] == [
        mask.sum(1).tolist() for mask in masks.values()
    ]
    counted = dynamic.macs({unit: torch.from_numpy(mask) for unit, mask in stats.masks.items()})
    assert stats.executed_macs.tolist() == counted.executed.tolist()
    (stats,) = took(engine, images, [opened(program, 3)])
    assert stats.keep.tolist() == [1, 1, 1]


def test_trained_gates_decide_for_themselves_on_the_images_given() -> None:
    dynamic = ftwt.convert(tiny.network(), torch.zeros(1, 3, 32, 32))
    for predictor in dynamic.predictors.values():
        nn.init.normal_(predictor.linear.weight)
        nn.init.normal_(predictor.linear.bias)
    images = torch.randn(20, 3, 32, 32)
    found = bench(dynamic, images=images, singles=50)
    _, stats = ftwt.compile(dynamic, engine="reference").run(images)
    assert found.forced_keep is None and found.batches == 16
    assert found.reduction == pytest.approx(stats.reduction[:16].mean())
    assert [image.executed_macs for image in found.images] == stats.executed_macs.tolist()
    assert GATED not in [timing.name for timing in bench(tiny.network()).timings]
    twin = dynamic.freeze([(images, torch.zeros(20))])
    assert bench(twin, images=images).reduction > 0  # type: ignore[operator]


# --- What follows -------------------------------------------------------------------------------


def timing(name: str, ms: float) -> Timing:
    return Timing(name, "as it is", ms, ms - 0.1, ms + 0.1, (ms, ms))


FOUND = Benchmark(
    network="net",
    input_shape=(3, 32, 32),
    batch=1,
    threads=2,
    isa="avx512",
    rounds=2,
    batches=16,
    forced_keep=0.5,
    keep=0.5,
    dense_macs=1000,
    reduction=0.6,
    timings=(timing("slow", 9), timing("fast", 4), timing(DENSE, 5), timing(GATED, 2)),
    left_out={"absent": "not installed: pip install 'ftwt[bench]'"},
    disturbance=0.01,
    images=tuple(ImageTiming(k / 10, 100 * k, 2 * k + 1.0) for k in range(1, 11)),
    provenance={"seed": 0},
)


def test_what_follows_from_the_latencies(tmp_path: Any) -> None:
    assert FOUND.fastest_rival is FOUND["fast"]
    assert FOUND.dense_ratio == pytest.approx(0.8)
    assert FOUND.theoretical == pytest.approx(2.5)
    assert FOUND.achieved == pytest.approx(2) and FOUND.efficiency == pytest.approx(0.8)
    assert FOUND.achieved_over_dense == pytest.approx(2.5)
    assert FOUND.efficiency_over_dense == pytest.approx(1)
    assert FOUND.correlation == pytest.approx(1)
    FOUND.save(tmp_path / "found.json")
    values = read_json(tmp_path / "found.json")
    assert values["efficiency"] == pytest.approx(0.8) and values["fastest_rival"] == "fast"
    assert values["images"][0] == {"keep": 0.1, "executed_macs": 100, "latency_ms": 3.0}
    assert values["provenance"] == {"seed": 0}


def test_without_gates_or_rivals_nothing_follows(tmp_path: Any) -> None:
    dense = replace(FOUND, timings=FOUND.timings[2:3], keep=None, reduction=None, images=())
    for value in (
        dense.fastest_rival,
        dense.dense_ratio,
        dense.theoretical,
        dense.achieved,
        dense.efficiency,
        dense.achieved_over_dense,
        dense.efficiency_over_dense,
        dense.correlation,
    ):
        assert value is None
    dense.save(tmp_path / "dense.json")
    alone = replace(FOUND, timings=FOUND.timings[2:])
    assert alone.efficiency is None and alone.efficiency_over_dense == pytest.approx(1)
    same = tuple(ImageTiming(0.5, 100, float(n)) for n in range(5))
    assert replace(FOUND, images=same).correlation is None


def printed(found: Benchmark) -> str:
    console = PlainConsole(width=140, record=True, file=io.StringIO())
    console.print(found)
    return console.export_text()


def test_the_table_names_everyone() -> None:
    text = printed(FOUND)
    for part in (
        "net, 3x32x32, 2 threads, batch 1",
        "slow",
        "4.000 ms",
        "3.900 - 4.100 ms",
        "absent",
        "left out",
        "not installed: pip install 'ftwt[bench]'",
        "theoretical speed-up 2.50",
        "achieved over fast, the fastest dense rival: 2.00, efficiency 0.80",
        "achieved over our own dense engine: 2.50, efficiency 1.00",
        "correlate by 1.000",
        "forced, drawn by lot: 0.5",
    ):
        assert part in text, part
    assert "other processes" not in text
    assert "other processes kept 1.20 cores busy" in printed(replace(FOUND, disturbance=1.2))
    assert "speed varied" not in text
    uneven = (replace(FOUND[GATED], rounds_ms=(2.0, 3.0, 4.0)), FOUND["fast"])
    assert (
        f"speed varied: the median round of {GATED} took 1.50 times as long as its fastest"
        in " ".join(printed(replace(FOUND, timings=uneven, reduction=None)).split())
    )
    dense = printed(replace(FOUND, keep=None, reduction=None))
    assert "theoretical" not in dense and "0.80" in dense


# --- Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, r"threads=0 is outside \[1, inf\)"),
        ({"batch": 0}, r"batch=0 is outside"),
        ({"rounds": 0}, r"rounds=0 is outside"),
        ({"example": None}, "example=None, images=None: a plain network needs one of them"),
        ({"images": torch.zeros(3, 32, 32)}, r"images are float32 of shape \(3, 32, 32\); give"),
        ({"images": np.zeros((2, 3, 32, 32))}, "images are float64 of shape"),
        ({"images": torch.zeros(2, 3, 32, 32), "batch": 3}, "N at least the batch of 3"),
        ({"keep": 0.0}, "keep=0.0: give the share"),
        ({"keep": 1.5}, "keep=1.5: give the share"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench(tiny.network(), **options)


def test_images_of_another_size_are_refused() -> None:
    dynamic = ftwt.convert(tiny.network(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="for a network converted for"):
        bench(dynamic, images=torch.zeros(1, 3, 16, 16))


def test_an_engine_that_errs_is_no_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steered, "__call__", lambda self, x: self.run(x)[0] + 1)
    with pytest.raises(RuntimeError, match="ftwt dense: answers differ from PyTorch's by"):
        bench(tiny.network())


def test_settings_are_as_before() -> None:
    model = tiny.network().train()
    threads = torch.get_num_threads()
    bench(model, threads=threads + 1)
    assert model.training and torch.get_num_threads() == threads


# --- A machine that does other work --------------------------------------------------------------


def test_turns_come_before_others_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def schedule(thread: int, policy: int, how: Any) -> None:
        assert thread > 0
        asked.append((policy, how.sched_priority))

    monkeypatch.setattr(os, "sched_setscheduler", schedule)
    bench(tiny.network())
    assert not asked
    bench(tiny.network(), realtime=True)
    assert set(asked) == {(os.SCHED_FIFO, turns.PRIORITY), (os.SCHED_OTHER, 0)}
    assert asked[-1] == (os.SCHED_OTHER, 0)


def test_a_system_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(RuntimeError, match="realtime: the system refuses .not permitted.; it"):
        bench(tiny.network(), realtime=True)


def test_batches_run_for_throughput_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    tried: list[Contestant] = []
    monkeypatch.setattr(rivals, "fastest", lambda variants: tried.extend(variants) or variants[-1])
    network = tiny.network().eval()
    batches = np.random.default_rng(0).standard_normal((2, 3, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        answers = np.stack([network(torch.from_numpy(b)).numpy() for b in batches])
    made, left_out = rivals.invite(["openvino"], network, batches, answers, threads=2)
    assert not left_out and len(tried) == 2
    assert "for latency" in tried[0].settings and "for throughput" in made["openvino"].settings
