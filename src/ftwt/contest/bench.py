"""One network, its rivals and our engine, all timed in one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files.provenance import Start, provenance
from ..graph.inputs import images_of
from ..graph.trace import evaluating
from ..lowering.compile import Precision, compile
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook
from ..records.benchmark import Benchmark, ImageTiming, Timing
from ..records.contestants import DENSE, GATED, OUR
from ..runtime import Engine, Stats
from ..runtime.engine import Kind
from . import turns
from .rivals import FLOAT32, TOLERANCE, invite, largest_error
from .steered import DECIDE, Masks, Steered, contestant, draw, opened, steered, took
from .turns import Contestant, disturbance, quartiles, time_in_turns, time_shuffled

RIVALS = tuple(FLOAT32)
BATCHES = 16  # that all contestants run
LOOKED_AT = 128  # of them, where the time of some depends on the image
SINGLES = 200  # images that the gated engine also runs one by one
SPAN = (0.1, 1.0)  # of the keep ratios that these are given


def bench(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    keep: float | None = None,
    images: Tensor | np.ndarray | None = None,
    rivals: Iterable[str] = RIVALS,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 15,
    singles: int = SINGLES,
    seed: int = 0,
    engine: Kind = "native",
    precision: Precision = "f32",
    calibrate: Iterable[Any] | None = None,
    beside: Mapping[str, DynamicModel | SecondLook] | None = None,
    realtime: bool = False,
    name: str | None = None,
    config: Any = None,
    **options: Any,
) -> Benchmark:
    """Time a network's dense rivals and our engine, dense and gated, in one run.

    All run the same 16 batches (128 where a second look takes part, whose time depends on the
    image) in turns, `rounds` times each, with as many threads, and each
    with the settings that suit it best. A rival takes part if its answers are PyTorch's (near them,
    if it runs in fewer bits); one that is not installed, fails or answers otherwise is named with
    the reason.

    Args:
        model: A dynamic network or a second look; or any that `torch.fx` can trace: it has gates
            only with `keep`.
        example: Input (B, C, H, W) of a plain network, unless there are `images`.
        keep: Let each gate keep this share of its filters, in (0, 1], drawn by lot for each image,
            whatever its predictor says. See `ftwt.compile`.
        images: (N, C, H, W) float32 to run, N >= batch. If not given, random ones: these will do
            for dense networks and with `keep`; trained gates should see what they were made for.
        rivals: Some of `torch`, `torch.compile`, `onnxruntime`, `openvino`, in float32; and of
            `openvino-bf16`, `openvino-int8`, `onnxruntime-int8`.
        threads: Of each contestant.
        batch: Images at a time.
        rounds: How often each contestant runs each batch.
        singles: How many images the gated engine also runs one by one, to set latency against
            MACs: with `keep`, each with a keep ratio of its own, drawn from [0.1, 1]; otherwise at
            most as many as there are images.
        seed: Of random images and masks.
        engine: Kind of our engine; `reference` is for tests.
        precision: Of our engines: `int8` for eight-bit maps and weights.
        calibrate: Of `int8`, ours and rivals': batches that ranges of maps are taken from; the
            images that are run if not given.
        beside: More pruned networks of this one, by name, that our engine runs in the same turns;
            they are timed as `ftwt NAME`.
        realtime: Put the contestants before all other processes while they are timed (Linux, with
            the right to): for a machine that does other work, too, which then stands still.
        name: What to call the network; if not given, its class.
        config: What the provenance shall tell, a dataclass or JSON values.
        options: Of `ftwt.compile`, for the gated engine.

    Returns:
        Latencies, speed-ups, efficiency.

    Raises:
        ValueError: If an option is out of its range, or the network cannot be lowered.
        RuntimeError: If the native engine was not built, if our own engine does not give PyTorch's
            answers, or if the system refuses `realtime`.
    """
    began = Start()
    for option, value in (("threads", threads), ("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{option}={value} is outside [1, inf)")
    random = np.random.default_rng(seed)
    pool = _pool(model, example, images, batch, random)
    looks = [one for one in (model, *(beside or {}).values()) if isinstance(one, SecondLook)]
    count = min(LOOKED_AT if looks else BATCHES, len(pool) // batch)
    batches = pool[: count * batch].reshape(count, batch, *pool.shape[1:])
    runs: dict[str, Any] = {"engine": engine, "threads": threads}
    built = dict(runs)
    calibration = [torch.from_numpy(pool)] if calibrate is None else list(calibrate)
    if precision == "int8":
        built |= {"precision": precision, "calibrate": calibration}
    pruned = isinstance(model, DynamicModel | SecondLook)
    last = model.last if isinstance(model, SecondLook) else model
    network = last.restore() if isinstance(last, DynamicModel) else last
    stats: list[Stats] = []
    alone: tuple[ImageTiming, ...] = ()
    work: dict[str, float] = {}  # executed MACs of those that prune

    with _threads(threads), evaluating(network), turns.realtime(realtime):
        image = torch.from_numpy(pool[:1])
        answers = _answers(network, batches)
        dense = Steered(compile(network, image, **built).program, **runs)
        ours = {DENSE: contestant(dense, batches, [DECIDE] * count)}
        gated: Engine | None = None
        if keep is not None or (pruned and last.gates):
            compiled = compile(model, image, keep=keep, seed=seed, **built, **options)
            gated = steered(compiled, **runs)
            masks = [_masks(gated, keep, batch, random) for _ in batches]
            stats = took(gated, batches, masks)
            ours[GATED] = contestant(gated, batches, masks)
        for other, more in (beside or {}).items():
            engine_of = steered(compile(more, **built), **runs)
            ours[OUR + other] = contestant(engine_of, batches, [DECIDE] * count)
            work[OUR + other] = _work(took(engine_of, batches, [DECIDE] * count))
        tolerance = TOLERANCE if precision == "f32" else math.inf
        _check(DENSE, dense, batches, answers, tolerance)
        if isinstance(gated, Steered):
            _check(GATED, gated, batches, answers, tolerance)
            work[GATED] = _work(stats)
        others, left_out = invite(
            rivals, network, batches, answers, threads=threads, calibrate=_as_one(calibration)
        )
        with disturbance() as disturbed:
            seconds = time_in_turns(others | ours, count, rounds=rounds)
            if gated is not None and singles > 0:
                alone = _one_by_one(gated, pool, keep, rounds=rounds, count=singles, random=random)
    return Benchmark(
        network=name or type(model).__name__,
        input_shape=tuple(pool.shape[1:]),
        batch=batch,
        threads=threads,
        isa=dense.isa,
        rounds=rounds,
        batches=count,
        forced_keep=keep,
        keep=float(np.mean([s.keep for s in stats])) if stats else None,
        dense_macs=dense.program.dense_macs,
        reduction=float(np.mean([s.reduction for s in stats])) if stats else None,
        timings=tuple(
            _timing(n, c, seconds[n], batch, work.get(n)) for n, c in (others | ours).items()
        ),
        left_out=left_out,
        disturbance=disturbed[0] if disturbed else None,
        images=alone,
        provenance=provenance(config=config, seed=seed, since=began),
    )


def _pool(
    model: nn.Module,
    example: Tensor | None,
    images: Tensor | np.ndarray | None,
    batch: int,
    random: np.random.Generator,
) -> np.ndarray:
    """The images to run, (N, C, H, W) float32."""
    if images is None:
        if isinstance(model, DynamicModel | SecondLook):
            shape = model.input_shape
        elif example is not None:
            shape = tuple(example.shape[1:])
        else:
            raise ValueError("example=None, images=None: a plain network needs one of them")
        return random.standard_normal((BATCHES * batch, *shape), dtype=np.float32)
    pool = np.ascontiguousarray(images.cpu() if isinstance(images, Tensor) else images)
    if pool.ndim != 4 or pool.dtype != np.float32 or len(pool) < batch:
        raise ValueError(
            f"images are {pool.dtype} of shape {pool.shape}; give float32 of shape (N, C, H, W), "
            f"N at least the batch of {batch}"
        )
    if isinstance(model, DynamicModel):
        model.check_input(torch.from_numpy(pool))
    return pool


def _as_one(batches: Iterable[Any]) -> np.ndarray:
    """The images of batches, with labels or without, as one array."""
    found = [images_of(batch).float().cpu().numpy() for batch in batches]
    if not found:
        raise ValueError("calibrate holds no images; give some hundred, without labels")
    return np.concatenate(found)


@torch.inference_mode()
def _answers(network: nn.Module, batches: np.ndarray) -> np.ndarray:
    return np.stack([network(torch.from_numpy(batch)).numpy() for batch in batches])


def _check(
    name: str, engine: Steered, batches: np.ndarray, answers: np.ndarray, tolerance: float
) -> None:
    """Hold our own engine, with open gates, to PyTorch's answers."""
    masks = [opened(engine.program, batches.shape[1])] * len(batches)
    (stats,) = took(engine, batches[:1], masks[:1])
    if (stats.executed_macs < engine.program.dense_macs).any():
        return  # economies took filters out for good
    error = largest_error(contestant(engine, batches, masks), answers)
    if not error <= tolerance:  # NaN is an error too
        raise RuntimeError(
            f"{name}: answers differ from PyTorch's by {error:.2g} of the largest, more than "
            f"{TOLERANCE}; this is a fault of ftwt, please report the network"
        )


def _one_by_one(
    engine: Engine,
    pool: np.ndarray,
    keep: float | None,
    *,
    rounds: int,
    count: int,
    random: np.random.Generator,
) -> tuple[ImageTiming, ...]:
    """Run single images in a new order each round: with forced gates, of varied keep ratio."""
    if keep is None:
        keeps: list[float | None] = [None] * min(count, len(pool))
    else:
        keeps = list(random.uniform(*SPAN, size=count))
    images = pool[np.arange(len(keeps)) % len(pool)][:, None]
    masks = [_masks(engine, value, 1, random) for value in keeps]
    stats = took(engine, images, masks)
    seconds = time_shuffled(
        contestant(engine, images, masks), len(images), rounds=rounds, random=random
    )
    medians = 1e3 * quartiles(seconds)[1]
    return tuple(
        ImageTiming(float(s.keep[0]), int(s.executed_macs[0]), float(ms))
        for s, ms in zip(stats, medians, strict=True)
    )


def _masks(engine: Engine, keep: float | None, samples: int, random: np.random.Generator) -> Masks:
    return DECIDE if keep is None else draw(engine.program, np.full(samples, keep), random)


def _work(stats: list[Stats]) -> float:
    return float(np.mean([one.executed_macs for one in stats]))


def _timing(
    name: str, contestant: Contestant, seconds: np.ndarray, batch: int, macs: float | None
) -> Timing:
    ms = 1e3 * seconds / batch
    low, middle, high = quartiles(ms)
    return Timing(
        name=name,
        settings=contestant.settings,
        latency_ms=float(middle.mean()),
        low_ms=float(low.mean()),
        high_ms=float(high.mean()),
        rounds_ms=tuple(ms.mean(axis=1).tolist()),
        executed_macs=macs,
        median_ms=float(np.median(middle)),
        p99_ms=float(np.percentile(middle, 99)),
        worst_ms=float(middle.max()),
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
