"""The house rules of docs/architecture.md, whose table of imports is the rule itself.

The source is read, not run.
"""

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ftwt

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "ftwt"
FILES = sorted(PACKAGE.rglob("*.py"))

RULE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = {  # room -> the rooms that the table names beside it
    here: set(re.findall(r"`(\w+)`", named))
    for here, named in re.findall(r"^\| `(\w+)` \| (.*) \|$", RULE, re.MULTILINE)
}
MOST_LOOSE = 6  # modules outside a room
TORCH_ALONE = ("pruning.method", "graph")
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
OPTIONAL = {
    "torchvision", "timm", "tensorboard", "matplotlib", "pandas", "onnx", "onnxruntime", "openvino",
}  # fmt: skip
MOST_LINES = {"pruning/method.py": 250}


class Import(NamedTuple):
    """An import statement's target."""

    module: str  # dotted; of a name imported from a package of ours, the submodule if it is one
    late: bool  # inside a function


def module_name(path: Path) -> str:
    parts = ("ftwt", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> Iterator[Import]:
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        late = id(node) in inside
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in MODULES else base, late)


def ours(path: Path) -> Iterator[Import]:
    yield from (found for found in imports(path) if found.module.split(".")[0] == "ftwt")


def allowed(here: str) -> set[str]:
    """All rooms that a room may import: those named beside it, and what they may."""
    return NAMED[here].union(*map(allowed, NAMED[here]))


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=relative)


def test_the_rule_has_layers_and_nothing_above_the_command_line():
    graphlib.TopologicalSorter(NAMED).prepare()
    assert NAMED["files"] == NAMED["graph"] == set()
    assert "training" in allowed("cli")
    users = {here for here, named in NAMED.items() if {"cli", "__init__"} & named}
    assert users == {"__main__"}
    assert NAMED.keys() == {room(name) for name in MODULES}


@each_file
def test_a_room_imports_only_what_lies_below_it(path):
    here = room(module_name(path))
    assert here in NAMED, f"a new room: give {here!r} a row in docs/architecture.md"
    for found in ours(path):
        below = allowed(here) | {here}
        assert room(found.module) in below, f"{here} must not import {found.module}"


def test_few_modules_stand_outside_a_room_and_none_is_called_as_a_public_function():
    loose = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(loose) <= MOST_LOOSE
    assert not set(dir(ftwt)) & {name.partition(".")[2] for name in MODULES} - set(ftwt._MODULES)


def test_no_module_imports_itself_in_a_circle():
    edges = {
        name: {found.module for found in ours(path) if not found.late} - {name}
        for name, path in MODULES.items()
    }
    order = list(graphlib.TopologicalSorter(edges).static_order())
    places = [
        order.index(f"ftwt.{name}")
        for name in ("pruning.method", "pruning.dynamic", "verbs.training")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("here", TORCH_ALONE)
def test_the_method_and_the_graph_need_torch_alone(here):
    found = {
        target.module.split(".")[0]
        for name, path in MODULES.items()
        if f"{name}.".startswith(f"ftwt.{here}.")
        for target in imports(path)
    }
    assert "torch" in found
    assert found - sys.stdlib_module_names - {"torch", "ftwt"} == set()


@each_file
def test_optional_packages_are_imported_late_and_pickle_never(path):
    for found in imports(path):
        top = found.module.split(".")[0]
        assert top not in FORBIDDEN
        assert found.late or top not in OPTIONAL
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {key.arg: ast.unparse(key.value) for key in node.keywords}
            call = ast.unparse(node.func)
            assert call != "torch.save", "torch.save pickles; use safetensors"
            assert call != "torch.load" or keywords.get("weights_only") == "True"
            assert keywords.get("allow_pickle") in (None, "False")


@each_file
def test_files_stay_short_and_are_named_for_what_they_hold(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES.get(relative(path), 400)
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


@each_file
def test_no_file_names_a_place_on_one_machine(path):
    strings = [
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    places = [text for text in strings if re.match(r"/\w|~/|[A-Za-z]:\\", text)]
    assert set(places) <= {  # of every Linux
        "/proc/cpuinfo",
        "/proc/self/task",
        "/proc/stat",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    }


def test_no_result_names_a_place_on_one_machine():
    for path in [*ROOT.glob("results/**/*.json"), *PACKAGE.glob("shipped/networks/*/*.json")]:
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")))
        assert not re.search(r'["\s=](/\w|~/|[A-Za-z]:\\)', text), path


@pytest.mark.parametrize(
    ("use", "loaded", "spared"),
    [
        ("import ftwt.runtime.program", {"numpy"}, {"torch", "safetensors", "rich"} | OPTIONAL),
        ("[getattr(ftwt, name) for name in dir(ftwt)]", {"torch"}, OPTIONAL),
    ],
)
def test_importing_is_light(use, loaded, spared):
    code = f"import sys, ftwt; {use}; print(*{{name.split('.')[0] for name in sys.modules}})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    found = set(output.stdout.split())
    assert loaded <= found
    assert found & spared == set()
