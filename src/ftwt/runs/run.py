"""A whole run from its configuration: data, network, gates, training, and what came of it."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch import nn

from ..budget.estimate import estimate
from ..config import DataConfig, RunConfig, changes
from ..data import Epochs, folder_classes
from ..evaluation.evaluate import evaluate
from ..files.json import read_json, write_json
from ..files.provenance import provenance
from ..files.tables import Shown
from ..files.tensors import load_weights, refusing
from ..networks.pretrained import save_pretrained
from ..networks.sources import resolve
from ..networks.splits import described, load_splits
from ..processes import gathered, processes
from ..pruning.convert import convert
from ..pruning.dynamic import GATES, DynamicModel
from ..pruning.second_look import SecondLook
from ..records.evaluation import Evaluation
from ..records.folder import CHECKPOINT, MODEL, RESULT, SETTINGS
from ..training.lock import held
from ..training.loop import TrainResult, train
from .fixed import looking, masked, told

ESTIMATE_IMAGES = 2048


@dataclass(frozen=True)
class RunResult(Shown):
    """What a run asked for, predicted, and achieved, on validation and test images.

    `predicted_reduction` is the estimate at the run's r, from the network that training started
    with; None for dense networks and static twins.
    """

    config: RunConfig
    predicted_reduction: float | None
    training: TrainResult
    validation: Evaluation
    test: Evaluation
    provenance: dict[str, Any]
    second_look: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "config": self.config.to_json(),
            "asked_reduction": self.config.asked_reduction,
            "predicted_reduction": self.predicted_reduction,
            "test": self.test.to_json(),
            "validation": self.validation.to_json(),
            "training": asdict(self.training),
            "provenance": self.provenance,
        } | ({} if self.second_look is None else {"second_look": self.second_look})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.test
        if self.predicted_reduction is not None:
            asked = self.config.train.target_reduction
            told = [] if asked is None else [f"asked {asked:.2%}"]
            told.append(f"predicted {self.predicted_reduction:.2%}")
            told.append(f"achieved {self.test.reduction:.2%}")
            yield f"reduction: {', '.join(told)}"


def run(config: RunConfig, *, output: str | os.PathLike[str], resume: bool = False) -> RunResult:
    """Do a whole run: load, estimate, convert, train, evaluate; leave its files in `output`.

    With several processes, each calls this; the main one writes.

    Args:
        config: What to do.
        output: Folder for checkpoints, metrics, `settings.json`, `model/`, `run.json`.
        resume: Go on with the run that is in the folder.

    Returns:
        Settings and figures, as in `run.json`.

    Raises:
        ValueError: Settings, data and folder do not fit, the folder's run had other settings, or
            another process runs there now.
    """
    with held(output):
        return _run(config, Path(output), resume=resume)


def _run(config: RunConfig, folder: Path, *, resume: bool) -> RunResult:
    _recall(config, folder, resume=resume)
    torch.manual_seed(config.train.seed)  # of random weights
    classes = None
    if config.data.dataset == "folder":
        classes = len(folder_classes(config.data.data_root))
    source = resolve(config.model, config.weights)
    if source.model != config.model:
        raise ValueError(
            f"model={config.model!r} is a network with weights; name its architecture, and give it "
            f"as weights: --model {source.model} --weights {config.model}"
        )
    dense = source.load_dense(classes=classes, new_head=config.new_head, data=config.data)
    splits = load_splits(
        config.data,
        source=source,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        channels_last=config.train.channels_last,
    )
    held_out = len(splits.validation.images)  # of all processes
    config = replace(config, data=replace(config.data, validation=held_out))
    origin = provenance(config=config, seed=config.train.seed)
    network, predicted = dense, None
    if config.twin_of is not None:
        network = twin_of(config, dense, splits.plain)
    elif config.prune is not None:
        network, predicted = gated(config, dense, splits.plain)
    elif config.fixed is not None:
        network = masked(config.fixed, dense, splits.plain)
    taught = config.train.distillation > 0 and not isinstance(network, SecondLook)
    trained = train(
        network,
        splits.train,
        splits.validation,
        config.train,
        output=folder,
        resume=resume,
        teacher=copy.deepcopy(dense) if taught else None,
    )
    look = None
    if config.fixed is not None:
        look = looking(config.fixed, network, dense, splits.validation)
        network = network if look is None else look.network
    result = RunResult(
        config=config,
        predicted_reduction=predicted,
        training=trained,
        validation=evaluate(network, splits.validation, accelerator=processes()),
        test=evaluate(network, splits.test, accelerator=processes()),
        provenance=origin | {"duration_s": round(trained.seconds, 1)},
        second_look=None if look is None else told(look, splits.test),
    )
    if processes().is_main_process:
        save_pretrained(network, folder / MODEL, **described(source, network, splits))
        write_json(folder / RESULT, result.to_json())
    return result


def gated(config: RunConfig, dense: nn.Module, batches: Epochs) -> tuple[DynamicModel, float]:
    """Convert a network as a run asks, with the r that the estimate gives for a budget.

    Returns:
        The dynamic network, and the executed reduction that the estimate predicts for it.
    """
    assert config.prune is not None
    example = gathered(next(iter(batches))[0], accelerator=processes())
    dynamic = convert(dense, example, **asdict(config.prune))
    curve = estimate(dynamic, batches, images=ESTIMATE_IMAGES, accelerator=processes())
    asked = config.train.target_reduction
    if asked is not None and config.allocate:
        dynamic.set_r(curve.allocate(reduction=asked).r)
    elif asked is not None:
        dynamic.set_r(curve.r_for(reduction=asked))
    return dynamic, curve.reduction_at(dynamic.r)


def twin_of(config: RunConfig, dense: nn.Module, batches: Epochs) -> DynamicModel:
    """Build the static twin of a finished dynamic run, with the weights that the run began with.

    Args:
        config: Which names the run, and its architecture.
        dense: The network it began with.
        batches: Training images as they are, over which its masks are counted.

    Raises:
        ValueError: The run's network is not dynamic, or of another architecture.
    """
    dynamic = resolve(config.model, config.twin_of).load()
    if not isinstance(dynamic, DynamicModel) or not dynamic.predictors:
        raise ValueError(
            f"{config.twin_of} holds a network without predictors, which has no static twin"
        )
    twin = dynamic.to(next(dense.parameters()).device).freeze(batches, accelerator=processes())
    masks = {k: v for k, v in twin.network.state_dict().items() if k.startswith(f"{GATES}.")}
    load_weights(twin.network, masks | dense.state_dict(), source="the network to begin with")
    return twin


def begun_run(folder: str | os.PathLike[str]) -> RunConfig | None:
    """The settings that a run's folder began with; None if it is no folder of a run."""
    path = Path(folder) / SETTINGS
    if not path.exists():
        return None
    with refusing(path, "holds no settings of a run"):
        return RunConfig.from_json(read_json(path))


def _recall(config: RunConfig, folder: Path, *, resume: bool) -> None:
    """Note a new run's settings in its folder; hold a resumed one to those it began with."""
    before = begun_run(folder) if resume else None
    if before is not None:
        if found := changes(_comparable(before), _comparable(config)):
            raise ValueError(f"{folder} holds another run: {'; '.join(found)}; resume with its own")
    elif processes().is_main_process and not (folder / CHECKPOINT).exists():
        write_json(folder / SETTINGS, config.to_json())


def _comparable(config: RunConfig) -> RunConfig:
    """Without what a resumed run may change: files may move, and other processes decode them."""
    data = replace(config.data, data_root=None, workers=DataConfig.workers)
    return replace(config, data=data)
