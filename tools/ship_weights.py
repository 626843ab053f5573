"""Put a finished dense run's weights into the package, in half precision, with their result file.

    python tools/ship_weights.py runs/cifar10-resnet20-baseline cifar10-resnet20

The weights are taken from the run's last checkpoint and evaluated on the whole test set as they are
stored; `NAME.json` beside them holds that evaluation and the run's own record.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch

import ftwt.models
from ftwt.checkpoint import load_tensors
from ftwt.config import DataConfig
from ftwt.evaluate import evaluate
from ftwt.models import create
from ftwt.results import provenance, read_json, replacing, write_json
from ftwt.run import load_splits

PREFIX = "model."


def main() -> None:
    """Read the command line and ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished dense run")
    parser.add_argument("name", help="the model's name, as ftwt.models knows it")
    arguments = parser.parse_args()
    tensors, _ = load_tensors(arguments.run / "checkpoint.safetensors")
    weights = {
        name.removeprefix(PREFIX): value
        for name, value in tensors.items()
        if name.startswith(PREFIX)
    }
    stored = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    folder = Path(ftwt.models.__file__).parent / "weights"
    with replacing(folder / f"{arguments.name}.safetensors") as temporary:
        temporary.write_bytes(safetensors.torch.save(stored))
    model = create(arguments.name, pretrained=True)
    images = load_splits(DataConfig(), batch_size=128).test
    test = evaluate(model, images, provenance=provenance())
    model.load_state_dict(weights)
    exact = evaluate(model, images)
    record = {
        "test": test.to_json(),
        "test_top1_in_single_precision": exact.top1,
        "training": read_json(arguments.run / "result.json"),
    }
    write_json(folder / f"{arguments.name}.json", record)
    print(f"{arguments.name}: {test.top1:.2%} as stored, {exact.top1:.2%} in single precision")


if __name__ == "__main__":
    main()
