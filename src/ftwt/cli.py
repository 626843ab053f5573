"""The command line: one verb for each thing the library does; no logic of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from . import models, recipes
from .config import DataConfig, PruneConfig, RunConfig, changes
from .demo import TRAINING, demo
from .dynamic import DynamicModel
from .estimate import estimate
from .evaluate import evaluate
from .names import nearest
from .results import provenance, write_json
from .run import find_network, load_splits, run
from .train import processes

Json = Annotated[
    bool, tyro.conf.arg(name="json", help="Print JSON, and nothing else, to standard output.")
]
Network = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]

PIPED_WIDTH = 160  # columns, where there is no terminal: a table's row is then one line


@dataclass(frozen=True)
class DemoCommand:
    """Prune a trained ResNet-20 on the images in the package: what it costs, what it saves."""

    reduction: float = 0.3
    """Share of the multiply-accumulates to save, in (0, 1)."""
    epochs: int = TRAINING.epochs
    """Epochs of training, after the conversion."""
    output: str = "runs/demo"
    """Folder for the figures and the page."""
    as_json: Json = False

    def __call__(self) -> Any:
        """Run the demo."""
        story = Console(stderr=True) if self.as_json else None
        result = demo(
            reduction=self.reduction, epochs=self.epochs, output=self.output, console=story
        )
        return result.to_json() if self.as_json else []


@dataclass(frozen=True)
class EstimateCommand:
    """Say what each r would save, from one pass over training images, before any training."""

    model: Network
    """A model's name (`ftwt models`), the folder of a run, or a repository OWNER/NAME on the
    Hugging Face Hub."""
    reduction: float | None = None
    """Also say which r saves this share of the multiply-accumulates, as one r and one a unit."""
    images: int = 2048
    """Images to look at."""
    output: str | None = None
    """File to write the curves to, as JSON."""
    as_json: Json = False
    data: DataConfig = field(default_factory=DataConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __call__(self) -> Any:
        """Estimate; predict for one r; choose r for a budget if one is given."""
        network = find_network(self.model)
        options = asdict(self.prune)
        r = options.pop("r")
        if isinstance(network, DynamicModel):
            if asked := changes(PruneConfig(), self.prune):
                raise ValueError(f"{self.model} has its gates already: {'; '.join(asked)}")
            r, options = network.r, {}
        batches = load_splits(self.data).plain
        curve = estimate(network, batches, images=self.images, **options)
        predicted = curve.reduction_at(r)
        if self.output:
            curve.save(self.output)
        values = curve.to_json() | {"predicted_reduction": predicted}
        how = f"r = {r:g}" if isinstance(r, float) else "r as set for each unit"
        shown: list[Any] = [curve, f"{how}: {predicted:.1%} fewer MACs"]
        if self.reduction is not None:
            allocation = curve.allocate(reduction=self.reduction)
            values["allocation"] = asdict(allocation)
            shown.append(allocation)
        return values if self.as_json else shown


@dataclass(frozen=True)
class TrainCommand:
    """Train a network, dense or pruned. Every setting of the recipe is a flag.

    RECIPE comes first. It is one of `ftwt recipes`, or the name of a model: that model, pruned as
    published. `ftwt train RECIPE --help` shows the recipe's own settings.
    """

    output: str = "runs/RECIPE"
    """Folder of the run."""
    resume: bool = False
    """Go on with the run that is in the folder, to the result of an uninterrupted one."""
    as_json: Json = False
    run: RunConfig = field(default_factory=lambda: RunConfig(prune=PruneConfig()))

    def __call__(self) -> Any:
        """Run the recipe."""
        result = run(self.run, output=self.output, resume=self.resume)
        return result.to_json() if self.as_json else [result, f"all of it: {self.output}"]


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a saved network: its accuracy, the MACs it executes, how dynamic its masks are."""

    model: Network
    """A model's name (`ftwt models`), the folder of a run, or a repository OWNER/NAME on the
    Hugging Face Hub."""
    split: Literal["test", "validation"] = "test"
    """Which images."""
    gates: Literal["predicted", "target", "open"] = "predicted"
    """Which masks to apply."""
    output: str | None = None
    """File to write the figures to, as JSON."""
    as_json: Json = False
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> Any:
        """Evaluate."""
        network = find_network(self.model)
        splits = load_splits(self.data)
        result = evaluate(
            network,
            getattr(splits, self.split),
            gates=self.gates,
            accelerator=processes(),
            provenance=provenance(config=self),
        )
        if self.output:
            write_json(self.output, result.to_json())
        return result.to_json() if self.as_json else [result]


@dataclass(frozen=True)
class ModelsCommand:
    """List the networks that can be created by name."""

    as_json: Json = False

    def __call__(self) -> Any:
        """List them."""
        trained = models.names(pretrained=True)
        if self.as_json:
            return {name: {"pretrained": name in trained} for name in models.names()}
        listed = Table.grid(padding=(0, 2))
        for name in models.names():
            listed.add_row(name, "trained weights" if name in trained else "")
        listed.add_row("torchvision:NAME, timm:NAME", "with pip install 'ftwt[vision]'")
        return [listed]


@dataclass(frozen=True)
class RecipesCommand:
    """List the recipes: the baselines, and one for each published CIFAR row."""

    as_json: Json = False

    def __call__(self) -> Any:
        """List them."""
        if self.as_json:
            return {name: recipes.get(name).to_json() for name in recipes.names()}
        listed = Table.grid(padding=(0, 2))
        for name in recipes.names():
            listed.add_row(name, recipes.describe(name).splitlines()[0])
        return [listed]


VERBS: dict[str, Any] = {
    "demo": DemoCommand,
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
        Exit status: 0, 1 after an error that was told, 130 after Ctrl-C. (Flags that do not exist,
        or values that do not fit them, exit with 2.)
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    verb, rest = given[0], given[1:]
    try:
        if verb not in VERBS:
            raise ValueError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")
        _show(parse(verb, rest)())
    except BrokenPipeError:  # whoever reads (`head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("FTWT_TRACEBACK"):
            raise
        print(f"ftwt {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"ftwt {verb}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def parse(verb: str, rest: list[str]) -> Callable[[], Any]:
    """Turn flags into a command; a recipe's flags have the recipe's values as defaults."""
    program, description = f"ftwt {verb}", None
    default: Any = tyro.MISSING_NONPROP
    if verb == "train" and not {"-h", "--help"} & set(rest[:1]):
        if not rest or rest[0].startswith("-"):
            known = ", ".join(recipes.names())
            raise ValueError(f"the recipe comes first: ftwt train RECIPE [OPTIONS]. Known: {known}")
        recipe, *rest = rest
        config = recipes.get(recipe)
        if config.prune is None:
            _refuse_gates(recipe, config.model, rest)
        program, description = f"{program} {recipe}", recipes.describe(recipe)
        default = TrainCommand(output=f"runs/{recipe}", run=config)
    elif verb == "train":
        program += " RECIPE"
    return tyro.cli(
        VERBS[verb],
        prog=program,
        description=description,
        args=rest,
        default=default,
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.AvoidSubcommands,
            tyro.conf.FlagCreatePairsOff,
        ),
    )


def _refuse_gates(recipe: str, model: str, flags: list[str]) -> None:
    gates = {f.name for f in fields(PruneConfig)}
    for flag in flags:
        if flag.startswith("--") and flag[2:].split("=")[0].replace("-", "_") in gates:
            raise ValueError(
                f"{recipe} trains the dense network, without gates, so it has no {flag}; "
                f"`ftwt train {model} {flag} ...` prunes that network"
            )


def _show(result: Any) -> None:
    """Print a verb's result, JSON values or a list of things to read: by one process alone."""
    if not processes().is_main_process:
        return
    if isinstance(result, dict):
        print(json.dumps(result, indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
        for part in result:
            console.print(part, highlight=False)
    sys.stdout.flush()


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<9} {kind.__doc__.splitlines()[0]}" for verb, kind in VERBS.items())
    return (
        "usage: ftwt VERB ...\n\nPer-input pruning for convolutional networks.\n\n"
        f"{verbs}\n\n`ftwt VERB --help` lists a verb's options. Examples:\n\n"
        "  ftwt demo\n"
        "  ftwt estimate cifar10-resnet20 --reduction 0.5\n"
        "  ftwt train cifar10-resnet20-short --target-reduction 0.5\n"
        "  ftwt evaluate runs/cifar10-resnet20-short\n"
    )
