import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ftwt.pruning.method import (
    Gate,
    GateOutput,
    MaskPredictor,
    Standardize,
    entry,
    hard_mask,
    mask_loss,
    mass,
    saliency,
    silence,
    target_mask,
)

CLOSE = 1e-5  # of a mass near 1 in single precision, summed over some dozens of filters

widths = st.integers(1, 40)
strengths = st.one_of(
    widths.flatmap(lambda n: st.lists(st.floats(0, 1e6, width=32), min_size=n, max_size=n)),
    widths.flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n, max_size=n)),  # ties, zeros
)
shares = st.floats(0.01, 1.0)


def one(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


@given(strengths, shares)
def test_the_mass_kept_reaches_r_and_not_without_the_smallest(
    values: list[float], r: float
) -> None:
    shared, kept = mass(one(values))[0], target_mask(one(values), r)[0]
    assert kept.any()
    if shared.any():
        assert shared[kept].sum() >= r - CLOSE
    assert shared[kept].sum() - shared[kept].min() < r + CLOSE


@given(strengths, shares)
def test_no_filter_that_is_left_out_is_larger_than_one_that_is_kept(
    values: list[float], r: float
) -> None:
    strength = one(values)
    for threshold in (r, *entry(strength)[0].clamp(1e-6, 1).tolist()):  # and right on each border
        kept = target_mask(strength, threshold)[0]
        assert kept.all() or strength[0, kept].min() >= strength[0, ~kept].max()


@given(strengths, shares, shares, st.sampled_from(["mass", "uniform"]))
def test_a_larger_r_keeps_what_a_smaller_keeps(
    values: list[float], first: float, second: float, variant: str
) -> None:
    small, large = sorted((first, second))
    kept = target_mask(one(values), small, variant)
    assert not (kept & ~target_mask(one(values), large, variant)).any()


@given(strengths, shares, st.integers(-40, 40))
def test_scale_does_not_matter(values: list[float], r: float, exponent: int) -> None:
    values = [value if value > 1e-6 else 0.0 for value in values]  # stay out of denormal numbers
    scaled = one(values) * 2.0**exponent
    assert torch.equal(target_mask(scaled, r), target_mask(one(values), r))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), shares, st.randoms())
def test_order_does_not_matter(values: list[int], r: float, random) -> None:
    order = random.sample(range(len(values)), len(values))
    kept, shuffled = target_mask(one(values), r)[0], target_mask(one(values)[:, order], r)[0]
    assert one(values)[0, kept].sort().values.tolist() == (
        one(values)[0, order][shuffled].sort().values.tolist()
    )
    if len(set(values)) == len(values):
        assert torch.equal(kept[order], shuffled)


@given(strengths, shares)
def test_the_uniform_variant_keeps_the_same_share_of_every_sample(
    values: list[float], r: float
) -> None:
    shared, kept = mass(one(values))[0], target_mask(one(values), r, "uniform")[0]
    assert kept.sum() == math.ceil(round(r * len(values), 5))
    assert kept.all() or shared[kept].min() >= shared[~kept].max()


@given(strengths, shares)
def test_entry_is_the_r_above_which_a_filter_is_kept(values: list[float], r: float) -> None:
    enters = entry(one(values))[0]
    assert torch.equal(target_mask(one(values), r)[0], enters < r)
    assert enters.min() == 0
    shared = mass(one(values))[0]
    for i in range(len(values)):
        if torch.isfinite(enters[i]):
            larger = shared[shared > shared[i]].sum()
            assert larger - CLOSE <= enters[i] <= larger + shared[shared == shared[i]].sum() + CLOSE


@pytest.mark.parametrize(
    ("values", "r", "kept"),
    [
        ([4, 3, 2, 1], 0.4, [1, 0, 0, 0]),  # reaches r exactly
        ([4, 3, 2, 1], 0.41, [1, 1, 0, 0]),
        ([1, 2, 3, 4], 0.9, [0, 1, 1, 1]),
        ([4, 3, 2, 1], 1.0, [1, 1, 1, 1]),
        ([1, 1, 1, 1], 0.5, [1, 1, 0, 0]),  # ties: the first ones
        ([0, 5, 0, 5], 1.0, [0, 1, 0, 1]),  # r = 1 drops what is silent
        ([0, 0, 0, 0], 0.9, [1, 0, 0, 0]),  # something is always kept
        ([1, 1e6, 1, 1], 0.5, [0, 1, 0, 0]),  # one dominates, and crosses r by itself
        ([1, 1e6, 1, 1], 1.0, [0, 1, 0, 0]),  # the others have at most 1e-5 of the mass
        ([20, 1e6, 20, 20], 1.0, [1, 1, 1, 1]),  # and here more
        ([7], 0.01, [1]),
        ([0], 1.0, [1]),
    ],
)
def test_targets_by_hand(values: list[float], r: float, kept: list[int]) -> None:
    assert target_mask(one(values), r).tolist() == [[bool(k) for k in kept]]
    assert target_mask(one(values), torch.tensor(r)).tolist() == [[bool(k) for k in kept]]


def test_rounding_silences_no_filter_and_ties_go_to_the_first() -> None:
    strength = torch.rand(64, 512)
    assert torch.equal(target_mask(strength, 1.0), mass(strength) > 0)
    kept = target_mask(torch.ones(1, 512), 0.25)[0]
    assert kept[:128].all() and not kept[128:].any()


def test_samples_are_judged_by_themselves_and_k_differs() -> None:
    strength = torch.tensor([[9.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert target_mask(strength, 0.9).sum(1).tolist() == [1, 3]
    assert torch.equal(target_mask(strength, 0.9)[1:], target_mask(strength[1:], 0.9))


def test_mass_sums_to_one_without_what_is_silent() -> None:
    assert torch.allclose(mass(one([1, 2, 1])), one([0.25, 0.5, 0.25]))
    assert mass(one([1e-6, 1.0]))[0].tolist() == [0, 1]
    assert mass(one([0, 0]))[0].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 2)])
def test_saliency_follows_its_formula(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape)
    flat = features.flatten(2) if len(shape) > 2 else features[..., None]
    expected = {
        "peak": flat.abs().amax(2),
        "mean": flat.abs().mean(2),
        "energy": flat.square().sum(2),
        "norm": torch.linalg.vector_norm(flat, dim=2),
    }
    orders = [features]
    if len(shape) == 4:
        orders.append(features.contiguous(memory_format=torch.channels_last))
    if len(shape) == 5:
        orders.append(features.contiguous(memory_format=torch.channels_last_3d))
    for ordered in orders:
        for kind, value in expected.items():
            assert torch.allclose(saliency(ordered, kind), value), kind  # type: ignore[arg-type]
    assert torch.equal(saliency(features), saliency(features, "peak"))


def test_energy_does_not_overflow_in_half_precision() -> None:
    features = torch.full((1, 1, 8, 8), 300.0, dtype=torch.float16)
    assert saliency(features, "energy").item() == 300**2 * 64


def trained(pool: str, head: str, rank: int | None) -> MaskPredictor:
    """A predictor as training might leave it."""
    predictor = MaskPredictor(5, 7, pool=pool, head=head, rank=rank)  # type: ignore[arg-type]
    for parameter in predictor.parameters():
        nn.init.normal_(parameter)
    for _ in range(5):
        predictor(2 + 3 * torch.randn(16, 5, 4, 4))
    return predictor.eval()


def pooled(features: Tensor, pool: str) -> Tensor:
    parts = {"max": [features.amax((2, 3))], "mean": [features.mean((2, 3))]}
    return torch.cat(parts.get(pool, parts["max"] + parts["mean"]), 1)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("pool", ["max", "mean", "both"])
def test_a_standardized_head_folds_into_one_affine_layer(pool: str, rank: int | None) -> None:
    predictor, features = trained(pool, "standardized", rank), torch.randn(6, 5, 4, 4)
    predictor.standardize.running_var[0] = 0  # an input that never changes
    weight, bias = predictor.fold()
    assert weight.shape == (7, 10 if pool == "both" else 5)
    logits = predictor(features)
    assert logits.std() > 0.1
    assert torch.allclose(F.linear(pooled(features, pool), weight, bias), logits, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("pool", ["max", "mean", "both"])
def test_a_softmax_head_is_the_published_one(pool: str, rank: int | None) -> None:
    predictor, features = trained(pool, "softmax", rank), torch.randn(6, 5, 4, 4)
    shares = pooled(features, pool).softmax(1)
    if predictor.reduce is not None:
        assert predictor.reduce.weight.shape == (2, shares.shape[1])
        shares = shares @ predictor.reduce.weight.T
    expected = shares @ predictor.linear.weight.T + predictor.linear.bias
    assert torch.allclose(predictor(features), expected, atol=1e-6)
    with pytest.raises(ValueError, match="softmax head does not fold.*head='standardized'"):
        predictor.fold()


def test_standardize_is_batch_norm_that_survives_a_batch_of_one() -> None:
    ours, theirs = Standardize(4, affine=False), nn.BatchNorm1d(4, affine=False)
    for _ in range(3):
        features = 1 + 2 * torch.randn(8, 4)
        assert torch.equal(ours(features), theirs(features))
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    alone = torch.randn(1, 4)
    assert ours.training
    assert torch.equal(ours(alone), theirs.eval()(alone))
    assert torch.equal(ours.running_mean, state["running_mean"])
    assert torch.equal(ours.running_var, state["running_var"])


def test_an_untrained_predictor_computes_everything() -> None:
    assert hard_mask(MaskPredictor(5, 7)(torch.randn(4, 5, 3, 3))).all()


def test_the_hard_mask_keeps_what_exceeds_the_threshold_and_never_nothing() -> None:
    logits = torch.tensor([[-2.0, 0.0, 1e-3], [-3.0, -1.0, -2.0], [5.0, 6.0, 4.0]])
    assert hard_mask(logits).tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 1]]
    assert torch.equal(hard_mask(logits[[0, 2]]), logits[[0, 2]].sigmoid() > 0.5)
    assert hard_mask(logits, torch.tensor(4.5)).tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 0]]


def test_silence_multiplies_channels_of_any_rank() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    for shape in [(2, 2), (2, 2, 3), (2, 2, 3, 4)]:
        outputs = torch.randn(shape)
        masked = silence(outputs, mask)
        assert not masked[0, 1].any()
        assert torch.equal(masked[1], outputs[1]) and torch.equal(masked[0, 0], outputs[0, 0])


def gate_of(*, mode: str = "decoupled", **options: object) -> Gate:
    gate = Gate(MaskPredictor(3, 4), mode=mode, **options)  # type: ignore[arg-type]
    nn.init.normal_(gate.predictor.linear.weight)
    nn.init.constant_(gate.predictor.linear.bias, -0.2)
    return gate


def test_a_gate_applies_the_mask_that_is_asked_for() -> None:
    gate, inputs, outputs = gate_of(r=0.6), torch.randn(5, 3, 4, 4), torch.randn(5, 4, 4, 4)
    gate.eval()
    predicted, target = hard_mask(gate.predictor(inputs)), target_mask(saliency(outputs), 0.6)
    assert not torch.equal(predicted, target)
    masks = {"predicted": predicted, "target": target, "open": torch.ones(5, 4, dtype=torch.bool)}
    for apply, mask in masks.items():
        masked, decided = gate(inputs, outputs, apply, True)
        assert torch.equal(masked, silence(outputs, mask))
        assert torch.equal(decided.mask, mask) and torch.equal(decided.target, target)
        assert torch.equal(decided.logits, gate.predictor(inputs))
        assert torch.equal(decided.saliency, saliency(outputs))
        masked, decided = gate(inputs, outputs, apply)
        assert torch.equal(masked, silence(outputs, mask))
        assert (decided.logits is None) == (apply != "predicted")
        assert (decided.target is None) == (apply != "target")


def test_the_options_of_a_gate_choose_its_targets() -> None:
    inputs, outputs = torch.randn(5, 3, 4, 4), torch.randn(5, 4, 4, 4)
    gate = gate_of(r=0.4, saliency="energy", variant="uniform")
    _, decided = gate(inputs, outputs, "target")
    assert torch.equal(decided.mask, target_mask(saliency(outputs, "energy"), 0.4, "uniform"))
    assert decided.mask.sum(1).tolist() == [2] * 5
    gate.threshold.fill_(2.0)
    _, decided = gate(inputs, outputs)
    assert torch.equal(decided.mask, hard_mask(decided.logits, 2.0))
    assert not torch.equal(decided.mask, hard_mask(decided.logits))


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_only_in_joint_mode_the_mask_loss_reaches_what_lies_before(mode: str) -> None:
    gate = gate_of(mode=mode)
    inputs, outputs = torch.randn(5, 3, 4, 4, requires_grad=True), torch.randn(5, 4, 4, 4)
    outputs.requires_grad_()
    mask_loss({"": gate(inputs, outputs, "predicted", True)[1]}).backward()
    assert gate.predictor.linear.weight.grad.abs().sum() > 0
    assert outputs.grad is None  # targets are no function to be optimised
    assert (inputs.grad is not None and inputs.grad.abs().sum() > 0) == (mode == "joint")


@pytest.mark.parametrize("straight_through", [False, True])
def test_only_straight_through_the_task_loss_reaches_the_predictor(straight_through: bool) -> None:
    gate = gate_of(straight_through=straight_through)
    inputs, outputs = torch.randn(5, 3, 4, 4), torch.randn(5, 4, 4, 4, requires_grad=True)
    masked, decided = gate(inputs, outputs)
    assert torch.allclose(masked, silence(outputs, decided.mask))  # the estimator changes no value
    masked.square().sum().backward()
    assert torch.equal(outputs.grad != 0, silence(torch.ones_like(outputs), decided.mask) != 0)
    gradient = gate.predictor.linear.bias.grad
    assert (gradient is not None and gradient.abs().sum() > 0) == straight_through
    if straight_through:  # the mask is treated as the sigmoid of its logit
        slope = decided.logits.sigmoid() * (1 - decided.logits.sigmoid())
        expected = (2 * masked * outputs).sum((2, 3)) * slope
        assert torch.allclose(gradient, expected.sum(0), rtol=1e-4)


def test_the_mask_loss_sums_over_filters_and_averages_over_samples_and_units() -> None:
    gates = {
        name: GateOutput(
            torch.ones(3, width, dtype=torch.bool),
            torch.randn(3, width),
            torch.rand(3, width) > 0.5,
        )
        for name, width in (("a", 4), ("b", 9))
    }
    total = 0.0
    for gate in gates.values():
        for logits, target in zip(gate.logits.tolist(), gate.target.tolist(), strict=True):
            for logit, wanted in zip(logits, target, strict=True):
                total += math.log1p(math.exp(-logit if wanted else logit)) / 3 / 2
    assert math.isclose(mask_loss(gates).item(), total, rel_tol=1e-5)
    static = {"c": GateOutput(torch.ones(3, 2, dtype=torch.bool))}
    assert torch.equal(mask_loss(gates | static), mask_loss(gates))
    assert mask_loss(static).item() == 0 and mask_loss({}).shape == ()
