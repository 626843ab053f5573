"""What networks are called with: inputs of every kind and precision are right, or refused."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import ftwt

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(4, dtype=torch.long)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain()


class OfDict(Holder):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["image"])


class OfList(Holder):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return self.net(parts[0]) + self.net(parts[1])


class OfKeyword(Holder):
    def forward(self, *, image: Tensor) -> Tensor:
        return self.net(image)


class Scaled(Holder):
    def forward(self, image: Tensor, scale: float | None = None) -> Tensor:
        return self.net(image) if scale is None else self.net(image) * scale


class Padded(Holder):
    def forward(self, image: Tensor) -> Tensor:
        side = image.shape[-1]
        return self.net(nn.functional.pad(image, (0, max(0, -side % 5))) if side > 9 else image)


def trained(network: nn.Module, example: Tensor = IMAGES) -> ftwt.DynamicModel:
    dynamic = ftwt.convert(network, example, r=0.7).eval()
    for predictor in dynamic.predictors.values():
        nn.init.normal_(predictor.linear.weight)
        nn.init.zeros_(predictor.linear.bias)
    return dynamic


@pytest.mark.parametrize(
    ("network", "example", "said"),
    [
        (OfDict(), {"image": IMAGES}, "an input that is a dict.*wrap yours in a module"),
        (OfDict(), ({"image": IMAGES},), "an input that is a dict"),
        (OfList(), [IMAGES, IMAGES], "an input that is a list.*makes the list of them"),
        (OfList(), ([IMAGES, IMAGES],), "an input that is a list"),
        (OfKeyword(), IMAGES, "OfKeyword cannot be called with 1 inputs by position.*keywords"),
        (plain(), (IMAGES, IMAGES), "Sequential cannot be called with 2 inputs"),
        (plain(), (), "begins with nothing"),
        (plain(), None, "begins with NoneType"),
        (plain(), "image.png", "begins with str"),
        (plain(), IMAGES[:0], "an example of no image"),
        (plain(), torch.tensor(1.0), r"a tensor \(B, C, \*spatial\)"),
    ],
)
def test_inputs_that_are_no_tensors_are_refused_with_the_cure(network, example, said) -> None:
    calls = [
        lambda: ftwt.convert(network, example),
        lambda: ftwt.count_macs(network, example),
        lambda: ftwt.compile(network, example),
    ]
    for call in calls[: 3 if example is not None else 1]:
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize(
    "batches", [[{"image": IMAGES}], [({"image": IMAGES}, LABELS)], [("a.png", LABELS)], [[]], [3]]
)
def test_batches_that_are_no_images_are_refused_by_all_that_look_at_them(batches) -> None:
    dynamic = trained(plain())
    for call in (
        lambda: ftwt.estimate(plain(), batches),
        lambda: dynamic.freeze(batches),
        lambda: ftwt.calibrate(dynamic, batches, reduction=0.3),
        lambda: ftwt.prune(plain(), batches, reduction=0.3),
    ):
        with pytest.raises(ValueError, match="batches must be"):
            call()


def test_an_input_that_the_example_did_not_have_is_refused() -> None:
    """Its forward branched on the default: the graph cannot follow another value."""
    dynamic = trained(Scaled())
    assert torch.equal(dynamic(image=IMAGES), dynamic(IMAGES))
    for call in (lambda: dynamic(IMAGES, 2.0), lambda: dynamic(IMAGES, scale=2.0)):
        with pytest.raises(ValueError, match="converted with image; convert with an example of"):
            call()
    scaled = trained(Scaled(), (IMAGES, 2.0))
    torch.testing.assert_close(scaled(IMAGES, 2.0, gates="open"), Scaled().eval()(IMAGES, 2.0))
    torch.testing.assert_close(scaled(IMAGES, 3.0, gates="open"), Scaled().eval()(IMAGES, 3.0))
    flagged = trained(Scaled(), (IMAGES, None))
    with pytest.raises(ValueError, match=r"an input of 3\.0 for .* traced for None"):
        flagged(IMAGES, 3.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head", ["standardized", "softmax"])
def test_a_dynamic_network_runs_in_any_precision(dtype: torch.dtype, head) -> None:
    dynamic = ftwt.convert(plain(), IMAGES, r=0.7, head=head, rank=4).eval()
    expected, decided = dynamic(IMAGES, gates="target", return_gates=True)
    other = copy.deepcopy(dynamic).to(dtype)
    images = IMAGES.to(dtype)
    found, there = other(images, gates="target", return_gates=True)
    assert found.dtype == dtype
    near = {"rtol": 0.05, "atol": 0.02} if dtype != torch.float64 else {}
    torch.testing.assert_close(found.float(), expected, **near)
    for name, gate in decided.items():
        torch.testing.assert_close(there[name].logits.float(), gate.logits, rtol=0.05, atol=0.05)
    result = ftwt.evaluate(other, [(images, LABELS)])
    assert result.reduction == pytest.approx(ftwt.evaluate(dynamic, [(IMAGES, LABELS)]).reduction)
    found, there = other.train()(images, return_gates=True)
    (found.sum() + ftwt.mask_loss(there)).backward()
    assert all(p.grad is not None for p in other.predictor_parameters())
    assert ftwt.compile(other.eval())(IMAGES).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_any_precision_is_converted_and_compiled(dtype: torch.dtype) -> None:
    network = plain().to(dtype)
    dynamic = ftwt.convert(network, IMAGES.to(dtype)).eval()
    images = IMAGES.to(dtype)
    assert torch.equal(dynamic(images, gates="open"), network(images))
    assert dynamic(images).dtype == dtype
    near = {"rtol": 0.05, "atol": 0.02} if dtype != torch.float64 else {}
    torch.testing.assert_close(
        ftwt.compile(network, images)(IMAGES), network(images).float(), **near
    )


def test_the_default_dtype_may_be_float64() -> None:
    expected = ftwt.compile(trained(plain()))(IMAGES)
    torch.set_default_dtype(torch.float64)
    try:
        network = plain().float()
        dynamic = ftwt.convert(network, IMAGES).eval()
        assert torch.equal(dynamic(IMAGES, gates="open"), network(IMAGES))
        assert ftwt.evaluate(dynamic, [(IMAGES, LABELS)]).images == 4
        assert ftwt.estimate(network, [IMAGES]).reduction_at(0.9) >= 0
        assert ftwt.compile(dynamic)(IMAGES).dtype == torch.float32
        wide = ftwt.convert(plain(), IMAGES.double()).eval()
        assert wide(IMAGES.double()).dtype == torch.float64
        assert ftwt.compile(wide)(IMAGES).shape == expected.shape
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_dynamic_network_is_copied_and_never_pickled() -> None:
    dynamic = trained(plain())
    for network in (dynamic, dynamic.freeze([IMAGES])):
        twin = copy.deepcopy(network)
        output, decided = network(IMAGES, return_gates="masks")
        again, gates = twin(IMAGES, return_gates="masks")
        assert torch.equal(output, again)
        masks = {name: gate.mask for name, gate in gates.items()}
        assert torch.equal(network.macs(masks).executed, twin.macs(masks).executed)
        assert torch.equal(twin.restore()(IMAGES), network.restore()(IMAGES))
        next(twin.parameters()).data.zero_()
        assert torch.equal(network(IMAGES), output)  # they share nothing
        for write in (pickle.dumps, lambda value: torch.save(value, io.BytesIO())):
            with pytest.raises(ValueError, match=r"not pickled.*ftwt\.save_pretrained"):
                write(network)


@pytest.mark.parametrize("kind", [Padded, Scaled, plain])
def test_a_restored_network_comes_back_from_a_pickle(kind) -> None:
    network = kind().eval()
    restored = trained(network).restore()
    file = io.BytesIO()
    torch.save(restored, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(IMAGES), network(IMAGES))
    assert torch.equal(copy.deepcopy(restored)(IMAGES), network(IMAGES))
    if kind is Padded:
        with pytest.raises(ValueError, match=r"an input of shape \(3, 20, 20\)"):
            again(torch.zeros(1, 3, 20, 20))


UNREADABLE = {
    "sparse": (IMAGES.to_sparse(), "laid out as sparse_coo"),
    "packed": (IMAGES.to_mkldnn(), "laid out as mkldnn"),
    "meta": (IMAGES.to("meta"), "on (the )?meta"),
    "complex": (IMAGES.to(torch.complex64), "complex"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_images_that_do_not_lie_in_memory_one_by_one_are_refused(name: str) -> None:
    images, said = UNREADABLE[name]
    dynamic, batches = ftwt.convert(plain(), IMAGES), [(images, LABELS)]
    engine = ftwt.compile(plain(), IMAGES, engine="reference")
    for call in (
        lambda: ftwt.convert(plain(), images),
        lambda: ftwt.compile(plain(), images),
        lambda: ftwt.count_macs(plain(), images),
        lambda: ftwt.estimate(dynamic, batches),
        lambda: ftwt.evaluate(dynamic, batches),
        lambda: ftwt.calibrate(dynamic, batches, reduction=0.2),
        lambda: ftwt.fit_predictors(dynamic, [images]),
        lambda: dynamic.freeze([images]),
        lambda: dynamic(images),
        lambda: engine(images),
    ):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize("name", ["sparse", "meta"])
def test_labels_that_do_not_lie_in_memory_one_by_one_are_refused(name: str) -> None:
    labels = LABELS.to_sparse() if name == "sparse" else LABELS.to("meta")
    with pytest.raises(ValueError, match=f"a batch of labels.*{name}"):
        ftwt.evaluate(plain(), [(IMAGES, labels)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_images_of_another_precision_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"cannot take an input of \(4, 3, 16, 16\).*float"):
        ftwt.convert(plain(), IMAGES).freeze([IMAGES.abs().to(dtype)])


@pytest.mark.parametrize("what", [lambda x: x, None, nn.ReLU, "a network"])
def test_what_is_no_network_is_refused(what: object) -> None:
    said = "is a class" if isinstance(what, type) else "is no network: give an nn.Module"
    for call in (
        lambda: ftwt.convert(what, IMAGES),
        lambda: ftwt.compile(what, IMAGES),
        lambda: ftwt.count_macs(what, IMAGES),
        lambda: ftwt.estimate(what, [IMAGES]),
        lambda: ftwt.evaluate(what, [(IMAGES, LABELS)]),
        lambda: ftwt.train(what, [(IMAGES, LABELS)], [(IMAGES, LABELS)]),
    ):
        with pytest.raises(ValueError, match=said):
            call()
