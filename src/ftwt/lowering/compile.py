"""From a network to an engine, in one call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from ..graph.inputs import images_of
from ..graph.trace import Ran
from ..pruning.convert import convert
from ..pruning.dynamic import Batches, DynamicModel
from ..pruning.second_look import SecondLook
from ..runtime import Engine, Program, SecondLookEngine
from ..runtime.engine import Kind
from . import economies, lower, tuning
from .quantize import quantize
from .ranges import Rule
from .tuning import ForcedEngine
from .verify import verify

Option = Batches | bool | None
Precision = Literal["f32", "int8"]
TUNED_ON = 4  # images
INTEGER_TOLERANCE = 0.05  # of the largest output: float parts round otherwise
TUNED_AT = 0.5  # keep ratio where there are no images to say


def compile(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    engine: Kind = "native",
    threads: int = 1,
    keep: float | None = None,
    seed: int = 0,
    remove_fixed: bool = True,
    remove_silent: Option = None,
    drop_constant: Option = None,
    layout: Option = None,
    tune: Option = None,
    classes: Sequence[str] = (),
    precision: Precision = "f32",
    calibrate: Iterable[tuple[Tensor, Any] | Tensor] | None = None,
    rule: Rule = "minmax",
    check: bool = True,
) -> Engine:
    """Make an engine that computes, for each input, only the filters that it needs.

    The economies below, off unless asked for, look at what gates decide on some images: batches of
    them, with or without labels, or True for those that another economy was given. What each did is
    in `engine.program.notes["economies"]`. `remove_silent`, `drop_constant` and `tune` change which
    masks are applied to other images: evaluate again, on the engine.

    Args:
        model: A dynamic network; or any network that `torch.fx` can trace, which is then dense; or
            a second look, of which all passes are compiled alike. It is read in eval mode, never
            changed, and need not outlive the call.
        example: Input (B, C, H, W) of a plain network; a dynamic one knows its size.
        engine: `native`, or `reference`: plain numpy, slow and obviously right.
        threads: How many threads a run of the native engine uses.
        keep: For benchmarks alone: every gate keeps this share of its filters, in (0, 1], drawn by
            lot for each sample; a plain network is given all gates that it can have. What the
            network says then means nothing; the predictors run, and are paid for.
        seed: Of these draws.
        remove_fixed: Remove the filters that a static twin never computes; exact, and on.
        remove_silent: Remove the filters that gates never choose.
        drop_constant: Take the predictors of gates that decide the same for all images.
        layout: Lay channels that fire together side by side in memory; exact but for rounding.
        tune: Open the gates that, timed on this machine, cost more than they save. True without
            images: timed at `keep`, or at half of the filters.
        classes: Names of the outputs, kept in the engine's program and its file.
        precision: `int8`: convolutions and linear layers on eight-bit maps with eight-bit weights.
            Layers that would lose too much stay float; each layer is in
            `engine.program.notes["quantization"]`, and `ftwt.quantized_layers(engine)` is a table.
        calibrate: Of `int8`: batches of some hundred images, with or without labels, that ranges of
            maps are taken from, under the gates' own masks.
        rule: Of `int8`: how a range is chosen: `minmax`, the largest value; `percentile`, the
            99.99th; or `mse`, the least squared error.
        check: Run the network in PyTorch and in the engine on the same images, and refuse an engine
            that differs beyond rounding. False for benchmarks alone: that takes a pass or two in
            each.

    Returns:
        The engine; of a second look, a `ftwt.runtime.SecondLookEngine`.

    Raises:
        ValueError: If the network cannot be lowered, naming the operation and its node; if the
            engine computes something else than the network, naming the first operation that
            differs; if an option is out of its range; or if images to calibrate with are missing,
            of another size or not finite.
        RuntimeError: If the native engine was not built; the message says what to install.
    """
    if isinstance(model, SecondLook):
        if keep is not None:
            raise ValueError(f"keep={keep}: a second look has no gates to force; compile a pass")
        options: dict[str, Any] = {
            "engine": engine, "threads": threads, "seed": seed, "remove_fixed": remove_fixed,
            "remove_silent": _held(remove_silent), "drop_constant": _held(drop_constant),
            "layout": _held(layout), "tune": _held(tune), "classes": classes,
            "precision": precision, "calibrate": _held(calibrate), "rule": rule, "check": check,
        }  # fmt: skip
        engines = [compile(one, example, **options) for one in model.networks]
        return SecondLookEngine(engines, model.thresholds.tolist())
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: give the share of filters that each gate keeps, in (0, 1]")
    if keep is not None and not isinstance(model, DynamicModel):
        if example is None:
            raise ValueError("example=None: a plain network needs an input, (B, C, H, W)")
        model = convert(model, example, min_gain=-math.inf)
    if _on(tune) and engine != "native":
        raise ValueError(f"tune with engine={engine!r}: it times the native engine alone")
    check_precision(precision)
    if precision == "int8" and calibrate is None and keep is None:
        raise ValueError(
            "calibrate=None: int8 takes ranges of maps from images; give batches of some hundred"
        )
    if precision == "f32" and calibrate is not None:
        raise ValueError("calibrate is given with precision='f32': it belongs to 'int8'")
    given = _Given(engine, (remove_silent, drop_constant, layout, tune))
    ran: Ran = []
    program = lower(model, example, classes=classes, ran=ran)
    if remove_fixed:
        program = economies.remove_fixed(program)
    built = None
    if check:
        built = Engine(program, engine=engine, threads=threads)
        verify(built, model, example, ran=ran)
    if _on(remove_silent):
        program = economies.remove_silent(program, given.masks(program, remove_silent))
    if _on(drop_constant):
        program = economies.fix_constant(program, given.masks(program, drop_constant))
    if _on(layout):
        program = economies.lay_out(program, given.masks(program, layout))
    if _on(tune):
        timed_at = keep
        if tune is True and not given.batches:
            timed_at = TUNED_AT if keep is None else keep
        images = given.images(program, tune)
        program = tuning.tune(program, images, threads=threads, keep=timed_at, seed=seed)
    if precision == "int8":
        program, _ = quantize(program, _images(calibrate, program), rule=rule)
        if check:
            built = Engine(program, engine=engine, threads=threads)
            _hold_to_reference(built)
    if keep is None and built is not None and built.program is program:
        return built
    if keep is None:
        return Engine(program, engine=engine, threads=threads)
    return ForcedEngine(program, engine=engine, threads=threads, keep=keep, seed=seed)


def check_precision(precision: str) -> None:
    """Refuse a precision that no engine has."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: use one of {', '.join(get_args(Precision))}")


def _held(given: Any) -> Any:
    """What can be gone through once, kept; anything else as it is."""
    return list(given) if isinstance(given, Iterator) else given


def _images(batches: Iterable[Any] | None, program: Program) -> Iterator[np.ndarray]:
    if batches is None:  # masks are drawn by lot, so the answers mean nothing
        noise = np.random.default_rng(0).standard_normal((TUNED_ON, *program.maps[0]))
        yield noise.astype(np.float32)
        return
    for batch in batches:
        yield images_of(batch).float().cpu().numpy()


def _hold_to_reference(engine: Engine) -> None:
    """Hold an eight-bit engine to the reference on an image, under the same masks."""
    program = engine.program
    image = np.random.default_rng(0).standard_normal((1, *program.maps[0])).astype(np.float32)
    wanted, told = Engine(program, engine="reference").run(image)
    found, _ = engine.run(image, told.masks)
    error = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))
    if not error <= INTEGER_TOLERANCE:
        raise ValueError(
            f"the eight-bit engine differs from its reference by {error:.2g} of the largest "
            "output; this is a fault of ftwt, please report the network"
        )


def _on(option: Option) -> bool:
    return option is not None and option is not False


class _Given:
    """The images that economies were given."""

    def __init__(self, engine: Kind, options: Sequence[Option]) -> None:
        self.engine = engine
        own = [given for given in options if given is not None and not isinstance(given, bool)]
        # what can be read only once is kept
        self.batches = {id(given): list(given) if iter(given) is given else given for given in own}

    def _of(self, option: Option) -> Batches:
        if option is not True:
            return self.batches[id(option)]
        if not self.batches:
            raise ValueError("no images to look at; give (images, labels) batches instead of True")
        return next(iter(self.batches.values()))

    def masks(self, program: Program, option: Option) -> economies.Masks:
        """Mask -> (N, K) bool: what the gates of a program decide."""
        engine = Engine(program, engine=self.engine)
        seen: list[dict[str, np.ndarray]] = []
        for batch in self._of(option):
            seen.append(engine.run(images_of(batch).float().cpu())[1].masks)
        if not seen:
            raise ValueError("no batches to look at; give (images, labels) batches")
        return {
            mask: np.concatenate([masks[gate.unit] for masks in seen])
            for mask, gate in enumerate(program.gates)
        }

    def images(self, program: Program, option: Option) -> np.ndarray:
        """A handful of images, noise if there are no others."""
        if option is True and not self.batches:
            noise = np.random.default_rng(0).standard_normal((TUNED_ON, *program.maps[0]))
            return noise.astype(np.float32)
        first = images_of(next(iter(self._of(option))))
        return first[:TUNED_ON].float().cpu().numpy()
