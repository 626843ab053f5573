"""The tables of README and docs are what the result files say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = [
    *ROOT.glob("results/**/*.json"),
    *ROOT.glob("src/ftwt/shipped/networks/*/run.json"),
]


def write_tables(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = root / "tools" / "write_tables.py"
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
    )


def test_the_tables_are_those_of_the_result_files() -> None:
    told = write_tables(ROOT, "--check")
    assert (told.returncode, told.stdout.strip()) == (0, "up to date"), told.stdout + told.stderr


def test_a_number_typed_by_hand_is_found_and_undone(tmp_path: Path) -> None:
    pages = (ROOT / "README.md", *ROOT.glob("docs/*.md"))
    code = (ROOT / "tools/write_tables.py", *ROOT.glob("tools/tables/*.py"))
    for path in (*pages, *code, *ROOT.glob("benchmarks/*.sweep")):
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(path.read_text())
    for path in RESULTS:
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(path.read_text())
    page = tmp_path / "README.md"
    true = page.read_text()
    page.write_text(re.sub(r"\d\d\.\d%", "99.9%", true, count=1))
    assert page.read_text() != true
    told = write_tables(tmp_path, "--check")
    assert (told.returncode, told.stdout) == (1, "stale: README.md\n"), told.stderr
    write_tables(tmp_path)
    assert page.read_text() == true


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_result_file_says_where_it_comes_from(path: Path) -> None:
    result = json.loads(path.read_text())
    for made in [part["provenance"] for part in (result, result.get("shipped")) if part]:
        for key in ("command", "versions", "hardware", "date"):
            assert made[key]
        assert re.fullmatch(r"[0-9a-f]{40}", made["git"]["commit"])
        assert not any(Path(word).is_absolute() for word in made["command"].split())
