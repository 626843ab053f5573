"""Saved networks: the same when they come back, refused when they are not what they were."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import toys
from ftwt import convert, models
from ftwt.files.tensors import load_weights
from ftwt.networks import pretrained as checkpoint
from ftwt.networks.pretrained import (
    from_pretrained,
    load_tensors,
    push_to_hub,
    save_pretrained,
    save_tensors,
)
from ftwt.pruning.dynamic import DynamicModel

NAME = "cifar10-mobilenet-v1-x0.25"
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


def dynamic() -> DynamicModel:
    model = convert(models.create(NAME), IMAGES, r=0.8, pool="max")
    for gate in model.gates.values():
        nn.init.normal_(gate.predictor.linear.weight)
        gate.threshold.fill_(0.3)
    return model.eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    model = dynamic()
    return {
        "plain": models.create(NAME).eval(),
        "dynamic": model,
        "static": model.freeze([(IMAGES, torch.zeros(4))]).eval(),
    }


@pytest.mark.parametrize("kind", ["plain", "dynamic", "static"])
def test_a_saved_network_comes_back_the_same(
    kind: str, networks: dict[str, nn.Module], tmp_path: Path
) -> None:
    saved = networks[kind]
    save_pretrained(saved, tmp_path, name=NAME)
    loaded = from_pretrained(tmp_path)
    assert type(loaded) is type(saved) and not loaded.training
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert torch.equal(loaded(IMAGES), saved(IMAGES))
    if isinstance(saved, DynamicModel) and isinstance(loaded, DynamicModel):
        assert loaded.config == saved.config
        assert loaded.r == saved.r
        masks = [m(IMAGES, return_gates="masks")[1] for m in (saved, loaded)]
        assert all(torch.equal(a.mask, masks[1][unit].mask) for unit, a in masks[0].items())


def test_an_architecture_of_ones_own_is_given_as_model(tmp_path: Path) -> None:
    own = tiny()
    save_pretrained(own, tmp_path)
    with pytest.raises(ValueError, match="model="):
        from_pretrained(tmp_path)
    blank = tiny()
    nn.init.zeros_(blank[0].weight)
    loaded = from_pretrained(tmp_path, model=blank)
    assert torch.equal(loaded[0].weight, own[0].weight)
    assert not blank[0].weight.any()


def test_gates_that_cost_more_than_they_save_come_back(tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=4), nn.ReLU()]
    own = nn.Sequential(*layers, nn.Conv2d(8, 4, 1), nn.Flatten())
    example = torch.randn(2, 3, 4, 3)
    assert [unit.name for unit in convert(own, example).units] == ["0"]
    saved = convert(own, example, min_gain=-10.0).eval()
    assert [unit.name for unit in saved.units] == ["0", "2"]
    save_pretrained(saved, tmp_path)
    loaded = from_pretrained(tmp_path, model=own)
    assert torch.equal(loaded(example), saved(example))


def test_arguments_of_the_architecture_are_kept(tmp_path: Path) -> None:
    save_pretrained(
        models.create(NAME, num_classes=3), tmp_path, name=NAME, arguments={"num_classes": 3}
    )
    assert from_pretrained(tmp_path)(IMAGES).shape == (4, 3)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    save_pretrained(tiny(), tmp_path)
    with pytest.raises(ValueError, match=r"(?s)another architecture.*missing: .*unexpected: 0\."):
        from_pretrained(tmp_path, model=models.create(NAME))
    wide = tiny()
    wide[0] = nn.Conv2d(3, 9, 3)
    with pytest.raises(ValueError, match=r"shape: 0.weight \(8, 3, 3, 3\) for \(9, 3, 3, 3\)"):
        from_pretrained(tmp_path, model=wide)
    with pytest.raises(ValueError, match="x holds another"):
        load_weights(tiny(), {}, source="x")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    save_pretrained(tiny(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, said = weights.read_bytes(), config.read_text()

    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="truncated"):
        from_pretrained(tmp_path, model=tiny())
    weights.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match="altered"):
        from_pretrained(tmp_path, model=tiny())
    weights.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        from_pretrained(tmp_path, model=tiny())
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        from_pretrained(tmp_path, model=tiny())

    weights.write_bytes(whole)
    config.write_text(json.dumps(json.loads(said) | {"model": NAME}))  # a copy, never read back
    loaded = from_pretrained(tmp_path, model=tiny()).state_dict()
    assert torch.equal(loaded["0.weight"], load_tensors(weights)[0]["0.weight"])
    save_tensors(weights, tiny().state_dict(), json.loads(said) | {"format": 99})
    with pytest.raises(ValueError, match="format 99.*update"):
        from_pretrained(tmp_path, model=tiny())
    save_tensors(weights, tiny().state_dict(), {"model_type": "bert"})
    with pytest.raises(ValueError, match="not written by ftwt"):
        from_pretrained(tmp_path, model=tiny())
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        from_pretrained(tmp_path / "nowhere")


def test_tensors_of_any_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {
        "channels-last": shared,
        "same-memory": shared,
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(2**62),
        "none": torch.zeros(0),
        "bf16": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    save_tensors(tmp_path / "a.safetensors", tensors, {"step": 3, "list": [0.1, None]})
    loaded, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {"step": 3, "list": [0.1, None]}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_a_failed_save_keeps_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="cannot write .*No space left.*free space"):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    assert load_tensors(tmp_path / "a.safetensors")[0]["x"].sum() == 2
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_the_hub_gets_the_files_and_gives_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls: list[Any] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(token)

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            calls.append((repository, private, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
            os.rename(folder_path, tmp_path / "hub")
            os.mkdir(folder_path)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    own = tiny().eval()
    assert push_to_hub(own, "me/net", private=True, token="t") == "hub/me/net/1"
    assert calls == ["t", ("me/net", True, True)]

    def download(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("me/net", "v1")
        assert allow_patterns == [checkpoint.CONFIG, checkpoint.WEIGHTS]
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = from_pretrained("me/net", revision="v1", model=tiny())
    assert torch.equal(loaded(IMAGES), own(IMAGES))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("at", ["config.json", "model.safetensors", "end"])
def test_a_save_that_ends_between_two_files_leaves_one_network_or_the_other(
    first: bool, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tiny(), dynamic()
    if not first:
        save_pretrained(old, tmp_path)
    rename = os.replace

    def die(source: Any, target: Any) -> None:
        if Path(target).name == at:
            raise SystemExit  # before what was written gets its name
        rename(source, target)

    monkeypatch.setattr(os, "replace", die)
    if at == "end":
        save_pretrained(new, tmp_path, name=NAME)
    else:
        with pytest.raises(SystemExit):
            save_pretrained(new, tmp_path, name=NAME)
    monkeypatch.undo()
    if at == "model.safetensors" and first:
        with pytest.raises(FileNotFoundError):
            from_pretrained(tmp_path)
    elif at == "model.safetensors":
        assert torch.equal(from_pretrained(tmp_path, model=tiny())[0].weight, old[0].weight)
    else:
        assert torch.equal(from_pretrained(tmp_path)(IMAGES), new(IMAGES))
        assert checkpoint.find_saved(tmp_path)[1]["model"] == NAME
    save_pretrained(old, tmp_path)
    assert torch.equal(from_pretrained(tmp_path, model=tiny())[0].weight, old[0].weight)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arguments": {"pretrained": True}}, "argument pretrained is True.*weights come from"),
        ({"arguments": {"checkpoint_path": "x.pth"}}, "argument checkpoint_path"),
        ({"arguments": {"act_layer": "../x"}}, "argument act_layer.*a plain name"),
        ({"arguments": {"num_classes": 10**9}}, "argument num_classes is 1000000000.*at most"),
        ({"arguments": {"depth": 3}}, "asks for a network that cannot be built .TypeError"),
        ({"model": "cifar10-mobilenet-v9"}, "cannot be built: unknown ftwt model"),
        ({"model": 3}, "model is 3; it must be text or null"),
        ({"input_shape": [3, 10**5, 10**5]}, "input_shape.*8388608 numbers at most"),
        ({"input_shape": [3, -1, 2]}, "input_shape.*sizes from 1 on"),
        ({"convert": {"rank": 10**8}}, "rank is 100000000.*at most"),
        ({"convert": {"flavour": 1}}, "cannot be built .TypeError.*flavour"),
        ({"convert": []}, "convert is .*an object or null"),
        ({"answer": "yes"}, "answer is 'yes'.*list of finite numbers"),
        ({"answer": [1.0]}, "computes something else"),
        ({"format": "1"}, "format '1'"),
    ],
)  # fmt: skip
def test_what_a_strangers_file_asks_for_is_bounded(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save_pretrained(dynamic(), tmp_path, name=NAME)
    tensors, config = load_tensors(tmp_path / "model.safetensors")
    save_tensors(tmp_path / "model.safetensors", tensors, config | change)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{said}"):
        from_pretrained(tmp_path)


def test_the_same_weights_under_another_forward_are_refused(tmp_path: Path) -> None:
    class Doubled(toys.Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Noisy(toys.Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn_like(x))

    for dtype in (None, torch.bfloat16):
        save_pretrained(toys.dynamic(), tmp_path, dtype=dtype)
        assert from_pretrained(tmp_path, model=toys.Toy()) is not None
        with pytest.raises(ValueError, match="fit this network, but it computes something else"):
            from_pretrained(tmp_path, model=Doubled())
    save_pretrained(convert(Noisy(), torch.zeros(2, 3, 8, 8)), tmp_path)
    assert from_pretrained(tmp_path, model=Noisy()) is not None


def test_values_that_no_network_can_have_are_refused(tmp_path):
    for damage, message in (
        (lambda m: m.network.classifier.weight.data.fill_(math.nan), "classifier.weight holds NaN"),
        (
            lambda m: next(iter(m.predictors.values())).standardize.running_var.fill_(-1),
            "running_var holds a negative variance",
        ),
        (lambda m: next(iter(m.gates.values())).r.fill_(5.0), "r that no gate can have.*r=5.0"),
    ):
        dynamic = toys.dynamic()
        damage(dynamic)
        save_pretrained(dynamic, tmp_path / "net")
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path / "net", model=toys.Toy())


def test_the_same_network_gives_the_same_bytes_and_a_pipe_is_refused(tmp_path):
    dynamic = toys.dynamic()
    contents = set()
    for turn in range(8):
        save_pretrained(dynamic, tmp_path / str(turn))
        contents.add((tmp_path / str(turn) / "model.safetensors").read_bytes())
    assert len(contents) == 1
    (tmp_path / "0" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "0" / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is not a regular file"):
        from_pretrained(tmp_path / "0", model=toys.Toy())


def test_weights_that_no_network_can_be_rebuilt_with_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.weight lies on the meta device"):
        save_pretrained(tiny().to("meta"), tmp_path / "meta")
    with pytest.raises(ValueError, match=r"0\.weight is torch\.float8_e5m2.*bfloat16"):
        save_pretrained(tiny().to(torch.float8_e5m2), tmp_path / "eight")
    assert not list(tmp_path.iterdir())


def test_two_saves_that_are_interrupted_one_after_the_other_lose_nothing(tmp_path, monkeypatch):
    model, network = dynamic(), models.create(NAME)
    save_pretrained(model, tmp_path)
    replace = os.replace

    def ends(*paths: Any) -> None:  # behind the weights, and before the settings follow
        if Path(paths[1]).name == checkpoint.CONFIG:
            raise KeyboardInterrupt
        replace(*paths)

    def ends_early(*_: Any) -> None:  # before the weights
        raise KeyboardInterrupt

    for r, where, how in ((0.7, "os.replace", ends), (0.6, "save_tensors", ends_early)):
        model.set_r(r)
        classes = [f"{k}, saved with r = {r}" for k in range(10)]  # so the settings differ, too
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"ftwt.networks.pretrained.{where}", how)
            save_pretrained(model, tmp_path, classes=classes)
        found = from_pretrained(tmp_path, model=network)
        assert {round(value, 3) for value in found.r.values()} == {0.7}
