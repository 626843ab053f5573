"""What a run tells: its records, a progress bar, `metrics.jsonl`, and trackers on request."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..files.atomic import replacing
from ..files.console import PlainConsole
from ..files.json import parse_json

SHOWN = {  # what a reader sees of a line, in this order
    "epoch": "epoch {:.0f}",
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.1%}",
    "mask_accuracy": "masks {:.1%}",
    "reduction": "reduction {:.1%}",
    "r": "r {:.3f}",
    "val_loss": "val loss {:.3f}",
    "val_accuracy": "val accuracy {:.1%}",
    "val_reduction": "val reduction {:.1%}",
    "images_per_s": "{:,.0f} images/s",
}


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; mask figures are None where there are no gates, or no targets.

    `loss` is the whole training loss, `task_loss` that without the mask loss. `accuracy`,
    `mask_accuracy` and `reduction` (of the executed MACs) are shares in [0, 1] on the training
    batches; `r` is the mean over units at its end.
    """

    epoch: int
    lr: float
    loss: float
    task_loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    images_per_s: float
    mask_loss: float | None
    mask_accuracy: float | None
    reduction: float | None
    val_reduction: float | None
    r: float | None


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its history, the final network on the validation batches, and its origin.

    `calibration` and `evaluation` are the dicts of a `Calibration` and an `Evaluation`;
    `images_per_s` is the median epoch's, validation aside.
    """

    history: tuple[Epoch, ...]
    evaluation: dict[str, Any]
    calibration: dict[str, Any] | None
    seconds: float
    images_per_s: float
    provenance: dict[str, Any]


class Journal:
    """A run's progress, for eyes and for files; silent on all processes but the main one.

    Args:
        accelerator: Knows the main process and holds the trackers.
        path: The JSON-lines file; None writes none.
        after: Lines of later steps than this are cut off: a resumed run writes them again.
        show: Whether to show progress at all.
        steps: Steps of the whole run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path | None,
        *,
        after: int = 0,
        show: bool = True,
        steps: int,
    ) -> None:
        main = accelerator.is_main_process
        self.accelerator = accelerator
        self.console = PlainConsole(stderr=True, quiet=not (show and main))
        self.file = None
        if path is not None and main:
            if path.exists() and not path.is_file():  # a pipe would make us wait
                raise ValueError(f"{path} is not a regular file; remove it, or choose a folder")
            truncate(path, after=after)
            self.file = open(path, "a", encoding="utf-8")
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            refresh_per_second=4,
            transient=True,
            disable=not (show and main and self.console.is_terminal),
        )
        self.task = self.bar.add_task("training", total=steps, completed=after, figures="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if self.file is not None:
            with suppress(OSError):  # what could not be written was told
                self.file.close()
        for tracker in getattr(self.accelerator, "trackers", []):
            tracker.finish()

    def advance(self, step: int) -> None:
        """Move the bar to `step` steps done."""
        self.bar.update(self.task, completed=step)

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Keep a line of figures: of some steps (`kind="step"`) or of an epoch (`"epoch"`)."""
        figures = {key: value for key, value in figures.items() if value is not None}
        if self.file is not None:
            try:
                self.file.write(json.dumps({"kind": kind, "step": step} | figures) + "\n")
                self.file.flush()
            except OSError as error:  # a full disk: say of which file
                raise OSError(error.errno, error.strerror, self.file.name) from error
        numbers = {f"{kind}/{key}": value for key, value in figures.items()}
        self.accelerator.log(numbers, step=step)
        if kind == "epoch":
            self.console.print(_line(figures), highlight=False, soft_wrap=True)
        else:
            self.bar.update(self.task, figures=_line(figures))


def _line(figures: dict[str, Any]) -> str:
    return "  ".join(form.format(figures[key]) for key, form in SHOWN.items() if key in figures)


def truncate(path: str | os.PathLike[str], *, after: int) -> None:
    """Drop a metrics file's lines of steps after `after`, and one that a crash left unfinished."""
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    kept = []
    for line in lines:
        try:
            if parse_json(line.decode())["step"] <= after:
                kept.append(line + b"\n")
        except (ValueError, LookupError, TypeError):
            continue
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(kept))
