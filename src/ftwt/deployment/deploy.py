"""A trained network as one file, with what is known of it: `ftwt compile`, `ftwt export`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult

from ..config import DataConfig
from ..data import folder_classes
from ..exporting.export import IMAGES, Exported, export
from ..files.pictures import SUFFIX
from ..lowering.compile import Precision, compile
from ..lowering.quantize import CALIBRATE, QuantizedLayers
from ..networks.sources import PLAIN, Source
from ..networks.splits import load_splits
from ..processes import first
from ..runtime.engine import Kind
from ..runtime.program import PREPROCESSING


@dataclass(frozen=True)
class Economies:
    """What `ftwt.compile` may save beyond skipping, judged by training images."""

    remove_silent: bool = False
    """Remove the filters that gates never choose."""
    drop_constant: bool = False
    """Take the predictors of gates that always decide the same."""
    layout: bool = False
    """Lay channels that fire together side by side in memory."""
    tune: bool = False
    """Open the gates that, timed on this machine, cost more than they save."""
    images: int = 2048
    """Images to judge by."""

    def options(self, data: DataConfig, *, source: Source) -> dict[str, Any]:
        """The options of `ftwt.compile` for a network.

        The dataset is loaded only if one of them needs it.
        """
        chosen = [f.name for f in fields(self) if getattr(self, f.name) is True]
        if not chosen:
            return {}
        if self.images < 1:
            raise ValueError(f"images={self.images}: judge by one image or more; 2048 is usual")
        batches = load_splits(data, source=source).plain
        return dict.fromkeys(chosen, [part for _, part in first(batches, self.images)])


def calibration(data: DataConfig, *, source: Source, images: int = CALIBRATE) -> list[torch.Tensor]:
    """Some training images of a dataset, for `ftwt.compile` to take ranges from."""
    if images < 1:
        raise ValueError(f"calibrate={images}: take ranges from one image or more; 256 is usual")
    return [part for _, part in first(load_splits(data, source=source).plain, images)]


@contextmanager
def compiled(source: Source, *, data: DataConfig, engine: Kind = "native") -> Iterator[str]:
    """Compile a network for the moment, and yield the path of its file.

    Args:
        source: The network.
        data: How images are prepared, where nothing else says it.
        engine: As of `deploy`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"network{SUFFIX}")
        deploy(source, path, data=data, engine=engine)
        yield path


@dataclass(frozen=True)
class Deployed:
    """What was written.

    Args:
        path: The file.
        network: Where it comes from.
        size_bytes: Of the file.
        input_shape: Of an image, (C, H, W).
        outputs: How many.
        classes: Whether they have names.
        prepared: Whether the file says how images are prepared, as `ftwt run` wants.
        gates: How many choose filters for each image.
        dense_macs: Of an image, without gates.
        economies: What was saved beyond skipping.
        quantization: Of eight bits: rule, images, and each layer; None of a float file.
    """

    path: str
    network: str
    size_bytes: int
    input_shape: tuple[int, ...]
    outputs: int
    classes: bool
    prepared: bool
    gates: int
    dense_macs: int
    economies: dict[str, Any]
    quantization: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shape = "x".join(map(str, self.input_shape))
        named = "named" if self.classes else "without names"
        yield (
            f"{self.path}: {self.network}, {shape} -> {self.outputs} outputs, {named}; "
            f"{self.gates} gates, {self.dense_macs / 1e6:,.2f} M MACs dense, "
            f"{self.size_bytes / 1e6:.2f} MB"
        )
        if not self.prepared:
            yield (
                "nothing says how images are prepared: `ftwt run` will ask for --mean and --std, "
                "or give them here"
            )
        for name, value in self.economies.items():
            yield f"{name}: {_as_text(value)}"
        if self.quantization is not None:
            yield QuantizedLayers.from_notes(self.quantization)


def deploy(
    source: Source,
    path: str | os.PathLike[str],
    *,
    economies: Economies | None = None,
    precision: Precision = "f32",
    calibrate: int = CALIBRATE,
    data: DataConfig = PLAIN,
    engine: Kind = "native",
    threads: int = 1,
) -> Deployed:
    """Compile a trained network to a file that `ftwt.runtime.load` and `ftwt run` take.

    Args:
        source: The network.
        path: The file, `.ftwt`.
        economies: What to save beyond skipping; nothing if not given.
        precision: `int8`: eight-bit maps and weights; see `ftwt.compile`.
        calibrate: How many training images its ranges are taken from.
        data: The images that these judge by, and how they are prepared.
        engine: That looks at these images; the file is for both kinds.
        threads: With which `tune` times.

    Raises:
        ValueError: If the path has another suffix, or the network cannot be compiled.
        FileNotFoundError: There is no such network.
        RuntimeError: If the native engine was not built.
    """
    if Path(path).suffix != SUFFIX:
        raise ValueError(f"output={os.fspath(path)!r}: a compiled network's name ends in {SUFFIX}")
    network = source.load(passes=True).cpu().eval()
    example = torch.zeros(1, *source.shape(data))
    options = (economies or Economies()).options(data, source=source)
    if precision == "int8":
        held = calibration(data, source=source, images=calibrate)
        options |= {"precision": precision, "calibrate": held}
    made = compile(network, example, engine=engine, threads=threads, **options)
    notes, classes = _notes(source, data), source.classes
    outputs = made.program.maps[made.program.output][0]
    if len(classes) != outputs and data.dataset == "folder":  # whose folders may name them
        classes = folder_classes(data.data_root)
    made.save(path, classes=classes, notes=notes)
    program = made.program.described(classes, notes)
    return Deployed(
        path=os.fspath(path),
        network=source.given,
        size_bytes=os.path.getsize(path),
        input_shape=program.maps[0],
        outputs=outputs,
        classes=bool(program.classes),
        prepared=PREPROCESSING in program.notes,
        gates=len(program.gates),
        dense_macs=program.dense_macs,
        economies=dict(program.notes.get("economies", {})),
        quantization=program.notes.get("quantization"),
    )


def export_trained(
    source: Source,
    path: str | os.PathLike[str],
    *,
    data: DataConfig = PLAIN,
    masks: bool = False,
    batch_size: int | None = None,
    opset: int | None = None,
    check: bool = True,
) -> Exported:
    """Export a trained network: `ftwt.export`, with what is known of the network in the file.

    Args:
        source: The network.
        path: As of `ftwt.export`, like what follows `data`.
        data: How images are prepared, where nothing else says it.
        masks: Give the masks, too.
        batch_size: For a file that takes this many images alone.
        opset: Of ONNX.
        check: Hold the file to PyTorch.

    Raises:
        ValueError: As of `ftwt.export`.
        FileNotFoundError: There is no such network.
        ImportError: A package of ONNX is not installed.
    """
    network = source.load().cpu().eval()
    noise = torch.Generator().manual_seed(0)
    example = torch.randn(IMAGES, *source.shape(data), generator=noise)
    with torch.no_grad():
        outputs = network(example[:1]).shape[1]
    test = source.result()
    achieved = {key: test[key] for key in ("reduction", "top1") if test.get(key) is not None}
    notes = {**_notes(source, data), **achieved}
    if len(source.classes) == outputs:
        notes["classes"] = list(source.classes)
    return export(
        network,
        path,
        example=example,
        masks=masks,
        batch_size=batch_size,
        opset=opset,
        check=check,
        metadata=notes,
    )


def _notes(source: Source, data: DataConfig) -> dict[str, Any]:
    """What a file says of a network: its architecture's name, and how images are prepared."""
    how = source.prepare(data)
    return {"network": source.model} | ({} if how is None else {PREPROCESSING: how.to_json()})


def _as_text(value: Any) -> str:
    """What an economy notes of itself, in short."""
    if isinstance(value, dict):
        return f"{sum(value.values())} filters of {len(value)} units"
    if value and all(isinstance(item, float | int) for item in value):
        return " -> ".join(f"{item:.4g}" for item in value)
    return f"{len(value)} gates"
