import copy
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import tiny
from ftwt.contest import turns
from ftwt.data import registry

# Quick on shared machines, and sums come out the same on all of them. So do processes of tests.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
gc.set_threshold(20_000)  # traced networks are many small objects: a fifth of the time went there
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

_decoded = functools.cache(registry.embedded)  # the pictures, once for all tests of a process
registry.embedded = lambda *, train: copy.deepcopy(_decoded(train=train))

turns.REST_S = turns.WARMUP_S = 0.001  # times are told, and none is believed

# torch.manual_seed notes where it was called for GPUs that may come: milliseconds for each test.
_seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True, scope="module")
def imported_is_kept() -> None:
    """What is imported stays: the collector need not look through all of torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Each test draws the same numbers, whichever ran before it."""
    with torch.random.fork_rng(devices=[]):
        _seed(0)
        yield


@pytest.fixture
def tiny_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test that uses the tiny network by its name."""
    tiny.register(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path
