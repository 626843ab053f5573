"""A second look: what it computes, what is counted, which threshold, engines, files, mistakes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toys
from ftwt import (
    compile_second_look,
    convert,
    evaluate,
    from_pretrained,
    runtime,
    save_pretrained,
    second_look,
)
from ftwt.fitting.second_look import largest_rate
from ftwt.pruning.second_look import SecondLook, margin, opened

IMAGES = toys.pixels(120)


def both():
    """A network with half of its filters, and the whole one."""
    torch.manual_seed(0)
    dense = toys.Toy(dropout=0.0).eval()
    nn.init.normal_(dense.classifier.weight, std=2.0)
    dynamic = convert(dense, torch.zeros(2, 3, 8, 8), min_gain=-1.0).eval()
    first = dynamic.fix({name: torch.arange(8) < 4 for name in dynamic.gates}).eval()
    return first, opened(dynamic).eval(), dense


@torch.inference_mode()
def by_hand(network: SecondLook, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image by image: outputs, whether it was looked at again, MACs."""
    outputs, again, macs = [], [], []
    for image in images[:, None]:
        found = network.first(image)
        work = float(network.first.macs(_masks(network.first, image)).executed)
        p = found[0].softmax(0).sort(descending=True).values
        unsure = bool(p[0] - p[1] < network.threshold)
        if unsure:
            found = network.second(image)
            work += float(network.second.macs(_masks(network.second, image)).executed)
        outputs.append(found[0])
        again.append(unsure)
        macs.append(work)
    return torch.stack(outputs), torch.tensor(again), torch.tensor(macs).double()


def _masks(network, image):
    return {name: gate.mask for name, gate in network(image, return_gates="masks")[1].items()}


def test_it_computes_and_counts_what_is_counted_image_by_image():
    first, second, dense = both()
    with torch.inference_mode():
        network = SecondLook(first, second, float(margin(first(IMAGES)).median()) + 1e-4)
    outputs, again, macs = by_hand(network, IMAGES)
    assert 0.1 < again.float().mean() < 0.9
    with torch.inference_mode():
        looked = network.look(IMAGES)
        torch.testing.assert_close(network(IMAGES), outputs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(second(IMAGES), dense(IMAGES))
    torch.testing.assert_close(looked.outputs, outputs, atol=1e-5, rtol=1e-5)
    assert torch.equal(looked.again, again) and torch.equal(looked.executed, macs)
    labels = torch.randint(4, (120,))
    found = evaluate(network, [(IMAGES[:50], labels[:50]), (IMAGES[50:], labels[50:])])
    assert found.executed_macs == pytest.approx(float(macs.mean()))
    assert found.reduction == pytest.approx(1 - float(macs.mean()) / network.dense_macs)
    assert found.top1 == pytest.approx(float((outputs.argmax(1) == labels).float().mean()))


@pytest.mark.parametrize("reduction", [0.05, 0.2, 0.4])
def test_the_budget_is_met_on_the_images_it_was_set_on(reduction):
    first, second, _ = both()
    fit = second_look(first, second, IMAGES.split(32), reduction=reduction)
    outputs, again, macs = by_hand(fit.network, IMAGES)
    saved = 1 - float(macs.mean()) / fit.network.dense_macs
    assert saved >= reduction and saved == pytest.approx(fit.reduction)
    assert float(again.float().mean()) == pytest.approx(fit.again)
    one_more = float(second.macs(_masks(second, IMAGES[:1])).executed) / 120
    assert saved - one_more / fit.network.dense_macs < reduction  # one more look is too much
    with torch.inference_mode():
        agree = (outputs.argmax(1) == second(IMAGES).argmax(1)).float().mean()
    assert float(agree) == pytest.approx(fit.agreement)
    assert f"{fit.again:.1%} of 120 images" in toys.printed(fit)


def test_an_agreement_is_promised_with_the_fewest_second_looks():
    first, second, _ = both()
    fit = second_look(first, second, [IMAGES], agreement=0.9)
    assert fit.promised >= 0.9 and fit.agreement >= fit.promised
    margins = margin(first(IMAGES)).detach().sort().values
    fewer = SecondLook(first, second, float(margins[round(fit.again * 120) - 1]))
    with torch.inference_mode():
        missed = int((fewer(IMAGES).argmax(1) != second(IMAGES).argmax(1)).sum())
    assert 1 - largest_rate(missed, 120) < 0.9


def test_the_largest_rate_is_that_of_the_binomial_distribution():
    assert largest_rate(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    for misses, count in ((3, 50), (10, 1000)):
        rate = largest_rate(misses, count)
        tail = sum(
            math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(misses + 1)
        )
        assert tail == pytest.approx(0.05, rel=1e-6)
    assert largest_rate(5, 5) == 1.0


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_engines_do_what_the_network_does_and_load_without_torch(engine, tmp_path: Path):
    if engine == "native":
        pytest.importorskip("ftwt.runtime._native")
    first, second, _ = both()
    network = second_look(first, second, [IMAGES], reduction=0.2).network
    made = compile_second_look(network, engine=engine)
    made.save(tmp_path / "net")
    loaded = runtime.load_second_look(tmp_path / "net", engine=engine)
    with torch.inference_mode():
        looked = network.look(IMAGES)
    near = (margin(first(IMAGES)).detach() - network.threshold).abs() < 1e-5
    assert not near.any()
    for ours in (made, loaded):
        outputs, looks = ours.run(IMAGES.numpy())
        np.testing.assert_allclose(outputs, looked.outputs, atol=1e-4)
        np.testing.assert_allclose(ours(IMAGES), looked.outputs, atol=1e-4)
        assert (looks.again == looked.again.numpy()).all()
        assert (looks.executed_macs == looked.executed.numpy()).all()
        assert looks.reduction.mean() == pytest.approx(0.2, abs=0.02)


def test_it_is_loaded_as_it_was_saved(tmp_path: Path):
    first, second, dense = both()
    network = second_look(first, second, [IMAGES], reduction=0.2).network
    save_pretrained(network, tmp_path / "net")
    again = from_pretrained(tmp_path / "net", model=dense)
    assert isinstance(again, SecondLook) and again.threshold == network.threshold
    with torch.inference_mode():
        assert torch.equal(again(IMAGES), network(IMAGES))
    rule = tmp_path / "net" / "second_look.json"
    rule.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="holds no threshold of format 1"):
        from_pretrained(tmp_path / "net", model=dense)


def test_what_cannot_be_asked_is_refused():
    first, second, _ = both()
    for given in ({}, {"reduction": 0.1, "agreement": 0.9}):
        with pytest.raises(ValueError, match="give one of them"):
            second_look(first, second, [IMAGES], **given)
    with pytest.raises(ValueError, match=r"0.9 is out of reach: a second look saves from"):
        second_look(first, second, [IMAGES], reduction=0.9)
    with pytest.raises(ValueError, match="no images to set the threshold on"):
        second_look(first, second, [], reduction=0.1)
    with pytest.raises(ValueError, match=r"agreement=0.999 cannot be promised from 120 images"):
        second_look(first, second, [IMAGES], agreement=0.999)
    with pytest.raises(ValueError, match=r"agreement=1.5 is outside \(0, 1\)"):
        second_look(first, second, [IMAGES], agreement=1.5)
    with pytest.raises(ValueError, match="for a network converted for"):
        second_look(first, second, [torch.zeros(4, 3, 5, 5)], reduction=0.1)


def test_outputs_that_are_no_class_scores_are_refused():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    maps = convert(body, torch.zeros(2, 3, 8, 8), min_gain=-1.0).eval()
    with pytest.raises(ValueError, match=r"returns \(120, 4, 4, 4\), no scores"):
        second_look(maps, opened(maps), [IMAGES], reduction=0.1)
