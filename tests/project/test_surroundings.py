"""Odd surroundings: no home to write to, no network, other alphabets, spaces, read-only folders.

Each command is a process of its own. Root may write anywhere, so read-only folders are only that
where the tests run as somebody else.
"""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ftwt
import tiny

HERE = Path(__file__).parents[1] / "helpers"
SITE = """
import socket, sys

class Refused(Exception):
    pass

def refuse(*arguments, **options):
    sys.stderr.write("CONNECTION " + repr(arguments) + "\\n")
    raise Refused(arguments)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
socket.create_connection = refuse
"""
RUN = """
import sys
from pathlib import Path
import tiny
tiny.register(Path({home!r}))
from ftwt.cli import main
sys.exit(main())
"""
TRAIN = ("train", tiny.NAME, *tiny.DATA, "--batch-size", "400", "--epochs", "1")


class Place:
    """A folder to work in, and the processes that run there.

    Args:
        home: Where the tiny network is known.
        folder: The working folder.
        environment: Variables that differ from this process's.
    """

    def __init__(self, home: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        (home / "site").mkdir(exist_ok=True)
        (home / "site" / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        (home / "run.py").write_text(RUN.format(home=str(home)), encoding="utf-8")
        self.script = home / "run.py"
        path = os.pathsep.join([str(home / "site"), str(HERE)])
        drop = ("LC_ALL", "LANG", "PYTHONIOENCODING", "PYTHONUTF8")
        own = {name: value for name, value in os.environ.items() if name not in drop}
        self.environment = own | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}

    def __call__(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, str(self.script), *arguments],
            capture_output=True,
            env=self.environment,
            cwd=self.folder,
            timeout=300,
        )
        told = done.stderr.decode(errors="replace")
        assert done.returncode == status, told
        assert "Traceback" not in told and "CONNECTION" not in told, told
        return done


def whole_way(place: Place, runs: Path, *, briefly: bool = False) -> None:
    """Train, evaluate, record, and unless briefly report, compile, and classify a photo."""
    run, page, net = runs / "run", runs / "page.html", runs / "net.ftwt"
    place(*TRAIN, "--output", str(run))
    told = place("evaluate", str(run), *tiny.DATA, "--record", "--json")
    assert 0 <= json.loads(told.stdout)["top1"] <= 1
    if briefly:
        return
    place("report", str(run), "--output", str(page))
    assert "</html>" in page.read_text(encoding="utf-8")
    kind = () if native() else ("--engine", "reference")
    place("compile", str(run), "--output", str(net), *kind)
    photo = runs / "photo.png"
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(photo)
    assert b"%" in place("run", str(net), str(photo), *kind).stdout
    assert not [path for path in runs.rglob("*.tmp")]


def native() -> bool:
    try:
        import ftwt.runtime._native  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Where the tiny network is known; all in it can be removed afterwards."""
    yield tmp_path
    for folder, _, _ in os.walk(tmp_path):
        os.chmod(folder, stat.S_IRWXU)


def locked(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    return str(folder)


def odd(home: Path, kind: str) -> tuple[Path, dict[str, str]]:
    """A working folder, and variables."""
    nowhere = "/dev/null/nowhere"  # that nobody can write to, root neither
    caches = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME", "HF_HOME", "MPLCONFIGDIR")
    work = home / "work"
    if kind == "read-only home":
        read_only = locked(home / "home")
        return work, {"HOME": read_only, **dict.fromkeys(caches, read_only)}
    if kind == "no home":
        return work, {"HOME": nowhere, **dict.fromkeys(caches, nowhere)}
    if kind == "ascii":
        return work, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii",
                      "PYTHONCOERCECLOCALE": "0"}  # fmt: skip
    if kind == "latin-1":
        return work, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1",
                      "PYTHONCOERCECLOCALE": "0"}  # fmt: skip
    if kind == "spaces":
        return home / "my wörk ‒ 仕事 [x] 100%", {}
    if kind == "no temporary folder":
        return work, {"TMPDIR": nowhere, "TMP": nowhere, "TEMP": nowhere}
    assert kind == "read-only working folder"
    return work, {}


SLOW = pytest.mark.slow
KINDS = [
    pytest.param("ascii", marks=SLOW),
    pytest.param("read-only home", marks=SLOW),
    pytest.param("no home", marks=SLOW),
    pytest.param("latin-1", marks=SLOW),
    pytest.param("spaces", marks=SLOW),
    pytest.param("no temporary folder", marks=SLOW),
    pytest.param("read-only working folder", marks=SLOW),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way_needs_no_network_and_no_particular_place(kind: str, home: Path) -> None:
    work, variables = odd(home, kind)
    work.mkdir()
    runs = home / "runs" if kind == "read-only working folder" else work / "runs"
    runs.mkdir()
    if kind == "read-only working folder":
        locked(work)
    whole_way(Place(home, work, variables), runs)


def test_training_needs_no_network_no_home_and_no_unicode(home: Path) -> None:
    variables = odd(home, "no home")[1]
    place = Place(home, home, variables | odd(home, "ascii")[1])
    whole_way(place, home, briefly=True)


@pytest.mark.slow
def test_the_demo_needs_no_network(home: Path) -> None:
    work, variables = odd(home, "no home")
    work.mkdir()
    place = Place(home, work, variables)
    place.script.write_text("import sys\nfrom ftwt.cli import main\nsys.exit(main())\n")
    place("demo", "--output", "out")
    assert (work / "out" / "index.html").exists()


@pytest.mark.slow
def test_a_connection_would_be_noticed(home: Path) -> None:
    work, variables = odd(home, "spaces")
    work.mkdir()
    place = Place(home, work, variables | {"HF_HOME": str(work), "HF_HUB_OFFLINE": "0"})
    with pytest.raises(AssertionError, match="CONNECTION"):
        place("evaluate", "nobody/nothing", *tiny.DATA, status=1)


@pytest.mark.slow
def test_what_cannot_be_written_is_told(home: Path) -> None:
    work, variables = odd(home, "spaces")
    work.mkdir()
    (work / "file").write_text("")
    place = Place(home, work, variables | {"PYTHONIOENCODING": "ascii"})
    done = place(*TRAIN, "--output", "file/run ü", status=1)
    assert b"cannot write" in done.stderr and b"choose another folder" in done.stderr


HASTE = """
import sys
from pathlib import Path
import numpy as np
import synthetic
from ftwt import Recording
from ftwt.report import write_report
from ftwt.files.json import write_json
from ftwt.runtime import load, save
folder, mine = Path(sys.argv[1]), int(sys.argv[2])
program = load(folder / "given.ftwt", engine="reference").program
from dataclasses import replace
constants = dict(program.constants)
for turn in range(10):
    write_json(folder / "a.json", {"by": mine, "rows": [mine] * 5000})
    save(replace(program, constants=constants, notes={"by": mine}), folder / "a.ftwt")
for turn in range(2):
    write_report([folder / "run"], folder / "page.html")
"""


def test_of_two_who_write_one_file_the_last_wins_whole(tmp_path: Path) -> None:
    import result_files
    import toys
    from ftwt import runtime
    from ftwt.files.json import read_json

    ftwt.compile(toys.dynamic().eval(), engine="reference").save(tmp_path / "given.ftwt")
    result_files.write(tmp_path / "run" / "run.json", result_files.run(0.9, 0.3))
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(HERE)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", HASTE, str(tmp_path), str(number)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    seen = 0
    while any(one.poll() is None for one in both):
        if (tmp_path / "a.json").exists():
            told = read_json(tmp_path / "a.json")
            assert told["rows"] == [told["by"]] * 5000
            seen += 1
        if (tmp_path / "a.ftwt").exists():
            assert runtime.load(tmp_path / "a.ftwt", engine="reference").program.notes["by"] in (
                0,
                1,
            )
    for one in both:
        assert one.wait() == 0, one.communicate()[1].decode()
        one.stderr.close()  # type: ignore[union-attr]
    assert seen
    assert (tmp_path / "page.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
