"""Runs that belong together: the seeds of one setting, and the settings of one method."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import palette
from .records import Run

FIXED = {  # who looks again -> how that is called, and its marker
    "dense": ("fixed mask, the dense network looks again", "h"),
    "shared": ("fixed mask, weights for both passes", "H"),
}
NOT_SETTINGS = {"data_root", "seed", "tracker", "twin_of"}  # say where or which, not how
DIAL = {"r", "skip", "min_gain", "target_reduction", "keep"}  # of the prune config: how much
USUAL = {  # gates as `ftwt.convert` makes them by default
    "mode": "decoupled",
    "saliency": "peak",
    "variant": "mass",
    "pool": "mean",
    "head": "standardized",
    "rank": None,
    "residual": "before",
    "depthwise": "inherit",
    "straight_through": False,
}
WORDS = {  # how a setting reads in a label
    "mode": "{}",
    "head": "{} head",
    "pool": "{} pool",
    "saliency": "saliency {}",
    "variant": "{} targets",
    "residual": "masks {} the add",
    "depthwise": "depthwise: {}",
    "rank": "rank {}",
}


@dataclass(frozen=True)
class Method:
    """A way to prune, or none, as figures show it: one name, one colour, one marker.

    Args:
        key: The same for all runs of the method; sorts them as legends list them.
        label: What to call it.
        colour: From the palette.
        marker: As matplotlib calls it: `o` dynamic, `s` static twin, `^` another
            library, `D` dense.
    """

    key: str
    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Group:
    """Runs that differ only in seed.

    Args:
        key: The same for two groups of the same settings.
        label: How the group differs from others of its method: `r = 0.9`, `30% asked`.
        method: Its method.
        runs: Its runs, by seed.
    """

    key: str
    label: str
    method: Method
    runs: tuple[Run, ...]

    @property
    def kind(self) -> str:
        """`dense`, `dynamic`, `twin` or `static`, as of its runs."""
        return self.runs[0].kind

    @property
    def network(self) -> str:
        """Name of the architecture."""
        return self.runs[0].network


def group(runs: Iterable[Run]) -> tuple[Group, ...]:
    """Put runs together that differ only in seed, in order of method and reduction."""
    runs = tuple(runs)
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(_key(run, runs), []).append(run)
    settings = {key: _settings(part[0], runs) for key, part in parts.items()}
    groups = []
    for key, part in parts.items():
        method = method_of(part[0], runs)
        rivals = [
            settings[other]
            for other, members in parts.items()
            if method_of(members[0], runs).key == method.key
            and members[0].network == part[0].network
            and _dial(members[0], runs) == _dial(part[0], runs)
        ]
        label = _label(part[0], settings[key], rivals, runs)
        groups.append(Group(key, label, method, tuple(sorted(part, key=lambda run: run.seed))))
    return tuple(
        sorted(groups, key=lambda g: (g.network, g.method.key, -g.runs[0].test.executed_macs))
    )


def method_of(run: Run, runs: Iterable[Run]) -> Method:
    """The method of a run, as it is called among all runs of a report.

    Dynamic runs are `dynamic`, and after it how their gates differ from the usual ones: `dynamic,
    joint`. How much is pruned (r, the budget) and how long it was trained makes no other method.
    """
    if run.kind == "dense":
        return Method("0 dense", "dense", palette.DENSE, "D")
    if run.kind == "twin":
        return Method("2 twin", "static twin", palette.TWIN, "s")
    if run.kind == "fixed":
        second = str((run.config.get("fixed") or {}).get("second_look"))
        label, marker = FIXED.get(second, ("fixed mask", "p"))
        return Method(f"2 {label}", label, palette.TWIN, marker)
    runs = tuple(runs)
    if run.kind == "static":
        names = sorted({_rival(other) for other in runs if other.kind == "static"})
        number = names.index(_rival(run))
        colour = palette.STATIC[number % len(palette.STATIC)]
        return Method(f"3 {_rival(run)}", _rival(run), colour, "^v<>"[number // 2 % 4])
    gates = [_gates(other) for other in runs if other.kind == "dynamic"]
    usual = _usual(gates)
    labels = {_variant(one, usual) for one in gates}
    label = _variant(_gates(run), usual)
    # The usual gates take the first colour, whether they are there or not.
    place = ["dynamic", *sorted(labels - {"dynamic"})].index(label)
    count = len(palette.DYNAMIC)
    return Method(
        f"1 {place} {label}", label, palette.DYNAMIC[place % count], "oPX*"[place // count % 4]
    )


def _usual(gates: list[dict[str, Any]]) -> dict[str, Any]:
    """What each setting of gates is by default; of unknown settings, what most runs have."""
    names = {name for one in gates for name in one} - USUAL.keys()
    told = {name: [one[name] for one in gates if name in one] for name in names}
    return USUAL | {name: max(values, key=values.count) for name, values in told.items()}


def _variant(gates: dict[str, Any], usual: dict[str, Any]) -> str:
    changed = {name: value for name, value in gates.items() if value != usual.get(name, value)}
    return ", ".join(["dynamic", *(_words(name, changed[name]) for name in sorted(changed))])


def _rival(run: Run) -> str:
    how = f" ({run.importance})" if run.importance else ""
    name = "-".join(word.capitalize() for word in str(run.library).split("-"))
    return f"{name}{how}"


def _gates(run: Run) -> dict[str, Any]:
    """The settings of the gates that make a method."""
    return {name: value for name, value in (run.config["prune"] or {}).items() if name not in DIAL}


def _words(name: str, value: Any) -> str:
    if value is None or value == []:
        return f"no {name}"
    if isinstance(value, bool):
        return name.replace("_", " ") if value else f"no {name.replace('_', ' ')}"
    form = WORDS.get(name, name.replace("_", " ") + " {}")
    return form.format(f"{value:g}" if isinstance(value, float) else value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings without nesting, those that say how and not where."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in NOT_SETTINGS:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def twin_of(run: Run, runs: Iterable[Run]) -> Run | None:
    """The static twin that was made of a run; None if it is not among these."""
    runs = tuple(runs)
    twins = (other for other in runs if other.kind == "twin")
    return next((twin for twin in twins if _parent(twin, runs) is run), None)


def _other(run: Run) -> str:
    """The run that a static twin was made of, or that a rival's cost was matched to."""
    return Path(
        str(run.config["twin_of"] if run.kind == "twin" else run.matched.get("to", ""))
    ).name


def _parent(run: Run, runs: Iterable[Run]) -> Run | None:
    """The run that another one means; of several made in one folder, that of the same seed."""
    wanted = _other(run)
    named = [other for other in runs if wanted in other.aliases and other is not run]
    near = sorted(named, key=lambda other: (other.name != wanted, other.seed != run.seed))
    return near[0] if near else None


def _settings(run: Run, runs: tuple[Run, ...]) -> dict[str, Any]:
    found = {"kind": run.kind} | _flat(run.config)
    if run.kind in ("twin", "static"):
        # Its own gates, if any, are not used: those of the run that it goes with say what it is.
        found = {name: value for name, value in found.items() if not name.startswith("prune")}
        parent = _parent(run, runs)
        if parent is None:
            found["of"] = re.sub(r"[-_]s(eed)?\d+$", "", _other(run))
        else:
            found |= {f"of.{name}": value for name, value in _settings(parent, runs).items()}
    if run.kind == "static":
        found |= {"library": run.library, "importance": run.importance}
        found["matched on"] = run.matched.get("on")
    return found


def _key(run: Run, runs: tuple[Run, ...]) -> str:
    return json.dumps(_settings(run, runs), sort_keys=True)


def _label(
    run: Run, mine: dict[str, Any], rivals: list[dict[str, Any]], runs: tuple[Run, ...]
) -> str:
    """How much a group prunes; and how it differs from others that prune as much, its rivals."""
    dial = _dial(run, runs)
    told = [dial] if dial else []
    for name in sorted({name for rival in rivals for name in rival}):
        values = {json.dumps(rival.get(name), sort_keys=True) for rival in rivals}
        if len(values) > 1 and not name.endswith("kind"):
            short, value = name.rpartition(".")[2], mine.get(name)
            if "prune" not in name or value != USUAL.get(short, ...):
                told.append(_words(short, value))
    return ", ".join(dict.fromkeys(told))


def _dial(run: Run, runs: tuple[Run, ...]) -> str:
    if run.kind in ("twin", "static"):
        parent = _parent(run, runs)
        told = f"of {_other(run)}" if parent is None else _dial(parent, runs)
        if run.kind == "twin":
            return told
        on = str(run.matched.get("on", "")).replace("macs", "MACs")
        return f"{on} of {told.removeprefix('of ')}" if _other(run) else ""
    if run.asked is not None:
        return f"{run.asked:.0%} asked"
    r = (run.config["prune"] or {}).get("r") if run.kind == "dynamic" else None
    if r is None:
        return ""
    return f"r = {r:g}" if isinstance(r, int | float) else "r by unit"
