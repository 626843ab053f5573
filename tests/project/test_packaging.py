"""The package as it is built: with a compiler, and without one."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = {
    path.relative_to(ROOT / "src").as_posix()
    for path in (ROOT / "src" / "ftwt").rglob("*")
    if path.is_file() and path.suffix not in {".pyc", ".so"}
}
USE = """
import sys
import numpy as np
import ftwt.runtime as runtime

gather = runtime.Gather(name="turn", xs=(0,), out=1, index="index")
index = np.arange(3, dtype=np.int32)[::-1].copy()
program = runtime.Program(((3, 1, 1),) * 2, (), (gather,), 1, {"index": index}, 0)
try:
    engine = runtime.Engine(program, engine=sys.argv[1])
except RuntimeError as error:
    print(error)
else:
    print(engine(np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)))
"""


def build(folder: Path, *, compiler: str | None = None) -> tuple[Path, set[str]]:
    """A wheel and the files in it."""
    pytest.importorskip("scikit_build_core")
    environment = {name: text for name, text in os.environ.items() if name not in ("CC", "CXX")}
    if compiler is not None:
        environment |= {"CC": compiler, "CXX": compiler}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w"]
    done = subprocess.run(
        [*command, str(folder), str(ROOT)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("*.whl")
    return wheel, set(zipfile.ZipFile(wheel).namelist())


def use(wheel: Path, engine: str) -> str:
    """What a program prints that has the wheel's files in place of the installed ones."""
    folder = wheel.with_suffix("")
    zipfile.ZipFile(wheel).extractall(folder)
    path = os.pathsep.join([str(folder), str(Path(numpy.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-S", "-c", USE, engine],  # -S leaves out the link to src/
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_versions_of_what_builds_are_pinned():
    pinned = re.findall(r"^(\S+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    needed = [re.split(r"[>=]", name)[0] for name in PROJECT["build-system"]["requires"]]
    assert {name.replace("-", "_") for name in needed} <= set(pinned)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(PIP) {' '.join(needed)} cmake ninja" in makefile


def test_wheels_are_built_for_each_python_with_the_native_engine():
    told = PROJECT["tool"]["cibuildwheel"]
    assert told["build"] == [f"cp3{minor}-manylinux_x86_64" for minor in (11, 12, 13)]
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert told["config-settings"] == {"wheel.cmake": "true"}
    assert told["environment"]["PIP_CONSTRAINT"].endswith("/constraints.txt")
    assert re.search(r"cibuildwheel==\d+\.\d+\.\d+\n", (ROOT / "Makefile").read_text("utf-8"))


def test_without_a_compiler_all_but_the_native_engine_is_there(tmp_path):
    wheel, files = build(tmp_path, compiler=str(tmp_path / "none"))
    assert {name for name in files if name.startswith("ftwt/")} == SOURCES
    assert "[[2. 1. 0.]]" in use(wheel, "reference")
    said = use(wheel, "native")
    assert "C++17 compiler (GCC 12 or Clang 15, or later)" in said
    assert "engine='reference'" in said


@pytest.mark.slow
def test_with_a_compiler_the_native_engine_is_there(tmp_path):
    wheel, files = build(tmp_path)
    [native] = {name for name in files if name.startswith("ftwt/")} - SOURCES
    assert native.startswith("ftwt/runtime/_native.")
    assert "[[2. 1. 0.]]" in use(wheel, "native")


def test_the_source_distribution_has_all_that_building_needs(tmp_path):
    backend = pytest.importorskip("scikit_build_core.build")
    code = f"from {backend.__name__} import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        files = {name.partition("/")[2] for name in tar.getnames()}
    native = {f"native/{path.name}" for path in (ROOT / "native").iterdir()}
    assert {f"src/{name}" for name in SOURCES} | native | {"pyproject.toml", "LICENSE"} <= files
