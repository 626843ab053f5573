"""What the committed sweep over other networks must show, and what its stages can tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("convert", "open", "macs", "estimate", "step", "save", "engine")


def networks(library: str) -> dict[str, Any]:
    return json.loads((ROOT / f"results/coverage/{library}.json").read_text())["networks"]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import stages

    yield stages
    sys.modules.pop("stages")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_every_network_was_tried(library: str) -> None:
    file = json.loads((ROOT / f"results/coverage/{library}.json").read_text())
    assert len(file["networks"]) == file["all"] >= 80


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_nothing_crashed_and_no_figure_is_wrong(library: str) -> None:
    for key, found in networks(library).items():
        for stage, result in found["stages"].items():
            assert result["ok"] or result["end"] in ("refused", "size"), (key, stage, result)


def test_every_classifier_of_torchvision_converts_and_is_exact() -> None:
    for key, found in networks("torchvision").items():
        if not found.get("attention"):
            assert all(found["stages"][stage]["ok"] for stage in ("convert", "open")), key


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_no_network_is_off_by_a_thousandth_of_the_second_count(library: str) -> None:
    for key, found in networks(library).items():
        if found["stages"]["convert"]["ok"]:
            macs = found["stages"]["macs"]
            held = macs["ok"] and (macs["off"] <= 1e-3 or macs["uncounted"])
            assert held or macs["end"] == "size", (key, macs)


def test_nearly_all_families_of_timm_convert_and_are_exact() -> None:
    found = [n for n in networks("timm").values() if n.get("convolutions", 2) > 1]
    exact = [n for n in found if all(n["stages"].get(s, {}).get("ok") for s in ("convert", "open"))]
    assert len(exact) >= 0.95 * len(found)


class Net(nn.Module):
    """A network of three convolutions whose forward can be spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def run(stages: Any, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> dict[str, Any]:
    monkeypatch.setattr(stages.models, "create", lambda name: model)
    return stages.examine("a:network")["stages"]


def test_a_network_goes_through_all_stages(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ftwt.runtime._native")
    found = run(stages, monkeypatch, Net())
    assert tuple(found) == STAGES
    assert all(result["ok"] for result in found.values()), found
    assert found["convert"]["units"] == 2 and found["convert"]["gated_share"] > 0.99


def test_what_goes_wrong_is_seen(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Net):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if type(x) is torch.Tensor:
                Counting.calls += 1  # of these, three are the conversion's own comparisons
            return super().forward(x) + (Counting.calls > 4)

    found = run(stages, monkeypatch, Counting())
    assert found["open"]["end"] == "wrong" and "deviate" in found["open"]["reason"]


def test_a_refusal_of_ours_is_told_from_a_crash(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Branching(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() < torch.inf else x

    found = run(stages, monkeypatch, Branching())
    assert list(found) == ["convert"]
    assert found["convert"]["end"] == "refused" and "cannot trace" in found["convert"]["reason"]

    def fails(*arguments: Any, **options: Any) -> None:
        int("no number")  # a ValueError, and none of ours

    monkeypatch.setattr(stages.ftwt, "convert", fails)
    assert run(stages, monkeypatch, Net())["convert"]["end"] == "crashed"


@pytest.mark.parametrize(
    ("name", "one_size", "last"),
    [
        # only its convolutions pad by the size of the image, and they are not looked into
        ("timm:tf_mobilenetv3_small_minimal_100", False, "engine"),
        pytest.param(  # windows, as many as there are
            "timm:efficientvit_m0", True, "save", marks=pytest.mark.slow
        ),
    ],
)
def test_networks_that_torch_cannot_trace(
    stages: Any, name: str, one_size: bool, last: str
) -> None:
    pytest.importorskip("ftwt.runtime._native")
    found = stages.examine(name)["stages"]
    assert found["convert"]["one_size"] is one_size and found["convert"]["units"] > 30
    for stage in STAGES[: STAGES.index(last) + 1]:
        assert found[stage]["ok"], (stage, found[stage])
    assert found["engine"].get("end", "refused") == "refused"
