"""A second look beside the repaired fixed mask, at equal average executed MACs.

    python benchmarks/second_look.py cifar10-resnet20
    python benchmarks/second_look.py RUN --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
    python benchmarks/second_look.py cifar10-resnet20 --name cifar10-resnet20-trained \
        --trained cifar10-resnet20-static-40 cifar10-resnet20-dynamic-40

For each first pass (a repaired fixed mask, or each network of `--trained` as it is) and each
average cut, the threshold is set on one half of the test images, without labels, and accuracy is
counted on the other half; then the halves change places. So every test image is scored once, by a
threshold that did not see it. Which first pass to take is decided by the agreement with the dense
network on the half that sets the threshold.
Writes `results/second-look/NETWORK-seedS.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from subjects import drawn, splits_of
from torch import Tensor, nn

import ftwt
from ftwt.data import Batches
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.fitting.columns import rank_filters
from ftwt.fitting.masks import fixed_masks
from ftwt.fitting.second_look import Seen, see
from ftwt.networks.sources import resolve
from ftwt.pruning.dynamic import DynamicModel
from ftwt.pruning.second_look import opened
from ftwt.runs.candidates import prunable

OUTPUT = Path("results/second-look")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="a name with weights, or the folder of a network")
    parser.add_argument("--name", help="what to call it in the result; by default, the network")
    parser.add_argument("--averages", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--firsts", type=float, nargs="+", default=[0.3, 0.4, 0.5])
    parser.add_argument("--trained", nargs="+", help="pruned networks that look first, instead")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root")
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--std", type=float, nargs=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = Start()
    splits = splits_of(given)
    dense = resolve(given.network).load().eval()
    name = given.name or given.network.replace(":", "-")
    fitted = drawn(splits, given.images, given.seed)
    labels = torch.cat([right for _, right in splits.test])
    inner = prunable(dense, next(iter(fitted))[0])
    second = see(opened(inner).eval(), splits.test, len(labels))
    whole = sum(layer.macs for layer in inner.channels.layers)
    rows: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    top1 = accuracy(second[0], labels)
    print(f"{name}: dense {top1:.2%}", flush=True)
    for told, first in firsts(given, dense, inner, fitted):
        seen = Seen([see(first.eval(), splits.test, len(labels)), second], whole)
        saved = 1 - float(seen.costs[0].mean()) / whole
        told |= {} if "cut" in told else {"cut": round(saved, 3)}
        alone.append(told | {"top1": accuracy(seen.outputs[0], labels), "reduction": saved})
        print(alone[-1], flush=True)
        if given.trained or told["cut"] in given.firsts:
            for average in (a for a in given.averages if a < saved):
                rows += look(seen, labels, told, average)
                print(rows[-2:], flush=True)
        write_json(
            OUTPUT / f"{name}-seed{given.seed}.json",
            {
                "network": name,
                "images": given.images,
                "dense_top1": top1,
                "fixed_masks": alone,
                "rows": rows,
                "provenance": provenance(
                    config=vars(given) | {"data_root": None},
                    seed=given.seed,
                    since=began,
                ),
            },
        )


def firsts(
    given: argparse.Namespace, dense: nn.Module, inner: DynamicModel, fitted: Batches
) -> Iterator[tuple[dict[str, Any], DynamicModel]]:
    """Networks that look first, and fixed masks to stand beside; what each is called."""
    if given.trained:
        yield from (({"first": name}, resolve(name).load()) for name in given.trained)
        return
    ranking = rank_filters(inner, fitted)
    for cut in sorted({*given.firsts, *given.averages}):
        first = inner.fix(fixed_masks(inner, ranking, reduction=cut))
        ftwt.repair(first, fitted, dense=dense, images=given.images)
        yield {"cut": cut}, first


def look(seen: Seen, labels: Tensor, told: dict[str, Any], average: float) -> list[dict[str, Any]]:
    """Set the threshold on each half, and score the other."""
    rows = []
    for half, (mine, others) in enumerate(seen.halves()):
        plan = seen.select(mine).best(reduction=average)
        other = seen.select(others)
        found = other.looked(plan.thresholds)
        rows.append(
            {
                **({"first": told["first"]} if "first" in told else {}),
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
