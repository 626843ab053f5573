"""Recipes: the published rows and schedules, on networks that exist."""

from dataclasses import asdict, replace

import pytest
import torch

import toys
from ftwt import convert, estimate, models, recipes
from ftwt.config import RunConfig
from ftwt.training.schedules import Schedule

# r, the accuracy and reduction that were published (if they were), and the units: all convolutions.
ROWS = {
    "cifar10-vgg16-bn-r92-decoupled": (0.92, "93.73% at 56%", 13),
    "cifar10-vgg16-bn-r92-joint": (0.92, "93.55% at 65.01%", 13),
    "cifar10-vgg16-bn-r88-decoupled": (0.88, "no row", 13),
    "cifar10-vgg16-bn-r88-joint": (0.88, "92.65% at 74%", 13),
    "cifar10-vgg16-bn-r85-decoupled": (0.85, "93.19% at 73.19%", 13),
    "cifar10-vgg16-bn-r85-joint": (0.85, "no row", 13),
    "cifar10-resnet56-r88-decoupled": (0.88, "no row", 55),
    "cifar10-resnet56-r88-joint": (0.88, "92.28% at 54%", 55),
    "cifar10-resnet56-r80-decoupled": (0.80, "92.63% at 66.43%", 55),
    "cifar10-resnet56-r80-joint": (0.80, "no row", 55),
    "cifar10-resnet56-r80-after": (0.80, "after the residual add", 55),
    "cifar10-resnet56-r60-uniform": (0.60, "same share r", 55),
    "cifar10-mobilenet-v1-r100-decoupled": (1.0, "91.06% at 78.53%", 27),
    "cifar10-mobilenet-v1-r100-joint": (1.0, "91.21% at 78%", 27),
    "cifar10-mobilenet-v2-r97-decoupled": (0.97, "a curve without r", 52),
    "cifar10-mobilenet-v2-r90-decoupled": (0.9, "a curve without r", 52),
    "cifar10-mobilenet-v2-r80-decoupled": (0.8, "a curve without r", 52),
    "cifar10-mobilenet-v2-r70-decoupled": (0.7, "a curve without r", 52),
}
BASELINES = {
    "cifar10-resnet20-baseline": "",
    "cifar10-resnet56-baseline": "93.66",
    "cifar10-vgg16-bn-baseline": "93.82",
    "cifar10-mobilenet-v1-baseline": "90.89",
    "cifar10-mobilenet-v1-half-baseline": "3.31",
    "cifar10-mobilenet-v2-baseline": "",
}

OURS = (
    "cifar10-resnet20-short",
    "cifar10-resnet20-dynamic-40",
    "cifar10-resnet20-dense-30",
    *(
        FIXED := (
            "cifar10-resnet20-fixed-40",
            "cifar10-resnet20-look-40",
            "cifar10-resnet20-sandwich-40",
        )
    ),
    "cifar10-resnet20-gates-only",
)

# the reduction asked, and what of the accuracy may be lost
GOALS = {
    "cifar10-resnet56-dynamic-55": (0.55, "0.3 points"),
    "cifar10-resnet56-dynamic-62": (0.62, "0.6 points"),
    "cifar10-vgg16-bn-dynamic-75": (0.75, "0.2 points"),
    "cifar10-mobilenet-v1-dynamic-60": (0.60, "nothing"),
}
HELD_TO = (
    "cifar10-resnet56-dense-30",
    "cifar10-vgg16-bn-dense-30",
    "cifar10-mobilenet-v1-dense-30",
)

# r, the accuracy and reduction that were published (if they were), hours on 4 V100, the units
IMAGENET_ROWS = {
    "imagenet-resnet18-r91-decoupled": (0.91, "69.76% -> 67.49% at 51.56%", "40 hours", 17),
    "imagenet-resnet34-r97-decoupled": (0.97, "73.30% -> 73.25% at 25.86%", "55.5 hours", 33),
    "imagenet-resnet34-r97-joint": (0.97, "no row", "55.5 hours", 33),
    "imagenet-resnet34-r95-decoupled": (0.95, "73.30% -> 72.79% at 37.77%", "55.5 hours", 33),
    "imagenet-resnet34-r95-joint": (0.95, "73.30% -> 71.52%", "55.5 hours", 33),
    "imagenet-resnet34-r93-decoupled": (0.93, "73.30% -> 72.17% at 47.42%", "55.5 hours", 33),
    "imagenet-resnet34-r93-joint": (0.93, "no row", "55.5 hours", 33),
    "imagenet-resnet34-r92-decoupled": (0.92, "73.30% -> 71.71% at 52.24%", "55.5 hours", 33),
    "imagenet-resnet34-r92-joint": (0.92, "73.30% -> 70.06%", "55.5 hours", 33),
    "imagenet-mobilenet-v1-r100-decoupled": (1.0, "69.57% -> 69.66% at 41.07%", "41 hours", 27),
}
IMAGENET_OURS = ("imagenet-resnet50", "imagenet-resnet50-dense", "imagenet-mobilenet-v2")
CIFAR = [*BASELINES, *OURS, *GOALS, *HELD_TO, *ROWS]
IMAGENET = [*IMAGENET_ROWS, *IMAGENET_OURS]


def test_the_recipes_are_the_baselines_the_study_and_the_published_rows() -> None:
    assert recipes.names() == [*CIFAR, *IMAGENET]


def test_gates_only_leaves_the_weights_alone() -> None:
    config = recipes.get("cifar10-resnet20-gates-only")
    few = replace(config.train, epochs=2, predictor_warmup_steps=3)
    network = toys.dynamic()
    before = {name: value.clone() for name, value in network.named_parameters()}
    toys.fit(network, few)
    learned = {n for n, value in network.named_parameters() if not torch.equal(value, before[n])}
    assert learned and all("predictor" in name for name in learned)


@pytest.mark.parametrize("name", ["cifar10-resnet20-dynamic-40", *GOALS])
def test_a_dense_network_is_trained_as_long_as_the_pruned_one(name: str) -> None:
    pruned = recipes.get(name)
    dense = recipes.get(f"{pruned.model}-dense-30")
    assert dense.prune is None and pruned.prune is not None and dense.weights == pruned.weights
    assert dense.model == pruned.model
    gates = {"target_reduction": None, "predictor_warmup_steps": 0}
    assert dense.train == replace(pruned.train, **gates)  # type: ignore[arg-type]


def test_both_second_looks_are_held_to_the_fixed_mask_of_their_average() -> None:
    alone, look, sandwich = (recipes.get(name) for name in FIXED)
    assert alone.fixed and look.fixed and sandwich.fixed
    assert alone.train == look.train == sandwich.train and alone.train.distillation == 1
    assert replace(look.fixed, second_look="shared") == sandwich.fixed
    assert alone.fixed.mask_reduction == look.fixed.average_reduction == 0.4


@pytest.mark.parametrize("name", CIFAR)
def test_a_recipe_says_what_it_is_and_how_to_run_it(name: str) -> None:
    config, told = recipes.get(name), recipes.describe(name)
    assert f"ftwt train {name}" in told
    assert RunConfig.from_json(config.to_json()) == config
    assert config.model in models.names()
    assert name.startswith(config.model.replace("-x0.5", "-half"))
    assert config.data.dataset == "cifar10" and config.data.validation is None
    assert (config.weights is None) == (name in BASELINES)
    assert (config.prune is None) == (name in BASELINES or "-dense-" in name or name in FIXED)
    assert (config.fixed is not None) == (name in FIXED)
    assert BASELINES.get(name, "") in told
    if name in [*GOALS, *HELD_TO, *ROWS]:
        assert f"--weights runs/{config.model}-baseline" in told
        assert f"{config.model}-baseline" in recipes.names()


@pytest.mark.parametrize(
    "name",  # of one network, one budget in a default run
    [pytest.param(n, marks=[pytest.mark.slow][: n.endswith("dynamic-62")]) for n in GOALS],
)
def test_a_goal_is_a_budget_that_its_network_can_meet(name: str) -> None:
    reduction, lost = GOALS[name]
    config, told = recipes.get(name), recipes.describe(name)
    assert f"{reduction:.0%} fewer MACs" in told and f"{lost} lost" in told
    assert name == f"{config.model}-dynamic-{100 * reduction:.0f}"
    assert config.train.target_reduction == reduction
    assert config.allocate and config.train.distillation == 1
    assert config.prune is not None
    settings = asdict(config.prune)
    del settings["r"]
    network = models.create(config.model)
    plan = estimate(network, [torch.randn(2, 3, 32, 32)], **settings)
    assert plan.allocate(reduction=reduction).reduction == pytest.approx(reduction, abs=0.02)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_converts_as_published(name: str) -> None:
    r, published, units = ROWS[name]
    config, told = recipes.get(name), recipes.describe(name)
    assert published in told
    assert config.prune is not None and config.prune.r == r
    suffix = name.rpartition("-")[2]
    assert name == f"{config.model}-r{100 * r:.0f}-{suffix}"
    assert config.prune.mode == ("joint" if suffix == "joint" else "decoupled")
    assert config.prune.residual == ("after" if suffix == "after" else "before")
    assert config.prune.variant == ("uniform" if suffix == "uniform" else "mass")
    assert (config.prune.head, config.prune.saliency) == ("softmax", "peak")
    settings = config.model, replace(config.prune, r=1.0)
    rows = {row: recipes.get(row) for row in ROWS}
    like = [row for row, c in rows.items() if (c.model, replace(c.prune, r=1.0)) == settings]
    if name != like[0]:
        return  # the same network once more
    dynamic = convert(
        models.create(config.model), torch.randn(2, 3, 32, 32), **asdict(config.prune)
    )
    assert len(dynamic.predictors) == len(dynamic.units) == units
    assert dynamic.reasons == {}  # every convolution has a gate of its own
    assert list(dynamic.r.values()) == pytest.approx([r] * units)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_follows_the_published_schedule(name: str) -> None:
    train = recipes.get(name).train
    assert (train.epochs, train.batch_size, train.momentum, train.nesterov) == (
        200,
        128,
        0.9,
        False,
    )
    assert (train.weight_decay, train.mask_loss_weight) == (5e-4, 1.0)
    assert (train.predictor_lr, train.predictor_warmup_steps, train.anneal_epochs) == (0.1, 0, 0)
    schedule = Schedule(train, steps_per_epoch=10)
    lr = [schedule.network_lr(10 * epoch) for epoch in range(200)]
    assert schedule.cooldown_start == 1000
    if "mobilenet-v2" in name:
        assert lr[0] == 0.01 and lr[100] == pytest.approx(0.005) and lr[199] < 1e-5  # cosine
    else:
        drops = [epoch for epoch in range(1, 200) if lr[epoch] < lr[epoch - 1]]
        assert drops == [81, 122, 151]
        assert [lr[epoch] for epoch in (0, *drops)] == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5])


def test_a_models_name_is_a_recipe() -> None:
    config = recipes.get("cifar100-vgg11-bn")
    assert config.data.dataset == "cifar100"
    assert config.train == recipes.get("cifar10-vgg16-bn-r92-joint").train
    assert "cifar100-vgg11-bn" in recipes.describe("cifar100-vgg11-bn")


def test_an_unknown_recipe_gets_the_nearest_and_not_all_others() -> None:
    with pytest.raises(ValueError) as error:
        recipes.get("cifar10-resnet20-shrot")
    assert "the nearest: cifar10-resnet20-short, " in str(error.value)
    assert "`ftwt recipes` lists them" in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("name", IMAGENET)
def test_a_recipe_for_imagenet_says_what_it_is_and_how_to_run_it(name: str) -> None:
    config, told = recipes.get(name), recipes.describe(name)
    assert f"ftwt train {name} --data-root imagenet" in told and "Not run here" in told
    assert RunConfig.from_json(config.to_json()) == config
    assert config.model.startswith(("torchvision:", "timm:")) and config.weights == "pretrained"
    assert (config.data.dataset, config.data.validation) == ("folder", None)
    assert (config.train.precision, config.train.channels_last) == ("bf16", True)
    assert (config.prune is None) == name.endswith("-dense")
    assert not config.new_head


@pytest.mark.parametrize("name", IMAGENET_ROWS)
def test_a_row_of_imagenet_converts_as_published(name: str) -> None:
    r, published, cost, units = IMAGENET_ROWS[name]
    config, told = recipes.get(name), recipes.describe(name)
    assert published in told and f"{cost} on 4 V100" in told
    assert "schedule was not released" in " ".join(told.split())
    assert config.prune is not None and config.prune.r == r
    assert config.prune.mode == name.rpartition("-")[2]
    assert (config.prune.head, config.prune.saliency) == ("softmax", "peak")
    assert (config.train.epochs, config.train.batch_size, config.train.cooldown) == (60, 256, 0.5)
    if config.prune.mode == "joint" or r in (0.97, 0.93, 0.92) and "resnet34" in name:
        return  # the same network once more
    dynamic = convert(
        models.create(config.model), torch.randn(1, 3, 64, 64), **asdict(config.prune)
    )
    assert len(dynamic.predictors) == len(dynamic.units) == units
    assert list(dynamic.r.values()) == pytest.approx([r] * units)


def test_a_network_of_torchvision_or_timm_is_a_recipe_for_a_folder() -> None:
    config = recipes.get("timm:resnet50")
    assert config.model == "timm:resnet50" and config.data.dataset == "folder"
    assert config.train == recipes.get("imagenet-resnet18-r91-decoupled").train
    assert "ImageNet" in recipes.describe("timm:resnet50")
    pruned, dense = recipes.get("imagenet-resnet50"), recipes.get("imagenet-resnet50-dense")
    gates = {"target_reduction": None, "predictor_warmup_steps": 0}
    assert dense.train == replace(pruned.train, **gates)  # type: ignore[arg-type]
