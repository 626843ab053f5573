"""Every CIFAR recipe runs through the command line: an epoch on the images in the package."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ftwt import cli, from_pretrained, models, recipes
from ftwt.files.json import read_json
from ftwt.pruning.dynamic import DynamicModel

CIFAR = [name for name in recipes.names() if name.startswith("cifar10-")]
FIXED = [name for name in CIFAR if recipes.get(name).fixed is not None]
PLAIN = [name for name in CIFAR if recipes.get(name).prune is None and name not in FIXED]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield home


def train(name: str, *more: str) -> Path:
    """Run a recipe for one epoch, unless that was done; its folder."""
    folder = Path("runs") / name
    if not (folder / "run.json").exists():
        few = ["--epochs", "1", "--dataset", "cifar10-embedded", "--validation", "400"]
        if recipes.get(name).train.warmup_epochs:
            few += ["--warmup-epochs", "0.5"]
        if recipes.get(name).train.predictor_warmup_steps:
            few += ["--predictor-warmup-steps", "2"]
        assert cli.main(["train", name, "--output", str(folder), *few, *more]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CIFAR)
def test_a_recipe_runs(name: str, home: Path) -> None:
    config = recipes.get(name)
    weights = []
    if config.weights and config.model not in models.names(pretrained=True):
        weights = ["--weights", str(train(f"{config.model}-baseline"))]
    folder = train(name, *weights)
    told = read_json(folder / "run.json")
    assert told["test"]["images"] == 1000
    assert math.isfinite(told["training"]["history"][0]["loss"])
    network = from_pretrained(folder / "model")
    if name in FIXED:
        assert told["test"]["reduction"] == pytest.approx(0.4, abs=0.03)
        return
    assert isinstance(network, DynamicModel) == (name not in PLAIN)
    if name in PLAIN:
        assert told["test"]["reduction"] == 0 and told["predicted_reduction"] is None
        return
    assert isinstance(network, DynamicModel) and config.prune is not None
    assert told["config"]["prune"]["mode"] == config.prune.mode
    assert told["test"]["units"] and -0.5 < told["test"]["reduction"] < 1
    if config.train.target_reduction is not None:
        assert told["predicted_reduction"] == pytest.approx(config.train.target_reduction, abs=0.03)
        assert told["validation"]["reduction"] == pytest.approx(
            config.train.target_reduction, abs=0.03
        )
    else:
        assert -0.5 < told["predicted_reduction"] < 1
    weight = next(p for p in network.predictor_parameters() if p.dim() == 2)
    assert torch.count_nonzero(weight)  # they begin at zero
