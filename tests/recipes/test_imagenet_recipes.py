"""Each ImageNet recipe runs at 224, stops and resumes; runs on files survive being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from test_image_folder import ROOT, make_image_folder
from test_image_folder import pytestmark as pytestmark
from test_image_runs import CONFIG
from test_run import timeless

import tiny
from ftwt import recipes
from ftwt.config import changes
from ftwt.data import image_folders
from ftwt.files.json import read_json
from ftwt.networks.inputs import known
from ftwt.networks.sources import resolve
from ftwt.runs.run import run
from toys import run_python, same, untimed

sys.path.insert(0, str(ROOT / "tools"))
import try_recipes  # noqa: E402

sys.path.remove(str(ROOT / "tools"))

IMAGENET = [name for name in recipes.names() if name.startswith("imagenet-")]
RUN = """
import sys, tiny
from pathlib import Path
from ftwt.cli import main
if __name__ == "__main__":
    tiny.register(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
"""
FLAGS = (
    *("--dataset", "folder", "--data-root", "shapes", "--validation", "6", "--weights", "None"),
    *("--epochs", "2", "--batch-size", "10", "--lr", "0.02", "--seed", "3"),
    *("--head", "standardized", "--schedule", "cosine"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "shapes"
    return make_image_folder(root, **try_recipes.IMAGES)


@pytest.fixture
def small(tiny_home: Path) -> Path:
    """The working folder, with images of 3 classes in `shapes` and a script that runs `ftwt`."""
    make_image_folder("shapes", classes=3, train=22, val=5, side=40)
    Path("script.py").write_text(RUN)
    return tiny_home


@pytest.mark.parametrize("name", IMAGENET)
def test_a_recipe_trains_at_the_size_of_its_network(name: str, images: Path) -> None:
    config = try_recipes.settings(name, images)
    how, _ = known(config.model)
    assert (how.crop, how.resize) in ((224, 256), (224, 232))
    assert image_folders(images, how)[0].how == how
    recipe = recipes.get(name)
    assert (config.model, config.prune, config.allocate) == (
        recipe.model,
        recipe.prune,
        recipe.allocate,
    )
    shortened = {told.split()[0] for told in changes(recipe.train, config.train)}
    assert shortened <= {"epochs", "batch_size", "predictor_warmup_steps"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", IMAGENET)
def test_a_recipe_runs_an_epoch_and_resumes_to_the_same_network(
    name: str, images: Path, tmp_path: Path
) -> None:
    trial = try_recipes.try_recipe(name, images, tmp_path)
    assert 0 < trial.stopped_after < trial.steps == 3
    assert trial.same
    assert (trial.predicted_reduction is None) == name.endswith("-dense")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_files_that_was_killed_ends_as_if_it_was_not(small: Path) -> None:
    whole = run(CONFIG, output="whole")
    command = [
        "script.py",
        str(small),
        "train",
        tiny.NAME,
        *FLAGS,
        "--r",
        "0.7",
        "--output",
        "parts",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, *command, "--workers", "2"], env=environment, stderr=subprocess.DEVNULL
    )
    lines = Path("parts/metrics.jsonl")
    while not (lines.exists() and '"step": 7' in lines.read_text()):  # in the second epoch
        assert process.poll() is None
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive  # nobody is left to decode for nobody
    resumed = run(
        replace(CONFIG, data=replace(CONFIG.data, workers=0)), output="parts", resume=True
    )
    one, two = timeless(whole.to_json()), timeless(resumed.to_json())
    for told in (one, two):
        del told["config"]["data"]["workers"]
    assert one == two and untimed(Path("parts")) == untimed(Path("whole"))
    assert same(resolve("parts").load(), resolve("whole").load())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_share_the_files(small: Path) -> None:
    more = ("--workers", "1", "--sync-batchnorm", "--json")
    command = ["script.py", str(small), "train", tiny.NAME, *FLAGS, *more]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run_python(*launch, *command, "--output", "two", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told == read_json("two/run.json")
    assert (told["test"]["images"], told["validation"]["images"]) == (15, 6)
    alone = run_python(*command, "--output", "one", timeout=600)
    assert alone.returncode == 0, alone.stderr[-3000:]
    one = json.loads(alone.stdout)
    assert told["predicted_reduction"] == pytest.approx(one["predicted_reduction"], abs=1e-6)
    for ours, theirs in zip(told["training"]["history"], one["training"]["history"], strict=True):
        assert ours["task_loss"] == pytest.approx(theirs["task_loss"], rel=1e-3)
