"""Figures show what the rows say: read back from the axes, and from the files."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import result_files as files
import toys
from ftwt.data import Batches
from ftwt.evaluation.record import record
from ftwt.records.fields import Fields
from ftwt.report import Found, plots, published, read, rows
from ftwt.report.palette import ALWAYS, DENSE, DYNAMIC, OKABE_ITO, PUBLISHED, TWIN, look
from ftwt.report.reading import parse
from ftwt.report.rows_of_run import (
    class_rows,
    extreme_rows,
    heatmap_rows,
    image_rows,
    unit_rows,
    work_rows,
)

NETWORK = "cifar10-resnet56"


@pytest.fixture(scope="module")
def recording():
    batches = Batches(toys.images(80, seed=2), batch_size=20)
    network = toys.dynamic(dropout=0.0)
    for predictor in network.predictors.values():
        predictor.linear.weight.data.normal_(std=3)
        predictor.linear.bias.data.normal_()
    return record(network, batches, images=16, provenance=files.provenance("ftwt evaluate"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recording) -> Path:
    folder = tmp_path_factory.mktemp("study")
    files.write(folder / "base" / "run.json", files.run(0.9366, prune=None))
    for seed in range(3):
        name = f"r90-s{seed}"
        command = f"ftwt train recipe --output runs/{name}"
        dynamic = files.run(0.93 + seed / 1000, 0.3 + seed / 100, seed=seed, command=command)
        twin = files.run(0.928, 0.31, seed=seed, twin_of=f"runs/{name}", hours=0.5)
        files.write(folder / name / "run.json", dynamic)
        files.write(folder / f"{name}-twin" / "run.json", twin)
    recording.save(folder / "r90-s0" / "recording.safetensors")
    joint = files.PRUNE | {"mode": "joint"}
    files.write(folder / "joint" / "run.json", files.run(0.92, 0.35, prune=joint))
    files.write(folder / "half" / "run.json", files.run(0.91, 0.5, asked=0.5, predicted=0.51))
    files.write(folder / "estimate.json", files.estimate())
    files.write(folder / "bench.json", files.benchmark())
    files.write(folder / "contest.json", files.contest())
    files.write(folder / "bench2.json", files.benchmark(threads=2))
    files.write(folder / "corrupted.json", files.corruptions("runs/r90-s0", 0.93))
    files.write(folder / "corrupted-dense.json", files.corruptions(None, 0.9366, reduction=0.0))
    return folder


@pytest.fixture(scope="module")
def found(folder) -> Found:
    return read(folder)


def marks(axes) -> set[tuple[float, float, str, str, bool]]:
    """Single points of an axes: x, y, colour, marker, whether filled."""
    return {
        (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6),
         to_hex(line.get_color()).upper(), line.get_marker(),
         to_hex(line.get_markerfacecolor()) != "#ffffff")
        for line in axes.lines
        if len(line.get_xdata()) == 1 and line.get_marker() in "oDsP*d^"  # no caps of bars
    }  # fmt: skip


def bars(axes) -> list[np.ndarray]:
    """Error bars and other lines of collections: segments."""
    return [segment for part in axes.collections for segment in part.get_segments()]


def texts(axes) -> set[str]:
    return {text.get_text() for text in axes.texts if text.get_text()}


def percents(*shares: float) -> tuple[float, ...]:
    return tuple(round(100 * share, 6) for share in shares)


def test_accuracy_has_ours_the_rivals_and_what_was_published(found):
    drawn = plots.accuracy(found)
    (axes,) = drawn.axes
    told = rows.accuracy_rows(found, NETWORK)
    assert {(m[0], m[1]) for m in marks(axes)} == {
        percents(row["reduction"], row["top1"]) for row in told
    }
    assert (*percents(0.31, 0.931), DYNAMIC[0], "o", True) in marks(axes)  # mean of three seeds
    assert (*percents(0.31, 0.928), TWIN, "s", True) in marks(axes)
    assert (*percents(0.0, 0.9366), DENSE, "D", True) in marks(axes)
    assert (*percents(0.6643, 0.9263), PUBLISHED, "*", False) in marks(axes)
    chip = [m for m in marks(axes) if m[:2] == percents(0.741, 0.9243)]
    assert [m[4] for m in chip] == [False]
    assert {"FTWT (r = 0.8)", "FTWT (joint, r = 0.88)", "CHIP", "ManiDP"} <= texts(axes)
    assert "published" in drawn.get_supxlabel() and "flatters" in drawn.get_supxlabel()
    assert axes.get_xlabel() == "reduction of MACs" and axes.get_ylabel() == "top-1 accuracy"
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "dense", "dynamic", "dynamic, joint", "static twin",
    }  # fmt: skip
    spread = [s for s in bars(axes) if s[0][1] == s[1][1] == pytest.approx(93.1)]
    assert (spread[0][1] - spread[0][0])[0] == pytest.approx(2.0)  # reduction, std 1%, both ways
    spread = [s for s in bars(axes) if s[0][0] == s[1][0] == pytest.approx(31.0) and s[1][1] > 93]
    assert (spread[0][1] - spread[0][0])[1] == pytest.approx(0.2)  # accuracy, std 0.1%


def test_the_curve_has_the_estimate_and_what_came_of_it(found):
    (axes,) = plots.curve(found).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert [list(line.get_ydata()) for line in lines] == [[70, 50, 25, 0], [80, 60, 35, 5]]
    assert list(lines[0].get_xdata()) == [0.5, 0.7, 0.9, 1.0]
    assert marks(axes) == {
        (0.9, 28.0, DYNAMIC[0], "o", False),
        (0.9, 31.0, DYNAMIC[0], "o", True),
        (0.9, 28.0, DYNAMIC[1], "o", False),
        (0.9, 35.0, DYNAMIC[1], "o", True),
        (0.9, 50.0, DYNAMIC[0], "P", True),  # steered to a budget: nothing was predicted for its r
    }
    joined = [tuple(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert sorted(joined) == [pytest.approx((28, 31)), pytest.approx((28, 35))]


def test_layers_have_their_keep_ratio_beside_their_share_of_the_macs(found, recording):
    drawn = plots.keep_ratios(found.run("r90-s0"))
    left, right = drawn.axes[:2]
    told = unit_rows(recording)
    assert left.lines[0].get_xdata() == pytest.approx([100 * row["keep"] for row in told])
    assert [label.get_text() for label in left.get_yticklabels()] == [row["unit"] for row in told]
    widths = [s[1][0] - s[0][0] for s in bars(left)]
    assert widths == pytest.approx([200 * row["keep_std"] for row in told])
    shares = [patch.get_width() for patch in right.patches]
    wanted = [u.macs / recording.dense_macs for u in recording.units]
    assert shares[: len(told)] == pytest.approx([100 * share for share in wanted])
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first layer on top
    without = plots.keep_ratios(found.run("r90-s1"))
    assert without.axes[0].lines[0].get_xdata() == pytest.approx([50, 60, 70])
    assert texts(without.axes[1]) == {"shares of the MACs\nneed a recording"}


def test_core_filters_are_stacked_as_counted(found):
    run = found.run("r90-s1")
    (axes,) = plots.core_filters(run).axes
    widths = np.array([patch.get_width() for patch in axes.patches]).reshape(3, 3)
    assert widths.T.tolist() == [
        [unit.always, unit.sometimes, unit.never] for unit in run.test.units
    ]
    assert to_hex(axes.patches[0].get_facecolor()).upper() == ALWAYS
    ends = [patch.get_x() + patch.get_width() for patch in axes.patches[-3:]]
    assert ends == [16, 16, 16]
    with pytest.raises(ValueError, match="base has no gates"):
        plots.core_filters(found.run("base"))


def test_heatmaps_are_those_that_were_recorded(found, recording):
    told = heatmap_rows(recording)
    drawn = plots.heatmaps(found.run("r90-s0"))
    panels = [panel for part in drawn.subfigs for panel in part.axes]
    assert len(told) == 4 and len(panels) == 12
    triplets = [panels[start : start + 3] for start in range(0, 12, 3)]
    for row, (picture, dense, dynamic) in zip(told, triplets, strict=True):
        place = recording.shown.tolist().index(row["image"])
        (image,) = picture.images
        np.testing.assert_array_equal(image.get_array(), recording.pictures[place])
        for panel, maps in (
            (dense, recording.dense_heatmaps),
            (dynamic, recording.dynamic_heatmaps),
        ):
            (heat,) = panel.images
            np.testing.assert_allclose(heat.get_array(), maps[row["unit"]][place])
        assert dense.images[0].get_clim() == dynamic.images[0].get_clim()
    assert told[0]["reduction"] > told[-1]["reduction"]  # from the cheapest to the dearest
    unit = recording.units[2].name
    (row,) = heatmap_rows(recording, units=[unit], images=[told[1]["image"]])
    assert row["unit"] == unit
    assert row["computed"] == recording.masks(unit)[row["image"]].mean()
    with pytest.raises(ValueError, match="no heatmaps of 'x'; there are those of features.0"):
        plots.heatmaps(recording, units=["x"])
    with pytest.raises(ValueError, match="image 999 is none of the 16"):
        plots.heatmaps(recording, images=[999])
    with pytest.raises(ValueError, match="r90-s1 has no recording.*ftwt evaluate .* --record"):
        plots.heatmaps(found.run("r90-s1"))


def test_training_has_its_four_courses(tmp_path):
    lines = [
        {"kind": "step", "step": 5, "loss": 4.0, "mask_loss": 3.0, "mask_accuracy": 0.7,
         "reduction": 0.1},
        {"kind": "epoch", "step": 10, "epoch": 1, "loss": 3.0, "val_loss": 0.5, "mask_loss": 2.5},
        {"kind": "step", "step": 15, "loss": 0.6, "reduction": 0.3},
        {"kind": "epoch", "step": 20, "epoch": 2, "loss": 0.5, "val_loss": 0.4,
         "val_reduction": 0.3},
    ]  # fmt: skip
    files.write(tmp_path / "one" / "run.json", files.run(asked=0.3, predicted=0.31))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "one" / "metrics.jsonl").write_text(text)
    drawn = plots.training(read(tmp_path).run("one"))
    courses = {
        axes.get_ylabel(): {
            line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
            for line in axes.lines
        }
        for axes in drawn.axes
    }
    assert courses["task loss"] == {"training": [(1.5, 0.6)], "validation": [(1, 0.5), (2, 0.4)]}
    assert courses["mask loss"] == {"training": [(0.5, 3.0)]}
    assert courses["mask accuracy"] == {"training": [(0.5, pytest.approx(70))]}
    reduction = courses["reduction of MACs"]
    assert reduction["training"] == [(0.5, 10), (1.5, 30)]
    assert reduction["validation"] == [(2, 30)]
    assert reduction["asked"][0][1] == 30 and reduction["predicted"][0][1] == 31
    assert "took no part" in drawn.get_supxlabel()


def test_work_is_told_by_image_and_by_class(found, recording):
    (work,) = plots.work(found.run("r90-s0")).axes
    (classes,) = plots.classes(found.run("r90-s0")).axes
    told = class_rows(recording)
    assert sum(row["images"] for row in told) == len(recording) == len(image_rows(recording))
    for row in told:
        mine = recording.labels == recording.classes.index(row["class"])
        assert row["mean_macs"] == pytest.approx(recording.executed_macs[mine].mean())
        assert row["median_macs"] == pytest.approx(np.median(recording.executed_macs[mine]))
        assert row["top1"] == recording.correct[mine].mean()
    dots = next(line for line in classes.lines if line.get_marker() == "o")
    assert dots.get_xdata() == pytest.approx([row["median_macs"] / 1e6 for row in told])
    names = [label.get_text().split()[0] for label in classes.get_yticklabels()]
    assert names == [row["class"] for row in told]
    counted = work_rows(recording)
    assert sum(row["right"] for row in counted) == recording.correct.sum()
    assert sum(row["wrong"] for row in counted) == (~recording.correct).sum()
    assert len(work.patches) == 2
    for patch in work.patches:  # a step line: its heights add up to all of these images
        assert patch.get_data().values.sum() == pytest.approx(100)


def test_extremes_are_the_cheapest_and_the_dearest_pictures(recording):
    told = extreme_rows(recording, 3)
    macs = recording.executed_macs[recording.shown]
    assert [row["executed_macs"] for row in told[:3]] == sorted(macs.tolist())[:3]
    assert [row["executed_macs"] for row in told[3:]] == sorted(macs.tolist())[:-4:-1]
    panels = [panel for part in plots.extremes(recording, 3).subfigs for panel in part.axes]
    for row, panel in zip(told, panels, strict=True):
        np.testing.assert_array_equal(
            panel.images[0].get_array(), recording.pictures[row["picture"]]
        )
        assert panel.get_xlabel().startswith(row["label"])


def test_latency_stands_against_macs(found):
    (axes,) = plots.latency(found).axes
    cloud = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert list(cloud.get_xdata()) == [0.2, 0.4, 0.8]
    assert cloud.get_ydata() == pytest.approx([0.3, 0.5, 0.9])
    told = [row for row in rows.latency_rows(found) if row["threads"] == 1]
    assert {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines
            if len(line.get_xdata()) == 1 and not line.get_label().startswith("_")} == {
        row["name"]: (row["macs"] / 1e6, row["latency_ms"])
        for row in told if row["kind"] == "contestant"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"threads=4: timings were made with \[1, 2\]"):
        plots.latency(found, threads=4)
    with pytest.raises(ValueError, match="no timings of 'x'; there are"):
        plots.latency(found, "x")
    with pytest.raises(ValueError, match="no benchmark among the files"):
        plots.latency(Found())


def test_accuracy_stands_against_milliseconds():
    one = files.contest()
    other = files.contest("net") | {"entries": one["entries"][:2]}
    found = Found(contests=tuple(
        parse.contest(Fields(Path(f"{number}.json"), values), "")
        for number, values in enumerate((one, other))
    ))  # fmt: skip
    told = rows.contest_rows(found, NETWORK)
    assert [row["latency_ms"] for row in told] == [0.8, 0.9, 1.0, 2.0, 2.5]
    assert [row["front"] for row in told] == [True, False, True, True, False]
    (axes,) = plots.contest(found).axes
    line = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert list(line.get_xdata()) == [0.8, 1.0, 2.0]
    assert {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines
            if len(line.get_xdata()) == 1 and not line.get_label().startswith("_")} == {
        f"{row['pruning']}, {row['runtime']} {row['precision']}":
            (row["latency_ms"], 100 * row["top1"]) for row in told
    }  # fmt: skip
    assert [axes.get_title(loc="left") for axes in plots.contests(found).axes] == [NETWORK, "net"]
    with pytest.raises(ValueError, match="no contest of 'x'; there are cifar10-resnet56, net"):
        plots.contest(found, "x")
    with pytest.raises(ValueError, match="no contest among the files"):
        plots.contests(Found())


def test_corruption_is_told_by_severity_and_by_kind(found):
    drawn = plots.corruptions(found)
    upper, lower = drawn.subfigs
    lines = {line.get_label(): line.get_ydata() for line in upper.axes[0].lines}
    assert list(lines) == ["dense", "dynamic, r = 0.9"]
    assert lines["dense"] == pytest.approx([93.66 - 4 * severity for severity in range(6)])
    fog = [line for line in lower.axes[0].lines if len(line.get_xdata()) == 3][0]
    assert fog.get_xdata() == pytest.approx([93.66 - 6, 93.66 - 12, 93.66 - 18])
    assert len(rows.corruption_rows(found, NETWORK)) == 2 * 16


def test_tables_tell_mean_and_spread_joint_against_decoupled_and_hours(found):
    told = {(row["method"], row["setting"]): row for row in rows.summary_rows(found)}
    row = told["dynamic", "r = 0.9"]
    assert (row["runs"], row["top1"], row["top1_std"]) == (
        3,
        pytest.approx(0.931),
        pytest.approx(0.001),
    )
    assert row["reduction_std"] == pytest.approx(0.01)
    assert row["drop"] == pytest.approx(0.9366 - 0.931)
    assert row["always"] + row["sometimes"] + row["never"] == pytest.approx(1)
    assert told["dynamic", "50% asked"]["asked"] == 0.5
    (pair,) = rows.joint_rows(found)
    assert (pair["joint_top1"], pair["decoupled_top1"]) == (0.92, pytest.approx(0.931))
    assert (pair["joint_runs"], pair["decoupled_runs"]) == (1, 3)
    hours = {(row["method"], row["setting"]): row for row in rows.compute_rows(found)}
    assert hours["static twin", "r = 0.9"]["hours_each"] == 0.5
    assert hours["static twin", "r = 0.9"]["hours_all"] == 1.5
    assert hours["dynamic", "r = 0.9"]["paper_hours_4_v100"] == 8.0


def test_the_papers_own_joint_rows_stand_in_the_table(tmp_path):
    files.write(tmp_path / "run.json", files.run(model="cifar10-vgg16-bn"))
    (pair,) = rows.joint_rows(read(tmp_path))
    assert (pair["setting"], pair["joint_top1"], pair["decoupled_top1"]) == (
        "r = 0.92",
        0.9355,
        0.9373,
    )
    assert pair["counted"] == "as published"


def test_published_rows_are_whole_and_known_by_all_names_of_a_network():
    assert len(published.rows_for("cifar10-resnet56")) == 6
    assert published.rows_for("torchvision:resnet34")[0].r == 0.97
    assert published.rows_for("timm:mobilenetv1_100.ra4_e3600_r224_in1k")[0].top1 == 0.6966
    assert published.rows_for("cifar10-resnet20") == ()
    for row in published.ROWS:
        assert 0 < row.reduction < 1 and row.source and row.kind in ("paper", "dynamic", "static")
        if row.top1 is not None and row.baseline_top1 is not None:
            assert row.gap == pytest.approx(row.top1 - row.baseline_top1)


def test_the_palette_is_that_of_okabe_and_ito():
    assert {DENSE, *DYNAMIC, TWIN, PUBLISHED} <= set(OKABE_ITO.values())
    assert look("CHIP, published", {})[0] not in {DENSE, *DYNAMIC, TWIN, PUBLISHED}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_all_figures_are_saved_with_their_data(found, tmp_path):
    written = plots.save_figures(found, tmp_path / "figures")
    timed = re.sub(r"[^\w.-]+", "-", found.benchmarks[0].name)
    assert {path.name for path in written} == {
        path.name for path in (tmp_path / "figures").iterdir()
    }
    figures = {path.stem for path in written if path.suffix == ".svg"}
    assert figures == {
        f"accuracy-{NETWORK}", f"curve-{NETWORK}", f"corruptions-{NETWORK}", f"contest-{NETWORK}",
        *(f"latency-{timed}-threads{threads}" for threads in (1, 2)),
        *(f"{kind}-{run}" for kind in ("training", "keep", "core")
          for run in ("r90-s0", "half", "joint")),
        *(f"{kind}-r90-s0" for kind in ("heatmaps", "work", "classes", "extremes")),
    }  # fmt: skip
    tables = {path.stem for path in written if path.suffix == ".csv"} - figures
    assert tables == {"images-r90-s0", "table-summary", "table-compute", "table-joint"}
    saved = table(tmp_path / "figures" / f"accuracy-{NETWORK}.csv")
    told = rows.accuracy_rows(found, NETWORK)
    assert [row["setting"] for row in saved] == [row["setting"] for row in told]
    assert [float(row["top1"]) for row in saved] == [row["top1"] for row in told]
    assert saved[0]["top1_std"] == ""
    heat = table(tmp_path / "figures" / "heatmaps-r90-s0.csv")[0]
    assert np.array(json.loads(heat["dense"])).shape == (8, 8)


@pytest.mark.parametrize(
    ("format", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_figure_is_the_same_file_each_time_and_says_what_made_it(found, tmp_path, format, head):
    sheet = next(one for one in plots.sheets(found) if one.name == f"curve-{NETWORK}")
    assert "ftwt train recipe --output runs/r90-s0" in sheet.made_by
    contents = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.{format}"
        plots.save_figure(sheet.draw(), path, sheet)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(head)
    if format != "pdf":  # which packs its text
        assert b"ftwt train recipe --output runs/r90-s0" in contents[0]


def test_runs_of_one_name_do_not_overwrite_each_other(tmp_path):
    for place, r in (("a", 0.9), ("b", 0.8)):
        values = files.run(prune=files.PRUNE | {"r": r})
        files.write(tmp_path / place / "same" / "run.json", values)
    names = [path.name for path in plots.save_figures(read(tmp_path), tmp_path / "out", "svg")]
    assert {"core-same.svg", "core-same-2.svg"} <= set(names) and len(set(names)) == len(names)


def test_what_cannot_be_drawn_is_told(found, tmp_path):
    with pytest.raises(ValueError, match="format='gif': use one of png, svg, pdf"):
        plots.save_figures(found, tmp_path, "gif")
    with pytest.raises(ValueError, match="no network 'x'; there are cifar10-resnet56"):
        plots.accuracy(found, "x")
    with pytest.raises(ValueError, match="no run and no pruned network among the files"):
        plots.accuracy(Found())
    with pytest.raises(ValueError, match="no figure to write"):
        plots.save_figures(Found(), tmp_path)


def test_dollar_signs_in_names_are_text(tmp_path):
    files.write(tmp_path / "run.json", files.run(model=r"$\frac{net"))
    written = plots.save_figures(read(tmp_path), tmp_path / "figures")
    assert any(path.suffix == ".svg" for path in written)


def test_figures_need_no_pyplot_and_show_in_notebooks(folder):
    code = (
        "import sys; from ftwt.report import plots, read\n"
        f"drawn = plots.curve(read({str(folder)!r}))\n"
        "print(drawn._repr_png_()[1:4].decode(), 'matplotlib.pyplot' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.split() == ["PNG", "False"], told.stderr


def test_a_figure_is_one_of_matplotlibs(found):
    assert isinstance(plots.curve(found), Figure)
