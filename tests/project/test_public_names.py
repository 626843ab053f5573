"""Public names: imported late, and the same whatever was imported before."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ftwt

SOURCE = Path(ftwt.__file__).read_text(encoding="utf-8")
DECLARED = {  # name -> home, for type checkers
    alias.asname: found.module or alias.name
    for found in ast.walk(ast.parse(SOURCE))
    if isinstance(found, ast.ImportFrom) and found.level
    for alias in found.names
}
NUMPY_ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {"ftwt", "numpy"} | sys.stdlib_module_names and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    return output.stdout.strip()


def test_names_are_those_that_type_checkers_see():
    assert DECLARED == {**{name: name for name in ftwt._MODULES}, **ftwt._HOMES}
    assert dir(ftwt) == sorted(DECLARED)


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_a_name_is_what_its_home_says(name):
    home = import_module(f"ftwt.{DECLARED[name]}")
    assert getattr(ftwt, name) is (home if name in ftwt._MODULES else getattr(home, name))


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="module 'ftwt' has no attribute 'nothing'"):
        ftwt.nothing  # noqa: B018
    assert not hasattr(ftwt, "__all__")


def test_a_name_can_be_replaced_and_put_back(monkeypatch):
    evaluate = ftwt.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(ftwt, "evaluate", print)
        assert ftwt.evaluate is print
    assert ftwt.evaluate is evaluate


def test_the_runtime_needs_numpy_alone():
    run(NUMPY_ALONE + "import ftwt.runtime.program")
    run(NUMPY_ALONE + "from ftwt import runtime; import ftwt; ftwt.runtime; dir(ftwt)")


@pytest.mark.parametrize("use", ["ftwt.convert", "from ftwt import convert"])
def test_the_rest_says_what_is_missing(use):
    said = run(f"""{NUMPY_ALONE}
import ftwt
try:
    {use}
except ImportError as error:
    print(error, error.name)
""")
    assert said.startswith("ftwt.convert needs torch, which is not installed: ")
    assert said.endswith("ftwt.runtime, which needs numpy alone torch")
