"""Whether exported networks give PyTorch's answers, in ONNX Runtime and in OpenVINO.

    python tools/exports.py                   # all
    python tools/exports.py cifar10-resnet20  # these

Weights and predictors are random, and drawn so that about half of the filters are off and which
ones differs between images: what trained gates do, at its most mixed. Writes results/exports.json
after each network; those that were not asked for stay as they are.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ftwt
from ftwt.exporting.agreement import compare
from ftwt.exporting.formats import Run
from ftwt.exporting.graph import INPUT, Inputs
from ftwt.files.json import read_json, write_json
from ftwt.files.provenance import provenance
from ftwt.models.init import he_init

NETWORKS = {  # name -> side of its images
    "cifar10-resnet20": 32,
    "cifar10-vgg16-bn": 32,
    "cifar10-mobilenet-v1": 32,
    "cifar10-mobilenet-v2": 32,
    "torchvision:resnet18": 224,
    "torchvision:mobilenet_v2": 224,
    "torchvision:efficientnet_b0": 224,
}
RESULT = Path(__file__).resolve().parent.parent / "results" / "exports.json"
SEED = 0


def main() -> int:
    """Hold each network's file to PyTorch; an error if one deviates."""
    names = sys.argv[1:] or list(NETWORKS)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = hold(name, Path(folder) / "network.onnx")
        known: dict[str, Any] = read_json(RESULT)["networks"] if RESULT.exists() else {}
        known[name] = found
        ordered = {key: known[key] for key in NETWORKS if key in known}
        write_json(RESULT, {"networks": ordered, "provenance": provenance(seed=SEED)})
        print(name, found, flush=True)
    return 0


def hold(name: str, path: Path) -> dict[str, Any]:
    """Export a network with its masks, and compare what two runtimes make of the file.

    Raises:
        ValueError: One of them deviates from PyTorch.
    """
    torch.manual_seed(SEED)
    images = torch.randn(4, 3, NETWORKS[name], NETWORKS[name])
    dynamic = mixed(ftwt.models.create(name), images)
    with torch.no_grad():
        _, gates = dynamic(images, return_gates="masks")
    masks = torch.cat([gate.mask for gate in gates.values()], 1)
    found = ftwt.export(dynamic, path, example=images, masks=True)
    assert found.agreement is not None, found.unchecked
    batches = [(images[:1],), (torch.cat([images, images[:1].flip(-1)]),)]
    run, runtime = open_openvino(path)
    return {
        "gates": len(gates),
        "keep": float(masks.float().mean()),
        "changing": float((masks != masks[0]).any(0).float().mean()),
        "opset": found.opset,
        "onnxruntime": asdict(found.agreement),
        "openvino": asdict(compare(run, dynamic, batches, runtime=runtime)),
    }


def mixed(network: nn.Module, images: Tensor) -> ftwt.DynamicModel:
    """Give a network random weights and gates that decide one way or the other, by the image."""
    he_init(network)
    dynamic = ftwt.convert(network, images)
    for predictor in dynamic.predictors.values():
        nn.init.normal_(predictor.linear.weight, std=predictor.linear.in_features**-0.5)
        nn.init.normal_(predictor.linear.bias, std=0.1)
    dynamic.train()
    with torch.no_grad():
        for _ in range(20):  # batch norms, those of predictors too, see what they will normalise
            dynamic(torch.randn_like(images))
    return dynamic.eval()


def open_openvino(path: Path) -> tuple[Run, str]:
    """Open an ONNX file in OpenVINO, held to float32."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)

    def run(inputs: Inputs) -> dict[str, Tensor]:
        answers = compiled({INPUT: inputs[0].numpy()})
        names = [output.get_any_name() for output in compiled.outputs]
        return {name: torch.from_numpy(answers[name].copy()) for name in names}

    return run, f"OpenVINO {openvino.__version__.split('-')[0]}"


if __name__ == "__main__":
    sys.exit(main())
