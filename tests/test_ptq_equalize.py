"""Equalization against torch's own layers: the function stays, the ranges meet."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d, linear, relu

from minq.ptq.equalize import (
    absorb_bias,
    absorbable,
    absorbable_on,
    equalization_scales,
    equalize,
    input_ranges,
    output_ranges,
    scale_inputs,
    scale_outputs,
)

seeds = st.integers(0, 2**32 - 1)


def random(seed, *shapes):
    """Weights whose channels differ by orders of magnitude, as folding leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes:
        t = torch.randn(shape, generator=generator, dtype=torch.float64)
        spread = 10 ** torch.randn(shape[0], generator=generator, dtype=torch.float64)
        yield t * spread.reshape(-1, *[1] * (len(shape) - 1))


def brute_input_ranges(weight, groups):
    """max |W| over all outputs that move when input channel i does."""
    inputs = weight.shape[1] * groups
    x = torch.eye(inputs, dtype=weight.dtype).reshape(inputs, inputs, 1, 1)
    full = torch.zeros(weight.shape[0], inputs, *weight.shape[2:], dtype=weight.dtype)
    for k, piece in enumerate(weight.chunk(groups)):
        rows, columns = k * len(piece), k * weight.shape[1]
        full[rows : rows + len(piece), columns : columns + weight.shape[1]] = piece
    # Checked by torch: the dense weight computes what the grouped one does.
    centre = (weight.shape[2] - 1) // 2
    torch.testing.assert_close(
        conv2d(x, full, padding=centre), conv2d(x, weight, padding=centre, groups=groups)
    )
    return full.abs().amax(dim=(0, 2, 3))


@given(seed=seeds, groups=st.sampled_from([1, 2, 3, 6]))
def test_convolutions_keep_their_function_and_their_ranges_meet(seed, groups):
    w1, b1, w2, b2 = random(seed, (6, 3, 3, 3), (6,), (12, 6 // groups, 3, 3), (12,))
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(input_ranges(w2, groups), brute_input_ranges(w2, groups))
    r1, r2 = w1.abs().amax(dim=(1, 2, 3)), brute_input_ranges(w2, groups)

    v1, c1, v2, s = equalize(w1, b1, w2, groups)

    before = conv2d(relu(conv2d(x, w1, b1)), w2, b2, padding=1, groups=groups)
    after = conv2d(relu(conv2d(x, v1, c1)), v2, b2, padding=1, groups=groups)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
    for r in (output_ranges(v1), input_ranges(v2, groups)):
        torch.testing.assert_close(r, (r1 * r2).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(s, (r1 / r2).sqrt(), rtol=1e-12, atol=0)


@given(seed=seeds)
def test_linear_layers(seed):
    w1, b1, w2 = random(seed, (5, 4), (5,), (3, 5))
    x = torch.randn(8, 4, dtype=torch.float64)
    v1, c1, v2, _ = equalize(w1, b1, w2)
    before = linear(relu(linear(x, w1, b1)), w2)
    after = linear(relu(linear(x, v1, c1)), v2)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
    torch.testing.assert_close(output_ranges(v1), input_ranges(v2), rtol=1e-12, atol=0)


def test_a_depthwise_triple_keeps_its_function():
    """Expand, depthwise, project: pair after pair, as in MobileNet."""
    we, be, wd, bd, wp = random(0, (8, 4, 1, 1), (8,), (8, 1, 3, 3), (8,), (5, 8, 1, 1))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def network(we, be, wd, bd, wp):
        return conv2d(relu(conv2d(relu(conv2d(x, we, be)), wd, bd, padding=1, groups=8)), wp)

    before = network(we, be, wd, bd, wp)
    for _ in range(3):
        we, be, wd, _ = equalize(we, be, wd, groups=8)
        wd, bd, wp, _ = equalize(wd, bd, wp)
    torch.testing.assert_close(network(we, be, wd, bd, wp), before)


def test_dead_channels_stay():
    w1 = torch.tensor([[0.0, 0.0], [2.0, 1.0], [4.0, 0.0]])
    w2 = torch.tensor([[3.0, 0.0, 1.0]])
    v1, b1, v2, s = equalize(w1, torch.ones(3), w2)
    assert s.tolist() == [1.0, 1.0, 2.0]
    assert v1[:2].equal(w1[:2]) and v2[:, :2].equal(w2[:, :2]) and b1.tolist() == [1.0, 1.0, 0.5]
    assert equalize(w1, None, w2)[1] is None


def test_ranges_at_both_ends_of_float32_still_meet():
    s = equalization_scales(torch.tensor([1e38, 1e-38]), torch.tensor([1e-38, 1e38]))
    torch.testing.assert_close(s, torch.tensor([1e38, 1e-38]))


@given(seed=seeds, groups=st.sampled_from([1, 2, 6]))
def test_absorbing_is_exact_where_the_input_stays_above_c(seed, groups):
    w2, b2 = random(seed, (12, 6 // groups, 3, 3), (12,))
    generator = torch.Generator().manual_seed(seed)
    c = torch.rand(6, generator=generator, dtype=torch.float64) * 5
    c[0] = 0
    rest = torch.rand(2, 6, 7, 7, generator=generator, dtype=torch.float64)  # W1 x + b1 - c
    b1 = torch.randn(6, generator=generator, dtype=torch.float64)
    w1x = rest + (c - b1).reshape(-1, 1, 1)

    v1, v2 = absorb_bias(b1, w2, b2, c, groups)

    def network(b1, b2):
        return conv2d(relu(w1x + b1.reshape(-1, 1, 1)), w2, b2, groups=groups)

    before = network(b1, b2)
    atol = 1e-12 * float(w2.abs().max()) * 100
    torch.testing.assert_close(network(v1, v2), before, rtol=1e-9, atol=atol)


def test_three_deviations_are_left():
    assert absorbable([5.0, 5.0, 1.0, -2.0], [1.0, -1.0, 1.0, 0.1]).tolist() == [2.0, 2.0, 0.0, 0.0]
    assert absorbable([5.0], [1.0], sigmas=1.0).tolist() == [4.0]
    b1, b2 = absorb_bias(None, torch.tensor([[2.0]]), None, torch.tensor([3.0]))
    assert b1.tolist() == [-3.0] and b2.tolist() == [6.0]


@given(seed=seeds, rows=st.integers(1, 6))
def test_what_data_allow_is_the_lowest_output_of_each_channel(seed, rows):
    """Against a loop over all outputs; and one step more would be too much."""
    w1, b1, w2 = random(seed, (4, 3, 2, 2), (4,), (5, 4, 2, 2))
    x = torch.randn(rows, 3, 5, 5, dtype=torch.float64)
    y = conv2d(x, w1, b1 + 3 * w1.abs().sum((1, 2, 3)))
    c = absorbable_on(y)
    lowest = [min(float(v) for v in y[:, k].flatten()) for k in range(4)]
    assert c.tolist() == [max(0.0, v) for v in lowest]
    moved, b2 = absorb_bias(torch.zeros(4).double(), w2, None, c)
    before, after = conv2d(relu(y), w2), conv2d(relu(y + moved.reshape(-1, 1, 1)), w2, b2)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12 * float(before.abs().max()) * 16)
    np.testing.assert_array_equal(absorbable_on(y.movedim(1, -1).numpy(), axis=-1), c.numpy())


def test_numpy_and_torch_agree():
    w1, b1, w2 = (t.numpy() for t in random(3, (4, 3), (4,), (6, 2, 3, 3)))
    ours = equalize(w1, b1, w2, 2)
    theirs = equalize(*map(torch.from_numpy, (w1, b1, w2)), 2)
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-12)
    for a, b in zip(
        absorb_bias(b1, w2, None, abs(b1), 2),
        absorb_bias(*map(torch.from_numpy, (b1, w2)), None, torch.from_numpy(abs(b1)), 2),
        strict=True,
    ):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-12)


@pytest.mark.parametrize("call, words", [
    (lambda: equalize([[1.0]], None, [[1.0, 2.0]]), "outputs of one must be the inputs"),
    (lambda: equalization_scales([-1.0], [1.0]), "negative"),
    (lambda: output_ranges([1.0]), "weight must be"),
    (lambda: input_ranges([[1.0], [1.0], [1.0]], groups=2), "3 outputs cannot"),
    (lambda: output_ranges([[float("nan")]]), "NaN"),
    (lambda: scale_inputs([[1.0]], [0.0]), "s must be positive"),
    (lambda: scale_outputs([[1.0]], [1.0, 2.0], [1.0]), "bias has shape"),
    (lambda: absorbable([1.0], [1.0], sigmas=-1), "sigmas"),
    (lambda: absorbable_on([1.0]), "axis 1 is out of range"),
])  # fmt: skip
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
