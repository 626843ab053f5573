"""Names as they are: no markup in them, nothing that steers a terminal, no formulas in sheets."""

import csv
import io
from pathlib import Path

import pytest
from rich.table import Table

from ftwt import cli
from ftwt.files.console import PlainConsole
from ftwt.files.text import one_line, printable
from ftwt.report.plots.save import to_csv

NAMES = ["[/]", "a[red]b", "[bold]", ":smile:", "\\[x]", "[link=http://x]y", "$\\frac{", "a=b"]
FAKING = "x\nftwt evaluate: top-1 99.9%"
STEERING = ["\x1b[2J", "a\x1b]0;title\x07", "\x9b31m", "a\rb", "a\bb", "\u202egnp"]


def shown(value: object) -> str:
    console = PlainConsole(width=100, file=io.StringIO(), color_system=None)
    console.print(value)
    return console.file.getvalue()


def table(name: str) -> Table:
    listed = Table(name, title=name)
    listed.add_row(name)
    return listed


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str) -> None:
    assert name in shown(f"all of it: {name}")
    assert shown(table(name)).count(name) == 3


@pytest.mark.parametrize("name", STEERING)
def test_nothing_that_steers_a_terminal_reaches_it(name: str) -> None:
    for text in (shown(name), shown(table(name)), printable(name)):
        assert all(c.isprintable() or c == "\n" for c in text)


def test_no_name_begins_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / FAKING)]) == 1
    cli._show([f"all of it: {FAKING}", table(FAKING)])
    said = capsys.readouterr()
    for text in (said.out, said.err, shown(FAKING), shown(table(FAKING)), one_line(FAKING)):
        lines = [line.strip(" \u2502\u2503") for line in text.splitlines()]
        assert any("x ftwt evaluate" in line for line in lines)
        assert not any(line.startswith("ftwt evaluate") for line in lines)


@pytest.mark.parametrize("name", ["runs/[/]", "runs/a[red]b", "runs/\x1b[2J"])
def test_an_odd_folder_is_no_trouble_to_the_command_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path / name)]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said and name.split("\x1b")[0] in said
    cli._show([f"all of it: {name}", table(name)])
    said = capsys.readouterr().out
    assert "\x1b" not in said and printable(name) in said


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+cmd", "@SUM(A1)", "\t=1"])
def test_no_cell_of_text_is_a_formula(name: str) -> None:
    text = to_csv([{"network": name, "saved": -0.5, "n": None}])
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row == {"network": f"'{name}", "saved": "-0.5", "n": ""}
    assert to_csv([{"network": "\r=1"}]) == "network\n?=1\n"
    assert to_csv([{name: 1}]).lstrip('"').startswith("'")
