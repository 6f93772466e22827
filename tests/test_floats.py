"""Low-bit floats against ml_dtypes and torch, code by code and tie by tie."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minq
from minq import fake_quantize, floats, ranges, scale_zero_point, sqnr
from minq.floats import E2M1, E4M3, E5M2, E8M0, FORMATS, FloatFormat
from minq.ptq import GPTQ, Nearest
from minq.straight_through import fake_quantize_trained

ORACLE = {
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    E2M1: ml_dtypes.float4_e2m1fn,
    E8M0: ml_dtypes.float8_e8m0fnu,
}
OTHERS = {
    FloatFormat("FP6 E2M3", 2, 3): ml_dtypes.float6_e2m3fn,
    FloatFormat("FP6 E3M2", 3, 2): ml_dtypes.float6_e3m2fn,
    FloatFormat("FP8 E4M3, IEEE", 4, 3, "ieee"): ml_dtypes.float8_e4m3,
    FloatFormat("FP8 E3M4, IEEE", 3, 4, "ieee"): ml_dtypes.float8_e3m4,
}
TORCH = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
SIGNED = [f for f in (ORACLE | OTHERS) if f.signed]

by_name = pytest.mark.parametrize("format", SIGNED, ids=lambda f: f.name)


@pytest.mark.parametrize("format", ORACLE | OTHERS, ids=lambda f: f.name)
def test_every_code(format):
    codes = np.arange(2**format.bits)
    theirs = codes.astype(np.uint8).view((ORACLE | OTHERS)[format]).astype(np.float64)
    ours = floats.decode(codes, format)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours[theirs == 0]), np.signbit(theirs[theirs == 0]))
    finite = np.unique(theirs[np.isfinite(theirs)])
    np.testing.assert_array_equal(floats.float_grid(format), finite)
    info = ml_dtypes.finfo((ORACLE | OTHERS)[format])
    assert format.largest == float(info.max)
    if format.signed:
        assert format.smallest == float(info.smallest_subnormal)


def trying(format):
    """Every number of the grid, every tie between two, what lies just beside a tie, and beyond."""
    grid = floats.float_grid(format)
    ties = (grid[1:] + grid[:-1]) / 2
    beside = [np.nextafter(np.float32(ties), np.float32(side)) for side in (-np.inf, np.inf)]
    beyond = format.largest * np.array([1 + 2**-20, 1.01, 1.5, 3, 1e6])
    # Scales of all orders, for the steps between.
    spread = np.ldexp(np.random.default_rng(0).uniform(-1, 1, 40_000), np.arange(40_000) % 40 - 24)
    parts = [grid, -grid, ties, *beside, beyond, -beyond, spread, [0.0, -0.0]]
    return np.concatenate(parts).astype(np.float32)


@by_name
def test_rounding_to_nearest_even_with_saturation(format):
    x = trying(format)
    inside = np.clip(x, -format.largest, format.largest)
    want = inside.astype((ORACLE | OTHERS)[format]).astype(np.float32)
    for ours in (
        floats.fake_quantize_float(x, format),
        floats.fake_quantize_float(torch.from_numpy(x), format).numpy(),
        floats.fake_quantize_float(x.astype(np.float64), format).astype(np.float32),
    ):
        np.testing.assert_array_equal(ours, want)
        np.testing.assert_array_equal(np.signbit(ours), np.signbit(want))


@pytest.mark.parametrize("format", TORCH, ids=lambda f: f.name)
def test_rounding_is_that_of_torch(format):
    x = torch.from_numpy(trying(format)).clamp(-format.largest, format.largest)
    assert torch.equal(floats.fake_quantize_float(x, format), x.to(TORCH[format]).to(x.dtype))


@by_name
def test_half_floats_and_the_dtype(format):
    x = torch.from_numpy(trying(format)).clamp(-60_000, 60_000)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        y = floats.fake_quantize_float(x.to(dtype), format)
        assert y.dtype == dtype
        want = floats.fake_quantize_float(x.to(dtype).double(), format)
        assert torch.equal(y.double(), want.to(dtype).double())


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), st.floats(1e-6, 1e6))
def test_no_number_of_the_grid_is_nearer(values, scale):
    x = np.array(values)
    grid = floats.float_grid(E4M3)
    u = np.clip(x / scale, -448, 448)
    nearest = np.abs(u[:, None] - grid).min(1)
    y = floats.fake_quantize_float(x, E4M3, scale)
    np.testing.assert_allclose(np.abs(y / scale - u), nearest, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(floats.fake_quantize_float(y, E4M3, scale), y)


def test_scales_per_channel_and_group():
    x = np.random.default_rng(0).normal(size=(3, 70)) * [[1], [100], [0]]
    scale = floats.float_scale(x, E2M1, axis=0, group=32)
    assert scale.shape == (3, 3) and (scale[2] == 1).all()
    y = floats.fake_quantize_float(x, E2M1, scale, axis=0, group=32)
    for row in range(3):
        for k in range(3):
            part = x[row, 32 * k : 32 * (k + 1)]
            s = np.abs(part).max() / 6 or 1.0
            want = (part / s).astype(ml_dtypes.float4_e2m1fn).astype(float) * s
            np.testing.assert_allclose(y[row, 32 * k : 32 * (k + 1)], want, rtol=1e-12)


@pytest.mark.parametrize("format", [E2M1, E4M3, E5M2], ids=lambda f: f.name)
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_mx_against_the_rule_in_whole_numbers(format, library):
    rng = np.random.default_rng(1)
    x = np.float32(rng.normal(size=(5, 100)) * 2.0 ** rng.integers(-30, 30, size=(5, 100)))
    x[0, :32], x[1, 32:64], x[2, 0] = 0, 2.0**-140, 3e38
    shared = np.asarray(floats.mx_scale(library(x), format, axis=0))
    y = np.asarray(floats.mx_fake_quantize(library(x), format, axis=0))
    e_max = {E2M1: 2, E4M3: 8, E5M2: 15}[format]
    for row in range(5):
        for k in range(4):
            part = slice(32 * k, 32 * (k + 1))
            most = float(np.abs(x[row, part]).max())
            exponent = math.frexp(most)[1] - 1 - e_max if most else 0
            s = 2.0 ** min(max(exponent, -127), 127)
            assert shared[row, k] == s
            assert s == float(np.float32(s).astype(ml_dtypes.float8_e8m0fnu))
            u = np.clip(x[row, part].astype(np.float64) / s, -format.largest, format.largest)
            want = u.astype(ORACLE[format]).astype(np.float64) * s
            np.testing.assert_array_equal(y[row, part], want.astype(np.float32))


def test_gradients_pass_inside_the_grid():
    from minq import round_straight_through

    x = torch.tensor([0.3, 2.4, -100.0], requires_grad=True)
    floats.fake_quantize_float(x, E2M1, 0.5, rounding=round_straight_through).sum().backward()
    assert x.grad.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: floats.fake_quantize_float([math.nan], E4M3), ValueError, "NaN"),
        (lambda: floats.fake_quantize_float([math.inf], E4M3), ValueError, "infinite"),
        (lambda: floats.fake_quantize_float(np.arange(3), E4M3), TypeError, "floating point"),
        (lambda: floats.fake_quantize_float([1.0], E4M3, 0.0), ValueError, "scale"),
        (lambda: floats.fake_quantize_float([1.0], E4M3, [1.0, 2.0]), ValueError, "shape"),
        (lambda: floats.fake_quantize_float([1.0], E8M0), ValueError, "scales only"),
        (lambda: floats.fake_quantize_float([1.0], "E4M3"), TypeError, "FloatFormat"),
        (lambda: floats.float_scale([math.nan], E4M3), ValueError, "NaN"),
        (lambda: floats.mx_scale([1.0], E8M0), ValueError, "scales only"),
        (lambda: floats.mx_scale([1.0], E2M1, block=0), ValueError, "at least 1"),
        (lambda: floats.decode([16], E2M1), ValueError, "from 0 to 15"),
        (lambda: floats.decode([-1], E2M1), ValueError, "from 0 to 15"),
        (lambda: floats.decode([0.5], E2M1), ValueError, "whole"),
        (lambda: FloatFormat("x", 0, 3), ValueError, "exponent bits"),
        (lambda: FloatFormat("x", 4, 3, "fnuz"), ValueError, "special"),
    ],
)
def test_it_refuses(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_formats_have_names_of_their_own():
    assert len({f.name for f in FORMATS}) == len(FORMATS)


# --- NF4 ------------------------------------------------------------------------------------------

PUBLISHED = """
-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453
-0.28444138169288635 -0.18477343022823334 -0.09105003625154495 0.0
0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0
"""  # QLoRA, appendix E


def test_the_levels_of_nf4_are_the_published_ones():
    published = np.array(PUBLISHED.split(), float)
    np.testing.assert_allclose(floats.normal_levels(4), published, atol=5e-7)  # they took 7 digits
    assert floats.normal_levels(4)[7] == 0
    for bits in (2, 3, 5, 8):
        levels = floats.normal_levels(bits)
        assert len(levels) == 2**bits and (np.diff(levels) > 0).all() and 0 in levels
        assert levels[0] == -1 and levels[-1] == 1


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_nf4_takes_the_nearest_level_of_each_block(values, block):
    x, levels = np.array(values), np.array(PUBLISHED.split(), float)
    got = floats.nf4_fake_quantize(x, block=block)
    for k in range(0, len(x), block):
        part = x[k : k + block]
        most = abs(part).max()
        best = abs(part[:, None] - most * levels).min(1)
        np.testing.assert_allclose(abs(got[k : k + block] - part), best, atol=1e-6 * most)


def test_nf4_of_numpy_and_torch_and_in_half_floats():
    x = np.random.default_rng(0).normal(size=(6, 100)).astype(np.float32)
    got = floats.nf4_fake_quantize(x, axis=0)
    assert got.dtype == x.dtype
    assert np.array_equal(floats.nf4_fake_quantize(torch.tensor(x), axis=0).numpy(), got)
    assert floats.nf4_fake_quantize(torch.tensor(x).half(), axis=0).dtype == torch.float16
    assert (floats.nf4_fake_quantize(np.zeros(5)) == 0).all()


def test_nf4_suits_normal_weights_better_than_integers():
    x = np.random.default_rng(1).normal(size=(64, 64))
    scale, _ = scale_zero_point(*ranges.min_max(x, axis=0), 4, signed=True, symmetric=True)
    integers = fake_quantize(x, scale, bits=4, signed=True, axis=0)
    assert sqnr(x, floats.nf4_fake_quantize(x, axis=0)) > sqnr(x, integers) + 1


def test_nf4_is_a_grid_of_weights():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(128, 8), torch.randn(200, 128) @ torch.randn(128, 128) / 11
    model.weight.data = torch.randn(8, 128)
    given = {"weights": floats.NF4, "activations": None, "per_channel": True, "group_size": 64}
    given |= {"equalize": False, "weight_range": "min_max", "progress": False}
    loss = {}
    for rounding in (Nearest(correct_bias=False), GPTQ()):
        q = minq.ptq(model, x, rounding=rounding, **given)
        (quantizer,) = minq.quantizers(q).values()
        assert quantizer.bits == 4
        weight = quantizer(q.get_parameter("weight")).detach()
        with torch.no_grad():
            loss[type(rounding)] = float((q(x) - model(x)).square().mean())
        if rounding == GPTQ():
            torch.testing.assert_close(weight, q.get_parameter("weight").detach())
        else:
            expected = floats.nf4_fake_quantize(model.weight.detach(), axis=0)
            torch.testing.assert_close(weight, expected)
    assert loss[GPTQ] < 0.8 * loss[Nearest]
    least = minq.ptq(model, x, rounding="nearest", **given | {"weight_range": "mse"})
    searched = minq.graph.rounded_weight_of(least, minq.graph.layers(least)[""])
    before, after = ((model.weight - w).square().sum() for w in (expected, searched))
    assert after < before
    with pytest.raises(ValueError, match="levels that are no integers"):
        minq.to_integer(q)
    with pytest.raises(ValueError, match="gptq"):
        minq.ptq(model, x, **given | {"group_size": None})
    with pytest.raises(ValueError, match="leave weight_zero_point=None"):
        minq.Scheme(weights=floats.NF4, weight_zero_point="integer")


def test_gradients_pass_nf4_straight_through():
    x = torch.tensor([-2.0, 0.3, 0.9], requires_grad=True)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    floats.NF4.fake_quantize(x, one, zero, minq.round_straight_through).sum().backward()
    assert x.grad.tolist() == [0, 1, 1]
    assert torch.equal(fake_quantize_trained(x, one, None, floats.NF4),
                       floats.NF4.fake_quantize(x.detach(), one, zero))  # fmt: skip
