import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from ftwt import models
from ftwt.models.resnet import resnet
from toys import Toy

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
LARGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


class Functional(nn.Module):
    """Norms, activations, dropout and pools as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(images)), inplace=True)
        x = F.dropout(F.silu(self.conv2(x)), 0.4, training=self.training)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def state(model: nn.Module) -> dict[str, Any]:
    """All that one could see of a network."""
    modules = {name: (id(m), m.training, sorted(vars(m))) for name, m in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    ids = {name: id(value) for name, value in model.named_parameters()}
    return {"modules": modules, "values": values, "ids": ids}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [Toy, Functional, lambda: resnet(8)])
def test_the_given_network_is_never_changed(make: Callable[[], nn.Module], training: bool) -> None:
    model = make().train(training)
    before = state(model)
    dynamic = ftwt.convert(model, LARGE, min_gain=0.0)
    assert all(module.training is training for module in dynamic.modules())
    dynamic.train()
    for gates in ("open", "predicted", "target"):
        dynamic(LARGE, gates=gates).sum().backward()
    with torch.no_grad():
        for parameter in dynamic.parameters():
            parameter.add_(1)
    after = state(model)
    values = zip(before.pop("values").values(), after.pop("values").values(), strict=True)
    assert all(torch.equal(old, new) for old, new in values)
    assert before == after
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("options", [{}, {"residual": "after", "depthwise": "gate"}], ids=str)
@pytest.mark.parametrize(
    "make", [lambda: resnet(8), lambda: models.create("cifar10-mobilenet-v2", width=0.25)]
)
def test_restore_gives_a_plain_network_under_the_original_names(make: Any, options: Any) -> None:
    model = make()
    dynamic = ftwt.convert(model, LARGE, **options)
    with torch.no_grad():
        for parameter in dynamic.network_parameters():
            parameter.mul_(1.1)  # as if trained
    plain = dynamic.eval().restore()
    assert list(plain.state_dict()) == list(model.state_dict())
    assert torch.equal(plain(LARGE), dynamic(LARGE, gates="open"))
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.eval()(LARGE), plain(LARGE))
    before = dynamic(LARGE, gates="open")
    nn.init.zeros_(next(plain.parameters()))
    assert torch.equal(dynamic(LARGE, gates="open"), before)
    again = ftwt.convert(plain, LARGE, **options)
    assert [u.name for u in again.units] == [u.name for u in dynamic.units]


def test_restore_keeps_the_training_behaviour() -> None:
    model = Functional().train()
    plain = ftwt.convert(model, IMAGES).restore()
    assert plain.training
    assert plain.state_dict().keys() == model.state_dict().keys()
    torch.manual_seed(1)
    expected = model(IMAGES)
    torch.manual_seed(1)
    assert torch.equal(plain(IMAGES), expected)


def test_operations_in_place_whose_result_is_not_used_still_happen() -> None:
    class InPlace(Toy):
        def forward(self, images: Tensor) -> Tensor:
            x = self.features[1](self.features[0](images))
            F.relu_(x)
            return self.classifier(self.features[3](x).mean((2, 3)))

    model = InPlace().eval()
    dynamic = ftwt.convert(model, IMAGES)
    assert torch.equal(dynamic(IMAGES, gates="open"), model(IMAGES))
    assert torch.equal(dynamic.restore()(IMAGES), model(IMAGES))
    dynamic.gates["features.0"].predictor.linear.bias.data[:4] = -1
    gates = dynamic(IMAGES, return_gates=True)[1]
    x = (
        model.features[1](model.features[0](IMAGES)).relu()
        * gates["features.0"].mask[..., None, None]
    )
    assert torch.equal(dynamic(IMAGES), model.classifier(model.features[3](x).mean((2, 3))))


def test_functional_layers_make_units_and_dropout_still_follows_the_mode() -> None:
    dynamic = ftwt.convert(Functional(), IMAGES)
    assert [unit.name for unit in dynamic.units] == ["conv1", "conv2"]
    assert not torch.equal(dynamic.train()(IMAGES), dynamic(IMAGES))
    assert torch.equal(dynamic.eval()(IMAGES), dynamic(IMAGES))


def test_a_one_dimensional_network_converts() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 8, 3, groups=2), nn.GELU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    sounds = torch.randn(4, 2, 40)
    dynamic = ftwt.convert(model, sounds, r=0.6).eval()
    assert torch.equal(dynamic(sounds, gates="open"), model.eval()(sounds))
    masked, gates = dynamic(sounds, gates="target", return_gates=True)
    assert not torch.equal(masked, model(sounds))
    count = dynamic.macs({name: gate.mask for name, gate in gates.items()})
    assert count.dense == 36 * 5 * 2 * 6 + 34 * 3 * 6 * 8 // 2 + 8 * 3
    assert 0 < count.reduction.mean() < 1


def test_networks_of_other_precisions_and_memory_formats_convert() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, images = Toy().to(dtype).eval(), IMAGES.to(dtype)
        dynamic = ftwt.convert(model, images)
        assert dynamic(images, gates="target").dtype == dynamic(images).dtype == dtype
        assert torch.equal(dynamic(images, gates="open"), model(images))
    model = Toy().to(memory_format=torch.channels_last).eval()
    dynamic = ftwt.convert(model, IMAGES)
    images = IMAGES.to(memory_format=torch.channels_last)
    assert torch.equal(dynamic(images, gates="open"), model(images))


def test_several_inputs_and_outputs_pass_through() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.hidden, self.classifier = nn.Linear(8, 5), nn.Linear(5, 4)

        def forward(self, a: Tensor, b: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
            both = F.relu(self.left(a)) + scale * F.relu(self.right(b))
            features = self.hidden(both.mean((2, 3)))
            return {"logits": self.classifier(features), "features": features}

    model = Pair().eval()
    dynamic = ftwt.convert(model, (IMAGES, -IMAGES))
    for inputs in ((IMAGES, -IMAGES), (IMAGES, IMAGES, 3.0)):
        expected, found = model(*inputs), dynamic(*inputs, gates="open")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_config_is_json_and_converts_alike() -> None:
    model = models.create("cifar10-mobilenet-v2", width=0.25)
    options = {
        "r": {"stem.conv": 0.5}, "mode": "joint", "saliency": "energy", "variant": "uniform",
        "pool": "both", "head": "softmax", "rank": 3, "straight_through": True,
        "residual": "after", "depthwise": "gate",
    }  # fmt: skip
    dynamic = ftwt.convert(model, LARGE, **options, skip=["stage3"], min_gain=0.001)
    config = json.loads(json.dumps(dynamic.config))
    assert options.items() <= config.items()
    again = ftwt.convert(model, LARGE, **config, min_gain=-torch.inf)
    assert again.units == dynamic.units
    assert again.r == dynamic.r and again.r["stem.conv"] == 0.5
    assert sorted(set(again.r.values())) == pytest.approx([0.5, 0.9])
    assert again.reasons.keys() == dynamic.reasons.keys()
    again.load_state_dict(dynamic.state_dict())


# --- what cannot be converted


def test_converting_twice_is_an_error() -> None:
    converted = ftwt.convert(Toy(), IMAGES)
    for model in (converted, nn.Sequential(converted), converted.network):
        with pytest.raises(
            ValueError, match="dynamic already; convert the one that it was made of"
        ):
            ftwt.convert(model, IMAGES)
    twin = converted.freeze([(IMAGES, torch.zeros(2))])
    for model in (twin, twin.network):
        with pytest.raises(ValueError, match="dynamic already"):
            ftwt.convert(model, IMAGES)


def test_a_network_that_cannot_be_traced_is_an_error_and_stays_as_it_was() -> None:
    class Branches(Toy):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if images.mean() > 0 else -images)

    model = Branches().train()
    before = state(model)["modules"]
    with pytest.raises(ValueError, match="cannot trace Branches: .*must not branch on the values"):
        ftwt.convert(model, IMAGES)
    assert state(model)["modules"] == before


def test_a_network_without_units_warns_and_names_why() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    with pytest.warns(UserWarning, match="no unit found in Sequential: it has no convolution"):
        dynamic = ftwt.convert(flat, IMAGES)
    assert torch.equal(dynamic(IMAGES), flat(IMAGES))
    assert dynamic(IMAGES, return_gates=True)[1] == {}
    assert torch.equal(dynamic.restore()(IMAGES), flat(IMAGES))
    with pytest.warns(UserWarning, match="0: its filters are the network's outputs"):
        ftwt.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGES)
    with pytest.warns(UserWarning, match="features.3: skipped on request"):
        ftwt.convert(Toy(), IMAGES, skip="features")


@pytest.mark.parametrize("r", [0, -1, 2, float("nan"), 1.0001, "0.9", None])
@pytest.mark.parametrize("single", [True, False])
def test_r_outside_its_range_is_an_error(r: Any, single: bool) -> None:
    with pytest.raises(ValueError, match=r"r=.* for unit 'features.0': .* in \(0, 1\]"):
        ftwt.convert(Toy(), IMAGES, r=r if single else {"features.0": r})


def test_an_unknown_unit_is_an_error_that_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown unit 'feature.3'; did you mean 'features.3'"):
        ftwt.convert(Toy(), IMAGES, r={"features.0": 0.5, "feature.3": 0.5})


def test_r_may_be_one_number_or_each_units_own() -> None:
    assert ftwt.convert(Toy(), IMAGES, r=1).r == dict.fromkeys(ftwt.convert(Toy(), IMAGES).r, 1.0)
    found = ftwt.convert(Toy(), IMAGES, r={"features.3": 0.5}).r
    assert found == pytest.approx({"features.0": 0.9, "features.3": 0.5, "features.6": 0.9})


@pytest.mark.parametrize(
    "option", ["mode", "saliency", "variant", "pool", "head", "residual", "depthwise"]
)
def test_unknown_options_are_errors_that_list_the_valid_ones(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}='best': use one of .*, "):
        ftwt.convert(Toy(), IMAGES, **{option: "best"})
    with pytest.raises(ValueError, match="rank=0: give a width of at least 1"):
        ftwt.convert(Toy(), IMAGES, rank=0)


# --- what is left out


def test_convolutions_are_skipped_by_name_prefix_or_predicate() -> None:
    def left(skip: Any) -> set[str]:
        dynamic = ftwt.convert(resnet(8), LARGE, skip=skip)
        reasons = dynamic.reasons
        assert set(reasons.values()) <= {"skipped on request"}
        assert len(reasons) + len(dynamic.units) == 7
        return set(reasons)

    stage = {"stage1.0.conv1", "stage1.0.conv2"}
    assert left("stage1") == left(["stage1"]) == left("stage1.0") == stage
    assert left(["stage1.0.conv2", "conv"]) == {"stage1.0.conv2", "conv"}
    assert left(lambda name: name.startswith("stage1")) == stage
    assert left(()) == set()
    with pytest.raises(ValueError, match="skip names no convolution: 'stage'; "):
        left("stage")
    with pytest.raises(ValueError, match="'stage1.0.conv3'; did you mean 'stage1.0.conv"):
        left(["stage1.0.conv1", "stage1.0.conv3"])


def test_documented_reasons_are_given_in_real_networks() -> None:
    def reasons(name: str) -> dict[str, str]:
        return ftwt.convert(models.create(f"torchvision:{name}"), torch.randn(2, 3, 64, 64)).reasons

    assert reasons("squeezenet1_0")["classifier.1"] == "its filters are the network's outputs"
    shortcut = "a shortcut: the main branch of its block has the gate"
    assert reasons("resnet18") == dict.fromkeys(
        (f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)), shortcut
    )
    found = reasons("mobilenet_v3_small")
    for layer in ("fc1", "fc2"):
        assert "squeeze-excitation" in found[f"features.1.block.1.{layer}"]
    shared = Toy()
    shared.features[6] = shared.features[3]
    assert ftwt.convert(shared, IMAGES).reasons == {
        "features.3": "called 2 times: one mask cannot serve them all"
    }
    costly = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 1, 4), Flat(8))
    assert ftwt.convert(costly, torch.randn(2, 3, 2, 2)).reasons == {
        "2": "sees a single position, as in squeeze-excitation"
    }


def test_a_convolution_of_what_is_no_image_has_no_gate() -> None:
    class Positions(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.grid, self.embed = nn.Parameter(torch.rand(1, 2, 8, 8)), nn.Conv2d(2, 8, 1)

        def forward(self, images: Tensor) -> Tensor:
            x = self.features[0](images) + F.relu(self.embed(self.grid))
            return self.classifier(self.features[3](x).mean((2, 3)))

    dynamic = ftwt.convert(Positions(), IMAGES)
    assert dynamic.reasons == {"embed": "its input is the same for all images"}
    assert dynamic.macs({"features.0": torch.ones(2, 8).bool()}).executed.shape == (2,)


class Flat(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def test_a_gate_that_costs_more_than_its_convolution_is_not_built() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 2, groups=16), nn.ReLU(), Flat(16)
    )
    images = torch.randn(2, 3, 4, 4)
    options = {"depthwise": "gate"}
    assert ftwt.convert(model, images, **options).reasons == {
        "2": "its predictor would cost as much as the convolution"
    }
    assert not ftwt.convert(model, images, **options, rank=1).reasons
    assert not ftwt.convert(model, images, **options, min_gain=-1).reasons


def test_min_gain_leaves_out_gates_that_save_too_little_and_says_so() -> None:
    model = Toy()
    every = ftwt.convert(model, IMAGES, r=0.5)
    gates = every.eval()(IMAGES, gates="open", return_gates=True)[1]
    gains = {}
    for name, gate in gates.items():
        count = every.macs({name: gate.target})
        executed = sum(count.layers.values()) + count.predictors[name]
        gains[name] = 1 - executed.mean().item() / count.dense
    least, *others = sorted(gains, key=gains.__getitem__)
    limit = (gains[least] + gains[others[0]]) / 2
    dynamic = ftwt.convert(model, IMAGES, r=0.5, min_gain=limit)
    assert {unit.name for unit in dynamic.units} == set(others)
    assert dynamic.reasons == {
        least: f"its gate saves {gains[least]:.2%} of all MACs, below min_gain={limit:g}"
    }
    with pytest.warns(UserWarning, match="no unit found.*below min_gain=2"):
        ftwt.convert(model, IMAGES, min_gain=2)
