"""The data of each figure and table over runs, as plain rows: exactly these are drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..records.contestants import GATED
from ..records.corruptions import Corrupted
from .published import COMPUTE_HOURS, architecture, rows_for
from .reading.found import Baseline, Found
from .reading.groups import Group
from .reading.records import Pruned, Run

Row = dict[str, Any]
EXECUTED, PUBLISHED = "executed", "as published"  # how a row's MACs are counted
UNTRAINED = {  # by `ftwt prune`
    "static": "static, repaired",
    "dynamic": "dynamic, repaired",
    "mixed": "mixed, repaired",
    "second-look": "second look, repaired",
}


def mean_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of what is known; None where nothing, or one, is."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return math.fsum(known) / len(known), statistics.stdev(known) if len(known) > 1 else None


def accuracy_rows(found: Found, network: str) -> list[Row]:
    """Accuracy against reduction of one network: ours, the rivals, and what was published.

    Returns:
        A row for each setting (mean over its seeds), the dense network, each candidate of a
        pruning, and each published row. `counted` says how the row's reduction is counted,
        `method` is the key of its colour: see `palette.colour`.
    """
    rows: list[Row] = []
    for part in _groups(found, network):
        top1, top1_std = mean_std(run.test.top1 for run in part.runs)
        cut, cut_std = mean_std(run.test.reduction for run in part.runs)
        rows.append(
            _accuracy(part.method.label, part.label, cut, cut_std, top1, top1_std, len(part.runs))
        )
        rows[-1] |= {"images": part.runs[0].test.images}
        rows[-1]["source"] = "; ".join(run.name for run in part.runs)
    for one in found.pruned:
        if one.network == network:
            for kind, after in one.candidates.items():
                asked = f"{one.asked:.0%} asked"
                method = UNTRAINED.get(kind, kind)
                rows.append(_accuracy(method, asked, after.reduction, None, after.top1, None, 1))
                rows[-1] |= {"images": after.images, "source": one.name}
    if not any(row["method"] == "dense" for row in rows):
        before = dense_of(found, network)
        if before is not None:
            rows.insert(0, _accuracy("dense", "", 0.0, None, before.result.top1, None, 1))
            rows[0] |= {"images": before.result.images, "source": before.path.name}
    if len({one["images"] for one in rows}) > 1:  # not to be compared
        for told in rows:
            words = (told["setting"], f"{told['images']:,} test images")
            told["setting"] = ", ".join(word for word in words if word)
    for row in rows_for(network):
        if row.top1 is None:
            continue
        rows.append(
            _accuracy(
                f"{row.method}, published",
                row.label,
                row.reduction,
                row.reduction_std,
                row.top1,
                row.top1_std,
                3 if row.top1_std is not None else 1,
            )
        )
        rows[-1] |= {"counted": PUBLISHED, "source": row.source}
    return rows


def _accuracy(
    method: str,
    setting: str,
    cut: float | None,
    cut_std: float | None,
    top1: float | None,
    top1_std: float | None,
    runs: int,
) -> Row:
    return {
        "method": method,
        "setting": setting,
        "reduction": cut,
        "reduction_std": cut_std,
        "top1": top1,
        "top1_std": top1_std,
        "runs": runs,
        "images": None,
        "counted": EXECUTED,
    }


def curve_rows(found: Found, network: str) -> list[Row]:
    """Reduction against r: the estimates' curves, and what runs predicted and achieved.

    Returns:
        Rows of `kind` `curve` (a point of an estimate), `predicted` and `achieved` (of a setting,
        at its r; where each unit has its own, their mean at the end of training).
    """
    rows: list[Row] = []
    names = {network} | {
        n for r in found.runs if r.network == network for n in (*r.aliases, r.folder)
    }
    for curve in found.curves:
        if curve.name is None or curve.name in names:
            rows += [
                {"kind": "curve", "method": "estimate", "setting": curve.path.stem, "r": r,
                 "asked": None,
                 "reduction": cut, "reduction_std": None, "published_reduction": flattered}
                for r, cut, flattered in zip(
                    curve.result.r,
                    curve.result.reduction,
                    curve.result.published_reduction,
                    strict=True,
                )
            ]  # fmt: skip
    for part in _groups(found, network):
        r, _ = mean_std(final_r(run) for run in part.runs)
        if part.kind != "dynamic" or r is None:
            continue
        for kind, values in (
            # A budget's r moves in training; what was predicted, was predicted for another.
            ("predicted", [run.predicted if run.asked is None else None for run in part.runs]),
            ("achieved", [run.test.reduction for run in part.runs]),
        ):
            cut, cut_std = mean_std(values)
            if cut is not None:
                published, _ = mean_std(run.test.published_reduction for run in part.runs)
                rows.append(
                    {"kind": kind, "method": part.method.label, "setting": part.label, "r": r,
                     "asked": part.runs[0].asked,
                     "reduction": cut, "reduction_std": cut_std,
                     "published_reduction": published if kind == "achieved" else None}
                )  # fmt: skip
    return rows


def final_r(run: Run) -> float | None:
    """The r that a run ended with, mean over units where they differ."""
    for epoch in reversed(run.history):
        if "r" in epoch:
            return float(epoch["r"])
    r = (run.config["prune"] or {}).get("r")
    return float(r) if isinstance(r, int | float) else None


def latency_rows(found: Found) -> list[Row]:
    """Latency against executed MACs: single images on the gated engine, and dense contestants.

    Returns:
        Rows of `kind` `image` (one image on our gated engine) and `contestant` (median over
        rounds, with its quartiles; all of them run the dense network but `ftwt gated`).
    """
    rows: list[Row] = []
    for bench in (file.result for file in found.benchmarks):
        told = {"network": bench.network, "threads": bench.threads, "batch": bench.batch,
                "forced": bench.forced_keep is not None}  # fmt: skip
        for image in bench.images:
            rows.append(
                told | {"kind": "image", "name": GATED, "macs": image.executed_macs,
                        "keep": image.keep, "latency_ms": image.latency_ms,
                        "low_ms": None, "high_ms": None}
            )  # fmt: skip
        for one in bench.timings:
            macs = one.executed_macs
            if macs is None:
                share = 1.0 if one.name != GATED else 1 - (bench.reduction or 0.0)
                macs = bench.dense_macs * share
            rows.append(
                told | {"kind": "contestant", "name": one.name, "macs": macs,
                        "keep": None, "latency_ms": one.latency_ms,
                        "low_ms": one.low_ms, "high_ms": one.high_ms}
            )  # fmt: skip
    return rows


def contest_rows(found: Found, network: str) -> list[Row]:
    """Accuracy and latency of all ways of running one network, the fastest first.

    Returns:
        A row for each; `front` where none is both as fast and more accurate.
    """
    rows: list[Row] = []
    for one in (file.result for file in found.contests if file.name == network):
        told = {"network": network, "images": one.images}
        for entry in sorted(one.entries, key=lambda entry: entry.latency_ms):
            rows.append(told | asdict(entry) | {"front": entry in one.front})
    return rows


def corruption_rows(found: Found, network: str) -> list[Row]:
    """Accuracy and reduction on clean and corrupted test images, for each corruption and severity.

    Returns:
        A row for each; severity 0 is the clean test set.
    """
    rows: list[Row] = []
    for file in found.corruptions:
        if file.name != network:
            continue
        result = file.result
        run = found.run(result.run)
        saved = abs(result.clean.reduction) > 1e-9
        method = found.method(run).label if run else "dynamic" if saved else "dense"
        label = next((part.label for part in found.groups if run in part.runs), "")
        clean = Corrupted(**vars(result.clean), corruption="clean", severity=0)
        for one in (clean, *result.corrupted):
            told: Row = {"method": method, "setting": label or (result.run or "")}
            told |= {"corruption": one.corruption, "severity": one.severity}
            rows.append(told | {"top1": one.top1, "reduction": one.reduction, "keep": one.keep})
    return rows


def summary_rows(found: Found) -> list[Row]:
    """A table of all settings: mean and standard deviation over seeds."""
    rows: list[Row] = []
    for part in found.groups:
        before = found.dense(part)
        top1, top1_std = mean_std(run.test.top1 for run in part.runs)
        cut, cut_std = mean_std(run.test.reduction for run in part.runs)
        dense = before.result.top1 if before is not None and before.same_images else None
        rows.append(
            {
                "network": part.network,
                "method": part.method.label,
                "setting": part.label,
                "runs": len(part.runs),
                "top1": top1,
                "top1_std": top1_std,
                "images": part.runs[0].test.images,
                "dense_top1": dense,
                "drop": None if dense is None or top1 is None else dense - top1,
                "asked": part.runs[0].asked,
                "predicted": mean_std(run.predicted for run in part.runs)[0],
                "reduction": cut,
                "reduction_std": cut_std,
                "published_reduction": mean_std(r.test.published_reduction for r in part.runs)[0],
                "dense_macs": part.runs[0].test.dense_macs,
                "executed_macs": mean_std(run.test.executed_macs for run in part.runs)[0],
                "mask_accuracy": mean_std(run.test.mask_accuracy for run in part.runs)[0],
                **_dynamism(part),
            }
        )
    return rows


def _dynamism(part: Group) -> Row:
    """Mean shares of the filters that fire always, sometimes and never."""
    shares: Row = {}
    for name in ("always", "sometimes", "never"):
        shares[name], _ = mean_std(
            sum(getattr(unit, name) for unit in run.test.units)
            / sum(unit.channels for unit in run.test.units)
            if run.test.units
            else None
            for run in part.runs
        )
    return shares


def joint_rows(found: Found) -> list[Row]:
    """Joint against decoupled: pairs of settings that differ in nothing else, and the paper's."""
    rows: list[Row] = []
    parts = [part for part in found.groups if part.kind == "dynamic"]
    decoupled = {
        _without_mode(part): part for part in parts if _gates(part).get("mode") == "decoupled"
    }
    for part in parts:
        other = decoupled.get(_without_mode(part))
        if _gates(part).get("mode") != "joint" or other is None:
            continue
        row: Row = {"network": part.network, "setting": part.label, "counted": EXECUTED}
        for mode, members in (("joint", part.runs), ("decoupled", other.runs)):
            row[f"{mode}_runs"] = len(members)
            top1, top1_std = mean_std(run.test.top1 for run in members)
            cut, _ = mean_std(run.test.reduction for run in members)
            row |= {f"{mode}_top1": top1, f"{mode}_top1_std": top1_std, f"{mode}_reduction": cut}
        rows.append(row | {"source": "these runs"})
    for network in found.networks:
        told = [row for row in rows_for(network) if row.kind == "paper" and row.top1 is not None]
        joint = {row.r: row for row in told if row.mode == "joint"}
        for one in told:
            two = joint.get(one.r)
            if one.mode == "decoupled" and two is not None:
                rows.append(
                    {"network": network, "setting": f"r = {one.r:g}", "counted": PUBLISHED,
                     "joint_runs": None, "joint_top1": two.top1, "joint_top1_std": two.top1_std,
                     "joint_reduction": two.reduction, "decoupled_runs": None,
                     "decoupled_top1": one.top1, "decoupled_top1_std": one.top1_std,
                     "decoupled_reduction": one.reduction, "source": one.source}
                )  # fmt: skip
    return rows


def _gates(part: Group) -> dict[str, Any]:
    return part.runs[0].config["prune"] or {}


def _without_mode(part: Group) -> str:
    return part.key.replace('"prune.mode": "joint"', '"prune.mode": "decoupled"')


def compute_rows(found: Found) -> list[Row]:
    """What the trainings took: hours for each setting, beside the paper's."""
    rows: list[Row] = []
    for part in found.groups:
        hours = [run.seconds / 3600 for run in part.runs]
        made = part.runs[0].provenance.get("hardware") or {}
        rows.append(
            {
                "network": part.network,
                "method": part.method.label,
                "setting": part.label,
                "runs": len(part.runs),
                "epochs": len(part.runs[0].history),
                "hours_each": math.fsum(hours) / len(hours),
                "hours_all": math.fsum(hours),
                "hardware": made.get("gpu") or f"{made.get('cpu')}, threads: {made.get('cores')}",
                "paper_hours_4_v100": COMPUTE_HOURS.get(architecture(part.network)),
            }
        )
    return rows


def dense_of(found: Found, network: str) -> Baseline | None:
    """The dense network that runs or prunings of an architecture began with, tested as they were.

    None if that is unknown.
    """
    made: list[Run | Pruned] = [*found.runs, *found.pruned]
    for one in made:
        before = found.dense(one) if one.network == network else None
        if before is not None and before.same_images:
            return before
    return None


def _groups(found: Found, network: str) -> Sequence[Group]:
    return [part for part in found.groups if part.network == network]
