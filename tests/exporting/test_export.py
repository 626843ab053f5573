"""Exported networks: what is in the file, whether it does as PyTorch does, and what is refused."""

import io
import json
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import Told
from torch import Tensor, nn

import forced
import ftwt as library
import tiny
import toys
from ftwt import DynamicModel, export, models
from ftwt.exporting import formats
from ftwt.exporting.agreement import TOLERANCE, compare
from ftwt.exporting.graph import Graph
from ftwt.files.json import write_json
from ftwt.networks.pretrained import save_pretrained

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import exports  # noqa: E402  (a tool)

sys.path.remove(str(ROOT / "tools"))

Images = Tensor


def need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def mixed(network: nn.Module, images: Images, **options: Any) -> DynamicModel:
    """Gates that keep some of the filters of each unit, other ones for other images."""
    torch.manual_seed(0)
    dynamic = library.convert(forced.scramble(network), images, **options)
    return forced.scramble(dynamic).eval()  # type: ignore[return-value]


def run_onnx(path: Path, images: Images) -> dict[str, Tensor]:
    return dict(formats.open_onnx(path)[0]((images,)))


def held(found: Mapping[str, Tensor], model: nn.Module, images: Images) -> None:
    """Hold outputs, and the masks that there are, to PyTorch's."""
    with torch.no_grad():
        if isinstance(model, DynamicModel):
            output, gates = model(images, return_gates="masks")
        else:
            output, gates = model(images), {}
    assert output.std() > 0
    assert (found["output"] - output).abs().max() <= TOLERANCE * output.abs().max()
    for unit, gate in gates.items():
        if f"mask.{unit}" in found:
            assert found[f"mask.{unit}"].dtype == torch.bool
            assert torch.equal(found[f"mask.{unit}"], gate.mask)


@pytest.fixture(scope="module")
def dynamic() -> DynamicModel:
    return mixed(tiny.network(), torch.randn(4, 3, 32, 32))


@pytest.fixture(scope="module")
def written(dynamic: DynamicModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny network in an ONNX file with masks."""
    need_onnx()
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    dynamic.train()
    found = export(dynamic, path, masks=True, metadata={"network": "tiny", "size": [1, 2]})
    assert all(module.training for module in dynamic.modules())  # as before
    dynamic.eval()
    return found


# --- ONNX ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5])
def test_an_onnx_file_gives_outputs_and_masks_for_any_number_of_images(
    size: int, written: Any, dynamic: DynamicModel
) -> None:
    images = torch.randn(size, 3, 32, 32)
    found = run_onnx(written.path, images)
    assert list(found) == ["output", *(f"mask.{unit}" for unit in dynamic.gates)]
    held(found, dynamic, images)
    masks = torch.cat([mask for name, mask in found.items() if name != "output"], 1)
    assert 0.2 < masks.float().mean() < 0.8


def test_what_was_written_is_told(written: Any, dynamic: DynamicModel) -> None:
    assert written.format == "ONNX" and written.opset == formats.OPSET
    assert written.size_bytes == os.path.getsize(written.path)
    assert written.inputs == {"input": ("batch", 3, 32, 32)}
    assert written.outputs["output"] == ("batch", 10) and written.outputs["mask.0"] == ("batch", 8)
    agreement = written.agreement
    assert agreement.batch_sizes == (1, 5) and agreement.images == 6
    assert agreement.decisions == 6 * (8 + 16 + 16) and agreement.decided_otherwise == 0
    assert agreement.images_apart == 0 and 0 <= agreement.deviation < TOLERANCE
    assert "0 of 240 mask entries differ" in str(agreement)
    assert json.loads(json.dumps(written.to_json()))["outputs"]["mask.3"] == ["batch", 16]
    assert "mask.UNIT: which filters of the unit count, for 3 units" in written._repr_html_()


def test_an_onnx_file_says_what_it_holds_and_names_no_place(written: Any) -> None:
    import onnx

    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(found.domain, found.version) for found in model.opset_import] == [("", 23)]
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert notes["ftwt.kind"] == "dynamic" and notes["ftwt.r"] == "0.9"
    assert notes["ftwt.network"] == "tiny" and notes["ftwt.size"] == "[1, 2]"
    assert "multiplied by zero" in notes["ftwt.computes"]
    assert json.loads(notes["ftwt.convert"])["head"] == "standardized"
    data = Path(written.path).read_bytes()
    for place in (str(ROOT), str(Path(torch.__file__).parent), "dynamic.py", "File "):
        assert place.encode() not in data


def test_openvino_reads_the_file(written: Any, dynamic: DynamicModel) -> None:
    pytest.importorskip("openvino")
    run, name = exports.open_openvino(Path(written.path))
    images = torch.randn(3, 3, 32, 32)
    held(run((images,)), dynamic, images)
    assert name.startswith("OpenVINO 2")


def test_one_of_our_networks_in_onnx(tmp_path: Path) -> None:
    need_onnx()
    images = torch.randn(2, 3, 32, 32)
    options = {"head": "softmax", "pool": "max", "mode": "joint", "rank": 2}
    resnet = mixed(models.resnet.resnet(8), images, **options)
    found = export(resnet, tmp_path / "net.onnx", example=images, masks=True, opset=18)
    assert found.opset == 18 and found.agreement is not None
    assert found.agreement.decisions == 4 * sum(u.out_channels for u in resnet.units)
    images = torch.randn(5, 3, 32, 32)
    held(run_onnx(tmp_path / "net.onnx", images), resnet, images)


def test_static_twins_and_dense_networks_in_onnx(dynamic: DynamicModel, tmp_path: Path) -> None:
    need_onnx()
    images = torch.randn(3, 3, 32, 32)
    twin = dynamic.freeze([(images, torch.zeros(3))])
    found = export(twin, tmp_path / "twin.onnx", masks=True, check=False)
    assert found.agreement is None and "not asked for" in found._repr_html_()
    assert found.metadata["kind"] == "static" and "r" not in found.metadata
    held(run_onnx(tmp_path / "twin.onnx", images), twin, images)

    dense = tiny.network().eval()
    found = export(dense, tmp_path / "dense.onnx", example=images, batch_size=2)
    assert found.inputs == {"input": (2, 3, 32, 32)} and found.metadata["kind"] == "dense"
    assert found.agreement is not None and found.agreement.batch_sizes == (2,)
    held(run_onnx(tmp_path / "dense.onnx", images[:2]), dense, images[:2])
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run_onnx(tmp_path / "dense.onnx", images)


@pytest.mark.slow
@pytest.mark.parametrize("name", exports.NETWORKS)
def test_each_network_in_two_runtimes(name: str, tmp_path: Path) -> None:
    need_onnx()
    pytest.importorskip("openvino")
    found = exports.hold(name, tmp_path / "net.onnx")
    assert 0.3 < found["keep"] < 0.7 and found["changing"] > 0.1
    for runtime in ("onnxruntime", "openvino"):
        assert found[runtime]["batch_sizes"] == (1, 5)
        assert found[runtime]["images_apart"] <= 1 and found[runtime]["deviation"] < TOLERANCE
        if not found[runtime]["images_apart"]:
            assert found[runtime]["decided_otherwise"] == 0


# --- torch.export -------------------------------------------------------------------------------


def test_a_pt2_file_gives_the_same_bit_for_bit(dynamic: DynamicModel, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    found = export(dynamic, path, masks=True)
    assert found.format == "torch.export" and found.opset is None
    assert found.agreement is not None and found.agreement.deviation == 0
    notes = {formats.METADATA: ""}
    loaded = torch.export.load(path, extra_files=notes).module()
    assert json.loads(notes[formats.METADATA]) == found.metadata
    for size in (1, 5):
        images = torch.randn(size, 3, 32, 32)
        output, masks = loaded(images)
        held(
            {"output": output, **{f"mask.{k}": v for k, v in masks.items()}},
            dynamic,
            images,
        )
        assert torch.equal(output, dynamic(images))
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith((b"PK", b"\x80")) or "weight" in name, "pickled"
            assert str(ROOT).encode() not in content


@pytest.mark.parametrize("returned", [False, True])
def test_a_dynamic_network_is_exported_as_it_is(returned: Any) -> None:
    network = mixed(toys.Toy(), torch.zeros(2, 3, 8, 8))
    asked = {"return_gates": returned}
    shapes = {"inputs": ({0: torch.export.Dim("batch")},), "return_gates": None}
    images = torch.randn(2, 3, 8, 8)
    program = torch.export.export(network, (images,), asked, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    images = torch.randn(5, 3, 8, 8)
    found, expected = loaded(images, **asked), network(images, **asked)
    if returned is False:
        assert torch.equal(found, expected)
        return
    assert torch.equal(found[0], expected[0])
    for unit, gate in expected[1].items():
        for ours, theirs in zip(gate, found[1][unit], strict=True):
            assert (ours is theirs is None) or torch.equal(ours, theirs)


def test_several_inputs_and_outputs_have_names_of_their_own(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
            return {"sum": left + right, "both": (left, right * 2)}

    example = (torch.randn(2, 3), torch.randn(2, 3))
    found = export(Two(), tmp_path / "two.pt2", example=example)
    assert list(found.inputs) == ["input.0", "input.1"]
    assert list(found.outputs) == ["output.sum", "output.both.0", "output.both.1"]


# --- Whether answers are equal ------------------------------------------------------------------


class Tampered:
    """A runtime that does as PyTorch does, but for what a function changes."""

    def __init__(self, model: nn.Module, change: Any, *, masks: bool = True) -> None:
        self.graph, self.change = Graph(model, masks=masks), change

    def __call__(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        found = {k: v.clone() for k, v in self.graph.named(self.graph(*inputs)).items()}
        self.change(found)
        return found


def nothing(found: dict[str, Tensor]) -> None:
    pass


def flip(found: dict[str, Tensor]) -> None:
    """Another decision for the first image, and what follows from it."""
    if "mask.features.3" in found:
        found["mask.features.3"][0, 2] ^= True
        found["mask.features.6"][0] = True
    found["output"][0] += 1


@pytest.fixture
def toy() -> DynamicModel:
    return mixed(toys.Toy(), torch.zeros(2, 3, 8, 8))


def at_threshold(toy: DynamicModel, images: Images) -> None:
    """Put the threshold of a unit where the logit of the first image's filter 2 is."""
    with torch.no_grad():
        _, gates = toy(images, return_gates="masks")
    toy.gates["features.3"].threshold.fill_(float(gates["features.3"].logits[0, 2]))


def test_equal_answers_are_equal(toy: DynamicModel) -> None:
    batches = [(torch.randn(n, 3, 8, 8),) for n in (1, 4)]
    found = compare(Tampered(toy, nothing), toy, batches, runtime="that")
    assert found.deviation == 0 and found.images == 5 and found.decisions == 5 * 24
    found = compare(Tampered(toy, nothing, masks=False), toy, batches, runtime="that")
    assert found.decisions == 0 and "mask" not in str(found)


@pytest.mark.parametrize("masks", [True, False])
def test_an_image_may_be_decided_otherwise_by_rounding_alone(
    toy: DynamicModel, masks: bool
) -> None:
    images = torch.randn(4, 3, 8, 8)
    runtime: dict[str, Any] = {"runtime": "that"}
    with pytest.raises(ValueError, match="'features.3' another mask|deviates from PyTorch"):
        compare(Tampered(toy, flip, masks=masks), toy, [(images,)], **runtime)
    at_threshold(toy, images)
    found = compare(Tampered(toy, flip, masks=masks), toy, [(images,)], **runtime)
    assert found.images_apart == 1 and found.deviation == 0
    assert (found.decided_otherwise > 0) is masks
    assert "1 image not compared" in str(found)
    with pytest.raises(ValueError, match="nothing could be compared"):
        compare(Tampered(toy, flip, masks=masks), toy, [(images[:1],)], **runtime)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["output"].mul_(1.001), "deviates from PyTorch by 1.0e-03"),
        (lambda found: found["output"][1].fill_(torch.nan), "deviates from PyTorch by inf"),
        (lambda found: found["mask.features.0"].logical_not_(), "'features.0' another mask"),
        (lambda found: found.pop("output"), "gives no 'output', only mask.features.0"),
        (lambda found: found.update(output=found["output"][:, :2]), r"\(3, 2\) for PyTorch's"),
    ],
)
def test_other_answers_are_an_error(change: Any, message: str, toy: DynamicModel) -> None:
    with pytest.raises(ValueError, match=message):
        compare(Tampered(toy, change), toy, [(torch.randn(3, 3, 8, 8),)], runtime="that")


def test_a_file_that_differs_is_not_kept(
    toy: DynamicModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("older")
    monkeypatch.setattr(
        sys.modules["ftwt.exporting.export"],
        "open_program",
        lambda *_: (Tampered(toy, lambda found: found["output"].add_(1), masks=False), "that"),
    )
    with pytest.raises(ValueError, match="that deviates"):
        export(toy, path)
    assert path.read_text() == "older" and [*tmp_path.iterdir()] == [path]


# --- Mistakes -----------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A network for two images and no other number."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(2, -1)


class Guess(nn.Module):
    """A network whose steps depend on what it sees."""

    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


class Listed(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return images, "name"


@pytest.mark.parametrize(
    ("model", "path", "options", "message"),
    [
        (toys.dynamic, "net.pb", {}, "'net.pb': an exported network's name ends in .onnx or .pt2"),
        (toys.dynamic, "n.pt2", {"opset": 20}, "opset=20: it is of ONNX, and 'n.pt2' is of torch"),
        (toys.dynamic, "n.onnx", {"opset": 11}, "opset=11: give 18 or later, or None for 23"),
        (toys.dynamic, "n.pt2", {"batch_size": 0}, "batch_size=0: give 1 or more"),
        (toys.Toy, "n.pt2", {"masks": True}, "masks=True: Toy has no gates"),
        (toys.Toy, "n.pt2", {}, "example=None: a plain network needs an input"),
        (toys.Toy, "n.pt2", {"example": "image"}, "input is a str"),
        (toys.Toy, "n.pt2", {"example": torch.ones(2, 5, 8, 8)}, r"no example of \(2, 5, 8, 8\)"),
        (toys.dynamic, "n.pt2", {"example": torch.ones(2, 3, 9, 9)}, "converted for"),
        (Fixed, "n.pt2", {"example": torch.ones(2, 3)}, "fixes how many images it takes"),
        (Guess, "n.pt2", {"example": torch.ones(2, 3)}, "cannot export Guess: "),
        (Listed, "n.pt2", {"example": torch.ones(2, 3)}, "output.1 is a str"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    model: Any, path: str, options: Any, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(model(), path, **options)
    assert not list(tmp_path.iterdir())


def test_a_second_look_is_exported_pass_by_pass(tmp_path: Path) -> None:
    need_onnx()
    first, second = (toys.dynamic(dropout=0.0, r=r).eval() for r in (0.5, 1.0))
    network = library.SecondLook([first, second], [0.5])
    with pytest.raises(
        ValueError, match="a second look is 2 networks, .* export each of its `networks`"
    ):
        export(network, tmp_path / "both.onnx")
    assert export(network.networks[0], tmp_path / "first.onnx").agreement is not None


def test_a_network_for_one_number_of_images_is_exported_for_it(tmp_path: Path) -> None:
    found = export(Fixed(), tmp_path / "n.pt2", example=torch.ones(2, 3), batch_size=2)
    assert found.inputs == {"input": (2, 3)} and found.agreement is not None


def test_an_operator_that_onnx_does_not_have_is_told(tmp_path: Path) -> None:
    need_onnx()

    class Determinants(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.linalg.eigvals(images).real

    with pytest.raises(ValueError, match="cannot export to ONNX, opset 23: "):
        export(Determinants(), tmp_path / "n.onnx", example=torch.randn(2, 3, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_an_exporter_that_is_missing_is_told(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "onnxscript":
        pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {missing}: pip install 'ftwt\[export\]'"):
        export(toys.dynamic(), tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnx_runtime_the_file_is_written_and_said_to_be_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_onnx()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = export(nn.ReLU(), tmp_path / "n.onnx", example=torch.ones(2, 3))
    assert found.agreement is None and (tmp_path / "n.onnx").exists()
    assert found.unchecked == "onnxruntime is not installed: pip install 'ftwt[export]'"


def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    late = lambda *_, **__: pytest.fail("too late")  # noqa: E731
    monkeypatch.setattr(sys.modules["ftwt.exporting.export"], "trace_program", late)
    with pytest.raises(OSError, match="cannot write .*n.pt2"):
        export(toys.dynamic(), tmp_path / "file" / "n.pt2")


# --- The verb -----------------------------------------------------------------------------------


@pytest.fixture
def ftwt(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""
    return lambda *arguments: Told(capsys, *arguments)


def test_a_run_is_exported_with_what_is_known_of_it(
    tiny_home: Path, dynamic: DynamicModel, ftwt: Any
) -> None:
    save_pretrained(dynamic, "run/model", name=tiny.NAME)
    write_json("run/run.json", {"test": {"reduction": 0.25, "top1": 0.5, "top5": None}})
    told = ftwt("export", "run", "-o", "net.pt2", "--masks", "--batch-size", "2", "--json")
    assert told.status == 0, told.err
    values = json.loads(told.out)
    assert values["inputs"] == {"input": [2, 3, 32, 32]} and values["agreement"]["decisions"] == 80
    notes = values["metadata"]
    assert notes["network"] == tiny.NAME and notes["reduction"] == 0.25 and notes["top1"] == 0.5
    assert notes["preprocessing"]["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert len(notes["classes"]) == 10 and notes["classes"][0] == "airplane"
    save_pretrained(dynamic, "other", name=tiny.NAME)  # of no run
    told = ftwt("export", "other", "-o", "other.pt2", "--no-check", "--json")
    values = json.loads(told.out)
    assert values["agreement"] is None and values["unchecked"] == "not asked for"
    assert values["inputs"] == {"input": ["batch", 3, 32, 32]}
    assert "reduction" not in values["metadata"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nett", "-o", "net.onnx"], "no model or folder 'nett'"),
        ([tiny.NAME, "-o", "net.ftwt"], "'net.ftwt': an exported network's name ends in .onnx"),
        ([tiny.NAME, "-o", "net.pt2", "--masks"], "masks=True: Sequential has no gates"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str], message: str, tiny_home: Path, ftwt: Any
) -> None:
    told = ftwt("export", *arguments)
    assert told.status == 1 and not told.out and message in told.err
