"""The same seed gives the same bytes in two processes, with one thread each or with two."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from damage import split
from toys import run_python

TRAIN = """
import sys
from dataclasses import replace
import torch, toys
from ftwt import compile, save_pretrained
torch.set_num_threads(int(sys.argv[2]))
torch.rand(int(sys.argv[3]))  # what was drawn before does not matter
model = toys.dynamic()
config = replace(toys.FULL, epochs=3, seed=int(sys.argv[4]))
toys.fit(model, config, output=sys.argv[1])
save_pretrained(model, sys.argv[1] + "/model")
compile(model.eval(), engine="reference").save(sys.argv[1] + "/net.ftwt")
"""
TIMED = {"images_per_s", "seconds", "provenance"}


def figures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: figures(one) for key, one in value.items() if key not in TIMED}
    return [figures(one) for one in value] if isinstance(value, list) else value


def train(folder: Path, *, threads: int, drawn: int = 0, seed: int = 3) -> dict[str, Any]:
    """What a process of its own leaves: digests of its files, and its figures."""
    done = run_python("-c", TRAIN, str(folder), str(threads), str(drawn), str(seed), timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model/config.json", "net.ftwt")
    }
    # The safetensors library writes the keys of its metadata in any order.
    header, weights = split((folder / "model" / "model.safetensors").read_bytes())
    found["model"] = header, hashlib.sha256(weights).hexdigest()
    found["result"] = figures(json.loads((folder / "result.json").read_text()))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [figures(json.loads(line)) for line in lines]
    return found


@pytest.mark.slow  # a killed run that goes on (project/test_crash.py) shows it quickly
@pytest.mark.parametrize("threads", [1, 2])
def test_two_processes_with_one_seed_leave_the_same_bytes(threads: int, tmp_path: Path) -> None:
    one = train(tmp_path / "one", threads=threads)
    two = train(tmp_path / "two", threads=threads, drawn=5)
    assert one == two
    assert len(one["metrics"]) >= 3


@pytest.mark.slow
def test_another_seed_leaves_others(tmp_path: Path) -> None:
    one = train(tmp_path / "one", threads=1)
    other = train(tmp_path / "other", threads=1, seed=4)
    assert one["model"] != other["model"]
    assert one["metrics"] != other["metrics"]
