import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ftwt import models
from ftwt.files.tensors import rounded
from ftwt.models import vision
from ftwt.models.init import measure_norms
from ftwt.models.resnet import Subsample, resnet
from ftwt.models.vgg import vgg
from ftwt.networks.pretrained import save_pretrained
from ftwt.shipped import catalogue

MACS = {
    "cifar10-vgg11-bn": 152_769_536,
    "cifar10-vgg13-bn": 228_267_008,
    "cifar10-vgg16-bn": 313_201_664,  # published 313.20 M
    "cifar10-vgg19-bn": 398_136_320,
    "cifar10-resnet20": 40_551_040,
    "cifar10-resnet32": 68_862_592,
    "cifar10-resnet44": 97_174_144,
    "cifar10-resnet56": 125_485_696,  # published 125.49 M
    "cifar10-resnet110": 252_887_680,
    "cifar10-mobilenet-v1": 46_354_432,  # published 46.35 M
    "cifar10-mobilenet-v1-x0.75": 26_508_288,
    "cifar10-mobilenet-v1-x0.5": 12_167_168,
    "cifar10-mobilenet-v1-x0.25": 3_331_072,
    "cifar10-mobilenet-v2": 87_976_448,  # published 87.98 M
    "cifar10-mobilenet-v2-x0.75": 59_310_080,
    "cifar10-mobilenet-v2-x0.5": 27_969_024,
    "cifar10-mobilenet-v2-x0.25": 9_481_216,
}
FAMILIES = ("vgg11-bn", "resnet20", "mobilenet-v1", "mobilenet-v2")


def count_macs(model: nn.Module, size: int = 32) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", MACS)
def test_macs_are_the_published_ones(name: str) -> None:
    assert count_macs(models.create(name)) == MACS[name]


def test_every_cifar10_name_is_counted_and_has_a_cifar100_twin() -> None:
    assert {name for name in models.names() if name.startswith("cifar10-")} == set(MACS)
    assert {name.replace("cifar10-", "cifar100-") for name in MACS} <= set(models.names())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_logits_have_a_class_each_and_reach_every_parameter(
    family: str, dataset: str, classes: int
) -> None:
    model = models.create(f"{dataset}-{family}")
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_network_is_the_network(family: str) -> None:
    model = models.create(f"cifar10-{family}").eval()
    x = torch.randn(2, 3, 32, 32)
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(x), model(x))
    functional = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    assert not any("relu" in str(target) for target in functional)


def test_num_classes_and_width_are_settings() -> None:
    assert models.create("cifar10-resnet20", num_classes=7)(torch.randn(2, 3, 32, 32)).shape[1] == 7
    half = models.create("cifar10-mobilenet-v1", width=0.5)
    assert count_macs(half) == MACS["cifar10-mobilenet-v1-x0.5"]
    channels = [m.out_channels for m in half.modules() if isinstance(m, nn.Conv2d)]
    assert channels[0] == 16 and channels[-1] == 512
    odd = models.create("cifar10-mobilenet-v2", width=0.3)
    assert all(m.out_channels % 8 == 0 for m in odd.modules() if isinstance(m, nn.Conv2d))


def test_a_subsampling_shortcut_has_no_parameters_and_pads_with_zeros() -> None:
    shortcut = Subsample(16, 2)
    x = torch.randn(2, 16, 8, 8)
    out = shortcut(x)
    assert not list(shortcut.parameters())
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert out.shape == (2, 32, 4, 4) and not out[:, 16:].any()


@pytest.mark.parametrize("family", ["vgg16-bn", "mobilenet-v2"])
def test_weights_start_with_the_variance_of_he(family: str) -> None:
    torch.manual_seed(0)
    for module in models.create(f"cifar10-{family}").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_in = module.weight[0].numel()
            assert module.weight.var().item() == pytest.approx(2 / fan_in, rel=0.15)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .* got 21"):
        resnet(21)
    with pytest.raises(ValueError, match="one of 11, 13, 16, 19, got 12"):
        vgg(12)
    for width in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="width must be positive"):
            models.create("cifar10-mobilenet-v1", width=width)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cifar10-resnet21", "cifar10-resnet20"),
        ("vgg16", "cifar10-vgg16-bn"),
        ("torchvision:resnet35", "resnet34"),
        ("timm:mobilenetv1", "mobilenetv1_100"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown .*nearest: .*{nearest}"):
        models.create(name)


def test_an_unknown_name_of_ours_gets_all_valid_ones() -> None:
    with pytest.raises(ValueError) as error:
        models.create("nothing like it")
    assert all(name in str(error.value) for name in models.names())


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_pretrained_loads_what_was_saved(
    dtype: torch.dtype | None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    trained = models.create("cifar10-resnet20")
    trained(torch.randn(4, 3, 32, 32))  # moves the running statistics
    state = trained.state_dict() if dtype is None else rounded(trained.state_dict(), dtype)
    folder = tmp_path / "cifar10-resnet20" / "model"
    save_pretrained(trained, folder, name="cifar10-resnet20", dtype=dtype)
    assert models.names(pretrained=True) == ["cifar10-resnet20"]
    loaded = models.create("cifar10-resnet20", pretrained=True)
    for key, value in loaded.state_dict().items():
        assert value.dtype == trained.state_dict()[key].dtype
        assert torch.equal(value, state[key].to(value.dtype))
    with pytest.raises(ValueError, match="its own num_classes and width"):
        models.create("cifar10-resnet20", pretrained=True, num_classes=7)


def test_missing_and_broken_weights_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no weights for 'cifar10-vgg16-bn'.*: none"):
        models.create("cifar10-vgg16-bn", pretrained=True)
    folder = tmp_path / "cifar10-resnet20" / "model"
    save_pretrained(models.create("cifar10-resnet20"), folder, name="cifar10-resnet20")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="no weights for .*with weights: cifar10-resnet20"):
        models.create("cifar10-resnet56", pretrained=True)
    with pytest.raises(ValueError, match="cifar10-resnet20/model/model.safetensors is truncated"):
        models.create("cifar10-resnet20", pretrained=True)


def test_timm_counts_our_mobilenet_the_same_at_twice_the_size_and_stride() -> None:
    theirs = models.create("timm:mobilenetv1_100", num_classes=10)
    assert count_macs(theirs, 64) == MACS["cifar10-mobilenet-v1"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvision_networks_with_auxiliary_heads_come_without_a_warning(name: str) -> None:
    model = models.create(f"torchvision:{name}", num_classes=10).eval()
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 10)


def test_importing_the_package_leaves_torchvision_alone_until_it_is_asked_for() -> None:
    script = (
        "import sys, ftwt.models as models\n"
        "assert not {'torchvision', 'timm'} & set(sys.modules)\n"
        "models.create('torchvision:squeezenet1_0')\n"
        "import torchvision\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_pretrained_asks_torchvision_for_its_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    outside = vision.import_vision("torchvision").models
    monkeypatch.setattr(outside, "get_model", lambda name, **kwargs: asked.update(kwargs))
    models.create("torchvision:resnet18", pretrained=True)
    assert asked == {"weights": "DEFAULT"}
    models.create("torchvision:resnet18", num_classes=3)
    assert asked == {"weights": None, "num_classes": 3}


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_is_named_with_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "ftwt\[vision\]"'):
        models.create(f"{package}:resnet18")


def test_a_half_imported_torchvision_is_imported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    half, calls, declared = "torchvision.half_imported", [], []

    def fails_once(name: str) -> str:
        calls.append(half in sys.modules)
        if len(calls) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")
        return name

    # A copy, so that the modules other tests hold stay what they are.
    monkeypatch.setattr(sys, "modules", {**sys.modules, half: sys})
    monkeypatch.setattr(vision.importlib, "import_module", fails_once)
    monkeypatch.setattr(vision, "_declare_operators", lambda: declared.append(True))
    assert vision.import_vision("timm") == "timm"
    assert calls == [True, False] and declared == [True]


def test_a_torchvision_that_loads_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision.importlib, "import_module", lambda name: name)
    monkeypatch.setattr(vision, "_declare_operators", lambda: pytest.fail("declared"))
    before = dict(sys.modules)
    assert vision.import_vision("torchvision") == "torchvision"
    assert dict(sys.modules) == before


@pytest.mark.parametrize(
    "error", [RuntimeError("another one"), ModuleNotFoundError("no yaml", name="yaml")]
)
def test_other_import_errors_pass(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(vision.importlib, "import_module", fails)
    with pytest.raises(type(error), match=str(error)):
        vision.import_vision("torchvision")


def test_random_weights_keep_their_scale_by_measured_norms() -> None:
    torch.manual_seed(0)
    network = models.create("cifar10-mobilenet-v2").eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= 0.1
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        before = network(images).std(0).mean()
        after = measure_norms(network.train(), images)(images).std(0).mean()
    assert before < 1e-6 and after > 0.01
    assert not network.training and {m.momentum for m in network.modules()
                                     if isinstance(m, nn.BatchNorm2d)} == {0.1}  # fmt: skip
