"""The command line: one verb for each thing the library does; no logic of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from . import models, recipes
from .checkpoint import from_pretrained
from .config import DataConfig, PruneConfig, RunConfig
from .demo import demo
from .estimate import estimate
from .evaluate import evaluate
from .names import nearest
from .results import provenance, write_json
from .run import folder_of, load_network, load_splits, run
from .train import Interrupted

Json = Annotated[bool, tyro.conf.arg(name="json")]
Name = tyro.conf.Positional[str]


@dataclass(frozen=True)
class Demo:
    """Prune a trained ResNet-20 on the images in the package: what it costs, what it saves."""

    reduction: float = 0.3
    """Share of the multiply-accumulates to save, in (0, 1)."""
    epochs: int = 8
    """Epochs of training, after the conversion."""
    output: str = "runs/demo"
    """Folder for the figures and the page."""
    as_json: Json = False
    """Print JSON instead of tables."""

    def __call__(self) -> Any:
        """Run the demo."""
        result = demo(reduction=self.reduction, epochs=self.epochs, output=self.output)
        return result if not self.as_json else result.to_json()


@dataclass(frozen=True)
class EstimateCommand:
    """Say what each r would save, from one pass over training images, before any training."""

    model: Name
    """A model's name (`ftwt models`), or the folder of a run."""
    reduction: float | None = None
    """Also say which r saves this share of the multiply-accumulates, as one r and one a unit."""
    images: int = 2048
    """Images to look at."""
    output: str | None = None
    """File to write the curves to, as JSON."""
    as_json: Json = False
    """Print JSON instead of tables."""
    data: DataConfig = field(default_factory=DataConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __call__(self) -> Any:
        """Estimate, and choose r for a budget if one is given."""
        network = _network(self.model)
        options = asdict(self.prune)
        del options["r"]
        curve = estimate(
            network,
            load_splits(self.data, batch_size=128).plain,
            images=self.images,
            **options,
        )
        if self.output:
            curve.save(self.output)
        shown: list[Any] = [curve]
        values = curve.to_json()
        if self.reduction is not None:
            allocation = curve.allocate(reduction=self.reduction)
            values["allocation"] = asdict(allocation)
            shown.append(allocation)
        return values if self.as_json else shown


@dataclass(frozen=True)
class TrainCommand:
    """Train a network, dense or pruned, by recipe; every setting of the recipe can be changed."""

    recipe: Name
    """A recipe (`ftwt recipes`), or a model's name: that model, pruned as published."""
    output: str | None = None
    """Folder of the run; runs/RECIPE if not given."""
    resume: bool = False
    """Go on with the run that is in the folder, to the result of an uninterrupted one."""
    run: RunConfig = field(default_factory=RunConfig)

    def __call__(self) -> Any:
        """Run the recipe."""
        folder = self.output or f"runs/{self.recipe}"
        try:
            result = run(self.run, output=folder, resume=self.resume)
        except Interrupted as stop:
            raise Interrupted(f"{stop}; go on with the same command and --resume") from None
        predicted = result.predicted_reduction
        told = [] if predicted is None else [f"predicted reduction: {predicted:.2%}"]
        return [result.test, *told, f"all of it: {folder}"]


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a saved network: its accuracy, the MACs it executes, how dynamic its masks are."""

    model: Name
    """A model's name, the folder of a run, or a repository on the Hugging Face Hub."""
    split: Literal["test", "validation"] = "test"
    """Which images."""
    gates: Literal["predicted", "target", "open"] = "predicted"
    """Which masks to apply."""
    output: str | None = None
    """File to write the figures to, as JSON."""
    as_json: Json = False
    """Print JSON instead of tables."""
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> Any:
        """Evaluate."""
        splits = load_splits(self.data, batch_size=128)
        result = evaluate(
            _network(self.model),
            splits.test if self.split == "test" else splits.validation,
            gates=self.gates,
            provenance=provenance(config=self.data),
        )
        if self.output:
            write_json(self.output, result.to_json())
        return result.to_json() if self.as_json else result


@dataclass(frozen=True)
class ModelsCommand:
    """List the networks that can be created by name."""

    as_json: Json = False
    """Print JSON instead of text."""

    def __call__(self) -> Any:
        """List them."""
        trained = set(models.names(pretrained=True))
        if self.as_json:
            return {name: {"pretrained": name in trained} for name in models.names()}
        lines = [
            f"{name}{'  (trained weights)' if name in trained else ''}" for name in models.names()
        ]
        return [*lines, "torchvision:NAME, timm:NAME  (pip install 'ftwt[vision]')"]


@dataclass(frozen=True)
class RecipesCommand:
    """List the recipes: the baselines, and one for each published CIFAR row."""

    as_json: Json = False
    """Print JSON instead of a table."""

    def __call__(self) -> Any:
        """List them."""
        if self.as_json:
            return {name: recipes.get(name).to_json() for name in recipes.names()}
        table = Table("recipe", "what it does")
        for name in recipes.names():
            table.add_row(name, recipes.describe(name))
        return table


VERBS: dict[str, type] = {
    "demo": Demo,
    "estimate": EstimateCommand,
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "models": ModelsCommand,
    "recipes": RecipesCommand,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the verb that the command line names.

    Args:
        arguments: Of the command line, without the program; None for the process's own.

    Returns:
        Exit status: 0, 1 after an error that was told, 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    verb, rest = given[0], given[1:]
    try:
        if verb not in VERBS:
            raise ValueError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")
        _show(_parse(verb, rest)())
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("FTWT_TRACEBACK"):
            raise
        print(f"ftwt {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"ftwt {verb}: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _parse(verb: str, rest: list[str]) -> Callable[[], Any]:
    default: Any = tyro.MISSING_NONPROP
    if verb == "train" and rest and not rest[0].startswith("-"):
        default = TrainCommand(recipe=rest[0], run=recipes.get(rest[0]))
    return tyro.cli(
        VERBS[verb],
        prog=f"ftwt {verb}",
        args=rest,
        default=default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
    )


def _network(source: str) -> Any:
    if source in models.names() or ":" in source:
        return load_network(source, "pretrained")
    if not Path(source).exists() and "/" not in source:
        raise ValueError(f"no model or folder {source!r}; {nearest(source, models.names())}")
    return from_pretrained(folder_of(source))


def _show(result: Any) -> None:
    if isinstance(result, dict):
        print(json.dumps(result, indent=2))
        return
    console = Console(soft_wrap=not sys.stdout.isatty())
    for part in result if isinstance(result, list) else [result]:
        console.print(part)


def _usage() -> str:
    verbs = "\n".join(
        f"  {verb:<9} {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in VERBS.items()
    )
    return (
        "usage: ftwt VERB ...\n\nPer-input pruning for convolutional networks.\n\n"
        f"{verbs}\n\n`ftwt VERB --help` lists a verb's options. Examples:\n\n"
        "  ftwt demo\n"
        "  ftwt estimate cifar10-resnet20 --reduction 0.5\n"
        "  ftwt train cifar10-vgg16-bn --r 0.85 --epochs 40\n"
        "  ftwt evaluate runs/cifar10-vgg16-bn\n"
    )
