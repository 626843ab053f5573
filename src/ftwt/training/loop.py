"""One training loop: plain or dynamic networks, one process or many machines."""

from __future__ import annotations

import itertools
import math
import os
import shlex
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import Tensor, nn

from ..budget.calibration import Calibration, calibrate
from ..config import TrainConfig, changes
from ..evaluation.batches import images_and_labels
from ..evaluation.evaluate import evaluate
from ..files.json import write_json
from ..files.provenance import Start, provenance
from ..files.tensors import load_tensors, refusing, save_tensors
from ..graph.wrappers import refuse_no_module
from ..processes import check_sharing, processes, without_gpu
from ..pruning.second_look import SecondLook
from ..records.evaluation import Evaluation
from ..records.folder import CHECKPOINT, METRICS, SETTINGS, TRAINING
from .interrupts import Interrupted as Interrupted
from .interrupts import requests
from .journal import Epoch, Journal, TrainResult
from .learner import NEVER, Learner, Totals
from .lock import held
from .progress import Progress
from .schedules import Schedule

LOOK = 10  # steps after which processes ask one another whether to stop: torchrun waits for 30 s
GRACE_S = 5.0  # in which a signal comes twice, for torchrun passes on what all of them got
LOG = 50  # steps between lines of metrics.jsonl, fewer in short epochs: each waits for the GPU

Batches = Iterable[tuple[Tensor, Tensor]]


def train(
    model: nn.Module,
    train_batches: Batches,
    val_batches: Batches,
    config: TrainConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    teacher: nn.Module | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a network in place; the last epoch's weights are the result.

    Network and predictors are two groups of SGD with their own learning rates. A `DynamicModel`
    learns from the task loss and the mask loss until the cooldown, from the task loss after it.
    The same call serves one process and many (`torchrun`); what they share: docs/scaling.md.

    Args:
        model: A plain network, a `DynamicModel`, or a `SecondLook` of fixed masks, whose passes
            both learn; images (B, C, H, W) to logits (B, classes).
        train_batches: A `Batches`, a `DataLoader`, or a list of (images, labels); of known length.
        val_batches: Likewise; only looked at, never learned from.
        config: Settings; its `batch_size` is corrected to that of `train_batches`.
        output: Folder for `checkpoint.safetensors` (every epoch), `metrics.jsonl`, `result.json`.
        resume: Go on from the checkpoint in `output`, to the result of an uninterrupted run.
            `config.epochs` may have been raised: from the step reached, rates and phases are those
            of a run of so many epochs.
        teacher: Dense network whose outputs are imitated, where `config.distillation` > 0.
        progress: Show a progress bar, or plain lines where there is no terminal.

    Raises:
        ValueError: The batches, the labels, the folder or the checkpoint do not fit; or another
            run holds the folder.
        FloatingPointError: The loss became NaN or infinite; the message says at which step.
        Interrupted: After Ctrl-C or SIGTERM; the checkpoint is that of the last step.
    """
    config = config or TrainConfig()
    refuse_no_module(model)
    size = getattr(train_batches, "batch_size", None)
    if isinstance(size, int):
        config = replace(config, batch_size=size)
    if isinstance(model, SecondLook):
        _check_passes(model, teacher)
    elif (teacher is None) == (config.distillation > 0):
        given = "without a teacher" if teacher is None else "with a teacher"
        raise ValueError(f"distillation={config.distillation} {given}; give both or neither")
    folder = None if output is None else Path(output)
    if folder is None and (resume or config.tracker):
        raise ValueError("resume and tracker need a folder; give output=")
    many = processes().num_processes > 1
    with requests(grace_s=GRACE_S * many) as stop, held(output):
        run = _Run(model, train_batches, val_batches, config, folder, teacher, stop)
        if folder is not None and resume:
            run.restore(folder / CHECKPOINT)
        elif folder is not None and (folder / CHECKPOINT).exists():
            raise ValueError(
                f"{folder} already holds a run; go on with it (--resume, resume=True) "
                f"or choose another folder"
            )
        run.accelerator.wait_for_everyone()  # to look, before the main process writes there
        with Journal(
            run.accelerator,
            None if folder is None else folder / METRICS,
            after=run.step,
            show=progress,
            steps=run.schedule.steps,
        ) as journal:
            try:
                return run.fit(journal)
            finally:
                run.learner.release()


def raised(config: TrainConfig, epochs: int) -> TrainConfig:
    """The settings of a run that goes on to more epochs; of fewer it keeps its own.

    From the step that it has reached, rates and phases are those that a run of so many epochs has
    there.
    """
    return replace(config, epochs=max(epochs, config.epochs))


def _check_passes(model: SecondLook, teacher: nn.Module | None) -> None:
    """Refuse a second look that cannot be trained."""
    if teacher is not None:
        raise ValueError("a second look's passes teach one another; leave out the teacher")
    if {**model.first.predictors, **model.last.predictors}:
        raise ValueError(
            "a second look is trained with fixed masks, and one of its networks has predictors; "
            "freeze it (DynamicModel.freeze) or train it by itself"
        )


class _Run:
    """The loop around a `Learner`: epochs, figures, stops, checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        train_batches: Batches,
        val_batches: Batches,
        config: TrainConfig,
        folder: Path | None,
        teacher: nn.Module | None,
        stop: threading.Event,
    ) -> None:
        self.config, self.folder, self.stop = config, folder, stop
        self.accelerator = Accelerator(
            cpu=without_gpu(),
            log_with=config.tracker,
            project_dir=folder,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        check_sharing(self.accelerator, config)
        self.train_batches = self._share(train_batches, "train_batches")
        # Each validation image once: to fill a last batch up would count some twice.
        self.accelerator.even_batches = False
        self.val_batches = self._share(val_batches, "val_batches")
        self.schedule = Schedule(config, len(self.train_batches))
        self.learner = Learner(model, config, self.schedule, self.accelerator, teacher)
        self.step = 0
        self.history: list[Epoch] = []
        self.log_every = max(1, min(LOG, self.schedule.steps_per_epoch // 4))
        self.logged = Totals()
        self.began = Start()
        self.epoch_began = self.logged_at = self.began.at

    def _share(self, batches: Any, name: str) -> Any:
        if not hasattr(batches, "__len__") or len(batches) == 0:
            raise ValueError(f"{name} is empty or has no length; give a Batches or a DataLoader")
        if isinstance(batches, torch.utils.data.DataLoader):
            return self.accelerator.prepare(batches)
        return batches

    def fit(self, journal: Journal) -> TrainResult:
        """Run all epochs, then settle and evaluate what came of them."""
        self.journal = journal
        if self.config.tracker:
            values = {k: v for k, v in self.config.to_json().items() if isinstance(v, int | float)}
            self.accelerator.init_trackers("ftwt", config=values)
        per_epoch = self.schedule.steps_per_epoch
        if self.step == (len(self.history) + 1) * per_epoch:
            self._end_epoch(len(self.history))  # whose validation failed before
        while self.step < self.schedule.steps:
            epoch, start = divmod(self.step, per_epoch)
            self.learner.begin(self.step)
            self.logged_at = time.perf_counter()
            for batch in self._batches(epoch, start):
                images, labels = images_and_labels(batch)
                if self.step == self.schedule.cooldown_start:
                    self._calibrate()  # now, so that the network can settle around these masks
                self.learner.learn(self.step, images, labels)
                self.step += 1
                self._tell()
            if self.step != (epoch + 1) * per_epoch:
                raise ValueError(
                    f"train_batches ended after {self.step - epoch * per_epoch} of the {per_epoch} "
                    f"batches that its length promises; give batches of a fixed number"
                )
            self._end_epoch(epoch)
        return self._finish()

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        batches = self.train_batches
        if hasattr(batches, "set_epoch"):
            batches.set_epoch(epoch)
        if hasattr(batches, "iterate"):
            return batches.iterate(start)
        self.learner.seed(epoch * self.schedule.steps_per_epoch)  # of a DataLoader's order
        return itertools.islice(batches, start, self.schedule.steps_per_epoch)

    # --- What is told, and when to stop ---------------------------------------------------------

    def _tell(self) -> None:
        self.journal.advance(self.step)
        due = self.step % self.log_every == 0
        alone = self.accelerator.num_processes == 1
        asked = self.stop.is_set() if alone else self.step % LOOK == 0
        stop = (due or asked) and self._look()
        if due:
            totals, now = self._totals(), time.perf_counter()
            window = Totals(*(a - b for a, b in zip(totals, self.logged, strict=True)))
            figures = {"lr": self._lr(), "images_per_s": window.images / (now - self.logged_at)}
            self.logged, self.logged_at = totals, now
            self.journal.write("step", self.step, figures | window.means())
        if stop and self.step % self.schedule.steps_per_epoch:
            self.save()
            self._stop()  # at the end of an epoch not yet: it is to be recorded first

    def _lr(self) -> float:
        return self.schedule.network_lr(self.step - 1)

    def _totals(self) -> Totals:
        return Totals(*self.accelerator.reduce(self.learner.totals, "sum").tolist())

    def _look(self) -> bool:
        """Raise at a bad loss; say whether to stop. All processes learn it at the same step."""
        bad = self.learner.bad_step
        mine = torch.stack([bad, torch.full_like(bad, self.stop.is_set())])
        steps, stops = self.accelerator.gather(mine[None]).unbind(1)
        if (step := int(steps.min())) < NEVER:
            raise FloatingPointError(
                f"the loss became NaN or infinite at step {step} (learning rate "
                f"{self.schedule.network_lr(step):g}){self._from_before()}; lower lr or set "
                "clip_norm"
            )
        return bool(stops.any())

    def _stop(self) -> NoReturn:
        kept = "nothing was saved, for there is no output folder"
        if self.folder is not None:
            whole = (
                self.folder / SETTINGS
            ).exists()  # a run's, which the command line can go on with
            command = f"`ftwt train {shlex.quote(str(self.folder))} --resume`"
            kept = f"saved in {self.folder}; go on with {command if whole else 'resume=True'}"
        raise Interrupted(f"stopped after step {self.step} of {self.schedule.steps}: {kept}")

    def _end_epoch(self, epoch: int) -> None:
        self._look()
        totals, seconds = self._totals(), time.perf_counter() - self.epoch_began
        bf16 = self.config.precision == "bf16"
        with (
            self.learner.averaged(),
            torch.autocast(self.learner.device.type, torch.bfloat16, enabled=bf16),
        ):
            validation = self._validate(epoch)
        r = list(self.learner.dynamic.r.values()) if self.learner.dynamic else []
        record = Epoch(
            epoch=epoch + 1,
            lr=self._lr(),
            **totals.means(),
            val_loss=validation.loss,
            val_accuracy=validation.top1,
            val_reduction=validation.reduction if self.learner.dynamic else None,
            images_per_s=totals.images / seconds,
            r=statistics.fmean(r) if r else None,
        )
        self.history.append(record)
        self.journal.write("epoch", self.step, asdict(record))
        self.learner.totals.zero_()
        self.logged, self.epoch_began = Totals(), time.perf_counter()
        self.save()
        if self._look():
            self._stop()

    def _validate(self, epoch: int) -> Evaluation:
        """Evaluate after an epoch; what cannot be is told, and the checkpoint is whole."""
        kept = "" if self.folder is None else f" (kept: {self.folder / CHECKPOINT})"
        try:
            validation = self._evaluate(targets=False)
        except ValueError as error:  # images or labels that cannot be
            self.save()
            raise ValueError(
                f"validation after epoch {epoch + 1}: {error}; then go on with --resume{kept}"
            ) from error
        if not math.isfinite(validation.loss):
            raise FloatingPointError(
                f"the validation loss became {validation.loss} after epoch {epoch + 1}"
                f"{self._from_before()}; lower lr or set clip_norm"
            )
        return validation

    def _from_before(self) -> str:
        """What is left of a run that diverged."""
        if self.folder is None or not (self.folder / CHECKPOINT).exists():
            return ""
        return f"; {self.folder / CHECKPOINT} is from before it"

    def _evaluate(self, *, targets: bool) -> Evaluation:
        self.learner.share()
        network, batches = self.learner.network, self.val_batches
        return evaluate(network, batches, targets=targets, accelerator=self.accelerator)

    def _calibrate(self) -> Calibration | None:
        asked, dynamic = self.config.target_reduction, self.learner.dynamic
        if asked is None or dynamic is None:
            return None
        self.learner.share()
        return calibrate(dynamic, self.val_batches, reduction=asked, accelerator=self.accelerator)

    def _finish(self) -> TrainResult:
        self.learner.settle()
        self.learner.release()
        calibration = self._calibrate()
        evaluation = self._evaluate(targets=True)
        result = TrainResult(
            history=tuple(self.history),
            evaluation=evaluation.to_json(),
            calibration=None if calibration is None else asdict(calibration),
            seconds=self.began.seconds(),
            images_per_s=statistics.median(record.images_per_s for record in self.history),
            provenance=provenance(config=self.config, seed=self.config.seed, since=self.began),
        )
        if self.folder is not None and self.accelerator.is_main_process:
            write_json(self.folder / TRAINING, result)
        return result

    # --- Checkpoints ----------------------------------------------------------------------------

    def save(self) -> None:
        """Write the run's whole state, so that `restore` leads to the same result."""
        tensors, now = self.learner.state(), time.perf_counter()
        progress = Progress(
            step=self.step,
            steps_per_epoch=self.schedule.steps_per_epoch,
            config=self.config,
            controller=self.learner.controller.state(),
            history=tuple(self.history),
            logged=self.logged,
            seconds=(now - self.began.at, now - self.epoch_began),
        )
        if self.folder is not None and self.accelerator.is_main_process:
            save_tensors(self.folder / CHECKPOINT, tensors, progress.to_json())

    def restore(self, path: Path) -> None:
        """Go back to the state that `save` wrote.

        Raises:
            ValueError: There is none, or it is of another network, config, dataset or format.
        """
        if not path.exists():
            raise ValueError(f"no {path}, so there is nothing to resume; leave out --resume")
        tensors, state = load_tensors(path)
        with refusing(path, "is no checkpoint to go on from"):
            progress = Progress.from_json(state)
        before = raised(progress.config, self.config.epochs)
        if found := changes(before, self.config):
            raise ValueError(f"{path} is of another run: {'; '.join(found)}; resume with its own")
        if progress.steps_per_epoch != self.schedule.steps_per_epoch:
            raise ValueError(
                f"{path} is of another dataset: {progress.steps_per_epoch} steps an epoch, "
                f"now {self.schedule.steps_per_epoch}; resume with its own"
            )
        with refusing(path, "is no checkpoint of this network"):
            self.learner.restore(tensors, source=str(path))
            self.learner.controller.restore(progress.controller)
            self.learner.controller.r()
        self.step, self.logged = progress.step, progress.logged
        self.history = list(progress.history)
        now = time.perf_counter()
        self.began.at, self.epoch_began = (now - seconds for seconds in progress.seconds)
