"""The page's tables: settings, joint against decoupled, what the trainings took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..answer import Answer
from ..reading.found import Found
from ..rows import Row, compute_rows, joint_rows, summary_rows
from .html import Table
from .words import MINUS, NBSP, accuracy, macs, percent, percent_spread

NONE = MINUS  # where a file has no such figure


def settings_table(answers: Sequence[Answer]) -> Table:
    """The answer for each setting, beside its static twin."""
    one = len({answer.network for answer in answers}) == 1
    rows = [
        (
            _whole(answer.name if one else f"{answer.network}, {answer.name}"),
            str(answer.seeds),
            f"{answer.images:,}",
            accuracy(answer.top1),
            NONE if answer.paid is None else _points(-answer.paid),
            f"{macs(answer.executed_macs.mean)} of {macs(answer.dense_macs)}",
            NONE if answer.asked is None else percent(answer.asked),
            NONE if answer.predicted is None else percent(answer.predicted.mean),
            percent_spread(answer.achieved),
            NONE if answer.twin_top1 is None else accuracy(answer.twin_top1),
            NONE if answer.gain is None else _points(answer.gain.mean),
        )
        for answer in answers
    ]
    columns = (
        "setting",
        "runs",
        "images",
        "accuracy",
        "less dense",
        "MACs",
        "asked",
        "predicted",
        "achieved",
        "static twin",
        "less twin",
    )
    note = (
        "Accuracy: top-1 on test images, ± the standard deviation over runs. Less dense, less "
        "twin: its distance to the dense network and to the static twin, in points, where these "
        "were tested on the same images. Asked, predicted, achieved: reduction of executed MACs."
    )
    return Table("settings", "All settings", columns, tuple(rows), _right(columns), note)


def tables(found: Found) -> tuple[Table, ...]:
    """All tables that the files allow."""
    made = (_summary(found), _joint(found), _compute(found))
    return tuple(table for table in made if table.rows)


def _summary(found: Found) -> Table:
    rows = []
    for row in summary_rows(found):
        rows.append(
            (
                _name(row),
                str(row["runs"]),
                _with(row["top1"], row["top1_std"]),
                _or(percent, row["reduction"])
                + ("" if row["reduction_std"] is None else f" ± {percent(row['reduction_std'])}"),
                _or(percent, row["published_reduction"]),
                _or(macs, row["executed_macs"]),
                _or(percent, row["mask_accuracy"]),
                _or(percent, row["always"]),
                _or(percent, row["sometimes"]),
                _or(percent, row["never"]),
            )
        )
    columns = (
        "network, method",
        "runs",
        "accuracy",
        "reduction",
        "as published",
        "MACs",
        "mask accuracy",
        "always",
        "sometimes",
        "never",
    )
    note = (
        "Means and standard deviations over runs. Reduction counts what a runtime executes; as "
        "published, what the paper counts. Always, sometimes, never: shares of filters."
    )
    return Table("summary", "Means over runs", columns, tuple(rows), _right(columns), note)


def _joint(found: Found) -> Table:
    rows = [
        (
            f"{row['network']}, {row['setting']}",
            _with(row["joint_top1"], row["joint_top1_std"]),
            _or(percent, row["joint_reduction"]),
            _with(row["decoupled_top1"], row["decoupled_top1_std"]),
            _or(percent, row["decoupled_reduction"]),
            row["counted"],
            row["source"],
        )
        for row in joint_rows(found)
    ]
    columns = (
        "setting",
        "joint",
        "its reduction",
        "decoupled",
        "its reduction",
        "MACs counted",
        "source",
    )
    return Table("joint", "Joint against decoupled", columns, tuple(rows), frozenset({1, 2, 3, 4}))


def _compute(found: Found) -> Table:
    def hours(value: float) -> str:
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"

    rows = [
        (
            _name(row),
            str(row["runs"]),
            str(row["epochs"]),
            hours(row["hours_each"]),
            hours(row["hours_all"]),
            row["hardware"],
            _or(hours, row["paper_hours_4_v100"]),
        )
        for row in compute_rows(found)
    ]
    columns = ("network, method", "runs", "epochs", "hours a run", "hours", "on", "paper, 4 V100")
    return Table(
        "compute", "Training time", columns, tuple(rows), frozenset({1, 2, 3, 4, 6}),
        "Hours by the clock. The paper's hours are for its own schedule.",
    )  # fmt: skip


def _name(row: Row) -> str:
    words = (row["network"], row["method"], row["setting"])
    return _whole(", ".join(word for word in words if word))


def _whole(name: str) -> str:
    """A name whose `r = 0.9` stays in one line."""
    return name.replace(" = ", f"{NBSP}={NBSP}")


def _right(columns: Sequence[str]) -> frozenset[int]:
    return frozenset(range(1, len(columns)))


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", MINUS)


def _or(show: Callable[[Any], str], value: float | None) -> str:
    return NONE if value is None else show(value)


def _with(mean: float | None, std: float | None) -> str:
    if mean is None:
        return NONE
    return percent(mean) if std is None else f"{percent(mean, 2)} ± {percent(std, 2)}"
