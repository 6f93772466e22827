"""minq.affine against torch's kernels, ONNX Runtime, exact fractions, and its own properties."""

from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minq.affine import (
    dequantize,
    fake_quantize,
    grid_limits,
    quantize,
    scale_zero_point,
    sqnr,
)
from minq.granularity import Granularity
from minq.grid import integer_grid, round_half_even, round_straight_through

GRIDS = [
    dict(bits=b, signed=s, narrow_range=r)
    for b in (2, 3, 4, 8, 16)
    for s, r in ((False, False), (True, False), (True, True))
] + [dict(bits=1)]
SYMMETRIC = [False, True]

finite = st.floats(-1e4, 1e4, width=32)
float_arrays = arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=finite)


def fitted(x, symmetric=False, **grid):
    return scale_zero_point(x.min(), x.max(), symmetric=symmetric, **grid)


def exactly(x, scale, zero_point, n, p):
    """Eq. (4) on one number in exact rational arithmetic; Python's round is half to even."""
    return min(max(round(Fraction(float(x)) / Fraction(float(scale))) + zero_point, n), p)


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_quantize_is_exact_rational_arithmetic(grid):
    rng = np.random.default_rng(0)
    n, p = integer_grid(**grid)
    for zero_point in {n, (n + p) // 2, p}:
        scale = 2.0 ** rng.integers(-8, 4)  # so that x / scale has no rounding error of its own
        half_steps = rng.integers(2 * n - 9, 2 * p + 9, 500) / 2 - zero_point  # many ties
        x = np.concatenate([half_steps, rng.uniform(n - zero_point, p, 500)]) * scale
        expected = [exactly(v, scale, zero_point, n, p) for v in x]
        np.testing.assert_array_equal(quantize(x, scale, zero_point, **grid), expected)


@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("grid", [g for g in GRIDS if 2 <= g["bits"] <= 8], ids=str)
def test_fake_quantize_agrees_with_torch_kernel(grid, symmetric):
    """torch multiplies by 1 / scale where eq. (4) divides: at most one step, and only at a tie."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1)) * 3
    if symmetric and not grid["signed"]:
        x = x.abs()
    n, p = integer_grid(**grid)
    scale, zero_point = fitted(x, symmetric, **grid)
    ours = fake_quantize(x, scale, zero_point, **grid)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), n, p)
    differ = (ours - theirs).abs() > scale / 2
    ratio = (x / scale).double()
    from_tie = ((ratio - ratio.floor()) - 0.5).abs()
    # x * (1 / s) carries two roundings of 2^-24 each, x / s one.
    assert bool((from_tie[differ] <= 3 * 2.0**-24 * ratio[differ].abs()).all())
    torch.testing.assert_close(ours[~differ], theirs[~differ], rtol=1e-6, atol=0)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_channel_agrees_with_torch_kernel(axis):
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2))
    channels = x.shape[axis]
    scale = 2.0 ** -torch.arange(3.0, 3 + channels)  # a power of two: 1 / scale is exact
    zero_point = torch.arange(channels, dtype=torch.int32) - 3
    ours = fake_quantize(x, scale, zero_point, bits=4, signed=True, axis=axis)
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis % 3, -8, 7)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def onnx_round_trip(x, scale, zero_point, axis):
    """QuantizeLinear and DequantizeLinear as ONNX Runtime computes them."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "round_trip",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [
            onnx.helper.make_tensor_value_info("q", kind, x.shape),
            onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape),
        ],
        [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(zero_point, "z")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("signed, dtype, bits", [
    (False, np.uint8, 8), (True, np.int8, 8), (False, np.uint16, 16), (True, np.int16, 16),
])  # fmt: skip
def test_agrees_with_onnx_runtime_bit_for_bit(signed, dtype, bits, axis):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((7, 300)).astype(np.float32)
    shape = Granularity(axis).scale_shape(x.shape)
    low, high = (-rng.uniform(0.5, 3, shape), rng.uniform(0.5, 3, shape))
    low, high = low.astype(np.float32), high.astype(np.float32)
    scale, zero_point = scale_zero_point(low, high, bits, signed=signed)
    scale, zero_point = np.asarray(scale), np.asarray(zero_point)
    ours = quantize(x, scale, zero_point, bits, signed=signed, axis=axis)
    back = dequantize(ours, scale, zero_point, axis=axis)
    q, y = onnx_round_trip(x, scale, zero_point.astype(dtype), axis)
    np.testing.assert_array_equal(ours, q)
    np.testing.assert_array_equal(back, y)
    np.testing.assert_array_equal(
        fake_quantize(x, scale, zero_point, bits, signed=signed, axis=axis), y
    )


# --- properties -----------------------------------------------------------------------------------

grids = st.sampled_from(GRIDS)


@given(x=float_arrays, grid=grids)
def test_error_is_at_most_half_a_step_inside_and_clips_outside(x, grid):
    scale, zero_point = fitted(x, **grid)
    q_min, q_max = grid_limits(scale, zero_point, **grid)
    x_hat = fake_quantize(x, scale, zero_point, **grid)
    slack = 4 * np.finfo(np.float32).eps * (np.abs(x) + np.abs(q_min) + np.abs(q_max))
    nearest_inside = np.clip(x, q_min, q_max)
    assert np.all(np.abs(x_hat - nearest_inside) <= scale / 2 + slack)


@given(x=float_arrays, grid=grids, symmetric=st.booleans(), power_of_two=st.booleans())
def test_range_is_covered_and_zero_is_exact(x, grid, symmetric, power_of_two):
    if symmetric and not grid.get("signed"):
        x = np.abs(x)
    scale, zero_point = fitted(x, symmetric, power_of_two=power_of_two, **grid)
    n, p = integer_grid(**grid)
    assert scale > 0 and n <= zero_point <= p
    assert fake_quantize(np.float32(0), scale, zero_point, **grid) == 0
    q_min, q_max = grid_limits(scale, zero_point, **grid)
    # Rounding the zero-point moves the grid by half a step at most; a symmetric grid does not move.
    slack = (0 if symmetric else scale / 2) + 1e-6 * (abs(q_min) + abs(q_max) + np.abs(x).max())
    assert q_min <= min(x.min(), 0) + slack and q_max >= max(x.max(), 0) - slack
    if power_of_two:
        assert np.frexp(scale)[0] == 0.5


@given(x=float_arrays, grid=grids)
def test_fake_quantize_is_quantize_then_dequantize_and_idempotent(x, grid):
    scale, zero_point = fitted(x, **grid)
    x_int = quantize(x, scale, zero_point, **grid)
    x_hat = fake_quantize(x, scale, zero_point, **grid)
    n, p = integer_grid(**grid)
    assert x_int.dtype == np.int32 and n <= x_int.min() and x_int.max() <= p
    np.testing.assert_array_equal(x_hat, dequantize(x_int, scale, zero_point))
    np.testing.assert_array_equal(fake_quantize(x_hat, scale, zero_point, **grid), x_hat)


@given(x=float_arrays, grid=grids)
def test_quantize_keeps_order(x, grid):
    scale, zero_point = fitted(x, **grid)
    ordered = np.sort(x.ravel())
    assert np.all(np.diff(quantize(ordered, scale, zero_point, **grid)) >= 0)


@given(x=float_arrays, grid=grids, dtype=st.sampled_from(["float32", "float64"]))
def test_torch_and_numpy_agree_bit_for_bit(x, grid, dtype):
    x = x.astype(dtype)
    t = torch.from_numpy(x)
    (scale, zero_point), (t_scale, t_zero) = fitted(x, **grid), fitted(t, **grid)
    assert float(scale) == float(t_scale) and int(zero_point) == int(t_zero)
    ours = fake_quantize(x, scale, zero_point, **grid)
    theirs = fake_quantize(t, t_scale, t_zero, **grid)
    assert ours.dtype == x.dtype and theirs.dtype == t.dtype
    np.testing.assert_array_equal(ours, theirs.numpy())


@given(
    x=arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=5), elements=finite),
    axis=st.none() | st.integers(-2, 1),
    group=st.none() | st.integers(1, 7),
    data=st.data(),
)
def test_granularity_is_a_loop_over_pieces(x, axis, group, data):
    shape = Granularity(axis, group).scale_shape(x.shape)
    scale = data.draw(arrays(np.float32, shape, elements=st.floats(2**-10, 2**5, width=32)))
    zero_point = data.draw(arrays(np.int32, shape, elements=st.integers(0, 15)))
    whole = quantize(x, scale, zero_point, bits=4, axis=axis, group=group)

    axis = None if axis is None else axis % x.ndim
    rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    scale, zero_point = (
        v.reshape(len(rows) if axis is not None else 1, -1) for v in (scale, zero_point)
    )
    expected = np.empty(rows.shape, np.int32)
    width = group or rows.shape[1]
    for r, row in enumerate(rows):
        for piece in range(scale.shape[1]):
            cut = slice(piece * width, (piece + 1) * width)
            s, z = scale[r, piece], int(zero_point[r, piece])
            expected[r, cut] = quantize(row[cut], s, z, bits=4)
    if axis is not None:
        expected = expected.reshape(
            x.shape[axis], *(size for k, size in enumerate(x.shape) if k != axis)
        )
        expected = np.moveaxis(expected, 0, axis)
    np.testing.assert_array_equal(whole, expected.reshape(x.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 16])
def test_half_floats_compute_in_float32(dtype, bits):
    """A half float cannot hold 16-bit integers: only the input and the result are half."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(4)).to(dtype)
    scale, zero_point = scale_zero_point(x.min(), x.max(), bits)
    assert scale.dtype == torch.float32
    x_hat = fake_quantize(x, scale, zero_point, bits)
    assert x_hat.dtype == dtype
    wide = fake_quantize(x.float(), scale, zero_point, bits)
    torch.testing.assert_close(x_hat, wide.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("library", [np.float32, np.float64, torch.float32, torch.float64])
def test_power_of_two_is_the_next_one_for_every_exponent(library):
    exponents = range(-120, 121)
    exact = [2.0**e for e in exponents]
    above = [1.001 * v for v in exact]
    build = torch.tensor if isinstance(library, torch.dtype) else np.array
    for values, shift in ((exact, 1), (above, 2)):
        high = build(values, dtype=library)
        scale, _ = scale_zero_point(high * 0, high, bits=1, power_of_two=True)
        np.testing.assert_array_equal(np.asarray(scale), [shift * v for v in exact])


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_no_argument_is_overwritten(library, shape):
    x, scale, zero_point = library(np.full(shape, 0.7)), library(0.5), library(1.0)
    x_int = quantize(x, scale, zero_point)
    fake_quantize(x, scale, zero_point)
    dequantize(x_int, scale, zero_point)
    for value, before in ((x, 0.7), (x_int, 2), (scale, 0.5), (zero_point, 1)):
        assert (np.asarray(value) == before).all()


# --- rounding and gradients -----------------------------------------------------------------------


@given(st.floats(-(2.0**22), 2.0**22, width=32))
@settings(max_examples=500)
def test_straight_through_rounding_has_the_value_of_rounding(v):
    x = torch.tensor(v, requires_grad=True)
    y = round_straight_through(x)
    y.backward()
    assert y.item() == float(np.rint(np.float32(v))) and x.grad.item() == 1.0


def test_gradients_are_equations_37_to_39():
    n, p = 0, 7
    s = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    z = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    values = torch.linspace(-4, 4, 81, dtype=torch.float64) + 0.01  # no ties
    for v in values:
        x = v.clone().requires_grad_()
        y = fake_quantize(x, s, z, bits=3, rounding=round_straight_through)
        dx, ds, dz = torch.autograd.grad(y, (x, s, z))
        steps = v / s.detach()
        level = torch.round(steps) + 3
        if n <= level <= p:
            expected = (1.0, float(torch.round(steps) - steps), 0.0)
        else:
            expected = (0.0, (n if level < n else p) - 3.0, -s.item())
        torch.testing.assert_close(
            torch.stack([dx, ds, dz]), torch.tensor(expected, dtype=torch.float64)
        )


def test_gradient_of_plain_rounding_is_zero():
    x = torch.tensor([0.3, 0.9], requires_grad=True)
    fake_quantize(x, 0.25, rounding=round_half_even).sum().backward()
    assert x.grad.abs().sum() == 0


def test_gradients_reach_each_group():
    x = torch.full((2, 5), 100.0)  # beyond every grid: d x_hat / d scale = p
    scale = torch.ones(2, 3, requires_grad=True)
    y = fake_quantize(x, scale, bits=4, axis=0, group=2, rounding=round_straight_through)
    y.sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor([[30.0, 30.0, 15.0]] * 2))


# --- edges ----------------------------------------------------------------------------------------


def test_one_sided_and_empty_ranges_contain_zero():
    scale, zero_point = scale_zero_point([2.0, -3.0, 0.0], [3.0, -2.0, 0.0], bits=8)
    np.testing.assert_array_equal(zero_point, [0, 255, 0])
    np.testing.assert_allclose(scale, [3 / 255, 3 / 255, 1.0])


def test_smallest_range_has_a_positive_scale():
    scale, _ = scale_zero_point(np.float32(0), np.float32(1e-45), bits=16)
    assert scale >= np.finfo(np.float32).smallest_normal


def test_signed_symmetric_scale_uses_the_extra_negative_level():
    scale, _ = scale_zero_point(-1.0, 0.5, bits=3, signed=True, symmetric=True)
    assert float(scale) == 0.25  # 4 levels below zero
    scale, _ = scale_zero_point(-1.0, 0.5, bits=3, signed=True, narrow_range=True, symmetric=True)
    assert float(scale) == 1 / 3


def test_scalars_and_lists_are_accepted():
    assert quantize(0.9, 0.5) == 2
    assert fake_quantize([0.9], 0.5).tolist() == [1.0]


def test_sqnr_against_theory():
    """A uniform signal on [-1, 1] and a step s: SQNR = 10 log10(4 / s^2), 6.02 dB a bit."""
    x = np.random.default_rng(5).uniform(-1, 1, 1_000_000)
    for bits in (4, 8):
        scale, zero_point = scale_zero_point(-1.0, 1.0, bits)
        measured = sqnr(x, fake_quantize(x, scale, zero_point, bits))
        assert measured == pytest.approx(10 * np.log10(4 / scale**2), abs=0.05)
    assert sqnr(x, x) == np.inf and sqnr(x * 0, x) == -np.inf


BAD = [
    (lambda: integer_grid(0), ValueError, "bits must be from 1 to 16"),
    (lambda: integer_grid(17), ValueError, "bits must be from 1 to 16"),
    (lambda: integer_grid(8.0), TypeError, "whole number"),
    (lambda: integer_grid(True), TypeError, "whole number"),
    (lambda: integer_grid(1, signed=True), ValueError, "no positive level"),
    (lambda: integer_grid(8, narrow_range=True), ValueError, "signed=True"),
    (lambda: quantize([1.0, np.nan], 0.5), ValueError, "1 NaN or infinite value among 2"),
    (lambda: quantize(torch.tensor([np.inf]), 0.5), ValueError, "nan_to_num"),
    (lambda: quantize([], 0.5), ValueError, "empty"),
    (lambda: quantize(np.arange(3), 0.5), TypeError, "convert it to float32"),
    (lambda: quantize("ten", 0.5), TypeError, "number"),
    (lambda: quantize([1.0], 0.0), ValueError, "scale must be positive"),
    (lambda: quantize([1.0], -1.0), ValueError, "scale must be positive"),
    (lambda: quantize([1.0], np.nan), ValueError, "scale must be positive"),
    (lambda: quantize(np.ones(2, np.float32), 1e-60), ValueError, "float32"),
    (lambda: quantize([1.0], 0.5, 256), ValueError, r"on the grid \[0, 255\]"),
    (lambda: quantize([1.0], 0.5, -1), ValueError, "zero_point"),
    (lambda: quantize([1.0], 0.5, 1.5), ValueError, "zero_point must be whole"),
    (lambda: quantize(np.ones((2, 3)), np.ones(3), axis=0), ValueError, r"needs \(2,\)"),
    (lambda: quantize(np.ones((2, 3)), np.ones(2)), ValueError, r"needs \(\)"),
    (lambda: quantize(np.ones((2, 3)), np.ones(2), axis=2), ValueError, "out of range"),
    (lambda: quantize(np.ones((2, 3)), np.ones(2), axis="0"), TypeError, "axis"),
    (lambda: quantize(np.ones((2, 3)), 1.0, axis=5), ValueError, "out of range"),
    (lambda: quantize(np.ones((2, 3)), np.ones(2), axis=0, group=0), ValueError, "at least 1"),
    (lambda: quantize(np.ones(2), torch.ones(2), axis=0), TypeError, "one library"),
    (lambda: dequantize([1.5], 0.5), TypeError, "must be integers"),
    (lambda: dequantize([1], 0.0), ValueError, "scale must be positive"),
    (lambda: dequantize(np.zeros(0, int), 1.0), ValueError, "empty"),
    (lambda: dequantize([1], 1.0, 0.5), ValueError, "zero_point must be whole"),
    (lambda: scale_zero_point(1.0, -1.0), ValueError, "low is above high"),
    (lambda: scale_zero_point([0.0], [1.0, 2.0]), ValueError, "differ in shape"),
    (lambda: scale_zero_point(-np.inf, 1.0), ValueError, "NaN or infinite"),
    (lambda: scale_zero_point(-1.0, 1.0, symmetric=True), ValueError, "signed=True"),
    (lambda: scale_zero_point(np.float32(-3e38), np.float32(3e38)), ValueError, "too wide"),
    (lambda: grid_limits(0.5, 300), ValueError, "zero_point"),
    (lambda: grid_limits(-0.5), ValueError, "scale"),
    (lambda: sqnr([1.0], [1.0, 2.0]), ValueError, "differ in shape"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, words", BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_with_a_helpful_message(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
