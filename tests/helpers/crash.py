"""Processes that write files and are killed at any moment: what they leave is always whole.

    python tests/helpers/crash.py KIND KILLS

One process has everything imported and forks: each child works until it is killed, half of them
after a random time, half of them by themselves at a random line of the code that writes. Then what
lies there is looked at. KIND is a function of this module that is named below.
"""

import json
import os
import random
import re
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import synthetic
import toys
from ftwt import DynamicModel, compile, from_pretrained, runtime, save_pretrained
from ftwt.files.json import read_json, write_json
from ftwt.files.tensors import load_metadata, load_tensors
from ftwt.records.recording import Recording
from ftwt.training.loop import train

WRITERS = re.compile(
    r"ftwt/(files/\w+|training/journal|networks/pretrained|records/recording|runtime/stored)\.py$"
)
LINES = {"training": 1200, "networks": 1500, "files": 600}  # that a child may run of those
SECONDS = 0.4  # that it may live, from the first sign of life on
LEFT = re.compile(r"^\.(.*)\.\d+\.\d+\.tmp$")
CONFIG = replace(toys.FULL, epochs=12, precision="fp32")


def die_at_line(left: int) -> None:
    """Kill this process when it comes to the `left`-th line of the code that writes."""

    def inside(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return inside

    def enter(frame: Any, event: str, argument: Any) -> Any:
        return inside if WRITERS.search(frame.f_code.co_filename) else None

    sys.settrace(enter)


def forked(
    work: Callable[[Callable[[], None]], None],
    *,
    dice: random.Random | None = None,
    lines: int = 0,
    seconds: float = SECONDS,
) -> int:
    """Do work in a child, killed at random if there are dice.

    Args:
        work: What to do; it is given a function to call at the first sign of life.
        dice: Choose the way and the moment of its end; None lets it live.
        lines: Of the code that writes: it may run so many.
        seconds: It may live so long, from its sign of life on.

    Returns:
        How the child ended, as `os.waitstatus_to_exitcode` says.
    """
    by_line = dice is not None and dice.random() < 0.5
    line = dice.randint(1, lines) if dice is not None else 0
    wait = dice.uniform(0, seconds) if dice is not None else 0.0
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            if by_line:
                die_at_line(line)
            work(lambda: os.close(writing))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    if dice is not None and not by_line:
        select.select([reading], [], [], 60)  # a sign of life, or its end
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    return os.waitstatus_to_exitcode(status)


class Alive(toys.Watched):
    """The toys' batches, which give a sign of life with the first."""

    def __init__(self, sign: Callable[[], None]) -> None:
        super().__init__(1, sign)


def leftovers(folder: Path) -> int:
    """How many temporary files of one file lie in a folder, at most."""
    found = (LEFT.match(path.name) for path in folder.iterdir())
    return max(Counter(match[1] for match in found if match).values(), default=0)


def training(folder: Path, dice: random.Random, kills: int) -> Counter[str]:
    """A run that is killed again and again, and resumed, ends as one that was left alone."""
    whole, told = folder / "whole", Counter[str]()
    model = toys.dynamic()  # each child has its own copy, as it is now

    def learn(place: Path, sign: Callable[[], None]) -> None:
        resume = (place / "checkpoint.safetensors").exists()
        batches, held = Alive(sign), toys.batches(train=False)
        train(model, batches, held, CONFIG, output=place, resume=resume, progress=False)
        save_pretrained(model, place / "model")

    began = time.monotonic()
    assert forked(lambda sign: learn(whole, sign)) == 0
    given = {"lines": LINES["training"], "seconds": 0.3 * (time.monotonic() - began)}
    runs, step = 0, 0
    while told["killed"] < kills:
        place = folder / str(runs)
        ended = forked(lambda sign, at=place: learn(at, sign), dice=dice, **given)
        if ended == 0:
            assert toys.untimed(place) == toys.untimed(whole)
            names = ["model/model.safetensors", "checkpoint.safetensors"]
            for name in names:
                ours, theirs = (load_tensors(at / name)[0] for at in (place, whole))
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
            assert not leftovers(place)
            runs, step = runs + 1, 0
            continue
        assert ended == -signal.SIGKILL, f"it ended with {ended}"
        told["killed"] += 1
        told["leftovers"] = max(told["leftovers"], leftovers(place) if place.exists() else 0)
        path = place / "checkpoint.safetensors"
        if path.exists():
            tensors, state = load_tensors(path)
            assert state["step"] % 8 == 0 and state["step"] >= step, (state["step"], step)
            assert len(state["history"]) == state["step"] // 8
            step = state["step"]
            told["checkpoints"] += 1
        else:
            assert step == 0, "a checkpoint was lost"
    told["finished"] = runs
    return told


def networks(folder: Path, dice: random.Random, kills: int) -> Counter[str]:
    """A saved network is always one that was saved: its weights with its own settings."""
    place, told = folder / "net", Counter[str]()
    plain, seen = toys.dynamic(), 0

    def number(model: DynamicModel) -> int:
        values = {int(p.detach().flatten()[0]) for p in model.network.parameters()}
        r = {round(1000 * (1 - r)) for r in model.r.values()}
        assert len(values) == 1 and values == r, (values, r)
        return values.pop()

    def work(sign: Callable[[], None]) -> None:
        sign()
        for k in range(seen + 1, seen + 400):
            with torch.no_grad():
                for parameter in plain.network.parameters():
                    parameter.fill_(k % 900)
            plain.set_r(1 - (k % 900) / 1000)
            save_pretrained(plain, place)

    while told["killed"] < kills:
        ended = forked(work, dice=dice, lines=LINES["networks"])
        assert ended in (0, -signal.SIGKILL), f"it ended with {ended}"
        told["killed"] += ended != 0
        if not (place / "model.safetensors").exists():
            assert not seen, "a network was lost"
            continue
        loaded = from_pretrained(place, model=toys.Toy())
        assert isinstance(loaded, DynamicModel)
        seen = number(loaded)
        told["loaded"] += 1
        copy = read_json(place / "config.json") if (place / "config.json").exists() else None
        told["between"] += copy != load_metadata(place / "model.safetensors")
        told["leftovers"] = max(told["leftovers"], leftovers(place))
    save_pretrained(plain, place)
    assert sorted(os.listdir(place)) == ["config.json", "model.safetensors"]
    return told


def files(folder: Path, dice: random.Random, kills: int) -> Counter[str]:
    """Results, recordings and engine files are those of one write, and a later one each time."""
    told, seen = Counter[str](), 0
    record = synthetic.recording(images=40, shown=8)
    program = compile(toys.dynamic().eval(), engine="reference").program
    result, recorded, engine = folder / "a.json", folder / "a.safetensors", folder / "a.ftwt"

    def work(sign: Callable[[], None]) -> None:
        sign()
        for k in range(seen + 1, seen + 1000):
            write_json(result, {"k": k, "rows": [k] * 2000})
            replace(record, provenance={"k": k, "rows": [k] * 2000}).save(recorded)
            runtime.save(replace(program, notes={"k": k, "rows": [k] * 2000}), engine)

    while told["killed"] < kills:
        ended = forked(work, dice=dice, lines=LINES["files"])
        assert ended in (0, -signal.SIGKILL), f"it ended with {ended}"
        told["killed"] += ended != 0
        found = []
        if result.exists():
            found.append(read_json(result))
        if recorded.exists():
            loaded = Recording.load(recorded)
            assert np.array_equal(loaded.labels, record.labels)
            found.append(loaded.provenance)
        if engine.exists():
            found.append(dict(runtime.load(engine, engine="reference").program.notes))
        assert found or not seen, "a file was lost"
        for notes in found:
            assert notes["rows"] == [notes["k"]] * 2000 and notes["k"] >= seen
        order = [notes["k"] for notes in found]
        assert order == sorted(order, reverse=True) and (not order or order[0] - order[-1] <= 1)
        seen = order[-1] if len(order) == 3 else 0
        told["read"] += len(found)
        told["leftovers"] = max(told["leftovers"], leftovers(folder))
    write_json(result, {})
    assert not [path for path in folder.iterdir() if LEFT.match(path.name) and "json" in path.name]
    return told


def main(kind: str, kills: str, seed: str = "0") -> None:
    """Kill so often, and print what was seen."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = {"training": training, "networks": networks, "files": files}[kind]
        print(json.dumps(work(Path(folder), random.Random(int(seed)), int(kills))))


if __name__ == "__main__":
    main(*sys.argv[1:])
