"""Result files as ftwt writes them, of any network, made in a moment."""

import json
from pathlib import Path
from typing import Any

PRUNE = {
    "r": 0.9,
    "mode": "decoupled",
    "saliency": "peak",
    "variant": "mass",
    "pool": "mean",
    "head": "standardized",
    "rank": None,
    "residual": "before",
    "depthwise": "inherit",
    "straight_through": False,
    "min_gain": None,
    "skip": [],
}
DENSE_MACS = 1_000_000


def provenance(command: str = "ftwt train", **changes: Any) -> dict[str, Any]:
    return {
        "command": command,
        "config": None,
        "seed": 0,
        "versions": {"python": "3.11", "torch": "2.6", "ftwt": "0.1"},
        "hardware": {"cpu": "a CPU", "cores": 2, "gpu": None},
        "git": None,
        "date": "2026-11-20T00:00:00+00:00",
        "duration_s": 1.0,
    } | changes


def evaluation(
    top1: float = 0.9, reduction: float = 0.3, units: int = 3, **changes: Any
) -> dict[str, Any]:
    return {
        "images": 1000,
        "loss": 1 - top1,
        "top1": top1,
        "top5": 1.0,
        "dense_macs": DENSE_MACS,
        "executed_macs": DENSE_MACS * (1 - reduction),
        "reduction": reduction,
        "reduction_std": 0.01 if units else 0.0,
        "reduction_range": [reduction - 0.05, reduction + 0.05],
        "published_reduction": reduction + 0.05 if units else 0.0,
        "mask_accuracy": 0.9 if units else None,
        "units": [
            {
                "name": f"layer{number}.conv",
                "channels": 16,
                "keep": 0.5 + 0.1 * number,
                "keep_std": 0.02 * number,
                "always": 2 + number,
                "never": 3 - number,
                "entropy": 0.3,
                "distinct": 12,
                "mask_accuracy": 0.9,
            }
            for number in range(units)
        ],
        "provenance": {},
    } | changes


def run(
    top1: float = 0.9,
    reduction: float = 0.3,
    *,
    model: str = "cifar10-resnet56",
    seed: int = 0,
    prune: dict[str, Any] | None = PRUNE,
    twin_of: str | None = None,
    asked: float | None = None,
    predicted: float | None = 0.28,
    command: str = "ftwt train cifar10-resnet56-r80-decoupled",
    hours: float = 1.0,
    **changes: Any,
) -> dict[str, Any]:
    """The contents of a run.json, dynamic unless `prune` or `twin_of` say otherwise."""
    gated = prune is not None and twin_of is None
    test = evaluation(top1, reduction if prune is not None else 0.0, 3 if prune else 0)
    return {
        "config": {
            "model": model,
            "weights": "runs/base" if prune is not None else None,
            "data": {"dataset": "cifar10", "data_root": None, "validation": 5000, "split_seed": 0},
            "prune": prune,
            "twin_of": twin_of,
            "train": {"epochs": 2, "lr": 0.1, "target_reduction": asked, "seed": seed},
        },
        "asked_reduction": asked,
        "predicted_reduction": predicted if gated else None,
        "test": test,
        "validation": test,
        "training": {
            "history": [
                {
                    "epoch": epoch,
                    "lr": 0.1,
                    "loss": 3.0 / epoch,
                    "accuracy": 0.4 * epoch,
                    "val_loss": 0.5 / epoch,
                    "val_accuracy": 0.45 * epoch,
                    "images_per_s": 500.0,
                    "mask_loss": 2.0 / epoch if gated and epoch == 1 else None,
                    "mask_accuracy": 0.8 if gated and epoch == 1 else None,
                    "reduction": reduction * epoch / 2 if prune else None,
                    "val_reduction": reduction * epoch / 2 if prune else None,
                    "r": 0.9 if gated else None,
                }
                for epoch in (1, 2)
            ],
            "evaluation": test,
            "calibration": None,
            "seconds": 3600 * hours,
            "images_per_s": 500.0,
            "provenance": provenance(command),
        },
        "provenance": provenance(command),
    } | changes


def static(top1: float, reduction: float, **changes: Any) -> dict[str, Any]:
    """The network of another pruning library, matched to a run of ours."""
    told = {
        "kind": "static",
        "library": {"name": "torch-pruning", "version": "1.6"},
        "importance": "group magnitude",
        "matched": {"to": "r90", "on": "macs", "asked": reduction, "got": reduction},
    }
    return run(top1, reduction, predicted=None, **changes) | told


def estimate(command: str = "ftwt estimate cifar10-resnet56 --output e.json") -> dict[str, Any]:
    r = [0.5, 0.7, 0.9, 1.0]
    unit = {"name": "layer0.conv", "keep": r, "lost": [0.5, 0.3, 0.1, 0.0]}
    return {
        "r": r,
        "reduction": [0.7, 0.5, 0.25, 0.0],
        "published_reduction": [0.8, 0.6, 0.35, 0.05],
        "units": [unit | {"macs": [1e5, 2e5, 3e5, 4e5], "predictor_macs": [10.0] * 4}],
        "dense_macs": DENSE_MACS,
        "images": 64,
        "provenance": provenance(command),
    }


def benchmark(network: str = "cifar10-resnet56", threads: int = 1) -> dict[str, Any]:
    def timing(name: str, ms: float) -> dict[str, Any]:
        return {
            "name": name,
            "settings": "as usual",
            "latency_ms": ms,
            "low_ms": 0.9 * ms,
            "high_ms": 1.1 * ms,
            "rounds_ms": [ms],
        }

    return {
        "network": network,
        "input_shape": [3, 32, 32],
        "batch": 1,
        "threads": threads,
        "isa": "avx2",
        "rounds": 1,
        "batches": 1,
        "forced_keep": 0.5,
        "keep": 0.5,
        "dense_macs": DENSE_MACS,
        "reduction": 0.6,
        "timings": [
            timing("openvino", 1.0),
            timing("torch", 1.5),
            timing("ftwt dense", 0.95),
            timing("ftwt gated", 0.5),
        ],
        "left_out": {},
        "disturbance": 0.0,
        "images": [
            {"keep": keep, "executed_macs": int(DENSE_MACS * keep), "latency_ms": keep + 0.1}
            for keep in (0.2, 0.4, 0.8)
        ],
        "provenance": provenance("ftwt bench"),
        "theoretical": 2.5,
        "achieved": 2.0,
    }


def contest(network: str = "cifar10-resnet56") -> dict[str, Any]:
    def entry(pruning: str, runtime: str, precision: str, top1: float, ms: float) -> dict[str, Any]:
        return {
            "pruning": pruning,
            "runtime": runtime,
            "precision": precision,
            "top1": top1,
            "reduction": 0.0 if pruning == "dense" else 0.3,
            "latency_ms": ms,
            "low_ms": 0.9 * ms,
            "high_ms": 1.1 * ms,
            "settings": "as usual",
        }

    return {
        "kind": "contest",
        "network": network,
        "input_shape": [3, 32, 32],
        "images": 1000,
        "calibrated_on": 256,
        "timed": 8,
        "rounds": 2,
        "threads": 1,
        "isa": "avx2",
        "entries": [
            entry("dense", "ftwt", "f32", 0.93, 2.0),
            entry("dense", "openvino", "int8", 0.92, 1.0),
            entry("fixed mask, 30%", "ftwt", "int8", 0.91, 0.8),
            entry("gates, 30%", "ftwt", "int8", 0.90, 0.9),
            entry("dense", "onnxruntime", "bf16", 0.93, 2.5),
        ],
        "left_out": {"dense, openvino bf16": "not on this processor"},
        "disturbance": 0.0,
        "provenance": provenance("accuracy_latency.py"),
    }


def corruptions(
    run: str | None, top1: float, network: str = "cifar10-resnet56", *, reduction: float = 0.3
) -> dict[str, Any]:
    def one(drop: float, **told: Any) -> dict[str, Any]:
        saved = reduction and reduction + drop / 4
        return told | {"top1": top1 - drop, "reduction": saved, "keep": 0.7}

    return {
        "kind": "corruptions",
        "network": network,
        "images": 1000,
        "source": "ftwt",
        "clean": one(0.0),
        "corrupted": [
            one(0.02 * number * severity, corruption=name, severity=severity)
            for number, name in enumerate(("fog", "gaussian_noise", "motion_blur"), 1)
            for severity in range(1, 6)
        ],
        "mean": one(0.12),
        "run": run,
        "provenance": provenance("ftwt robustness"),
    }


def write(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
