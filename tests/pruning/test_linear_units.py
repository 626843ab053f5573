"""Hidden linear layers as units: of tokens, of pixels with channels last, of vectors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_macs import Network, assert_counted, bare, conv
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ftwt
from brute_force import positive, random_gates
from forced import MASKS, build, check_against, scramble
from ftwt.lowering import lower
from ftwt.pruning.method import saliency, target_mask


class Mlp(nn.Module):
    """Two linear layers and what lies between."""

    def __init__(self, width: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(width, hidden), activation or nn.GELU()
        self.drop, self.fc2 = nn.Dropout(0.1), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class Glu(nn.Module):
    """A gated MLP: one hidden layer scales the other."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.value(x))


def tokens(n: Any, x: Tensor) -> Tensor:
    """A transformer's two blocks without attention: (B, N, C)."""
    y = n.stem(x).flatten(2).transpose(1, 2)
    y = y + n.first(n.norm1(y))
    y = y + n.second(n.norm2(y))
    return y.transpose(1, 2).unflatten(2, (8, 8))


def pixels(n: Any, x: Tensor) -> Tensor:
    """ConvNeXt's block: (B, H, W, C) between a depthwise convolution and a residual add."""
    y = n.stem(x)
    return y + n.mlp(n.depthwise(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mixer(n: Any, x: Tensor) -> Tensor:
    """MLP-Mixer's block: linear layers over tokens, then over channels."""
    y = n.stem(x).flatten(2)
    y = y + n.over_tokens(y)
    y = y.transpose(1, 2)
    return (y + n.over_channels(y)).mean(1).unflatten(1, (8, 1, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "vectors": (
        lambda: nn.Sequential(
            bare(3, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 12), nn.ReLU(),
            nn.Dropout(0.1), nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU6(), nn.Linear(10, 4),
        ),
        ["3", "6"],
    ),
    "tokens": (
        lambda: Network(
            tokens, stem=bare(3, 8), norm1=nn.LayerNorm(8), first=Mlp(8, 16),
            norm2=nn.LayerNorm(8), second=Glu(8, 12),
        ),
        ["first.fc1", "second.gate"],
    ),
    "pixels": (
        lambda: Network(
            pixels, stem=bare(3, 8), depthwise=conv(8, 8, groups=8), mlp=Mlp(8, 16, nn.ReLU())
        ),
        ["mlp.fc1"],
    ),
    "mixer": (
        lambda: Network(
            mixer, stem=bare(3, 8), over_tokens=Mlp(64, 6), over_channels=Mlp(8, 6, nn.SiLU())
        ),
        ["over_tokens.fc1", "over_channels.fc1"],
    ),
}  # fmt: skip
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def create(name: str, **options: Any) -> tuple[nn.Module, ftwt.DynamicModel]:
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    return model, ftwt.convert(model, IMAGES, **({"linear": True, "rank": 2} | options))


def linear_units(dynamic: ftwt.DynamicModel) -> list[str]:
    return [unit.name for unit in dynamic.units if unit.kind == "linear"]


@pytest.mark.parametrize("name", NETWORKS)
def test_open_gates_change_nothing_and_can_be_taken_out(name: str) -> None:
    model, dynamic = create(name)
    assert linear_units(dynamic) == NETWORKS[name][1]
    results = []
    for network, options in ((model, {}), (dynamic, {"gates": "open"})):
        torch.manual_seed(1)
        output = network(IMAGES, **options)
        output.square().sum().backward()
        results.append(output)
    assert torch.equal(*results)
    ours = {n: p.grad for n, p in dynamic.network.named_parameters() if "ftwt_gates" not in n}
    assert ours.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(ours[n], p.grad) for n, p in model.named_parameters())

    model.eval(), dynamic.eval()
    plain = dynamic.restore()
    assert torch.equal(plain(IMAGES), model(IMAGES))
    assert list(plain.state_dict()) == list(model.state_dict())
    assert not any("moved" in node.meta for node in plain.graph.nodes)
    assert linear_units(ftwt.convert(plain, IMAGES, linear=True, rank=2)) == NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_option_makes_them_units(name: str) -> None:
    assert not linear_units(create(name, linear=False)[1])
    assert not any("fc" in unit for unit in create(name, linear=False)[1].reasons)


@pytest.mark.parametrize("keep", [0.2, 0.5])
@pytest.mark.parametrize(
    "options", [{}, {"pool": "both", "rank": 3}, {"head": "softmax", "pool": "max"}], ids=str
)
@pytest.mark.parametrize("name", NETWORKS)
def test_executed_macs_are_those_that_matter(
    name: str, options: dict[str, Any], keep: float
) -> None:
    images = IMAGES.double()
    model = positive(NETWORKS[name][0]())
    dynamic = ftwt.convert(model, images, **({"linear": True, "rank": 2} | options))
    random_gates(dynamic, len(images), keep=keep)
    assert not dynamic.channels.unknown
    assert_counted(dynamic, images)


@pytest.mark.parametrize("name", NETWORKS)
def test_dense_macs_are_half_of_torchs_flops(name: str) -> None:
    model, dynamic = create(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(IMAGES[:1])
    assert 2 * dynamic.macs({}).dense == counter.get_total_flops()


def test_masked_neurons_save_rows_of_one_layer_and_columns_of_the_next() -> None:
    _, dynamic = create("pixels")
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, :5] = True
    layers = dynamic.macs({"mlp.fc1": mask}).layers
    assert layers["mlp.fc1"].item() == 64 * 8 * 5
    assert layers["mlp.fc2"].item() == 64 * 5 * 8
    assert layers["stem.0"].item() == 64 * 9 * 3 * 8


@pytest.mark.parametrize("name", ["tokens", "pixels", "mixer"])
def test_a_sample_has_one_mask_for_all_its_tokens(name: str) -> None:
    """The masked network is the network whose hidden layer is masked by hand."""
    model, dynamic = create(name, r=0.7)
    model.eval(), dynamic.eval()
    output, gates = dynamic(IMAGES, gates="target", return_gates=True)
    for unit in dynamic.units:
        mask = gates[unit.inherits or unit.name].mask
        assert mask.shape == (3, unit.out_channels)

        def silence(module: nn.Module, given: Any, value: Tensor, mask=mask, kind=unit.kind):
            space = [1] * (value.dim() - 2)
            shape = (3, -1, *space) if kind == "conv" else (3, *space, -1)
            return value * mask.reshape(shape)

        model.get_submodule(unit.name).register_forward_hook(silence)  # activations keep zero
    assert torch.allclose(output, model(IMAGES), atol=1e-6)
    assert any((~gates[unit].mask).any() for unit in linear_units(dynamic))


def test_saliency_is_taken_over_tokens() -> None:
    _, dynamic = create("tokens", r=0.6)
    dynamic.eval()
    seen = {}
    gate = dynamic.gates["first.fc1"]
    gate.register_forward_hook(lambda _, given, __: seen.update(inputs=given[0], outputs=given[1]))
    gates = dynamic(IMAGES, gates="open", return_gates=True)[1]
    assert seen["inputs"].shape == (3, 8, 64) and seen["outputs"].shape == (3, 16, 64)
    assert torch.equal(gates["first.fc1"].saliency, seen["outputs"].abs().amax(2))
    target = target_mask(saliency(seen["outputs"]), 0.6)
    assert torch.equal(gates["first.fc1"].target, target)


def test_r_of_1_is_exact_where_the_activation_has_zeros_of_its_own() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    vectors = torch.randn(5, 6)
    dynamic = ftwt.convert(model, vectors, r=1.0, linear=True, rank=1).eval()
    output, gates = dynamic(vectors, gates="target", return_gates=True)
    assert 0.2 < gates["0"].mask.float().mean() < 0.8
    assert torch.allclose(output, model(vectors), atol=1e-4)


REASONS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "no activation": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)),
        {"0": "no activation follows it alone", "1": "no activation follows it alone"},
    ),
    "two users": (
        lambda: Network(
            lambda n, x: n.b((lambda y: F.relu(y) + y)(n.a(x))), a=nn.Linear(8, 6),
            b=nn.Linear(6, 8),
        ),
        {"a": "no activation follows it alone"},
    ),
    "an activation that lifts zero": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2)),
        {"0": "its activation, Sigmoid, does not keep zero"},
    ),
    "the output": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten()),
        {"0": "its neurons are the network's outputs"},
    ),
    "shared": (
        lambda: (lambda a: nn.Sequential(a, nn.ReLU(), a, nn.ReLU(), nn.Linear(4, 2)))(
            nn.Linear(4, 4)
        ),
        {"0": "called 2 times: one mask cannot serve them all"},
    ),
    "as dear as its predictor": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        {"0": "its predictor would cost as much as the layer; rank=16, say, makes it cheaper"},
    ),
    "windows in the batch": (
        lambda: Network(
            lambda n, x: n.b(F.relu(n.a(x.reshape(-1, 2, 4)))).reshape(-1, 8, 2), a=nn.Linear(4, 6),
            b=nn.Linear(6, 4),
        ),
        {"a": "its rows are not samples: something else is folded into the batch"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_a_linear_layer_that_is_no_unit_says_why(name: str) -> None:
    model, reasons = REASONS[name]
    rank = None if "dear" in name else 1
    example = torch.randn(2, 8, 2) if name == "windows in the batch" else torch.randn(2, 4)
    if name == "two users":
        example = torch.randn(2, 3, 8)
    network = model()
    if isinstance(network, Network):
        network.last = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
        network(example)
    with pytest.warns(UserWarning, match="no unit found"):
        dynamic = ftwt.convert(network, example, linear=True, rank=rank)
    for unit, reason in reasons.items():
        assert reason in dynamic.reasons[unit]
        assert f"not gated: {unit} " in str(dynamic.summary())
    assert torch.equal(dynamic.eval()(example), network.eval()(example))


def test_layers_inside_what_is_traced_whole_are_named() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4))
    with pytest.warns(UserWarning, match="no unit found"):
        dynamic = ftwt.convert(model, torch.randn(2, 5, 8), linear=True)
    whole = "inside 0, which is traced as one operation"
    assert dynamic.reasons["0.linear1"] == dynamic.reasons["0.self_attn.out_proj"] == whole
    assert f"not gated: 0.linear1: {whole}" in str(dynamic.summary())


def test_frames_in_the_batch_have_no_gate_of_their_own() -> None:
    model = Network(
        lambda n, x: n.out(n.frame(x.reshape(-1, 3, 8, 8)).reshape(-1, 16, 8, 8)),
        frame=bare(3, 8), out=bare(16, 8),
    )  # fmt: skip
    video = torch.rand(3, 2, 3, 8, 8)
    dynamic = ftwt.convert(model, video)
    assert dynamic.reasons["frame.0"].startswith("its rows are not samples")
    assert list(dynamic.gates) == ["out.0"]
    assert dynamic.macs({}).dense == ftwt.count_macs(model, video).total
    mask = torch.arange(8)[None] < torch.tensor([[2], [8], [5]])
    layers = dynamic.macs({"out.0": mask}).layers
    assert layers["frame.0"].tolist() == [2 * 64 * 9 * 3 * 8] * 3
    assert layers["out.0"].tolist() == [64 * 9 * 16 * kept for kept in (2, 8, 5)]


def test_a_network_of_linear_layers_alone_is_told_of_the_option() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match="no convolution; linear=True gates hidden linear layers"):
        ftwt.convert(model, torch.randn(2, 4))


def test_skip_names_linear_layers_too() -> None:
    _, dynamic = create("tokens", skip=["first"])
    assert linear_units(dynamic) == ["second.gate"]
    assert dynamic.reasons["first.fc1"] == "skipped on request"
    with pytest.raises(ValueError, match="skip names no convolution or linear layer: 'firts'"):
        create("tokens", skip=["firts"])
    with pytest.raises(ValueError, match="skip names no convolution: 'first'"):
        create("tokens", linear=False, skip=["first"])


def test_min_gain_judges_them_by_what_they_save() -> None:
    _, dynamic = create("pixels", min_gain=0.2)
    assert linear_units(dynamic) == list(dynamic.gates) == ["mlp.fc1"]
    with pytest.warns(UserWarning, match="mlp.fc1: its gate saves .* below min_gain=0.9"):
        create("pixels", min_gain=0.9)
    assert linear_units(create("vectors", rank=None, min_gain=-1.0)[1]) == ["3", "6"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    """Estimate, allocate, train, calibrate, evaluate, record, freeze, save, load."""
    model, dynamic = create(name, r=0.8)
    images = torch.rand(64, 3, 8, 8)
    batches = [(part, torch.arange(16) % 4) for part in images.split(16)]
    options = {"linear": True, "rank": 2}
    plan = ftwt.estimate(model, batches, **options)
    assert {unit.name for unit in plan.units} == set(dynamic.gates)
    allocation = plan.allocate(reduction=sum(plan.reduction[:2]) / 4)
    assert allocation.r.keys() == dynamic.gates.keys()
    dynamic.set_r(allocation.r)

    before = {name: p.detach().clone() for name, p in dynamic.named_parameters()}
    ftwt.train(dynamic, batches, batches, ftwt.TrainConfig(epochs=1, cooldown=1), progress=False)
    for unit in linear_units(dynamic):
        weight = f"network.ftwt_gates.{unit}.predictor.linear.weight"
        assert not torch.equal(before[weight], dynamic.get_parameter(weight))
    dynamic.eval()
    ours = ftwt.evaluate(dynamic, batches)
    assert {unit.name for unit in ours.units} == set(dynamic.gates)
    recording = ftwt.record(dynamic, batches, images=4)
    assert recording.executed_macs.mean() == pytest.approx(ours.executed_macs, rel=1e-6)
    assert recording.packed_masks.keys() == dynamic.gates.keys()
    maps = {unit: heat.shape for unit, heat in recording.dynamic_heatmaps.items()}
    first = next(iter(dynamic.gates))
    assert maps == {first: (4, 8, 8)} | ({"mlp.fc1": (4, 8, 8)} if name == "pixels" else {})
    if name != "pixels":
        with pytest.raises(ValueError, match="has no rows and columns to keep a heatmap of"):
            ftwt.record(dynamic, batches, units=linear_units(dynamic))
    recording.save(tmp_path / "recording.safetensors")

    twin = dynamic.freeze(batches).eval()
    assert not twin.predictors and twin.gates.keys() == dynamic.gates.keys()
    for network in (dynamic, twin):
        ftwt.save_pretrained(network, tmp_path / "net")
        assert json.loads((tmp_path / "net" / "config.json").read_text())["convert"]["linear"]
        again = ftwt.from_pretrained(tmp_path / "net", model=model)
        assert torch.equal(again(images), network(images))
        assert again.units == network.units


def test_vectors_run_on_the_engine() -> None:
    for options in ({}, {"head": "softmax", "pool": "both"}, {"rank": None, "min_gain": -1.0}):
        model = scramble(create("vectors", **options)[1]).eval()
        assert linear_units(model) == ["3", "6"]
        program = lower(model)
        assert [gate.unit for gate in program.gates] == ["0.0", "3", "6"]
        for how in MASKS:
            check_against(model, build(program), IMAGES, how)
    twin = model.freeze([(IMAGES, torch.zeros(3))])
    check_against(twin, build(lower(twin)), IMAGES, "predicted")


@pytest.mark.parametrize(
    ("name", "layer"),
    [("tokens", "LayerNorm"), ("pixels", "mlp.fc1"), ("mixer", "over_tokens.fc1")],
)
def test_the_engine_refuses_tokens_and_names_the_layer(name: str, layer: str) -> None:
    with pytest.raises(ValueError, match=f"cannot lower .*{layer}"):
        ftwt.compile(create(name)[1])


def test_large_activations_of_one_token_do_not_hide_in_the_mean() -> None:
    """A predictor that pools by maximum sees a token that stands out."""
    gate = create("tokens", pool="max", rank=None)[1].gates["first.fc1"]
    quiet, loud = torch.zeros(1, 8, 64), torch.zeros(1, 8, 64)
    loud[0, 3, 40] = 9
    gate.eval().predictor.linear.weight.data.fill_(1.0)
    assert gate.predictor(loud).sum() > gate.predictor(quiet).sum()
