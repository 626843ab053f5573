"""Networks as files for other runtimes: ONNX, and what `torch.export` saves."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor, nn

from ..files.atomic import replacing
from ..files.tables import Shown
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook
from .agreement import Agreement, compare
from .formats import (
    OLDEST_OPSET,
    OPSET,
    need_onnx,
    open_onnx,
    open_program,
    write_onnx,
    write_program,
)
from .graph import BATCH, MASK, Graph, Inputs, first_line, named_inputs, trace_program

Format = Literal["ONNX", "torch.export"]
FORMATS: dict[str, Format] = {".onnx": "ONNX", ".pt2": "torch.export"}
COMPUTES = "every filter; the outputs of those that a gate does not choose are multiplied by zero"
IMAGES = 4  # of noise, where there is no example


@dataclass(frozen=True)
class Exported(Shown):
    """What was written.

    Args:
        path: The file.
        format: `ONNX` or `torch.export`.
        opset: Of ONNX's operators.
        size_bytes: Of the file.
        inputs: Name -> shape; its first entry is `batch` if any number of images will do.
        outputs: The same, masks included.
        agreement: How the file's answers compare with PyTorch's; None if that was not looked at.
        unchecked: Why it was not.
        metadata: What the file says of the network.
    """

    path: str
    format: Format
    opset: int | None
    size_bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    agreement: Agreement | None
    unchecked: str | None
    metadata: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kind = f"{self.format}, opset {self.opset}" if self.opset else self.format
        masks = [name for name in self.outputs if name.startswith(f"{MASK}.")]
        yield f"{self.path}: {kind}, {self.size_bytes / 1e6:.2f} MB"
        for name, shape in [*self.inputs.items(), *self.outputs.items()]:
            if name not in masks:
                yield f"{name}: {' x '.join(map(str, shape))}"
        if masks:
            yield f"{MASK}.UNIT: which filters of the unit count, for {len(masks)} units"
        yield str(self.agreement or f"not checked: {self.unchecked}")


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example: Tensor | tuple[Tensor, ...] | None = None,
    masks: bool = False,
    batch_size: int | None = None,
    opset: int | None = None,
    check: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a network to a file that other runtimes read.

    The file computes every filter and multiplies by the masks: it gives the network's answers, in a
    dense network's time. `ftwt.compile` makes what skips filters.

    Args:
        model: Dense, dynamic or static twin. It is read in eval mode, never changed. Of a second
            look, each of its `networks` is exported for itself.
        path: `NAME.onnx`, or `NAME.pt2` for `torch.export.load`.
        example: Input (B, C, *spatial) of the network, or a tuple of its inputs; the file is also
            checked with it. A dynamic network of one input does without: noise is taken.
        masks: Give, beside the output, each unit's (B, C) mask.
        batch_size: For a file that takes this many images alone; None: any number.
        opset: Of ONNX, 18 or later; None for 23.
        check: Hold the file to PyTorch before it gets its name: `Agreement` says how. ONNX files
            run in ONNX Runtime; where that is not installed, the result says so.
        metadata: Further JSON values by name, to be kept in the file.

    Returns:
        What was written, and how its answers compare with PyTorch's.

    Raises:
        ValueError: An option is out of its range, the example does not fit, the network cannot be
            exported or is a second look, or the file's answers are not PyTorch's.
        ImportError: A package of ONNX is not installed; the message says how to get it.
        OSError: The file cannot be written; an older one survives.
    """
    format = _format(path, opset)
    if isinstance(model, SecondLook):
        raise ValueError(
            f"a second look is {len(model.networks)} networks, and which images the next one is "
            "shown depends on the answers of the one before, which an exported file cannot say; "
            "export each of its `networks` for itself, and compare margins with its `thresholds`"
        )
    if masks and not (isinstance(model, DynamicModel) and model.gates):
        raise ValueError(f"masks=True: {type(model).__name__} has no gates; export it without")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give 1 or more, or None for any number")
    version = None
    if format == "ONNX":
        need_onnx()
        version = OPSET if opset is None else opset
    network = copy.deepcopy(model).cpu().eval()
    inputs = _inputs(network, example, batch_size)
    graph = Graph(network, masks=masks)
    outputs = _answer(graph, inputs)
    notes = _notes(network) | dict(metadata or {})
    agreement, unchecked = None, None if check else "not asked for"
    with replacing(path) as temporary:
        program = trace_program(graph, inputs, any_size=batch_size is None)
        if version is None:
            write_program(program, temporary, metadata=notes)
        else:
            write_onnx(program, temporary, inputs, outputs, opset=version, metadata=notes)
        if check:
            try:
                agreement = _compare(format, temporary, graph, inputs, batch_size)
            except ModuleNotFoundError as missing:
                unchecked = f"{missing.name} is not installed: pip install 'ftwt[export]'"
    size: int | str = BATCH if batch_size is None else batch_size
    return Exported(
        path=os.fspath(path),
        format=format,
        opset=version,
        size_bytes=os.path.getsize(path),
        inputs={name: (size, *x.shape[1:]) for name, x in named_inputs(inputs).items()},
        outputs={name: (size, *x.shape[1:]) for name, x in outputs.items()},
        agreement=agreement,
        unchecked=unchecked,
        metadata=notes,
    )


def _format(path: str | os.PathLike[str], opset: int | None) -> Format:
    """The format that a path asks for."""
    format = FORMATS.get(Path(path).suffix)
    if format is None:
        raise ValueError(f"{os.fspath(path)!r}: an exported network's name ends in .onnx or .pt2")
    if opset is not None and format != "ONNX":
        raise ValueError(f"opset={opset}: it is of ONNX, and {os.fspath(path)!r} is of {format}")
    if opset is not None and opset < OLDEST_OPSET:
        raise ValueError(f"opset={opset}: give {OLDEST_OPSET} or later, or None for {OPSET}")
    return format


def _inputs(
    network: nn.Module, example: Tensor | tuple[Tensor, ...] | None, batch_size: int | None
) -> Inputs:
    """The example, or noise, on the CPU and for as many images as asked for."""
    if example is None:
        if not isinstance(network, DynamicModel):
            raise ValueError("example=None: a plain network needs an input, (B, C, *spatial)")
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(IMAGES, *network.input_shape, generator=generator)
    inputs = example if isinstance(example, tuple) else (example,)
    named_inputs(inputs)  # which refuses what is no tensor
    if isinstance(network, DynamicModel):
        network.check_input(inputs[0])
    images = torch.arange(len(inputs[0]) if batch_size is None else batch_size) % len(inputs[0])
    return tuple(x.cpu()[images] for x in inputs)


@torch.no_grad()
def _answer(graph: Graph, inputs: Inputs) -> dict[str, Tensor]:
    try:
        result = graph(*inputs)
    except Exception as error:  # the user's forward: anything may come out of it
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        name = type(graph.network).__name__
        raise ValueError(f"{name} takes no example of {shapes}: {first_line(error)}") from error
    return graph.named(result)


def _compare(
    format: Format, path: Path, graph: Graph, inputs: Inputs, batch_size: int | None
) -> Agreement:
    """Run a file: where any number of images will do, on the first, and on all with one more."""
    run, runtime = open_onnx(path) if format == "ONNX" else open_program(path, graph)
    batches: Iterable[Inputs] = [inputs]
    if batch_size is None:
        one = tuple(x[:1] for x in inputs)
        batches = [one, tuple(torch.cat([x, x[:1].flip(-1)]) for x in inputs)]
    return compare(run, graph.network, batches, runtime=runtime)


def _notes(network: nn.Module) -> dict[str, Any]:
    """What a network says of itself."""
    notes: dict[str, Any] = {"version": packages.version("ftwt"), "kind": "dense"}
    if isinstance(network, DynamicModel) and network.gates:
        kind = "dynamic" if network.predictors else "static"
        notes |= {"kind": kind, "computes": COMPUTES, "convert": network.config}
        r = {unit: round(value, 6) for unit, value in network.r.items()}  # they are float32
        if values := set(r.values()):
            notes["r"] = r if len(values) > 1 else values.pop()
    return notes
