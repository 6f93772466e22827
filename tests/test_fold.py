"""Folding against torch's own convolution and batch norm."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
