"""Each function that multiplies has a formula, or is named: held to what torch's kernels do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt
from ftwt.graph.work import count_work
from kernels import oracle

TOKENS, MEMORY = torch.randn(2, 7, 32), torch.randn(2, 5, 32)
IMAGES = torch.randn(2, 4, 7, 8)
ADDED = (torch.randn(7, 4), TOKENS[0], torch.randn(32, 4))
WHOLE = torch.ones(32, 16, dtype=torch.int8)


class Call(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def einsum(equation: str) -> nn.Module:
    return Call(lambda *factors: torch.einsum(equation, *factors))


MODULES: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "Conv1d": (nn.Conv1d(7, 8, 3), (TOKENS,)),
    "Conv2d, groups": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (IMAGES,)),
    "Conv2d, one image": (nn.Conv2d(4, 6, 3), (IMAGES[0],)),
    "Conv3d": (nn.Conv3d(2, 4, 3, groups=2), (torch.randn(2, 2, 4, 5, 6),)),
    "ConvTranspose1d": (nn.ConvTranspose1d(7, 4, 3), (TOKENS,)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (IMAGES,)),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 4, 2), (torch.randn(2, 2, 4, 5, 6),)),
    "Linear": (nn.Linear(32, 5), (TOKENS,)),
    "Linear, one vector": (nn.Linear(32, 5), (TOKENS[0, 0],)),
    "Bilinear": (nn.Bilinear(32, 32, 5), (MEMORY, MEMORY)),
    "MultiheadAttention": (nn.MultiheadAttention(32, 4, batch_first=True), (TOKENS,) * 3),
    "MultiheadAttention, other widths": (
        nn.MultiheadAttention(32, 4, kdim=16, vdim=8, batch_first=True),
        (TOKENS, torch.randn(2, 9, 16), torch.randn(2, 9, 8)),
    ),
    "MultiheadAttention, more keys": (
        nn.MultiheadAttention(32, 4, add_bias_kv=True, add_zero_attn=True),
        (TOKENS,) * 3,
    ),
    "MultiheadAttention, one sample": (nn.MultiheadAttention(32, 4), (TOKENS[0],) * 3),
    "TransformerEncoderLayer": (
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
        (TOKENS,),
    ),
    "TransformerDecoderLayer": (
        nn.TransformerDecoderLayer(32, 4, 64, batch_first=True),
        (TOKENS, MEMORY),
    ),
    "LSTM": (nn.LSTM(32, 16, 2, bidirectional=True, proj_size=8), (TOKENS,)),
    "GRU": (nn.GRU(32, 16, 2, batch_first=True), (TOKENS,)),
    "RNN": (nn.RNN(32, 16, nonlinearity="relu", bidirectional=True), (TOKENS,)),
    "LSTMCell": (nn.LSTMCell(32, 16), (TOKENS[0],)),
    "GRUCell": (nn.GRUCell(32, 16), (TOKENS[0],)),
    "RNNCell": (nn.RNNCell(32, 16), (TOKENS[0],)),
    "Embedding": (nn.Embedding(10, 4), (torch.tensor([1, 2]),)),
    "EmbeddingBag": (nn.EmbeddingBag(10, 4), (torch.tensor([[1, 2]]),)),
    "BatchNorm2d": (nn.BatchNorm2d(4), (IMAGES,)),
    "LayerNorm": (nn.LayerNorm((7, 32)), (TOKENS,)),
    "GroupNorm": (nn.GroupNorm(2, 4), (IMAGES,)),
    "PReLU": (nn.PReLU(4), (IMAGES,)),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(32, 5)), (TOKENS,)),
    "attention": (
        Call(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True)), (TOKENS,)
    ),
    "attention, few heads of keys": (
        Call(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True)),
        (torch.randn(2, 8, 5, 4), torch.randn(2, 2, 9, 4)),
    ),
    "@": (Call(lambda a, b: a @ b), (torch.randn(3, 1, 4, 5), torch.randn(1, 2, 5, 6))),
    "@ of a vector": (Call(torch.matmul), (TOKENS, TOKENS[0, 0])),
    "vector @": (Call(torch.matmul), (TOKENS[0, 0], torch.randn(32, 4))),
    "mm": (Call(torch.mm), (TOKENS[0], torch.randn(32, 4))),
    "bmm": (Call(torch.bmm), (TOKENS, MEMORY.mT)),
    "mv": (Call(torch.mv), (TOKENS[0], TOKENS[0, 0])),
    "dot": (Call(torch.dot), (TOKENS[0, 0],) * 2),
    "inner": (Call(torch.inner), (TOKENS, MEMORY[0])),
    "addmm": (Call(torch.addmm), (torch.randn(7, 4), TOKENS[0], torch.randn(32, 4))),
    "addmv": (Call(torch.addmv), (torch.randn(7), TOKENS[0], TOKENS[0, 0])),
    "addmm_": (Call(lambda x, a, b: x.clone().addmm_(a, b)), ADDED),
    "addmm, out": (Call(lambda x, a, b: torch.addmm(x, a, b, out=torch.empty(7, 4))), ADDED),
    "addmv_": (
        Call(lambda a, b: a[:, 0].clone().addmv_(a, b)), (TOKENS[0], TOKENS[0, 0])
    ),
    "baddbmm_": (
        Call(lambda a, b: torch.zeros(2, 7, 5).baddbmm_(a, b)), (TOKENS, MEMORY.mT)
    ),
    "_int_mm": (Call(torch._int_mm), (WHOLE, WHOLE.T)),
    "normalize": (Call(lambda x: F.normalize(x, dim=1)), (TOKENS,)),
    "baddbmm": (Call(torch.baddbmm), (torch.randn(2, 7, 5), TOKENS, MEMORY.mT)),
    "addbmm": (Call(torch.addbmm), (torch.randn(7, 5), TOKENS, MEMORY.mT)),
    "tensordot": (
        Call(lambda a, b: torch.tensordot(a, b, ([1, 2], [1, 0]))),
        (TOKENS, torch.randn(32, 7, 3)),
    ),
    "conv_tbc": (
        Call(torch.conv_tbc), (torch.randn(9, 2, 4), torch.randn(3, 4, 5), torch.zeros(5))
    ),
    "einsum": (einsum("bij,bkj->bik"), (TOKENS, MEMORY)),
    "einsum, implicit": (einsum("ij,jk"), (TOKENS[0], torch.randn(32, 4))),
    "einsum, dots": (einsum("...ij,kj->...ik"), (TOKENS, MEMORY[0])),
    "einsum, value by value": (einsum("bij,bij->bij"), (TOKENS, TOKENS)),
    "einsum, summed beforehand": (einsum("bij,bkm->bim"), (TOKENS, MEMORY)),
    "einsum, three": (
        einsum("bij,jk,kl->bil"), (TOKENS, torch.randn(32, 6), torch.randn(6, 3))
    ),
    "einsum, one": (einsum("bij->bj"), (TOKENS,)),
    "outer": (Call(torch.outer), (TOKENS[0, 0], TOKENS[0, 1])),
    "grid_sample": (
        Call(lambda x, grid: F.grid_sample(x, grid, align_corners=False)),
        (IMAGES, torch.randn(2, 4, 5, 2)),
    ),
}  # fmt: skip


FREE = (
    "Embedding, EmbeddingBag, BatchNorm2d, LayerNorm, GroupNorm, PReLU, outer, grid_sample, "
    "normalize, einsum value by value, einsum summed beforehand, einsum one"
).split(", ")


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", MODULES)
def test_work_is_that_of_the_kernels(name: str) -> None:
    model, inputs = MODULES[name]
    counter = count_work(model.eval(), *inputs)
    assert counter.macs == oracle.count(model, *inputs)
    assert not counter.uncounted
    assert (counter.macs == 0) is (name.replace(",", "") in FREE)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_by_hand() -> None:
    attention = MODULES["MultiheadAttention"]
    assert count_work(attention[0].eval(), *attention[1]).macs == 2 * (
        7 * 32 * 96 + 2 * 7 * 7 * 32 + 7 * 32 * 32
    )
    lstm = count_work(MODULES["LSTM"][0], TOKENS).macs  # gates of 4 x 16, projected to 8, two ways
    first, second = 64 * (32 + 8) + 16 * 8, 64 * (16 + 8) + 16 * 8
    assert lstm == 14 * 2 * (first + second)
    assert count_work(MODULES["GRUCell"][0], TOKENS[0]).macs == 7 * 48 * (32 + 16)
    assert count_work(*MODULES["Bilinear"][:1], MEMORY, MEMORY).macs == 10 * 5 * (32 * 32 + 32)


@pytest.mark.filterwarnings("ignore:A window was not provided")
@pytest.mark.parametrize(
    "function",
    [
        torch.cdist,
        lambda a, b: torch.linalg.multi_dot([a[0], b[0].T, a[0, :5]]),
        lambda a, b: torch.fft.rfft2(a),
        lambda a, b: torch.linalg.solve(a @ a.mT, a),
        lambda a, b: torch.cov(a[0]),
        lambda a, b: torch.matrix_power(a[0, :, :7], 5),
        lambda a, b: torch.stft(a[0], 4, return_complex=True),
        lambda a, b: a[0, :, :7].inverse(),
        lambda a, b: torch.vmap(lambda x, y: x @ y.mT)(a, b),
        lambda a, b: torch.vmap(lambda x: F.linear(x, b[0]))(a),
        lambda a, b: torch.vmap(lambda x: F.scaled_dot_product_attention(x, x, x))(a),
    ],
    ids="cdist multi_dot fft solve cov matrix_power stft inverse vmap vmap2 vmap3".split(),
)
def test_what_multiplies_maps_and_has_no_formula_is_named(function: Any) -> None:
    assert len(count_work(Call(function), TOKENS, MEMORY).uncounted) == 1


@pytest.mark.parametrize(
    "function",
    [
        torch.cdist,
        lambda a, b: torch.linalg.svd(a),
        lambda a, b: torch.sparse.mm(a[0].to_sparse(), b[0].T),
        lambda a, b: torch._weight_int8pack_mm(a[0], WHOLE.new_ones(5, 32), torch.ones(5)),
    ],
    ids="cdist svd sparse int8".split(),
)
def test_the_second_count_refuses_what_it_cannot_look_into(function: Any) -> None:
    with pytest.raises(ValueError, match="multiplies, and cannot be looked into"):
        oracle.count(Call(function), TOKENS, MEMORY)


def quantised(model: nn.Module, images: Tensor) -> nn.Module:
    """The network in int8, by torch's own tool."""
    from torch.ao import quantization

    wrapped = nn.Sequential(quantization.QuantStub(), model, quantization.DeQuantStub()).eval()
    wrapped.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(wrapped)
    prepared(images)
    return quantization.convert(prepared)


@pytest.mark.filterwarnings("ignore")  # torch says that its tool is to move
def test_a_network_in_int8_multiplies_as_often() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4))
    wanted = ftwt.count_macs(model, IMAGES).total
    network = quantised(model, IMAGES)
    assert count_work(network, IMAGES[:1]).macs == wanted == 30 * 6 * 36 + 720
    assert ftwt.count_macs(network, IMAGES).total == wanted
    labels = torch.zeros(len(IMAGES), dtype=torch.long)
    assert ftwt.evaluate(network, [(IMAGES, labels)]).dense_macs == wanted


class Beside(nn.Module):
    """A convolution with a gate, and something else on 64 tokens of 32."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.other, self.head = other, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu()).relu().flatten(2).mT
        found = self.other(x)
        return self.head((x + found).mean(1))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(32, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@pytest.mark.parametrize(
    ("other", "macs"),
    [
        (Attends, 64 * 32 * 96 + 2 * 64 * 64 * 32 + 64 * 32 * 32),
        (Recurs, 64 * 4 * 32 * 64),
        (lambda: Call(lambda q: F.scaled_dot_product_attention(q, q, q)), 2 * 64 * 64 * 32),
        (lambda: Call(lambda q: q @ q.mT @ q), 2 * 64 * 64 * 32),
    ],
    ids=["attention", "lstm", "scaled dot product", "matmul"],
)
def test_a_reduction_is_of_all_work(other: Callable[[], nn.Module], macs: int) -> None:
    model, images = Beside(other()).eval(), torch.randn(2, 3, 8, 8)
    convolutions = 64 * (27 * 32 + 32 * 32) + 32 * 5
    assert ftwt.count_macs(model, images).total == convolutions + macs
    dynamic = ftwt.convert(model, images)
    mask = torch.arange(32)[None] < 16
    count = dynamic.macs({"stem": mask})
    saved = 64 * 16 * (27 + 32) - 32 * (3 + 32)  # filters, and what reads them; two predictors
    saved += 32 * 16  # the second predictor reads half
    assert count.reduction.item() == pytest.approx(saved / (convolutions + macs))
    evaluated = ftwt.evaluate(model, [(images, torch.tensor([0, 1]))])
    assert evaluated.dense_macs == convolutions + macs


def test_what_has_no_formula_is_named_in_summary_and_warning() -> None:
    model = Beside(Call(lambda x: x * torch.cdist(x, x).mean(2, keepdim=True))).eval()
    images = torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"no formula for it: cdist \(cdist\); every count"):
        dynamic = ftwt.convert(model, images)
    assert "not counted, no formula: cdist (cdist)" in str(dynamic.summary())
    with pytest.warns(UserWarning, match="no formula"):
        assert ftwt.count_macs(model, images).uncounted == ("cdist (cdist)",)
    with pytest.warns(UserWarning, match="no formula"):
        ftwt.evaluate(model, [(images, torch.tensor([0, 1]))])


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_weights_that_no_function_is_seen_to_take_are_named() -> None:
    model = Beside(torch.jit.script(nn.Linear(32, 32))).eval()
    images = torch.randn(2, 3, 8, 8)
    assert "RecursiveScriptModule" in count_work(model, images).uncounted
