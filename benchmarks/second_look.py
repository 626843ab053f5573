"""A second look beside the repaired fixed mask, at equal average executed MACs.

    python benchmarks/second_look.py cifar10-resnet20
    python benchmarks/second_look.py RUN --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
    python benchmarks/second_look.py --imagenet IMAGES --weights resnet50_v1.safetensors
    python benchmarks/second_look.py cifar10-resnet20 --name cifar10-resnet20-trained \
        --trained cifar10-resnet20-static-40 cifar10-resnet20-dynamic-40

For each first pass (repaired: a fixed mask, or gates on the units where they leave less of an
error, `mixed`; or each network of `--trained` as it is) and each average cut, the threshold is set
on one half of the test images, without labels, and accuracy is counted on the other half; then the
halves change places. So every test image is scored once, by a threshold that did not see it. Rows
hold the agreement with the dense network on the half that sets the threshold: by it,
`tools/tables/fitting.py` takes a first pass of each kind. RUN and IMAGES are as in `subjects.py`,
`--outputs FOLDER` is as in `repair.py`, whose outputs it takes.
Writes `results/second-look/NETWORK-seedS.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import subjects
import torch
from outputs import Kept
from repair import WAYS, candidate, made_or_kept
from subjects import Subject
from torch import Tensor

from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.fitting.second_look import Seen, see
from ftwt.networks.sources import resolve
from ftwt.pruning.second_look import opened
from ftwt.runs.candidates import Refused

OUTPUT = Path("results/second-look")
FIXED = "greedy"
LEAST = 0.01  # of the MACs that a first pass must save beyond the average, for second looks
Pass = tuple[Tensor, Tensor]  # outputs (N, classes) and executed MACs (N,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--averages", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--firsts", type=float, nargs="+", default=[0.3, 0.4, 0.5])
    parser.add_argument("--trained", nargs="+", help="pruned networks that look first, instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outputs", type=Path, help="folder that keeps outputs, to go on from")
    given = subjects.parse(parser)
    began, subject = Start(), subjects.load(given, given.seed)
    labels = torch.cat([right for _, right, _ in subject.test])
    second = see(opened(subject.inner).eval(), subject.test, len(labels))
    whole = sum(layer.macs for layer in subject.inner.channels.layers)
    rows: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    print(f"{subject.name}: dense {subject.top1:.2%}", flush=True)
    for told, first in firsts(given, subject, began.commit, whole):
        seen = Seen([first, second], whole)
        saved = 1 - float(seen.costs[0].mean()) / whole
        told |= {} if "cut" in told else {"cut": round(saved, 3)}
        alone.append(told | {"top1": accuracy(seen.outputs[0], labels), "reduction": saved})
        print(alone[-1], flush=True)
        if given.trained or told["cut"] in given.firsts:
            for average in (a for a in given.averages if a + LEAST < saved):
                rows += look(seen, labels, told, average)
                print(rows[-2:], flush=True)
        write_json(
            OUTPUT / f"{subject.name}-seed{given.seed}.json",
            {
                "network": subject.name,
                "images": subject.images,
                "test_images": len(labels),
                "dense_top1": subject.top1,
                "firsts": alone,
                "rows": rows,
                "provenance": provenance(
                    config=subjects.settings(given), seed=given.seed, since=began
                ),
            },
        )


def firsts(
    given: argparse.Namespace, subject: Subject, commit: Any, whole: int
) -> Iterator[tuple[dict[str, Any], Pass]]:
    """Networks that look first, and fixed masks to stand beside; what each is called."""
    if given.trained:
        count = sum(len(images) for images, _, _ in subject.test)
        for name in given.trained:
            yield {"first": name}, see(resolve(name).load().eval(), subject.test, count)
        return
    kept = Kept(given.outputs, f"{subject.name}-{subject.images}-seed{given.seed}", commit)
    for cut in sorted({*given.firsts, *given.averages}):
        for kind in (FIXED, "mixed") if cut in given.firsts else (FIXED,):
            try:
                make = partial(candidate, kind, subject, cut)
                scored, more = made_or_kept(kind, WAYS[2], make, subject, cut, kept)
            except Refused as wrong:  # no gate wins
                print(f"{kind}, {cut}: {wrong}", flush=True)
                continue
            told = {"kind": kind, "cut": cut}
            told |= {"fitted_at": more["fitted_at"]} if "fitted_at" in more else {}
            yield told, (scored.outputs, (1 - scored.saved) * whole)


def look(seen: Seen, labels: Tensor, told: dict[str, Any], average: float) -> list[dict[str, Any]]:
    """Set the threshold on each half, and score the other."""
    rows = []
    for half, (mine, others) in enumerate(seen.halves()):
        plan = seen.select(mine).best(reduction=average)
        other = seen.select(others)
        found = other.looked(plan.thresholds)
        rows.append(
            {
                **{name: told[name] for name in ("first", "kind") if name in told},
                "first_cut": told["cut"],
                "average_cut": average,
                "threshold_from_half": half,
                "threshold": plan.thresholds[0],
                "again": plan.shares[0],
                "agreement": 1 - plan.missed / len(mine),
                "images": len(others),
                "top1": accuracy(found.outputs, labels[others]),
                "reduction": 1 - float(found.executed.mean()) / seen.dense,
                "by_lot_top1": by_lot(other, labels[others], plan.shares[0], seed=half),
            }
        )
    return rows


def by_lot(seen: Seen, labels: Tensor, share: float, *, seed: int) -> float:
    """Accuracy if as many images, drawn by lot, were looked at again."""
    generator = torch.Generator().manual_seed(seed)
    again = torch.rand(seen.count, generator=generator) < share
    return accuracy(torch.where(again[:, None], seen.outputs[1], seen.outputs[0]), labels)


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of the images whose label is the first guess."""
    return float((outputs.argmax(1) == labels).double().mean())


if __name__ == "__main__":
    main()
