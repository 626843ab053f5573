"""What repair is worth: fixed masks and gates, as they are, with batch norm re-estimated, repaired.

    python benchmarks/repair.py cifar10-resnet20 --seeds 3
    python benchmarks/repair.py RUN --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

No labels are used and nothing is trained. Each candidate is asked for the same executed reduction,
fitted to the same training images (a seed draws them) and evaluated on all test images. Writes
`results/repair/NETWORK-seedS.json`, after each reduction.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ftwt
from ftwt.config import DataConfig
from ftwt.data import Batches
from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.fitting.masks import fixed_masks, mean_saliency
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.pruning.dynamic import DynamicModel
from ftwt.runs.prune import gated, prunable

OUTPUT = Path("results/repair")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="a name with weights, or the folder of a network")
    parser.add_argument("--name", help="what to call it in the result; by default, the network")
    parser.add_argument("--reductions", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--gates", choices=["static", "both"], default="both")
    parser.add_argument("--data-root")
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--std", type=float, nargs=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = DataConfig(
        data_root=given.data_root,
        mean=None if given.mean is None else tuple(given.mean),
        std=None if given.std is None else tuple(given.std),
    )
    splits = load_splits(data)
    dense = resolve(given.network).load().eval()
    name = given.name or given.network.replace(":", "-")
    top1 = ftwt.evaluate(dense, splits.test).top1
    print(f"{name}: dense {top1:.2%}", flush=True)
    for seed in range(given.seeds):
        began, rows = time.perf_counter(), []
        order = torch.randperm(
            len(splits.plain.images), generator=torch.Generator().manual_seed(seed)
        )
        fitted = Batches(splits.plain.images.select(order[: given.images]), batch_size=256)
        for reduction in given.reductions:
            for row in compare(dense, fitted, splits.test, reduction, given):
                rows.append({"asked": reduction, **row})
                print(rows[-1], flush=True)
            write_json(
                OUTPUT / f"{name}-seed{seed}.json",
                {
                    "network": name,
                    "images": given.images,
                    "dense_top1": top1,
                    "rows": rows,
                    "provenance": provenance(
                        config=vars(given) | {"data_root": None},
                        seed=seed,
                        duration_s=time.perf_counter() - began,
                    ),
                },
            )


def compare(
    dense: nn.Module, fitted: Batches, test: Any, reduction: float, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Evaluate the candidates at one reduction."""
    inner = prunable(dense, next(iter(fitted))[0])
    saliency = mean_saliency(inner, fitted, images=given.images)
    candidates = {"static": inner.fix(fixed_masks(inner, saliency, reduction=reduction))}
    if given.gates == "both":
        candidates["dynamic"] = gated(inner, fitted, reduction=reduction, images=given.images)
    rows = []
    for kind, network in candidates.items():
        rows.append(score(kind, "as it is", network.eval(), test, 0.0))
        if kind == "static":
            began = time.perf_counter()
            averaged = reestimate(copy.deepcopy(network), fitted)
            seconds = time.perf_counter() - began
            rows.append(score(kind, "batch norm re-estimated", averaged, test, seconds))
        began = time.perf_counter()
        ftwt.repair(network, fitted, dense=dense, images=given.images)
        if kind == "dynamic":
            ftwt.calibrate(network, fitted, reduction=reduction, images=given.images)
        rows.append(score(kind, "repaired", network.eval(), test, time.perf_counter() - began))
    return rows


@torch.no_grad()
def reestimate(network: DynamicModel, fitted: Batches) -> DynamicModel:
    """Average batch-norm statistics anew under the masks."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    network.train()
    for images, _ in fitted:
        network(images)
    return network.eval()


def score(kind: str, how: str, network: DynamicModel, test: Any, seconds: float) -> dict[str, Any]:
    """Accuracy and executed reduction on all test images."""
    found = ftwt.evaluate(network, test, targets=False)
    return {
        "kind": kind,
        "weights": how,
        "top1": found.top1,
        "reduction": found.reduction,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
