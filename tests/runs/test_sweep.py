"""Sweeps: which trainings, in which order, what is skipped, what a kill leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from ftwt import cli, recipes
from ftwt.runs.sweep import JOURNAL, Sweep, sweep_folder
from ftwt.runs.sweep_file import Line, read_sweep, read_vary, with_seeds
from ftwt.training.interrupts import Interrupted
from ftwt.training.lock import holder

SWEEPS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.sweep"))
HELPERS = str(Path(__file__).parents[1] / "helpers")
FAKE = """
import json, pathlib, sys, time
words = sys.argv[1:]
place = pathlib.Path(words[words.index("--output") + 1])
resume = "--resume" in words
place.mkdir(parents=True, exist_ok=True)
(place / "settings.json").write_text(json.dumps({"train": {"epochs": 2}}))
print(*words, flush=True)
if "--fail" in words:
    sys.exit("it does not work")
for name in [w for w in words if w.startswith("runs/") and w != str(place)]:
    assert (pathlib.Path(name) / "run.json").exists(), name
done = 1 if resume else 0
for epoch in range(done, 2):
    time.sleep(0.1)
    with open(place / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "epoch", "epoch": epoch + 1}) + "\\n")
    (place / "checkpoint.safetensors").write_text("")
    if "--slow" in words and not resume:
        time.sleep(60)
(place / "run.json").write_text(json.dumps({"training": {"seconds": 0.2}}))
"""


def written(text: str) -> Path:
    path = Path("sweep.txt")
    path.write_text(textwrap.dedent(text))
    return path


def sweep(text: str, vary: Any = None, **options: Any) -> Sweep:
    path = written(text)
    Path("fake.py").write_text(FAKE)
    fake = (sys.executable, str(Path("fake.py").resolve()))
    return Sweep(read_sweep(path, vary), sweep_folder(path), command=fake, **options)


def events(made: Sweep) -> list[tuple[str, str]]:
    lines = (made.folder / JOURNAL).read_text().splitlines()
    return [(told["event"], told["run"]) for told in map(json.loads, lines)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_lines_are_read_with_what_they_wait_for() -> None:
    path = written("""
        # the twin stands before its run
        train b --twin-of runs/pruned --output runs/twin
        ftwt train 'a' --weights=runs/base/ --output=runs/pruned   # from the baseline
        train base --lr 0.1 --output runs/base
        train c
    """)
    assert read_sweep(path) == (
        Line("base", ("--lr", "0.1"), "runs/base"),
        Line("a", ("--weights=runs/base",), "runs/pruned", ("runs/base",)),
        Line("b", ("--twin-of", "runs/pruned"), "runs/twin", ("runs/pruned",)),
        Line("c", (), "runs/c"),
    )


def test_the_order_of_the_file_is_kept_where_nothing_waits() -> None:
    text = "train base --output a\ntrain x --weights a --output b\ntrain other --output c"
    assert [line.output for line in read_sweep(written(text))] == ["a", "b", "c"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_each_training_of_our_own_sweeps_is_one(path: Path) -> None:
    lines = read_sweep(path)
    written_down = [text for text in path.read_text().splitlines() if text.startswith("train")]
    assert [line.recipe for line in lines] == [text.split()[1] for text in written_down]
    for line in lines:
        config = cli.parse("train", [line.recipe, *line.flags]).run  # type: ignore[attr-defined]
        assert line.recipe in recipes.names() and config.train.precision == "fp32"
        if re.search(r"-r\d+-", line.recipe):  # the paper's short schedule
            assert (config.train.lr, config.train.predictor_lr) == (0.001, 0.1)
            drops = [round(drop * config.train.epochs) for drop in config.train.milestones]
            assert (config.train.epochs, drops) == (50, [29, 39, 49])
        assert {config.weights, config.twin_of} - {None, "pretrained"} == set(line.after)


def test_flags_are_varied_in_every_combination_and_each_reads_its_own() -> None:
    path = written("""
        train base --output runs/base
        train a --weights runs/base --output runs/a
    """)
    lines = read_sweep(path, with_seeds(read_vary(["r=0.8,0.9"]), 2))
    assert len(lines) == 8
    found = {line.output: line for line in lines}
    one = found["runs/a-r0.9-seed1"]
    assert one.flags == ("--weights", "runs/base-r0.9-seed1", "--r", "0.9", "--seed", "1")
    assert one.after == ("runs/base-r0.9-seed1",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sweep.txt has no training; give lines such as"),
        ("evaluate x", "line 1 begins with 'evaluate'; a sweep has lines of `train RECIPE"),
        ("train --lr 1", "line 1: the recipe comes first"),
        ("train a 'b", "line 1: No closing quotation"),
        ("train a --output", "line 1: --output needs a folder"),
        ("train a --resume", "line 1: leave --resume out"),
        ("train a\ntrain a", "line 2 has the folder of line 1, runs/a"),
        (
            "train a --weights runs/b\ntrain b --weights runs/a",
            "these wait for one another: runs/a, runs/b",
        ),
    ],
)
def test_what_is_no_sweep_is_told_by_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sweep(written(text))


def test_a_folder_with_a_slash_is_the_same_folder() -> None:
    text = "train base --output runs/a/\ntrain b --weights runs/a/ --output=runs/b/"
    first, second = read_sweep(written(text), {"seed": ["0"]})
    assert (first.output, second.output) == ("runs/a-seed0", "runs/b-seed0")
    assert second.after == ("runs/a-seed0",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "seed=0,0"], "gives two trainings one folder"),
        (["--set", "r"], "--set r: give a flag and its values, such as r=0.8,0.9"),
        (["--set", "r=1", "r=2"], "--set r=2: r comes twice"),
        (["--set", "rank=4", "--seeds", "0"], "--seeds 0: give 1 or more"),
        (["--set", "epoch=4"], "ftwt train has no --epoch; .*epochs"),
        (["--set", "lr=0.1,0.2"], "line 1 has --lr already, which is to be varied"),
        (["--pause", "--status"], "give one of them"),
        (["--at-once", "0"], "at_once=0: give 1 or more"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: list[str], message: str, capsys: Any) -> None:
    assert cli.main(["sweep", str(written("train a --lr 0.1")), *arguments]) == 1
    assert (told := capsys.readouterr()).out == ""
    assert re.search(message, told.err), told.err


def test_settings_of_a_fixed_mask_can_be_varied(capsys: Any) -> None:
    """They are flags of `ftwt train`, though no other configuration has them."""
    text = "train cifar10-resnet20-fixed-40 --output runs/a"
    arguments = ["--set", "mask-reduction=0.3,0.4", "--status", "--json"]
    assert cli.main(["sweep", str(written(text)), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [line["output"] for line in told["lines"]] == [
        "runs/a-reduction0.3", "runs/a-reduction0.4"
    ]  # fmt: skip


def test_each_is_trained_once_after_what_it_reads(capfd: Any) -> None:
    made = sweep(
        """
        train a --weights runs/base --output runs/a
        train base --output runs/base
        train b --output runs/b
        """,
        at_once=2,
    )
    found = made.run()
    assert [line.state for line in found.lines] == ["done"] * 3 and found.seconds_left == 0
    assert events(made)[:3] == [("sweep", ""), ("start", "runs/base"), ("start", "runs/b")]
    assert {run for event, run in events(made) if event == "done"} == {
        "runs/a",
        "runs/b",
        "runs/base",
    }
    assert "train base --output runs/base" in (made.folder / "base.log").read_text()
    before = len(events(made))
    assert made.run().count("done") == 3
    assert events(made)[before:] == [("sweep", "")]  # all had their result
    assert capfd.readouterr().out == ""


def test_one_that_fails_holds_up_only_what_reads_it_and_is_tried_again() -> None:
    text = """
        train a --fail --output runs/a
        train b --weights runs/a --output runs/b
        train c --output runs/c
    """
    made = sweep(text)
    states = {line.output: line.state for line in made.run().lines}
    assert states == {"runs/a": "failed", "runs/b": "failed", "runs/c": "done"}
    assert "it does not work" in (made.folder / "a.log").read_text()
    assert ("failed", "runs/a") in events(made)
    again = sweep(text.replace("--fail ", ""))
    assert again.status().lines[0].state == "failed"  # when it was last tried
    assert again.run().count("done") == 3


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_stops_the_trainings_and_the_next_sweep_goes_on() -> None:
    made = sweep("train a --slow --output runs/a")

    stopper = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time, pathlib\n"
            "while not pathlib.Path('runs/a/checkpoint.safetensors').exists(): time.sleep(0.05)\n"
            "os.kill(int(sys.argv[1]), 2)",
            str(os.getpid()),
        ]
    )
    with pytest.raises(Interrupted, match="1 of 1 have no result yet. Start the sweep again"):
        made.run()
    assert stopper.wait() == 0
    assert events(made)[-1] == ("stopped", "runs/a")
    status = made.status().lines[0]
    assert (status.epoch, status.epochs) == (1, 2)
    again = sweep("train a --slow --output runs/a")
    assert again.run().count("done") == 1
    assert ("resume", "runs/a") in events(again)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_training_is_halted_and_let_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = written("train a --output runs/a\ntrain b --output runs/b")
    writes = "import time\nwhile not time.sleep(0.02): print('on', flush=True)"
    told = Path("told")
    with (
        told.open("wb") as out,
        subprocess.Popen([sys.executable, "-c", writes], stdout=out) as running,
    ):
        try:
            holders = {"runs/a": running.pid}
            monkeypatch.setattr("ftwt.runs.sweep.holder", lambda folder: holders.get(str(folder)))
            wait_for(lambda: told.stat().st_size > 0)
            assert cli.main(["sweep", str(path), "--pause"]) == 0
            assert "halted: runs/a" in capsys.readouterr().out
            time.sleep(0.1)
            before = told.stat().st_size
            time.sleep(0.3)
            assert told.stat().st_size == before
            assert cli.main(["sweep", str(path), "--go-on"]) == 0
            wait_for(lambda: told.stat().st_size > before)
        finally:
            running.kill()


REAL = """
import sys
from pathlib import Path
import tiny
from ftwt import cli, recipes
tiny.register(Path("."))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_sweep_that_is_killed_loses_nothing(capsys: Any) -> None:
    """Killed with -9, alone and with its training; halted, and let go on."""
    recipe = "cifar10-resnet20-short --model cifar10-tiny --epochs 6 --batch-size 160 --r 0.7"
    path = written(f"train {recipe} {' '.join(tiny.DATA)} --output runs/a")
    Path("real.py").write_text(REAL)
    command = (sys.executable, str(Path("real.py").resolve()))
    environment = os.environ | {"PYTHONPATH": HELPERS}
    code = (
        "import sys; from ftwt.runs.sweep import *; from ftwt.runs.sweep_file import *; "
        f"Sweep(read_sweep({str(path)!r}), sweep_folder({str(path)!r}), "
        f"command={command!r}).run()"
    )

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code], env=environment)

    first = begin()
    wait_for(lambda: Path("runs/a/checkpoint.safetensors").exists())
    assert cli.main(["sweep", str(path), "--pause"]) == 0
    assert "halted: runs/a" in capsys.readouterr().out
    pid = int(Path("runs/a/.lock").read_text())
    before = Path("runs/a/metrics.jsonl").read_bytes()
    time.sleep(0.5)
    assert Path("runs/a/metrics.jsonl").read_bytes() == before
    first.kill()
    first.wait()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: holder("runs/a") is None)
    assert cli.main(["sweep", str(path), "--status", "--json"]) == 0
    [line] = json.loads(capsys.readouterr().out)["lines"]
    assert line["state"] == "ready" and 1 <= line["epoch"] < line["epochs"] == 6

    assert begin().wait() == 0
    run = json.loads(Path("runs/a/run.json").read_text())
    assert [epoch["epoch"] for epoch in run["training"]["history"]] == [1, 2, 3, 4, 5, 6]
    made = Sweep(read_sweep(path), sweep_folder(path))
    assert [event for event, _ in events(made)] == ["sweep", "start", "sweep", "resume", "done"]
    assert cli.main(["sweep", str(path)]) == 0
    told = capsys.readouterr().out
    assert "1 of 1 are done" in told and "ftwt report runs/a" in told
