"""Bias correction against SciPy's integration, Monte-Carlo and torch's convolutions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d

import minq
from minq import graph
from minq.graph.batches import batches_of
from minq.ptq import correction
from minq.ptq.bias import (
    clipped_normal,
    conv_moments,
    correct_bias,
    empirical_shift,
    output_shift,
)
from minq.ptq.correction import helpful_shift
from minq.ptq.pipeline import set_weight_ranges
from minq.ptq.walk import Walk

integrate = pytest.importorskip("scipy.integrate")
seeds = st.integers(0, 2**32 - 1)


def integrated(mean, std, low, high):
    """Mean and variance of the clipped normal by adaptive quadrature, around the clipped mean."""
    centre = min(max(mean, low), high)
    # The kinks are given, so that each piece is smooth; 12 deviations hold all but 1e-32.
    ends = sorted({-12.0, 12.0, *(min(max((e - mean) / std, -12), 12) for e in (low, high))})

    def moment(k):
        def f(z):
            y = min(max(mean + std * z, low), high) - centre
            return y**k * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return sum(
            integrate.quad(f, a, b, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
            for a, b in zip(ends, ends[1:], strict=False)
        )

    first = moment(1)
    return centre + first, moment(2) - first**2


@given(
    mean=st.floats(-8, 8),
    std=st.floats(0.05, 5),
    ends=st.sampled_from([(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 0.5)]),
)
def test_clipped_normal_equals_numerical_integration(mean, std, ends):
    expected = integrated(mean, std, *ends)
    got = clipped_normal([mean], [std], *ends)
    scale = max(std, 1e-3)
    assert float(got[0][0]) == pytest.approx(expected[0], rel=1e-9, abs=1e-10 * scale)
    assert float(got[1][0]) == pytest.approx(expected[1], rel=1e-8, abs=1e-10 * scale**2)


@pytest.mark.parametrize("mean, std", [(0.3, 0.7), (-1.0, 0.5), (2.0, 1.5)])
def test_relu_against_samples(mean, std):
    samples = np.maximum(np.random.default_rng(0).normal(mean, std, 10**6), 0)
    got_mean, got_variance = (float(v[0]) for v in clipped_normal([mean], [std]))
    # Five standard errors of the sample mean and of the sample variance.
    assert abs(got_mean - samples.mean()) < 5 * samples.std() / 1e3
    spread = ((samples - samples.mean()) ** 2).std()
    assert abs(got_variance - samples.var()) < 5 * spread / 1e3


def test_the_formula_of_the_paper():
    """E[x] = gamma N(-beta / gamma) + beta [1 - Phi(-beta / gamma)], and what it gives."""
    norm = pytest.importorskip("scipy.stats").norm
    beta, gamma = np.array([0.3, -1.0, 2.0]), np.array([0.7, 0.5, 1.5])
    got = clipped_normal(beta, gamma)[0]
    paper = gamma * norm.pdf(-beta / gamma) + beta * (1 - norm.cdf(-beta / gamma))
    np.testing.assert_allclose(got, paper, rtol=1e-12)
    np.testing.assert_allclose(got, [0.4545, 0.0042, 2.0636], atol=5e-5)


def test_extremes_stay_finite_and_right():
    mean = torch.tensor([1e8, -1e8, 3.0, -3.0, 0.0, 9.0, 1e30], dtype=torch.float64)
    std = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1e-30], dtype=torch.float64)
    m, v = clipped_normal(mean, std)
    assert m.tolist() == [1e8, 0.0, 3.0, 0.0, 0.0, 9.0, 1e30]
    # Variance 1 far inside, though mean^2 = 1e16 has no room for it.
    assert v.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-60])
    m, v = clipped_normal(mean, std, 0.0, 6.0)
    assert m.tolist() == [6.0, 0.0, 3.0, 0.0, 0.0, 6.0, 6.0] and v.tolist() == [0.0] * 7
    # Deep in the tail, E[x] = N(t) (1 / t^2 - 3 / t^4 + ...) is still right to many digits.
    m = float(clipped_normal([-20.0], [1.0])[0][0])
    density = math.exp(-200) / math.sqrt(2 * math.pi)
    assert m == pytest.approx(
        density * (20**-2 - 3 * 20**-4 + 15 * 20**-6 - 105 * 20**-8), rel=1e-6
    )


def test_dtype_and_library_are_kept():
    m, v = clipped_normal(torch.zeros(2), torch.ones(2))
    assert m.dtype == v.dtype == torch.float32
    m, v = clipped_normal(np.zeros(2, np.float32), np.ones(2, np.float32))
    assert isinstance(m, np.ndarray) and m.dtype == v.dtype == np.float32


@given(seed=seeds, groups=st.sampled_from([1, 2, 6]))
def test_output_shift_is_what_a_convolution_of_constant_channels_moves(seed, groups):
    generator = torch.Generator().manual_seed(seed)
    w, error = (
        torch.randn(12, 6 // groups, 3, 2, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    mean = torch.randn(6, generator=generator, dtype=torch.float64)
    x = mean.reshape(1, -1, 1, 1).expand(1, 6, 3, 2)
    moved = conv2d(x, w + error, groups=groups) - conv2d(x, w, groups=groups)
    torch.testing.assert_close(output_shift(error, mean, groups), moved.flatten())


def test_corrected_layer_has_the_mean_of_the_original():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 4, 9, 9, generator=generator, dtype=torch.float64)
    w = torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(5, generator=generator, dtype=torch.float64)
    w_hat = (w * 2).round() / 2
    y, y_hat = conv2d(x, w, b), conv2d(x, w_hat, b)
    shift = empirical_shift(y, y_hat)
    corrected = conv2d(x, w_hat, correct_bias(b, shift))
    torch.testing.assert_close(corrected.mean(dim=(0, 2, 3)), y.mean(dim=(0, 2, 3)))
    assert float(shift.abs().min()) > 0
    torch.testing.assert_close(
        empirical_shift(y.movedim(1, -1), y_hat.movedim(1, -1), axis=-1), shift
    )
    assert correct_bias(None, shift).equal(-shift)


@pytest.mark.parametrize("activation", [None, torch.relu])
def test_only_the_channels_that_a_shift_helps_are_shifted(activation):
    """The first channel is off by one everywhere; of the second, one half denies the other."""
    y = torch.randint(2, 9, (400, 2), generator=torch.Generator().manual_seed(0)).float()
    wrong = torch.tensor([[1.0, 1.0], [1.0, -0.5]]).repeat(200, 1)  # the second's mean is 0.25
    y_hat = y + wrong

    def halves():
        yield from ((half, y[half::2], y_hat[half::2]) for half in (0, 1))

    shift = helpful_shift(halves, activation)
    torch.testing.assert_close(shift, torch.tensor([1.0, 0.0]))
    assert helpful_shift(lambda: iter([(0, y, y)])) is None  # nothing is held out


def test_moments_of_a_convolution_against_samples():
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.5, 1.0, 2.0, 0.1])
    w, b = torch.randn(6, 2, 2, 2, generator=generator), torch.randn(6, generator=generator)
    count = 200_000
    x = torch.randn(count, 4, 2, 2, generator=generator)
    x = x * std.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)
    y = conv2d(x, w, b, groups=2).flatten(1).double()
    m, v = conv_moments(w, b, mean, std**2, groups=2)
    # Five standard errors; y is Gaussian, so that its variance has relative error sqrt(2 / count).
    assert bool(((y.mean(0) - m).abs() < 5 * (v / count).sqrt()).all())
    assert bool(((y.var(0) / v - 1).abs() < 5 * math.sqrt(2 / count)).all())
    torch.testing.assert_close(conv_moments(w, None, mean, std, groups=2)[0], m - b)


@pytest.mark.parametrize("call, words", [
    (lambda: clipped_normal([0.0], [-1.0]), "std is negative"),
    (lambda: clipped_normal([0.0], [1.0, 1.0]), "differ in shape"),
    (lambda: clipped_normal([0.0], [1.0], 1.0, 0.0), "swap them"),
    (lambda: output_shift([[1.0, 2.0]], [1.0]), "input_mean has shape"),
    (lambda: correct_bias([1.0], [1.0, 2.0]), "bias has shape"),
    (lambda: empirical_shift([[1.0]], [[1.0, 2.0]]), "differ in shape"),
])  # fmt: skip
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_linear_layer_is_corrected_from_its_inputs():
    """As from its outputs, which may be very many."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 16, generator=g).abs()
    model = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.Linear(12, 9))
    gm = minq.insert_quantizers(minq.capture(model, x), weights=3, activations=None)
    set_weight_ranges(gm)
    walk, seen = Walk(gm, batches_of(gm, [x[:3], x[3:]])), 0
    for node in walk:
        if graph.op(node) == "linear":
            found = correction.shift_of_linear(gm, node, walk)
            walk.advance(node)
            outputs = walk.exact[node], walk.quantized[node]
            want = helpful_shift(lambda y=outputs: correction.halves_of(walk, *y, -1))
            assert want.any()
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
            seen += 1
    assert seen == 2
