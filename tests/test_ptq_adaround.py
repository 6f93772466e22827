"""AdaRound against all roundings of small layers, autograd, and its own promises."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import relu, relu6

from minq.affine import fake_quantize, quantize
from minq.grid import Grid, integer_grid
from minq.ptq import adaround as module
from minq.ptq.adaround import BlockSweep, adaround, sweep
from minq.ptq.rounding_task import reconstruction_error, stochastic_rounding
from minq.ptq.soft_rounding import (
    adaround_gradient,
    annealed_beta,
    initial_v,
    rectified_sigmoid,
    regularizer,
    soft_quantize,
)

seeds = st.integers(0, 2**32 - 1)
METHODS = pytest.mark.parametrize(
    "method", [adaround, lambda *a, **k: adaround_gradient(*a, steps=60, lr=0.05, **k)]
)


def layer(seed, outputs=2, width=5, groups=1, rows=64):
    """Weights, correlated positive inputs as after ReLU, targets, bias, a scale for each output."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, width, generator=generator)
    mix = torch.randn(groups, width, width, generator=generator)
    x = relu(torch.randn(groups, rows, width, generator=generator) @ mix + 0.5)
    bias = torch.randn(outputs, generator=generator) / 4
    by_group = weight.reshape(groups, -1, width)
    y = x @ by_group.transpose(1, 2) + bias.reshape(groups, 1, -1)
    return (
        weight,
        x,
        y,
        bias,
        weight.abs().amax(1) / 7 * (0.6 + 0.5 * torch.rand(outputs, generator=generator)),
    )


def nearest(weight, scale, bits, **grid):
    return fake_quantize(weight, scale, 0, bits, signed=True, axis=0, **grid)


def all_roundings(weight, scale, bits):
    """Every weight that floor and ceiling of a single row (1, K) can give, on the grid."""
    n, p = integer_grid(bits, signed=True)
    down = torch.floor(weight[0] / scale)
    for bumps in itertools.product((0.0, 1.0), repeat=weight.shape[1]):
        yield (scale * (down + torch.tensor(bumps)).clamp(n, p))[None]


@pytest.mark.parametrize("activation, factor", [(None, 1.1), (relu, 1.4)])
def test_close_to_the_best_of_all_roundings(activation, factor):
    """On average over 20 layers of 8 weights; rounding to nearest is far from it."""
    found, exact = [], 0
    for seed in range(20):
        w, x, y, b, s = layer(seed, outputs=1, width=8)
        got = adaround(w, x, y, s, bias=b, activation=activation)
        error = reconstruction_error(got, x, y, b, activation)
        errors = [reconstruction_error(v, x, y, b, activation) for v in all_roundings(w, s, 4)]
        assert error >= min(errors) * (1 - 1e-5)  # it is one of them
        near = reconstruction_error(nearest(w, s, 4), x, y, b, activation)
        found.append((error / min(errors), near / min(errors)))
        exact += error <= min(errors) * (1 + 1e-5)
    ratio, near = torch.tensor(found).log().mean(0).exp()
    assert ratio < factor < 1.6 < near, (ratio, near)
    assert exact >= 5, exact


@METHODS
@pytest.mark.parametrize("activation", [None, relu6])
@pytest.mark.parametrize("groups", [1, 3])
def test_better_than_nearest_and_within_one_step(method, groups, activation):
    w, x, y, b, s = layer(0, outputs=12, width=9, groups=groups, rows=256)
    got = method(w, x, y, s, bias=b, activation=activation)
    near = nearest(w, s, 4)
    errors = [reconstruction_error(v, x, y, b, activation) for v in (got, near)]
    assert errors[0] < 0.75 * errors[1]
    q = got / s[:, None]
    torch.testing.assert_close(q, q.round(), rtol=0, atol=1e-5)
    assert q.round().min() >= -8 and q.round().max() <= 7
    steps = q.round() - torch.floor(w / s[:, None]).clamp(-8, 7)
    assert bool(((steps == 0) | (steps == 1)).all())
    # Weights beyond the grid stay at its end.
    outside = (w / s[:, None]).abs() > 8
    assert bool(outside.any()) and got[outside].equal(near[outside])


@METHODS
@given(seed=seeds, bits=st.integers(2, 5), relu_after=st.booleans(), groups=st.sampled_from([1, 2]))
def test_no_output_is_worse_than_nearest(method, seed, bits, relu_after, groups):
    activation = relu if relu_after else None
    w, x, y, b, s = layer(seed, outputs=4, width=3, groups=groups, rows=16)
    kind = {"bias": b, "activation": activation}
    grid = integer_grid(bits, signed=True)
    got, near = method(w, x, y, s, grid=grid, **kind), nearest(w, s, bits)
    f = activation or (lambda t: t)
    per_output = [
        (f(x @ v.reshape(groups, -1, 3).transpose(1, 2) + b.reshape(groups, 1, -1)) - f(y))
        .square().sum(1).flatten()
        for v in (got, near)
    ]  # fmt: skip
    tolerance = 1e-5 * f(y).square().sum(1).flatten() + 1e-9  # of two ways to sum in float32
    assert bool((per_output[0] <= per_output[1] + tolerance).all())


def test_a_group_is_a_layer_of_its_own():
    w, x, y, b, s = layer(1, outputs=6, width=70, groups=3, rows=200)
    together = adaround(w, x, y, s, bias=b, activation=relu)
    apart = [
        adaround(w[k : k + 2], x[i], y[i], s[k : k + 2], bias=b[k : k + 2], activation=relu)
        for i, k in enumerate((0, 2, 4))
    ]
    assert (together != torch.cat(apart)).float().mean() < 0.02  # of equal choices in float32


def test_coordinate_descent_beats_gradient_descent():
    """On the same objective, and without its random numbers; the width needs several blocks."""
    w, x, y, b, s = layer(2, outputs=8, width=150, rows=1000)
    fast = adaround(w, x, y, s, bias=b)
    slow = adaround_gradient(w, x, y, s, bias=b, steps=500, lr=0.02)
    errors = [reconstruction_error(v, x, y, b) for v in (fast, slow, nearest(w, s, 4))]
    assert errors[0] < errors[1] < errors[2], errors


def test_the_penalty_joins_after_the_warm_start():
    w, x, y, b, s = layer(8, outputs=4, width=20, rows=100)
    losses = {0.0: [], 2.0: []}
    for penalty, seen in losses.items():
        adaround_gradient(
            w, x, y, s, bias=b, steps=10, penalty=penalty, progress=lambda _, v, s=seen: s.append(v)
        )
    assert losses[0.0][:2] == losses[2.0][:2] and losses[2.0][2] > losses[0.0][2]


def test_asymmetric_target_makes_up_for_a_changed_input():
    """x is the quantized network's, y the full-precision one's: the error of x is answered too."""
    w, x, y, b, _ = layer(3, outputs=8, width=40, rows=500)
    s, x_hat = w.abs().amax(1) / 7, x * 1.04
    aware = adaround(w, x_hat, y, s, bias=b)
    unaware = adaround(w, x, y, s, bias=b)
    errors = [reconstruction_error(v, x_hat, y, b) for v in (aware, unaware)]
    assert errors[0] < 0.85 * errors[1], errors


@METHODS
def test_deterministic_and_leaves_the_global_generator(method):
    w, x, y, b, s = layer(4, outputs=8, width=20, rows=300)
    state = torch.get_rng_state()
    first, second = (method(w, x, y, s, bias=b, activation=relu) for _ in range(2))
    assert first.equal(second)
    assert torch.get_rng_state().equal(state)
    assert stochastic_rounding(w, s, axis=0, seed=1).equal(
        stochastic_rounding(w, s, axis=0, seed=1)
    )
    assert torch.get_rng_state().equal(state)
    a, c = (adaround_gradient(w, x, y, s, bias=b, steps=5, lr=0.3, seed=k) for k in (0, 1))
    assert not a.equal(c)


@METHODS
def test_shapes_dtypes_and_zero_points(method):
    w, x, y, b, s = layer(5, outputs=4, width=12, rows=100)
    kernel = w.reshape(4, 3, 2, 2)
    got = method(kernel, x, y, s, bias=b)
    assert got.shape == kernel.shape and got.flatten(1).equal(method(w, x[0], y[0], s, bias=b))
    assert method(w.half(), x, y, s, bias=b).dtype == torch.float16
    # A signed grid and the unsigned one with zero-point 8 hold the same numbers.
    shifted = method(w, x, y, s, torch.full((4,), 8), Grid(0, 15), bias=b)
    torch.testing.assert_close(shifted.reshape(kernel.shape), got)
    parameter = torch.nn.Parameter(kernel)
    step = torch.nn.Parameter(s[0])
    assert not method(parameter, x, y, step, bias=torch.nn.Parameter(b)).requires_grad


def test_an_input_that_is_always_zero_decides_nothing():
    w, x, y, b, s = layer(6, outputs=4, width=10, rows=100)
    x[..., 3] = 0
    got = adaround(w, x, x @ w.T + b, s, bias=b)
    near = nearest(w, s, 4)
    assert got[:, 3].equal(near[:, 3])
    assert not (got == near).all(1).any()  # the other inputs still do


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=8), st.floats(0.01, 2))
def test_v_starts_at_the_weights(values, scale):
    w = torch.tensor(values, dtype=torch.float64)
    u = w / scale
    torch.testing.assert_close(rectified_sigmoid(initial_v(w, scale)), u - u.floor())
    soft = soft_quantize(w, initial_v(w, scale), scale, grid=integer_grid(16, signed=True))
    torch.testing.assert_close(soft, w.clamp(-(2**15) * scale, (2**15 - 1) * scale))


def test_soft_quantize_ends_at_the_grid_and_stops_its_gradient_there():
    w = torch.tensor([[9.0, 0.3, -9.0]])
    v = torch.full((1, 3), 0.5, requires_grad=True)
    soft = soft_quantize(w, v, torch.tensor([0.5]), grid=Grid(-4, 3), axis=0)
    soft.sum().backward()
    assert soft[0, 0] == 1.5 and soft[0, 2] == -2.0
    assert v.grad[0, 0] == 0 == v.grad[0, 2] and v.grad[0, 1] > 0
    hard = soft_quantize(w, torch.full((1, 3), 9.0), torch.tensor(0.5), 2, Grid(0, 7))
    assert (hard / 0.5 + 2).tolist() == [[7.0, 3.0, 0.0]]


def test_regularizer_and_its_exponent():
    v = torch.tensor([-9.0, 9.0, 0.0, 1.0], dtype=torch.float64)
    h = rectified_sigmoid(v)
    for beta in (2.0, 7.0, 20.0):
        expected = sum(1 - abs(2 * float(k) - 1) ** beta for k in h)
        assert float(regularizer(v, beta)) == pytest.approx(expected)
    betas = [annealed_beta(step, 1000) for step in range(1000)]
    assert betas[0] == betas[199] == 20.0 and betas[-1] == 2.0
    assert all(a >= b for a, b in itertools.pairwise(betas))
    assert [annealed_beta(k, 3, 0.0, 8.0, 4.0) for k in range(3)] == [8.0, 6.0, 4.0]
    assert annealed_beta(0, 1) == 2.0


def test_stochastic_rounding_is_right_on_average():
    w = torch.tensor([0.1, 0.25, -0.6, 0.5, 99.0])
    draws = 4000
    many = stochastic_rounding(w.expand(draws, -1).contiguous(), torch.tensor(0.5))
    share = (w / 0.5 - torch.floor(w / 0.5))[:4]
    # Five standard errors of a share of draws.
    bound = 5 * (share * (1 - share) / draws).sqrt() * 0.5 + 1e-6
    assert bool(((many.mean(0) - w)[:4].abs() <= bound).all())
    assert bool((many[:, 4] == 3.5).all()) and many[:, 3].unique().tolist() == [0.5]
    assert set(quantize(many[:, 0], 0.5, bits=4, signed=True).tolist()) == {0, 1}


def test_progress_ends_with_every_weight_decided():
    w, x, y, b, s = layer(7, outputs=8, width=40, rows=300)
    seen = []
    adaround(w, x, y, s, bias=b, sweeps=6, progress=lambda *a: seen.append(a))
    assert [k for k, _ in seen] == list(range(6)) and seen[0][1] > 0.2 and seen[-1][1] == 0


def both_sweeps(h, r, gram, top, mu):
    """(h, r) after one sweep by the plain formula, and by blocks."""
    plain, fast = (h.clone(), r.clone()), (h.clone(), r.clone())
    sweep(*plain, gram, top, mu)
    BlockSweep(gram, top)(*fast, mu)
    return plain, fast


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_blocks_are_the_plain_sweep_bit_for_bit_where_nothing_is_rounded(mu, monkeypatch):
    """Inputs of +-1 and quarters: all numbers have far fewer than 53 bits."""
    monkeypatch.setattr(module, "BLOCK", 3)
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(2, (2, 4, 8), generator=draw).double() * 2 - 1
    x[0, :, 4] = 0  # an input that is always 0
    h = torch.randint(5, (2, 8, 6), generator=draw) / 4.0
    r = torch.randint(-4, 5, (2, 8, 6), generator=draw) / 4.0
    top = (torch.rand(2, 8, 6, generator=draw) < 0.8).double()
    plain, fast = both_sweeps(h.double(), r.double(), x.transpose(1, 2) @ x / 4, top, mu)
    for a, b in zip(plain, fast, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(plain[0], h) and len(plain[0].unique()) > 3


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_blocks_are_the_plain_sweep_up_to_rounding(mu):
    """Sums in another order, 150 terms below 1; a move passes a difference on, over 1 - mu."""
    draw = torch.Generator().manual_seed(1)
    x = relu(torch.randn(2, 300, 150, generator=draw).double())
    h, top = torch.rand(2, 150, 5, generator=draw).double(), torch.ones(2, 150, 5).double()
    r = 0.1 * torch.randn(2, 150, 5, generator=draw).double()
    plain, fast = both_sweeps(h, r, x.transpose(1, 2) @ x / 300, top, mu)
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("change, words", [
    (dict(x=torch.ones(10, 4)), "do not fit weight"),
    (dict(y=torch.ones(9, 2)), "do not fit weight"),
    (dict(scale=torch.tensor([1.0, -1.0])), "scale must be positive"),
    (dict(scale=torch.ones(3)), "scale has shape"),
    (dict(zero_point=99), "zero_point must be whole"),
    (dict(bias=torch.ones(3)), "bias has shape"),
    (dict(weight=torch.full((2, 3), torch.nan)), "weight has 6 NaN"),
    (dict(sweeps=0), "sweeps must be at least 1"),
])  # fmt: skip
def test_bad_input_is_refused(change, words):
    good = dict(
        weight=torch.ones(2, 3), x=torch.ones(10, 3), y=torch.ones(10, 2), scale=torch.tensor(1.0)
    )
    with pytest.raises(ValueError, match=words):
        adaround(**{**good, **change})
