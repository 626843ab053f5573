"""The example's cells run, on a network and a schedule that take a moment."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import tiny
from ftwt import Calibration, Estimate, Recording
from ftwt.pruning.summary import Summary
from ftwt.runs.run import RunResult

EXAMPLES = Path(__file__).parents[2] / "examples"


def cells(source: str) -> list[str]:
    """The cells of code; the last expression of each is kept under the name `_`."""
    parts = re.split(r"^# %%(.*)$", source, flags=re.MULTILINE)
    return [code for kind, code in zip(parts[1::2], parts[2::2], strict=True) if not kind.strip()]


def shown(code: str, names: dict) -> object:
    """Run a cell as a notebook does: what its last line is worth is shown."""
    lines = code.strip().splitlines()
    last = lines[-1]
    if re.match(r"[\w.]+(\(.*\))?$", last) and not last.startswith("print"):
        exec("\n".join(lines[:-1]), names)
        return eval(last, names)
    exec(code, names)
    return None


def quick(example: str, **constants: str) -> str:
    """The source of an example, with other values for some of its constants."""
    source = (EXAMPLES / example).read_text(encoding="utf-8")
    for name, value in constants.items():
        source, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", source, flags=re.MULTILINE)
        assert count == 1
    return source


def test_the_quickstart_runs_cell_by_cell_and_shows_results_and_figures(tiny_home):
    source = quick("quickstart.py", MODEL=repr(tiny.NAME), EPOCHS="1")
    names: dict = {"__name__": "__main__"}
    values = [shown(code, names) for code in cells(source)]
    seen = [value for value in values if value is not None]
    for kind, count in ((Estimate, 1), (RunResult, 2), (Recording, 1), (Figure, 8)):
        assert sum(isinstance(value, kind) for value in seen) == count, kind
    for value in seen:
        if isinstance(value, Figure):
            assert value._repr_png_().startswith(b"\x89PNG")
        else:
            assert value._repr_html_().startswith("<table>")
    assert "run.json" in {path.name for path in Path("runs/quickstart").iterdir()}
    assert len(list(Path("runs/quickstart/figures").glob("*.pdf"))) >= 8


def test_a_loop_of_ones_own_prunes_a_network_with_two_outputs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    values = [shown(code, names) for code in cells(quick("segmentation.py", STEPS="6"))]
    for kind in (Estimate, Calibration, Summary):
        assert sum(isinstance(value, kind) for value in values) == 1, kind
    assert [unit.kind for unit in names["dynamic"].units].count("linear") == 2
    dense, dynamic = (names["found"][name] for name in ("dense", "dynamic"))
    assert dense.keys() | {"reduction"} == dynamic.keys() == {"pixels", "number", "reduction"}
    assert dynamic["reduction"] == pytest.approx(0.3, abs=0.1)  # calibrated on other images
    assert "reduction" in capsys.readouterr().out
    assert Path("runs/segmentation/model.safetensors").exists()
