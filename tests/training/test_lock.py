"""Two runs in one folder: the second is told, and one that died is in nobody's way."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import toys
from ftwt.training.lock import LOCK, held
from toys import fit, run_python

HOLD = """
import sys, time
from ftwt.training.lock import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_folder_has_one_run_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = holder(folder)
    try:
        said = f"{folder} is in use by process {other.pid}: .*stop it, or choose another folder"
        with pytest.raises(ValueError, match=said):
            fit(toys.Toy(), output=folder)
        with pytest.raises(ValueError, match=said):
            fit(toys.Toy(), output=folder, resume=True)
        assert os.listdir(folder) == [LOCK]
        os.mkdir(folder / "model")
        left = [folder / ".run.json.1.1.tmp", folder / "model" / ".config.json.1.1.tmp"]
        for path in left:
            path.write_text("{")
        other.send_signal(signal.SIGKILL)
        other.wait()
        fit(toys.Toy(), output=folder)
        assert not any(path.exists() for path in left)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()  # type: ignore[union-attr]


def test_a_command_is_told_in_a_line(tmp_path: Path) -> None:
    with held(tmp_path):
        for arguments in (["train", "cifar10-resnet20-short"], ["demo"]):
            done = run_python("-m", "ftwt", *arguments, "--output", str(tmp_path))
            assert done.returncode == 1
            assert f"in use by process {os.getpid()}" in done.stderr
            assert "--output" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == [LOCK]


def test_calls_inside_one_another_share_it_and_other_threads_do_not(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with held(tmp_path):
                pass
        except ValueError as error:
            refused.append(str(error))

    with held(tmp_path), held(str(tmp_path)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    other()
    assert len(refused) == 1


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match="cannot write .*choose another folder"),
        held(tmp_path / "file" / "run"),
    ):
        pass
    with pytest.raises(ValueError, match="file is a file; name a folder"), held(tmp_path / "file"):
        pass


def test_nothing_is_held_where_nothing_is_written() -> None:
    with held(None):
        pass


SHARED = """
import sys, toys
from ftwt.training.lock import held
from ftwt.processes import processes
try:
    with held(sys.argv[1]):
        print(processes().process_index, "holds it")
except ValueError as error:
    print(processes().process_index, error)
"""


@pytest.mark.slow
def test_the_processes_of_one_run_share_a_folder_or_are_all_refused(tmp_path: Path) -> None:
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    start = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    place = tmp_path / "run"
    free = run_python(*start, str(script), str(place), timeout=240)
    assert {"0 holds it", "1 holds it"} <= set(free.stdout.splitlines()), free.stderr
    with held(place):
        taken = run_python(*start, str(script), str(place), timeout=240)
    said = f"{place} is in use by process {os.getpid()}"
    assert all(f"{rank} {said}" in taken.stdout for rank in (0, 1)), taken.stdout + taken.stderr


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_unharmed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(ValueError, match="is a symbolic link, not a lock of ours; remove it"):
        with held(tmp_path / "run"):
            pass
    assert precious.read_text() == "mine"
