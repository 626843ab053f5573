"""Whether another runtime does with a network what PyTorch does: outputs, and masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..pruning.dynamic import DynamicModel
from ..pruning.method import Gate
from .formats import Run
from .graph import MASK, OUTPUT, Inputs, named

TOLERANCE = 1e-4  # of the largest output, and of an image's largest logit: float32, many layers

_HELP = "no file was written; give other images as the example, or export without the check"


@dataclass(frozen=True)
class Agreement:
    """How far a runtime's answers are from PyTorch's.

    A gate compares a logit with a threshold. Where the two are equal but for rounding, another
    order of the same sum may decide otherwise, and what follows is another sub-network's. Such an
    image is counted, and no further compared; any other difference is an error.

    Args:
        runtime: Which, and its version.
        batch_sizes: Of what was run.
        deviation: Largest difference of an output, relative to the largest output.
        tolerance: What `deviation` may be; and how near its threshold, relative to the image's
            largest logit, a logit must be to be decided otherwise.
        decisions: How many entries of masks were compared; 0 where the file gives no masks.
        decided_otherwise: How many of them differ.
        images: How many were run.
        images_apart: For how many of them a decision differs.
    """

    runtime: str
    batch_sizes: tuple[int, ...]
    deviation: float
    tolerance: float
    decisions: int
    decided_otherwise: int
    images: int
    images_apart: int

    def __str__(self) -> str:
        told = f"equal in {self.runtime}: outputs for {self.images} {_images(self.images)} within "
        told += f"{self.deviation:.1e} of the largest (tolerance {self.tolerance:g})"
        if self.decisions:
            told += f", {self.decided_otherwise:,} of {self.decisions:,} mask entries differ"
        if self.images_apart:
            told += f"; {self.images_apart} {_images(self.images_apart)} not compared, "
            told += "with a logit at its threshold"
        return told


@torch.no_grad()
def compare(
    run: Run,
    model: nn.Module,
    batches: Iterable[Inputs],
    *,
    runtime: str,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Hold a runtime's answers to PyTorch's.

    Args:
        run: Inputs of the network -> outputs by name, as `Graph.named` has them.
        model: The network, in eval mode.
        batches: Inputs to run.
        runtime: What to call the runtime.
        tolerance: See `Agreement`.

    Raises:
        ValueError: An output deviates by more, a mask differs where its logit is clear, an output
            is missing, or no image was left to compare.
    """
    sizes, deviations = [], []
    decisions = otherwise = 0
    for inputs in batches:
        answers = run(inputs)
        output, gates = _decide(model, inputs, tolerance)
        sizes.append(len(inputs[0]))
        apart = torch.zeros(sizes[-1], dtype=torch.bool)  # images decided otherwise
        unsure = apart.clone()  # images that may have been: the file gives no masks
        for unit, (mask, near) in gates.items():
            if f"{MASK}.{unit}" not in answers:
                unsure |= near.any(1)
                continue
            differs = _answer(answers, f"{MASK}.{unit}", mask, runtime) != mask
            if ((differs & ~near).any(1) & ~apart).any():
                raise ValueError(
                    f"{runtime} gives unit {unit!r} another mask than PyTorch, where no logit is "
                    f"near its threshold; {_HELP}"
                )
            apart |= differs.any(1)
            decisions += differs.numel()
            otherwise += int(differs.sum())
        error = torch.zeros(sizes[-1])
        for name, wanted in named(output, OUTPUT):
            answer = _answer(answers, name, wanted, runtime)
            largest = wanted.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny)
            off = (answer.float() - wanted.float()).abs().flatten(1).amax(1) / largest
            error = error.maximum(off.nan_to_num(nan=torch.inf))
        far = error > tolerance
        if (far & ~apart & ~unsure).any():
            raise ValueError(
                f"{runtime} deviates from PyTorch by {float(error[~apart].amax()):.1e} of the "
                f"largest output, more than {tolerance:g}; {_HELP}"
            )
        deviations.append(error[~(far | apart)])
    compared = torch.cat(deviations)
    if not len(compared):
        raise ValueError(
            f"for each of {sum(sizes)} images {runtime} decides something otherwise than PyTorch, "
            "by rounding, so that nothing could be compared; give other images as the example"
        )
    return Agreement(
        runtime=runtime,
        batch_sizes=tuple(sizes),
        deviation=float(compared.amax()),
        tolerance=tolerance,
        decisions=decisions,
        decided_otherwise=otherwise,
        images=sum(sizes),
        images_apart=sum(sizes) - len(compared),
    )


def _images(count: int) -> str:
    return "image" if count == 1 else "images"


def _decide(
    model: nn.Module, inputs: Inputs, tolerance: float
) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """A network's output; and by unit its mask, and which entries rounding may decide on."""
    if not isinstance(model, DynamicModel):
        return model(*inputs), {}
    output, decided = model(*inputs, return_gates="masks")
    gates = model.gates
    masks = {}
    for unit, (mask, logits, *_) in decided.items():
        near, gate = torch.zeros_like(mask), gates[unit]
        if logits is not None and isinstance(gate, Gate):
            slack = tolerance * logits.abs().amax(1, keepdim=True)
            top = logits.amax(1, keepdim=True)  # which is always kept
            near = ((logits - gate.threshold).abs() <= slack) | (
                (logits >= top - slack) & (top <= gate.threshold + slack)
            )
        masks[unit] = (mask, near)
    return output, masks


def _answer(found: Mapping[str, Tensor], name: str, wanted: Tensor, runtime: str) -> Tensor:
    if name not in found:
        raise ValueError(f"{runtime} gives no {name!r}, only {', '.join(found)}; {_HELP}")
    if found[name].shape != wanted.shape:
        shapes = f"{tuple(found[name].shape)} for PyTorch's {tuple(wanted.shape)}"
        raise ValueError(f"{runtime} gives {name!r} of shape {shapes}; {_HELP}")
    return found[name]
