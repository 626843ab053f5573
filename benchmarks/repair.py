"""What repair is worth: fixed masks, gates and Torch-Pruning at equal cuts, repaired or not.

    python benchmarks/repair.py cifar10-resnet20 --seeds 0 1 2
    python benchmarks/repair.py RUN --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
    python benchmarks/repair.py --imagenet IMAGES --weights mobilenet_v1_folded.safetensors

No labels are used and nothing is trained. A fixed mask keeps the filters of highest mean energy
(`static`) or those that least squares cannot make up for (`greedy`); `mixed` has gates on the
units where they leave less of an error. `first-order` is a fixed mask of the filters that the
gradients of the network's own guesses name on average; `first-order gates` are fitted to what they
name for each image. Each candidate is asked for the same executed reduction, fitted to the same
images (a seed draws them) and evaluated on all test images: as it is, with batch norm re-estimated,
repaired. `auto` is that of ours whose outputs have the least error beside the dense network's on
other images: `ftwt.prune`'s rule, but for times and second looks. What Torch-Pruning leaves is
repaired as fixed masks (`masked.py`): the same repair, the same images. Its Taylor ranking needs
labels: it is given the dense network's guesses. RUN and IMAGES are as in `subjects.py`.
Writes `results/repair/NAME-seedS.json`, after each candidate. With `--outputs FOLDER` the outputs
of each are kept there; what is there is not fitted again, and its row names the commit that fitted
it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import subjects
import torch
from outputs import Kept, Scored, score
from subjects import AT_ONCE, Subject
from torch import nn

import ftwt
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.fitting.masks import fixed_masks
from ftwt.fitting.mixed import mix
from ftwt.graph.inputs import images_of
from ftwt.pruning.dynamic import DynamicModel
from ftwt.runs.candidates import Refused, gated, hold, nearness, refusals

OUTPUT = Path("results/repair")
OURS = ("static", "greedy", "dynamic", "mixed")
FIRST = ("first-order", "first-order gates")
ORDERS: dict[str, Callable[[Subject], Any]] = {  # of filters, for fixed masks
    "static": lambda subject: subject.energy,
    "greedy": lambda subject: subject.ranking,
    "first-order": lambda subject: {n: each.mean(0) for n, each in subject.first_order.items()},
}
KINDS = (*OURS, "magnitude", "taylor")
WAYS = ("as it is", "batch norm re-estimated", "repaired")
RIVALS = {"magnitude": "torch-pruning, magnitude", "taylor": "torch-pruning, Taylor"}
GRADIENT_IMAGES = 1000  # that Taylor's importance sees


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", help="the result's name before -seedS; by default, that name")
    parser.add_argument("--reductions", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, *FIRST), default=KINDS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--outputs", type=Path, help="folder that keeps outputs, to go on from")
    given = subjects.parse(parser)
    for seed in given.seeds:
        subject = subjects.load(given, seed)
        print(f"{subject.name}: dense {subject.top1:.2%}", flush=True)
        began, rows = Start(), []
        kept = Kept(given.outputs, f"{subject.name}-{subject.images}-seed{seed}", began.commit)
        for reduction in given.reductions:
            for row in compare(subject, reduction, given.kinds, given.ways, kept):
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
                            config=subjects.settings(given),
                            seed=seed,
                            since=began,
                        ),
                    },
                )


def compare(
    subject: Subject,
    reduction: float,
    kinds: Iterable[str],
    ways: Iterable[str] = WAYS,
    kept: Kept | None = None,
) -> Iterable[dict[str, Any]]:
    """Evaluate the candidates at one reduction."""
    kept = kept or Kept(None, "", None)
    if not any(isinstance(module, nn.BatchNorm2d) for module in subject.dense.modules()):
        ways = [how for how in ways if how != WAYS[1]]
    ours: dict[str, Scored] = {}
    for kind in kinds:
        make = cache(partial(candidate, kind, subject, reduction))  # once, for all ways
        for how in ways:
            try:
                scored, told = made_or_kept(kind, how, make, subject, reduction, kept)
            except Refused as wrong:  # no gate wins, or predictors cost more than the budget
                yield {"kind": RIVALS.get(kind, kind), "refused": str(wrong)}
                break
            yield {"kind": RIVALS.get(kind, kind), "weights": how, **means(scored), **told}
            if how == WAYS[2] and kind in OURS:
                ours[kind] = scored
    if ours:
        yield {"kind": "auto", "weights": WAYS[2], **chosen(subject, ours)}


def made_or_kept(
    kind: str,
    how: str,
    make: Callable[[], DynamicModel],
    subject: Subject,
    reduction: float,
    kept: Kept,
) -> tuple[Scored, dict[str, Any]]:
    """The candidate that `make` gives in one of the ways, and how long that took; or as kept.

    Raises:
        Refused: There is no such candidate.
    """
    name = f"{reduction}-{kind}-{how}"
    found = kept.read(name, subject.test)
    if found is not None:
        return found
    with refusals():
        network = make().eval()
    began = time.perf_counter()
    scored = score(change(how, network, subject, reduction), subject.test)
    told = {"seconds": round(time.perf_counter() - began, 1)}
    kept.write(name, scored, told)
    return scored, told


def chosen(subject: Subject, ours: Mapping[str, Scored]) -> dict[str, Any]:
    """Choose by the dense network's outputs for one half of the test images, score on the other.

    As many images judge as candidates are fitted to, at most.
    """
    dense = torch.cat([outputs for _, _, outputs in subject.test])
    first = torch.arange(len(dense)) % 2 == 0
    found, taken, near = [], [], []
    for half in (first, ~first):
        judging = half.nonzero()[: subject.images, 0]
        near.append(
            {k: nearness(dense[judging], o.outputs[judging], scores=True) for k, o in ours.items()}
        )
        taken.append(min(ours, key=lambda kind: near[-1][kind]["error"]))
        found.append(ours[taken[-1]].of(~half))
    both = Scored(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    names = ", ".join(dict.fromkeys(taken))
    return means(both) | {"chosen": names, "judged": len(judging), "nearness": near}


def candidate(kind: str, subject: Subject, reduction: float) -> DynamicModel:
    """A network pruned by masks, not repaired."""
    inner, fitted = subject.inner, subject.fitted
    if kind in RIVALS:
        return rival(kind, subject, reduction)
    if kind == "first-order gates":
        return guessing(subject, reduction)
    if kind in ORDERS:
        return inner.fix(fixed_masks(inner, ORDERS[kind](subject), reduction=reduction))
    network = gates_of(subject, reduction)
    if kind == "dynamic":
        network = copy.deepcopy(network)
    else:
        network, told = mix(network, subject.ranking, fitted, reduction=reduction)
        print(told, flush=True)
    hold(network, fitted, reduction=reduction, images=subject.images)
    return network


@lru_cache(maxsize=1)
def gates_of(subject: Subject, reduction: float) -> DynamicModel:
    """Gates on all units, not at the budget yet, which `mixed` begins with too."""
    return gated(
        subject.inner, subject.ranking, subject.fitted, reduction=reduction, images=subject.images
    )


def guessing(subject: Subject, reduction: float) -> DynamicModel:
    """Gates fitted to what each image's guess depends on, one threshold for its units."""
    gates = copy.deepcopy(subject.inner)
    targets = ftwt.across_units(gates, subject.first_order, reduction=reduction)
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


def change(how: str, network: DynamicModel, subject: Subject, reduction: float) -> DynamicModel:
    """A network in one of the ways."""
    if how == WAYS[0]:
        return network
    changed = copy.deepcopy(network)
    if how == WAYS[1]:
        reestimate(changed, subject.fitted)
    else:
        ftwt.repair(changed, subject.fitted, dense=subject.dense, images=subject.images)
    if network.predictors:  # what was changed decides what its gates see
        ftwt.calibrate(changed, subject.fitted, reduction=reduction, images=subject.images)
    return changed.eval()


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


def means(scored: Scored) -> dict[str, float]:
    """Accuracy, agreement with the dense network and executed reduction."""
    names = {"top1": scored.right, "agreement": scored.same, "reduction": scored.saved}
    return {name: float(part.double().mean()) for name, part in names.items()}


if __name__ == "__main__":
    main()
