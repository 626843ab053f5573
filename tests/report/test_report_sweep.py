"""The way of who compares settings: short trainings, r by r and seed by seed, and one report."""

import statistics
from pathlib import Path
from typing import Any

import pytest

import tiny
from ftwt import cli
from ftwt.files.json import read_json
from ftwt.report import read
from ftwt.report.answer import answers

SHORT = [*tiny.DATA, "--batch-size", "400", "--epochs", "1", "--weights", "pretrained"]


def test_a_sweep_is_one_report_with_means_and_deviations(
    tiny_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for r in ("0.6", "0.9"):
        for seed in ("0", "1"):
            flags = ["--r", r, "--seed", seed, "--output", f"runs/r{r}-seed{seed}"]
            assert cli.main(["train", tiny.NAME, *SHORT, *flags]) == 0
    capsys.readouterr()
    folders = sorted(map(str, Path("runs").iterdir()))  # as the shell writes out runs/*
    found = {one.name: one.to_json() for one in answers(read(folders))}
    assert set(found) == {f"dynamic, softmax head, r = {r}" for r in (0.6, 0.9)}
    for name, answer in found.items():
        tests = [read_json(f"{path}/run.json")["test"] for path in folders if name[-3:] in path]
        for shown, figure in (("top1", "top1"), ("achieved", "reduction")):
            values = [test[figure] for test in tests]
            expected: dict[str, Any] = {"count": 2, "mean": statistics.fmean(values)}
            assert answer[shown] == pytest.approx(expected | {"std": statistics.stdev(values)})
    assert cli.main(["report", *folders]) == 0
    told = capsys.readouterr().out
    for answer in found.values():
        top1 = answer["top1"]
        assert f"{top1['mean']:.2%} ±\N{NO-BREAK SPACE}{top1['std']:.2%}" in told
    assert f"ftwt evaluate {tiny.NAME} --dataset cifar10-embedded --validation 400" in " ".join(
        told.split()
    )
    page = Path("report.html").read_text("utf-8")
    assert all(
        name.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}") in page for name in found
    )
