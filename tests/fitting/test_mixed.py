"""Gates where they win: errors by hand, budgets, files and the engine."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ftwt import compile, convert, fit_predictors, from_pretrained, save_pretrained
from ftwt.fitting.columns import rank_filters
from ftwt.fitting.mixed import _threshold, mix
from ftwt.pruning.dynamic import DynamicModel, FrozenGate
from ftwt.pruning.method import Gate, hard_mask


def network() -> nn.Module:
    """A unit of which each half of the filters sees one of two channels, and a second one."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight[:8, 0] = net[0].weight[8:, 1] = 0
        net[0].bias.zero_()
    return net


def images(count: int = 200) -> Tensor:
    """Half of them show in the first channel, half in the second."""
    found = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    found[::2, 0] = found[1::2, 1] = 0
    return found


def gated(dense: nn.Module, skip: Callable[[str], bool] = lambda name: False) -> DynamicModel:
    options = {"saliency": "energy", "pool": "both", "min_gain": -1.0, "skip": skip}
    dynamic = convert(dense, torch.zeros(2, 2, 8, 8), r=0.999, **options)
    fit_predictors(dynamic.eval(), images().split(64))
    return dynamic


def test_a_gate_goes_where_images_need_other_filters():
    dynamic = gated(network())
    batches = images().split(64)
    ranking = rank_filters(dynamic, batches)
    made, told = mix(dynamic, ranking, batches, reduction=0.5)
    assert told.gates == ("0",) and told.errors["0"][1] < 0.1 * told.errors["0"][0]
    assert isinstance(made.gates["0"], Gate) and isinstance(made.gates["2"], FrozenGate)
    _, gates = made.eval()(images(), return_gates="masks")
    fires = gates["0"].mask
    halves = fires[::2].float().mean(0), fires[1::2].float().mean(0)
    assert halves[0][:8].mean() < 0.3 < 0.7 < halves[0][8:].mean() or (
        halves[0][8:].mean() < 0.3 < 0.7 < halves[0][:8].mean()
    )
    assert float((halves[0] - halves[1]).abs().mean()) > 0.5
    assert made.config["static"] == ["2"] and set(made.predictors) == {"0"}


def test_batches_may_come_from_a_generator():
    dynamic, batches = gated(network()), images().split(64)
    ranking = rank_filters(dynamic, batches)
    listed, generated = (
        mix(dynamic, ranking, given, reduction=0.5)[1] for given in (batches, iter(batches))
    )
    assert listed == generated


class Tokens(nn.Module):
    """The same with the second layer a linear one, over channels that lie last."""

    def __init__(self, convolutions: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = convolutions[:2], convolutions[3:]
        self.linear = nn.Linear(16, 8)
        with torch.no_grad():
            self.linear.weight.copy_(convolutions[2].weight[:, :, 0, 0])
            self.linear.bias.copy_(convolutions[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.first(x).permute(0, 2, 3, 1))
        return self.rest(x.permute(0, 3, 1, 2))


def test_a_linear_layer_over_channels_that_lie_last_is_compared_as_a_convolution_is():
    dense = network()
    dense[2] = nn.Conv2d(16, 8, 1)
    batches = images().split(64)
    told = []
    for one in (dense, Tokens(dense).eval()):
        dynamic = gated(one, skip=lambda name: name not in ("0", "first.0"))
        ranking = rank_filters(dynamic, batches)
        told.append(mix(dynamic, ranking, batches, reduction=0.3)[1])
    assert told[0].errors["0"] == pytest.approx(told[1].errors["first.0"], rel=0.05)


def test_it_is_saved_loaded_and_compiled(tmp_path):
    dense = network()
    dynamic = gated(dense)
    batches = images().split(64)
    made, _ = mix(dynamic, rank_filters(dynamic, batches), batches, reduction=0.5)
    made = made.eval()
    save_pretrained(made, tmp_path / "net")
    again = from_pretrained(tmp_path / "net", model=dense)
    with torch.inference_mode():
        wanted = made(images())
        assert torch.equal(again(images()), wanted)
    engine = compile(made, engine="reference")
    torch.testing.assert_close(
        torch.from_numpy(engine(images().numpy())), wanted, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kept", [1, 2, 5, 8])
def test_a_threshold_keeps_as_many_filters_as_a_network_then_does(kept):
    images_differ = 3 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)) + images_differ
    mask = hard_mask(logits, _threshold(logits, kept))
    assert mask.any(1).all() and mask.sum() == 200 * kept


def test_where_no_gate_wins_it_says_so():
    torch.manual_seed(3)
    dense = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()
    dynamic = convert(
        dense, torch.zeros(2, 2, 8, 8), r=0.9, saliency="energy", min_gain=-1.0
    ).eval()
    same = [torch.rand(1, 2, 8, 8).expand(40, -1, -1, -1) + 0.01 * torch.rand(40, 2, 8, 8)]
    fit_predictors(dynamic, same)
    with pytest.raises(ValueError, match="no unit's gate leaves less than 80% of"):
        mix(dynamic, rank_filters(dynamic, same), same, reduction=0.2)
