"""Networks on corrupted images: their figures, their files, the verb, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ftwt
import tiny
from ftwt import cli
from ftwt.config import DataConfig
from ftwt.data import Batches, Images
from ftwt.data.corruptions import CORRUPTIONS
from ftwt.evaluation.evaluate import evaluate
from ftwt.evaluation.robustness import Robustness, evaluate_corrupted
from ftwt.files.json import read_json
from ftwt.networks.pretrained import save_pretrained
from ftwt.pruning.convert import convert
from ftwt.pruning.dynamic import GATES
from ftwt.verbs.robustness import name_networks

KINDS, LEVELS = ("fog", "gaussian_noise"), (1, 5)
SOME = ["--corruptions", *KINDS, "--severities", "1", "5", "--images", "40"]
DATA = ["--dataset", "cifar10-embedded"]


@pytest.fixture(scope="module")
def images() -> Images:
    """80 test images, 8 of each class."""
    everything = ftwt.data.embedded(train=False)
    return everything.select(ftwt.data.images.balanced(everything, count=80, seed=1))


@pytest.fixture(scope="module")
def networks(images: Images) -> dict[str, torch.nn.Module]:
    """A dense network and a gated one."""
    torch.manual_seed(0)
    dense = tiny.network().eval()
    gated = convert(dense, torch.zeros(2, 3, 32, 32), r=0.7)
    for name, parameter in gated.named_parameters():
        if GATES in name.split("."):
            torch.nn.init.normal_(parameter)  # untrained gates stand open
    return {"dense": dense, "gated": gated}


@pytest.fixture(scope="module")
def found(images: Images, networks: dict[str, torch.nn.Module]) -> Robustness:
    return evaluate_corrupted(
        networks, images, corruptions=KINDS, severities=LEVELS, seed=3, provenance={"by": "me"}
    )


def test_figures_are_those_of_images_corrupted_by_hand(
    found: Robustness, images: Images, networks: dict[str, torch.nn.Module]
) -> None:
    for name, network in networks.items():
        told = found.networks[name]
        direct = evaluate(network, Batches(images, batch_size=80))
        assert (told.clean.top1, told.clean.reduction) == (direct.top1, direct.reduction)
        assert [(c.corruption, c.severity) for c in told.corrupted] == [
            (kind, level) for kind in KINDS for level in LEVELS
        ]
        for each in told.corrupted:
            shown = ftwt.corrupt(images, each.corruption, severity=each.severity, seed=3)
            direct = evaluate(network, Batches(shown, batch_size=80))
            assert each.top1 == direct.top1
            assert each.reduction == pytest.approx(direct.reduction)
            keeps = [unit.keep for unit in direct.units]
            assert each.keep == pytest.approx(np.mean(keeps) if keeps else 1.0)
    dense, gated = found.networks["dense"], found.networks["gated"]
    assert {c.reduction for c in dense.corrupted} == {0.0}
    assert len({c.reduction for c in gated.corrupted}) == 4  # the gates looked
    assert 0 < gated.clean.keep < 1


def test_means_are_over_what_they_say(found: Robustness) -> None:
    gated = found.networks["gated"]
    values = np.array([c.reduction for c in gated.corrupted]).reshape(2, 2)
    assert gated.mean.reduction == pytest.approx(values.mean())
    assert [gated.of(kind).reduction for kind in KINDS] == pytest.approx(values.mean(axis=1))
    assert [gated.at(level).reduction for level in LEVELS] == pytest.approx(values.mean(axis=0))


def test_the_file_of_a_network_holds_all_of_it(found: Robustness, tmp_path: Path) -> None:
    paths = found.save(tmp_path / "new")
    assert [path.name for path in paths] == ["dense.json", "gated.json"]
    told, gated = read_json(paths[1]), found.networks["gated"]
    assert told == json.loads(json.dumps(found.to_json()["gated"]))
    assert (told["kind"], told["network"], told["run"]) == ("corruptions", "gated", None)
    assert (told["images"], told["source"], told["provenance"]) == (80, "ftwt", {"by": "me"})
    assert set(told["clean"]) == set(told["mean"]) == {"top1", "reduction", "keep"}
    assert told["mean"]["keep"] == gated.mean.keep
    assert told["corrupted"][1] == {
        "corruption": "fog",
        "severity": 5,
        "top1": gated.corrupted[1].top1,
        "reduction": gated.corrupted[1].reduction,
        "keep": gated.corrupted[1].keep,
    }


def test_a_part_of_the_images_is_balanced_and_always_the_same(
    images: Images, networks: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    select = Images.select

    def noted(self: Images, indices: torch.Tensor) -> Images:
        chosen = select(self, indices)
        seen.append(chosen.labels)
        return chosen

    monkeypatch.setattr(Images, "select", noted)
    one, other = (
        evaluate_corrupted(
            networks["gated"], images, corruptions=["fog"], severities=[2], count=20
        ).networks["DynamicModel"]
        for _ in range(2)
    )
    assert one == other and one.images == 20
    assert torch.equal(*seen) and (seen[0].bincount() == 2).all()


def test_published_files_are_used_where_they_are_given(
    images: Images, networks: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    np.save(tmp_path / "labels.npy", np.tile(images.labels.numpy(), 5).astype(np.uint8))
    versions = [ftwt.corrupt(images, "snow", severity=level, seed=9) for level in range(1, 6)]
    pixels = [version.images.permute(0, 2, 3, 1).numpy() for version in versions]
    np.save(tmp_path / "fog.npy", np.concatenate(pixels))  # snow, so that it is told apart
    told = evaluate_corrupted(
        networks, images, corruptions=["fog"], severities=[1, 4], count=30, root=tmp_path
    )
    made = evaluate_corrupted(
        networks, images, corruptions=["snow"], severities=[1, 4], count=30, seed=9
    )
    for name in networks:
        read, own = told.networks[name], made.networks[name]
        assert (read.source, own.source) == ("cifar-10-c", "ftwt")
        assert read.clean == own.clean
        assert [replace(c, corruption="snow") for c in read.corrupted] == list(own.corrupted)
    with pytest.raises(FileNotFoundError, match="no snow.npy"):
        evaluate_corrupted(networks, images, corruptions=["fog", "snow"], root=tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"corruptions": ["fogg"]}, "did you mean 'fog'"),
        ({"corruptions": []}, "corruptions=.*give at least one"),
        ({"severities": []}, "severities=.*give at least one"),
        ({"severities": [1, 6]}, "severity=6 is outside 1..5"),
        ({"count": 0}, "count=0 of 80 images"),
        ({"count": 81}, "count=81 of 80 images"),
        ({"count": 75}, "give 1 to 70"),
        ({"networks": {}}, "no networks"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    options: dict[str, Any], told: str, images: Images, networks: dict[str, torch.nn.Module]
) -> None:
    given: dict[str, Any] = {"networks": networks} | options
    with pytest.raises(ValueError, match=told):
        evaluate_corrupted(images=images, **given)


def test_images_of_another_size_are_refused(images: Images) -> None:
    small = replace(images, images=images.images[:, :, ::2, ::2])
    with pytest.raises(ValueError, match="32x32 pixels"):
        evaluate_corrupted(tiny.network(), small, corruptions=["fog"], severities=[1])


# --- The verb -----------------------------------------------------------------------------------


@pytest.fixture
def gated(tiny_home: Path, networks: dict[str, torch.nn.Module]) -> str:
    """The folder of a run."""
    save_pretrained(networks["gated"], tiny_home / "runs/gated/model", name=tiny.NAME)
    return "runs/gated"


def test_the_verb_shows_networks_side_by_side_and_writes_a_file_each(
    gated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["robustness", tiny.NAME, gated, *SOME, *DATA, "--output", "told"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    for word in (tiny.NAME, "gated", "top-1, clean", "fog", "keep ratio, severity 5"):
        assert word in out
    assert [line.split()[0] for line in err.splitlines()] == list(KINDS)
    dense, own = read_json(f"told/{tiny.NAME}.json"), read_json("told/gated.json")
    assert (dense["network"], dense["run"]) == (tiny.NAME, None)
    assert (own["network"], own["run"]) == (tiny.NAME, "runs/gated")
    assert own["images"] == 40 and len(own["corrupted"]) == 4
    assert own["provenance"]["config"]["models"] == [tiny.NAME, "runs/gated"]
    assert own["provenance"]["seed"] == 0 and own["provenance"]["duration_s"] > 0

    assert cli.main([*command[:-2], "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values) == [tiny.NAME, "gated"]
    assert values["gated"]["corrupted"] == own["corrupted"]


def test_a_run_is_shown_its_own_images(
    gated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(**images: Any) -> None:
        config = {"config": {"data": DataConfig(**images).to_json()}}
        (Path(gated) / "run.json").write_text(json.dumps(config))

    given = ["robustness", gated, *SOME, *DATA, "--output", "given"]
    assert cli.main(given) == 0
    of(dataset=DATA[1])
    assert cli.main(["robustness", gated, *SOME, "--output", "own"]) == 0
    own, same = read_json("own/gated.json"), read_json("given/gated.json")
    assert own["corrupted"] == same["corrupted"]
    assert own["provenance"]["config"]["dataset"] == DATA[1]
    of(dataset=DATA[1], mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert cli.main(["robustness", gated, *SOME, "--output", "own"]) == 0
    assert read_json("own/gated.json")["corrupted"] != same["corrupted"]
    of(dataset="folder", data_root="photos")
    assert cli.main(["robustness", gated]) == 1
    assert "of images that lie in a folder" in capsys.readouterr().err
    of(dataset="cifar100")
    assert cli.main(["robustness", gated, "cifar10-resnet20"]) == 1
    assert "of different images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([tiny.NAME, tiny.NAME], f"{tiny.NAME} is named twice"),
        ([], "no networks"),
        (["nowhere"], "nowhere"),
        ([tiny.NAME, "--images", "5000"], "give 1 to 990"),
        ([tiny.NAME, "--corruptions", "rain"], "unknown corruption 'rain'"),
        ([tiny.NAME, "--corruptions-root", "nowhere"], "no folder nowhere"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], told: str, tiny_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["robustness", *arguments, *DATA]) == 1
    assert told in capsys.readouterr().err


def test_networks_get_short_names_of_their_own() -> None:
    assert name_networks(("a", "runs/b/", "timm:c")) == {
        "a": "a", "b": "runs/b/", "timm:c": "timm:c",
    }  # fmt: skip
    assert list(name_networks(("runs/a", "old/a"))) == ["runs-a", "old-a"]
    with pytest.raises(ValueError, match="named twice"):
        name_networks(("runs/a", "runs/a/"))


def test_all_corruptions_are_the_default() -> None:
    command = cli.parse("robustness", ["net"])
    assert command.corruptions == tuple(CORRUPTIONS)  # type: ignore[attr-defined]
    assert command.severities == (1, 2, 3, 4, 5)  # type: ignore[attr-defined]
