"""Saliencies and heads of your own: passed, counted, fitted, saved and loaded, refused by name."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import toys
from ftwt import compile, convert, fit_predictors, from_pretrained, save_pretrained
from ftwt.pruning.method import saliency
from ftwt.pruning.own import CheckedSaliency, OwnPredictor

RULES = """
import torch
from torch import nn

def spread(features):
    return features.flatten(2).std(2)

def hidden(width, filters):
    return nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, filters))

def negative(features):
    return -features.flatten(2).amax(2).abs() - 1

def flat(features):
    return features.mean()

def narrow(width, filters):
    return nn.Linear(width, filters + 1)

def nothing(width, filters):
    return None

answer = 42
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of rules in the working folder."""
    (tmp_path / "own_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rules", raising=False)
    return "own_rules"


def network() -> nn.Module:
    return toys.Toy().eval()


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 8, 8)


def test_an_own_saliency_decides_the_targets(rules):
    by_name = convert(network(), images(2), saliency=f"{rules}:spread", r=0.7).eval()
    rule = sys.modules[rules].spread
    x = images()
    _, gates = by_name(x, gates="open", return_gates=True)
    assert by_name.config["saliency"] == f"{rules}:spread"
    for name, gate in gates.items():
        known = by_name.gates[name]
        assert isinstance(known.saliency, CheckedSaliency)
        assert gate.saliency is not None and (gate.saliency >= 0).all()
    features = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(saliency(features, rule), features.flatten(2).std(2))
    passed = convert(by_name.restore(), images(2), saliency=rule, r=0.7)
    assert passed.config == by_name.config


def test_an_own_head_is_counted_fitted_and_run(rules):
    dynamic = convert(network(), images(2), head=f"{rules}:hidden", r=0.7, min_gain=-1.0).eval()
    for unit, predictor in dynamic.predictors.items():
        assert isinstance(predictor, OwnPredictor)
        width, filters = (getattr(next(u for u in dynamic.units if u.name == unit), side)
                          for side in ("in_channels", "out_channels"))  # fmt: skip
        assert predictor.macs == 4 * width + 4 * filters
    _, gates = dynamic(images(), return_gates="masks")
    count = dynamic.macs({name: gate.mask for name, gate in gates.items()})
    assert all(
        (cost == dynamic.predictors[unit].macs).all() for unit, cost in count.predictors.items()
    )
    before = {name: value.clone() for name, value in dynamic.named_parameters()}
    found = fit_predictors(dynamic, [images(40)])
    moved = [n for n, value in dynamic.named_parameters() if not torch.equal(value, before[n])]
    assert moved and all(".own." in name for name in moved)
    assert found.accuracy.keys() == dynamic.predictors.keys()
    with pytest.raises(ValueError, match=f"does not know the head {rules}:hidden of unit"):
        compile(dynamic)


def test_own_rules_are_saved_by_name_and_come_back_when_given_again(rules, tmp_path):
    names = {"saliency": f"{rules}:spread", "head": f"{rules}:hidden"}
    dynamic = convert(network(), images(2), min_gain=-1.0, **names).eval()
    for parameter in dynamic.predictor_parameters():
        nn.init.normal_(parameter)
    save_pretrained(dynamic, tmp_path / "saved")
    functions = {
        name: getattr(sys.modules[rules], own.split(":")[1]) for name, own in names.items()
    }
    for given in (names, functions):
        again = from_pretrained(tmp_path / "saved", model=network(), **given)
        assert toys.same(again, dynamic)
        assert again.config == dynamic.config


@pytest.mark.parametrize("what", ["saliency", "head"])
def test_no_file_chooses_rules(rules, tmp_path, monkeypatch, what):
    function = {"saliency": "spread", "head": "hidden"}[what]
    dynamic = convert(network(), images(2), min_gain=-1.0, **{what: f"{rules}:{function}"})
    save_pretrained(dynamic, tmp_path / "saved")
    monkeypatch.delitem(sys.modules, rules)
    told = re.escape(f"if you trust that code, give {what}='{rules}:{function}'")
    with pytest.raises(ValueError, match=told):
        from_pretrained(tmp_path / "saved", model=network())
    assert rules not in sys.modules  # nothing of it has run
    save_pretrained(convert(network(), images(2), min_gain=-1.0), tmp_path / "known")
    with pytest.raises(ValueError, match=f"leave out {what}="):
        from_pretrained(tmp_path / "known", model=network(), **{what: f"{rules}:{function}"})


def test_a_rule_that_its_name_does_not_lead_to_is_not_saved(tmp_path):
    dynamic = convert(network(), images(2), saliency=lambda x: x.flatten(2).std(2))
    with pytest.raises(ValueError, match="<lambda> is not found again by that name; define it at"):
        save_pretrained(dynamic, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"saliency": "gone:rule"}, ImportError, "no module 'gone' in this folder or installed"),
        ({"saliency": "own_rules:lost"}, ValueError, "own_rules has no function 'lost'"),
        ({"head": "own_rules:answer"}, ValueError, "own_rules has no function 'answer'"),
        ({"saliency": "peek"}, ValueError, "saliency='peek': use one of peak, energy, norm, mean"),
        ({"head": 3}, ValueError, "head=3: use one of softmax, standardized, a function"),
        ({"head": "own_rules:hidden", "rank": 4}, ValueError, "a head of your own has its own"),
        ({"head": "own_rules:narrow"}, ValueError, "for 2 samples it gave"),
        ({"head": "own_rules:nothing"}, ValueError, "it built NoneType, not a module"),
    ],
)
@pytest.mark.usefixtures("rules")
def test_rules_that_cannot_be_used_are_refused(option, error, message):
    with pytest.raises(error, match=message):
        convert(network(), images(2), min_gain=-1.0, **option)


@pytest.mark.parametrize(
    ("rule", "message"),
    [("negative", "values below 0 or NaN"), ("flat", "a saliency for each sample and filter")],
)
def test_what_a_saliency_returns_is_looked_at(rules, rule, message):
    dynamic = convert(network(), images(2), saliency=f"{rules}:{rule}").eval()
    with pytest.raises(ValueError, match=message):
        dynamic(images(3), gates="target")
