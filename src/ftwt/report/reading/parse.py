"""Result files into records: each field is checked, and a fault told by file and field."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ...records.benchmark import Benchmark
from ...records.contest import Contest
from ...records.corruptions import NetworkRobustness
from ...records.curve import Curve, read_curve
from ...records.fields import Fields
from .records import Filed, Measured, Pruned, Run

Named = TypeVar("Named", Benchmark, Contest, NetworkRobustness)


def measured(values: Fields, of: str | None = None) -> Measured:
    """Check and return an evaluation; `of` names its images.

    Raises:
        ValueError: A field is missing or not what it must be.
    """
    return replace(values.read(Measured), of=of)


def dataset(config: Any) -> str | None:
    """The images that a configuration names; None if it names none."""
    values = config if isinstance(config, dict) else {}
    data = values.get("data")
    found = data.get("dataset") if isinstance(data, dict) else None
    return None if found is None else f"{found}, {values.get('split', 'test')}"


def run(values: Fields, name: str, steps: tuple[dict[str, Any], ...] = ()) -> Run:
    """Check and return a run, or the network of another pruning library.

    Raises:
        ValueError: A field is missing or not what it must be.
    """
    config = values.inside("config")
    config.text("model")
    config.inside("train").whole("seed")
    prune = config.inside_or_none("prune")
    static = values.values.get("kind") == "static"
    library = values.inside("library") if static else None
    if static:
        kind = "static"
    elif "twin_of" in config:
        config.text("twin_of")
        kind = "twin"
    elif config.inside_or_none("fixed") is not None:
        config.inside("fixed").text("second_look")
        kind = "fixed"
    else:
        kind = "dense" if prune is None else "dynamic"
    test = measured(values.inside("test"), dataset(config.values))
    if kind == "dense" and test.units:  # what training began with was pruned already
        kind = "fixed"
    training, validation = values.inside("training"), values.inside_or_none("validation")
    matched, latency = values.inside_or_none("matched"), values.inside_or_none("latency")
    return Run(
        name=name,
        path=values.path,
        kind=kind,
        config=config.values,
        asked=values.number_or_none("asked_reduction", high=1),
        predicted=values.number_or_none("predicted_reduction", high=1),
        test=test,
        validation=None if validation is None else measured(validation),
        history=tuple(epoch(line) for line in training.each("history")),
        steps=steps,
        seconds=training.number("seconds", 0),
        provenance=provenance(values),
        library=None if library is None else library.text("name"),
        importance=values.text("importance") if static else None,
        matched={} if matched is None else matched.values,
        latency={} if latency is None else latency.values,
    )


FIGURES = {  # of an epoch or some steps -> the least and the largest value that they can have
    "loss": (0, None),
    "task_loss": (0, None),
    "val_loss": (0, None),
    "mask_loss": (0, None),
    "accuracy": (0, 1),
    "val_accuracy": (0, 1),
    "mask_accuracy": (0, 1),
    "reduction": (None, 1),
    "val_reduction": (None, 1),
    "lr": (0, None),
    "r": (0, 1),
    "images_per_s": (0, None),
}


def epoch(line: Fields) -> dict[str, Any]:
    """Check the figures of an epoch, and return those that are there.

    Raises:
        ValueError: There is no epoch, or a figure is not a number in its range.
    """
    step = {"step": line.whole("step", 1)} if "step" in line else {}
    return {"epoch": line.whole("epoch", 1)} | step | _figures(line)


def step(line: Fields) -> dict[str, Any]:
    """Check a line of figures of some steps, and return those that are there.

    Raises:
        ValueError: There is no step, or a figure is not a number in its range.
    """
    return {"step": line.whole("step", 1)} | _figures(line)


def _figures(line: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (low, high) in FIGURES.items():
        limits = {} if low is None else {"low": low}
        limits |= {} if high is None else {"high": high}
        if (value := line.number_or_none(name, **limits)) is not None:
            found[name] = value
    return found


def pruned(values: Fields, name: str) -> Pruned:
    """Check and return what `ftwt prune` wrote.

    Raises:
        ValueError: A field is missing or not what it must be.
    """
    made, test = values.inside("pruned"), values.inside("test")
    kinds = [kind for kind in test.values if kind != "dense"]
    kind = made.text("kind")
    if kind not in kinds:
        raise test.fault(kind, "the evaluation of the network that was chosen")
    return Pruned(
        name=name,
        path=values.path,
        kind=kind,
        asked=made.number("asked", high=1),
        dense=measured(test.inside("dense")),
        candidates={kind: measured(test.inside(kind)) for kind in kinds},
        latency=values.inside("latency").read(Benchmark),
        config={"model": values.text("network")},
        provenance=provenance(values),
    )


def evaluated(values: Fields, name: str) -> Filed[Measured]:
    """Check and return an evaluation that stands by itself.

    Raises:
        ValueError: A field is missing or not what it must be.
    """
    config = provenance(values).get("config")
    network = config.get("weights") or config.get("model") if isinstance(config, dict) else None
    return Filed(str(network or name), values.path, measured(values, dataset(config)))


def _named(values: Fields, name: str, *, kind: type[Named]) -> Filed[Named]:
    """Check and return a result that names its network.

    Raises:
        ValueError: A field is missing or not what it must be.
    """
    provenance(values)
    found = values.read(kind)
    return Filed(found.network, values.path, found)


benchmark = partial(_named, kind=Benchmark)
contest = partial(_named, kind=Contest)
corruptions = partial(_named, kind=NetworkRobustness)


def curve(values: Fields, name: str) -> Filed[Curve]:
    """Check and return an estimate.

    Raises:
        ValueError: A field is missing or not what it must be, or lists differ in length.
    """
    words = str(provenance(values).get("command", "")).split()
    named = words[2] if words[1:2] == ["estimate"] and len(words) > 2 else None
    if named and "--weights" in words[:-1]:
        named = words[words.index("--weights") + 1]
    return Filed(named, values.path, read_curve(values))


def provenance(values: Fields) -> dict[str, Any]:
    """Where a file's figures come from; empty where the file does not say.

    Raises:
        ValueError: The field is no object, or a part of it is not what it must be.
    """
    found = values.inside_or_none("provenance")
    if found is None:
        return {}
    for name in ("command", "date"):
        if name in found:
            found.text(name)
    for name in ("config", "versions", "hardware"):
        found.inside_or_none(name)
    commit = found.inside_or_none("git")
    if commit is not None and "commit" in commit:
        commit.text("commit")
    return found.values
