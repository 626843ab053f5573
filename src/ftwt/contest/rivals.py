"""The dense rivals: what else runs a network on a CPU, each with the settings that suit it best."""

from __future__ import annotations

import copy
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..names import nearest
from .turns import Contestant, fastest

TOLERANCE = 1e-3  # of the largest logit; bfloat16 would be off by 1e-2
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

Export = Callable[[], bytes]


def invite(
    names: Iterable[str],
    network: nn.Module,
    batches: np.ndarray,
    answers: np.ndarray,
    *,
    threads: int,
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Set up rivals, and let those take part that give PyTorch's answers.

    Args:
        names: Of `BUILDERS`.
        network: The dense network, in eval mode.
        batches: (N, B, C, H, W) float32 that they will run.
        answers: (N, B, classes), PyTorch's.
        threads: Of each.

    Returns:
        Those that take part, and for the others the reason why not.

    Raises:
        ValueError: If there is no rival of that name.
    """
    contestants: dict[str, Contestant] = {}
    left_out: dict[str, str] = {}
    export = functools.cache(lambda: export_onnx(network, batches[0]))
    for name in names:
        if name not in BUILDERS:
            raise ValueError(f"unknown rival {name!r}; {nearest(name, BUILDERS)}")
        try:
            contestant = BUILDERS[name](network, batches, threads, export)
            error = largest_error(contestant, answers)
        except ModuleNotFoundError as missing:
            left_out[name] = f"{missing.name} is not installed: pip install 'ftwt[bench]'"
        except Exception as failure:  # other people's compilers: anything may come out of them
            told = str(failure).strip().splitlines() or [""]
            left_out[name] = f"failed: {type(failure).__name__}: {told[0]}"
        else:
            if error <= TOLERANCE:
                contestants[name] = contestant
            else:
                left_out[name] = f"refused: its answers differ from PyTorch's by {error:.2g}"
    return contestants, left_out


def torch_eager(network: nn.Module, batches: np.ndarray, threads: int, _: Export) -> Contestant:
    """PyTorch as it is, in the faster of two memory layouts."""
    return fastest([_torch(network, batches, layout) for layout in LAYOUTS])


def torch_compiled(network: nn.Module, batches: np.ndarray, threads: int, _: Export) -> Contestant:
    """`torch.compile`, in the faster of two memory layouts. (Freezing does not make it faster.)"""
    torch.compiler.reset()  # what was compiled before counts towards a limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, while it compiles
        made = [_torch(network, batches, layout, torch.compile) for layout in LAYOUTS]
        for contestant in made:
            contestant.infer()
    return fastest(made)


def onnx_runtime(_: nn.Module, batches: np.ndarray, threads: int, export: Export) -> Contestant:
    """ONNX Runtime: all optimisations, one session, input and output bound to fixed memory."""
    import onnxruntime as ort

    ort.disable_telemetry_events()  # which its builds for Windows would send

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(export(), options, providers=["CPUExecutionProvider"])
    image = np.zeros_like(batches[0])
    output = np.zeros(session.get_outputs()[0].shape, np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", ort.OrtValue.ortvalue_from_numpy(image))
    binding.bind_ortvalue_output("output", ort.OrtValue.ortvalue_from_numpy(output))

    def infer() -> np.ndarray:
        session.run_with_iobinding(binding)
        return output

    return Contestant(
        take=lambda batch: np.copyto(image, batches[batch]),
        infer=infer,
        settings=f"{ort.__version__}, all optimisations, bound memory",
    )


def openvino(_: nn.Module, batches: np.ndarray, threads: int, export: Export) -> Contestant:
    """OpenVINO set for latency and held to float32: it would take bfloat16 where there is some."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    core = ov.Core()
    request = core.compile_model(core.read_model(export()), "CPU", settings).create_infer_request()
    image = np.zeros_like(batches[0])
    request.set_input_tensor(ov.Tensor(image, shared_memory=True))
    output = request.get_output_tensor().data

    def infer() -> np.ndarray:
        request.infer(share_outputs=True)
        return output

    return Contestant(
        take=lambda batch: np.copyto(image, batches[batch]),
        infer=infer,
        settings=f"{ov.__version__.split('-')[0]}, float32, for latency",
    )


BUILDERS: dict[str, Callable[[nn.Module, np.ndarray, int, Export], Contestant]] = {
    "torch": torch_eager,
    "torch.compile": torch_compiled,
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}


def export_onnx(network: nn.Module, example: np.ndarray) -> bytes:
    """The network as an ONNX file, for inputs of the example's very shape.

    By PyTorch's older exporter, not by `ftwt.export`: from both files ONNX Runtime makes the same
    convolutions, but only in this one it knows the last pooling for one, which runs as it lies.
    """
    import onnx  # noqa: F401  (for the exporter, which would not say how to install it)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age
        path = Path(folder, "network.onnx")
        image = torch.from_numpy(example)
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["output"]}
        torch.onnx.export(network, (image,), path, dynamo=False, **names)
        return path.read_bytes()


def largest_error(contestant: Contestant, answers: np.ndarray) -> float:
    """Largest deviation of its answers, relative to the largest value that is expected."""
    errors = []
    for batch, answer in enumerate(answers):
        contestant.take(batch)
        found = contestant.infer()
        if found.shape != answer.shape:
            return float("inf")
        errors.append(np.abs(found - answer).max())
    return float(np.max(errors) / np.abs(answers).max())  # NaN if any is


def _torch(
    network: nn.Module,
    batches: np.ndarray,
    layout: str,
    prepare: Callable[[Any], Any] = lambda network: network,
) -> Contestant:
    run = prepare(copy.deepcopy(network).to(memory_format=LAYOUTS[layout]))  # type: ignore[call-overload]
    image = torch.zeros(batches[0].shape).contiguous(memory_format=LAYOUTS[layout])

    def take(batch: int) -> None:
        image.copy_(torch.from_numpy(batches[batch]))

    @torch.inference_mode()
    def infer() -> np.ndarray:
        return run(image).numpy()

    return Contestant(take, infer, f"{torch.__version__}, {layout}")
