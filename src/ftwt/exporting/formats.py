"""The formats: how each is written, and how its files are run to be checked."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .graph import BATCH, Graph, Inputs, first_line, named_inputs, sizes

OPSET = 23  # the newest that PyTorch's exporter is written for
OLDEST_OPSET = 18  # the oldest that it writes without converting
METADATA = "ftwt.json"  # in a .pt2 file: what an ONNX file has as metadata properties

Run = Callable[[Inputs], Mapping[str, Tensor]]


def need_onnx() -> None:
    """Look whether what PyTorch's exporter needs is there.

    Raises:
        ModuleNotFoundError: It is not; the message says how to get it.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"exporting to ONNX needs {missing.name}: pip install 'ftwt[export]'", name=missing.name
        ) from missing


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    inputs: Inputs,
    outputs: Mapping[str, Tensor],
    *,
    opset: int,
    metadata: Mapping[str, Any],
) -> None:
    """Write an ONNX file, weights and all.

    Args:
        program: What to write.
        path: The file.
        inputs: Example; names and dimensions follow from it.
        outputs: Example by name.
        opset: Of the operators.
        metadata: JSON values by name, for the file's metadata properties `ftwt.NAME`.

    Raises:
        ValueError: An operator has no counterpart, or the opset is not to be had.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of its own insides
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(named_inputs(inputs)),
                output_names=list(outputs),
                dynamic_shapes=sizes(inputs, BATCH),
                verbose=False,
            )
    except Exception as error:
        raise ValueError(f"cannot export to ONNX, opset {opset}: {first_line(error)}") from error
    assert written is not None
    model = written.model
    if (found := model.opset_imports[""]) != opset:
        raise ValueError(f"opset={opset}: the installed exporter writes {found}; ask for that")
    for name, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props[f"ftwt.{name}"] = text
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces among it, which name places on this machine
    written.save(path, external_data=False)


def open_onnx(path: Path) -> tuple[Run, str]:
    """Open an ONNX file in ONNX Runtime.

    Returns:
        A function that runs it, and the runtime's name and version.

    Raises:
        ModuleNotFoundError: ONNX Runtime is not installed.
        ValueError: It does not read the file.
    """
    import onnxruntime

    name = f"ONNX Runtime {onnxruntime.__version__}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(
            f"{name} does not read the file: {first_line(error)} Ask for an earlier opset, or "
            "export without the check"
        ) from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Inputs) -> dict[str, Tensor]:
        given = {name: x.numpy() for name, x in named_inputs(inputs).items()}
        answers = session.run(None, given)
        return {name: torch.from_numpy(x) for name, x in zip(names, answers, strict=True)}

    return run, name


def write_program(
    program: torch.export.ExportedProgram, path: Path, *, metadata: Mapping[str, Any]
) -> None:
    """Write a .pt2 file: weights as they are, all else as JSON, metadata beside the program."""
    program.example_inputs = None  # they alone would be pickled
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata))})


def open_program(path: Path, graph: Graph) -> tuple[Run, str]:
    """Open a .pt2 file that this process wrote. (Of a stranger's, it would run what is in it.)

    Returns:
        A function that runs it, and the runtime's name and version.
    """
    with open(path, "rb") as file:
        loaded = torch.export.load(file).module()
    return lambda inputs: graph.named(loaded(*inputs)), f"PyTorch {version('torch')}"
