"""Static pruning beside a dynamic run: Torch-Pruning, at equal MACs or equal latency.

    python benchmarks/static_pruning.py runs/NAME                  # at equal executed MACs
    python benchmarks/static_pruning.py runs/NAME --match latency  # on an idle machine
    python benchmarks/static_pruning.py runs/NAME --importance taylor --seed 1
    python benchmarks/static_pruning.py runs/NAME --resume         # what was interrupted

The run is the folder of a finished dynamic run, or its run.json. Its dense network is pruned by
Torch-Pruning (`pip install ".[static]"`) and trained with the run's data, epochs and settings, but
for those that only gates have. Where the run was distilled, this is too, from the same dense
network.

- `--match macs`: as many executed MACs as the run needs on its validation images.
- `--match latency`: as long for a single image on our engine, one thread: the pruned network as
  a dense one beside the dynamic network, in turns, on validation images. The size is searched for
  before training; the latencies in the result are measured after it.

One file in results/static/, which says how long it took; weights and checkpoints in runs/static/.
Making ResNet-20 smaller takes seconds by magnitude and a minute by Taylor; the rest is training.
`python tools/write_tables.py` makes a table of the files.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from torch import nn

import ftwt
from ftwt.config import RunConfig, changes
from ftwt.evaluation.evaluate import Evaluation
from ftwt.files.json import read_json, write_json
from ftwt.files.provenance import provenance
from ftwt.networks.pretrained import from_pretrained, save_pretrained
from ftwt.networks.sources import resolve
from ftwt.networks.splits import load_splits
from ftwt.records.folder import CHECKPOINT, MODEL, RESULT
from ftwt.runs.run import RunResult
from ftwt.runtime.engine import Kind
from ftwt.training.loop import Interrupted

try:
    from race import Race, as_fast
    from structured import History, Importance, Task, count_macs, prune_to, replay
except ModuleNotFoundError as error:
    if error.name != "torch_pruning":
        raise
    sys.exit('torch-pruning is not installed: pip install ".[static]"')

Match = Literal["macs", "latency"]

PRUNING = "pruning.json"  # of a pruned network's folder
GRADIENT_IMAGES = 1000  # that Taylor's importance sees, in whole batches
ROUNDS = 25  # of timing both networks, at the end


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune, train, evaluate, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a dynamic run, or its run.json")
    parser.add_argument("--match", choices=get_args(Match), default="macs")
    parser.add_argument("--importance", choices=get_args(Importance), default="magnitude")
    parser.add_argument("--output", metavar="FILE", help="where the result goes")
    parser.add_argument("--seed", type=int, help="of the training; the run's if not given")
    parser.add_argument("--epochs", type=int, help="the run's if not given")
    parser.add_argument("--data-root", help="folder of the dataset's files; ./data if not given")
    parser.add_argument("--resume", action="store_true", help="go on with what was interrupted")
    try:
        result = compare(**vars(parser.parse_args(arguments)))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except (ValueError, OSError) as wrong:
        print(f"static_pruning: {wrong}", file=sys.stderr)
        return 2
    matched, test = result["matched"], result["test"]
    Console().print(
        f"{matched['to']}, {matched['on']}: asked {matched['asked']:.4f}, "
        f"got {matched['got']:.4f}; "
        f"top-1 {test['top1']:.2%} at {test['reduction']:.2%} fewer MACs "
        f"(dynamic: {result['dynamic']['top1']:.2%} at {result['dynamic']['reduction']:.2%})"
    )
    return 0


@dataclass(frozen=True)
class Dynamic:
    """A finished dynamic run: its name, its folder, its settings, and what it achieved."""

    name: str
    folder: Path
    config: RunConfig
    result: dict[str, Any]


def compare(
    run: str,
    *,
    match: Match = "macs",
    importance: Importance = "magnitude",
    output: str | None = None,
    seed: int | None = None,
    epochs: int | None = None,
    data_root: str | None = None,
    resume: bool = False,
    engine: Kind = "native",
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Prune what a dynamic run began with until it costs what that run costs, and train it as long.

    Args:
        run: Folder of the run, or its run.json.
        match: What shall be equal.
        importance: What ranks channels.
        output: The result's file; its name is also that of the folder in runs/static/.
        seed: Of the training; the run's if not given.
        epochs: The run's if not given.
        data_root: Folder of the dataset's files.
        resume: Go on with the training that was interrupted.
        engine: That latencies are measured on; `reference` is for tests.
        rounds: How often both networks run each image, at the end.

    Returns:
        What was written: a run's result, and how it was matched.

    Raises:
        ValueError: The run is no finished dynamic one, cannot be matched, or the folder holds
            another comparison.
    """
    dynamic = read_run(run)
    config = static_config(dynamic.config, seed=seed, epochs=epochs)
    if output is None:
        base = re.sub(r"-seed\d+$", "", dynamic.name)
        at = "" if match == "macs" else f"-{match}"
        output = f"results/static/{base}-{importance}{at}-seed{config.train.seed}.json"
    folder = Path("runs", "static", Path(output).stem)
    asks = {"run": dynamic.name, "match": match, "importance": importance}
    begun = _recall(folder, config, asks, resume=resume)

    origin = provenance(config=config, seed=config.train.seed)
    splits = load_splits(
        replace(config.data, data_root=data_root),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        channels_last=config.train.channels_last,
    )
    dense = resolve(config.model, config.weights).load_dense().eval()
    images, _ = next(iter(splits.validation))
    seen = math.ceil(GRADIENT_IMAGES / splits.plain.batch_size) if importance == "taylor" else 0
    gradients = list(islice(splits.plain, seen))
    task = Task(dense, images[:1].contiguous(), importance, gradients)
    race = Race(resolve(str(dynamic.folder)).load(), images, engine) if match == "latency" else None
    asked = dynamic.result["validation"]["reduction"]
    if begun is not None:
        history: History = begun["history"]
    elif race is None:
        history = prune_to(task, asked)
    else:
        history = as_fast(task, race)
    network = replay(task, history)
    shape = list(images.shape[1:])
    told = asks | {"config": config.to_json(), "input_shape": shape, "history": history}
    write_json(folder / PRUNING, told)

    trained = ftwt.train(
        network,
        splits.train,
        splits.validation,
        config.train,
        output=folder,
        resume=(folder / CHECKPOINT).exists(),
        teacher=copy.deepcopy(dense) if config.train.distillation else None,
    )
    save_pretrained(network, folder / MODEL)
    network.eval()
    macs = [
        count_macs(which, task.example, convolutions=part)
        for which, part in ((dense, False), (network, False), (network, True))
    ]
    validation = against(ftwt.evaluate(network, splits.validation), *macs)
    whole = RunResult(
        config=config,
        predicted_reduction=None,
        training=replace(trained, evaluation=validation.to_json()),
        validation=validation,
        test=against(ftwt.evaluate(network, splits.test), *macs),
        provenance=origin | {"duration_s": round(trained.seconds, 1)},
    )
    latency = None if race is None else race.measure(network, rounds=rounds)
    got = whole.validation.reduction if latency is None else latency["ratio"]
    version = importlib.metadata.version("torch-pruning")
    result = whole.to_json() | {
        "kind": "static",
        "library": {"name": "torch-pruning", "version": version},
        "importance": importance,
        "matched": {
            "to": dynamic.name,
            "on": match,
            "asked": asked if latency is None else 1.0,  # latency: of the dynamic network's
            "got": got,
        },
        "dynamic": {
            "top1": dynamic.result["test"]["top1"],
            "reduction": dynamic.result["test"]["reduction"],
            "epochs": dynamic.config.train.epochs,
            "seed": dynamic.config.train.seed,
        },
    }
    if latency is not None:
        result["latency"] = latency
    write_json(output, result)
    return result


def read_run(source: str) -> Dynamic:
    """Read a finished dynamic run.

    Raises:
        ValueError: It is not finished, or has no gates, or began with random weights.
        FileNotFoundError: There is no such run.
    """
    given = Path(source)
    path = given / RESULT if given.is_dir() else given
    if given.is_dir() and not path.exists():
        raise ValueError(
            f"{source} holds no {RESULT}: the run is not finished, or none; finish it first "
            "(ftwt train ... --resume)"
        )
    result = read_json(path)
    if not isinstance(result, dict) or not {"config", "validation", "test"} <= result.keys():
        raise ValueError(f"{path} is not the result of a run; give a {RESULT} or its folder")
    config = RunConfig.from_json(result["config"])
    if config.twin_of is not None:
        raise ValueError(f"{source} is a static twin; give the run that it is of, {config.twin_of}")
    if config.prune is None:
        raise ValueError(f"{source} is a run without gates, which saves nothing to be matched")
    if config.weights is None:
        raise ValueError(f"{source} began with random weights: there is no network to prune")
    name = path.parent.resolve().name if path.name == RESULT else path.stem
    return Dynamic(name, path.parent, config, result)


def static_config(
    config: RunConfig, *, seed: int | None = None, epochs: int | None = None
) -> RunConfig:
    """Return a dynamic run's settings without what only gates have."""
    plain = config.without_gates()
    told = {"seed": seed, "epochs": epochs}
    given = {name: value for name, value in told.items() if value is not None}
    return replace(plain, train=replace(plain.train, **given))


def against(evaluation: Evaluation, dense: int, pruned: int, convolutions: int) -> Evaluation:
    """Set a pruned network's figures against the dense network.

    Args:
        evaluation: Of the pruned network.
        dense: MACs of the network before.
        pruned: MACs of the network now.
        convolutions: Of these, the convolutions': the paper counts no others.
    """
    saved = 1 - pruned / dense
    return replace(
        evaluation,
        dense_macs=dense,
        executed_macs=float(pruned),
        reduction=saved,
        reduction_range=(saved, saved),
        published_reduction=1 - convolutions / dense,
    )


def load_pruned(folder: str) -> nn.Module:
    """Return the trained network of a folder in runs/static/, on the CPU, in eval mode."""
    told = read_json(Path(folder, PRUNING))
    example = torch.zeros(1, *told["input_shape"])
    dense = ftwt.models.create(told["config"]["model"])
    return from_pretrained(Path(folder, MODEL), model=replay(Task(dense, example), told["history"]))


def _recall(
    folder: Path, config: RunConfig, asks: dict[str, str], *, resume: bool
) -> dict[str, Any] | None:
    """Return what was noted of a comparison that is to go on; see that it is this one."""
    begun = (folder / PRUNING).exists()
    if not resume:
        if (folder / CHECKPOINT).exists():
            raise ValueError(
                f"{folder} already holds a run; go on with it (--resume) or give another --output"
            )
        return None
    if not begun:
        raise ValueError(
            f"no {folder / PRUNING}, so there is nothing to resume; leave out --resume"
        )
    told = read_json(folder / PRUNING)
    found = [f"{k} was {told[k]}, is {now}" for k, now in asks.items() if told[k] != now]
    found += changes(RunConfig.from_json(told["config"]), config)
    if found:
        raise ValueError(f"{folder} holds another run: {'; '.join(found)}; resume with its own")
    return told


if __name__ == "__main__":
    sys.exit(main())
