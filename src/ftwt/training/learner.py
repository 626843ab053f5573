"""One training step: the losses, the two groups of parameters, the phases, the figures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..budget.controller import BudgetController
from ..config import TrainConfig
from ..evaluation.evaluate import check_labels, classes_of, outputs_of
from ..files.tensors import load_weights
from ..pruning.dynamic import DynamicModel
from ..pruning.method import Gate, GateOutput, Standardize, hard_mask, mask_loss
from ..pruning.second_look import SecondLook
from .batchnorm import SynchronizedBatchNorm
from .losses import divergence, first_of, task_loss
from .schedules import Schedule

MEASURE = 10  # steps between measurements of the masks
NEVER = 2**62  # the step at which the loss became NaN, as long as it did not


class Totals(NamedTuple):
    """Sums of a loop's figures: over images, over steps with targets, over measured steps."""

    loss: float = 0.0
    task_loss: float = 0.0
    correct: float = 0.0
    images: float = 0.0
    mask_loss: float = 0.0
    mask_accuracy: float = 0.0
    targeted: float = 0.0
    reduction: float = 0.0
    measured: float = 0.0

    def means(self) -> dict[str, Any]:
        """The means, under the names of `Epoch`'s fields; None where nothing was summed."""
        return {
            "loss": self.loss / self.images,
            "task_loss": self.task_loss / self.images,
            "accuracy": self.correct / self.images,
            "mask_loss": self.mask_loss / self.targeted if self.targeted else None,
            "mask_accuracy": self.mask_accuracy / self.targeted if self.targeted else None,
            "reduction": self.reduction / self.measured if self.measured else None,
        }


class Learner:
    """A network with what it needs to learn from a batch.

    Args:
        model: A plain network or a `DynamicModel`, trained in place.
        config: Settings.
        schedule: Learning rates and phases by step.
        accelerator: Knows the device and the other processes.
        teacher: Dense network to imitate, or None.

    Raises:
        ValueError: A budget is asked of a network without gates.

    Warns:
        UserWarning: The warm-up would not end before the cooldown begins, and is shorter.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        schedule: Schedule,
        accelerator: Accelerator,
        teacher: nn.Module | None = None,
    ) -> None:
        self.config, self.schedule, self.accelerator = config, schedule, accelerator
        self.device = accelerator.device
        self.layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.network = self._place(model)
        self.teacher = None if teacher is None else self._place(teacher).eval()
        self.dynamic = model if isinstance(model, DynamicModel) else None
        r = self.dynamic.r if self.dynamic else {}
        if config.target_reduction is not None and not r:
            raise ValueError(
                f"target_reduction={config.target_reduction} needs gates to steer, and "
                f"{type(model).__name__} has none: give what ftwt.convert returns"
            )
        if r and config.predictor_warmup_steps > schedule.warm_up and accelerator.is_main_process:
            warnings.warn(
                f"predictor_warmup_steps={config.predictor_warmup_steps} do not end before the "
                f"cooldown, which begins at step {schedule.cooldown_start} of so few: "
                f"{schedule.warm_up} are taken",
                stacklevel=2,
            )
        steered = schedule.cooldown_start - schedule.steering_start
        self.controller = BudgetController(
            r, target=config.target_reduction, horizon=max(1, min(200, steered // 4))
        )
        predictors = list(self.dynamic.predictor_parameters()) if self.dynamic else []
        network = self.dynamic.network_parameters() if self.dynamic else model.parameters()
        self.parameters = list(network)
        groups: list[dict[str, Any]] = [
            {"params": self.parameters, "weight_decay": config.weight_decay},
            {"params": predictors, "lr": config.predictor_lr, "weight_decay": 0.0},
        ]
        self.sgd = torch.optim.SGD(
            groups if predictors else groups[:1],
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            foreach=True,  # one call for all tensors: a loop over them costs milliseconds on CPUs
        )
        self.average = {name: value.clone() for name, value in self.live.items()}
        self.measure_every = max(1, min(MEASURE, schedule.steps_per_epoch // 4))
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self.totals = torch.zeros(len(Totals._fields), dtype=exact, device=self.device)
        self.bad_step = torch.tensor(NEVER, device=self.device)
        self.optimizer = accelerator.prepare(self.sgd)
        self.learning = [parameter for parameter in self.parameters if parameter.requires_grad]
        self.phase: tuple[bool, bool] | None = None
        self.model: Any = None  # the network, as `begin` prepares it

    @property
    def live(self) -> dict[str, Tensor]:
        """What is averaged, if anything is; looked up anew, for wrappers move tensors elsewhere."""
        state = self.network.state_dict().items() if self.config.ema_decay is not None else ()
        # r and the thresholds, which have no dimension, are settings.
        return {name: t for name, t in state if t.is_floating_point() and t.dim()}

    def _place(self, model: nn.Module) -> nn.Module:
        if self.config.channels_last and any(p.dim() == 5 for p in model.parameters()):
            raise ValueError(
                "channels_last=True with 3-d convolutions: it is a layout of images (B, C, H, W); "
                "turn it off"
            )
        return model.to(self.device).to(memory_format=self.layout)  # type: ignore[call-overload]

    def seed(self, step: int) -> None:
        """Make randomness a function of seed, step and process: there is no state to resume."""
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        # Mixed, for the CPU's generator looks at the lower 32 bits alone.
        parts = np.random.SeedSequence((self.config.seed, step * processes + process))
        number = int(parts.generate_state(1, np.uint64)[0] >> np.uint64(1))
        if self.device.type == "cpu":  # without the notes that torch takes for GPUs: milliseconds
            torch.default_generator.manual_seed(number)
        else:
            torch.manual_seed(number)

    def begin(self, step: int) -> None:
        """Set modes and phase for the steps from `step` on.

        Several processes share the gradients of what learns in this phase, of nothing else: of the
        predictors in the warm-up, of the network in the cooldown.

        In the warm-up batch norm goes on averaging its statistics: they are those of the same
        weights on the same images, and so stay what they are.
        """
        phase = self._phase(step)
        if phase != self.phase:
            warm, cool = self.phase = phase
            if self.dynamic:
                self.dynamic.hold_predictors(cool)
            for parameter in self.learning:
                parameter.requires_grad_(not warm)
            if self.model is None or self.accelerator.num_processes > 1:
                if self.model is not None:  # the accelerator keeps what shared the gradients so far
                    self.model = None
                    self.accelerator.free_memory()
                self.model = self.accelerator.prepare_model(self.network)
                if self._shares_statistics():  # then they need not be sent from one to all
                    self.model.broadcast_buffers = False
        self.model.train()
        if self.config.freeze_batchnorm:
            for module in self.network.modules():
                norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
                if norm and not isinstance(module, Standardize):
                    module.eval()

    def learn(self, step: int, images: Tensor, labels: Tensor) -> None:
        """Take a step; nothing in it waits for the GPU, but for the budget's rare measurements."""
        self.seed(step)
        if self._phase(step) != self.phase:
            self.begin(step)
        if self.dynamic and step % self.measure_every == 0 and self.schedule.steers(step):
            self.dynamic.set_r(self.controller.r(self.schedule.anneal(step)))
        if not len(images):
            raise ValueError(f"the training batch of step {step} has no images; leave it out")
        self.optimizer.zero_grad()
        parts = min(self.config.accumulation, len(images))
        pieces = list(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True))
        found = [
            self._gradients(step, *piece, share=len(piece[0]) / len(images), last=number == parts)
            for number, piece in enumerate(pieces, 1)
        ]
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.sgd.param_groups[0]["lr"] = self.schedule.network_lr(step)
        self.optimizer.step()
        with torch.no_grad():
            self._average(step)
            if step % self.measure_every == 0:
                self._measure(step, found)

    def _gradients(
        self, step: int, images: Tensor, labels: Tensor, *, share: float, last: bool
    ) -> tuple[dict[str, GateOutput], Tensor]:
        """Add the gradients of a step's part, `share` of its images, to those of the parts before.

        Processes share them with the last part, all at once.

        Returns:
            What the gates decided, and the part's share of the mask loss.
        """
        config = self.config
        if config.channels_last and images.dim() != 4:
            raise ValueError(
                f"channels_last=True with inputs of shape {tuple(images.shape)}: it is a layout of "
                "images (B, C, H, W); turn it off"
            )
        images = images.to(self.device, memory_format=self.layout, non_blocking=True)
        readable, labels = labels, labels.to(self.device, non_blocking=True)
        shared = nullcontext() if last else self.accelerator.no_sync(self.model)
        with shared, self._norms():
            bf16 = config.precision == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                outputs, gates = self._forward(step, images)
                if step == 0 or readable.is_cpu:  # to look at others would mean to wait for the GPU
                    check_labels(readable, classes=classes_of(first_of(outputs)))
                task = task_loss(outputs, labels, config)
                outputs = first_of(outputs)
                if self.teacher is not None:
                    with torch.no_grad():
                        dense = self.teacher(images.clone())  # it may change its input in place
                    imitation = divergence(outputs, dense, config.temperature)
                    task = task + config.distillation * imitation
                targets = mask_loss(gates)
            loss = task + config.mask_loss_weight * targets
            learned = config.mask_loss_weight * targets if self.warms_up(step) else loss
            self.accelerator.backward(learned * share if share < 1 else learned)
        with torch.no_grad():
            self._sum(step, loss, task, outputs, labels)
        return gates, targets.detach() * share

    def _norms(self) -> AbstractContextManager[object]:
        return SynchronizedBatchNorm() if self._shares_statistics() else nullcontext()

    def _shares_statistics(self) -> bool:
        return self.config.sync_batchnorm and self.accelerator.num_processes > 1

    def _phase(self, step: int) -> tuple[bool, bool]:
        """Whether only the predictors learn, and whether only the network does."""
        cools = self.schedule.cools_down(step) and len(self.sgd.param_groups) > 1
        return self.warms_up(step), cools

    def release(self) -> None:
        """Let every parameter learn again that did so before: training is over."""
        if self.dynamic:
            self.dynamic.hold_predictors(False)
        for parameter in self.learning:
            parameter.requires_grad_(True)

    def warms_up(self, step: int) -> bool:
        """Whether only the predictors learn at this step."""
        return self.schedule.warms_up(step) and len(self.sgd.param_groups) > 1

    def _forward(self, step: int, images: Tensor) -> tuple[Any, dict[str, GateOutput]]:
        if self.dynamic is None:
            both = {"both": True} if isinstance(self.network, SecondLook) else {}
            return outputs_of(self.model, images, **both), {}
        self.dynamic.check_input(images)
        if self.warms_up(step):
            return outputs_of(self.model, images, gates="open", return_gates=True)
        if not self.schedule.cools_down(step):
            return outputs_of(self.model, images, return_gates=True)
        if step % self.measure_every == 0:
            return outputs_of(self.model, images, return_gates="masks")
        return outputs_of(self.model, images), {}

    def _average(self, step: int) -> None:
        if self.config.ema_decay is not None:
            # Early on the average follows closely, or the first weights would linger in it.
            decay = min(self.config.ema_decay, (1 + step) / (10 + step))
            averages, live = list(self.average.values()), list(self.live.values())
            torch._foreach_lerp_(averages, live, 1 - decay)

    def _sum(self, step: int, loss: Tensor, task: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Add the figures of a step's part to the totals."""
        self.bad_step = torch.where(loss.isfinite(), self.bad_step, self.bad_step.clamp(max=step))
        correct = (outputs.argmax(1) == labels).sum()
        sums = torch.stack([loss * len(labels), task * len(labels), correct])
        self.totals[:3] += sums.to(self.totals)
        self.totals[3] += len(labels)

    def _measure(self, step: int, parts: Sequence[tuple[Mapping[str, GateOutput], Tensor]]) -> None:
        """Add to the totals what the masks of a step were, all of its parts together."""
        gates = {unit: joined([part[unit] for part, _ in parts]) for unit in parts[0][0]}
        if not gates:
            return
        assert self.dynamic is not None
        loss = torch.stack([each for _, each in parts]).sum()
        share = 1 / self.accelerator.num_processes  # so that a step counts once, however many go on
        targets = {unit: gate.target for unit, gate in gates.items() if gate.target is not None}
        masks = {unit: gate.mask for unit, gate in gates.items()}
        if self.warms_up(step):  # the gates stand open: judge what the predictors would do
            modules = self.dynamic.gates
            for unit, gate in gates.items():
                if gate.logits is not None and isinstance(module := modules[unit], Gate):
                    masks[unit] = hard_mask(gate.logits, module.threshold)
            masks = self.dynamic.with_fixed(masks)
        if targets:
            right = [(masks[unit] == target).float().mean() for unit, target in targets.items()]
            accuracy = torch.stack(right).mean()
            self.totals[4:7] += torch.stack([loss, accuracy, torch.ones_like(accuracy)]) * share
        executed = self.dynamic.macs(masks).reduction.mean()
        self.totals[7:] += (
            torch.stack([executed, torch.ones_like(executed)]).to(self.totals) * share
        )
        start, end = self.schedule.steering_start, self.schedule.cooldown_start
        if self.controller.target is not None and start <= step < end:
            asked = self.dynamic.macs(self.dynamic.with_fixed(targets)).reduction.mean()
            both = torch.stack([executed, asked])
            both = self.accelerator.reduce(both.to(self.device), "mean")
            self.controller.observe(*both.tolist(), steps=self.measure_every)

    def share(self) -> None:
        """Give all processes the main one's buffers: each averaged the batches of its own part."""
        if self.accelerator.num_processes > 1:
            for buffer in self.network.buffers():
                broadcast(buffer)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the weights' moving average, if one is kept, in their place for a while."""
        own = {name: value.clone() for name, value in self.live.items()}
        self.settle()
        try:
            yield
        finally:
            _copy(own, into=self.live)

    def settle(self) -> None:
        """Make the moving average, if one is kept, the weights."""
        _copy(self.average, into=self.live)

    def state(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on, and the totals over all processes."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for parameter, state in self.sgd.state.items():
            if state.get("momentum_buffer") is not None:
                tensors[f"momentum.{names[id(parameter)]}"] = state["momentum_buffer"]
        return tensors | {"totals": self.accelerator.reduce(self.totals, "sum")}

    def restore(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: It is of another network.
        """

        def section(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        load_weights(self.network, section("model."), source=source)
        _copy(section("average."), into=self.average)
        parameters = dict(self.network.named_parameters())
        for name, value in section("momentum.").items():
            # Laid out like its parameter (channels-last or not), or every step would be slower.
            buffer = torch.empty_like(parameters[name]).copy_(value)
            self.sgd.state[parameters[name]]["momentum_buffer"] = buffer
        if self.accelerator.is_main_process:  # the others begin at zero: the sum is the same
            self.totals.copy_(tensors["totals"])


def joined(parts: Sequence[GateOutput]) -> GateOutput:
    """What a gate decided for several parts of a batch, as for the whole batch."""
    if len(parts) == 1:
        return parts[0]
    fields = zip(*parts, strict=True)
    return GateOutput(*(None if each[0] is None else torch.cat(each) for each in fields))  # type: ignore[arg-type]


def _copy(values: Mapping[str, Tensor], *, into: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            into[name].copy_(value)
