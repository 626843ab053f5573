"""What a network achieves on a set of images, and what it computes for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..graph.inputs import refuse_spoilt
from ..graph.trace import evaluating
from ..graph.work import count_work
from ..graph.wrappers import refuse_no_module
from ..pruning.dynamic import DynamicModel
from ..pruning.macs import warn_of_uncounted
from ..pruning.method import Apply
from ..pruning.second_look import SecondLook
from ..records.evaluation import Evaluation, UnitStats
from .batches import images_and_labels


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    gates: Apply = "predicted",
    targets: bool = True,
    accelerator: Any = None,
    provenance: dict[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a plain or dynamic network; its modules are left in the modes they were in.

    Args:
        model: Images (B, C, H, W) to logits (B, classes): plain, dynamic, or a second look.
        batches: Pairs of float images and whole numbers (B,) in [0, classes).
        gates: The masks of a dynamic network: `predicted`, `target` or `open`.
        targets: Also compare masks with their targets (costs a little time).
        accelerator: An `accelerate.Accelerator`, if each process holds its own part of the images:
            then every process returns the figures of all of them.
        provenance: Kept in the result.

    Returns:
        Accuracy and cost over all images.

    Raises:
        ValueError: If there is no batch, an image is not finite or has another size than the
            network was converted for, a label is out of range, or the network returns no logits.
    """
    refuse_no_module(model)
    dynamic = model if isinstance(model, DynamicModel) else None
    device = device_of(model)
    tally = _Tally()
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            images, labels = (part.to(device) for part in images_and_labels(batch))
            if not len(images):
                continue
            if isinstance(model, SecondLook):
                looked = model.look(images)
                tally.guess(looked.outputs, labels)
                tally.spend(model.dense_macs, looked.executed)
                continue
            if dynamic is None:
                refuse_spoilt(images)
                tally.guess(outputs_of(model, images), labels)
                if tally.dense is None:
                    tally.dense = plain_macs(model, images)
                continue
            dynamic.check_input(images)
            wanted: Any = True if targets else "masks"
            outputs, decided = outputs_of(dynamic, images, gates=gates, return_gates=wanted)
            tally.guess(outputs, labels)
            tally.work(dynamic, decided)
    if accelerator is not None and accelerator.num_processes > 1:
        parts = gather_object([tally])
        tally = parts[0]
        for part in parts[1:]:
            tally.add(part)
    if not tally.images:
        raise ValueError("no batches to evaluate on; give (images, labels) batches")
    return tally.result(provenance or {})


def outputs_of(model: nn.Module, images: Tensor, **options: Any) -> Any:
    """Run a network on a copy of images, which it may change in place.

    Raises:
        ValueError: It cannot take images of this shape or kind.
    """
    try:
        return model(images.clone(), **options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape = tuple(images.shape)
        raise ValueError(f"the network cannot take images of {shape}: {error}") from error


def device_of(model: nn.Module) -> torch.device:
    """Return where a network lies; one without parameters, say of packed bytes, on the CPU."""
    held = chain(model.parameters(), model.buffers())
    return next((part.device for part in held), torch.device("cpu"))


def plain_macs(model: nn.Module, images: Tensor) -> int:
    """Count the multiply-accumulates of a plain network for the first of these images."""
    counter = count_work(model, images[:1].clone())
    warn_of_uncounted(tuple(dict.fromkeys(counter.uncounted)))
    return counter.macs


def classes_of(outputs: Any) -> int:
    """Return how many classes a network's outputs score.

    Raises:
        ValueError: If they are no logits (B, classes).
    """
    if isinstance(outputs, Tensor) and outputs.dim() == 2:
        return outputs.shape[1]
    found = type(outputs).__name__
    if isinstance(outputs, Tensor):
        found = f"a tensor of shape {tuple(outputs.shape)}"
    raise ValueError(
        f"the network returns {found}; only logits (B, classes) are scored. Train and score it in "
        "a loop of your own, with ftwt.mask_loss and DynamicModel.macs: docs/any-model.md has one"
    )


def check_labels(labels: Tensor, *, classes: int) -> None:
    """Refuse labels that a network has no output for.

    Raises:
        ValueError: If a label lies outside [0, classes).
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels from {low} to {high} for a network with {classes} outputs; they must lie in "
            f"[0, {classes - 1}]: create the network with more classes or correct the labels"
        )


class _Tally:
    """Sums over images; tallies of several processes add up to that of one."""

    def __init__(self) -> None:
        self.images, self.top1, self.top5 = 0, 0, 0
        self.dense: int | None = None
        self.losses: list[np.ndarray] = []
        self.executed: list[np.ndarray] = []
        self.published: list[np.ndarray] = []
        self.masks: dict[str, list[np.ndarray]] = {}
        self.agreed: dict[str, list[np.ndarray]] = {}
        self.channels: dict[str, int] = {}

    def guess(self, outputs: Tensor, labels: Tensor) -> None:
        classes = classes_of(outputs)
        check_labels(labels, classes=classes)
        right = outputs.topk(min(5, classes), 1).indices == labels[:, None]
        self.images += len(labels)
        losses = F.cross_entropy(outputs.float(), labels, reduction="none")
        self.losses.append(losses.cpu().numpy())
        self.top1 += int(right[:, 0].sum())
        self.top5 += int(right.sum())

    def spend(self, dense: int, executed: Tensor) -> None:
        self.dense = dense
        self.executed.append(executed.numpy())
        self.published.append(np.full(len(executed), float(dense)))  # knows no second look

    def work(self, dynamic: DynamicModel, decided: dict[str, Any]) -> None:
        count = dynamic.macs({name: gate.mask for name, gate in decided.items()})
        self.dense = count.dense
        samples = max((len(gate.mask) for gate in decided.values()), default=1)
        self.executed.append(count.executed.expand(samples).numpy())
        self.published.append(count.published.expand(samples).numpy())
        for name, gate in decided.items():
            self.channels[name] = gate.mask.shape[1]
            packed = np.packbits(gate.mask.cpu().numpy(), axis=1)
            self.masks.setdefault(name, []).append(packed)
            if gate.target is not None:
                same = (gate.mask == gate.target).float().mean(1).cpu().numpy()
                self.agreed.setdefault(name, []).append(same)

    def add(self, other: _Tally) -> None:
        self.images += other.images
        self.top1, self.top5 = self.top1 + other.top1, self.top5 + other.top5
        self.dense = self.dense if self.dense is not None else other.dense
        self.channels |= other.channels
        self.losses += other.losses
        self.executed += other.executed
        self.published += other.published
        for mine, theirs in ((self.masks, other.masks), (self.agreed, other.agreed)):
            for name, parts in theirs.items():
                mine.setdefault(name, []).extend(parts)

    def result(self, provenance: dict[str, Any]) -> Evaluation:
        dense = self.dense or 0
        none = [np.full(1, float(dense))]
        executed, published = _join(self.executed or none), _join(self.published or none)
        reduction = 1 - executed / dense
        units = tuple(self._unit(name) for name in self.masks)
        agreed = [unit.mask_accuracy for unit in units if unit.mask_accuracy is not None]
        return Evaluation(
            images=self.images,
            loss=float(_join(self.losses).mean()),
            top1=self.top1 / self.images,
            top5=self.top5 / self.images,
            dense_macs=dense,
            executed_macs=float(executed.mean()),
            reduction=float(reduction.mean()),
            reduction_std=float(reduction.std()),
            reduction_range=(float(reduction.min()), float(reduction.max())),
            published_reduction=float(1 - published.mean() / dense),
            mask_accuracy=math.fsum(agreed) / len(agreed) if agreed else None,
            units=units,
            provenance=provenance,
        )

    def _unit(self, name: str) -> UnitStats:
        packed = np.concatenate(self.masks[name])
        masks = np.unpackbits(packed, axis=1, count=self.channels[name])
        rate, keep = masks.mean(0), np.sort(masks.mean(1))
        inside = rate[(rate > 0) & (rate < 1)]
        bits = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).sum()
        agreed = self.agreed.get(name)
        return UnitStats(
            name=name,
            channels=masks.shape[1],
            keep=float(keep.mean()),
            keep_std=float(keep.std()),
            always=int((rate == 1).sum()),
            never=int((rate == 0).sum()),
            entropy=float(bits) / masks.shape[1],
            distinct=len(np.unique(packed, axis=0)),
            mask_accuracy=float(_join(agreed).mean()) if agreed else None,
        )


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Return all images' values, sorted: sums do not depend on which process saw which image."""
    return np.sort(np.concatenate(parts).astype(np.float64))
