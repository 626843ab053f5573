"""The picture that decides: accuracy against milliseconds, all contestants in turns in one run.

    python benchmarks/accuracy_latency.py cifar10-resnet20 --trained cifar10-resnet20-dynamic-40 ...
    python benchmarks/accuracy_latency.py RUN --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
    python benchmarks/accuracy_latency.py --imagenet IMAGES --weights resnet50_v1.safetensors

The dense network on our engine, OpenVINO and ONNX Runtime, in float and in eight bits; beside it
networks that were trained with gates or fixed masks (`--trained`), or are made on the spot without
labels at each of `--reductions`: a repaired fixed mask, repaired gates, Torch-Pruning's choice with
the same repair, and, where there are images enough, a second look. What has fixed masks runs on the
rivals as well, its filters taken out for good. All of eight bits is calibrated on the same images.
Each contestant is asked for every test image, one at a time, and is timed on some of them. RUN
and IMAGES are as in `subjects.py`. Writes `results/contest/NAME.json`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import repair
import subjects
import torch
from rich.console import Console
from structured import without_filters
from torch import Tensor, fx, nn

import ftwt
from ftwt.contest import turns
from ftwt.contest.rivals import BUILDERS, export_onnx, in_batches
from ftwt.contest.turns import Contestant, disturbance, quartiles, time_in_turns
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.fitting.masks import inner_units
from ftwt.graph.inputs import images_of
from ftwt.networks.sources import resolve
from ftwt.pruning.dynamic import DynamicModel
from ftwt.pruning.second_look import SecondLook, opened
from ftwt.records.contest import OURS, Contest, Entry

OUTPUT = Path("results/contest")
RIVALS = {
    "openvino": ("openvino", "f32"),
    "openvino-bf16": ("openvino", "bf16"),
    "openvino-int8": ("openvino", "int8"),
    "onnxruntime": ("onnxruntime", "f32"),
    "onnxruntime-int8": ("onnxruntime", "int8"),
}
MADE = {"greedy": "fixed mask", "dynamic": "gates", "magnitude": "Torch-Pruning"}
AT_ONCE = 32  # images that ranges are taken from
CLOSE = 1e-3  # of the largest output: rounding in another order
THRESHOLD = 1000  # test images that a second look's threshold is set on; nobody is asked for these
FIRST, AVERAGE = 0.5, 0.3  # what a second look's first pass saves, and both on average


@dataclass(frozen=True)
class Way:
    """One way of running the network, not yet timed."""

    pruning: str
    runtime: str
    precision: str
    contestant: Contestant
    reduction: Callable[[], float]


def main() -> None:
    """Make, ask, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trained", nargs="+", default=[], help="pruned networks of this one")
    parser.add_argument("--reductions", type=float, nargs="*", default=[0.3])
    parser.add_argument("--kinds", nargs="+", default=list(MADE), choices=list(MADE))
    parser.add_argument("--second-look", action="store_true")
    parser.add_argument("--calibrate", type=int, default=256, help="of these, for eight bits")
    parser.add_argument("--test", type=int, help="images; all if not given")
    parser.add_argument("--timed", type=int, default=64, help="of the test images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--realtime", action="store_true", help="before all other processes")
    given = subjects.parse(parser)
    began = Start()
    subject = subjects.load(given)
    found = contest(subject, given)
    made = provenance(config=subjects.settings(given), seed=0, since=began)
    result = found(made)
    write_json(OUTPUT / f"{subject.name}.json", result.to_json())
    Console(width=150).print(result)


def contest(subject: subjects.Subject, given: argparse.Namespace) -> Callable[[Any], Contest]:
    """All contestants, asked and timed; what is left to add is the provenance."""
    begin = THRESHOLD if given.second_look else 0
    images = torch.cat([part for part, _, _ in subject.test]).float()
    labels = torch.cat([right for _, right, _ in subject.test]).numpy()[begin:][: given.test]
    batches = np.ascontiguousarray(images.numpy()[begin:][: given.test, None])
    held = torch.cat([images_of(batch) for batch in subject.fitted])[: given.calibrate].float()
    ways: list[Way] = []
    left_out: dict[str, str] = {}
    for pruning, network in networks(subject, images[:begin], given, left_out):
        print(pruning, flush=True)
        ways += ours(pruning, network, batches, held)
        if pruning == "dense":
            ways += rivals(pruning, network, 0.0, batches, held, left_out)
        elif isinstance(network, DynamicModel) and not network.predictors:
            try:
                plain = slim(network, subject.dense, held[:1])
            except ValueError as wrong:
                left_out[f"{pruning}, rivals"] = str(wrong)
                continue
            ways += rivals(pruning, plain, ways[-2].reduction(), batches, held, left_out)
    top1 = {}
    for way in ways:
        guesses = [guess(way.contestant, number) for number in range(len(batches))]
        top1[id(way)] = float(np.mean(np.array(guesses) == labels))
        name = f"{way.pruning}, {way.runtime} {way.precision}"
        print(f"{name}: {top1[id(way)]:.2%}", flush=True)
    named = {str(number): way.contestant for number, way in enumerate(ways)}
    with disturbance() as disturbed, turns.realtime(given.realtime):
        seconds = time_in_turns(named, min(given.timed, len(batches)), rounds=given.rounds)
    entries = []
    for way, taken in zip(ways, seconds.values(), strict=True):
        low, middle, high = 1e3 * quartiles(taken).mean(axis=1)
        entries.append(
            Entry(way.pruning, way.runtime, way.precision, top1[id(way)], way.reduction(),
                  float(middle), float(low), float(high), way.contestant.settings)
        )  # fmt: skip
    isa = ftwt.compile(subject.dense, held[:1], check=False).isa
    return lambda made: Contest(
        subject.name, tuple(images.shape[1:]), len(batches), len(held),
        min(given.timed, len(batches)), given.rounds, 1, isa, tuple(entries), left_out,
        disturbed[0] if disturbed else None, made,
    )  # fmt: skip


def networks(
    subject: subjects.Subject, unseen: Tensor, given: argparse.Namespace, left_out: dict[str, str]
) -> Iterator[tuple[str, Any]]:
    """The network, and what became of it: pruning -> network.

    A second look sets its threshold on `unseen` images: those that a network was trained on it is
    surer of.
    """
    yield "dense", subject.dense
    for source in given.trained:
        network = resolve(source).load().cpu().eval()
        kind = "gates" if network.predictors else "fixed mask"
        yield f"{kind}, trained", network
    for reduction in given.reductions:
        for kind in given.kinds:
            name = f"{MADE[kind]}, {reduction:.0%}"
            try:
                network = made(kind, subject, reduction)
            except ValueError as wrong:
                left_out[name] = str(wrong)
                continue
            yield name, network
    if given.second_look:
        first = made("greedy", subject, FIRST)
        second = opened(subject.inner).eval()
        look = ftwt.second_look([first, second], unseen.split(100), reduction=AVERAGE)
        yield f"second look, {AVERAGE:.0%}", look.network


def made(kind: str, subject: subjects.Subject, cut: float) -> DynamicModel:
    """A network pruned and repaired without labels."""
    network = repair.candidate(kind, subject, cut)
    ftwt.repair(network, subject.fitted, dense=subject.dense, images=subject.images)
    if kind == "dynamic":
        ftwt.calibrate(network, subject.fitted, reduction=cut, images=subject.images)
    return network.eval()


def ours(pruning: str, network: Any, batches: np.ndarray, held: Tensor) -> Iterator[Way]:
    """Our engine, in float and in eight bits."""
    gated = isinstance(network, DynamicModel | SecondLook)
    options: dict[str, Any] = {"check": False} | ({} if gated else {"example": held[:1]})
    for precision in ("f32", "int8"):
        given = options | {"precision": precision}
        if precision == "int8":
            given["calibrate"] = held.split(AT_ONCE)
        engine = ftwt.compile(network, **given)
        image = np.zeros_like(batches[0])
        yield Way(
            pruning,
            OURS,
            precision,
            Contestant(_into(image, batches), partial(engine, image), f"{precision}, 1 thread"),
            partial(saved, engine, batches[:, 0]),
        )


def rivals(
    pruning: str,
    network: nn.Module,
    share: float,
    batches: np.ndarray,
    held: Tensor,
    left_out: dict[str, str],
) -> Iterator[Way]:
    """A plain network on the rivals, whose answers nobody refuses: the picture shows them."""
    seen = in_batches(held.numpy(), 1)
    export = functools.cache(lambda: export_onnx(network, batches[0]))
    for name, (runtime, precision) in RIVALS.items():
        try:
            contestant = BUILDERS[name](network, batches, 1, export, seen)
        except Exception as failure:  # other people's compilers: anything may come out of them
            left_out[f"{pruning}, {runtime} {precision}"] = f"{type(failure).__name__}: {failure}"
            continue
        yield Way(pruning, runtime, precision, contestant, lambda: share)


def slim(network: DynamicModel, dense: nn.Module, example: Tensor) -> nn.Module:
    """A network of fixed masks as an ordinary one: as many filters as can be are taken out.

    Those of a layer whose output is added to others stay, and give zeros.

    Raises:
        ValueError: What is left computes something else.
    """
    restored = network.restore()
    kept = {unit: gate.mask.bool().flatten() for unit, gate in network.gates.items()}
    alone = {*inner_units(network)}
    error = math.inf
    for inner in (None, alone):
        plain = copy.deepcopy(dense).eval()
        plain.load_state_dict(restored.state_dict())
        if inner is not None:
            for unit in kept.keys() - inner:
                silence(restored, plain, unit, ~kept[unit])
        going = {unit: mask for unit, mask in kept.items() if inner is None or unit in inner}
        try:
            small = without_filters(plain, example, going)
            with torch.inference_mode():
                wanted, found = network(example), small(example)
        except (AttributeError, IndexError, KeyError, RuntimeError, ValueError):
            continue  # not all filters can go: those of inner layers can
        error = float((wanted - found).abs().max() / wanted.abs().max())
        if error <= CLOSE:
            return small
    raise ValueError(f"without its filters it differs by {error:.2g} of the largest output")


@torch.no_grad()
def silence(graph: fx.GraphModule, plain: nn.Module, layer: str, out: Tensor) -> None:
    """Let some filters of a layer give zeros, those of a batch norm behind it too."""
    node = next(node for node in graph.graph.nodes if node.target == layer)
    behind = [user.target for user in node.users if user.op == "call_module"]
    for name in (layer, *behind):
        module = plain.get_submodule(str(name))
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.weight[out] = 0
            if module.bias is not None:
                module.bias[out] = 0


def saved(engine: Any, images: np.ndarray) -> float:
    """Share of the dense MACs that test images leave undone."""
    parts = [
        engine.run(part)[1].reduction for part in np.array_split(images, len(images) // 50 + 1)
    ]
    return float(np.concatenate(parts).mean())


def guess(contestant: Contestant, number: int) -> int:
    """Its first guess for a test image."""
    contestant.take(number)
    return int(contestant.infer().argmax())


def _into(image: np.ndarray, batches: np.ndarray) -> Callable[[int], None]:
    return lambda number: np.copyto(image, batches[number])


if __name__ == "__main__":
    main()
