"""What eight bits cost in accuracy: our engine in float and in int8, on the same test images.

Where the network has no gates, OpenVINO's int8 stands beside it, calibrated on the same images.

    python benchmarks/eight_bits.py cifar10-resnet20 cifar10-resnet20-dynamic-40
    python benchmarks/eight_bits.py ../runs/given-resnet56 --mean 0.485 0.456 0.406 --std ...
    python benchmarks/eight_bits.py --imagenet IMAGES --weights resnet50_v1.safetensors

Ranges come from 256 training images, without labels, by each rule. IMAGES and the weights are as
in `subjects.py`. Writes `results/int8/NETWORK.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from subjects import imagenet, pictures, splits_of
from torch import nn

import ftwt
from ftwt.contest.rivals import export_onnx, in_batches, openvino_int8
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.lowering.ranges import RULES
from ftwt.networks.sources import resolve
from ftwt.pruning.dynamic import DynamicModel

OUTPUT = Path("results/int8")
AT_ONCE = 100
RIVAL, TOGETHER = "openvino-int8", 4  # images that it takes at a time


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help="names with weights, or folders of networks")
    parser.add_argument("--calibrate", type=int, default=256, help="images")
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--data-root")
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--std", type=float, nargs=3)
    parser.add_argument("--imagenet", type=Path, help="folder of images")
    parser.add_argument("--weights", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for source in given.networks:
        splits = splits_of(given)
        held = torch.cat([images for images, _ in splits.plain])[: given.calibrate]
        network = resolve(source).load().cpu().eval()
        compare(Path(source).name.replace(":", "-"), network, held, list(splits.test), given)
    if given.imagenet:
        network, how = imagenet(given.weights)
        images, labels = pictures(given.imagenet, how)
        test = list(zip(images[1::2].split(AT_ONCE), labels[1::2].split(AT_ONCE), strict=True))
        compare(
            f"imagenet-{given.weights.stem}", network, images[::2][: given.calibrate], test, given
        )


def compare(
    name: str,
    network: nn.Module,
    held: torch.Tensor,
    test: list[tuple[torch.Tensor, torch.Tensor]],
    given: argparse.Namespace,
) -> None:
    """Evaluate the float engine and one of eight bits for each rule."""
    began = Start()
    example = None if isinstance(network, DynamicModel) else held[:1]
    plain = ftwt.compile(network, example)
    right, guesses, masks = answers(plain, test)
    rows: list[dict[str, Any]] = []
    for rule in given.rules:
        engine = ftwt.compile(
            network, example, precision="int8", calibrate=held.split(64), rule=rule
        )
        found, guessed, decided = answers(engine, test)
        layers = ftwt.quantized_layers(engine).layers
        rows.append(
            {
                "rule": rule,
                "top1": found,
                "same_guess": float(np.mean(guesses == guessed)),
                "same_masks": float(np.mean(masks == decided)) if masks.size else None,
                "float_layers": [layer.name for layer in layers if layer.precision == "f32"],
                "least_snr_db": min(layer.snr_db for layer in layers if layer.snr_db is not None),
            }
        )
        print(name, f"f32 {right:.2%}", rows[-1], flush=True)
    if not isinstance(network, DynamicModel):
        rows += rival(network, test, held, guesses)
        print(name, rows[-1], flush=True)
    told = {key: str(value) for key, value in vars(given).items() if key != "data_root"}
    write_json(
        OUTPUT / f"{name}.json",
        {
            "network": name,
            "isa": plain.isa,
            "calibrated_on": len(held),
            "images": len(guesses),
            "f32_top1": right,
            "rows": rows,
            "provenance": provenance(config=told, since=began),
        },
    )


def rival(
    network: nn.Module,
    test: list[tuple[torch.Tensor, torch.Tensor]],
    held: torch.Tensor,
    guesses: np.ndarray,
) -> list[dict[str, Any]]:
    """OpenVINO's int8 (NNCF), calibrated on the same images; nothing where it is not installed."""
    images = torch.cat([batch for batch, _ in test]).float()
    batches = images.reshape(-1, TOGETHER, *images.shape[1:]).numpy()
    seen = in_batches(held.float().numpy(), TOGETHER)
    try:
        contestant = openvino_int8(
            network, batches, 1, lambda: export_onnx(network, batches[0]), seen
        )
    except ModuleNotFoundError as missing:
        print(f"without OpenVINO's int8: {missing}")
        return []
    guessed = []
    for number in range(len(batches)):
        contestant.take(number)
        guessed.append(contestant.infer().argmax(1))
    own = np.concatenate(guessed)
    labels = torch.cat([labels for _, labels in test]).numpy()
    return [
        {
            "rule": RIVAL,
            "top1": float(np.mean(own == labels)),
            "same_guess": float(np.mean(guesses == own)),
            "settings": contestant.settings,
        }
    ]


def answers(
    engine: Any, test: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[float, np.ndarray, np.ndarray]:
    """Share of right guesses, the guesses, and all masks side by side."""
    guesses, masks, labels = [], [np.zeros((0, 0), bool)], []
    for images, wanted in parts(test):
        out, stats = engine.run(images.float().contiguous())
        guesses.append(out.argmax(1).numpy())
        labels.append(wanted.numpy())
        if stats.masks:
            masks.append(np.concatenate([*stats.masks.values()], axis=1))
    found = np.concatenate(guesses)
    side_by_side = np.concatenate(masks[1:]) if len(masks) > 1 else masks[0]
    return float(np.mean(found == np.concatenate(labels))), found, side_by_side


def parts(test: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[tuple[Any, Any]]:
    """Batches of a size that engines like."""
    for images, labels in test:
        yield from zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True)


if __name__ == "__main__":
    main()
