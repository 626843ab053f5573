"""A trained ImageNet MobileNetV1 on photographs: what an estimate says, and what gates learn.

    python benchmarks/photographs.py FOLDER --output results/photographs/mobilenet-v1.json

FOLDER holds `mobilenet_v1_folded.safetensors` and photographs `photo_NN_LABEL.jpg`. The network is
MobileNetV1 1.0/224, its batch norm folded into the convolutions: keys `stem`, `blocks.N.depthwise`,
`blocks.N.pointwise` and `classifier`, each with weight and bias; pixels in [-1, 1]; padded as in
TensorFlow, where it strides one row below and one column to the right.

A few photographs measure no accuracy: what is told is how many first guesses stay those of the
dense network. Two things are:

- Masks from the targets themselves, at several r: how much work the trained network leaves undone
  without any training, and how much of the published reduction at r = 1 that is.
- Predictors, the weights as they are, learned on random crops of other photographs than they are
  judged on, fold by fold, beside a fixed mask: each filter's majority on the same crops.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ftwt
from ftwt.files.json import write_json
from ftwt.files.pictures import Preprocessing, read_picture
from ftwt.files.provenance import provenance
from ftwt.models.vision import import_vision
from ftwt.pruning.method import GateOutput, mask_loss, target_mask

WEIGHTS = "mobilenet_v1_folded.safetensors"
VIEW = Preprocessing(resize=256, crop=224, mean=(0.5,) * 3, std=(0.5,) * 3)  # to [-1, 1]
WHOLE = Preprocessing(resize=256, crop=256, mean=VIEW.mean, std=VIEW.std)  # crops come from this
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # Howard et al. 2017, table 1
GRID = (1.0, 0.99, 0.98, 0.95, 0.9, 0.85)

Batch = tuple[Tensor, Tensor]


class Padded(nn.Sequential):
    """A convolution with ReLU6, padded as TensorFlow does: where it strides, after, not before."""

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int) -> None:
        filters, inputs, kernel, _ = weight.shape
        groups = filters if inputs == 1 else 1
        padding = kernel // 2 if stride == 1 else 0
        conv = nn.Conv2d(inputs * groups, filters, kernel, stride, padding, groups=groups)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        pad = nn.Identity() if stride == 1 else nn.ZeroPad2d((0, 1, 0, 1))
        super().__init__(pad, conv, nn.ReLU6())


def mobilenet(path: Path) -> nn.Sequential:
    """Build the network from its folded weights."""
    tensors = load_file(path)

    def conv(name: str, stride: int = 1) -> Padded:
        return Padded(tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=stride)

    network = nn.Sequential()
    network.add_module("stem", conv("stem", 2))
    for number, stride in enumerate(STRIDES):
        block = nn.Sequential()
        block.add_module("depthwise", conv(f"blocks.{number}.depthwise", stride))
        block.add_module("pointwise", conv(f"blocks.{number}.pointwise"))
        network.add_module(f"block{number}", block)
    classifier = nn.Linear(*reversed(tensors["classifier.weight"].shape))
    classifier.weight = nn.Parameter(tensors["classifier.weight"])
    classifier.bias = nn.Parameter(tensors["classifier.bias"])
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier])
    return network.eval()


def photographs(folder: Path, how: Preprocessing) -> Batch:
    """Read all photographs: (N, 3, crop, crop) and their labels."""
    paths = sorted(folder.glob("photo_*_*.jpg"))
    if not paths:
        raise SystemExit(f"no photo_NN_LABEL.jpg in {folder}")
    images = torch.from_numpy(np.stack([read_picture(path, how) for path in paths]))
    return images, torch.tensor([int(path.stem.rsplit("_", 1)[1]) for path in paths])


def targets(network: nn.Module, views: Batch, depthwise: Any) -> dict[str, Any]:
    """Apply target masks at each r; count what they leave, and how many first guesses stay."""
    images, labels = views
    every = -1.0 if depthwise == "gate" else None  # as published, whatever predictors cost
    dynamic = ftwt.convert(network, images[:1], depthwise=depthwise, min_gain=every).eval()
    curve = ftwt.estimate(dynamic, [views])
    with torch.no_grad():
        dense = dynamic(images, gates="open")
    rows = []
    for r in GRID:
        dynamic.set_r(r)
        result = ftwt.evaluate(dynamic, [views], gates="target")
        with torch.no_grad():
            masked = dynamic(images, gates="target")
        rows.append(
            {
                "r": r,
                "predicted": curve.reduction_at(r),
                "reduction": result.reduction,
                "published_reduction": result.published_reduction,
                "kept": float(np.mean([unit.keep for unit in result.units])),
                "sometimes": result.dynamism["sometimes"],
                "never": result.dynamism["never"],
                "same_guess": float((masked.argmax(1) == dense.argmax(1)).float().mean()),
                "top1": result.top1,
            }
        )
    right = float((dense.argmax(1) == labels).float().mean())
    return {"units": len(dynamic.units), "dense_top1": right, "rows": rows}


def gates(
    network: nn.Module, whole: Batch, views: Batch, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Learn predictors on crops of some photographs, judge them on the others, fold by fold."""
    images, labels = views
    dynamic = ftwt.convert(network, images[:1], rank=arguments.rank, depthwise="gate")
    crops, photograph = random_crops(whole[0], arguments)
    seen = look(dynamic, crops)
    empty = copy.deepcopy(dynamic.state_dict())
    rows = []
    for r in arguments.r:
        found: dict[str, dict[str, list[float]]] = {"gates": {}, "twin": {}}
        for fold in range(arguments.folds):
            held = torch.arange(len(images)) % arguments.folds == fold
            mine = ~held[photograph]
            dynamic.load_state_dict(empty)
            dynamic.set_r(r)
            fit(
                dynamic,
                {unit: [part[mine] for part in parts] for unit, parts in seen.items()},
                arguments,
            )
            some = crops[mine][: arguments.counted]
            twin = dynamic.freeze([(some, torch.zeros(len(some)))])
            for name, judged in (("gates", dynamic), ("twin", twin)):
                for key, value in judge(judged, dynamic, (images[held], labels[held])).items():
                    found[name].setdefault(key, []).append(value)
        means = {of: {key: float(np.mean(v)) for key, v in found[of].items()} for of in found}
        print(f"learned, r = {r}:", means)
        rows.append({"r": r, **means, "folds": found})
    return rows


@torch.no_grad()
def look(dynamic: ftwt.DynamicModel, images: Tensor) -> dict[str, list[Tensor]]:
    """Collect what predictors pool and how filters fire: unit -> [(N, C_in), (N, C)]."""
    pooled: dict[str, list[Tensor]] = {}
    saliencies: dict[str, list[Tensor]] = {}
    hooks = [
        predictor.register_forward_pre_hook(
            lambda _, given, unit=unit: pooled.setdefault(unit, []).append(given[0].mean((2, 3)))
        )
        for unit, predictor in dynamic.predictors.items()
    ]
    for batch in images.split(32):
        for unit, gate in dynamic.eval()(batch, gates="open", return_gates=True)[1].items():
            saliencies.setdefault(unit, []).append(gate.saliency)
    for hook in hooks:
        hook.remove()
    return {unit: [torch.cat(pooled[unit]), torch.cat(saliencies[unit])] for unit in pooled}


def fit(
    dynamic: ftwt.DynamicModel, seen: dict[str, list[Tensor]], arguments: argparse.Namespace
) -> None:
    """Let the predictors learn their targets from what was collected; the network stands still."""
    predictors = dynamic.train().predictors
    wanted = {unit: target_mask(seen[unit][1], dynamic.r[unit]) for unit in predictors}
    sgd = torch.optim.SGD(dynamic.predictor_parameters(), lr=arguments.predictor_lr, momentum=0.9)
    count = len(next(iter(wanted.values())))
    order = torch.Generator().manual_seed(arguments.seed)
    for _ in range(arguments.epochs):
        for chosen in torch.randperm(count, generator=order).split(arguments.batch):
            guesses = {
                unit: GateOutput(
                    wanted[unit][chosen], predictor(seen[unit][0][chosen]), wanted[unit][chosen]
                )
                for unit, predictor in predictors.items()
            }
            sgd.zero_grad()
            mask_loss(guesses).backward()
            sgd.step()


@torch.no_grad()
def judge(judged: nn.Module, dynamic: ftwt.DynamicModel, others: Batch) -> dict[str, float]:
    """Say how well masks meet their targets on other photographs, and what they leave."""
    result = ftwt.evaluate(judged, [others], targets=False)
    images, _ = others
    dense, wanted = dynamic.eval()(images, gates="open", return_gates=True)
    masked, got = judged.eval()(images, return_gates="masks")
    right = [float((got[unit].mask == wanted[unit].target).float().mean()) for unit in wanted]
    return {
        "mask_accuracy": float(np.mean(right)),
        "reduction": result.reduction,
        "sometimes": result.dynamism["sometimes"],
        "same_guess": float((masked.argmax(1) == dense.argmax(1)).float().mean()),
    }


def random_crops(images: Tensor, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Cut and mirror images at random, as in training: crops, and the photograph of each."""
    import_vision("torchvision")
    from torchvision.transforms import v2 as transforms

    crop = transforms.RandomResizedCrop(VIEW.crop, scale=(0.35, 1.0), antialias=True)
    flip = transforms.RandomHorizontalFlip()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        photograph = torch.randperm(len(images) * arguments.crops) % len(images)
        return torch.stack([flip(crop(images[i])) for i in photograph]), photograph


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the weights and the photographs")
    parser.add_argument("--output", default="results/photographs/mobilenet-v1.json")
    parser.add_argument("--r", type=float, nargs="+", default=[1.0, 0.99, 0.95], help="to learn")
    parser.add_argument("--rank", type=int, help="of the predictors; full ones if not given")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--crops", type=int, default=24, help="of each photograph")
    parser.add_argument("--counted", type=int, default=64, help="crops that a twin's masks are of")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--predictor-lr", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    network = mobilenet(arguments.folder / WEIGHTS)
    views, whole = (photographs(arguments.folder, how) for how in (VIEW, WHOLE))
    result = {
        "network": "MobileNetV1 1.0/224, ImageNet, batch norm folded",
        "photographs": len(views[0]),
        "targets": {kind: targets(network, views, kind) for kind in ("gate", "inherit")},
        "learned": gates(network, whole, views, arguments),
    }
    asked = {
        key: value for key, value in vars(arguments).items() if key not in ("folder", "output")
    }
    made = provenance(config=asked, seed=arguments.seed)
    made["command"] = "python benchmarks/photographs.py FOLDER"
    write_json(arguments.output, {**result, "provenance": made})


if __name__ == "__main__":
    main()
