"""Repair: least squares by hand, any kind of layer, never worse, whatever the batches."""

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ftwt import convert, repair
from ftwt.fitting import regression
from ftwt.fitting.passes import Passes, Run, finite, room
from ftwt.fitting.regression import Moments, Solver, fit, solved, squared
from ftwt.fitting.samples import add_samples
from ftwt.fitting.sites import find_sites
from ftwt.pruning.dynamic import DynamicModel, FrozenGate
from ftwt.pruning.second_look import opened


def settle(model: nn.Module) -> nn.Module:
    """Give batch norms statistics, slopes and offsets of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def conv(fan_in: int, fan_out: int, size: int = 3, **options: int) -> list[nn.Module]:
    layer = nn.Conv2d(fan_in, fan_out, size, padding=size // 2, bias=False, **options)
    return [layer, nn.BatchNorm2d(fan_out)]


def chain() -> nn.Module:
    return nn.Sequential(
        *conv(3, 12), nn.ReLU(), *conv(12, 10), nn.ReLU(),
        nn.Conv2d(10, 6, 3, stride=2, dilation=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


class Residual(nn.Module):
    """A stem and two blocks, whose inner channels are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 8), nn.ReLU())
        self.inner = nn.ModuleList(nn.Sequential(*conv(8, 16), nn.ReLU()) for _ in range(2))
        self.outer = nn.ModuleList(nn.Sequential(*conv(16, 8)) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = F.relu(x + outer(inner(x)))
        return self.head(x.mean((2, 3)))


class Kinds(nn.Module):
    """Depthwise, grouped, and a concatenation of masked and unmasked channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv(3, 12), nn.ReLU())
        self.depthwise = nn.Sequential(*conv(12, 12, groups=12), nn.ReLU())
        self.grouped = nn.Sequential(*conv(12, 8, groups=2), nn.ReLU())
        self.last = nn.Conv2d(11, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.depthwise(self.first(x)))
        return self.last(torch.cat([y, x], 1)).mean((2, 3))


class Awkward(nn.Module):
    """An optional argument; a shortcut that runs first; a ReLU in place; a sum with a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 12), nn.ReLU())
        self.shortcut = nn.Conv2d(12, 8, 1)
        self.inner = nn.Sequential(*conv(12, 12), nn.ReLU(inplace=True))
        self.outer, self.last = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.wide = nn.Sequential(*conv(8, 12), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.stem(x)
        shortcut = self.shortcut(x)
        x = self.outer(self.inner(x)) + shortcut
        x = torch.add(x, self.last(self.wide(x)), alpha=0.1)
        return self.head(x.mean((2, 3))) * scale


def freeze(dynamic: DynamicModel, share: float = 0.6) -> DynamicModel:
    """Give each gate a fixed mask of its first filters."""
    for name, gate in dynamic.gates.items():
        width = next(u.out_channels for u in dynamic.units if u.name == name)
        dynamic._set_gate(name, FrozenGate(torch.arange(width) < share * width))
        del gate
    return dynamic.eval()


def open_by_image(dynamic: DynamicModel) -> DynamicModel:
    """Gates whose masks differ by image: about half of the filters each."""
    for predictor in dynamic.predictors.values():
        nn.init.normal_(predictor.linear.weight, std=3.0)
        nn.init.zeros_(predictor.linear.bias)
    return dynamic.eval()


def pictures(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(rough, (9, 9), mode="bilinear", align_corners=False)


def distance(a: nn.Module, b: nn.Module, images: Tensor) -> float:
    with torch.inference_mode():
        return float((a(images) - b(images)).square().mean())


MADE: dict[str, Callable[[], nn.Module]] = {
    "chain": chain, "residual": Residual, "kinds": Kinds, "awkward": Awkward,
}  # fmt: skip
made = pytest.mark.parametrize("make", MADE.values(), ids=MADE)
masked = pytest.mark.parametrize("masked", [freeze, open_by_image])


def pruned(
    make: Callable[[], nn.Module], masked: Callable = freeze
) -> tuple[nn.Module, DynamicModel]:
    dense = settle(make())
    skip = {Residual: ["stem", "outer"], Awkward: ["shortcut", "outer", "last"]}.get(make, [])
    return dense, masked(convert(dense, pictures(2), skip=skip, min_gain=-1.0))


@made
@masked
def test_the_repaired_network_is_nearer_to_the_dense_one_on_other_images(make, masked):
    dense, dynamic = pruned(make, masked)
    before = distance(dynamic, dense, pictures(200, seed=1))
    result = repair(dynamic, [pictures(400)], dense=dense, images=400)
    after = distance(dynamic, dense, pictures(200, seed=1))
    assert before > 0 and after < 0.8 * before
    assert result.layers and all(layer.after <= layer.before for layer in result.layers)
    assert not result.left and result.images == 400


def by_hand(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, ridge: float):
    """Ridge regression towards w with a free offset, in float64, one output at a time."""
    mx, my = x.mean(0), y.mean(0)
    gram = (x - mx).T @ (x - mx) / len(x)
    damped = gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.stack(
        [
            w[:, o]
            + np.linalg.solve(damped, (x - mx).T @ (y[:, o] - my[o]) / len(x) - gram @ w[:, o])
            for o in range(y.shape[1])
        ],
        1,
    )
    return weights, my - mx @ weights


def test_a_residual_block_gives_what_least_squares_by_hand_gives():
    dense, dynamic = pruned(Residual)
    images = pictures(60)
    result = repair(dynamic, [images], dense=dense, images=60)
    assert [layer.name for layer in result.layers] == ["outer.0.0", "outer.1.0"]
    with torch.no_grad():
        x = wanted = dense.stem(images)
        for block, layer in enumerate(result.layers):
            mask = dynamic.gates[f"inner.{block}.0"].mask
            wanted = wanted + dense.outer[block](dense.inner[block](wanted))  # before its ReLU
            hidden = dense.inner[block](x) * mask[:, None, None]
            columns = F.unfold(hidden, 3, padding=1)[:, :, EVERY].permute(0, 2, 1).double()
            goal = (wanted - x).flatten(2)[:, :, EVERY].permute(0, 2, 1).double()
            outer, norm = dense.outer[block]
            slope = norm.weight / (norm.running_var + norm.eps).sqrt()
            now = (outer.weight.flatten(1) * slope[:, None]).T.double().numpy()
            start = (norm.bias - norm.running_mean * slope).double().numpy()
            x_all, y_all = columns.flatten(0, 1).numpy(), goal.flatten(0, 1).numpy()
            weights, offset = by_hand(x_all, y_all, now, start, layer.ridge)
            repaired = [dynamic.network.get_submodule(f"outer.{block}.{i}") for i in (0, 1)]
            slope_now = repaired[1].weight / (repaired[1].running_var + repaired[1].eps).sqrt()
            found = (repaired[0].weight.flatten(1) * slope_now[:, None]).T.numpy()
            np.testing.assert_allclose(found, weights, atol=2e-4 * np.abs(weights).max())
            shift = (repaired[1].bias - repaired[1].running_mean * slope_now).numpy()
            np.testing.assert_allclose(shift, offset, atol=2e-4)
            wanted = F.relu(wanted)
            x = F.relu(x + repaired[1](repaired[0](hidden)))


EVERY = torch.randperm(81, generator=torch.Generator().manual_seed(0))[:64].sort().values


@made
def test_one_batch_or_twenty_give_the_same(make):
    dense, one = pruned(make)
    many = copy.deepcopy(one)
    images = pictures(100)
    told = [
        repair(net, parts, dense=dense, images=100)
        for net, parts in ((one, [images]), (many, list(images.split(5))))
    ]
    for a, b in zip(told[0].layers, told[1].layers, strict=True):
        assert (a.name, a.ridge, a.samples) == (b.name, b.ridge, b.samples)
        assert a.after == pytest.approx(b.after, rel=1e-4)
    assert distance(one, many, pictures(20, seed=1)) < 1e-8


def test_maps_of_as_many_batches_are_kept_as_there_is_room_for(monkeypatch):
    dense, fresh = pruned(Residual)
    batches, started, weights, begun = list(pictures(40).split(10)), [], [], []

    class Counted(Run):
        def __init__(self, *given):
            begun.append(given)
            super().__init__(*given)

    monkeypatch.setattr("ftwt.fitting.passes.Run", Counted)
    for space in (0, 300_000, 2**30):
        monkeypatch.setattr("ftwt.fitting.passes.room", lambda *_, space=space: space)
        begun.clear()
        repaired = copy.deepcopy(fresh)
        layers = repair(repaired, batches, dense=dense, images=40).layers
        started.append(len(begun) / len(batches) / 2)
        weights.append(list(repaired.parameters()))
    assert started[0] == len(layers) > started[1] > started[2] == 1
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_a_run_copies_what_is_asked_for_and_forgets_it():
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)))
    _, layer, relu, _ = network.graph.nodes
    run = Run(network, pictures(2), "open")
    with torch.no_grad():
        run.advance(2, copy={layer.name})
        before, size = run.copies[layer.name], run.bytes()
        run.advance(3, keep={relu.name}, copy={layer.name})
        assert before.min() < 0 <= run.env[relu].min() and run.bytes() == size
        run.advance(4)
    assert size == 2 * 2 * 4 * 81 * 4 and not run.copies


def test_a_second_input_without_a_default_is_named():
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ValueError, match="needs a second input, y; only one can be given"):
        Run(fx.symbolic_trace(Two()), pictures(2), "open").advance(2)


def test_batches_may_come_from_a_generator(monkeypatch):
    monkeypatch.setattr("ftwt.fitting.passes.room", lambda *_: 0)  # all passes start anew
    dense, dynamic = pruned(chain)
    found = repair(dynamic, (part for part in pictures(40).split(10)), dense=dense)
    assert found.images == 40 and len(found.layers) > 1


def test_maps_are_kept_from_where_they_fit_into_memory(monkeypatch):
    class Batches(list):
        read = 0

        def __iter__(self):
            Batches.read += 1
            return super().__iter__()

    def narrowing() -> nn.Module:
        return nn.Sequential(
            *conv(3, 12), nn.ReLU(), nn.Conv2d(12, 6, 3, stride=3), nn.ReLU(), *conv(6, 6),
            nn.ReLU(), *conv(6, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, 5),
        )  # fmt: skip

    dense, dynamic = pruned(narrowing)
    monkeypatch.setattr("ftwt.fitting.passes.room", lambda *_: 100_000)
    told = repair(dynamic, Batches(pictures(40).split(10)), dense=dense, images=40)
    assert len(told.layers) == 4
    assert Batches.read == 2  # for the first two: what the others start from is small


def test_room_for_maps_is_a_quarter_of_what_a_container_leaves_free(tmp_path, monkeypatch):
    limit, used = tmp_path / "limit", tmp_path / "used"
    monkeypatch.setattr("ftwt.fitting.passes.CONTAINERS", ((limit, used),))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    cpu = torch.device("cpu")
    assert room(cpu, 1) == 2**38  # no container
    limit.write_text("max\n")
    used.write_text(f"{2**30}\n")
    assert room(cpu, 1) == 2**38  # no limit
    limit.write_text(f"{9 * 2**30}\n")
    assert room(cpu, 1) == 2 * 2**30
    assert room(cpu, 4) == 2**29
    used.write_text(f"{8 * 2**30}\n")
    assert room(cpu, 1) == 2**30
    assert room(cpu, 4) == 2**28


def test_room_for_maps_on_a_gpu_is_a_quarter_of_what_is_free_there(monkeypatch):
    gpu = torch.device("cuda", 1)
    free = {gpu: 2**20}  # less than 1 GiB stays less
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 2**40))
    assert room(gpu, 4) == 2**18


def test_processes_of_a_machine_share_its_room(monkeypatch):
    monkeypatch.setattr("ftwt.fitting.passes.room", lambda device, sharing: (device, sharing))
    network, many = fx.symbolic_trace(nn.Linear(2, 2)), SimpleNamespace(num_processes=8)
    for told, accelerator, sharing in (
        (None, None, 1),
        (None, many, 8),
        ("4", many, 4),  # two machines
        ("4", None, 4),  # each with a network of its own
    ):
        if told:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", told)
        else:
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        passes = Passes(network, network, lambda: [], [], accelerator=accelerator)
        assert passes.room == (torch.device("cpu"), sharing)


def test_labels_are_never_read():
    class Untouchable:
        def __getattribute__(self, name: str):
            raise AssertionError(f"labels were read: {name}")

    dense, dynamic = pruned(chain)
    repair(dynamic, [(pictures(20), Untouchable())], dense=dense)


def test_a_layer_that_no_fit_makes_better_keeps_its_weights():
    dense, dynamic = pruned(chain)
    for name, gate in dynamic.gates.items():
        dynamic._set_gate(name, FrozenGate(torch.ones_like(gate.mask)))
    before = copy.deepcopy(dynamic.state_dict())
    result = repair(dynamic, [pictures(20)], dense=dense)
    assert all(layer.before < 1e-9 for layer in result.layers)
    for name, value in dynamic.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-4, rtol=1e-4)


def test_weights_that_are_shared_are_left_alone_and_named():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Sequential(*conv(n, 6), nn.ReLU()) for n in (3, 6, 6))
            self.c[0].weight = self.b[0].weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x))).mean((2, 3))

    dense = settle(Shared())
    dynamic = freeze(convert(dense, pictures(2), min_gain=-1.0))
    result = repair(dynamic, [pictures(20)], dense=dense)
    assert set(result.left) == {"b.0", "c.0"}
    assert set(result.left.values()) == {"its weights are used more than once"}
    assert torch.equal(dynamic.network.get_submodule("b.0").weight, dense.b[0].weight)


def test_a_function_is_named_and_what_it_shares_weights_with_left_alone():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.last = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            x = self.b(x) + F.conv2d(x, self.b.weight, padding=1)
            return self.last(x.mean((2, 3)))

    dense = settle(Functional())
    dynamic = freeze(convert(dense, pictures(2), min_gain=-1.0))
    before = copy.deepcopy(dynamic.state_dict())
    result = repair(dynamic, [pictures(20)], dense=dense)
    assert result.left == {
        "b": "its weights are used more than once",
        "conv2d": "a function, not a torch.nn module",
    }
    assert not result.layers
    assert all(torch.equal(value, before[n]) for n, value in dynamic.state_dict().items())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["same", "valid", (1, 0)])
def test_samples_are_padded_as_torch_pads(padding):
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, (4, 3), padding=padding, dilation=(1, 2))
    x = torch.randn(6, 3, 9, 8)
    y, moments = module(x).detach(), Moments(1, 36, 4, torch.device("cpu"))
    add_samples(moments, module, x, y, None, torch.arange(6))
    weight, bias = module.weight.detach().double(), module.bias.detach().double()
    error = moments.error(weight.flatten(1).T[None], bias[None])
    assert float(error.sum()) < 1e-6 * float(y.square().sum())


def test_a_layer_that_cannot_be_refitted_is_named():
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    dynamic = freeze(convert(body, pictures(2), min_gain=-1.0))
    left = repair(dynamic, [pictures(20)], dense=body).left
    assert left["2"] == "its padding is reflect"
    assert "remove_parametrizations makes them plain" in left["4"]


def test_what_cannot_be_repaired_with_is_refused():
    dense, dynamic = pruned(chain)
    with pytest.raises(ValueError, match="no images|0 images to repair with; give 5 or more"):
        repair(dynamic, [], dense=dense)
    with pytest.raises(ValueError, match="3 images to repair with; give 5 or more"):
        repair(dynamic, [pictures(3)], dense=dense)
    with pytest.raises(ValueError, match="Sequential is no DynamicModel"):
        repair(dense, [pictures(20)], dense=dense)
    with pytest.raises(ValueError, match="is another network"):
        repair(dynamic, [pictures(20)], dense=settle(Residual()))
    bad = pictures(20)
    bad[7, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 7 of a batch holds a value that is not finite"):
        repair(dynamic, [bad], dense=dense)
    with torch.no_grad():
        dense.get_submodule("3").weight[0] = torch.inf
    with pytest.raises(ValueError, match=r"3 .* not finite; look for NaN"):
        repair(dynamic, [pictures(20)], dense=dense)
    with pytest.raises(ValueError, match="for a network converted for"):
        repair(dynamic, [torch.zeros(8, 3, 5, 5)], dense=dense)


def test_a_head_that_only_training_uses_is_not_missed():
    class Aided(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.aid = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return (out, self.aid(x.mean((2, 3)).repeat(1, 3)[:, :8])) if self.training else out

    dense = settle(Aided())
    with pytest.warns(UserWarning, match="something else in training"):
        dynamic = freeze(convert(dense, pictures(2), skip=["stem", "outer"], min_gain=-1.0))
    assert len(repair(dynamic, [pictures(40)], dense=dense).layers) == 2


def test_fewer_samples_than_unknowns_are_warned_of():
    dense, dynamic = pruned(chain)
    with pytest.warns(
        UserWarning, match="unknowns for each output and .* samples: the ridge holds"
    ) as told:
        repair(dynamic, [pictures(5)], dense=dense)
    assert told[0].filename == __file__  # it points to who called


def test_what_works_in_place_and_sums_with_a_factor_leave_the_targets_as_they_are():
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        dense = settle(Awkward())
        dense.inner[2].inplace = in_place
        skip = ["shortcut", "outer", "last"]
        dynamic = freeze(convert(dense, pictures(2), skip=skip, min_gain=-1.0))
        found.append(repair(dynamic, [pictures(400)], dense=dense).layers)
    assert [each.name for each in found[0]] == ["shortcut", "inner.0", "outer", "last"]
    assert all(each.after < 0.5 for each in found[0]), found[0]  # others' targets leave more
    for a, b in zip(*found, strict=True):
        assert (a.before, a.after) == pytest.approx((b.before, b.after), rel=1e-4), (a, b)


class Ahead(nn.Module):
    """A ReLU in place changes what a layer has read, before the sum that the layer is a term of."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.near, self.far = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.relu, self.head = nn.ReLU(inplace=in_place), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(self.first(x)))
        y = self.near(x)
        x = self.relu(x)
        return self.head(torch.relu(y + self.far(x)).mean((2, 3)))


def test_a_layer_is_fitted_to_what_it_reads_not_to_what_is_made_of_that_later():
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        dense = settle(Ahead(in_place))
        dense.norm.running_mean.fill_(0.3)
        dynamic = freeze(convert(dense, pictures(2), skip=["near", "far"], min_gain=-1.0))
        found.append(repair(dynamic, [pictures(200)], dense=dense).layers)
    assert [each.name for each in found[0]] == ["near", "far"]
    for a, b in zip(*found, strict=True):
        assert (a.before, a.after) == pytest.approx((b.before, b.after), rel=1e-4), (a, b)


def test_what_stops_a_repair_leaves_the_network_as_it_was(monkeypatch):
    dense, dynamic = pruned(chain)
    before = copy.deepcopy(dynamic.state_dict())
    spoilt = copy.deepcopy(dense)
    spoilt[-1].bias.data[0] = torch.inf
    with pytest.raises(ValueError, match="values that are not finite"):
        repair(dynamic, [pictures(100)], dense=spoilt)
    assert all(torch.equal(value, before[name]) for name, value in dynamic.state_dict().items())


def test_an_error_is_told_where_the_held_out_images_do_not_vary():
    dense = chain()
    dense[-1].weight.data.zero_()  # one output for all images
    settle(dense)
    dynamic = freeze(convert(dense, pictures(2), min_gain=-1.0))
    dynamic.network.get_submodule("10").weight.data.normal_()
    last = repair(dynamic, [pictures(100)], dense=dense).layers[-1]
    assert last.name == "10" and last.before > 0.01 > last.after


def test_sites_of_a_residual_network_are_fitted_to_its_sums():
    _, dynamic = pruned(Residual)
    sites, left = find_sites(dynamic.network)
    assert [site.name for site in sites] == ["outer.0.0", "outer.1.0"] and not left
    assert all(site.add is not None and site.norm is not None for site in sites)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_regression_is_that_of_numpy(groups):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(groups, 50, 4, generator=generator)
    y = torch.randn(groups, 50, 2, generator=generator)
    start, offset = torch.randn(groups, 4, 2).double(), torch.randn(groups, 2).double()
    moments = Moments(groups, 4, 2, torch.device("cpu"))
    for part in range(0, 50, 10):
        moments.add(x[:, part : part + 10], y[:, part : part + 10])
    weights, shift = Solver(moments, start, offset, free_offset=True)(0.1)
    for group in range(groups):
        w, b = by_hand(
            x[group].double().numpy(), y[group].double().numpy(), start[group].numpy(),
            offset[group].numpy(), 0.1,
        )  # fmt: skip
        np.testing.assert_allclose(weights[group].numpy(), w, atol=1e-5)
        np.testing.assert_allclose(shift[group].numpy(), b, atol=1e-5)
    errors = (y.double() - x.double() @ weights - shift[:, None]).square().sum(1)
    torch.testing.assert_close(moments.error(weights, shift), errors, atol=1e-4, rtol=1e-4)


def sums_of(x: Tensor, y: Tensor) -> Moments:
    moments = Moments(len(x), x.shape[2], y.shape[2], torch.device("cpu"))
    moments.add(x, y)
    return moments


@pytest.mark.parametrize("dead", [[1, 4], [0, 1, 2, 3, 4, 5]])
def test_inputs_that_are_zero_keep_their_weights_and_change_nothing(dead):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 80, 6, generator=generator)
    x[..., dead] = 0
    y = x @ torch.randn(6, 2, generator=generator) + 3
    y += 0.1 * torch.randn(1, 80, 2, generator=generator)
    start, offset = torch.randn(1, 6, 2, generator=generator).double(), torch.zeros(1, 2).double()
    found = fit(sums_of(x[:, :60], y[:, :60]), sums_of(x[:, 60:], y[:, 60:]), start, offset,
                free_offset=True)  # fmt: skip
    assert found.ridge is not None and found.after < found.before
    assert torch.equal(found.weights[:, dead], start[:, dead])
    w, b = by_hand(
        x[0].double().numpy(), y[0].double().numpy(), start[0].numpy(), offset[0].numpy(),
        found.ridge,
    ) if len(dead) < 6 else (start[0].numpy(), y[0].double().mean(0).numpy())  # fmt: skip
    np.testing.assert_allclose(found.weights[0].numpy(), w, atol=1e-6)
    np.testing.assert_allclose(found.offset[0].numpy(), b, atol=1e-6)


def test_a_matrix_that_rounding_left_indefinite_is_solved_nevertheless():
    gram = torch.tensor([[[1.0, 1.0 + 1e-5], [1.0 + 1e-5, 1.0]]]).double()
    right = torch.tensor([[[1.0], [2.0]]]).double()
    assert torch.linalg.cholesky_ex(gram).info.item() != 0
    found = solved(gram, torch.tensor([1e-6]).double(), right)
    damped = gram + 1e-6 * torch.eye(2).double()
    torch.testing.assert_close(damped @ found, right, atol=1e-9, rtol=1e-9)
    inverse = solved(gram, torch.tensor([1e-6]).double())
    torch.testing.assert_close(inverse @ right, found, atol=1e-4, rtol=1e-9)


def test_half_of_a_sum_of_squares_is_computed_and_the_rest_is_its_mirror(monkeypatch):
    monkeypatch.setattr(regression, "ROWS", 3)
    x = torch.randn(2, 20, 8).double()
    torch.testing.assert_close(squared(x), x.mT @ x, atol=1e-12, rtol=1e-12)


def test_values_are_finite_where_their_sum_is_not():
    assert finite(torch.full((4,), 3e38)) and finite(torch.zeros(0))
    for bad in (float("nan"), float("inf"), float("-inf")):
        values = torch.ones(5)
        values[2] = bad
        assert not finite(values)
    assert not finite(torch.tensor([float("inf"), float("-inf")]))


class InPlace(nn.Module):
    """Layers whose inputs and outputs later lines overwrite."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.d, self.e = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.a(x))
        out = self.b(F.relu_(self.e(x)))
        out += self.d(x)
        x = F.relu_(out)
        x += self.c(x)
        return x.relu_().mean((2, 3))


def test_one_run_serves_as_network_and_teacher_where_nothing_is_repaired():
    whole = opened(convert(InPlace(), pictures(2), min_gain=-1.0)).eval()
    sites = find_sites(whole.network)[0]
    assert [site.name for site in sites] == ["e", "b", "d"]
    images, runs = pictures(12), []
    whole.network.a.register_forward_hook(lambda *_: runs.append(None))
    alone = Passes(whole.network, whole.network, lambda: [(0, images)], sites)
    apart = Passes(whole.network, copy.deepcopy(whole.network), lambda: [(0, images)], sites)
    with torch.no_grad():
        for site in sites:
            (one,), (two,) = list(alone.values(site)), list(apart.values(site))
            for name in ("inputs", "own", "target"):
                assert torch.equal(getattr(one, name), getattr(two, name)), (site.name, name)
    assert len(runs) == 3  # one by itself, and two where network and copy share the hook


def test_samples_that_a_mask_leaves_out_do_not_count():
    x, y = torch.randn(2, 30, 3), torch.randn(2, 30, 1)
    weight = (torch.rand(2, 30) < 0.5).float()
    some, few = (Moments(2, 3, 1, torch.device("cpu")) for _ in range(2))
    some.add(x, y, weight)
    for group in range(2):
        few.xx[group] = (x[group][weight[group] > 0].T @ x[group][weight[group] > 0]).double()
    torch.testing.assert_close(some.xx, few.xx, atol=1e-4, rtol=1e-5)
    assert some.weight.tolist() == weight.sum(1).tolist()


def test_the_ridge_is_the_one_that_is_best_on_held_out_samples():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(40, 1, generator=generator)
    sums = []
    for count in (45, 400):
        x = torch.randn(1, count, 40, generator=generator)
        y = x @ truth + 2 * torch.randn(1, count, 1, generator=generator)
        moments = Moments(1, 40, 1, torch.device("cpu"))
        moments.add(x, y)
        sums.append(moments)
    zero = torch.zeros(1, 40, 1).double(), torch.zeros(1, 1).double()
    found = fit(*sums, *zero, free_offset=True)
    assert found.ridge is not None and found.ridge >= 0.1 and found.after < found.before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = fit(sums[1], sums[1], *zero, free_offset=True)
    assert best.ridge is not None and best.ridge < found.ridge


def test_channels_that_a_fixed_mask_leaves_at_zero_are_passed_over_and_change_nothing():
    layer = nn.Conv2d(6, 4, 3, padding=1)
    x, y = torch.randn(5, 6, 7, 7), torch.randn(5, 4, 7, 7)
    for dead in ([0, 3, 4], list(range(6))):
        x[:, dead] = 0
        moments = Moments(1, 54, 4, torch.device("cpu"))
        add_samples(moments, layer, x, y, None, torch.tensor([0, 2, 3]))
        rows = nn.functional.unfold(x[[0, 2, 3]], 3, padding=1).transpose(1, 2).reshape(1, -1, 54)
        goals = y[[0, 2, 3]].flatten(2).transpose(1, 2).reshape(1, -1, 4)
        direct = Moments(1, 54, 4, torch.device("cpu"))
        direct.add(rows, goals)
        for found, wanted in zip(moments.tensors(), direct.tensors(), strict=True):
            torch.testing.assert_close(found, wanted)
