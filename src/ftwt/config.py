"""What a run is made of: frozen dataclasses, checked when built, to and from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from .graph.units import Depthwise, Residual
from .names import nearest
from .pruning.method import Head, Mode, Pool, Saliency, Variant


class _Config:
    """Shared by all configs: choices checked when built, JSON both ways."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole and (hint is int or (hint == int | None and value is not None)):
                raise ValueError(f"{name}={value!r} is not a whole number")
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                options = ", ".join(map(repr, get_args(hint)))
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {options}")

    def _check(
        self,
        name: str,
        low: float,
        high: float = math.inf,
        *,
        open_low: bool = False,
        open_high: bool = False,
        fix: str,
    ) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}={value!r} is not a number; {fix}")
        above = value > low if open_low else value >= low
        below = value < high if open_high or math.isinf(high) else value <= high
        if not (above and below):
            left = "(" if open_low else "["
            right = ")" if open_high or math.isinf(high) else "]"
            raise ValueError(f"{name}={value} is outside {left}{low:g}, {high:g}{right}; {fix}")

    def to_json(self) -> dict[str, Any]:
        """The config as a dict of JSON values, nested configs included."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a config from `to_json`'s dict; keys left out take their defaults.

        Args:
            values: Keys are field names, values JSON values.

        Raises:
            ValueError: A key is unknown (the message names the nearest), or a value invalid.
        """
        hints = get_type_hints(cls)
        unknown = [key for key in values if key not in hints]
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no key {unknown[0]!r}; {nearest(unknown[0], hints)}"
            )
        return cls(**{key: _from_json(hints[key], value) for key, value in values.items()})


def _from_json(hint: Any, value: Any) -> Any:
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)]
    if isinstance(value, Mapping):
        for kind in kinds:
            if issubclass(kind, _Config):
                return kind.from_json(value)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class PruneConfig(_Config):
    """How gates are put into a network: the options of `ftwt.convert`, which takes them by name."""

    r: float | dict[str, float] = 0.9
    """Share of the saliency's mass that target masks keep, in (0, 1]; or unit -> r, others 0.9."""
    mode: Mode = "decoupled"
    """Decoupled: the mask loss trains the predictors only. Joint: the network too."""
    saliency: Saliency = "peak"
    """What ranks filters: the heatmap's peak (published), its mean, L2 norm or energy."""
    variant: Variant = "mass"
    """Mass: as many filters as reach the mass r. Uniform: the same share r for every image."""
    pool: Pool = "mean"
    """How a predictor pools its input over space: max, mean or both."""
    head: Head = "standardized"
    """Softmax as published, or a standardisation that folds into the affine layer."""
    rank: int | None = None
    """Rank of a predictor's bottleneck; None: a full C_in x C_out layer."""
    residual: Residual = "before"
    """Where the last unit of a residual block is masked: before or after the add."""
    depthwise: Depthwise = "inherit"
    """A depthwise conv takes its producer's mask, or has a gate of its own."""
    linear: bool = False
    """Gate hidden linear layers too: those that an activation with f(0) = 0 follows, of tokens
    (B, N, C) or (B, H, W, C), or of vectors (B, C), whose predictors need a rank."""
    straight_through: bool = False
    """Let the task loss reach the predictors through the 0/1 mask."""
    min_gain: float | None = None
    """Leave out gates that save less than this share of all MACs, their predictor paid. Below 0:
    keep some that cost more. None: leave out predictors that cost as much as their layer."""
    skip: tuple[str, ...] = ()
    """Names of layers that get no gate; `layer1` includes `layer1.0.conv1`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for unit, r in (self.r if isinstance(self.r, dict) else {"": self.r}).items():
            if not (isinstance(r, int | float) and 0 < r <= 1):
                where = f" for unit {unit!r}" if unit else ""
                raise ValueError(f"r={r!r}{where} is outside (0, 1]; 0.9 is a gentle start")
        if self.rank is not None:
            self._check("rank", 1, fix="None means a full predictor")


@dataclass(frozen=True)
class TrainConfig(_Config):
    """One training run; the same for a plain network and a dynamic one."""

    epochs: int = 20
    """Passes over the training set."""
    batch_size: int = 128
    """Images a step, over all processes together."""
    lr: float = 0.01
    """Peak learning rate of the network."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of all the network's parameters; predictors have none."""
    nesterov: bool = False
    """Nesterov's momentum instead of the classical one."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Cosine to zero, or a drop by lr_decay at each milestone."""
    milestones: tuple[float, ...] = (0.405, 0.61, 0.755)
    """Drops of the step schedule as fractions of the run (81, 122, 151 of 200 epochs)."""
    lr_decay: float = 0.1
    """Factor of each drop of the step schedule."""
    warmup_epochs: float = 0.0
    """Epochs over which the network's rate rises linearly from 0."""
    predictor_lr: float = 0.1
    """Learning rate of the predictors, constant."""
    predictor_warmup_steps: int = 0
    """First steps in which gates stand open and only the predictors learn; if the cooldown begins
    before they end, half of those before it."""
    mask_loss_weight: float = 1.0
    """Weight of the mask loss before the cooldown."""
    cooldown: float = 0.5
    """Fraction of the run after which the predictors stand still; 1: never."""
    anneal_epochs: float = 0.0
    """Epochs over which r falls linearly from 1 to its target."""
    target_reduction: float | None = None
    """Steer r, then the thresholds, so that this share of the executed MACs is saved."""
    distillation: float = 0.0
    """Weight of the divergence from a dense teacher's outputs; 0: no teacher."""
    temperature: float = 4.0
    """Softening of both outputs in the distillation."""
    label_smoothing: float = 0.0
    """Probability spread over the wrong classes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights stay fp32."""
    channels_last: bool = False
    """Store images and feature maps with channels last: faster in bf16 and on GPUs."""
    clip_norm: float | None = None
    """Largest norm of a step's gradient."""
    ema_decay: float | None = None
    """Return (and validate) a moving average of the weights with this decay."""
    accumulation: int = 1
    """Parts in which a batch is computed, one after another, each process's share: less memory."""
    sync_batchnorm: bool = False
    """Batch-norm statistics of the whole batch, over all processes; else each has its own."""
    freeze_batchnorm: bool = False
    """Use the stored batch-norm statistics, as fine-tuning on small batches wants."""
    seed: int = 0
    """Decides everything random in training."""
    tracker: str | None = None
    """Also log to a tracker that Accelerate knows, such as tensorboard or wandb."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("epochs", 1, fix="train for one epoch or more")
        self._check("batch_size", 1, fix="128 is usual on CIFAR")
        self._check("lr", 0, fix="0.01 fine-tunes, 0.1 trains from nothing")
        self._check("momentum", 0, 1, open_high=True, fix="0.9 is usual")
        self._check("weight_decay", 0, fix="5e-4 is usual on CIFAR")
        self._check("lr_decay", 0, 1, open_low=True, fix="0.1 is usual")
        self._check("warmup_epochs", 0, self.epochs, fix="warm up in fewer epochs than there are")
        self._check("predictor_lr", 0, fix="0.1 is published")
        self._check("predictor_warmup_steps", 0, fix="0 turns it off")
        self._check("mask_loss_weight", 0, fix="1 is published")
        self._check("cooldown", 0, 1, fix="0.5 is published, 1 turns it off")
        self._check("anneal_epochs", 0, self.epochs, fix="0 turns it off")
        self._check("distillation", 0, fix="0 turns it off")
        self._check("temperature", 0, open_low=True, fix="4 is usual")
        self._check("label_smoothing", 0, 1, open_high=True, fix="0 turns it off")
        self._check("accumulation", 1, self.batch_size, fix="1 computes a batch at once")
        self._check("seed", 0, 2**31, open_high=True, fix="any whole number from 0 on")
        if self.target_reduction is not None:
            self._check("target_reduction", 0, 1, open_low=True, open_high=True, fix="0.3 is mild")
        if self.clip_norm is not None:
            self._check("clip_norm", 0, open_low=True, fix="None turns it off")
        if self.ema_decay is not None:
            self._check("ema_decay", 0, 1, open_high=True, fix="0.999 is usual")
        if self.predictor_warmup_steps and not self.mask_loss_weight:
            raise ValueError("predictor_warmup_steps without a mask_loss_weight; give it, say, 1")
        if self.sync_batchnorm and self.freeze_batchnorm:
            raise ValueError(
                "sync_batchnorm=True has no effect with freeze_batchnorm=True; give one"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True with momentum=0.0; give a momentum such as 0.9")
        if not all(0 < drop < 1 for drop in self.milestones):
            raise ValueError(
                f"milestones={self.milestones} are fractions of the run in (0, 1); "
                f"divide epochs by epochs={self.epochs}"
            )


GATES_ONLY = (
    "predictor_lr",
    "predictor_warmup_steps",
    "mask_loss_weight",
    "cooldown",
    "anneal_epochs",
    "target_reduction",
)  # settings of a training that mean nothing without gates


@dataclass(frozen=True)
class DataConfig(_Config):
    """Which images, and which of them are held out for validation."""

    dataset: Literal["cifar10", "cifar100", "cifar10-embedded", "folder"] = "cifar10"
    """The dataset; folder: images in folders by class, as ImageNet's (docs/imagenet.md). To prune
    with, training images may lie together, without labels."""
    data_root: str | None = None
    """Folder that holds (or will hold) the dataset's files; None: ./data."""
    validation: int | None = None
    """Training images held out, class-balanced, for validation; None: a tenth, at most 5,000 or ten
    of each class."""
    split_seed: int = 0
    """Decides which images are held out."""
    workers: int = 4
    """Processes that decode a folder's images, beside each that trains; no more than there are
    cores. They change no result."""
    mean: tuple[float, float, float] | None = None
    """Mean that the weights expect, per channel, of pixels in [0, 1]; None: the dataset's own."""
    std: tuple[float, float, float] | None = None
    """Standard deviation that the weights expect, likewise."""
    size: int | None = None
    """Side of the images that the network takes, in pixels; None: as is known of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation is not None:
            self._check("validation", 1, fix="5000 is usual on CIFAR")
        self._check("workers", 0, fix="0 lets the training process decode")
        if self.size is not None:
            self._check("size", 1, 1024, fix="32 is CIFAR's, 224 is usual on ImageNet")
        self._check("split_seed", 0, 2**31, open_high=True, fix="any whole number from 0 on")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean={self.mean} and std={self.std} belong together; give both")
        if not all(math.isfinite(value) for value in (*(self.mean or ()), *(self.std or ()))):
            raise ValueError(f"mean={self.mean} and std={self.std} must be finite numbers")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be above 0 in each channel")


@dataclass(frozen=True)
class FixedConfig(_Config):
    """A repaired fixed mask to train under, and whether unsure images are looked at again."""

    mask_reduction: float = 0.4
    """Share of the dense MACs that the fixed mask saves."""
    second_look: Literal["none", "dense", "shared"] = "none"
    """Who looks again at the images that the masked network is unsure of: the dense network as it
    is, or the open pass of the same weights, trained with it."""
    average_reduction: float | None = None
    """Share of the dense MACs to save on average, both looks counted; validation images set the
    threshold. Needs a second look."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "0.4 is usual"
        self._check("mask_reduction", 0, 1, open_low=True, open_high=True, fix=fix)
        if (self.second_look == "none") != (self.average_reduction is None):
            raise ValueError(
                f"second_look={self.second_look!r} with average_reduction="
                f"{self.average_reduction}; give both or neither"
            )
        if self.average_reduction is not None:
            most, fix = self.mask_reduction, "a second look costs: save more by the mask"
            self._check("average_reduction", 0, most, open_low=True, open_high=True, fix=fix)


@dataclass(frozen=True)
class RunConfig(_Config):
    """A whole run: a network, its data, its gates and its training."""

    model: str = "cifar10-resnet20"
    """Name of the architecture; `ftwt models` lists them."""
    weights: str | None = None
    """Where training starts: a folder, a state dict, 'pretrained', or None for random weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    prune: PruneConfig | None = None
    """The gates; None trains the dense network."""
    fixed: FixedConfig | None = None
    """A fixed mask instead of gates."""
    allocate: bool = False
    """With a target_reduction: let the estimate choose an r for each unit, not one for all."""
    twin_of: str | None = None
    """Folder of a finished dynamic run: train its static twin from the same weights."""
    new_head: bool = False
    """Where a folder's classes are not those of the weights: begin with a new classifier."""
    teacher: str | None = None
    """Dense network to imitate: a name, a folder, or 'pretrained' for the architecture's own; None:
    the one that training begins with, which a pruned one cannot be."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        gates = self.prune is not None and self.twin_of is None
        if self.train.target_reduction is not None and not gates:
            raise ValueError(
                f"target_reduction={self.train.target_reduction} needs gates to steer; a dense "
                "network has none, and a static twin computes as much as the run it is of"
            )
        if self.teacher is not None and not self.train.distillation:
            raise ValueError(f"teacher={self.teacher!r} with distillation=0; give it, say, 1")
        if self.fixed is not None and (self.prune is not None or self.twin_of is not None):
            raise ValueError("fixed masks beside gates or a twin's masks; give one of them")
        if self.fixed is not None and self.weights is None:
            raise ValueError("fixed masks of random weights; give those of a trained network")
        if self.allocate and (self.train.target_reduction is None or not gates):
            raise ValueError("allocate=True needs gates and a target_reduction to allocate")
        if self.new_head and (self.weights is None or self.data.dataset != "folder"):
            raise ValueError(
                "new_head=True is for weights of other classes than those of a folder of images; "
                "random weights have a new head anyway, and CIFAR networks are of CIFAR's classes"
            )
        if self.train.distillation > 0 and self.weights is None and self.teacher is None:
            raise ValueError(
                f"distillation={self.train.distillation} from random weights; give the weights of "
                "a trained network, or name a teacher"
            )

    @property
    def asked_reduction(self) -> float | None:
        """Share of the dense MACs that the whole run is to save, if it is asked for any."""
        if self.fixed is None:
            return self.train.target_reduction
        average = self.fixed.average_reduction
        return self.fixed.mask_reduction if average is None else average

    def of_epochs(self, epochs: int) -> Self:
        """The same run in another number of epochs; phases that would not fit take half of them."""
        train = self.train
        phases: dict[str, Any] = {
            name: epochs / 2
            for name in ("warmup_epochs", "anneal_epochs")
            if getattr(train, name) > epochs
        }
        return replace(self, train=replace(train, epochs=epochs, **phases))

    def without_budget(self) -> RunConfig:
        """The same, asked for no reduction: a static twin has that of the run it is of."""
        return replace(self, allocate=False, train=replace(self.train, target_reduction=None))

    def without_gates(self) -> RunConfig:
        """The same training of a plain network; what only gates have is back at its default."""
        default = TrainConfig()
        plain = {name: getattr(default, name) for name in GATES_ONLY}
        return replace(self, prune=None, allocate=False, train=replace(self.train, **plain))


def changes(before: _Config, after: _Config) -> list[str]:
    """Say in which values two configs of one kind differ, those of nested configs by themselves."""
    found = []
    for f in fields(before):  # type: ignore[arg-type]
        was, now = getattr(before, f.name), getattr(after, f.name)
        if isinstance(was, _Config) and isinstance(now, _Config):
            found += changes(was, now)
        elif was != now:
            found.append(f"{f.name} was {was}, is {now}")
    return found
