"""The settings of a network's quantization, and that the pipelines take them as values."""

import ast
import inspect
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from networks import noise
from torch import nn

import minq
from minq import Scheme, estimators
from minq.ptq import AdaRound, Nearest, channels, rounding
from minq.ptq.pipeline import ptq
from minq.qat import batchnorm
from minq.qat.pipeline import prepare, qat
from minq.simulate import activation_quantizers, weight_quantizers

ROOT = Path(minq.__file__).parent
PIPELINES = ["ptq/pipeline.py", "ptq/rounding.py", "ptq/mixed.py", "ptq/checkpoint.py",
             "qat/pipeline.py", "qat/run.py", "scheme.py"]  # fmt: skip


@pytest.mark.parametrize("function", [ptq, qat, prepare, minq.insert_quantizers])
def test_at_most_a_dozen_arguments(function):
    assert len(inspect.signature(function).parameters) <= 12


def compared_strings(source):
    """Strings on either side of a comparison, alone or in a collection; no search in a dict."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                parts = side.elts if isinstance(side, (ast.Tuple, ast.List, ast.Set)) else [side]
                found += [p.value for p in parts if isinstance(p, ast.Constant)]
        elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
            found.append(node.value.value)
    return [value for value in found if isinstance(value, str)]


def test_a_comparison_with_a_string_is_found():
    assert compared_strings('if x == "a": pass\nif y in ("b", "c") or "d" in z: pass') == [
        "a", "b", "c", "d",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_no_setting_is_told_by_comparing_strings(name):
    """Short forms become objects at the boundary; after that nobody asks what they were called."""
    short = {*estimators.NAMES, *rounding.NAMES, *batchnorm.NAMES, *channels.RELU6}
    assert not short & set(compared_strings((ROOT / name).read_text("utf-8")))


def test_a_scheme_and_its_fields_give_the_same():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), noise(32, 6)
    fields = dict(weights=3, per_channel=True, layers={"2": {"weights": 8, "symmetric": True}})
    how = {"rounding": AdaRound(sweeps=2), "progress": False}
    one = minq.ptq(model, x, **fields, **how)
    other = minq.ptq(model, x, scheme=Scheme(**fields), **how)
    changed = minq.ptq(model, x, scheme=Scheme(), **fields, **how)
    for q in (other, changed):
        for k, v in one.state_dict().items():
            assert not isinstance(v, torch.Tensor) or torch.equal(v, q.state_dict()[k])
    assert {k: q.bits for k, q in weight_quantizers(one).items()} == {
        "0.weight_quantizer": 3, "2.weight_quantizer": 8,
    }  # fmt: skip


def test_the_first_pattern_that_fits_counts_and_the_rest_is_inherited():
    layers = {"a.*": {"weights": 2}, "*": {"activations": None}}
    scheme = Scheme(weights=4, symmetric=True, layers=layers)
    assert scheme.of("a.0") == replace(scheme, weights=2, layers=None)
    assert scheme.of("b", "a.1").weights == 2 and scheme.of("b").activations is None
    assert scheme.of("b").symmetric
    with pytest.raises(FrozenInstanceError):
        scheme.weights = 8


def test_a_layer_may_have_a_range_rule_of_its_own():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), noise(32, 6)
    layers = {"1": {"weight_range": estimators.Percentile(90), "activation_range": "min_max"}}
    q = minq.ptq(model, x, rounding=Nearest(), layers=layers, equalize=False, progress=False)
    rules = {k: v.estimator for k, v in (weight_quantizers(q) | activation_quantizers(q)).items()}
    assert rules["1.weight_quantizer"] == estimators.Percentile(90)
    assert rules["0.weight_quantizer"] == estimators.MSE()
    assert rules["1.quantizer"] == estimators.MinMax()
    low, high = torch.quantile(model[1].weight.detach(), torch.tensor([0.05, 0.95]))
    quantizer = weight_quantizers(q)["1.weight_quantizer"]
    torch.testing.assert_close(torch.stack([quantizer.low, quantizer.high]),
                               torch.stack([low, high]), rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("fields, error, words", [
    (dict(weights=1), ValueError, "2 bits or more"),
    (dict(weights=17), ValueError, "1 to 16"),
    (dict(activations="8"), TypeError, "whole number"),
    (dict(group_size=0), ValueError, "group_size must be at least 1"),
    (dict(groups=1.5), TypeError, "groups must be a positive whole number"),
    (dict(weight_range="output"), ValueError, 'pass "mse"'),
    (dict(activation_range="best"), ValueError, "min_max, percentile, mse, output"),
    (dict(activation_range=estimators.MSE), TypeError, r"an object such as MSE\(\)"),
    (dict(layers={"0": {"bits": 4}}), ValueError, r"layers\['0'\] has bits; it may have weights"),
    (dict(layers={"0": {"skip": "1"}}), ValueError, "has skip"),
    (dict(layers={"0": {"weights": 0}}), ValueError, "1 to 16"),
])  # fmt: skip
def test_a_wrong_scheme_is_refused_where_it_is_made(fields, error, words):
    with pytest.raises(error, match=words):
        Scheme(**fields)
