"""The demo: one pruning on the images in the package, which ends with a page."""

import importlib.util
import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from test_report_page import Parsed

import tiny
from ftwt import cli
from ftwt.files.json import read_json
from ftwt.report import read
from ftwt.verbs import prune

ENGINE = () if importlib.util.find_spec("ftwt.runtime._native") else ("--engine", "reference")


def printed(*flags: str) -> str:
    """What a demo prints."""
    with redirect_stdout(io.StringIO()) as output:
        assert cli.main(["demo", "--reduction", "0.25", *flags, *ENGINE]) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a demo of the tiny network prints, which leaves its files in `runs/demo`."""
    home = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(home, patch)
        patch.chdir(home)
        patch.setattr(prune, "DEMO", tiny.NAME)
        yield printed()


def test_the_demo_tells_keeps_and_shows_its_figures(told: str) -> None:
    values = read_json("runs/demo/prune.json")
    assert values["pruned"]["asked"] == 0.25 and values["network"] == tiny.NAME
    kinds = {"dense", "static", "dynamic", "second-look"}
    assert kinds <= set(values["test"]) <= kinds | {"mixed"}
    assert {one["images"] for one in values["test"].values()} == {1000}
    table = told.split(f"{tiny.NAME} on 1,000 test images")[1]
    for kind, found in values["test"].items():
        assert f"{found['top1']:.1%}" in table
        assert kind in table
    names = [timing["name"] for timing in values["latency"]["timings"]]
    assert {"ftwt dense", "ftwt gated"} <= set(names) and len(names) >= 3
    assert "page, to open in a browser: runs/demo/index.html" in told

    page = Parsed(Path("runs/demo/index.html").read_text(encoding="utf-8"))
    chosen = values["pruned"]["kind"]
    others = [
        found["top1"] for kind, found in values["test"].items() if kind not in (chosen, "dense")
    ]
    opening = page.words.split(f"{tiny.NAME}: accuracy against reduction")[0]
    for share in (values["test"]["dense"]["top1"], values["test"][chosen]["top1"]):
        assert f"{100 * share:.1f}%" in opening
    assert f"{100 * max(others):.1f}%" in opening and "repaired alike" in opening
    figures = {f"accuracy-{tiny.NAME}", f"latency-{tiny.NAME}-threads1", "work", "classes"}
    figures |= set() if chosen == "second-look" else {"keep", "core"}  # a second look has no gates
    assert {figure.removesuffix("-demo") for figure in page.figures} == figures
    for explorer in page.data()["explorer"]:  # of gates
        assert len(explorer["shown"]) == 64 and explorer["images"] == 1000


def test_the_report_reads_what_the_demo_leaves(told: str, tmp_path: Path) -> None:
    values = read_json("runs/demo/prune.json")
    found = read("runs/demo")
    [one] = found.pruned
    assert one.network == tiny.NAME and one.test.top1 == values["test"][one.kind]["top1"]
    assert one.recording_path is not None and one.recording() is not None
    assert [file.result for file in found.benchmarks] == [one.latency]
    timed = {t["name"]: t["latency_ms"] for t in values["latency"]["timings"]}
    assert one.latency_ms["dense"] == timed["ftwt dense"]
    assert one.latency_ms[one.kind] == timed["ftwt gated"]
    del values["test"][one.kind]
    (tmp_path / "broken.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="the evaluation of the network that was chosen"):
        read(tmp_path / "broken.json")


@pytest.mark.slow
def test_the_demo_gives_the_same_figures_again(told: str) -> None:
    assert json.loads(printed("--output", "again", "--json")) == read_json("again/prune.json")
    results = []
    for made in (read_json("runs/demo/prune.json"), read_json("again/prune.json")):
        results.append({k: v for k, v in made.items() if k not in ("latency", "provenance")})
        for name in ("provenance", "dense_ms", "kind", "why"):  # time has a say in the choice
            del results[-1]["pruned"][name]
        del results[-1]["engine_top1"]
        for candidate in results[-1]["pruned"]["candidates"]:
            candidate.pop("latency_ms")
    assert results[0] == results[1]


@pytest.mark.slow
def test_the_budget_is_kept_on_the_shipped_network(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["demo", "--output", str(tmp_path / "demo"), "--json"]) == 0
    test = json.loads(capsys.readouterr().out)["test"]
    dense = test["dense"]["top1"]
    lost = {kind: dense - found["top1"] for kind, found in test.items() if kind != "dense"}
    assert dense > 0.91 and lost.keys() == {"static", "dynamic", "mixed", "second-look"}
    for kind in lost:
        assert test[kind]["reduction"] == pytest.approx(0.3, abs=0.02)
    assert min(lost.values()) < 0.016 and lost["dynamic"] < 0.026 and max(lost.values()) < 0.03
