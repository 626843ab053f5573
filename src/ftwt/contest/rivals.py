"""The dense rivals: what else runs a network on a CPU, each with the settings that suit it best.

They run in float32; some also in bfloat16 or in eight bits, calibrated on the images that our own
engine is calibrated on.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import os
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
ROUGH = 0.5  # likewise, of rivals in fewer bits: they are another network, not another result
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

Export = Callable[[], bytes]


def invite(
    names: Iterable[str],
    network: nn.Module,
    batches: np.ndarray,
    answers: np.ndarray,
    *,
    threads: int,
    calibrate: np.ndarray | None = None,
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Set up rivals, and let those take part that give PyTorch's answers.

    Those in fewer bits must come near them.

    Args:
        names: Of `BUILDERS`.
        network: The dense network, in eval mode.
        batches: (N, B, C, H, W) float32 that they will run.
        answers: (N, B, classes), PyTorch's.
        threads: Of each.
        calibrate: (N, C, H, W) float32, what those of eight bits are calibrated on; the batches if
            not given.

    Returns:
        Those that take part, and for the others the reason why not.

    Raises:
        ValueError: If there is no rival of that name.
    """
    contestants: dict[str, Contestant] = {}
    left_out: dict[str, str] = {}
    export = functools.cache(lambda: export_onnx(network, batches[0]))
    held = batches if calibrate is None else in_batches(calibrate, batches.shape[1])
    for name in names:
        if name not in BUILDERS:
            raise ValueError(f"unknown rival {name!r}; {nearest(name, BUILDERS)}")
        try:
            contestant = BUILDERS[name](network, batches, threads, export, held)
            error = largest_error(contestant, answers)
        except ModuleNotFoundError as missing:
            extra = "int8" if missing.name == "nncf" else "bench"
            left_out[name] = f"{missing.name} is not installed: pip install 'ftwt[{extra}]'"
        except Exception as failure:  # other people's compilers: anything may come out of them
            lines = str(failure).strip().splitlines() or [""]
            left_out[name] = f"failed: {type(failure).__name__}: {lines[0]}"
        else:
            if error <= (ROUGH if name in FEWER_BITS else TOLERANCE):
                contestants[name] = contestant
            else:
                left_out[name] = f"refused: its answers differ from PyTorch's by {error:.2g}"
    return contestants, left_out


def torch_eager(network: nn.Module, batches: np.ndarray, *_: Any) -> Contestant:
    """PyTorch as it is, in the faster of two memory layouts."""
    return fastest([_torch(network, batches, layout) for layout in LAYOUTS])


def torch_compiled(network: nn.Module, batches: np.ndarray, *_: Any) -> Contestant:
    """`torch.compile`, in the faster of two memory layouts. (Freezing does not make it faster.)"""
    torch.compiler.reset()  # what was compiled before counts towards a limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, while it compiles
        made = [_torch(network, batches, layout, torch.compile) for layout in LAYOUTS]
        for contestant in made:
            contestant.infer()
    return fastest(made)


def onnx_runtime(
    _: nn.Module, batches: np.ndarray, threads: int, export: Export, __: np.ndarray
) -> Contestant:
    """ONNX Runtime: all optimisations, one session, input and output bound to fixed memory."""
    return _onnx_runtime(export(), batches, threads, "all optimisations, bound memory")


def onnx_runtime_int8(
    _: nn.Module, batches: np.ndarray, threads: int, export: Export, held: np.ndarray
) -> Contestant:
    """ONNX Runtime, statically quantised: u8 maps by their extremes, s8 weights, filter by filter.

    Its static quantisation writes pairs of quantise and dequantise nodes (QDQ), as it recommends.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(held)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {"image": batch}

    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, small = (Path(folder, f"{name}.onnx") for name in ("a", "b", "c"))
        whole.write_bytes(export())
        quant_pre_process(whole, prepared)
        quantization.quantize_static(
            prepared,
            small,
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        how = f"int8 (static QDQ, {_images(held)}), all optimisations, bound memory"
        return _onnx_runtime(small.read_bytes(), batches, threads, how)


def _onnx_runtime(model: bytes, batches: np.ndarray, threads: int, how: str) -> Contestant:
    import onnxruntime as ort

    ort.disable_telemetry_events()  # which its builds for Windows would send

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
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
        settings=f"{ort.__version__}, {how}",
    )


def openvino(
    _: nn.Module, batches: np.ndarray, threads: int, export: Export, __: np.ndarray
) -> Contestant:
    """OpenVINO held to float32: it would take bfloat16 where there is some."""
    return _openvino(_core().read_model(export()), batches, threads, "f32", "float32")


def openvino_bf16(
    _: nn.Module, batches: np.ndarray, threads: int, export: Export, __: np.ndarray
) -> Contestant:
    """OpenVINO in bfloat16, where the processor has it."""
    core = _core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor does not compute in bfloat16")
    return _openvino(core.read_model(export()), batches, threads, "bf16", "bfloat16")


def openvino_int8(
    _: nn.Module, batches: np.ndarray, threads: int, export: Export, held: np.ndarray
) -> Contestant:
    """OpenVINO, quantised by NNCF after training; the rest is float32."""
    os.environ.setdefault("NNCF_CI", "1")  # or it would report to its makers that it is used
    core = _core()  # before NNCF makes its own
    import nncf

    nncf.set_log_level(logging.ERROR)
    whole = core.read_model(export())
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        small = nncf.quantize(whole, nncf.Dataset(list(held)), subset_size=len(held))
    how = f"int8 (NNCF {nncf.__version__}, {_images(held)})"
    return _openvino(small, batches, threads, "f32", how)


@functools.cache
def _core() -> Any:
    """OpenVINO's core, one a process, never dropped.

    A core puts the process's signal handlers on a stack of its own. When several are dropped in
    another order than they were made, that stack is gone, and the next signal ends the process.
    """
    import openvino as ov

    return ov.Core()


def _openvino(
    model: Any, batches: np.ndarray, threads: int, precision: str, how: str
) -> Contestant:
    """Set for latency; batches also for throughput, image by image: the faster one."""
    latency = _for_latency(model, batches, threads, precision, how)
    if batches.shape[1] == 1:
        return latency
    return fastest([latency, _for_throughput(model, batches, threads, precision, how)])


def _for_latency(
    model: Any, batches: np.ndarray, threads: int, precision: str, how: str
) -> Contestant:
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = _core().compile_model(model, "CPU", settings).create_infer_request()
    image = np.zeros_like(batches[0])
    request.set_input_tensor(ov.Tensor(image, shared_memory=True))
    output = request.get_output_tensor().data

    def infer() -> np.ndarray:
        request.infer(share_outputs=True)
        return output

    return Contestant(
        take=lambda batch: np.copyto(image, batches[batch]),
        infer=infer,
        settings=f"{_version()}, {how}, for latency",
    )


def _for_throughput(
    model: Any, batches: np.ndarray, threads: int, precision: str, how: str
) -> Contestant:
    """The images of a batch as requests of one image each, as many at a time as it likes."""
    import openvino as ov

    single = model.clone()
    single.reshape([1, *batches.shape[2:]])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = _core().compile_model(single, "CPU", settings)
    images = np.zeros_like(batches[0])
    inputs = [
        ov.Tensor(images[number : number + 1], shared_memory=True) for number in range(len(images))
    ]
    outputs = np.zeros((len(images), *compiled.output(0).shape[1:]), np.float32)
    queue = ov.AsyncInferQueue(compiled)

    def keep(request: Any, number: int) -> None:
        outputs[number] = request.get_output_tensor().data[0]

    queue.set_callback(keep)

    def infer() -> np.ndarray:
        for number, image in enumerate(inputs):
            queue.start_async({0: image}, number, share_inputs=True)
        queue.wait_all()
        return outputs

    streams = compiled.get_property("NUM_STREAMS")
    return Contestant(
        take=lambda batch: np.copyto(images, batches[batch]),
        infer=infer,
        settings=f"{_version()}, {how}, for throughput, {streams} streams",
    )


def _version() -> str:
    import openvino as ov

    return str(ov.__version__).split("-")[0]


Builder = Callable[[nn.Module, np.ndarray, int, Export, np.ndarray], Contestant]
FLOAT32: dict[str, Builder] = {
    "torch": torch_eager,
    "torch.compile": torch_compiled,
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}
FEWER_BITS: dict[str, Builder] = {
    "onnxruntime-int8": onnx_runtime_int8,
    "openvino-bf16": openvino_bf16,
    "openvino-int8": openvino_int8,
}
BUILDERS = FLOAT32 | FEWER_BITS


def in_batches(images: np.ndarray, batch: int) -> np.ndarray:
    """(N, C, H, W) as (N // batch, batch, C, H, W), for files that take batches of one size."""
    count = len(images) // batch
    if not count:
        raise ValueError(f"calibrate: {len(images)} images are less than a batch of {batch}")
    return images[: count * batch].reshape(count, batch, *images.shape[1:])


def _images(held: np.ndarray) -> str:
    return f"{held.shape[0] * held.shape[1]} images"


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
