"""Results: where they come from is recorded, and files are whole or as they were."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.table import Table

from ftwt.files.atomic import replacing, sweep
from ftwt.files.json import read_json, write_json
from ftwt.files.provenance import Start, command_line, provenance
from ftwt.files.tables import Shown


@dataclass(frozen=True)
class Figures:
    top1: float
    units: tuple[int, ...]


def test_provenance_says_how_to_repeat_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/bin/ftwt", "train", "--output", "runs/a"])
    start = Start()
    start.at -= 1.5
    origin = json.loads(json.dumps(provenance(config={"lr": 0.1}, seed=3, since=start)))
    assert origin["command"] == "ftwt train --output runs/a"
    assert origin["config"] == {"lr": 0.1}
    assert origin["seed"] == 3 and 1.5 <= origin["duration_s"] < 10
    start.commit = {"commit": "of the start", "dirty": False}
    assert provenance(since=start)["git"]["commit"] == "of the start"
    assert origin["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert all(origin["versions"].values())
    assert origin["hardware"]["cpu"] and origin["hardware"]["cores"] >= 1
    assert origin["date"].endswith("+00:00")
    assert origin["git"] is None or len(origin["git"]["commit"]) == 40


def test_command_line_has_no_absolute_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getcwd()
    argv = ["/x/ftwt", f"{here}/runs/a", f"--root={here}/data", "--lr=0.1"]
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == "ftwt runs/a --root=data --lr=0.1"


def test_write_then_read(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", Figures(0.5, (1, 2)))
    assert read_json(tmp_path / "new" / "a.json") == {"top1": 0.5, "units": [1, 2]}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"new": float("nan")})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_no_write_permission_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*a\.json.*get write permission"):
        write_json(tmp_path / "a.json", {})


def test_a_full_disk_is_a_clear_error_and_the_old_file_survives(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from ftwt.files.json import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_json(sys.argv[1], {"new": "x" * 5000})
except OSError as error:
    print(error)
"""
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout and "unharmed" in done.stdout
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_is_not_json_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"trunca')
    with pytest.raises(ValueError, match="not a JSON file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', "[NaN]", "[1e999]", f"[1{'0' * 400}]", "[" * 9000, r'["\ud800"]'],
)
def test_json_that_was_never_written_here_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json is not a JSON file .*; write it again"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(r'["\ud83d\ude00", 4611686018427387904, -1.5e300]')
    assert read_json(tmp_path / "a.json") == ["😀", 2**62, -1.5e300]


def test_what_killed_processes_left_is_swept_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    left = [tmp_path / name for name in (".a.json.1.2.tmp", ".b.json.1.2.tmp")]
    for one in left:
        one.write_text("{")
    with replacing(path) as temporary:
        assert [one.exists() for one in left] == [False, True]
        sweep(tmp_path)
        assert temporary.exists() and not left[1].exists()
        write_json(other, {})
        temporary.write_text("{}")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*given: int) -> None:
        monkeypatch.undo()
        sweep(tmp_path)
        fcntl.flock(*given)

    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(tmp_path / "a.json") as temporary:
        sweep(tmp_path)
        temporary.write_text("{}", encoding="utf-8")
        sweep(tmp_path)
    assert read_json(tmp_path / "a.json") == {}


def test_notebooks_show_a_result_as_html_tables() -> None:
    class Part(Shown):
        def __rich_console__(self, console, options):
            table = Table("", title="[bold]a & b[/bold]", show_header=False)
            table.add_column(justify="right")
            table.add_row("x < y", "3")
            yield table

    class Whole(Shown):
        def __rich_console__(self, console, options):
            yield Part()
            table = Table("unit")
            table.add_column("filters", justify="right")
            table.add_row("[i]conv[/i]", "16")  # a name, no markup
            yield table
            yield "reduction: 30%"

    left, right = '<td style="text-align: left">', '<td style="text-align: right">'
    head = '<th style="text-align: left">unit</th><th style="text-align: right">filters</th>'
    assert Whole()._repr_html_().split("\n") == [
        "<table><caption>[bold]a &amp; b[/bold]</caption>",
        f"<tbody><tr>{left}x &lt; y</td>{right}3</td></tr></tbody></table>",
        "<table>",
        f"<thead><tr>{head}</tr></thead>",
        f"<tbody><tr>{left}[i]conv[/i]</td>{right}16</td></tr></tbody></table>",
        "<p>reduction: 30%</p>",
    ]


def test_all_results_show_themselves_so() -> None:
    from ftwt import Benchmark, Estimate, Evaluation, Recording
    from ftwt.runs.run import RunResult

    for kind in (Benchmark, Estimate, Evaluation, Recording, RunResult):
        assert issubclass(kind, Shown) and "_repr_html_" not in vars(kind)
        assert "__rich_console__" in vars(kind)


def test_a_result_prints_as_its_tables():
    class Result(Shown):
        def __rich_console__(self, console, options):
            table = Table("unit", title="[odd]")
            table.add_row("conv1")
            yield table

    text = str(Result())
    assert "conv1" in text and "unit" in text and "\x1b" not in text and not text.endswith("\n")
