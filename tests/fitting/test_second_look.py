"""A second look: what it computes, what is counted, which threshold, engines, files, mistakes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import toys
from ftwt import (
    compile,
    convert,
    evaluate,
    from_pretrained,
    runtime,
    save_pretrained,
    second_look,
)
from ftwt.fitting.second_look import Seen, largest_rate, see
from ftwt.pruning.second_look import SecondLook, margin, opened
from ftwt.runtime import passes

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
    """Image by image: outputs, how many passes it went through, MACs."""
    outputs, passes, macs = [], [], []
    for image in images[:, None]:
        work = 0.0
        for number, one in enumerate(network.networks):
            found = one(image)
            work += float(one.macs(_masks(one, image)).executed)
            p = found[0].softmax(0).sort(descending=True).values
            if number == len(network.passes) - 1 or p[0] - p[1] >= network.thresholds[number]:
                break
        outputs.append(found[0])
        passes.append(number + 1)
        macs.append(work)
    return torch.stack(outputs), torch.tensor(passes), torch.tensor(macs).double()


def _masks(network, image):
    return {name: gate.mask for name, gate in network(image, return_gates="masks")[1].items()}


def test_it_computes_and_counts_what_is_counted_image_by_image():
    first, second, dense = both()
    with torch.inference_mode():
        network = SecondLook([first, second], [float(margin(first(IMAGES)).median()) + 1e-4])
    outputs, passes, macs = by_hand(network, IMAGES)
    assert 1.1 < passes.float().mean() < 1.9
    with torch.inference_mode():
        looked = network.look(IMAGES)
        torch.testing.assert_close(network(IMAGES), outputs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(second(IMAGES), dense(IMAGES))
    torch.testing.assert_close(looked.outputs, outputs, atol=1e-5, rtol=1e-5)
    assert torch.equal(looked.passes, passes) and torch.equal(looked.executed, macs)
    labels = torch.randint(4, (120,))
    found = evaluate(network, [(IMAGES[:50], labels[:50]), (IMAGES[50:], labels[50:])])
    assert found.executed_macs == pytest.approx(float(macs.mean()))
    assert found.reduction == pytest.approx(1 - float(macs.mean()) / network.dense_macs)
    assert found.top1 == pytest.approx(float((outputs.argmax(1) == labels).float().mean()))


@pytest.mark.parametrize("reduction", [0.05, 0.2, 0.4])
def test_the_budget_is_met_on_the_images_it_was_set_on(reduction):
    first, second, _ = both()
    fit = second_look([first, second], IMAGES.split(32), reduction=reduction)
    outputs, passes, macs = by_hand(fit.network, IMAGES)
    saved = 1 - float(macs.mean()) / fit.network.dense_macs
    assert saved >= reduction and saved == pytest.approx(fit.reduction)
    assert float((passes > 1).float().mean()) == pytest.approx(fit.again)
    one_more = float(second.macs(_masks(second, IMAGES[:1])).executed) / 120
    assert saved - one_more / fit.network.dense_macs < reduction  # one more look is too much
    with torch.inference_mode():
        agree = (outputs.argmax(1) == second(IMAGES).argmax(1)).float().mean()
    assert float(agree) == pytest.approx(fit.agreement)
    assert f"{fit.again:.1%} of 120 images" in toys.printed(fit)


def test_an_agreement_is_promised_with_the_fewest_second_looks():
    first, second, _ = both()
    fit = second_look([first, second], [IMAGES], agreement=0.9)
    assert fit.promised >= 0.9 and fit.agreement >= fit.promised
    margins = margin(first(IMAGES)).detach().sort().values
    fewer = SecondLook([first, second], [float(margins[round(fit.again * 120) - 1])])
    with torch.inference_mode():
        missed = int((fewer(IMAGES).argmax(1) != second(IMAGES).argmax(1)).sum())
    assert 1 - largest_rate(missed, 120) < 0.9


def test_batches_may_come_from_a_generator():
    first, second, _ = both()
    listed, generated = (
        second_look([first, second], batches, reduction=0.2)
        for batches in (IMAGES.split(50), (part for part in IMAGES.split(50)))
    )
    assert listed.thresholds == generated.thresholds and generated.images == len(IMAGES)


def test_a_promise_holds_where_margins_are_equal():
    """Those of sure networks all round to 1: then all such images look again."""
    right = torch.arange(1000) % 10
    first = torch.full((1000, 10), -200.0).scatter_(1, right[:, None], 200.0)
    first[::5] = first[::5].roll(1, 1)  # as sure, and wrong
    last = torch.zeros(1000, 10).scatter_(1, right[:, None], 1.0)
    costs = torch.ones(1000, dtype=torch.float64)
    plan = Seen([(first, costs), (last, 2 * costs)], 2).best(agreement=0.9)
    assert plan.missed == 0 and plan.shares == (1.0,)


def test_one_pair_of_thresholds_of_many_promises_less():
    last = torch.eye(10).repeat(10, 1)
    costs = torch.ones(100, dtype=torch.float64)
    two = [(last, costs), (last, 2 * costs)]
    assert Seen(two, 4).best(agreement=0.97).missed == 0
    with pytest.raises(ValueError, match=r"without one miss they promise 0\.9"):
        Seen([(last, costs), *two], 4).best(agreement=0.97)


def test_only_those_as_unsure_look_again_and_a_budget_is_kept():
    right = torch.arange(1000) % 10
    last = torch.zeros(1000, 10).scatter_(1, right[:, None], 1.0)
    first = 9 * last
    first[::2] = (2 * last[::2]).roll(1, 1)  # all as unsure, and wrong
    costs = torch.ones(1000, dtype=torch.float64)
    seen = Seen([(first, costs), (last, 2 * costs)], 4)
    plan = seen.best(agreement=0.9)
    assert plan.missed == 0 and plan.shares == (0.5,)
    assert seen.best(reduction=0.6).reduction >= 0.6  # a fifth may look again


def test_images_that_change_from_pass_to_pass_are_refused():
    first, second, _ = both()
    shuffled = DataLoader(TensorDataset(IMAGES, torch.zeros(len(IMAGES))), 32, shuffle=True)
    with pytest.raises(ValueError, match="other images each time"):
        second_look([first, second], shuffled, reduction=0.2)
    with pytest.raises(ValueError, match="holds a value that is not finite"):
        second_look([first, second], [torch.full_like(IMAGES, torch.nan)], reduction=0.2)


def test_the_largest_rate_is_that_of_the_binomial_distribution():
    assert largest_rate(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    for misses, count in ((3, 50), (10, 1000)):
        rate = largest_rate(misses, count)
        tail = sum(
            math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(misses + 1)
        )
        assert tail == pytest.approx(0.05, rel=1e-6)
    assert largest_rate(5, 5) == 1.0
    assert largest_rate(0, 100, tries=41) == pytest.approx(1 - (0.05 / 41) ** (1 / 100))


def three():
    """A quarter of the filters, half of them, all."""
    first, second, dense = both()
    least = convert(dense, torch.zeros(2, 3, 8, 8), min_gain=-1.0).eval()
    return least.fix({name: torch.arange(8) < 2 for name in least.gates}).eval(), first, second


def test_of_three_passes_the_plan_of_best_agreement_is_taken():
    passes = three()
    fit = second_look(passes, [IMAGES], reduction=0.15)
    outputs, taken, macs = by_hand(fit.network, IMAGES)
    assert 1 - float(macs.mean()) / fit.network.dense_macs == pytest.approx(fit.reduction)
    assert [float((taken > n).float().mean()) for n in (1, 2)] == pytest.approx(list(fit.shares))
    with torch.inference_mode():
        agree = (outputs.argmax(1) == passes[2](IMAGES).argmax(1)).float().mean()
    assert float(agree) == pytest.approx(fit.agreement)
    for pair in (passes[::2], passes[1:]):  # among the plans are those of two passes, nearly
        two = second_look(pair, [IMAGES], reduction=0.2)
        assert second_look(passes, [IMAGES], reduction=0.15).agreement >= two.agreement - 0.02
    promised = second_look(passes, [IMAGES], agreement=0.9)
    assert promised.promised >= 0.9 and "a third time" in toys.printed(promised)


@torch.inference_mode()
def clear(passes) -> list[float]:
    """Thresholds in the widest gaps between margins, so that rounding decides nothing."""
    thresholds, left = [], IMAGES
    for one in passes[:-1]:
        margins = margin(one(left))
        sure = margins.sort().values[len(left) // 6 : -len(left) // 6]
        widest = int((sure[1:] - sure[:-1]).argmax())
        thresholds.append(float((sure[widest] + sure[widest + 1]) / 2))
        left = left[margins < thresholds[-1]]
    return thresholds


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("count", [2, 3])
def test_engines_do_what_the_network_does_and_load_without_torch(engine, count, tmp_path: Path):
    if engine == "native":
        pytest.importorskip("ftwt.runtime._native")
    passes = three()[-count:]
    with torch.inference_mode():
        network = SecondLook(passes, clear(passes)).eval()
        looked = network.look(IMAGES)
    assert len(looked.passes.unique()) == count
    made = compile(network, engine=engine)
    made.save(tmp_path / "net.ftwt", classes=list("abcd"), notes={"from": "a test"})
    loaded = runtime.load(tmp_path / "net.ftwt", engine=engine)
    assert isinstance(loaded, runtime.SecondLookEngine) and len(loaded.passes) == count
    assert loaded.classes == tuple("abcd") and loaded.program.notes["from"] == "a test"
    for ours in (made, loaded):
        outputs, looks = ours.run(IMAGES.numpy())
        np.testing.assert_allclose(outputs, looked.outputs, atol=1e-4)
        np.testing.assert_allclose(ours(IMAGES), looked.outputs, atol=1e-4)
        assert (looks.passes == looked.passes.numpy()).all()
        assert (looks.again == (looked.passes > 1).numpy()).all()
        assert (looks.executed_macs == looked.executed.numpy()).all()
        spent = looks.executed_macs.mean() / network.dense_macs
        assert looks.reduction.mean() == pytest.approx(1 - spent)
        assert looks.macs.shape[1] == sum(len(one.program.operations) for one in ours.passes)
    with pytest.raises(ValueError, match="takes no masks; ask one of its `passes`"):
        made.run(IMAGES, {"conv1": np.ones((120, 8), bool)})
    with pytest.raises(ValueError, match="holds .* programs; load_passes reads them all"):
        runtime.load_program(tmp_path / "net.ftwt")


def test_a_file_holds_once_what_the_passes_share(tmp_path: Path):
    first, second, _ = both()
    network = second_look([first, second], [IMAGES], reduction=0.2).network
    compile(network, engine="reference", remove_fixed=False).save(tmp_path / "both.ftwt")
    compile(second, engine="reference", remove_fixed=False).save(tmp_path / "one.ftwt")
    sizes = [(tmp_path / name).stat().st_size for name in ("both.ftwt", "one.ftwt")]
    weights = sum(
        v.nbytes for v in dict(runtime.load_program(tmp_path / "one.ftwt").constants).values()
    )
    assert sizes[0] - sizes[1] < weights  # masks and words differ, weights do not
    found = runtime.load_passes(tmp_path / "both.ftwt").programs
    images = IMAGES.numpy()
    for program, part in zip(found, (first, second), strict=True):
        with torch.inference_mode():
            wanted = part(IMAGES)
        got = runtime.Engine(program, engine="reference")(images)
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_damaged_second_look_is_refused(tmp_path: Path):
    first, second, dense = both()
    engines = [compile(one, engine="reference") for one in (first, second)]
    for thresholds, message in (((), "must be 1 finite numbers"), ((math.nan,), "finite")):
        with pytest.raises(ValueError, match=message):
            runtime.SecondLookEngine(engines, thresholds)
    other = compile(dense, torch.zeros(1, 3, 12, 12), engine="reference")
    with pytest.raises(ValueError, match="the shapes of the first pass"):
        runtime.SecondLookEngine([engines[0], other], [0.5])
    with pytest.raises(ValueError, match="number of passes is 4, must be 1 to 3"):
        runtime.SecondLookEngine(engines * 2, [0.5] * 3)
    runtime.SecondLookEngine(engines, [0.5]).save(tmp_path / "net.ftwt")
    whole = (tmp_path / "net.ftwt").read_bytes()
    (tmp_path / "net.ftwt").write_bytes(whole.replace(b"[0.5]", b"[1e9]"))
    with pytest.raises(ValueError, match="the file was altered"):
        runtime.load(tmp_path / "net.ftwt", engine="reference")


def test_it_is_loaded_as_it_was_saved(tmp_path: Path):
    first, second, dense = both()
    network = second_look([first, second], [IMAGES], reduction=0.2).network
    save_pretrained(network, tmp_path / "net")
    again = from_pretrained(tmp_path / "net", model=dense)
    assert isinstance(again, SecondLook) and torch.equal(again.thresholds, network.thresholds)
    with torch.inference_mode():
        assert torch.equal(again(IMAGES), network(IMAGES))
    rule = tmp_path / "net" / "second_look.json"
    rule.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="holds no thresholds of format 1"):
        from_pretrained(tmp_path / "net", model=dense)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_an_output_that_is_not_finite_is_looked_at_again(spoilt):
    first, second, _ = both()
    first.network.classifier.bias.data[0] = spoilt
    looked = SecondLook([first, second], [0.0]).eval().look(IMAGES[:3])
    assert looked.passes.tolist() == [2, 2, 2]
    torch.testing.assert_close(looked.outputs, second(IMAGES[:3]))
    assert passes.margin(np.array([[spoilt, 1.0, 2.0]], np.float32)).tolist() == [-1.0]
    with pytest.raises(ValueError, match="a pass gives outputs that are not finite"):
        second_look([first, second], [IMAGES], reduction=0.2)


def test_no_images_give_no_outputs():
    network = SecondLook(both()[:2], [0.5]).eval()
    looked = network.look(IMAGES[:0])
    assert looked.outputs.shape == (0, 4) and not len(looked.executed) and not len(looked.passes)


def test_what_cannot_be_asked_is_refused():
    first, second, _ = both()
    for given in ({}, {"reduction": 0.1, "agreement": 0.9}):
        with pytest.raises(ValueError, match="give one of them"):
            second_look([first, second], [IMAGES], **given)
    with pytest.raises(ValueError, match="passes is one network; give a list"):
        second_look(first, [IMAGES], reduction=0.1)
    with pytest.raises(ValueError, match="Identity is no DynamicModel"):
        second_look([first, nn.Identity()], [IMAGES], reduction=0.1)
    with pytest.raises(ValueError, match="batches is one tensor .* give a list of batches"):
        second_look([first, second], IMAGES, reduction=0.1)
    with pytest.raises(ValueError, match=r"0.9 is out of reach: a second look saves from"):
        second_look([first, second], [IMAGES], reduction=0.9)
    with pytest.raises(ValueError, match="no images to set the threshold on"):
        second_look([first, second], [], reduction=0.1)
    with pytest.raises(ValueError, match=r"agreement=0.999 cannot be promised from 120 images"):
        second_look([first, second], [IMAGES], agreement=0.999)
    with pytest.raises(ValueError, match=r"agreement=1.5 is outside \(0, 1\)"):
        second_look([first, second], [IMAGES], agreement=1.5)
    with pytest.raises(ValueError, match="for a network converted for"):
        second_look([first, second], [torch.zeros(4, 3, 5, 5)], reduction=0.1)


def test_outputs_that_are_no_class_scores_are_refused():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    maps = convert(body, torch.zeros(2, 3, 8, 8), min_gain=-1.0).eval()
    with pytest.raises(ValueError, match=r"returns \(120, 4, 4, 4\), no scores"):
        second_look([maps, opened(maps)], [IMAGES], reduction=0.1)


def test_passes_of_other_classes_are_refused():
    def told(classes: int) -> nn.Module:
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head).eval()
        return convert(net, torch.zeros(2, 3, 8, 8), min_gain=-1.0).eval()

    with pytest.raises(ValueError, match=r"tell \[3, 5\] classes apart"):
        second_look([told(3), told(5)], [IMAGES], reduction=0.1)


def test_recorded_passes_tell_what_the_network_gives_and_each_half_is_judged_by_the_other():
    passes = three()
    network = second_look(passes, [IMAGES], reduction=0.15).network
    seen = Seen([see(one, IMAGES.split(50), 120) for one in passes], network.dense_macs)
    looked, wanted = seen.looked(network.thresholds.tolist()), network.look(IMAGES)
    torch.testing.assert_close(looked.outputs, wanted.outputs)
    assert torch.equal(looked.passes, wanted.passes)
    assert torch.equal(looked.executed, wanted.executed)
    crossed = seen.crossed(reduction=0.15)
    for half in (0, 1):
        fit = second_look(passes, [IMAGES[1 - half :: 2]], reduction=0.15)
        other = fit.network.look(IMAGES[half::2])
        torch.testing.assert_close(crossed.outputs[half::2], other.outputs)
        assert torch.equal(crossed.passes[half::2], other.passes)
        assert torch.equal(crossed.executed[half::2], other.executed)
