"""What an engine's file and process take, in float and in eight bits: bytes, memory, loading.

    python benchmarks/footprint.py                          # writes results/footprint.json
    python benchmarks/footprint.py torchvision:resnet50 --runs 100

Each network is compiled, dense, and its file loaded and run in a process of its own that has numpy
and no torch. Memory is the process's peak; growth is what it holds more after all runs than after
the first tenth of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import ftwt
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.networks.sources import resolve
from ftwt.runtime.program import Conv, Program, QConv

NETWORKS = ("cifar10-resnet20", "torchvision:resnet18", "torchvision:resnet50")
CALIBRATE = 8  # random images: nobody reads the answers
CHILD = r"""
import json, sys, time
import numpy as np
from ftwt import runtime

def held(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024

bare, began = held("VmHWM"), time.perf_counter()
engine = runtime.load(sys.argv[1])
load_ms = 1e3 * (time.perf_counter() - began)
runs, image = int(sys.argv[2]), np.zeros((1, *engine.program.maps[0]), np.float32)
for number in range(runs):
    engine(image)
    if number == runs // 10:
        early = held("VmRSS")
assert "torch" not in sys.modules
print(json.dumps({"load_ms": load_ms, "bare_mb": bare, "peak_mb": held("VmHWM"),
                  "growth_mb": held("VmRSS") - early}))
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK")
    parser.add_argument("--runs", type=int, help="if not 10,000 of images of 32x32, 50 of others")
    parser.add_argument("--output", default="results/footprint.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = Start()
    rows = [row for source in given.networks for row in measure(source, given.runs)]
    made = provenance(config=vars(given), seed=0, since=began)
    write_json(given.output, {"kind": "footprint", "rows": rows, "provenance": made})


def measure(source: str, runs: int | None = None) -> list[dict[str, Any]]:
    """One network in both precisions."""
    torch.manual_seed(0)
    named = resolve(source, None)
    network, shape = named.load().cpu().eval(), named.shape()
    images = torch.randn(CALIBRATE, *shape)
    count = runs or (10_000 if shape[-1] <= 32 else 50)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("f32", "int8"):
            given = {} if precision == "f32" else {"precision": "int8", "calibrate": [images]}
            engine = ftwt.compile(network, images[:1], check=False, **given)  # type: ignore[arg-type]
            path = Path(folder, f"{precision}.ftwt")
            engine.save(path)
            child = subprocess.run(
                [sys.executable, "-c", CHILD, str(path), str(count)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(child.stdout)
            rows.append(
                {
                    "network": source,
                    "precision": precision,
                    "file_bytes": path.stat().st_size,
                    "weight_bytes": weights(engine.program),
                    "runs": count,
                    **found,
                }
            )
            print(rows[-1], flush=True)
    return rows


def weights(program: Program) -> int:
    """Bytes of the weights of convolutions and linear layers."""
    layers = [op for op in program.operations if isinstance(op, Conv | QConv)]
    return sum(program.constants[op.weight].nbytes for op in layers)


if __name__ == "__main__":
    main()
