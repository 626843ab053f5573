"""A whole run from its configuration: data, network, gates, training, and what came of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult

from ..config import DataConfig, RunConfig, changes
from ..data import folder_classes
from ..evaluation.evaluate import evaluate
from ..files.json import read_json, write_json
from ..files.provenance import provenance
from ..files.tables import Shown
from ..files.tensors import refusing
from ..networks.pretrained import save_pretrained
from ..networks.sources import count_outputs, resolve
from ..networks.splits import described, load_splits
from ..processes import processes
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook
from ..records.evaluation import Evaluation
from ..records.folder import CHECKPOINT, MODEL, RESULT, SETTINGS
from ..training.lock import held
from ..training.loop import TrainResult, raised, train
from .fixed import looking, masked, told
from .start import check_gates, gated, teacher_of, twin_of


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
        resume: Go on with the run that is in the folder; of the settings, `train.epochs` may have
            been raised.

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
    start = source.load_start(classes=classes, new_head=config.new_head, data=config.data)
    if isinstance(start, DynamicModel):
        check_gates(config, start)
    outputs = count_outputs(start, source.shape(config.data))
    teacher = teacher_of(config, start, classes=outputs)
    splits = load_splits(
        config.data,
        source=source,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        channels_last=config.train.channels_last,
        labels=True,
    )
    held_out = len(splits.validation.images)  # of all processes
    config = replace(config, data=replace(config.data, validation=held_out))
    origin = provenance(config=config, seed=config.train.seed)
    network, predicted = start, None
    if config.twin_of is not None:
        network = twin_of(config, start, splits.plain)
    elif config.prune is not None:
        network, predicted = gated(config, start, splits.plain)
    elif config.fixed is not None:
        network = masked(config.fixed, start, splits.plain)
    trained = train(
        network,
        splits.train,
        splits.validation,
        config.train,
        output=folder,
        resume=resume,
        teacher=None if isinstance(network, SecondLook) else teacher,
    )
    look = None
    if config.fixed is not None:
        look = looking(config.fixed, network, start, splits.validation)
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
        longer = raised(before.train, config.train.epochs)
        before = replace(before, train=longer)
        if found := changes(_comparable(before), _comparable(config)):
            raise ValueError(f"{folder} holds another run: {'; '.join(found)}; resume with its own")
        if processes().is_main_process:
            write_json(folder / SETTINGS, before.to_json())
    elif processes().is_main_process and not (folder / CHECKPOINT).exists():
        write_json(folder / SETTINGS, config.to_json())


def _comparable(config: RunConfig) -> RunConfig:
    """Without what a resumed run may change: files may move, and other processes decode them."""
    data = replace(config.data, data_root=None, workers=DataConfig.workers)
    return replace(config, data=data)
