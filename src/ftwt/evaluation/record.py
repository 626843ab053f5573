"""Record what a network does with each image, for the report: masks, work, pictures, heatmaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import ImageFiles, Images
from ..graph.inputs import refuse_spoilt
from ..graph.trace import evaluating
from ..names import nearest
from ..pruning.dynamic import DynamicModel
from ..pruning.macs import predictor_macs
from ..pruning.method import Apply
from ..pruning.second_look import SecondLook
from ..records.recording import RecordedUnit as RecordedUnit
from ..records.recording import Recording as Recording
from .evaluate import check_labels, classes_of, device_of, outputs_of, plain_macs

MAPPED = 6  # units that get heatmaps, spread over the depth, if none are named
ENDS = 12  # pictures of the cheapest images, and as many of the dearest, of 64
AT_ONCE = 8  # pictures in a pass for heatmaps: large maps of few images
MOST = float(np.finfo(np.float16).max)


def record(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    images: int = 64,
    units: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    gates: Apply = "predicted",
    network: str | None = None,
    provenance: dict[str, Any] | None = None,
) -> Recording:
    """Record a plain or dynamic network's guesses, masks and work for each image.

    The batches are gone through twice: once for all images, and once to fetch those that are shown,
    of which alone there are pictures and heatmaps. So what is held is a few hundred bytes an image,
    besides what the network needs for a batch.

    Args:
        model: Images (B, C, H, W) to logits (B, classes), plain, dynamic or a second look (of which
            work and passes are recorded, and no masks); it is not changed.
        batches: (images, labels), the same in the same order each time they are gone through, such
            as a list or `ftwt.data.Batches` that are not for training.
        images: How many to keep as pictures: the cheapest, the dearest (12 each of 64) and others,
            spread over the labels.
        units: Those to keep heatmaps of; if not given, up to 6, spread over the depth.
        classes: Names of the labels; if not given, those of the dataset, or their numbers.
        mean: Per channel, what was taken from pixel values in [0, 1]; if not given, the dataset's.
            Without one, each picture is stretched to its own range.
        std: Per channel, by what they were divided.
        gates: The masks of a dynamic network: `predicted`, `target` or `open`.
        network: What to call it; if not given, its class.
        provenance: Kept in the recording.

    Returns:
        The recording; `save` writes it, the report reads it.

    Raises:
        ValueError: There is no image, they cannot be gone through twice, an option is out of its
            range, a unit does not exist, or a label is out of range.
    """
    if images < 0:
        raise ValueError(f"images={images}: keep none (0) or more; 64 is usual")
    if iter(batches) is batches:
        raise ValueError(
            "batches is a generator, which can be gone through once; give a list or Batches"
        )
    source = getattr(batches, "images", None)
    if isinstance(source, Images | ImageFiles):
        classes = source.classes if classes is None else classes
        mean, std = (source.mean, source.std) if mean is None else (mean, std)
    dynamic = model if isinstance(model, DynamicModel) else None
    mapped = _mapped(dynamic, units)
    with evaluating(model), torch.inference_mode():
        pass_ = _Pass(model, batches, gates)
        if classes is not None and len(classes) != pass_.width:
            raise ValueError(
                f"classes names {len(classes)} labels, the network has {pass_.width} outputs"
            )
        if images and pass_.dim != 4:
            raise ValueError(
                f"images={images}, but what the network takes has {pass_.dim} dimensions and is no "
                "picture (B, C, H, W); images=0 records everything else"
            )
        shown = choose(pass_.labels, pass_.executed, count=images)
        pictures = _fetch(batches, shown, pass_.sums)
        maps = [_heatmaps(dynamic, pictures, mapped, apply) for apply in ("open", gates)]
    return Recording(
        network=network or type(model).__name__,
        classes=tuple(map(str, range(pass_.width))) if classes is None else tuple(classes),
        dense_macs=pass_.dense,
        units=() if dynamic is None else _units(dynamic),
        labels=pass_.labels,
        predictions=pass_.predictions,
        confidence=pass_.confidence,
        executed_macs=pass_.executed,
        packed_masks=pass_.masks,
        shown=shown.astype(np.int32),
        pictures=_pixels(pictures, mean, std),
        dense_heatmaps=maps[0],
        dynamic_heatmaps=maps[1],
        provenance=provenance or {},
        passes=pass_.passes,
    )


class _Column:
    """Rows that grow in one piece of memory: many small pieces would keep freed ones from use."""

    def __init__(self) -> None:
        self.held, self.like = bytearray(), np.empty(0)

    def add(self, rows: np.ndarray) -> None:
        self.held += rows.tobytes()
        self.like = rows[:0]

    def array(self) -> np.ndarray:
        return np.frombuffer(self.held, self.like.dtype).reshape(-1, *self.like.shape[1:])


class _Pass:
    """One pass over all images: what the network guessed, masked and executed."""

    def __init__(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], gates: Apply
    ) -> None:
        dynamic = model if isinstance(model, DynamicModel) else None
        device = device_of(model)
        columns: defaultdict[str, _Column] = defaultdict(_Column)
        masks: defaultdict[str, _Column] = defaultdict(_Column)
        self.dense = self.width = self.dim = 0
        for batch, wanted in batches:
            columns["sums"].add(_sums(batch))
            self.dim = batch.dim()
            batch = batch.to(device)
            if isinstance(model, SecondLook):
                looked = model.look(batch)
                outputs, self.dense = looked.outputs, model.dense_macs
                columns["executed"].add(looked.executed.numpy().astype(np.float32))
                columns["passes"].add(looked.passes.cpu().numpy().astype(np.uint8))
            elif dynamic is None:
                refuse_spoilt(batch)
                outputs = outputs_of(model, batch)
                if not self.dense:
                    self.dense = plain_macs(model, batch)
                columns["executed"].add(np.full(len(batch), self.dense, np.float32))
            else:
                dynamic.check_input(batch)
                outputs, decided = dynamic(batch, gates=gates, return_gates="masks")
                count = dynamic.macs({name: gate.mask for name, gate in decided.items()})
                self.dense = count.dense
                work = count.executed.expand(len(batch)).numpy()
                columns["executed"].add(work.astype(np.float32))
                for name, gate in decided.items():
                    masks[name].add(np.packbits(gate.mask.cpu().numpy(), axis=1))
            self.width = classes_of(outputs)
            check_labels(wanted, classes=self.width)
            chance, guess = outputs.float().softmax(1).max(1)
            columns["labels"].add(wanted.cpu().numpy().astype(np.int16))
            columns["predictions"].add(guess.cpu().numpy().astype(np.int16))
            columns["confidence"].add(chance.cpu().numpy().astype(np.float16))
        if not columns:
            raise ValueError("no batches to record; give (images, labels) batches")
        self.sums, self.executed = columns["sums"].array(), columns["executed"].array()
        self.labels, self.predictions = columns["labels"].array(), columns["predictions"].array()
        self.confidence = columns["confidence"].array()
        self.masks = {name: column.array() for name, column in masks.items()}
        self.passes = columns["passes"].array() if "passes" in columns else None


def _sums(batch: Tensor) -> np.ndarray:
    """A number for each image, by which it is known again."""
    return batch.double().flatten(1).sum(1).cpu().numpy()


def choose(labels: np.ndarray, executed_macs: np.ndarray, *, count: int) -> np.ndarray:
    """Choose the images to show: the cheapest, the dearest, and others spread over the labels.

    Args:
        labels: (N,).
        executed_macs: (N,); where all are equal, none is cheap or dear.
        count: How many; all of them, if there are fewer.

    Returns:
        Their indices, ascending.
    """
    total = len(labels)
    if count >= total:
        return np.arange(total)
    order = np.argsort(executed_macs, kind="stable")
    ends = min(ENDS, count * ENDS // 64) if executed_macs.min() < executed_macs.max() else 0
    taken = set(order[:ends].tolist()) | set(order[total - ends :].tolist())
    members = [
        [index for index in np.flatnonzero(labels == label).tolist() if index not in taken]
        for label in np.unique(labels)
    ]
    turn = 0
    shares = [0] * len(members)
    while sum(shares) + len(taken) < count:  # in turns, as long as a label has images left
        shares[turn] += shares[turn] < len(members[turn])
        turn = (turn + 1) % len(members)
    for images, share in zip(members, shares, strict=True):
        if share:
            places = np.linspace(0, len(images) - 1, share).round().astype(int)
            taken |= {images[place] for place in places}
    return np.array(sorted(taken), dtype=np.int64)


def _units(dynamic: DynamicModel) -> tuple[RecordedUnit, ...]:
    macs = {layer.name: layer.macs for layer in dynamic.channels.layers}
    predictors = dynamic.predictors
    return tuple(
        RecordedUnit(
            name=unit.name,
            channels=unit.out_channels,
            macs=int(macs[unit.name]),
            predictor_macs=int(predictor_macs(predictors[unit.name], unit.in_channels))
            if unit.name in predictors
            else 0,
            inherited_by=tuple(o.name for o in dynamic.units if o.inherits == unit.name),
        )
        for unit in dynamic.units
        if unit.inherits is None
    )


def _mapped(dynamic: DynamicModel | None, units: Sequence[str] | None) -> list[str]:
    """The units to keep heatmaps of."""
    known = [] if dynamic is None else list(dynamic.gates)
    if dynamic is not None:
        ends = {unit.name: unit.end for unit in dynamic.units}
        flat = [name for name in known if len(dynamic.channels.shapes[ends[name]]) != 3]
        if wrong := [name for name in units or () if name in flat]:
            raise ValueError(
                f"unit {wrong[0]!r} has no rows and columns to keep a heatmap of; name others"
            )
        known = [name for name in known if name not in flat]
    if units is None:
        places = np.linspace(0, len(known) - 1, min(MAPPED, len(known))).round().astype(int)
        return [known[place] for place in places]
    for name in units:
        if name not in known:
            raise ValueError(f"no unit {name!r} to keep heatmaps of; {nearest(name, known)}")
    return list(units)


def _fetch(batches: Iterable[tuple[Tensor, Tensor]], shown: np.ndarray, sums: np.ndarray) -> Tensor:
    """The images at these indices, as the network gets them: (K, C, H, W) on the CPU."""
    found, first = [], 0
    for batch, _ in batches:
        known = sums[first : first + len(batch)]
        if not np.array_equal(_sums(batch), known, equal_nan=True):
            raise ValueError(
                "batches gave other images the second time; give them unshuffled, in one order"
            )
        here = shown[(shown >= first) & (shown < first + len(batch))] - first
        found.append(batch[torch.from_numpy(here).to(batch.device)].cpu())
        first += len(batch)
    return torch.cat(found).contiguous()


def _heatmaps(
    dynamic: DynamicModel | None, pictures: Tensor, units: list[str], gates: Apply
) -> dict[str, np.ndarray]:
    """Unit -> (K, h, w): the mean over its filters of what it puts out, without sign."""
    if dynamic is None or not units:
        return {}
    device = next(dynamic.parameters()).device
    heatmaps: dict[str, list[np.ndarray]] = {name: [] for name in units}

    def keep(name: str) -> Any:
        def hook(gate: nn.Module, given: Any, returned: tuple[Tensor, Any]) -> None:
            strength = returned[0].abs().float().mean(1).clamp(max=MOST)
            heatmaps[name].append(strength.cpu().numpy().astype(np.float16))

        return hook

    modules = dynamic.gates
    hooks = [modules[name].register_forward_hook(keep(name)) for name in units]
    try:
        for part in pictures.split(AT_ONCE):
            dynamic(part.to(device), gates=gates)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(parts) for name, parts in heatmaps.items() if parts}


def _pixels(
    pictures: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> np.ndarray:
    """Images as the network gets them, as pixels: (K, H, W, 3) uint8."""
    if pictures.dim() != 4:
        return np.zeros((0, 1, 1, 3), np.uint8)
    values = pictures.double()
    if mean is None or std is None:
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        values = (values - low) / (high - low).clamp(min=1e-12)
    else:
        shape = (1, -1, 1, 1)
        values = values * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    if values.shape[1] != 3:  # grey
        values = values.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    pixels = (255 * values).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()
