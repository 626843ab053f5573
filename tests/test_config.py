"""Configs: checked when built, the same after a trip through JSON, helpful about mistakes."""

import json
from dataclasses import replace

import pytest

from ftwt.config import DataConfig, PruneConfig, RunConfig, TrainConfig, changes

RUNS = [
    RunConfig(),
    RunConfig(
        model="cifar10-vgg16-bn",
        weights="pretrained",
        data=DataConfig(validation=100, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.2)),
        prune=PruneConfig(r={"conv1": 0.85, "conv2": 1.0}, skip=("conv3",), rank=4),
        train=TrainConfig(epochs=50, milestones=(0.58, 0.78, 0.98), target_reduction=0.5),
    ),
]


@pytest.mark.parametrize("run", RUNS)
def test_json_round_trip(run: RunConfig) -> None:
    assert RunConfig.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_unknown_key_names_the_nearest_or_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'epochs'\?$"):
        TrainConfig.from_json({"epoch": 3})
    with pytest.raises(ValueError, match="Known: epochs, .*lr_decay"):
        TrainConfig.from_json({"zzz": 3})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PruneConfig, {"r": 0}, r"r=0.*\(0, 1\]"),
        (PruneConfig, {"r": -1.0}, r"r=-1.0.*\(0, 1\]"),
        (PruneConfig, {"r": 2.0}, r"r=2.0.*\(0, 1\]"),
        (PruneConfig, {"r": float("nan")}, r"r=nan.*\(0, 1\]"),
        (PruneConfig, {"r": {"a": 1.5}}, "'a'"),
        (PruneConfig, {"mode": "jointly"}, "'decoupled', 'joint'"),
        (PruneConfig, {"rank": 0}, "rank=0"),
        (TrainConfig, {"epochs": 0}, "epochs=0"),
        (TrainConfig, {"epochs": 1.5}, "epochs=1.5 is not a whole number"),
        (TrainConfig, {"batch_size": 2.5}, "batch_size=2.5 is not a whole number"),
        (TrainConfig, {"seed": True}, "seed=True is not a whole number"),
        (DataConfig, {"validation": 10.0}, "validation=10.0 is not a whole number"),
        (TrainConfig, {"lr": float("nan")}, "lr=nan"),
        (TrainConfig, {"lr": "fast"}, "lr='fast'"),
        (TrainConfig, {"momentum": 1.0}, r"momentum=1.0.*\[0, 1\)"),
        (TrainConfig, {"cooldown": 1.1}, r"cooldown=1.1.*\[0, 1\]"),
        (TrainConfig, {"target_reduction": 1.0}, "target_reduction=1.0"),
        (TrainConfig, {"precision": "fp16"}, "'fp32', 'bf16'"),
        (TrainConfig, {"milestones": (81.0,)}, "fractions"),
        (TrainConfig, {"nesterov": True, "momentum": 0}, "momentum"),
        (TrainConfig, {"warmup_epochs": 9, "epochs": 8}, "warmup_epochs=9"),
        (TrainConfig, {"predictor_warmup_steps": 9, "mask_loss_weight": 0}, "mask_loss_weight"),
        (DataConfig, {"validation": 0}, "validation=0"),
        (DataConfig, {"mean": (0.5, 0.5, 0.5)}, "std=None belong together"),
        (DataConfig, {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.0, 0.2)}, "above 0"),
        (DataConfig, {"mean": (float("nan"), 0, 0), "std": (1, 1, 1)}, "finite"),
        (RunConfig, {"train": TrainConfig(target_reduction=0.3)}, "0.3 needs gates"),
        (RunConfig, {"train": TrainConfig(distillation=1.0)}, "random weights"),
        (RunConfig, {"prune": PruneConfig(), "allocate": True}, "needs gates and a target"),
    ],
)
def test_a_bad_value_is_named(kind: type, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_changes_are_named_also_inside() -> None:
    a = RunConfig(prune=PruneConfig())
    b = replace(a, train=replace(a.train, lr=0.5, seed=2), weights="pretrained")
    expected = ["weights was None, is pretrained", "lr was 0.01, is 0.5", "seed was 0, is 2"]
    assert changes(a, b) == expected
    assert changes(a, replace(a)) == []
    assert changes(a, replace(a, prune=None)) == [f"prune was {a.prune}, is None"]


def test_phases_fit_fewer_epochs() -> None:
    train = TrainConfig(epochs=30, warmup_epochs=2, anneal_epochs=5.0, lr=0.3)
    config = RunConfig(prune=PruneConfig(), train=train)
    assert config.of_epochs(2).train == replace(train, epochs=2, anneal_epochs=1.0)
    assert config.of_epochs(1).train == replace(
        train, epochs=1, warmup_epochs=0.5, anneal_epochs=0.5
    )
    assert config.of_epochs(30) == config


def test_without_gates_the_rest_of_the_training_stays() -> None:
    train = TrainConfig(
        epochs=7,
        lr=0.3,
        predictor_lr=0.2,
        predictor_warmup_steps=9,
        mask_loss_weight=2.0,
        cooldown=1.0,
        anneal_epochs=3.0,
        target_reduction=0.4,
        distillation=0.5,
        seed=4,
    )
    gated = RunConfig(weights="pretrained", prune=PruneConfig(), allocate=True, train=train)
    kept = {"epochs": 7, "lr": 0.3, "distillation": 0.5, "seed": 4}
    assert gated.without_gates() == RunConfig(weights="pretrained", train=TrainConfig(**kept))
