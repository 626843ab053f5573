"""The verbs that estimate, train and evaluate, and those that list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from .. import models, recipes, shipped
from ..budget.estimate import estimate
from ..config import DataConfig, PruneConfig, RunConfig, changes
from ..evaluation.evaluate import evaluate
from ..evaluation.record import record
from ..files.json import write_json
from ..files.provenance import provenance
from ..networks.splits import check_classes, load_splits
from ..processes import processes
from ..pruning.dynamic import DynamicModel
from ..records.folder import RESULT
from ..records.recording import RECORDING
from ..runs.run import run
from .options import Json, Network, Weights, named


@dataclass(frozen=True)
class EstimateCommand:
    """Say what each r would save, from one pass over images, before any training."""

    model: Network
    weights: Weights = None
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
        source = named(self.model, self.weights)
        network = source.load()
        options = asdict(self.prune)
        r = options.pop("r")
        if isinstance(network, DynamicModel):
            if asked := changes(PruneConfig(), self.prune):
                raise ValueError(f"{self.model} has its gates already: {'; '.join(asked)}")
            r, options = network.r, {}
        batches = load_splits(self.data, source=source).plain
        curve = estimate(network, batches, images=self.images, accelerator=processes(), **options)
        predicted = curve.reduction_at(r)
        if self.output and processes().is_main_process:
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
    """Evaluate a saved network: accuracy, executed MACs, how dynamic its masks are."""

    model: Network
    weights: Weights = None
    split: Literal["test", "validation"] = "test"
    """Which images."""
    gates: Literal["predicted", "target", "open"] = "predicted"
    """Which masks to apply."""
    output: str | None = None
    """File to write the figures to, as JSON."""
    record: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[FILE]")] = None
    """Also record what it does with each image, for `ftwt report`: masks, work, 64 pictures and
    their heatmaps. Without a FILE, in the folder of the run."""
    as_json: Json = False
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> Any:
        """Evaluate; record."""
        recording = self._recording()
        source = named(self.model, self.weights)
        network = source.load(passes=True)
        splits = load_splits(self.data, source=source, labels=self.split == "validation")
        check_classes(network, splits, source)
        result = evaluate(
            network,
            getattr(splits, self.split),
            gates=self.gates,
            accelerator=processes(),
            provenance=provenance(config=self),
        )
        if self.output and processes().is_main_process:
            write_json(self.output, result.to_json())
        shown: list[Any] = [result]
        if recording is not None:
            record(
                network,
                getattr(splits, self.split),
                gates=self.gates,
                network=source.model,
                provenance=provenance(config=self),
            ).save(recording)
            shown.append(f"recorded: {recording}")
        return result.to_json() if self.as_json else shown

    def _recording(self) -> Path | None:
        """The file to record to, if any; what is wrong with it is told before the work."""
        if self.record is None:
            return None
        if len(self.record) > 1:
            raise ValueError(f"--record {' '.join(self.record)}: one file, after MODEL")
        if processes().num_processes > 1:
            raise ValueError("--record needs all images in one process; start it without torchrun")
        if self.record:
            return Path(self.record[0])
        folder = Path(self.weights or self.model)
        if not (folder / RESULT).exists():
            raise ValueError(f"{folder} is not the folder of a run: name a file, --record FILE")
        return folder / RECORDING


@dataclass(frozen=True)
class ModelsCommand:
    """List the networks that have a name, and what the trained ones achieve."""

    as_json: Json = False

    def __call__(self) -> Any:
        """List them."""
        results = {name: shipped.result(name) for name in shipped.names()}
        pruned = [name for name in results if name not in models.names()]
        names = [name for model in models.names() for name in (model, *_made_of(model, pruned))]
        if self.as_json:
            return {name: _achieved(results.get(name)) for name in names}
        listed = Table.grid(padding=(0, 2))
        for name in names:
            told = _achieved(results.get(name))
            if told["pretrained"]:
                top1, saved = f"top-1 {told['top1']:.2%}", f"{told['reduction']:.2%} fewer MACs"
                listed.add_row(name, top1, saved if told["kind"] != "dense" else "", told["kind"])
            else:
                listed.add_row(name)
        listed.add_row("torchvision:NAME, timm:NAME", "pip install 'ftwt[vision]'")
        return [listed]


def _made_of(model: str, pruned: Iterable[str]) -> list[str]:
    """Those pruned networks that are of an architecture."""
    return [name for name in pruned if shipped.Name.read(name).model == model]


def _achieved(result: dict[str, Any] | None) -> dict[str, Any]:
    """What a list tells of a network: of its weights as they are stored, on test images."""
    if result is None:
        return {"pretrained": False}
    figures = ("images", "top1", "executed_macs", "reduction", "published_reduction")
    told = {name: result["test"][name] for name in figures}
    return {"pretrained": True, "kind": result["shipped"]["kind"], **told}


@dataclass(frozen=True)
class RecipesCommand:
    """List the recipes: the baselines, ours, and one for each published row."""

    as_json: Json = False

    def __call__(self) -> Any:
        """List them."""
        if self.as_json:
            return {name: recipes.get(name).to_json() for name in recipes.names()}
        listed = Table.grid(padding=(0, 2))
        for name in recipes.names():
            listed.add_row(name, recipes.describe(name).splitlines()[0])
        return [listed]
