"""Put the network of a finished run into the package, in half precision, with its figures and card.

    python tools/ship.py runs/resnet20-50 cifar10-resnet20-dynamic-50 --twin runs/resnet20-50-twin

NAME is `MODEL`, `MODEL-dynamic-PERCENT` or `MODEL-static-PERCENT` (docs/models.md). The network is
stored, loaded again as users load it, and evaluated on validation and test images, on the CPU. It
is refused when rounding costs accuracy or moves the reduction, or when all that is shipped grows
too large. An older network of that name is replaced, whole or not at all.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from model_card import CARD, card
from rich.console import Console
from rich.table import Table
from torch import nn

from ftwt import shipped
from ftwt.config import DataConfig
from ftwt.evaluation.evaluate import Evaluation, evaluate
from ftwt.files.atomic import replacing
from ftwt.files.json import read_json, write_json
from ftwt.files.provenance import provenance
from ftwt.networks.pretrained import from_pretrained, save_pretrained
from ftwt.networks.splits import load_splits
from ftwt.pruning.dynamic import DynamicModel
from ftwt.records.folder import RESULT
from ftwt.shipped import CONFIG, MODEL, Name, catalogue

MOST_BYTES = 25_000_000  # of all shipped networks together
MOST_LOST = 0.0005  # of top-1, over validation and test images together
MOST_MOVED = 0.001  # of the executed reduction, on either
MOST_APART = 0.003  # of top-1, between what a run says and its network, evaluated here
MOST_MISSED = 0.03  # between the reduction in a name and the achieved one, if none was asked
SPLITS = ("validation", "test")
PRECISIONS = {"f16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EMBEDDED = DataConfig(dataset="cifar10-embedded", validation=400)  # what a quick check looks at


def ship(run: Path, name: str, *, twin: Path | None = None, precision: str = "f16") -> Path:
    """Put a run's network into the package.

    Args:
        run: The folder of a finished run.
        name: What to call its network.
        twin: The folder of its static twin's run.
        precision: Of weights with two dimensions or more: `f16`, `bf16` or `fp32`.

    Returns:
        The network's folder.

    Raises:
        ValueError: The name does not fit the run, the twin is that of another run, rounding costs
            too much, or all networks together are too large.
        FileNotFoundError: A run is not finished.
    """
    record, network = read_run(run), from_pretrained(run / MODEL)
    check_name(name, record, network)
    data = DataConfig.from_json(record["config"]["data"] | {"data_root": None})
    record["config"]["data"] = data.to_json()
    beside = None if twin is None else about_twin(twin, run, network)
    splits = load_splits(data)
    exact = {split: figures(network, getattr(splits, split)) for split in SPLITS}
    check_run(run, record, exact)
    config = read_json(run / MODEL / CONFIG)
    with becoming(catalogue.FOLDER / name) as folder:
        save_pretrained(
            network,
            folder / MODEL,
            name=config["model"],
            arguments=config["arguments"],
            dtype=PRECISIONS[precision],
        )
        stored = from_pretrained(folder / MODEL)
        kept = {split: figures(stored, getattr(splits, split)) for split in SPLITS}
        tell(name, precision, exact, kept)
        check_rounding(precision, exact, kept)
        told = {
            "name": name,
            "kind": kind_of(network),
            "precision": precision,
            "weights_bytes": size_of(folder / MODEL),
            "embedded": figures(stored, load_splits(EMBEDDED).test).to_json(),
            "trained": {split: brief(record[split]) for split in SPLITS},
            "dense": about_dense(record, name),
            "twin": beside,
            "provenance": provenance(config={"run": run.name, "precision": precision}),
        }
        result = record | {split: kept[split].to_json() for split in SPLITS} | {"shipped": told}
        write_json(folder / RESULT, result)
        write_text(folder / CARD, card(result))
        check_size(folder, name)
    return catalogue.FOLDER / name


def read_run(run: Path) -> dict[str, Any]:
    """Read a finished run's result."""
    if not (run / RESULT).is_file() or not (run / MODEL).is_dir():
        raise FileNotFoundError(f"{run} holds no {RESULT} and {MODEL}/; name a finished run")
    record = read_json(run / RESULT)
    record.pop("shipped", None)  # of a network that was shipped, and is shipped again
    return record


def kind_of(network: nn.Module) -> str:
    """Say whether a network has gates, and whether these are a twin's."""
    if not isinstance(network, DynamicModel):
        return "dense"
    return "dynamic" if network.predictors else "static"


def check_name(name: str, record: dict[str, Any], network: nn.Module) -> None:
    """Refuse a name that says something else than the run."""
    read, kind, model = Name.read(name), kind_of(network), record["config"]["model"]
    if (read.kind, read.model) != (kind, model):
        form = model if kind == "dense" else f"{model}-{kind}-PERCENT"
        raise ValueError(f"{name!r} is no name for this run, whose network is {kind}: {form}")
    if read.percent is None:
        return
    asked, achieved = record.get("asked_reduction"), record["test"]["reduction"]
    if asked is not None and read.percent != round(100 * asked):
        raise ValueError(f"{name!r}: the run was asked for {asked:.1%}; say so in the name")
    if asked is None and abs(read.percent / 100 - achieved) > MOST_MISSED:
        raise ValueError(
            f"{name!r}: the run saves {achieved:.1%}; a name may be {MOST_MISSED:.0%} off"
        )


def check_run(run: Path, record: dict[str, Any], exact: dict[str, Evaluation]) -> None:
    """Refuse a folder whose network is not the one that its result is of."""
    for split in SPLITS:
        said, found = record[split]["top1"], exact[split].top1
        if abs(said - found) > MOST_APART:
            raise ValueError(
                f"{run / RESULT} says {said:.2%} on {split} images, {run / MODEL} reaches "
                f"{found:.2%} here: they are not of the same run"
            )


def about_twin(twin: Path, run: Path, network: nn.Module) -> dict[str, Any]:
    """What is told of a static twin beside its dynamic network."""
    record = read_run(twin)
    of = record["config"].get("twin_of")
    if kind_of(network) != "dynamic" or of is None or Path(of).name != run.resolve().name:
        raise ValueError(f"{twin} is the static twin of {of}, not of {run}; name the run's own")
    return {
        **{split: brief(record[split]) for split in SPLITS},
        "provenance": record["provenance"],
    }


def about_dense(record: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What is told of the dense network that a run began with, where that is known."""
    start, model = record["config"].get("weights"), record["config"]["model"]
    if start == "pretrained" and model in shipped.names() and model != name:
        return {"name": model, **{split: brief(shipped.result(model)[split]) for split in SPLITS}}
    if start not in (None, "pretrained") and (Path(start) / RESULT).is_file():
        dense = read_run(Path(start))
        return {"name": Path(start).name, **{split: brief(dense[split]) for split in SPLITS}}
    return None


def brief(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation that others are compared with."""
    names = ("images", "loss", "top1", "executed_macs", "reduction", "published_reduction")
    return {name: evaluation[name] for name in names}


def figures(network: nn.Module, images: Any) -> Evaluation:
    """Evaluate on the CPU, as `ftwt evaluate` does where there is no GPU."""
    return evaluate(network.cpu(), images)


def tell(
    name: str, precision: str, exact: dict[str, Evaluation], kept: dict[str, Evaluation]
) -> None:
    """Print what rounding did."""
    table = Table("", "", "trained", precision, "difference", title=name)
    for split in SPLITS:
        a, b = exact[split], kept[split]
        moved = f"{round(100 * (b.top1 - a.top1), 2) + 0.0:+.2f} points"
        table.add_row(split, "top-1", f"{a.top1:.2%}", f"{b.top1:.2%}", moved)
        moved = f"{round(100 * (b.reduction - a.reduction), 3) + 0.0:+.3f} points"
        table.add_row("", "reduction", f"{a.reduction:.3%}", f"{b.reduction:.3%}", moved)
    Console().print(table)


def check_rounding(
    precision: str, exact: dict[str, Evaluation], kept: dict[str, Evaluation]
) -> None:
    """Refuse what rounding changed too much.

    A few images lie so near to a decision that any rounding turns them, either way; over 15,000
    images that is less than over each split by itself.
    """
    images = sum(exact[split].images for split in SPLITS)
    lost = sum((exact[s].top1 - kept[s].top1) * exact[s].images for s in SPLITS) / images
    ways = " or ".join(f"--{other}" for other in ("bf16", "fp32") if other != precision)
    if lost > MOST_LOST + 1e-9:
        raise ValueError(
            f"{precision} costs {100 * lost:.3f} points of top-1 over {images:,} images, more than "
            f"{100 * MOST_LOST:g}; try {ways}"
        )
    for split in SPLITS:
        moved = kept[split].reduction - exact[split].reduction
        if abs(moved) > MOST_MOVED + 1e-9:
            raise ValueError(
                f"{precision} moves the reduction on {split} images by {100 * moved:+.2f} points, "
                f"more than {100 * MOST_MOVED:g}; try {ways}"
            )


def check_size(folder: Path, name: str) -> None:
    """Refuse a network with which all of them would be too large."""
    others = {other: size_of(shipped.folder(other)) for other in shipped.names() if other != name}
    own, total = size_of(folder), size_of(folder) + sum(others.values())
    if total > MOST_BYTES:
        rest = ", ".join(f"{other} {size / 1e6:.1f}" for other, size in others.items()) or "none"
        raise ValueError(
            f"{name} takes {own / 1e6:.1f} MB, with the others ({rest}) {total / 1e6:.1f} MB; all "
            f"shipped networks together may take {MOST_BYTES / 1e6:g}: remove one, or ship less"
        )
    print(f"{name}: {own / 1e6:.2f} MB; all {len(others) + 1} together {total / 1e6:.2f} MB")


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def becoming(folder: Path) -> Iterator[Path]:
    """Yield a folder beside a folder that takes its place if all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                shutil.move(old, folder)
            raise


def main() -> int:
    """Read the command line and ship."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="what to call its network")
    parser.add_argument("--twin", type=Path, help="folder of its static twin's run")
    for precision in ("bf16", "fp32"):
        parser.add_argument(
            f"--{precision}",
            dest="precision",
            action="store_const",
            const=precision,
            default="f16",
            help=f"store weights as {precision}, not f16",
        )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half made is removed
    try:
        folder = ship(given.run, given.name, twin=given.twin, precision=given.precision)
    except (ValueError, OSError) as error:
        print(f"ship.py: {error}", file=sys.stderr)
        return 1
    print(f"{folder}; now: python tools/write_tables.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
