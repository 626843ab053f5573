"""The command line: every verb, its help, its JSON, its status, and what it says of mistakes."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from ftwt import cli, models, recipes, shipped
from ftwt.config import PruneConfig, RunConfig
from ftwt.files.json import read_json
from ftwt.models import registry
from ftwt.networks.pretrained import from_pretrained, load_tensors, save_pretrained
from ftwt.shipped import catalogue
from ftwt.verbs import prune, training
from toys import run_python, untimed

ROOT = Path(__file__).parents[2]
TRAIN = ["train", tiny.NAME, *tiny.DATA, "--batch-size", "400", "--epochs", "1"]


class Told:
    """What a command printed, and its exit status."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        try:
            self.status = cli.main([*arguments])
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            self.status = stop.code
        self.out, self.err = capsys.readouterr()
        assert "\x1b" not in self.out + self.err  # no colours where there is no terminal
        assert "Traceback" not in self.err

    @property
    def unfolded(self) -> str:
        """Standard error without the frames and line ends of a table."""
        return re.sub(r"[\s│]+", " ", self.err)


@pytest.fixture
def ftwt(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""
    return lambda *arguments: Told(capsys, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run of the tiny network."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(home, patch)
        assert cli.main([*TRAIN, "--output", str(home / "run")]) == 0
        yield home / "run"


# --- Help and lists -----------------------------------------------------------------------------


def test_the_usage_names_every_verb(ftwt: Any) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        told = ftwt(*arguments)
        assert told.status == 0 and not told.err
        assert all(f"\n  {verb} " in told.out for verb in cli.VERBS)


def test_the_usage_imports_next_to_nothing() -> None:
    """So it is there in a tenth of a second: torch takes seconds, plotting one, tyro a tenth."""
    code = "import sys; from ftwt import cli; cli.main(['--help']); print(*sys.modules)"
    done = run_python("-c", code)
    found = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "ftwt" in found and not found & {"torch", "numpy", "matplotlib", "rich", "tyro", "PIL"}


def test_the_usage_says_what_the_verbs_say() -> None:
    told = {verb: cli.VERBS[verb].__doc__.splitlines()[0] for verb in cli.VERBS}
    assert told == cli.SUMMARIES


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_says_what_a_verb_does_and_what_each_flag_means(verb: str, ftwt: Any) -> None:
    told = ftwt(verb, "--help")
    assert told.status == 0 and not told.err
    assert cli.VERBS[verb].__doc__.splitlines()[0] in told.out
    assert "--json" in told.out and "--no-json" not in told.out
    for line in re.findall(r"^│ (--\S+.*?) *│\n│( *).*?│$", told.out, re.MULTILINE):
        assert line[1] or "  " in line[0], f"{line[0]} has no help"


def test_help_of_a_recipe_shows_its_own_settings(ftwt: Any) -> None:
    general, study = ftwt("train", "--help"), ftwt("train", "cifar10-resnet20-short", "--help")
    dense = ftwt("train", "cifar10-resnet20-baseline", "--help")
    assert "RECIPE" in general.out and "--head {softmax,standardized}" in general.out
    assert recipes.describe("cifar10-resnet20-short").splitlines()[0] in study.out
    assert "runs/cifar10-resnet20-short" in study.out
    assert re.search(r"--lr FLOAT [^-]*\(default: 0.02\)", study.out)
    assert "--no-channels-last" in study.out and "--head" in study.out
    assert "--head" not in dense.out and re.search(r"--lr FLOAT [^-]*\(default: 0.15\)", dense.out)


def test_models_and_recipes_are_listed(ftwt: Any) -> None:
    listed = ftwt("models")
    first = [line.split()[0] for line in listed.out.splitlines()]
    pruned = [name for name in shipped.names() if name not in models.names()]
    assert sorted(first) == sorted([*models.names(), *pruned, "torchvision:NAME,"])
    values = json.loads(ftwt("models", "--json").out)
    assert list(values) == first[:-1]
    assert {name for name in values if values[name]["pretrained"]} == set(shipped.names())
    listed = ftwt("recipes")
    assert [line.split()[0] for line in listed.out.splitlines()] == recipes.names()
    assert "93.66% -> 92.63% at 66.43%" in listed.out
    values = json.loads(ftwt("recipes", "--json").out)
    assert {name: RunConfig.from_json(v) for name, v in values.items()} == {
        name: recipes.get(name) for name in recipes.names()
    }


def documentation() -> str:
    """The README and all pages."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def commands(text: str) -> list[str]:
    """Every command line in a text."""
    text = re.sub(r" \\\n +", " ", text)  # lines that go on
    blocks = re.findall(r"^(?:torchrun .* -m (?:-- )?)?(ftwt [a-z]+(?: .*)?)$", text, re.MULTILINE)
    verbs = "prune|train|estimate|evaluate|demo|compile|export|run|bench|report"
    return [*blocks, *re.findall(rf"`(ftwt (?:{verbs}) [a-z][^`]*)`", text)]


@pytest.mark.parametrize("command", dict.fromkeys(commands(documentation())))
def test_documented_commands_exist(command: str) -> None:
    _, verb, *rest = shlex.split(command, comments=True)
    if "--help" not in rest:
        assert isinstance(cli.parse(verb, rest), cli.VERBS[verb])


def test_every_verb_is_documented() -> None:
    found = {command.split()[1] for command in commands(documentation())}
    assert found == set(cli.VERBS)


# --- What the verbs do --------------------------------------------------------------------------

SLOW_ENGINE = ("--engine", "reference")
JSON = {  # of each verb, a command that is quick; RUN is the folder of a run
    "demo": ["--output", "demo", *SLOW_ENGINE],
    "prune": [tiny.NAME, *tiny.DATA, "--reduction", "0.2", "--images", "100", *SLOW_ENGINE],
    "estimate": [tiny.NAME, *tiny.DATA, "--images", "100"],
    "train": [*TRAIN[1:], "--output", "another"],
    "sweep": ["rows.txt", "--status"],
    "evaluate": ["RUN", *tiny.DATA],
    "robustness": ["RUN", *tiny.DATA[:2], "--corruptions", "fog", "--severities", "1"],
    "compile": ["RUN", "-o", "net.ftwt", *SLOW_ENGINE],
    "export": ["RUN", "-o", "net.pt2"],
    "run": ["net.ftwt", "picture.png", *SLOW_ENGINE],
    "bench": [tiny.NAME, *SLOW_ENGINE, "--rounds", "1", "--singles", "1", "--rivals", "torch"],
    "report": ["RUN", "-o", "report.html", "--figures", "figures"],
    "models": [],
    "recipes": [],
}


SLOW = {"demo", "prune"}  # whose JSON is read elsewhere, too


@pytest.mark.parametrize(
    "verb",
    [pytest.param(v, marks=pytest.mark.slow if v in SLOW else ()) for v in cli.VERBS],
)
def test_every_verb_prints_json_and_nothing_else(
    verb: str, folder: Path, tiny_home: Path, ftwt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "DEMO", tiny.NAME)
    if verb == "models":  # those that really come with ftwt
        monkeypatch.setattr(catalogue, "FOLDER", Path(catalogue.__file__).parent / "networks")
    if verb == "run":
        assert ftwt("compile", str(folder), "-o", "net.ftwt", *SLOW_ENGINE).status == 0
        Image.new("RGB", (32, 32), "teal").save("picture.png")
    if verb == "sweep":
        Path("rows.txt").write_text("train cifar10-tiny --output runs/a\n")
    arguments = [str(folder) if word == "RUN" else word for word in JSON[verb]]
    told = ftwt(verb, *arguments, "--json")
    assert told.status == 0, told.err
    assert isinstance(json.loads(told.out), dict)


def test_a_run_from_training_to_figures(ftwt: Any, tiny_home: Path) -> None:
    told = ftwt(*TRAIN, "--r", "0", "0.8", "6", "0.7", "--json")
    values = json.loads(told.out)
    folder = Path("runs") / tiny.NAME
    assert told.status == 0 and "epoch 1" in told.err
    assert values == read_json(folder / "run.json")
    assert values["config"]["prune"]["r"] == {"0": 0.8, "6": 0.7}
    assert [line["kind"] for line in untimed(folder)][-1] == "epoch"

    told = ftwt("evaluate", str(folder), *tiny.DATA, "--json", "--output", "figures.json")
    figures = json.loads(told.out)
    assert figures == read_json("figures.json")
    assert {k: v for k, v in figures.items() if k != "provenance"} == {
        k: v for k, v in values["test"].items() if k != "provenance"
    }
    assert figures["provenance"]["config"]["model"] == str(folder)

    told = ftwt(*TRAIN, "--r", "0", "0.8", "6", "0.7", "--resume")
    assert told.status == 0 and f"all of it: {folder}" in told.out
    assert f"achieved {values['test']['reduction']:.2%}" in told.out


def test_evaluate_chooses_split_and_masks(folder: Path, ftwt: Any) -> None:
    def evaluate(*flags: str) -> dict[str, Any]:
        return json.loads(ftwt("evaluate", str(folder), *tiny.DATA, "--json", *flags).out)

    assert evaluate("--split", "validation")["images"] == 400
    targets, opened = evaluate("--gates", "target"), evaluate("--gates", "open")
    assert targets["mask_accuracy"] == 1 and targets["reduction"] > 0.1 > opened["reduction"]
    told = ftwt("evaluate", str(folder), *tiny.DATA)
    assert "top-1 / top-5" in told.out and "mask accuracy" in told.out


def test_estimate_predicts_and_allocates(tiny_home: Path, ftwt: Any) -> None:
    flags = ("estimate", tiny.NAME, *tiny.DATA, "--images", "300")
    told = ftwt(*flags, "--r", "0.8", "--reduction", "0.3", "--json", "--output", "curve.json")
    values = json.loads(told.out)
    assert values["images"] == 300 and len(values["r"]) == len(values["reduction"])
    assert read_json("curve.json")["reduction"] == values["reduction"]
    assert 0.3 <= values["allocation"]["reduction"] < 0.35
    text = ftwt(*flags, "--r", "0.8", "--reduction", "0.3").out
    assert f"r = 0.8: {values['predicted_reduction']:.1%} fewer MACs" in text
    assert "mass lost, summed over units" in text
    by_unit = ftwt(*flags, "--r", "0", "0.8", "3", "0.8", "6", "0.8", "--json")
    assert json.loads(by_unit.out)["predicted_reduction"] == pytest.approx(
        values["predicted_reduction"], abs=0.01
    )


def test_a_run_is_estimated_with_its_own_gates(folder: Path, ftwt: Any) -> None:
    flags = ("estimate", str(folder), *tiny.DATA, "--images", "300")
    told = ftwt(*flags)
    assert told.status == 0 and "r as set for each unit:" in told.out
    told = ftwt(*flags, "--head", "softmax", "--r", "0.5")
    assert told.status == 1
    assert "has its gates already: r was 0.9, is 0.5; head was standardized" in told.err


def test_a_recipe_fits_the_epochs_that_are_asked_for() -> None:
    for flags in (["--epochs", "1"], ["--epochs=1"]):
        command: Any = cli.parse("train", ["cifar10-resnet20-baseline", *flags])
        assert (command.run.train.epochs, command.run.train.warmup_epochs) == (1, 0.5)
    command = cli.parse("train", ["cifar10-resnet20-baseline", *flags, "--warmup-epochs", "1"])
    assert command.run.train.warmup_epochs == 1


# --- Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'"),
        (["train"], "ftwt train RECIPE [OPTIONS], such as cifar10-resnet20-short (`ftwt recipes`"),
        (["train", "--epochs", "3", tiny.NAME], "the recipe comes first"),
        (["train", "cifar10-resnet20-shrot"], "the nearest: cifar10-resnet20-short"),
        (["evaluate", "cifar10-resnet-20"], "did you mean 'cifar10-resnet20' or "),
        (["evaluate", "timm:resnet18x"], "unknown timm model 'resnet18x'; the nearest: resnet18"),
        (["estimate", "cifar10-vgg16-bn"], "names with weights: cifar10-tiny. Train it"),
        (["train", "cifar10-resnet20-baseline", "--r", "0.5"], "without gates, so it has no --r; "),
        (["train", "cifar10-resnet20-baseline", "--min_gain=0"], "has no --min_gain=0"),
        ([*TRAIN, "--model", "cifar10-resnet21"], "no model or folder 'cifar10-resnet21'; did you"),
        ([*TRAIN, "--weights", "nowhere"], "nowhere holds no model.safetensors"),
        ([*TRAIN, "--resume"], "so there is nothing to resume; leave out --resume"),
        ([*TRAIN, "--output", "file/run"], "cannot write file/run/.lock (Not a directory)"),
        ([*TRAIN, "--validation", "5000"], "take at most 1990 (--validation)"),
        ([*TRAIN, "--batch-size", "1601"], "empty loader: 1600 images make no batch of 1601"),
        ([*TRAIN, "--r", "conv9", "0.5"], "r names an unknown unit 'conv9'; Known: 0, 3, 6"),
        ([*TRAIN, "--skip", "4"], "skip names no convolution: '4'; Known: 0, 3, 6"),
        ([*TRAIN, "--target-reduction", "0.99"], "reduction=0.99 is out of reach; r in [0.1, 1]"),
        ([*TRAIN, "--dataset", "cifar10", "--data-root", "data"], "could not download https://"),
        (
            [*TRAIN, "--lr", "1e30"],
            "the loss became NaN or infinite at step 1 (learning rate 1e+30",
        ),
        (["estimate", tiny.NAME, *tiny.DATA, "--images", "0"], "images=0: look at one image"),
        (["prune", tiny.NAME, *tiny.DATA, "--reduction", "1.5"], "reduction=1.5 is outside (0, 1)"),
        (["demo", "--output", "file/demo"], "file/demo"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    arguments: list[str],
    message: str,
    tiny_home: Path,
    ftwt: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    Path("file").touch()
    told = ftwt(*arguments)
    assert told.status == 1 and not told.out
    assert told.err.splitlines()[-1].startswith(f"ftwt {arguments[0]}: ")
    assert message in told.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--r", "0"], "r=0.0 is outside (0, 1]"),
        (["--r", "-1"], "r=-1.0 is outside (0, 1]"),
        (["--r", "2"], "r=2.0 is outside (0, 1]"),
        (["--r", "nan"], "r=nan is outside (0, 1]"),
        (["--r", "conv", "2"], "r=2.0 for unit 'conv' is outside"),
        (["--epochs", "0"], "epochs=0 is outside [1, inf)"),
        (["--epochs", "many"], "invalid"),
        (["--head", "softmx"], "invalid choice 'softmx'"),
        (["--epochz", "3"], "Perhaps you meant: --epochs INT"),
        (["--target-reduction", "1"], "target_reduction=1.0 is outside (0, 1)"),
        (["--twin-of", "runs/x", "--target-reduction", "0.3"], "as much as the run it is of"),
    ],
)
def test_a_flag_that_makes_no_sense_exits_with_2(flags: list[str], message: str, ftwt: Any) -> None:
    told = ftwt("train", "cifar10-resnet20-short", *flags)
    assert told.status == 2 and not told.out
    assert message in told.unfolded


def test_damaged_files_are_told(folder: Path, ftwt: Any, tmp_path: Path) -> None:
    def told(file: str, content: bytes) -> str:
        path, whole = folder / file, (folder / file).read_bytes()
        path.write_bytes(content or whole[:-9] + bytes(9))
        found = [
            ftwt("evaluate", str(folder), *tiny.DATA),
            ftwt(*TRAIN, "--output", str(folder), "--resume"),
        ]["checkpoint" in file]
        path.write_bytes(whole)
        assert found.status == 1 and not found.out
        return found.err

    for file in ("model/model.safetensors", "checkpoint.safetensors"):
        assert f"{file} was altered after it was written" in told(file, b"")
        assert f"{file} is truncated" in told(file, b"abc")


def test_a_network_of_another_architecture_is_refused(
    ftwt: Any, tiny_home: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # what the name meant when it was saved
        other = partial(models.create, "cifar10-mobilenet-v1-x0.25")
        patch.setitem(registry._FAMILIES, "tiny", other)  # type: ignore[arg-type]
        save_pretrained(other(), "other", name=tiny.NAME)
    for arguments in (["evaluate", "other", *tiny.DATA], [*TRAIN, "--weights", "other"]):
        told = ftwt(*arguments)
        assert told.status == 1 and "other holds another architecture than Sequential" in told.err


def test_a_full_disk_keeps_what_was_saved(
    folder: Path, ftwt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = load_tensors(folder / "checkpoint.safetensors")[1]
    monkeypatch.setattr(Path, "write_bytes", full)
    told = ftwt(*TRAIN, "--output", str(folder.parent / "full"))
    assert told.status == 1 and "No space left on device), what was there is unharmed" in told.err
    told = ftwt(*TRAIN, "--output", str(folder), "--resume")
    assert told.status == 1 and "free space" in told.err
    monkeypatch.undo()
    assert load_tensors(folder / "checkpoint.safetensors")[1] == before
    assert from_pretrained(folder / "model")


def test_a_run_that_failed_before_its_first_checkpoint_can_begin_anew(
    ftwt: Any, tiny_home: Path
) -> None:
    told = ftwt(*TRAIN, "--lr", "1e30")
    assert told.status == 1 and "checkpoint" not in told.err
    assert ftwt(*TRAIN, "--resume").status == 1
    assert ftwt(*TRAIN).status == 0
    assert "already holds a run" in ftwt(*TRAIN).err


def test_the_environment_can_ask_for_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTWT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown recipe"):
        cli.main(["train", "nothing"])


# --- As a process -------------------------------------------------------------------------------

STOPPED = """
import os, signal, sys, tiny
from pathlib import Path
from ftwt.cli import main
from ftwt.training.learner import Learner

learn = Learner.learn

def learn_and_stop(self, step, images, labels):
    learn(self, step, images, labels)
    if step == 2:
        os.kill(os.getpid(), signal.SIGINT)

Learner.learn = learn_and_stop
tiny.register(Path.cwd())
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_saves_and_says_how_to_go_on(ftwt: Any, tiny_home: Path) -> None:
    done = run_python("-c", STOPPED, *TRAIN, "--output", "run")
    assert done.returncode == 130 and not done.stdout
    told = done.stderr.splitlines()[-1]
    cure = "`ftwt train run --resume`"
    assert told == f"ftwt train: stopped after step 3 of 4: saved in run; go on with {cure}"
    assert load_tensors("run/checkpoint.safetensors")[1]["step"] == 3
    told = ftwt("train", "run", "--resume", "--lr", "0.5")
    assert told.status == 1 and "run holds another run: lr was" in told.err
    assert ftwt("train", "run", "--resume").status == 0  # the folder knows its settings
    assert Path("run/run.json").exists()
    assert ftwt(*TRAIN, "--output", "run", "--resume").status == 0


def test_a_module_and_a_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)  # as `ftwt recipes --json | true` does
    command = [sys.executable, "-m", "ftwt", "recipes", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_interrupt_elsewhere_is_no_traceback(ftwt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "named", interrupted)
    told = ftwt("evaluate", "anything")
    assert told.status == 130 and told.err == "ftwt evaluate: interrupted\n"


def test_flags_of_gates_are_those_that_a_dense_recipe_refuses() -> None:
    flags = [f"--{name.replace('_', '-')}" for name in PruneConfig.__dataclass_fields__]
    for flag in flags:
        with pytest.raises(ValueError, match=f"has no {flag};"):
            cli.parse("train", ["cifar10-vgg16-bn-baseline", flag])


@pytest.mark.parametrize("flags", [["--twin-of", "runs/x"], ["--twin_of=runs/x"]])
def test_a_recipe_with_a_budget_has_a_twin_as_any_other(flags: list[str]) -> None:
    name = "cifar10-resnet20-dynamic-40"
    recipe = recipes.get(name)
    assert recipe.allocate and recipe.train.target_reduction == 0.4
    told = cli.parse("train", [name, *flags])
    assert isinstance(told, training.TrainCommand)
    assert told.run.twin_of == "runs/x"
    assert not told.run.allocate and told.run.train.target_reduction is None
    assert told.run.train.distillation == recipe.train.distillation
    for asked in (["--target-reduction", "0.4"], ["--allocate"]):
        with pytest.raises((ValueError, SystemExit)):
            cli.parse("train", [name, *flags, *asked])
