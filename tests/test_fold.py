"""Folding against torch's own convolution and batch norm."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Lambda, noise
from torch import nn

import minq
from minq import graph
from minq.export.constants import add_stacked, fold_constants
from minq.fold import fold_batch_norm


@given(seed=st.integers(0, 2**32 - 1), bias=st.booleans(), epsilon=st.sampled_from([1e-5, 1e-3]))
def test_folded_convolution_equals_convolution_and_batch_norm(seed, bias, epsilon):
    torch.manual_seed(seed)
    conv = torch.nn.Conv2d(3, 5, 3, bias=bias).double()
    norm = torch.nn.BatchNorm2d(5, eps=epsilon).double().eval()
    for v in (norm.weight, norm.bias, norm.running_mean):
        v.data.normal_()
    norm.running_var.uniform_(0.01, 4)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    moments = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    with torch.no_grad():
        weight, b = fold_batch_norm(conv.weight, conv.bias, *moments, epsilon)
        torch.testing.assert_close(
            torch.nn.functional.conv2d(x, weight, b), norm(conv(x)), rtol=1e-10, atol=1e-10
        )


def test_numpy_and_torch_agree():
    rng = np.random.default_rng(0)
    args = [rng.uniform(0.5, 2, s).astype(np.float32) for s in ((4, 2), 4, 4, 4, 4, 4)]
    for a, b in zip(
        fold_batch_norm(*args), fold_batch_norm(*map(torch.from_numpy, args)), strict=True
    ):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-6)


@pytest.mark.parametrize("change, words", [
    (dict(gamma=[1.0]), r"gamma has shape \(1,\)"),
    (dict(variance=[-1.0, 1.0]), "must be positive"),
    (dict(mean=[np.nan, 0.0]), "mean has 1 NaN"),
    (dict(bias=[0.0, 0.0, 0.0]), "bias has shape"),
])  # fmt: skip
def test_bad_input_is_refused(change, words):
    good = dict(
        weight=np.ones((2, 3)), bias=None, gamma=[1.0, 1.0], beta=[0.0, 0.0], mean=[0.0, 0.0],
        variance=[1.0, 1.0],
    )  # fmt: skip
    with pytest.raises(ValueError, match=words):
        fold_batch_norm(**{**good, **change})


# --- Constants and stacks -------------------------------------------------------------------------


def operators(gm):
    return [graph.op(node) for node in gm.graph.nodes if node.op == "call_function"]


def fusion(m, x):
    """Two branches in shares that are learned, as EfficientDet's."""
    shares = m.shares.relu()
    branches = [m.a(x), m.b(x)]
    parts = [y * shares[i] / (shares.sum() + 1e-4) for i, y in enumerate(branches)]
    return torch.stack(parts, dim=-1).sum(dim=-1)


def test_shares_become_numbers_and_a_stack_a_sum():
    shares = nn.Parameter(torch.tensor([0.5, 2.0]))
    model = Lambda(fusion, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), shares=shares)
    x = noise(2, 3, 5, 5)
    gm = add_stacked(fold_constants(minq.capture(model, x)))
    assert operators(gm) == ["conv2d", "conv2d", *["rescale"] * 4, "add"]
    assert {name for name, _ in gm.named_parameters()} == {
        "a.weight", "a.bias", "b.weight", "b.bias"
    }  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(gm(x), model(x), rtol=1e-6, atol=1e-6)
    q = minq.ptq(model, x, rounding="nearest")
    assert not minq.deploy.integer.to_integer(q).islands


def test_a_weight_that_is_computed_becomes_one():
    linear = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    x = noise(5, 4)
    gm = fold_constants(minq.capture(linear, x))
    assert operators(gm) == ["linear"] and len(graph.layers(gm)) == 1
    with torch.no_grad():
        torch.testing.assert_close(gm(x), linear(x))
    assert all(p.requires_grad for p in gm.parameters())


def test_a_parameter_that_is_only_moved_stays():
    model = Lambda(lambda m, x: x + m.table[1:3], table=nn.Parameter(noise(4, 3)))
    gm = fold_constants(minq.capture(model, noise(2, 2, 3)))
    assert [name for name, _ in gm.named_parameters()] == ["table"]


@pytest.mark.parametrize("function", [
    lambda m, x: torch.stack([x, 2 * x]).sum(0, keepdim=True),
    lambda m, x: torch.stack([x, 2 * x]).sum(1),
    lambda m, x: torch.stack([x, 2 * x]).sum(),
    lambda m, x: (s := torch.stack([x, x])).sum(0) + s[0],
], ids=["kept", "another dimension", "all", "read twice"])  # fmt: skip
def test_other_sums_stay(function):
    x = noise(3, 4)
    gm = add_stacked(minq.capture(Lambda(function), x))
    assert "stack" in operators(gm)
    assert torch.equal(gm(x), Lambda(function)(x))
