"""minq.ranges against np.percentile, exhaustive searches, scipy's cross-entropy and itself."""

import math

import numpy as np
import pytest
import torch
from exhaustive import Exact, exhaustive
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from minq import range_search, ranges
from minq.affine import fake_quantize, scale_zero_point
from minq.granularity import Granularity
from minq.grid import Grid, integer_grid
from minq.range_search import solve_noise_model
from minq.ranges import batch_norm, cross_entropy, min_max, mse, percentile

DRAW = {
    "Gaussian": lambda rng, shape: rng.standard_normal(shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "Student-t(3)": lambda rng, shape: rng.standard_t(3, shape),
}
GRIDS = [
    dict(bits=b, signed=signed, narrow_range=narrow, symmetric=symmetric)
    for b in (2, 3, 4, 8, 16)
    for signed, narrow, symmetric in (
        (False, False, False),
        (True, False, False),
        (True, False, True),
        (True, True, True),
    )
] + [dict(bits=1, signed=False, narrow_range=False, symmetric=False)]

finite = st.floats(-1e4, 1e4, width=32)
matrices = arrays(np.float64, array_shapes(min_dims=2, max_dims=3, max_side=7), elements=finite)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rows_of(x, axis, group):
    """The channels or groups of x, one by one, in the order of a raveled scale."""
    rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    for row in rows:
        yield from [row] if group is None else np.split(row, range(group, len(row), group))


def squared_error(x, low, high, *, axis=None, group=None, bits, symmetric, **grid):
    """Eq. (16) by its definition."""
    scale, zero_point = scale_zero_point(low, high, bits, symmetric=symmetric, **grid)
    x_hat = fake_quantize(x, scale, zero_point, bits, axis=axis, group=group, **grid)
    return float(np.sum((np.float64(x) - x_hat) ** 2))


# --- min_max, percentile --------------------------------------------------------------------------


@pytest.mark.parametrize("axis, group", [(None, None), (0, None), (-1, None), (1, 7), (None, 50)])
def test_min_max_and_percentile_equal_numpy_on_every_piece(axis, group):
    x = normal(5, 4, 6)
    shape = Granularity(axis, group).scale_shape(x.shape)
    pieces = list(rows_of(x, axis, group))
    low, high = min_max(x, axis=axis, group=group)
    assert low.shape == high.shape == shape and low.dtype == np.float32
    np.testing.assert_array_equal(low.ravel(), [p.min() for p in pieces])
    np.testing.assert_array_equal(high.ravel(), [p.max() for p in pieces])
    for percent in (1e-6, 50, 90, 99.9, 100):
        low, high = percentile(x, percent, axis=axis, group=group)
        assert low.shape == high.shape == shape and low.dtype == np.float32
        for value, q in ((low, 50 - percent / 2), (high, 50 + percent / 2)):
            want = [np.percentile(p.astype(np.float64), q) for p in pieces]
            # three float32 operations on values below 4
            np.testing.assert_allclose(value.ravel(), want, rtol=0, atol=3 * 4 * 2**-24)


@given(matrices, st.floats(0.1, 100))
def test_percentile_is_np_percentile_and_lies_inside_min_max(x, percent):
    low, high = percentile(x, percent)
    want = np.percentile(x, [50 - percent / 2, 50 + percent / 2])
    np.testing.assert_allclose([low, high], want, rtol=1e-9, atol=1e-9)
    smallest, largest = min_max(x)
    assert smallest <= low <= high <= largest


# --- mse: is it the minimum? ----------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", DRAW)
def test_mse_is_within_a_fiftieth_of_a_decibel_of_an_exhaustive_search(name, bits, symmetric):
    grid = dict(bits=bits, signed=symmetric, symmetric=symmetric)
    n, p = integer_grid(bits, signed=symmetric)
    x = DRAW[name](np.random.default_rng(7), 2**17).astype(np.float32)
    exact = Exact(x)
    best, _, _ = exhaustive(exact, n, p, symmetric)
    scale, zero_point = scale_zero_point(*mse(x, **grid), **grid)
    assert 10 * math.log10(exact(scale, zero_point, n, p)[0] / best) < 0.02


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", DRAW)
def test_mse_per_channel_is_close_to_an_exhaustive_search_of_each_channel(name, bits, symmetric):
    # On 2304 values the error has dents about as deep as the standard deviation of a mean of 2304
    # squared rounding errors, sqrt(4 / 5 / 2304) = 1.9 % = 0.08 dB: half of that for the sum.
    grid = dict(bits=bits, signed=symmetric, symmetric=symmetric)
    n, p = integer_grid(bits, signed=symmetric)
    x = DRAW[name](np.random.default_rng(8), (6, 2304)).astype(np.float32)
    scale, zero_point = scale_zero_point(*mse(x, axis=0, **grid), **grid)
    exact = [Exact(row) for row in x]
    ours = sum(e(s, z, n, p)[0] for e, s, z in zip(exact, scale, zero_point, strict=True))
    best = sum(exhaustive(e, n, p, symmetric)[0] for e in exact)
    assert 10 * math.log10(ours / best) < 0.04


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, size: np.maximum(rng.standard_normal(size), 0),  # after a ReLU
        lambda rng, size: -rng.exponential(size=size),  # one side only
        lambda rng, size: rng.standard_normal(size) + 2,  # off centre
        lambda rng, size: rng.uniform(-1, 2, size),  # nothing worth clipping
        lambda rng, size: (t := rng.standard_t(3, size)) * np.where(t > 0, 1, 0.1),  # unequal tails
    ],
    ids=["relu", "negative", "shifted", "uniform", "unequal"],
)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_finds_the_optimum_of_lopsided_data(draw, bits):
    x = draw(np.random.default_rng(9), 2**17)
    n, p = integer_grid(bits)
    exact = Exact(x)
    best, _, _ = exhaustive(exact, n, p, symmetric=False)
    scale, zero_point = scale_zero_point(*mse(x, bits), bits)
    assert 10 * math.log10(exact(scale, zero_point, n, p)[0] / best) < 0.04


def test_the_oracle_itself_agrees_with_the_definition():
    x = normal(500).astype(np.float64)
    for n, p, scale, zero_point in ((0, 15, 0.2, 7), (-8, 7, 0.3, 0), (0, 255, 0.02, 100)):
        x_int = np.clip(np.rint(x / scale) + zero_point, n, p)
        want = np.sum((x - scale * (x_int - zero_point)) ** 2)
        np.testing.assert_allclose(Exact(x)(scale, zero_point, n, p)[0], want, rtol=1e-9)


@given(matrices, st.sampled_from(GRIDS), st.sampled_from([(None, None), (0, None), (0, 3)]))
def test_mse_is_never_worse_than_min_max_and_holds_zero(x, grid, granularity):
    axis, group = granularity
    low, high = mse(x, axis=axis, group=group, **grid)
    assert low.shape == high.shape == Granularity(axis, group).scale_shape(x.shape)
    assert np.all(np.isfinite(low) & np.isfinite(high) & (low <= 0) & (high >= 0))
    scale, zero_point = scale_zero_point(low, high, **grid)
    widest = scale_zero_point(*min_max(x, axis=axis, group=group), **grid)
    n, p = integer_grid(grid["bits"], signed=grid["signed"], narrow_range=grid["narrow_range"])
    steps = (np.ravel(v) for v in (scale, zero_point, *widest))
    for piece, s, z, s0, z0 in zip(rows_of(x, axis, group), *steps, strict=True):
        ours, reference = (
            np.sum((piece - a * (np.clip(np.rint(piece / a) + b, n, p) - b)) ** 2)
            for a, b in ((s, z), (s0, z0))
        )
        # float64, on values up to 2^bits steps: the rounding of x / s and of the returned range
        slack = piece.size * (1e-11 * s0) ** 2 * 4.0 ** grid["bits"]
        assert ours <= reference * (1 + 1e-9) + slack


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_mse_is_never_worse_than_min_max_on_tiny_channels(grid):
    x = normal(64, 1, 3, 3).astype(np.float64)  # a depthwise kernel
    x *= np.logspace(-6, 3, 64)[:, None, None, None]
    x[5], x[6], x[7, 0, 0, 0] = 0.0, 0.25, 1e9
    for row, low, high in zip(x, *mse(x, axis=0, **grid), strict=True):
        ours, reference = (
            math.sqrt(squared_error(row, *ends, **grid)) for ends in ((low, high), min_max(row))
        )
        assert ours <= reference * (1 + 1e-9) + 1e-12 * np.abs(row).max()


def test_mse_keeps_an_outlier_that_costs_more_to_clip_than_to_keep():
    x = np.concatenate([normal(1000), np.float32([1e6])])
    low, high = mse(x, 8)
    grid = dict(bits=8, signed=False, symmetric=False)
    assert high > 0.9e6
    assert squared_error(x, low, high, **grid) <= squared_error(x, *min_max(x), **grid)


def test_mse_clips_an_outlier_that_costs_more_to_keep():
    x = np.concatenate([normal(2**18), np.float32([40.0])])
    low, high = mse(x, 4)
    assert -4 < low < -1.5 and 1.5 < high < 4


def test_mse_of_constants_and_zeros():
    x = np.float32([[0, 0, 0], [0.1, 0.1, 0.1], [-7, -7, -7]])
    for grid in GRIDS:
        low, high = mse(x, axis=0, **grid)
        assert low[0] == high[0] == 0
        scale, zero_point = scale_zero_point(low, high, **grid)
        names = ("bits", "signed", "narrow_range")
        x_hat = fake_quantize(x, scale, zero_point, axis=0, **{k: grid[k] for k in names})
        # a value at an end of the range is a level, up to the rounding of x / s times 2^bits
        atol = 7 * 2.0 ** (grid["bits"] - 23)
        np.testing.assert_allclose(x_hat, x, rtol=0, atol=atol)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("largest", [1e-44, 1e-38, 1e-30, 1e30, 1.7e38])
def test_mse_stays_inside_the_numbers_of_its_dtype(largest, bits):
    x = np.random.default_rng(0).uniform(-1, 1, (100, 9))  # tiny channels: ranges beyond min-max
    x = np.float32(largest * x / np.abs(x).max(axis=1, keepdims=True))
    low, high = mse(x, bits, axis=0)
    with np.errstate(over="raise"):
        assert np.all(np.isfinite(high - low) & (low <= 0) & (high >= 0))


def test_mse_with_16_bits_finds_the_optimum_where_it_is_sharp():
    grid = dict(bits=16, signed=True, symmetric=True)
    x = normal(2**16).astype(np.float64)
    high = np.abs(x).max() * np.linspace(0.9, 1.01, 100)
    best = min(squared_error(x, -a, a, narrow_range=False, **grid) for a in high)
    ours = squared_error(x, *mse(x, **grid), narrow_range=False, **grid)
    assert 10 * math.log10(ours / best) < 0.05


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_newton_solves_the_convex_model(bits, symmetric):
    n, p = grid = integer_grid(bits, signed=symmetric)
    rng = np.random.default_rng(4)
    for x in (
        rng.standard_normal(4000),
        rng.standard_t(3, 4000),
        rng.exponential(size=4000),
        -rng.exponential(size=4000),
        rng.uniform(-1, 2, 4000),
        np.sign(rng.standard_normal(4000)),
    ):

        def model(low, high, step, x=x):
            cut = np.maximum(low - x, 0) + np.maximum(x - high, 0)
            return np.sum(cut**2) + x.size * step**2 / 12

        ends = np.array([[x.min()]]), np.array([[x.max()]])
        widest, _ = grid.cover(*ends, symmetric=symmetric)
        low, high = solve_noise_model(x[None], ends, grid, symmetric=symmetric)
        low, high = float(low[0, 0]), float(high[0, 0])
        if symmetric:
            ours = model(low, high, high / p)
            best = min(model(n * s, p * s, s) for s in widest[0] * np.geomspace(1e-3, 1, 2000))
        else:
            ours = model(low, high, (high - low) / (p - n))
            best = minimize(
                lambda v: model(-abs(v[0]), abs(v[1]), (abs(v[0]) + abs(v[1])) / (p - n)),
                [low / 2, high / 2],
                method="Nelder-Mead",
            ).fun
        assert ours < 1.05 * best


# --- mse: symmetries ------------------------------------------------------------------------------


@given(st.integers(-60, 60), st.sampled_from(GRIDS), st.integers(0, 9))
def test_scaling_the_data_by_a_power_of_two_scales_the_range_exactly(k, grid, seed):
    x = normal(3, 200, seed=seed) ** 3
    scaled = mse(np.ldexp(x, k), axis=0, **grid)
    for end, scaled_end in zip(mse(x, axis=0, **grid), scaled, strict=True):
        np.testing.assert_array_equal(np.ldexp(end, k), scaled_end)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_order_of_the_data_does_not_matter(grid):
    x = np.float64(normal(5000))
    shuffled = np.random.default_rng(1).permutation(x)
    a, b = (squared_error(x, *mse(v, **grid), **grid) for v in (x, shuffled))
    assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize("axis, group", [(0, None), (1, None), (1, 50), (-1, 1000), (None, 64)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_channels_and_groups_equal_a_loop_over_them(axis, group, symmetric):
    grid = dict(bits=4, signed=True, symmetric=symmetric)
    x = normal(6, 30, 7)
    low, high = mse(x, axis=axis, group=group, **grid)
    pieces = list(rows_of(x, axis, group))
    assert low.shape == Granularity(axis, group).scale_shape(x.shape) and low.size == len(pieces)
    for piece, a, b in zip(pieces, low.ravel(), high.ravel(), strict=True):
        # Alone, a channel may stop Newton's method a step earlier, and end in another dent.
        alone = squared_error(piece, *mse(piece, **grid), **grid)
        assert squared_error(piece, a, b, **grid) == pytest.approx(alone, rel=0.02)


# --- cross_entropy --------------------------------------------------------------------------------


def divergence(logits, low, high, *, bits, symmetric, **grid):
    """Eq. (17) with scipy's softmax, less H of the logits themselves."""
    scale, zero_point = scale_zero_point(low, high, bits, symmetric=symmetric, **grid)
    v = np.float64(logits)
    v_hat = np.float64(fake_quantize(logits, scale, zero_point, bits, **grid))
    return np.sum(softmax(v, 1) * (log_softmax(v, 1) - log_softmax(v_hat, 1)))


LOGITS = 3 * np.random.default_rng(3).standard_t(4, (64, 10))


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_cross_entropy_is_close_to_an_exhaustive_search(bits, symmetric):
    grid = dict(bits=bits, signed=symmetric, symmetric=symmetric)
    n, p = integer_grid(bits, signed=symmetric)
    (low, high), scales = min_max(LOGITS), np.geomspace(0.05, 1, 30)
    if symmetric:
        widest, _ = scale_zero_point(low, high, **grid)
        tried = [(n * widest * s, p * widest * s) for s in np.geomspace(0.05, 1, 400)]
    else:
        tried = [(low * a, high * b) for a in scales for b in scales]
    best = min(divergence(LOGITS, *ends, **grid) for ends in tried)
    ours = divergence(LOGITS, *cross_entropy(LOGITS, **grid), **grid)
    reference = divergence(LOGITS, low, high, **grid)
    assert ours < 1.1 * best < 0.5 * reference  # 10 % and the whole step from min-max


@settings(max_examples=40)
@given(st.sampled_from(GRIDS), st.integers(0, 50), st.sampled_from([0.1, 1.0, 30.0, 1000.0]))
def test_cross_entropy_is_never_worse_than_min_max(grid, seed, size):
    logits = size * np.random.default_rng(seed).standard_normal((5, 4)) + seed - 25
    low, high = cross_entropy(logits, **grid)
    assert low.shape == () and low <= 0 <= high
    reference = divergence(logits, *min_max(logits), **grid)
    assert divergence(logits, low, high, **grid) <= reference * (1 + 1e-6) + 1e-10 * size


def test_cross_entropy_of_huge_logits_does_not_overflow():
    logits = np.concatenate([100 * LOGITS, 100 * LOGITS + 5000])  # e^5000 overflows
    low, high = cross_entropy(logits, 4)
    reference = divergence(logits, *min_max(logits), bits=4, symmetric=False)
    assert divergence(logits, low, high, bits=4, symmetric=False) < 0.9 * reference


def test_cross_entropy_keeps_the_answer_where_the_squared_error_loses_it():
    logits = np.float32(np.tile([12.0, 11.0, 0, 0, 0, 0], (20, 1)))
    logits[:, 2:] = normal(20, 4) * 12 - 25  # unlikely classes, spread over most of the range
    by_error, by_entropy = (
        divergence(logits, *estimate(logits, 3), bits=3, symmetric=False)
        for estimate in (mse, cross_entropy)
    )
    assert by_entropy < 0.5 * by_error


# --- batch_norm -----------------------------------------------------------------------------------


def test_batch_norm_follows_its_formula_by_hand():
    gamma, beta = [1.0, -2.0, 0.0], [0.5, 1.0, -30.0]
    low, high = batch_norm(gamma, beta, per_channel=True)
    np.testing.assert_array_equal(low, [-5.5, -11.0, -30.0])
    np.testing.assert_array_equal(high, [6.5, 13.0, -30.0])
    assert [float(v) for v in batch_norm(gamma, beta)] == [-30.0, 13.0]
    assert [float(v) for v in batch_norm(gamma, beta, 1.0)] == [-30.0, 3.0]
    low, high = batch_norm(gamma, beta, clip=(0, 6), per_channel=True)
    np.testing.assert_array_equal([low, high], [[0, 0, 0], [6, 6, 0]])


def test_batch_norm_covers_the_output_of_a_real_one():
    layer = torch.nn.BatchNorm2d(8)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    y = layer(torch.randn(16, 8, 12, 12, generator=torch.Generator().manual_seed(2)) * 5 + 3)
    low, high = batch_norm(layer.weight, layer.bias, per_channel=True)
    seen_low, seen_high = min_max(y, axis=1)
    assert not low.requires_grad
    assert bool((low <= seen_low).all()) and bool((high >= seen_high).all())
    # 2304 Gaussian values reach about 3.5 standard deviations, not 6
    assert bool((high - low > 1.4 * (seen_high - seen_low)).all())


# --- libraries and dtypes -------------------------------------------------------------------------

ESTIMATORS = {
    "min_max": lambda x: min_max(x, axis=1),
    "percentile": lambda x: percentile(x, 90, axis=0, group=30),
    "mse": lambda x: mse(x, 4, axis=0),
    "mse symmetric": lambda x: mse(x, 8, signed=True, symmetric=True, axis=0, group=70),
    "mse tensor": lambda x: mse(x, 8),
    "cross_entropy": lambda x: cross_entropy(x, 4),
    "batch_norm": lambda x: batch_norm(x[0], x[1], clip=(0, 6)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_equals_numpy(name, dtype):
    x = torch.from_numpy(normal(8, 200)).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    ours = ESTIMATORS[name](x.clone().requires_grad_())
    want = ESTIMATORS[name](x.to(wide).numpy())
    for a, b in zip(ours, want, strict=True):
        assert isinstance(a, torch.Tensor) and a.dtype == wide and not a.requires_grad
        assert isinstance(b, (np.ndarray, np.generic))
        np.testing.assert_array_equal(a.numpy(), b)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_torch_tensors_that_numpy_cannot_reach_take_the_same_path(name, monkeypatch):
    x = torch.from_numpy(normal(8, 200)).double()
    want = ESTIMATORS[name](x.numpy())
    monkeypatch.setattr(ranges, "is_torch_array", lambda x: False)  # as on an accelerator
    for a, b in zip(ESTIMATORS[name](x), want, strict=True):
        assert isinstance(a, torch.Tensor)
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-9)


def test_long_rows_are_worked_on_in_pieces_and_thinned(monkeypatch):
    x = np.float64(normal(3, 40_000)) ** 3
    grid = dict(bits=6, signed=False, symmetric=False)
    whole = squared_error(x, *mse(x, axis=0, **grid), axis=0, **grid)
    monkeypatch.setattr(range_search, "BLOCK", 1000)
    pieces = squared_error(x, *mse(x, axis=0, **grid), axis=0, **grid)
    assert pieces == pytest.approx(whole, rel=0.005)  # 0.02 dB


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_the_pieces_hold_every_value_once(block, monkeypatch):
    monkeypatch.setattr(range_search, "BLOCK", block)
    x, scale = np.float64(normal(5, 40)), np.full((5, 1), 0.25)
    got = range_search.squared_error(x, scale, np.full((5, 1), 3.0), Grid(0, 7)) * scale**2
    want = [Exact(row)(0.25, 3, 0, 7)[0] for row in x]
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-9)
    count, cut = range_search.tail(x, scale, 1)
    np.testing.assert_array_equal(count[:, 0], np.sum(x > 0.25, axis=1))
    np.testing.assert_allclose(cut[:, 0], np.maximum(x - 0.25, 0).sum(axis=1), rtol=1e-9)


def test_the_data_are_left_alone_and_strides_do_not_matter():
    x = normal(20, 30)
    before = x.copy()
    for estimate in ESTIMATORS.values():
        estimate(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(mse(x.T, 4, axis=1), mse(np.ascontiguousarray(x.T), 4, axis=1))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimate", [min_max, percentile, mse])
@pytest.mark.parametrize(
    "x, keywords, error, message",
    [
        ([1.0, math.nan], {}, ValueError, "1 NaN or infinite value among 2"),
        ([1.0, -math.inf, math.nan], {}, ValueError, "2 NaN or infinite values"),
        (np.zeros((3, 0)), {}, ValueError, "empty"),
        (np.arange(3), {}, TypeError, "floating point"),
        ("abc", {}, TypeError, "a list of numbers"),
        ([1.0, 2.0], {"axis": 1}, ValueError, "axis 1 is out of range"),
        ([1.0, 2.0], {"axis": 0.5}, TypeError, "axis must be a whole number"),
        ([1.0, 2.0], {"group": 0}, ValueError, "group must be at least 1"),
        ([1.0, 2.0], {"group": 1.5}, TypeError, "group must be"),
    ],
)
def test_bad_data_are_refused(estimate, x, keywords, error, message):
    with pytest.raises(error, match=message):
        estimate(x, **keywords)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: percentile([1.0], 0), ValueError, "percent must be above 0"),
        (lambda: percentile([1.0], 101), ValueError, "at most 100, not 101"),
        (lambda: percentile([1.0], math.nan), ValueError, "percent"),
        (lambda: percentile([1.0], "most"), TypeError, "percent must be a number"),
        (lambda: mse([1.0], 17), ValueError, "from 1 to 16"),
        (lambda: mse([1.0], 1, signed=True), ValueError, "no positive level"),
        (lambda: mse([1.0], 4.0), TypeError, "whole number"),
        (lambda: mse([-1.0, 1.0], symmetric=True), ValueError, "pass signed=True"),
        (lambda: mse([1.0], narrow_range=True), ValueError, "only a signed grid"),
        (lambda: cross_entropy([1.0, 2.0]), ValueError, r"\(batch, classes\)"),
        (lambda: cross_entropy([[1.0], [2.0]]), ValueError, "2 classes or more"),
        (lambda: cross_entropy([[1.0, math.nan]]), ValueError, "logits has 1 NaN"),
        (lambda: batch_norm([1.0], [1.0, 2.0]), ValueError, r"gamma \(1,\) and beta \(2,\)"),
        (lambda: batch_norm([1.0, math.nan], [1.0, 2.0]), ValueError, "gamma has 1 NaN"),
        (lambda: batch_norm([1.0], [math.inf]), ValueError, "beta has 1 NaN or infinite"),
        (lambda: batch_norm([1.0], [1.0], 0), ValueError, "alpha must be positive"),
        (lambda: batch_norm([1.0], [1.0], math.inf), ValueError, "alpha must be positive"),
        (lambda: batch_norm([1.0], [1.0], clip=(6, 0)), ValueError, "low < high"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
