"""What an engine costs a process: memory, time to load, and nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ftwt
from ftwt import models

pytest.importorskip("ftwt.runtime._native")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

RUN = """
import json, sys, time
import numpy as np
import ftwt.runtime

def megabytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))

started = time.perf_counter()
engine = ftwt.runtime.load(sys.argv[1])
load_s = time.perf_counter() - started
x = np.random.default_rng(0).standard_normal((1, *engine.program.maps[0]), dtype=np.float32)
resident = []
for runs in map(int, sys.argv[2:]):
    for _ in range(runs):
        engine.run(x)
    resident.append(megabytes("VmRSS"))
found = {"load_s": load_s, "peak": megabytes("VmHWM"), "resident": resident}
print(json.dumps({**found, "torch": "torch" in sys.modules}))
"""


def fresh_process(path: Path, *runs: int) -> dict:
    """What a process that loads a file and runs it says of itself."""
    command = [sys.executable, "-c", RUN, str(path), *map(str, runs)]
    output = subprocess.run(command, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


@pytest.mark.parametrize("gated", [False, True])
def test_a_process_holds_little_more_than_the_weights(tmp_path, gated):
    network = models.create("cifar10-vgg16-bn").eval()
    weights = sum(p.nbytes for p in network.parameters()) / 2**20
    example = torch.randn(2, 3, 32, 32)
    made = ftwt.convert(network, example, r=0.9) if gated else network
    ftwt.compile(made, example).save(tmp_path / "net.ftwt")
    found = [fresh_process(tmp_path / "net.ftwt", 1) for _ in range(3)]
    assert not found[0]["torch"]
    assert found[0]["peak"] <= 1.3 * weights + 60
    assert min(each["load_s"] for each in found) < 0.3  # of three: the machine may be busy


def test_ten_thousand_runs_leave_nothing_behind(tmp_path):
    network = models.create("cifar10-mobilenet-v1-x0.25").eval()
    dynamic = ftwt.convert(network, torch.randn(2, 3, 32, 32), r=0.9)
    ftwt.compile(dynamic).save(tmp_path / "net.ftwt")
    warm, after = fresh_process(tmp_path / "net.ftwt", 500, 10_000)["resident"]
    assert after - warm < 1
