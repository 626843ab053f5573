"""Networks that are no image classifiers: sound, video, pixels, detectors, several outputs."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from test_macs import assert_counted
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ftwt
from brute_force import positive, random_gates
from ftwt.models.vision import import_vision


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and others': known by its name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, 0.5 + torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Residual3d(nn.Module):
    """A residual block on volumes, its convolution split into space and time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(channels, 6, (1, 3, 3), padding=(0, 1, 1))
        self.norm1 = nn.BatchNorm3d(6)
        self.time = nn.Conv3d(6, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.time(F.relu(self.norm1(self.space(x))))))


def sound() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.MaxPool1d(2),
        nn.Conv1d(8, 12, 3, groups=2), nn.LeakyReLU(), nn.AdaptiveAvgPool1d(2),
        nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1), nn.BatchNorm3d(8), nn.ReLU(),
        Residual3d(8), nn.MaxPool3d(2), nn.Conv3d(8, 8, 3, padding=1), nn.SiLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def widths(model: nn.Module) -> tuple[list[str], Tensor]:
    if any(isinstance(module, nn.Conv1d) for module in model.modules()):
        return ["0", "3", "6"], torch.rand(3, 3, 40)
    return ["0", "3.space", "3.time", "5"], torch.rand(3, 3, 4, 8, 8)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested outputs, with the places where they are."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def same(ours: Any, theirs: Any) -> bool:
    pairs = zip(tensors(ours), tensors(theirs), strict=True)
    keys = not isinstance(theirs, dict) or list(ours) == list(theirs)
    return keys and all(torch.equal(a, b) for a, b in pairs)


def check_exact(model: nn.Module, dynamic: ftwt.DynamicModel, inputs: Tensor) -> None:
    """Gates that stand open change nothing; dense work is torch's; restoring gives the original."""
    model.eval(), dynamic.eval()
    with torch.no_grad():
        expected = model(inputs)
        output, gates = dynamic(inputs, gates="open", return_gates=True)
        assert same(output, expected) and same(dynamic(inputs, gates="open"), expected)
        assert gates.keys() == dynamic.gates.keys()
        assert same(dynamic.restore()(inputs), expected)
        with FlopCounterMode(display=False) as counter:
            model(inputs[:1])
    assert 2 * dynamic.macs({}).dense == counter.get_total_flops()


def check_the_way(model: nn.Module, inputs: Tensor, folder: Path, **options: Any) -> None:
    """Estimate without labels, a step with a loss of one's own, calibrate, freeze, save, load."""
    plan = ftwt.estimate(model, inputs.split(1), **options)
    reduction = (min(plan.reduction) + max(plan.reduction)) / 2
    dynamic = ftwt.convert(model, inputs, r=plan.r_for(reduction=reduction), **options).train()
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    sgd = torch.optim.SGD(dynamic.parameters(), lr=0.01)
    for _ in range(2):
        sgd.zero_grad()
        outputs, gates = dynamic(inputs, return_gates=True)
        loss = sum(part.float().square().mean() for part in tensors(outputs))
        (loss + ftwt.mask_loss(gates)).backward()
        sgd.step()
    for part, name in ((dynamic.network_parameters, "network"), (dynamic.predictor_parameters, "")):
        assert any(parameter.grad is not None for parameter in part()), name
    after = dynamic.state_dict()
    for unit in dynamic.gates:
        name = f"network.ftwt_gates.{unit}.predictor.linear.bias"
        assert not torch.equal(before[name], after[name])
    dynamic.eval()
    calibrated = ftwt.calibrate(dynamic, [inputs], reduction=reduction)
    assert calibrated.images == len(inputs)
    twin = dynamic.freeze(inputs.split(1)).eval()
    for network in (dynamic, twin):
        ftwt.save_pretrained(network, folder)
        again = ftwt.from_pretrained(folder, model=model)
        with torch.no_grad():
            assert same(again(inputs), network(inputs))
    _, gates = twin(inputs, return_gates="masks")
    executed = twin.macs({unit: gate.mask for unit, gate in gates.items()}).executed
    assert len(executed) == len(inputs) and (executed <= twin.macs({}).dense).all()


@pytest.mark.parametrize("make", [sound, video])
def test_sound_and_video(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    units, inputs = widths(model)
    dynamic = ftwt.convert(model, inputs)
    assert [unit.name for unit in dynamic.units] == units
    assert not dynamic.channels.unknown
    check_exact(model, dynamic, inputs)
    check_the_way(model, inputs, tmp_path)
    with pytest.raises(ValueError, match="only images .* can be lowered.*in PyTorch"):
        ftwt.compile(dynamic)


@pytest.mark.parametrize(
    "options", [{}, {"residual": "after", "depthwise": "gate", "head": "softmax"}], ids=str
)
@pytest.mark.parametrize("make", [sound, video])
def test_the_work_on_sound_and_video_is_what_matters(
    make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    model = make()
    inputs = widths(model)[1].double()
    dynamic = ftwt.convert(positive(model), inputs, **options)
    random_gates(dynamic, len(inputs))
    assert_counted(dynamic, inputs)


@pytest.mark.parametrize("make", [sound, video])
def test_classifiers_of_sound_and_video_train_and_are_recorded(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = make()
    inputs = widths(model)[1]
    batches = [(inputs.repeat(4, *[1] * (inputs.dim() - 1)), torch.arange(12) % 4)] * 2
    dynamic = ftwt.convert(model, inputs, r=0.8)
    config = ftwt.TrainConfig(epochs=1, target_reduction=0.1, channels_last=True)
    with pytest.raises(ValueError, match="channels_last=True with .* a layout of images"):
        ftwt.train(dynamic, batches, batches, config, progress=False)
    config = ftwt.TrainConfig(epochs=1, distillation=1.0)
    ftwt.train(dynamic, batches, batches, config, teacher=model, progress=False)
    found = ftwt.evaluate(dynamic, batches)
    assert found.images == 24 and len(found.units) == len(dynamic.gates)
    with pytest.raises(ValueError, match="is no picture .*; images=0 records everything else"):
        ftwt.record(dynamic, batches)
    recording = ftwt.record(dynamic, batches, images=0)
    assert recording.executed_macs.mean() == pytest.approx(found.executed_macs, rel=1e-6)
    recording.save(tmp_path / "recording.safetensors")
    again = ftwt.Recording.load(tmp_path / "recording.safetensors")
    assert len(again.labels) == 24 and not len(again.shown)


class Pair(NamedTuple):
    """Two outputs."""

    one: Tensor
    two: Tensor


@dataclass
class Filled:
    """Two outputs."""

    one: Tensor
    two: Tensor


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda a, b: {"out": a, "aux": b},
    "ordered": lambda a, b: OrderedDict(out=a, aux=b),
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "named tuple": Pair,
    "dataclass": Filled,
    "nested": lambda a, b: {"maps": [a, {"deep": b}], "first": a},
}


class Heads(nn.Module):
    """A trunk and two heads, whose results are put together in some way."""

    def __init__(self, gather: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.gather = gather
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 6, 3, bias=False)
        self.one, self.two = nn.Conv2d(6, 2, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        return self.gather(self.one(F.relu(self.b(y))), self.two(y))


def plain(value: Any) -> Any:
    """Dataclasses as dicts."""
    return vars(value) if isinstance(value, Filled) else value


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_form_come_back(name: str, tmp_path: Path) -> None:
    model = Heads(OUTPUTS[name]).eval()
    x = torch.randn(2, 3, 8, 8)
    dynamic = ftwt.convert(model, x).eval()
    assert [unit.name for unit in dynamic.units] == ["a", "b"]
    assert dynamic.reasons.keys() == {"one", "two"} and not dynamic.channels.unknown
    expected, found = model(x), dynamic(x, gates="open")
    assert type(found) is (dict if name == "ordered" else type(expected))
    assert same(plain(found), plain(expected))
    assert same(plain(dynamic(x, gates="open", return_gates=True)[0]), plain(expected))
    ftwt.save_pretrained(dynamic, tmp_path)
    for network in (ftwt.from_pretrained(tmp_path, model=model), dynamic.freeze([x])):
        assert type(network(x)) is type(found)
        assert same(plain(network(x, gates="open")), plain(expected))
    mask = torch.arange(8)[None] < 5
    layers = dynamic.macs({"a": mask}).layers
    work = {"a": 36 * 9 * 3 * 5, "b": 16 * 9 * 5 * 6, "one": 16 * 6 * 2, "two": 36 * 5 * 3}
    assert {name: macs.item() for name, macs in layers.items()} == work


def test_what_scores_logits_refuses_other_outputs_and_names_the_way_out() -> None:
    model = Heads(OUTPUTS["dict"])
    batches = [(torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))]
    dynamic = ftwt.convert(model, batches[0][0])
    config = ftwt.TrainConfig(epochs=1)
    for network in (model, dynamic):
        for act in (
            lambda n=network: ftwt.evaluate(n, batches),
            lambda n=network: ftwt.record(n, batches),
            lambda n=network: ftwt.train(n, batches, batches, config, progress=False),
        ):
            with pytest.raises(ValueError, match="returns .*dict; only logits .*any-model.md"):
                act()
    maps = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=r"returns a tensor of shape \(2, 4, 8, 8\)"):
        ftwt.evaluate(maps, batches)
    with pytest.raises(ValueError, match="an engine needs one tensor"):
        ftwt.compile(dynamic)


@torch.fx.wrap
def both(x: Tensor) -> dict[str, Tensor]:
    return {"one": x, "two": 2 * x}


def test_a_dict_inside_a_network_is_never_counted_as_nothing() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(both(F.relu(self.a(x)))["two"])

    x = torch.randn(2, 3, 8, 8)
    dynamic = ftwt.convert(Inside(), x)
    layers = dynamic.macs({"a": torch.arange(8)[None] < 5}).layers
    assert layers["a"].item() == 36 * 9 * 3 * 5
    assert layers["b"].item() == 16 * 9 * 8 * 4  # what a dict holds counts as active
    assert "both (both)" in dynamic.channels.unknown


def test_a_frozen_batch_norm_is_part_of_its_unit() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), FrozenBatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=False), FrozenBatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    dynamic = ftwt.convert(model, x).eval()
    assert [unit.end for unit in dynamic.units] == ["_2", "_5"]
    check_exact(model, dynamic, x)
    mask = torch.arange(8)[None] < 5
    assert dynamic.macs({"0": mask}).layers["3"].item() == 16 * 9 * 5 * 6
    engine = ftwt.compile(dynamic, engine="reference")
    with torch.no_grad():
        assert torch.allclose(engine(x), dynamic(x), atol=1e-5)


TORCHVISION: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...], int]] = {
    "fcn_resnet50": (
        lambda m: m.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True),
        (3, 64, 64),
        51,
    ),
    "deeplabv3_resnet50": (
        lambda m: m.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None),
        (3, 64, 64),
        55,
    ),
    "lraspp_mobilenet_v3_large": (
        lambda m: m.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None),
        (3, 64, 64),
        47,
    ),
    "fasterrcnn_resnet50_fpn": (
        lambda m: m.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone,
        (3, 64, 64),
        53,
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": (
        lambda m: (
            m.detection.fasterrcnn_mobilenet_v3_large_fpn(
                weights=None, weights_backbone=None
            ).backbone
        ),
        (3, 64, 64),
        48,
    ),
    "retinanet_resnet50_fpn": (
        lambda m: m.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).backbone,
        (3, 64, 64),
        52,
    ),
    "ssd300_vgg16": (
        lambda m: m.detection.ssd300_vgg16(weights=None, weights_backbone=None).backbone,
        (3, 300, 300),
        17,
    ),
    "ssdlite320_mobilenet_v3_large": (
        lambda m: (
            m.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).backbone
        ),
        (3, 128, 128),
        47,
    ),
    "r3d_18": (lambda m: m.video.r3d_18(), (3, 8, 32, 32), 17),
    "mc3_18": (lambda m: m.video.mc3_18(), (3, 8, 32, 32), 17),
    "r2plus1d_18": (lambda m: m.video.r2plus1d_18(), (3, 8, 32, 32), 34),
    "s3d": (lambda m: m.video.s3d(), (3, 16, 224, 224), 77),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    make, shape, units = TORCHVISION[name]
    model = make(import_vision("torchvision").models)
    images = torch.randn(2, *shape)
    dynamic = ftwt.convert(model, images)
    assert len(dynamic.units) == units
    assert [n for n in dynamic.channels.unknown if "normalize" not in n] == []
    check_exact(model, dynamic, images)
    if shape[-1] <= 128:
        check_the_way(model, images, tmp_path)


LINEAR: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "vgg16": ((3, 32, 32), 2, {"rank": 16}),
    "convnext_tiny": ((3, 64, 64), 18, {}),
    "vit_b_32": ((3, 224, 224), 12, {}),
    "swin_t": ((3, 64, 64), 12, {"rank": 16}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR)
def test_linear_units_of_torchvision(name: str) -> None:
    shape, units, options = LINEAR[name]
    model = ftwt.models.create(f"torchvision:{name}")
    images = torch.randn(2, *shape)
    dynamic = ftwt.convert(model, images, linear=True, **options)
    assert sum(unit.kind == "linear" for unit in dynamic.units) == units
    check_exact(model, dynamic, images)
    plan = ftwt.estimate(model, [images], linear=True, **options)
    assert 0 < max(plan.reduction) < 1
