"""The demo: the main job in one command, the same each time, which ends with the report."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report_page import Parsed

import tiny
from ftwt import cli
from ftwt.config import RunConfig
from ftwt.files.json import read_json
from ftwt.runs import demo

TIMES = (
    "dense_step_ms",
    "dynamic_step_ms",
    "dense_image_ms",
    "dynamic_image_ms",
    "seconds",
    "provenance",
)
MODEL = demo.MODEL


@pytest.fixture
def tiny_demo(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(demo, "MODEL", tiny.NAME)
    return tiny_home


def test_the_demo_tells_keeps_and_shows_its_figures(tiny_demo: Path, capsys: Any) -> None:
    assert cli.main(["demo", "--epochs", "1", "--reduction", "0.25"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"─ (\d)\. ", told) == ["1", "2", "3", "4", "5"]
    values = read_json("runs/demo/demo.json")
    assert values["asked"] == 0.25 and values["predicted"] == pytest.approx(0.25, abs=0.01)
    assert values["dense"]["images"] == values["dynamic"]["images"] == 1000
    assert values["dense"]["reduction"] == 0 < values["dynamic"]["reduction"]
    assert values["dense_step_ms"] > 0 and values["dynamic_step_ms"] > 0
    if importlib.util.find_spec("ftwt.runtime._native"):
        assert values["dense_image_ms"] > 0 and values["dynamic_image_ms"] > 0
        assert f"{values['dynamic_image_ms']:.2f} ms" in told
    for figure in (values["dense"]["top1"], values["dynamic"]["top1"], values["predicted"]):
        assert f"{figure:.1%}" in told.split("5. What came of it")[1]
    config = RunConfig.from_json(values["provenance"]["config"])
    assert config.prune is not None and config.prune.r == values["r"]
    assert config.train.epochs == 1 and config.train.target_reduction == 0.25

    page = Parsed(Path("runs/demo/index.html").read_text(encoding="utf-8"))
    assert "page, to open in a browser: runs/demo/index.html" in told
    for share in (values["dense"]["top1"], values["dynamic"]["top1"], values["predicted"]):
        assert f"{share:.1%}" in page.words.split("Accuracy against work saved")[0]
    drawn = page.data()
    assert {figure["id"].removesuffix("-demo") for figure in drawn["figures"]} == {
        f"accuracy-{tiny.NAME}",
        f"curve-{tiny.NAME}",
        "layers",
        "core-filters",
        "training",
        "classes",
        "work",
    }
    [layers] = [figure for figure in drawn["figures"] if figure["id"] == "layers-demo"]
    keeps = [unit["keep"] for unit in values["dynamic"]["units"]]
    assert layers["traces"][0]["y"] == pytest.approx(keeps)
    [explorer] = drawn["explorer"]
    assert len(explorer["shown"]) == 64 and explorer["images"] == 1000


def test_the_demo_gives_the_same_figures_again_and_as_json(tiny_demo: Path, capsys: Any) -> None:
    results = []
    for output in ("one", "two"):
        assert cli.main(["demo", "--epochs", "1", "--output", output, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result == read_json(f"{output}/demo.json")
        for epoch in result["history"]:
            del epoch["images_per_s"]
        results.append({key: value for key, value in result.items() if key not in TIMES})
    assert results[0] == results[1]


@pytest.mark.slow
def test_the_budget_is_kept_on_the_shipped_network(tmp_path: Path) -> None:
    result = demo.demo(reduction=0.3, epochs=4, output=tmp_path)
    assert result.dense.top1 > 0.88
    assert result.dynamic.reduction == pytest.approx(0.3, abs=0.02)
    assert result.dynamic.top1 > 0.7
