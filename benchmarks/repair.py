"""What repair is worth: fixed masks, gates and Torch-Pruning at equal cuts, repaired or not.

    python benchmarks/repair.py cifar10-resnet20 --seeds 0 1 2
    python benchmarks/repair.py RUN --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
    python benchmarks/repair.py --imagenet IMAGES --weights mobilenet_v1_folded.safetensors
    python benchmarks/repair.py RUN --cost --threads 2

No labels are used and nothing is trained. A fixed mask keeps the filters of highest mean energy
(`static`) or those that least squares cannot make good for (`greedy`); `mixed` has gates on the
units where they leave less of an error. Each candidate is asked for
the same executed reduction, fitted to the same images (a seed draws them) and evaluated on all test
images: as it is, with batch norm re-estimated, repaired. `auto` is that of ours which agrees most
with the dense network on other images, as `ftwt.prune` chooses. What Torch-Pruning leaves is
repaired as fixed masks (`masked.py`): the same repair, the same images. Its Taylor ranking needs
labels: it is given the dense network's guesses. IMAGES is as in `eight_bits.py`: every second image
is fitted to, the others test.
Writes `results/repair/NAME-seedS.json`, after each reduction. With `--cost`, a fixed mask is chosen
and repaired alone: time and peak memory go to `results/repair-cost/NAME.json`.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from eight_bits import IMAGENET, imagenet
from torch import Tensor, nn

import ftwt
from ftwt.config import DataConfig
from ftwt.data import Batches
from ftwt.files.json import write_json
from ftwt.files.pictures import read_picture
from ftwt.files.provenance import Start, provenance
from ftwt.fitting.columns import rank_filters
from ftwt.fitting.masks import Ranking, fixed_masks, mean_saliency
from ftwt.fitting.mixed import mix
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.pruning.dynamic import DynamicModel, images_of
from ftwt.runs.candidates import gated, nearness, prunable, rank

OUTPUT, COSTS = Path("results/repair"), Path("results/repair-cost")
OURS = ("static", "greedy", "dynamic", "mixed")
FIRST = ("first-order", "first-order gates")
KINDS = (*OURS, "magnitude", "taylor")
WAYS = ("as it is", "batch norm re-estimated", "repaired")
RIVALS = {"magnitude": "torch-pruning, magnitude", "taylor": "torch-pruning, Taylor"}
GRADIENT_IMAGES = 1000  # that Taylor's importance sees
AT_ONCE = 50


@dataclass(frozen=True)
class Subject:
    """A dense network and images.

    Args:
        name: Of the network.
        dense: The network.
        fitted: Batches of images to fit to.
        images: How many these are.
        test: Batches of images, labels and the dense network's outputs.
        top1: The dense network's accuracy.
    """

    name: str
    dense: nn.Module
    fitted: Any
    images: int
    test: list[tuple[Tensor, Tensor, Tensor]]
    top1: float

    @cached_property
    def inner(self) -> DynamicModel:
        """Ready to be pruned."""
        return prunable(self.dense, images_of(next(iter(self.fitted))))

    @cached_property
    def ranking(self) -> Ranking:
        """Of its filters, by what least squares cannot make good for."""
        return rank_filters(self.inner, self.fitted)

    @cached_property
    def first_order(self) -> dict[str, Tensor]:
        """Of its filters, by what the network's own guesses depend on, on average."""
        found = ftwt.first_order(self.inner, self.fitted, images=self.images)
        return {name: each.mean(0) for name, each in found.items()}

    @cached_property
    def energy(self) -> dict[str, Tensor]:
        """Of its filters, on average."""
        return mean_saliency(self.inner, self.fitted, images=self.images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", help="the result's name before -seedS; by default, that name")
    parser.add_argument("--reductions", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, *FIRST), default=KINDS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--cost", action="store_true", help="time and memory of one repair alone")
    parser.add_argument("--threads", type=int, default=1)
    given = parse(parser)
    torch.set_num_threads(given.threads)
    if given.cost:
        cost(
            of_imagenet(given, few=True) if given.imagenet else of_cifar(given, 0, few=True), given
        )
        return
    for seed in given.seeds:
        subject = of_imagenet(given) if given.imagenet else of_cifar(given, seed)
        print(f"{subject.name}: dense {subject.top1:.2%}", flush=True)
        began, rows = Start(), []
        for reduction in given.reductions:
            for row in compare(subject, reduction, given.kinds, given.ways):
                rows.append({"asked": reduction, **row})
                print(rows[-1], flush=True)
                write_json(
                    OUTPUT / f"{given.file or subject.name}-seed{seed}.json",
                    {
                        "network": subject.name,
                        "images": subject.images,
                        "test_images": sum(len(labels) for _, labels, _ in subject.test),
                        "dense_top1": subject.top1,
                        "rows": rows,
                        "provenance": provenance(
                            config=settings(given),
                            seed=seed,
                            since=began,
                        ),
                    },
                )


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read a benchmark's flags, and those that name the dense network and its images."""
    parser.add_argument("network", nargs="?", help="a name with weights, or a network's folder")
    parser.add_argument("--name", help="what to call it in the result; by default, the network")
    parser.add_argument("--images", type=int, default=2048, help="to fit to, at most")
    parser.add_argument("--data-root")
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--std", type=float, nargs=3)
    parser.add_argument("--imagenet", type=Path, help="folder of images")
    parser.add_argument("--weights", type=Path, help="of an ImageNet network")
    given = parser.parse_args()
    if (given.network is None) == (given.imagenet is None or given.weights is None):
        parser.error("give a network, or --imagenet with --weights")
    torch.set_num_threads(1)
    return given


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """The flags for a result, without places on this machine."""
    weights = given.weights and given.weights.name
    return vars(given) | {
        "data_root": None,
        "imagenet": bool(given.imagenet),
        "weights": weights,
    }


def of_cifar(given: argparse.Namespace, seed: int, *, few: bool = False) -> Subject:
    """A network of CIFAR-10's images; few to test on if only its cost is measured."""
    data = DataConfig(
        data_root=given.data_root,
        mean=None if given.mean is None else tuple(given.mean),
        std=None if given.std is None else tuple(given.std),
    )
    splits = load_splits(data)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(splits.plain.images), generator=generator)
    fitted = Batches(splits.plain.images.select(order[: given.images]), batch_size=256)
    name = given.name or given.network.replace(":", "-")
    dense = resolve(given.network).load().eval()
    test = islice(splits.test, 1) if few else splits.test
    return subject_of(name, dense, fitted, given.images, test)


def of_imagenet(given: argparse.Namespace, *, few: bool = False) -> Subject:
    """An ImageNet network; one without weights is random, of which only the cost means anything."""
    if given.weights is None:
        dense, how = ftwt.models.create(given.network).eval(), IMAGENET
    else:
        dense, how = imagenet(given.weights)
    paths = sorted(given.imagenet.glob("[0-9][0-9][0-9]_*.jpg"))
    images = torch.stack([torch.from_numpy(read_picture(path, how)) for path in paths])
    labels = torch.tensor([int(path.name[:3]) for path in paths])
    places = torch.arange(len(paths))
    if few:
        fitted, test = places[: given.images], places[:1]
    else:
        fitted, test = places[::2][: given.images], places[1::2]
    name = given.name or given.network or f"imagenet-{given.weights.stem}"
    return subject_of(
        name.replace(":", "-"),
        dense,
        images[fitted].split(AT_ONCE),
        len(fitted),
        [(images[test], labels[test])],
    )


@torch.inference_mode()
def subject_of(
    name: str,
    dense: nn.Module,
    fitted: Any,
    images: int,
    test: Iterable[tuple[Tensor, Tensor]],
) -> Subject:
    """Note what the dense network says of the test images."""
    parts = [
        (part, right, dense(part))
        for batch, labels in test
        for part, right in zip(batch.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
    ]
    hits = sum(int((outputs.argmax(1) == right).sum()) for _, right, outputs in parts)
    count = sum(len(right) for _, right, _ in parts)
    return Subject(name, dense, fitted, images, parts, hits / count)


def cost(subject: Subject, given: argparse.Namespace) -> None:
    """Choose a fixed mask and repair it; note what that takes."""
    inner, begun = subject.inner, (time.perf_counter(), time.process_time())
    masks = fixed_masks(inner, subject.ranking, reduction=given.reductions[0])
    ranked = time.perf_counter()
    told = ftwt.repair(inner.fix(masks), subject.fitted, dense=subject.dense, images=subject.images)
    found = {
        "network": subject.name,
        "images": told.images,
        "reduction": given.reductions[0],
        "layers": len(told.layers),
        "threads": given.threads,
        "ranking_s": ranked - begun[0],
        "repair_s": time.perf_counter() - ranked,
        "processor_s": time.process_time() - begun[1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "provenance": provenance(config=settings(given), seed=0),
    }
    print(found, flush=True)
    write_json(COSTS / f"{subject.name}.json", found)


def compare(
    subject: Subject, reduction: float, kinds: Iterable[str], ways: Iterable[str] = WAYS
) -> Iterable[dict[str, Any]]:
    """Evaluate the candidates at one reduction."""
    ours: dict[str, Scored] = {}
    for kind in kinds:
        try:
            network = candidate(kind, subject, reduction).eval()
        except ValueError as wrong:  # no gate wins, or predictors cost more than the budget
            yield {"kind": RIVALS.get(kind, kind), "refused": str(wrong)}
            continue
        for how in ways:
            began = time.perf_counter()
            changed, told = change(how, network, subject, reduction)
            if changed is None:
                continue
            scored = score(changed, subject.test)
            row = {"kind": RIVALS.get(kind, kind), "weights": how, **means(scored)}
            yield row | {"seconds": round(time.perf_counter() - began, 1)}
            if told is not None and kind in OURS:
                ours[kind] = scored
    if ours:
        yield {"kind": "auto", "weights": WAYS[2], **chosen(subject, ours)}


def chosen(subject: Subject, ours: Mapping[str, Scored]) -> dict[str, Any]:
    """Choose by the dense network's outputs for one half of the test images, score on the other.

    As many images judge as candidates are fitted to, at most.
    """
    dense = torch.cat([outputs for _, _, outputs in subject.test])
    first = torch.arange(len(dense)) % 2 == 0
    found, taken = [], []
    for half in (first, ~first):
        judging = half.nonzero()[: subject.images, 0]

        def order(kind: str, judging: Tensor = judging) -> tuple[float, float]:
            return rank(**nearness(dense[judging], ours[kind].outputs[judging]))

        taken.append(min(ours, key=order))
        found.append(ours[taken[-1]].of(~half))
    both = Scored(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return means(both) | {"chosen": ", ".join(dict.fromkeys(taken)), "judged": len(judging)}


def candidate(kind: str, subject: Subject, reduction: float) -> DynamicModel:
    """A network pruned by masks, not repaired."""
    inner, fitted = subject.inner, subject.fitted
    if kind in RIVALS:
        return rival(kind, subject, reduction)
    if kind == "first-order gates":
        return guessing(subject, reduction)
    orders = {"static": "energy", "greedy": "ranking", "first-order": "first_order"}
    if kind in orders:
        order = getattr(subject, orders[kind])
        return inner.fix(fixed_masks(inner, order, reduction=reduction))
    gates = gated(inner, subject.ranking, fitted, reduction=reduction, images=subject.images)
    if kind == "mixed":
        gates, told = mix(gates, subject.ranking, fitted, reduction=reduction)
        print(told, flush=True)
        ftwt.calibrate(gates, fitted, reduction=reduction, images=subject.images)
    return gates


def guessing(subject: Subject, reduction: float) -> DynamicModel:
    """Gates fitted to what each image's guess depends on, one threshold for its units."""
    gates = copy.deepcopy(subject.inner)
    saliency = ftwt.first_order(gates, subject.fitted, images=subject.images)
    targets = ftwt.across_units(gates, saliency, reduction=reduction)
    print(ftwt.fit_predictors(gates, subject.fitted, targets=targets, images=subject.images))
    ftwt.calibrate(gates, subject.fitted, reduction=reduction, images=subject.images)
    return gates


def rival(kind: Any, subject: Subject, reduction: float) -> DynamicModel:
    """What Torch-Pruning leaves, as fixed masks."""
    from masked import pruned_as_masks
    from structured import Task

    example = images_of(next(iter(subject.fitted)))[:1]
    task = Task(subject.dense, example, kind)
    if kind == "taylor":
        seen = torch.cat([images_of(batch) for batch in subject.fitted])[:GRADIENT_IMAGES]
        with torch.no_grad():
            parts = [(part, subject.dense(part).argmax(1)) for part in seen.split(AT_ONCE)]
        task = Task(subject.dense, example, kind, parts)
    return pruned_as_masks(task, reduction)[0]


def change(
    how: str, network: DynamicModel, subject: Subject, reduction: float
) -> tuple[DynamicModel | None, Any]:
    """A network in one of the ways, and what its repair did; None if it has no batch norm."""
    if how == WAYS[0]:
        return network, None
    changed, told = copy.deepcopy(network), None
    if how == WAYS[1]:
        if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            return None, None
        reestimate(changed, subject.fitted)
    else:
        told = ftwt.repair(changed, subject.fitted, dense=subject.dense, images=subject.images)
    if network.predictors:  # what was changed decides what its gates see
        ftwt.calibrate(changed, subject.fitted, reduction=reduction, images=subject.images)
    return changed.eval(), told


@torch.no_grad()
def reestimate(network: DynamicModel, fitted: Iterable[Any]) -> None:
    """Average batch-norm statistics anew under the masks."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    network.hold_predictors()
    network.train()
    for batch in fitted:
        network(images_of(batch))
    network.eval()


class Scored(NamedTuple):
    """Of each test image."""

    outputs: Tensor  # (N, classes)
    right: Tensor  # (N,) bool
    same: Tensor  # (N,) bool: the dense network's guess
    saved: Tensor  # (N,) executed reduction

    def of(self, images: Tensor) -> Scored:
        """Of some images alone."""
        return Scored(*(part[images] for part in self))


@torch.inference_mode()
def score(network: DynamicModel, test: list[tuple[Tensor, Tensor, Tensor]]) -> Scored:
    """Evaluate a network on all test images."""
    parts = []
    for images, labels, dense in test:
        outputs, gates = network.eval()(images, return_gates="masks")
        guesses = outputs.argmax(1)
        work = network.macs({name: gate.mask for name, gate in gates.items()})
        saved = work.reduction.expand(len(images))
        parts.append((outputs, guesses == labels, guesses == dense.argmax(1), saved))
    return Scored(*(torch.cat(part) for part in zip(*parts, strict=True)))


def means(scored: Scored) -> dict[str, float]:
    """Accuracy, agreement with the dense network and executed reduction."""
    names = {"top1": scored.right, "agreement": scored.same, "reduction": scored.saved}
    return {name: float(part.double().mean()) for name, part in names.items()}


if __name__ == "__main__":
    main()
