"""The programs in the documentation run, and print what the page says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import ftwt
from ftwt.data import subset
from ftwt.data.images import balanced

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FRAGMENT = r"(?<!<!-- fragment -->\n)"  # shows a form, and is not meant to be run
PROGRAM = re.compile(
    FRAGMENT + r"```python\n(.*?)```(?:\s*It prints\s*```text\n(.*?)```)?", re.DOTALL
)
PROGRAMS = [
    pytest.param(*found.groups(), id=f"{path.name}-{number}")
    for path in PAGES
    for number, found in enumerate(PROGRAM.finditer(path.read_text(encoding="utf-8")))
]


def few(*, train):
    """200 of the package's images: programs run in seconds."""
    images = subset.embedded(train=train)
    return images.select(balanced(images, count=200, seed=0))


@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_programs_print_what_the_page_says(program, printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    monkeypatch.setattr(ftwt.data, "embedded", few)
    if "ftwt.compile(" in program:
        pytest.importorskip("ftwt.runtime._native")
    if "import onnxruntime" in program:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program, "docs", "exec"), {"__name__": "docs"})
    if printed is not None:
        assert output.getvalue() == printed


def test_links_between_pages_lead_somewhere():
    for path in PAGES:
        for link, anchor in re.findall(r"\]\(([\w./-]+)?(#[\w-]+)?\)", path.read_text("utf-8")):
            target = path.parent / link if link else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor:
                text = target.read_text(encoding="utf-8")
                heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
                slugs = ["#" + re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads]
                assert anchor in slugs, f"{path.name}: {anchor} in {slugs}"


def test_the_reference_shows_every_public_name():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: ftwt\.([\w.]+)$", text, re.MULTILINE))
    assert {f"{home}.{name}" for name, home in ftwt._HOMES.items()} <= shown
    assert set(ftwt._MODULES) - {"recipes"} <= shown
