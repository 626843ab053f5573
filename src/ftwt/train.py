"""One training loop: plain or dynamic networks, one process or many machines."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from torch import Tensor, nn

from .checkpoint import load_tensors, load_weights, save_tensors
from .config import TrainConfig, differing
from .journal import Journal
from .results import provenance, write_json
from .schedules import Schedule

LOOK = 25  # steps between looks at a loss that may have become NaN: each waits for the GPU
LOG = 50  # steps between lines of metrics.jsonl
MEASURE = 10  # steps between measurements of the masks
NEVER = 2**62  # the step at which the loss became NaN, as long as it did not
FORMAT = 1  # of a training checkpoint
CHECKPOINT, METRICS, RESULT = "checkpoint.safetensors", "metrics.jsonl", "result.json"

Batch = tuple[Tensor, Tensor]


class Totals(NamedTuple):
    """Sums over steps; those of the masks over measured steps only."""

    loss: float = 0.0
    correct: float = 0.0
    images: float = 0.0
    mask_loss: float = 0.0
    mask_accuracy: float = 0.0
    reduction: float = 0.0
    measured: float = 0.0

    def figures(self) -> dict[str, Any]:
        """The means, under the names of `Epoch`'s fields."""
        means = {"loss": self.loss / self.images, "accuracy": self.correct / self.images}
        if self.measured:
            for name in ("mask_loss", "mask_accuracy", "reduction"):
                means[name] = getattr(self, name) / self.measured
        return means


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What one epoch came to; mask figures are None for a plain network.

    `loss` is the whole training loss, `accuracy`, `mask_accuracy` and `reduction` (of the executed
    MACs) are shares in [0, 1] on the training batches, `r` is the mean over units at the end.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    images_per_s: float
    mask_loss: float | None = None
    mask_accuracy: float | None = None
    reduction: float | None = None
    val_reduction: float | None = None
    r: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run: its history, the final network on the validation batches, and its origin."""

    history: tuple[Epoch, ...]
    evaluation: dict[str, Any]
    calibration: dict[str, Any] | None
    seconds: float
    images_per_s: float
    provenance: dict[str, Any]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or SIGTERM) and did, at the end of a step."""


def train(
    model: nn.Module,
    train_batches: Iterable[Batch],
    val_batches: Iterable[Batch],
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
    The same call serves one process and many (`torchrun`); losses and steps are the same then.

    Args:
        model: A plain network or a `DynamicModel`; images (B, C, H, W) to logits (B, classes).
        train_batches: A `Batches`, a `DataLoader`, or a list of (images, labels); of known length.
        val_batches: Likewise; only looked at, never learned from.
        config: Settings; its `batch_size` is corrected to that of `train_batches` if that says.
        output: Folder for `checkpoint.safetensors` (every epoch), `metrics.jsonl`, `result.json`.
        resume: Go on from the checkpoint in `output`, to the result of an uninterrupted run.
        teacher: Dense network whose outputs are imitated, where `config.distillation` > 0.
        progress: Show a progress bar, or plain lines where there is no terminal.

    Raises:
        ValueError: The batches, the labels, the folder or the checkpoint do not fit.
        FloatingPointError: The loss became NaN or infinite; the message says at which step.
        Interrupted: After Ctrl-C or SIGTERM; the checkpoint is that of the last step.
    """
    config = config or TrainConfig()
    size = getattr(train_batches, "batch_size", None)
    if isinstance(size, int) and size != config.batch_size:
        config = dataclasses.replace(config, batch_size=size)
    if (teacher is None) == (config.distillation > 0):
        raise ValueError(
            f"distillation={config.distillation} with teacher={teacher and type(teacher).__name__};"
            f" give both a weight above 0 and a teacher, or neither"
        )
    folder = None if output is None else Path(output)
    if folder is None and (resume or config.tracker):
        raise ValueError("resume and tracker need a folder; give output=")
    run = _Run(model, train_batches, val_batches, config, folder, teacher)
    if folder is not None and resume:
        run.restore(folder / CHECKPOINT)
    elif folder is not None and any((folder / name).exists() for name in (CHECKPOINT, METRICS)):
        raise ValueError(
            f"{folder} already holds a run; go on with it (resume=True, --resume) "
            f"or choose another folder"
        )
    with (
        Journal(
            run.accelerator,
            None if folder is None else folder / METRICS,
            after=run.step,
            show=progress,
            steps=run.schedule.steps,
        ) as run.journal,
        _signals() as run.stop,
    ):
        return run.fit()


class _Run:
    """All that a run carries from step to step."""

    journal: Journal
    stop: threading.Event

    def __init__(
        self,
        model: nn.Module,
        train_batches: Iterable[Batch],
        val_batches: Iterable[Batch],
        config: TrainConfig,
        folder: Path | None,
        teacher: nn.Module | None,
    ) -> None:
        self.config, self.folder = config, folder
        self.dynamic: Any = model if hasattr(model, "predictor_parameters") else None
        predictors = list(self.dynamic.predictor_parameters()) if self.dynamic else []
        self.accelerator = Accelerator(
            log_with=config.tracker,
            project_dir=folder,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=bool(predictors))
            ],
        )
        self.device = self.accelerator.device
        self.layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.train_batches = self._shard(train_batches, "train_batches")
        self.val_batches = self._shard(val_batches, "val_batches")
        self.schedule = Schedule(config, len(self.train_batches))
        self.network = self._place(model)
        self.teacher = None if teacher is None else self._place(teacher).eval()
        held = {id(parameter) for parameter in predictors}
        self.learners = [p for p in model.parameters() if id(p) not in held]
        groups = [
            {"params": self.learners, "weight_decay": config.weight_decay},
            {"params": predictors, "lr": config.predictor_lr, "weight_decay": 0.0},
        ]
        self.sgd = torch.optim.SGD(
            groups if predictors else groups[:1],
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            foreach=True,  # one call for all tensors: a loop over them costs milliseconds on CPUs
        )
        state = model.state_dict() if config.ema_decay is not None else {}
        self.live = {name: value for name, value in state.items() if value.is_floating_point()}
        self.average = {name: value.clone() for name, value in self.live.items()}
        self.step = 0
        self.history: list[Epoch] = []
        self.began = self.epoch_began = time.perf_counter()
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self.totals = torch.zeros(len(Totals._fields), dtype=exact, device=self.device)
        self.logged = Totals()
        self.bad_step = torch.tensor(NEVER, device=self.device)

    def _shard(self, batches: Any, name: str) -> Any:
        if not hasattr(batches, "__len__") or len(batches) == 0:
            raise ValueError(f"{name} is empty or has no length; give a Batches or a DataLoader")
        if isinstance(batches, torch.utils.data.DataLoader):
            return self.accelerator.prepare(batches)
        return batches

    def _place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device).to(memory_format=self.layout)  # type: ignore[call-overload]

    # --- The loop -------------------------------------------------------------------------------

    def fit(self) -> TrainResult:
        """Run all epochs, then settle and evaluate what came of them."""
        if self.config.tracker:
            values = {k: v for k, v in self.config.to_json().items() if isinstance(v, int | float)}
            self.accelerator.init_trackers("ftwt", config=values)
        self.model, self.optimizer = self.accelerator.prepare(self.network, self.sgd)
        per_epoch = self.schedule.steps_per_epoch
        while self.step < self.schedule.steps:
            epoch, start = divmod(self.step, per_epoch)
            self._train_mode()
            for images, labels in self._batches(epoch, start):
                self._learn(images, labels)
                self.step += 1
                self._tell()
            if self.step != (epoch + 1) * per_epoch:
                raise ValueError(
                    f"train_batches ended after {self.step - epoch * per_epoch} of the {per_epoch} "
                    f"batches that its length promises; give batches of a fixed number"
                )
            self._end_epoch(epoch)
        return self._finish()

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        batches = self.train_batches
        if hasattr(batches, "set_epoch"):
            batches.set_epoch(epoch)
        self._seed(epoch * self.schedule.steps_per_epoch)  # of a DataLoader's order
        if hasattr(batches, "iterate"):
            return batches.iterate(start)
        return itertools.islice(batches, start, self.schedule.steps_per_epoch)

    def _seed(self, step: int) -> None:
        """Make randomness (dropout) a function of seed, step and process: no state to restore."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed((self.config.seed << 32) + step * processes + process)

    def _train_mode(self) -> None:
        self.model.train()
        if self.config.freeze_batchnorm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _learn(self, images: Tensor, labels: Tensor) -> None:
        """Take one step and add its figures to the epoch's totals, without waiting for a GPU."""
        config = self.config
        self._seed(self.step)
        images = images.to(self.device, memory_format=self.layout, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with self._arithmetic():
            outputs = self._outputs(images, labels)
            loss = F.cross_entropy(outputs, labels, label_smoothing=config.label_smoothing)
            if self.teacher is not None:
                loss = loss + config.distillation * self._divergence(outputs, images)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.learners, config.clip_norm)
        self.sgd.param_groups[0]["lr"] = self.schedule.network_lr(self.step)
        self.optimizer.step()
        with torch.no_grad():
            if self.average:
                # Early on the average follows closely, or the first weights would linger in it.
                decay = min(config.ema_decay or 0.0, (1 + self.step) / (10 + self.step))
                averages, live = list(self.average.values()), list(self.live.values())
                torch._foreach_lerp_(averages, live, 1 - decay)
            correct = (outputs.argmax(1) == labels).sum()
            count = torch.full_like(loss, len(labels))
            row = [loss.detach() * len(labels), correct, count]
            self.totals[:3] += torch.stack([value.to(self.totals) for value in row])
            bad = self.bad_step.clamp(max=self.step)
            self.bad_step = torch.where(loss.isfinite(), self.bad_step, bad)

    def _arithmetic(self) -> torch.autocast:
        bf16 = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def _outputs(self, images: Tensor, labels: Tensor) -> Tensor:
        try:
            outputs = self.model(images)
        except RuntimeError as error:
            shape = tuple(images.shape)
            raise ValueError(f"the network cannot take images {shape}: {error}") from error
        if self.step == 0 or labels.is_cpu:  # afterwards it would mean to wait for the GPU
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= outputs.shape[1]:
                raise ValueError(
                    f"labels from {low} to {high} for a network with {outputs.shape[1]} outputs; "
                    f"labels must lie in [0, {outputs.shape[1] - 1}]: create it with more classes"
                )
        return outputs

    def _divergence(self, outputs: Tensor, images: Tensor) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad():
            dense = self.teacher(images)
        ours, theirs = (x.float() / self.config.temperature for x in (outputs, dense))
        divergence = F.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
        )
        return divergence * self.config.temperature**2

    # --- What is told, and when to stop ---------------------------------------------------------

    def _tell(self) -> None:
        self.journal.advance(self.step)
        alone = self.accelerator.num_processes == 1
        if self.step % LOOK == 0 or (alone and self.stop.is_set()):
            self._look()
        if self.step % LOG == 0:
            totals = self._summed()
            window = Totals(*(now - then for now, then in zip(totals, self.logged, strict=True)))
            self.logged = totals
            self.journal.write("step", self.step, window.figures() | {"lr": self._lr()})

    def _lr(self) -> float:
        return self.schedule.network_lr(self.step - 1)

    def _summed(self) -> Totals:
        """The epoch's totals so far, over all processes."""
        return Totals(*self.accelerator.reduce(self.totals, "sum").tolist())

    def _look(self) -> None:
        """Stop at a bad loss, or on request: all processes at the same step."""
        mine = torch.stack([self.bad_step, torch.full_like(self.bad_step, self.stop.is_set())])
        steps, stops = self.accelerator.gather(mine[None]).unbind(1)
        if (bad := int(steps.min())) < NEVER:
            kept = "" if self.folder is None else f"; {self.folder / CHECKPOINT} is from before it"
            raise FloatingPointError(
                f"the loss became NaN or infinite at step {bad} (learning rate "
                f"{self.schedule.network_lr(bad):g}){kept}; lower lr or set clip_norm"
            )
        if stops.any():
            self.save()
            kept = "nothing was saved, for there is no output folder"
            if self.folder is not None:
                kept = f"saved in {self.folder}; go on with --resume (resume=True)"
            raise Interrupted(f"stopped after step {self.step} of {self.schedule.steps}: {kept}")

    def _end_epoch(self, epoch: int) -> None:
        self._look()
        totals = self._summed()
        speed = totals.images / (time.perf_counter() - self.epoch_began)
        validation = self._validate()
        record = Epoch(
            epoch=epoch + 1,
            **totals.figures(),
            val_loss=validation.loss,
            val_accuracy=validation.top1,
            lr=self._lr(),
            images_per_s=speed,
        )
        self.history.append(record)
        self.journal.write("epoch", self.step, dataclasses.asdict(record))
        self.totals.zero_()
        self.logged, self.epoch_began = Totals(), time.perf_counter()
        self.save()

    def _validate(self) -> Any:
        with self._averaged(), self._arithmetic():
            return _evaluate(self.network, self.val_batches, self.device)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the weights' moving average, if one is kept, in their place for a while."""
        own = {name: value.clone() for name, value in self.live.items()}
        self._set(self.average)
        try:
            yield
        finally:
            self._set(own)

    def _set(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.live[name].copy_(value)

    def _finish(self) -> TrainResult:
        self._set(self.average)
        evaluation = _evaluate(self.network, self.val_batches, self.device)
        seconds = time.perf_counter() - self.began
        result = TrainResult(
            history=tuple(self.history),
            evaluation=dataclasses.asdict(evaluation),
            calibration=None,
            seconds=seconds,
            images_per_s=statistics.median(record.images_per_s for record in self.history),
            provenance=provenance(config=self.config, seed=self.config.seed, duration_s=seconds),
        )
        if self.folder is not None and self.accelerator.is_main_process:
            write_json(self.folder / RESULT, result)
        return result

    # --- Checkpoints ----------------------------------------------------------------------------

    def save(self) -> None:
        """Write the run's whole state, so that `restore` leads to the same result."""
        totals = self.accelerator.reduce(self.totals, "sum")
        if self.folder is None or not self.accelerator.is_main_process:
            return
        names = {id(p): name for name, p in self.network.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for parameter, state in self.sgd.state.items():
            if state.get("momentum_buffer") is not None:
                tensors[f"momentum.{names[id(parameter)]}"] = state["momentum_buffer"]
        now = time.perf_counter()
        metadata = {
            "format": FORMAT,
            "step": self.step,
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "config": self.config.to_json(),
            "history": [dataclasses.asdict(record) for record in self.history],
            "logged": self.logged,
            "seconds": [now - self.began, now - self.epoch_began],
        }
        save_tensors(self.folder / CHECKPOINT, tensors | {"totals": totals}, metadata)

    def restore(self, path: Path) -> None:
        """Go back to the state that `save` wrote.

        Raises:
            ValueError: There is none, or it is of another network, config, dataset or format.
        """
        if not path.exists():
            raise ValueError(f"{path} does not exist, so there is nothing to resume; start anew")
        tensors, state = load_tensors(path)
        if state.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {state.get('format')}, this version of ftwt reads {FORMAT}"
            )
        saved = TrainConfig.from_json(state["config"])
        if names := differing(saved, self.config):
            changes = (f"{n} was {getattr(saved, n)}, is {getattr(self.config, n)}" for n in names)
            raise ValueError(f"{path} is of another run: {'; '.join(changes)}; resume with its own")
        if state["steps_per_epoch"] != self.schedule.steps_per_epoch:
            raise ValueError(
                f"{path} is of another dataset: {state['steps_per_epoch']} steps an epoch, "
                f"now {self.schedule.steps_per_epoch}; resume with its own"
            )

        def section(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        load_weights(self.network, section("model."), source=path)
        for name, value in section("average.").items():
            self.average[name].copy_(value)
        parameters = dict(self.network.named_parameters())
        for name, value in section("momentum.").items():
            # Like its parameter (channels-last or not), or each step would be slower than before.
            buffer = torch.empty_like(parameters[name]).copy_(value)
            self.sgd.state[parameters[name]]["momentum_buffer"] = buffer
        if self.accelerator.is_main_process:
            self.totals.copy_(tensors["totals"])
        self.step = state["step"]
        self.history = [Epoch(**record) for record in state["history"]]
        self.logged = Totals(*state["logged"])
        now = time.perf_counter()
        self.began, self.epoch_began = (now - seconds for seconds in state["seconds"])


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second acts as ever."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        stop.set()
        restore()

    for number in watched:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


def _evaluate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Any:
    """Stand-in until ftwt.evaluate lands."""
    model.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.inference_mode():
        for images, labels in batches:
            outputs = model(images.to(device)).float()
            loss += float(F.cross_entropy(outputs, labels.to(device), reduction="sum"))
            correct += int((outputs.argmax(1) == labels.to(device)).sum())
            count += len(labels)
    fields = ["loss", "top1", "images"]
    return dataclasses.make_dataclass("Accuracy", fields)(loss / count, correct / count, count)
