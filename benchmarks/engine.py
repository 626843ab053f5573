"""The engine beside its rivals: six networks, dense and with half of the filters, 1 and 2 threads.

    python benchmarks/engine.py                       # all of it, on an otherwise idle machine
    python benchmarks/engine.py cifar10-resnet56 --threads 1 --rounds 5
    python benchmarks/engine.py timm:mobilenetv1_100 --rank 16
    python benchmarks/engine.py runs/NAME             # trained gates, on test images
    python benchmarks/engine.py torchvision:resnet18 --precision int8 --batch 64 --threads 2

Each network and number of threads is one run of `ftwt.bench` and one file in results/engine/, or in
results/int8-speed/ for eight bits, where the rivals are OpenVINO's float, bfloat16 and int8.
`python tools/write_tables.py` and `python tools/plot_engine.py` make tables and a figure of them.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

import ftwt
from ftwt.config import DataConfig
from ftwt.contest.bench import RIVALS
from ftwt.lowering.compile import Precision
from ftwt.models.init import measure_norms
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.records.benchmark import Benchmark

NETWORKS = (
    "cifar10-vgg16-bn",
    "cifar10-resnet56",
    "cifar10-mobilenet-v1",
    "torchvision:resnet18",
    "torchvision:resnet34",
    "timm:mobilenetv1_100",
)
IMAGES = 200  # one by one, with one thread
NOISE = 8  # images that random weights get their batch norms from
FEW = 2  # batches of more than an image
CALIBRATED = 64  # images that ranges of eight-bit maps come from, where there are as many
OUTPUT = {"f32": "results/engine", "int8": "results/int8-speed"}
OF_INT8 = ("openvino", "openvino-bf16", "openvino-int8", "onnxruntime-int8")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK")
    parser.add_argument("--output", help="folder, if not the usual one")
    parser.add_argument("--precision", choices=get_args(Precision), default="f32")
    parser.add_argument("--rivals", nargs="+", help="if not the usual ones")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--realtime", action="store_true", help="before all other processes")
    parser.add_argument("--keep", type=float, default=0.5, help="of names; runs decide themselves")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--rank", type=int, help="of the predictors of names; full if not given")
    parser.add_argument("--dataset", default="cifar10", help="whose test images runs see")
    arguments = parser.parse_args()
    for source in arguments.networks:
        for threads in arguments.threads:
            found = measure(source, threads, arguments)
            name = Path(source).name.replace(":", "-")
            name += f"-rank{arguments.rank}" if arguments.rank else ""
            name += f"-batch{arguments.batch}" if arguments.batch > 1 else ""
            folder = Path(arguments.output or OUTPUT[arguments.precision])
            found.save(folder / f"{name}-threads{threads}.json")
            Console(width=140).print(found)


def measure(source: str, threads: int, arguments: argparse.Namespace) -> Benchmark:
    """Time one network with so many threads."""
    torch.manual_seed(0)
    named = resolve(source, None)
    network, example = named.load().cpu(), torch.zeros(1, *named.shape())
    if named.random:
        measure_norms(network, torch.randn(NOISE, *example.shape[1:]))
    trained = isinstance(network, ftwt.DynamicModel)
    images = None
    if arguments.rank and not trained:
        network = ftwt.convert(network, example, min_gain=-math.inf, rank=arguments.rank)
    if trained:
        images, _ = next(iter(load_splits(DataConfig(dataset=arguments.dataset)).test))
    elif arguments.batch > 1:
        images = torch.randn(FEW * arguments.batch, *example.shape[1:])
    return ftwt.bench(
        network,
        example,
        keep=None if trained else arguments.keep,
        images=images,
        rivals=arguments.rivals or (RIVALS if arguments.precision == "f32" else OF_INT8),
        threads=threads,
        batch=arguments.batch,
        rounds=arguments.rounds,
        singles=IMAGES if threads == 1 and arguments.batch == 1 else 0,
        precision=arguments.precision,
        calibrate=None if images is None else [images[: max(arguments.batch, CALIBRATED)]],
        realtime=arguments.realtime,
        name=f"{source}, rank {arguments.rank}" if arguments.rank else source,
        config={
            "network": source,
            "threads": threads,
            "keep": arguments.keep,
            "rank": arguments.rank,
            "precision": arguments.precision,
            "batch": arguments.batch,
            "realtime": arguments.realtime,
        },
    )


if __name__ == "__main__":
    main()
