"""What ftwt is made of: dependencies named, pinned and licensed; nothing executed, nothing sent."""

import ast
import importlib.metadata
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import synthetic
import toys
from ftwt import Recording, compile, from_pretrained, runtime, save_pretrained

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
BUILD = [*PROJECT["build-system"]["requires"], "cmake", "ninja"]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software Foundation|MPL|Mozilla Public|ISC|Zlib|CC0|BSL-1\.0"
)
EXECUTES = {"eval", "exec", "__import__"}
REACHES = {"socket", "http", "urllib", "requests", "httpx", "ftplib", "smtplib", "ssl"}
MAY_REACH = {"files/download.py", "models/vision.py"}  # downloads; names an error


def name_of(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 for pin in found), "pin each package by =="
    return {name_of(package): version.strip() for package, version in found}


def direct() -> dict[str, set[str]]:
    """Each dependency of the package -> the extras that it is of; `always` for no extra."""
    found: dict[str, set[str]] = {}
    extras = {"always": PROJECT["project"]["dependencies"]}
    extras |= PROJECT["project"]["optional-dependencies"]
    for extra, requirements in extras.items():
        for requirement in map(Requirement, requirements):
            if name_of(requirement.name) != "ftwt":
                found.setdefault(name_of(requirement.name), set()).add(extra)
    return found


def installed() -> dict[str, importlib.metadata.Distribution]:
    """All that the package, its extras and its build need, and what these need in turn."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = [*PROJECT["project"]["dependencies"], *sum(extras, []), *BUILD]
    todo, found = [*map(Requirement, asked)], {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        requirement = todo.pop()
        package, wanted = name_of(requirement.name), tuple(sorted(requirement.extras))
        if package == "ftwt" or (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        try:
            found[package] = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed: pip install -c constraints.txt -e '.[dev]'")
        for needed in map(Requirement, found[package].requires or ()):
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": one}) for one in ("", *wanted)):
                todo.append(needed)
    return found


def test_each_dependency_is_named_with_its_extras_and_a_reason() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)
    told = {
        name_of(package): {one.strip(" `") for one in of.split(",")}
        for package, of, why in rows
        if why.strip() and package not in ("package", "library")
    }
    assert {name: of for name, of in told.items() if name in direct()} == direct()


def test_the_pins_are_what_is_installed_and_needed_no_more_no_less() -> None:
    found = {name: one.version.split("+")[0] for name, one in installed().items()}
    other = sys.platform != "linux" or sys.version_info[:2] != (3, 11)
    if other:  # elsewhere some of these are not needed, or others are
        found = {name: version for name, version in found.items() if name in pins()}
        assert found.items() <= pins().items()
    else:
        assert found == pins()


def test_versions_agree() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("no pip here")
    assert done.returncode == 0, done.stdout


def test_licences_are_permissive() -> None:
    for name, one in installed().items():
        data: Any = one.metadata
        classifiers = [c for c in data.get_all("Classifier") or [] if c.startswith("License ::")]
        told = data.get("License-Expression") or "; ".join(classifiers) or data.get("License") or ""
        assert PERMISSIVE.search(told), f"{name}: {told[:80]}"
        assert not re.search(r"\bA?L?GPL", told), f"{name}: {told[:80]}"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_executes_what_it_reads_or_reaches_out(path: Path) -> None:
    here = path.relative_to(ROOT / "src" / "ftwt").as_posix()
    for name, node in calls(path):
        assert name not in EXECUTES, f"line {node.lineno}"
        assert not re.match(r"yaml\.|os\.(system|popen|exec)", name), name
        if name == "torch.load":  # state dicts of other programs: tensors, nothing that is executed
            given = {key.arg: ast.unparse(key.value) for key in node.keywords}
            assert here == "files/tensors.py" and given.get("weights_only") == "True"
        assert not re.match(r"(ov|openvino)\.convert_model", name), "it reports its use to Intel"
        assert "shell" not in {key.arg for key in node.keywords}
        # One asks git for the commit, one starts `ftwt train`.
        starts = ("files/provenance.py", "runs/sweep.py")
        assert not re.match(r"subprocess\.\w", name) or here in starts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        tops = {name.split(".")[0] for name in names}
        assert here in MAY_REACH or not tops & REACHES, f"line {node.lineno}"  # type: ignore[attr-defined]


def test_the_rules_find_what_they_forbid(tmp_path: Path) -> None:
    for line in ("eval('1')", "torch.load('x')", "import socket", "from urllib import request",
                 "yaml.safe_load('')", "ov.convert_model(x)", "subprocess.run('x')"):  # fmt: skip
        path = ROOT / "src" / "ftwt" / "no-such-file.py"
        fake = type("Fake", (), {"read_text": lambda self, encoding, line=line: line})()
        fake.relative_to = path.relative_to
        with pytest.raises(AssertionError):
            test_no_source_executes_what_it_reads_or_reaches_out(fake)


def test_files_hold_tensors_and_json_and_loading_unpickles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toys.dynamic()
    toys.fit(model, output=tmp_path / "run")
    save_pretrained(model, tmp_path / "net")
    synthetic.recording(images=20, shown=4).save(tmp_path / "recording.safetensors")
    compile(model, engine="reference").save(tmp_path / "net.ftwt")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    from_pretrained(tmp_path / "net", model=toys.Toy())
    Recording.load(tmp_path / "recording.safetensors")
    runtime.load(tmp_path / "net.ftwt", engine="reference")
    toys.fit(toys.dynamic(), output=tmp_path / "run", resume=True)
    monkeypatch.undo()

    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors", ".ftwt"}
    for path in files:
        content = path.read_bytes()
        if path.suffix in (".safetensors", ".ftwt"):  # a header of JSON, then numbers to the end
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])
            header.pop("__metadata__")
            ends = sorted(entry["data_offsets"] for entry in header.values())
            assert ends[0][0] == 0 and ends[-1][1] == len(content) - 8 - length
            assert all(a[1] == b[0] for a, b in zip(ends, ends[1:], strict=False))
        else:
            for line in content.decode().splitlines() if path.suffix == ".jsonl" else [content]:
                json.loads(line)


@pytest.mark.parametrize(("given", "wanted"), [({}, "1"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "0")])
def test_the_hub_is_told_nothing_of_the_user(given: dict[str, str], wanted: str) -> None:
    code = """
import os, ftwt
print(os.environ["HF_HUB_DISABLE_TELEMETRY"])
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers
print(constants.HF_HUB_DISABLE_TELEMETRY, "torch/" in build_hf_headers(token=False)["user-agent"])
"""
    keep = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_DISABLE_TELEMETRY",)}
    given = {**given, "DO_NOT_TRACK": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**keep, **given}
    )
    assert done.stdout.split() == [wanted, str(wanted == "1"), str(wanted == "0")], done.stderr
