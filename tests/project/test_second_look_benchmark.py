"""The benchmark of second looks, and the rows of its table."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
for folder in ("benchmarks", "tools"):
    sys.path.insert(0, str(ROOT / folder))

import second_look as benchmark  # noqa: E402
import subjects  # noqa: E402
from outputs import Kept, Scored  # noqa: E402
from tables.fitting import looked  # noqa: E402

from ftwt.fitting.second_look import Seen  # noqa: E402
from ftwt.models.resnet import resnet  # noqa: E402

COUNT = 20


def guessing(classes: Tensor, *, sure: Tensor) -> Tensor:
    """Outputs (N, 3) that guess these classes; `sure` or hardly."""
    return torch.eye(3)[classes] * torch.where(sure, 9.0, 0.1)[:, None]


def test_first_passes_that_were_kept_are_not_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = torch.randn(COUNT, 3, 32, 32), torch.zeros(COUNT, dtype=torch.long)
    subject = subjects.subject_of("toy", resnet(8).eval(), [images], COUNT, [(images, labels)])
    kept = Kept(tmp_path, f"toy-{COUNT}-seed4", {"commit": "abc"})
    same = torch.ones(COUNT, dtype=torch.bool)
    for cut, kind in ((0.1, "greedy"), (0.2, "greedy"), (0.2, "mixed")):
        scored = Scored(guessing(labels, sure=same), same, same, torch.full((COUNT,), cut).double())
        kept.write(f"{cut}-{kind}-repaired", scored, {})

    def refused(*_: Any) -> Any:
        raise ValueError("no gate wins")

    monkeypatch.setattr(benchmark, "candidate", refused)
    given = argparse.Namespace(
        outputs=tmp_path, firsts=[0.2, 0.3], averages=[0.1], trained=None, seed=4
    )
    found = list(benchmark.firsts(given, subject, {"commit": "def"}, whole=1000))
    told = [(each["cut"], each["kind"], each["fitted_at"]["commit"]) for each, _ in found]
    assert told == [(0.1, "greedy", "abc"), (0.2, "greedy", "abc"), (0.2, "mixed", "abc")]
    assert [float(macs.mean()) for _, (_, macs) in found] == pytest.approx([900, 800, 800])


def test_each_half_is_scored_by_the_threshold_of_the_other() -> None:
    labels = torch.arange(COUNT) % 3
    wrong = torch.arange(COUNT) < COUNT // 2  # an image of two, in both halves, and unsure of it
    first = guessing(torch.where(wrong, (labels + 1) % 3, labels), sure=~wrong)
    costs = torch.full((COUNT,), 100.0).double()
    second = guessing(labels, sure=torch.ones_like(wrong))
    seen = Seen([(first, 0.2 * costs), (second, costs)], 100)
    told = {"kind": "mixed", "cut": 0.8}
    one, other = benchmark.look(seen, labels, told, 0.3)
    for row in (one, other):
        assert (row["kind"], row["first_cut"], row["average_cut"]) == ("mixed", 0.8, 0.3)
        assert row["again"] == 0.5 and row["images"] == COUNT // 2
        assert row["top1"] == row["agreement"] == 1.0 > row["by_lot_top1"]
        assert row["reduction"] == pytest.approx(0.3)
    assert (one["threshold_from_half"], other["threshold_from_half"]) == (0, 1)


def test_the_table_takes_of_each_kind_what_agrees_most_on_the_half_that_chooses() -> None:
    def row(half: int, cut: float, agreement: float, top1: float, **more: Any) -> dict[str, Any]:
        figures = {"reduction": 0.3, "again": 0.1, "by_lot_top1": 0.5}
        place = {"threshold_from_half": half, "average_cut": 0.3, "first_cut": cut}
        return place | figures | {"kind": "greedy", "agreement": agreement, "top1": top1} | more

    rows = [
        row(0, 0.4, 0.9, 0.7), row(0, 0.5, 0.8, 0.9),
        row(1, 0.4, 0.7, 0.8), row(1, 0.5, 0.8, 0.6),
        row(0, 0.5, 1.0, 0.99, kind="mixed"), row(1, 0.5, 1.0, 0.97, kind="mixed"),
        row(0, 0.5, 1.0, 1.0, average_cut=0.2),
    ]  # fmt: skip
    firsts = [
        {"kind": kind, "cut": cut, "top1": top1}
        for kind, cut, top1 in (
            ("greedy", 0.3, 0.55), ("greedy", 0.4, 0.5), ("greedy", 0.5, 0.4), ("mixed", 0.5, 0.45),
        )
    ]  # fmt: skip
    seeds = [{"rows": rows, "firsts": firsts}]
    [found] = looked(seeds, 0.3)
    assert found["top1"] == pytest.approx(0.65) and found["firsts"] == ["40%", "50%"]
    assert found["alone"] == 0.55 and found["first_top1"] == pytest.approx(0.45)
    [mixed] = looked(seeds, 0.3, kind="mixed")
    assert mixed["top1"] == pytest.approx(0.98) and mixed["first_top1"] == pytest.approx(0.45)
    assert looked(seeds, 0.3, kind="dynamic") == []
