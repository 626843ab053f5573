"""Results that look like real ones, of any size, made in a moment."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ftwt.records.recording import RecordedUnit, Recording

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def recording(
    *,
    images: int = 200,
    shown: int = 24,
    channels: tuple[int, ...] = (16, 16, 32, 64),
    side: int = 32,
    maps: int = 2,
    seed: int = 0,
    network: str = "net",
    provenance: dict[str, Any] | None = None,
) -> Recording:
    """A recording whose filters fire by class, some always, some never."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, len(CLASSES), images)
    units, masks, work = [], {}, np.zeros(images)
    for number, count in enumerate(channels):
        rates = draw.beta(0.6, 0.6, (len(CLASSES), count))
        fires = draw.random((images, count)) < rates[labels]
        fires[:, : count // 4] = True
        fires[:, -max(count // 8, 1) :] = False
        name = f"layer{number}.conv"
        also = (f"layer{number}.depthwise",) if number == 1 else ()
        units.append(RecordedUnit(name, count, 10_000 * count, 10 * count, also))
        masks[name] = np.packbits(fires, axis=1)
        work += 10_000 * fires.sum(1)
    dense = 10_000 * sum(channels) + 1000
    order = np.argsort(work)
    few = shown // 4
    rest = draw.permutation(order[few : images - few])[: shown - 2 * few]
    picked = np.concatenate([order[:few], rest, order[images - few :]]).astype(np.int32)
    ys, xs = np.mgrid[:side, :side] / side
    hue = labels[picked, None, None, None] * np.array([40, 70, 110])
    wave = np.stack([xs + ys, xs - ys, xs * ys], -1) * 120
    pictures = (hue + wave + draw.normal(0, 12, (len(picked), side, side, 3))) % 256
    heat = {
        f"layer{number}.conv": draw.random((len(picked), side >> number, side >> number))
        for number in range(maps)
    }
    return Recording(
        network=network,
        classes=CLASSES,
        dense_macs=dense,
        units=tuple(units),
        labels=labels.astype(np.int16),
        predictions=np.where(draw.random(images) < 0.9, labels, 0).astype(np.int16),
        confidence=draw.uniform(0.4, 1, images).astype(np.float16),
        executed_macs=(work + 500).astype(np.float32),
        packed_masks=masks,
        shown=picked,
        pictures=pictures.astype(np.uint8),
        dense_heatmaps={name: values.astype(np.float16) for name, values in heat.items()},
        dynamic_heatmaps={name: (values * 0.7).astype(np.float16) for name, values in heat.items()},
        provenance=provenance or {"command": "ftwt evaluate runs/net --record"},
    )


RESULTS = Path(__file__).parents[2] / "results"


def run_values(*, seed: int = 0, r: float = 0.9, twin_of: str | None = None) -> dict[str, Any]:
    """A run of ResNet-20 as `ftwt train` writes it: a real one, its figures moved a little."""
    kind = "-twin" if twin_of else ""
    path = RESULTS / "resnet20" / f"r90-standardized{kind}-seed0.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    draw = np.random.default_rng([seed, round(100 * r), bool(twin_of)])
    values["config"]["train"]["seed"] = seed
    values["config"]["twin_of"] = twin_of
    values["config"]["prune"]["r"] = r
    test = values["test"]
    test["top1"] = float(np.clip(test["top1"] - 0.3 * (0.9 - r) + draw.normal(0, 0.002), 0, 1))
    test["reduction"] = float(test["reduction"] + 1.6 * (0.9 - r) + draw.normal(0, 0.004))
    test["executed_macs"] = test["dense_macs"] * (1 - test["reduction"])
    test["loss"] += float(draw.uniform(0, 0.01))
    return values


def run_folder(
    folder: Path, *, record: Recording | None = None, steps: int = 0, **settings: Any
) -> Path:
    """The folder of a finished run: its result, its metrics, its recording."""
    folder.mkdir(parents=True)
    values = run_values(**settings)
    (folder / "run.json").write_text(json.dumps(values), encoding="utf-8")
    if steps:
        lines = []
        for step in range(1, steps + 1):
            figures = {"step": step, "lr": 0.02, "images_per_s": 700.0, "reduction": 0.3}
            falling = {"loss": 3 / step, "mask_loss": 2 / step}
            shares = {"accuracy": 1 - 1 / (step + 1), "mask_accuracy": 0.9 - 0.1 / step}
            lines.append({"kind": "step", **figures, **falling, **shares})
        lines += [{"kind": "epoch", "step": steps, **epoch} for epoch in _epochs(values)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if record is not None:
        record.save(folder / "recording.safetensors")
    return folder


def _epochs(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {name: figure for name, figure in epoch.items() if figure is not None}
        for epoch in values["training"]["history"]
    ]
