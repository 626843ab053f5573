import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import tiny

# Quick on shared machines, and sums come out the same on all of them. So do processes of tests.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Each test draws the same numbers, whichever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def tiny_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test that uses the tiny network by its name."""
    tiny.register(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path
