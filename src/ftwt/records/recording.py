"""What a network did with each of many images, in one file that numpy alone can read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..files.atomic import replacing
from ..files.digest import digest
from ..files.json import parse_json
from ..files.tables import Shown

FORMAT = 1  # of a recording's file
RECORDING = "recording.safetensors"  # beside a run's run.json
MADE_BY = "make it with `ftwt evaluate MODEL --record`"


@dataclass(frozen=True)
class RecordedUnit:
    """A gated unit of the network that was recorded.

    Args:
        name: The unit.
        channels: Its filters.
        macs: MACs of its convolution in the dense network.
        predictor_macs: MACs of its predictor where it reads every input; 0 without one.
        inherited_by: Units that take its mask.
    """

    name: str
    channels: int
    macs: int
    predictor_macs: int
    inherited_by: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Recording(Shown):
    """What a network guessed and computed for each of N images; pictures of K of them.

    Args:
        network: What was recorded.
        classes: Name of each label.
        dense_macs: MACs of the dense network for one image.
        units: The gated units, in execution order; empty for a plain network.
        labels: (N,) int16.
        predictions: (N,) int16, the likeliest class.
        confidence: (N,) float16, its softmax.
        executed_macs: (N,) float32, predictors included.
        packed_masks: Unit -> (N, ceil(C / 8)) uint8, as `numpy.packbits` packs masks.
        shown: (K,) int32, the images that are kept as pictures.
        pictures: (K, H, W, 3) uint8.
        dense_heatmaps: Unit -> (K, h, w) float16, mean over its filters of |output|, gates open.
        dynamic_heatmaps: The same with predicted masks.
        provenance: Where it comes from.
        passes: (N,) uint8, of a second look: how many passes each image went through; else None.
    """

    network: str
    classes: tuple[str, ...]
    dense_macs: int
    units: tuple[RecordedUnit, ...]
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    executed_macs: np.ndarray
    packed_masks: Mapping[str, np.ndarray]
    shown: np.ndarray
    pictures: np.ndarray
    dense_heatmaps: Mapping[str, np.ndarray]
    dynamic_heatmaps: Mapping[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)
    passes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        held = f"{len(self):,} images, {len(self.units)} units, {len(self.shown)} pictures"
        return f"Recording({self.network}: {held})"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        title = f"{self.network}: {len(self):,} images, {len(self.shown)} of them as pictures"
        table = Table("unit", title=title)
        for column in ("filters", "computed", "always", "sometimes", "never"):
            table.add_column(column, justify="right")
        for unit in self.units:
            rates = self.rates(unit.name)
            always, never = int((rates == 1).sum()), int((rates == 0).sum())
            counts = (always, unit.channels - always - never, never)
            share = f"{rates.mean():.1%}"
            table.add_row(unit.name, str(unit.channels), share, *map(str, counts))
        yield table
        accuracy, saved = self.correct.mean(), self.reduction
        yield (
            f"top-1 {accuracy:.2%}; {self.dense_macs / 1e6:,.2f} M MACs dense, reduction "
            f"{saved.mean():.2%} ± {saved.std():.2%} over images"
        )
        if self.passes is not None:
            yield self.looks

    @property
    def looks(self) -> str:
        """Of a second look, in words: how many images looked again, and who was right."""
        if self.passes is None:
            return ""
        again = self.passes > 1
        told = f"{again.mean():.1%} of {len(self):,} images are looked at again"
        if 0 < again.sum() < len(self):
            right, surely = self.correct[again].mean(), self.correct[~again].mean()
            told += f": top-1 {right:.1%}; of the others {surely:.1%}"
        return told

    @property
    def name(self) -> str:
        """What to call it: the network's name."""
        return self.network

    @property
    def reduction(self) -> np.ndarray:
        """(N,) share of the dense MACs that was not executed; negative if predictors cost more."""
        return 1 - self.executed_macs.astype(np.float64) / self.dense_macs

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool: whether the guess was right."""
        return self.predictions == self.labels

    def unit(self, name: str) -> RecordedUnit:
        """The unit of this name.

        Raises:
            ValueError: There is none.
        """
        for unit in self.units:
            if unit.name == name:
                return unit
        known = ", ".join(unit.name for unit in self.units) or "none, for it has no gates"
        raise ValueError(f"no recorded unit {name!r}; the network's units are {known}")

    def masks(self, name: str) -> np.ndarray:
        """Which filters of a unit fired: (N, C) bool."""
        count = self.unit(name).channels
        return np.unpackbits(self.packed_masks[name], axis=1, count=count).astype(bool)

    def rates(self, name: str) -> np.ndarray:
        """The share of the images for which each filter of a unit fired: (C,) in [0, 1]."""
        return self.masks(name).mean(0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file, whole or not at all.

        Raises:
            OSError: The folder cannot be written or the disk is full; an older file survives.
        """
        head = {
            "format": FORMAT,
            "network": self.network,
            "classes": list(self.classes),
            "dense_macs": self.dense_macs,
            "units": [asdict(unit) for unit in self.units],
            "provenance": self.provenance,
        }
        tensors = {
            "labels": self.labels,
            "predictions": self.predictions,
            "confidence": self.confidence,
            "executed_macs": self.executed_macs,
            "shown.indices": self.shown,
            "shown.images": self.pictures,
        }
        if self.passes is not None:
            tensors["passes"] = self.passes
        tensors |= {f"masks.{name}": packed for name, packed in self.packed_masks.items()}
        tensors |= {f"heatmaps.{name}.dense": maps for name, maps in self.dense_heatmaps.items()}
        tensors |= {
            f"heatmaps.{name}.dynamic": maps for name, maps in self.dynamic_heatmaps.items()
        }
        text = json.dumps(head, allow_nan=False)
        rows = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        header = {"ftwt": text, "sha256": _digest(rows, text)}
        with replacing(path) as temporary:
            temporary.write_bytes(safetensors.numpy.save(rows, metadata=header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read what `save` wrote, and check every field of it.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is truncated, foreign or of a later format, or a field is missing
                or is not what it must be; the message names file and field.
        """
        return _Reader(Path(path)).recording()


class _Reader:
    """Checks a file's fields while reading them; its errors name both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (safetensors.SafetensorError, LookupError) as error:
            raise ValueError(
                f"{path} is truncated or not a safetensors file ({error}); {MADE_BY}"
            ) from error
        except TypeError as error:  # a kind of number that numpy has not, such as bfloat16
            raise ValueError(f"{path} is not a recording ({error}); {MADE_BY}") from error
        if "ftwt" not in header:
            raise ValueError(f"{path} is not a recording: no metadata `ftwt`; {MADE_BY}")
        text = header["ftwt"]
        try:
            self.head = parse_json(text)
        except ValueError as error:
            raise self.fault("metadata", f"are not JSON ({error})") from error
        if not isinstance(self.head, dict) or "units" not in self.head:
            raise ValueError(
                f"{path} is not a recording, but another file of tensors, such as a network's "
                f"weights; {MADE_BY}"
            )
        if header.get("sha256", found := _digest(self.tensors, text)) != found:  # older: none
            raise ValueError(f"{path} was altered after it was written; {MADE_BY}")
        known = self.head.get("format")
        if not isinstance(known, int) or known > FORMAT:
            raise self.fault("format", f"is {known!r}, this ftwt reads {FORMAT}: update it")

    def fault(self, name: str, what: str) -> ValueError:
        return ValueError(f"{self.path}: `{name}` {what}")

    def recording(self) -> Recording:
        units = tuple(self.unit(number) for number in range(len(self.value("units", list))))
        classes = self.value("classes", list)
        if not classes or not all(isinstance(name, str) for name in classes):
            raise self.fault("classes", f"must be names, got {classes!r}")
        dense = self.value("dense_macs", int)
        if dense < 1:
            raise self.fault("dense_macs", f"is {dense}; expected 1 or more")
        labels = self.tensor("labels", np.int16, (None,))
        n = len(labels)
        if not n:
            raise self.fault("labels", "is empty; a recording holds one image or more")
        predictions = self.tensor("predictions", np.int16, (n,))
        for name, found in (("labels", labels), ("predictions", predictions)):
            if found.min() < 0 or found.max() >= len(classes):
                raise self.fault(
                    name,
                    f"go from {found.min()} to {found.max()}; expected [0, {len(classes) - 1}], "
                    f"one for each of {len(classes)} classes",
                )
        shown = self.tensor("shown.indices", np.int32, (None,))
        if len(shown) and not 0 <= shown.min() <= shown.max() < n:
            raise self.fault("shown.indices", f"must lie in [0, {n - 1}], images of the recording")
        if len(np.unique(shown)) < len(shown):
            raise self.fault("shown.indices", "names an image twice")
        passes = self.tensor("passes", np.uint8, (n,)) if "passes" in self.tensors else None
        if passes is not None and not passes.min():
            raise self.fault("passes", "are 0 for an image; expected 1 or more")
        k = len(shown)
        maps: dict[str, dict[str, np.ndarray]] = {"dense": {}, "dynamic": {}}
        for name in self.tensors:
            unit, _, kind = name.removeprefix("heatmaps.").rpartition(".")
            if name.startswith("heatmaps.") and kind in maps:
                maps[kind][unit] = self.tensor(name, np.float16, (k, None, None))
        for unit in sorted(maps["dense"].keys() | maps["dynamic"].keys()):
            shapes = [maps[kind][unit].shape if unit in maps[kind] else None for kind in maps]
            for kind, shape, other in zip(maps, shapes, shapes[::-1], strict=True):
                if shape is None:
                    raise self.fault(f"heatmaps.{unit}.{kind}", f"is missing; {MADE_BY}")
                if other is not None and shape != other:
                    raise self.fault(f"heatmaps.{unit}.{kind}", f"is {shape}, its twin {other}")
        return Recording(
            network=self.value("network", str),
            classes=tuple(classes),
            dense_macs=dense,
            units=units,
            labels=labels,
            predictions=predictions,
            confidence=self.tensor("confidence", np.float16, (n,)),
            executed_macs=self.tensor("executed_macs", np.float32, (n,)),
            packed_masks={
                unit.name: self.tensor(f"masks.{unit.name}", np.uint8, (n, -(-unit.channels // 8)))
                for unit in units
            },
            shown=shown,
            pictures=self.tensor("shown.images", np.uint8, (k, None, None, 3)),
            dense_heatmaps=_ordered(maps["dense"], units),
            dynamic_heatmaps=_ordered(maps["dynamic"], units),
            provenance=self.value("provenance", dict),
            passes=passes,
        )

    def value(self, name: str, kind: type) -> Any:
        found = self.head.get(name)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self.fault(name, f"is {found!r}; expected {_KINDS[kind]}")
        return found

    def unit(self, number: int) -> RecordedUnit:
        values, at = self.head["units"][number], f"units[{number}]"
        if not isinstance(values, dict):
            raise self.fault(at, f"is {values!r}; expected {_KINDS[dict]}")
        for name, kind, low in (
            ("name", str, None),
            ("channels", int, 1),
            ("macs", int, 0),
            ("predictor_macs", int, 0),
            ("inherited_by", list, None),
        ):
            found = values.get(name)
            fits = isinstance(found, kind) and not isinstance(found, bool)
            if not fits or (isinstance(found, int) and low is not None and found < low):
                raise self.fault(f"{at}.{name}", f"is {found!r}; expected {_KINDS[kind]}")
        return RecordedUnit(
            values["name"],
            values["channels"],
            values["macs"],
            values["predictor_macs"],
            tuple(map(str, values["inherited_by"])),
        )

    def tensor(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
        array = self.tensors.get(name)
        if array is None:
            raise self.fault(name, f"is missing; {MADE_BY}")
        fits = len(array.shape) == len(shape) and all(
            wanted in (None, got) for wanted, got in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.fault(
                name,
                f"is {array.dtype} of shape {array.shape}; expected {np.dtype(dtype)} of ({sizes})",
            )
        if not np.isfinite(array).all():
            raise self.fault(name, "holds a NaN or an infinity; expected numbers")
        return array


_KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object of JSON"}


def _digest(tensors: Mapping[str, np.ndarray], text: str) -> str:
    parts = ((name, one.dtype, one.shape, one.tobytes()) for name, one in tensors.items())
    return digest(parts, text)


def _ordered(
    maps: Mapping[str, np.ndarray], units: tuple[RecordedUnit, ...]
) -> dict[str, np.ndarray]:
    """Heatmaps in the order of execution; a unit that inherits its mask stands at the end."""
    place = {unit.name: number for number, unit in enumerate(units)}
    return {name: maps[name] for name in sorted(maps, key=lambda n: place.get(n, len(place)))}
