"""What a killed process leaves is whole: a run goes on from it, a network and a result load."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from toys import run_python

CRASH = str(Path(__file__).parents[1] / "helpers" / "crash.py")
MANY = pytest.param(200, marks=(pytest.mark.slow, pytest.mark.timeout(3600)))


def crash(kind: str, kills: int, *, seed: int = 0) -> dict[str, Any]:
    done = run_python(CRASH, kind, str(kills), str(seed), timeout=3600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["killed"] == kills
    assert told["leftovers"] <= 1  # the next writer removes it before it makes its own
    return told


@pytest.mark.parametrize("kills", [2, MANY])
def test_a_run_that_is_killed_loses_no_checkpoint_and_ends_as_if_it_was_not(kills: int) -> None:
    told = crash("training", kills)
    assert told["checkpoints"] >= kills // 4
    assert told["finished"] >= kills // 100


@pytest.mark.parametrize("kills", [8, MANY])
def test_a_saved_network_is_one_that_was_saved_whenever_the_process_is_killed(kills: int) -> None:
    told = crash("networks", kills)
    assert told["loaded"] >= kills // 2
    assert told["between"] >= kills // 20  # of its two files


@pytest.mark.parametrize("kills", [8, MANY])
def test_results_recordings_and_engine_files_are_whole_whenever_the_process_is_killed(
    kills: int,
) -> None:
    assert crash("files", kills)["read"] >= 2 * kills


BROKEN = """
import os, pathlib, time, crash

def copy(source, target):
    data = pathlib.Path(source).read_bytes()
    with open(target, "wb") as file:
        file.write(data[:len(data) // 2])
        file.flush()
        time.sleep(0.05)
        file.write(data[len(data) // 2:])
    os.unlink(source)

os.replace = copy
crash.main("files", "12")
"""


def test_a_file_that_is_not_replaced_at_once_is_found_out() -> None:
    done = run_python("-c", BROKEN)
    assert done.returncode == 1
    assert re.search("ValueError: .*(not a JSON file|truncated|damaged)", done.stderr), done.stderr
