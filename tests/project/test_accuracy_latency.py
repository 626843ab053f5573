"""The contest of accuracy and time, filters taken out for rivals; what files and processes take."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torch_pruning", reason='torch-pruning is not installed: ".[static]"')
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import accuracy_latency  # noqa: E402
import footprint  # noqa: E402
import subjects  # noqa: E402

import ftwt  # noqa: E402
import tiny  # noqa: E402
from ftwt.contest import turns  # noqa: E402
from ftwt.files.json import read_json  # noqa: E402
from ftwt.files.pictures import Preprocessing  # noqa: E402
from ftwt.models.resnet import resnet  # noqa: E402
from ftwt.records.fields import Fields  # noqa: E402
from ftwt.report.reading import parse  # noqa: E402

IMAGES = torch.randn(4, 3, 32, 32)


def masks(dynamic: ftwt.DynamicModel) -> dict[str, torch.Tensor]:
    """Half of the filters; what is added to one another, and masked after it, has one mask."""
    torch.manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    streams: dict[int, torch.Tensor] = {}
    for unit in dynamic.units:
        mask = torch.rand(unit.out_channels) < 0.5
        mask[0] = True
        if not unit.name.endswith("conv1"):
            mask = streams.setdefault(unit.out_channels, mask)
        found[unit.name] = mask
    return found


@pytest.mark.parametrize("residual", ["before", "after"])
def test_what_fixed_masks_leave_is_an_ordinary_smaller_network(residual: str) -> None:
    dense = resnet(8).eval()
    for module in dense.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.bias.data.normal_()
    dynamic = ftwt.convert(dense, IMAGES[:1], residual=residual, min_gain=-1.0)
    fixed = dynamic.fix(masks(dynamic)).eval()
    small = accuracy_latency.slim(fixed, dense, IMAGES[:1])
    with torch.inference_mode():
        torch.testing.assert_close(small(IMAGES), fixed(IMAGES), rtol=1e-3, atol=1e-4)
    count = [sum(p.numel() for p in net.parameters()) for net in (small, dense)]
    assert count[0] < 0.85 * count[1]


def test_every_contestant_is_asked_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = tiny.network().eval()
    images, labels = torch.randn(48, 3, 32, 32), torch.arange(48) % 10
    with torch.inference_mode():
        test = [(images, labels, network(images))]
    subject = subjects.Subject("tiny", network, images.split(16), 48, test, 0.1)
    monkeypatch.setattr(subjects, "of_cifar", lambda given, seed, few: subject)
    monkeypatch.setattr(accuracy_latency, "OUTPUT", tmp_path)
    monkeypatch.setattr(accuracy_latency, "THRESHOLD", 16)
    monkeypatch.setattr(turns, "REST_S", 0)
    monkeypatch.setattr(turns, "WARMUP_S", 0)

    def fail(*_: object) -> None:
        raise RuntimeError("not here")

    monkeypatch.setitem(accuracy_latency.BUILDERS, "openvino", fail)
    rivals = {name: accuracy_latency.RIVALS[name] for name in ("onnxruntime", "openvino")}
    monkeypatch.setattr(accuracy_latency, "RIVALS", rivals)
    monkeypatch.setattr(sys, "argv", ["x", "tiny", "--kinds", "greedy", "dynamic", "--timed", "4",
                                      "--rounds", "2", "--second-look"])  # fmt: skip
    accuracy_latency.main()
    path = tmp_path / "tiny.json"
    found = parse.contest(Fields(path, read_json(path)), "").result
    assert (found.images, found.timed, found.calibrated_on) == (32, 4, 48)
    names = {entry.name for entry in found.entries}
    assert names == {
        *(f"{pruning}, ftwt {bits}" for bits in ("f32", "int8")
          for pruning in ("dense", "fixed mask, 30%", "gates, 30%", "second look, 30%")),
        "dense, onnxruntime f32", "fixed mask, 30%, onnxruntime f32",
    }  # fmt: skip
    assert found.left_out["dense, openvino f32"] == "RuntimeError: not here"
    by_name = {entry.name: entry for entry in found.entries}
    dense = by_name["dense, ftwt f32"]
    with torch.inference_mode():
        right = network(images[16:]).argmax(1) == labels[16:]
    assert dense.top1 == pytest.approx(float(right.float().mean())) and dense.reduction == 0
    assert by_name["fixed mask, 30%, onnxruntime f32"].reduction == pytest.approx(0.3, abs=0.1)
    assert found.front[0].latency_ms == min(entry.latency_ms for entry in found.entries)


def test_eight_bits_take_a_quarter_and_no_torch(tiny_home: Path) -> None:
    whole, small = footprint.measure(tiny.NAME, runs=20)
    assert (whole["precision"], small["precision"]) == ("f32", "int8")
    assert small["weight_bytes"] * 4 == whole["weight_bytes"] < whole["file_bytes"]
    for row in (whole, small):
        assert row["runs"] == 20 and 0 < row["bare_mb"] < row["peak_mb"] < 1000
        assert row["load_ms"] > 0 and row["growth_mb"] < 5


def test_every_second_picture_tests_and_the_others_are_fitted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        picture = np.full((40, 40, 3), 6 * number, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number % 10:03d}_{number:02d}.jpg")
    how = Preprocessing(resize=32, crop=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    monkeypatch.setattr(subjects, "imagenet", lambda weights: (tiny.network().eval(), how))
    asked: list[subjects.Subject] = []
    monkeypatch.setattr(
        accuracy_latency, "contest", lambda subject, given: asked.append(subject) or sys.exit()
    )
    flags = ["--imagenet", str(tmp_path), "--weights", "net.safetensors", "--images", "20"]
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit):
        accuracy_latency.main()
    (subject,) = asked
    shades = [
        {round(255 * float(image.mean()) / 6) for batch in parts for image in batch}
        for parts in (subject.fitted, [images for images, _, _ in subject.test])
    ]
    assert [len(each) for each in shades] == [20, 20] and len(set.union(*shades)) == 40
    labels = torch.cat([right for _, right, _ in subject.test])
    assert subject.images == 20 and subject.name == "imagenet-net" and len(labels) == 20
