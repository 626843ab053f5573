"""What it takes to choose a fixed mask and to repair it: time, and the process's peak memory.

    python benchmarks/repair_cost.py RUN --threads 2
    python benchmarks/repair_cost.py torchvision:resnet18 --imagenet IMAGES --images 512

With `--imagenet` and without `--weights` the network is random: only its cost means anything.
RUN and IMAGES are as in `subjects.py`. Writes `results/repair-cost/NAME.json`.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
from subjects import Subject, load, parse, settings

import ftwt
from ftwt.files.json import write_json
from ftwt.files.provenance import provenance
from ftwt.fitting.masks import fixed_masks

OUTPUT = Path("results/repair-cost")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduction", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=1)
    given = parse(parser)
    torch.set_num_threads(given.threads)
    measure(load(given, few=True), given)


def measure(subject: Subject, given: argparse.Namespace) -> None:
    """Choose a fixed mask and repair it; note what that takes."""
    inner, begun = subject.inner, (time.perf_counter(), time.process_time())
    masks = fixed_masks(inner, subject.ranking, reduction=given.reduction)
    ranked = time.perf_counter()
    told = ftwt.repair(inner.fix(masks), subject.fitted, dense=subject.dense, images=subject.images)
    found = {
        "network": subject.name,
        "images": told.images,
        "reduction": given.reduction,
        "layers": len(told.layers),
        "threads": given.threads,
        "ranking_s": ranked - begun[0],
        "repair_s": time.perf_counter() - ranked,
        "processor_s": time.process_time() - begun[1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "provenance": provenance(config=settings(given), seed=0),
    }
    print(found, flush=True)
    write_json(OUTPUT / f"{subject.name}.json", found)


if __name__ == "__main__":
    main()
