"""Integer arithmetic against Python's integers and fractions, which neither overflow nor round."""

import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minq.affine import quantize
from minq.grid import integer_grid
from minq.mac import (
    fixed_point_multiplier,
    fold_zero_points,
    int_matmul,
    products,
    requantize,
    zero_point_operations,
    zero_point_terms,
)

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
TORCH_DTYPES = ("int8", "uint8", "int16", "int32", "int64")


def python_matmul(a, b):
    """The product in Python integers."""
    return np.matmul(np.asarray(a).astype(object), np.asarray(b).astype(object))


def same(result, a, b):
    result = np.asarray(result)
    return result.dtype.kind == "i" and (result.astype(object) == python_matmul(a, b)).all()


# --- int_matmul -----------------------------------------------------------------------------------


@st.composite
def integer_matrices(draw, dtypes):
    """Two matrices with random dtypes and ranges, often at the end of the range, K up to 3000."""
    k = draw(st.one_of(st.integers(1, 20), st.sampled_from([127, 129, 1024, 1025, 3000])))
    rng, out = np.random.default_rng(draw(st.integers(0, 2**32))), []
    for shape in ((draw(st.integers(1, 4)), k), (k, draw(st.integers(1, 4)))):
        info = np.iinfo(draw(st.sampled_from(dtypes)))
        bits = draw(st.integers(1, min(info.bits, 31)))
        low = max(info.min, -(2 ** (bits - 1)) if draw(st.booleans()) else 0)
        high = min(info.max, low + 2**bits - 1)
        x = rng.integers(low, high, shape, endpoint=True, dtype=np.int64)
        if draw(st.booleans()):
            x = np.where(rng.random(shape) < 0.9, draw(st.sampled_from([low, high])), x)
        out.append(x.astype(info.dtype))
    return out


def fits(a, b):
    return a.shape[1] * products.magnitude(a) * products.magnitude(b) < 2**63


@settings(max_examples=300, deadline=None)
@given(integer_matrices(DTYPES))
def test_numpy_product_equals_python_integers(matrices):
    a, b = matrices
    if fits(a, b):
        assert same(int_matmul(a, b), a, b)
    else:
        with pytest.raises(ValueError, match="int64"):
            int_matmul(a, b)


@settings(max_examples=300, deadline=None)
@given(integer_matrices(TORCH_DTYPES))
def test_torch_product_equals_python_integers(matrices):
    a, b = matrices
    if fits(a, b):
        result = int_matmul(torch.from_numpy(a), torch.from_numpy(b))
        assert isinstance(result, torch.Tensor) and same(result, a, b)
        assert np.asarray(result).dtype == int_matmul(a, b).dtype


def kinds(*arrays):
    yield arrays
    yield tuple(map(torch.from_numpy, arrays))


@pytest.mark.parametrize("k", [1023, 1024, 1025, 4097])
def test_float32_bound_is_neither_late_nor_loose(k):
    """1024 products of -128 * -128 are 2^24, the last integer before float32 leaves gaps of 2."""
    a, b = np.full((2, k), -128, np.int8), np.full((k, 3), -128, np.int8)
    a[:, -1] = b[-1] = 1  # k = 1025 sums to 2^24 + 1, which no float32 holds
    for x, y in kinds(a, b):
        assert same(int_matmul(x, y), a, b)
    a16, b16 = a.astype(np.int16) * 3, b.astype(np.int16)  # no power of two, too wide for 8 bits
    for x, y in kinds(a16, b16):
        assert same(int_matmul(x, y), a16, b16)


def test_float64_bound_is_neither_late_nor_loose():
    a, b = np.array([[2**26, 1]]), np.array([[2**27], [1]])
    for x, y in kinds(a, b):
        assert int(int_matmul(x, y)[0, 0]) == 2**53 + 1
    a, b = np.full((1, 1000), 2**31 - 1), np.full((1000, 1), -(2**21))
    for x, y in kinds(a, b):
        assert int(int_matmul(x, y)[0, 0]) == -1000 * 2**21 * (2**31 - 1)


@pytest.mark.parametrize("k", [131_071, 131_072, 300_000])
@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("uint8", "int8"), ("uint8", "uint8")])
def test_products_around_the_end_of_int32(k, dtypes):
    """131,071 products of -128 * -128 are the most that 32 bits hold."""
    info = [np.iinfo(dtype) for dtype in dtypes]
    extremes = [i.min if i.min else i.max for i in info]
    a = np.full((2, k), extremes[0], dtypes[0])
    b = np.full((k, 2), extremes[1], dtypes[1])
    expected, limit = k * extremes[0] * extremes[1], k * abs(extremes[0] * extremes[1])
    for x, y in kinds(a, b):
        result = np.asarray(int_matmul(x, y))
        assert (result == expected).all()
        assert result.dtype == (np.int32 if limit < 2**31 else np.int64)


def test_limit_of_int64():
    assert int_matmul([[2**31]], [[2**31]])[0, 0] == 2**62
    with pytest.raises(ValueError, match="int64"):
        int_matmul([[2**31, 0]], [[2**31], [0]])
    with pytest.raises(ValueError, match="int64"):
        int_matmul(torch.tensor([[-(2**63)]]), torch.tensor([[-1]]))


@pytest.mark.parametrize("low, high", [(0, 255), (-128, 127), (-1, 128), (0, 128), (-128, 255)])
@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
def test_8_bit_values_in_wide_torch_dtypes(low, high, dtype):
    rng = np.random.default_rng(0)
    a = rng.integers(low, high, (5, 700), endpoint=True).astype(dtype)
    a[0], a[1] = low, high
    for b_low, b_high in ((-128, 127), (0, 255)):
        b = rng.integers(b_low, b_high, (700, 4), endpoint=True).astype(dtype)
        b[:, 0], b[:, 1] = b_low, b_high
        assert same(int_matmul(torch.from_numpy(a), torch.from_numpy(b)), a, b)


def saturating_int_mm(a, b):
    """What a kernel without VNNI does: pairs of (a + 128) b are added in 16 bits, clamped."""
    products = (a.int()[:, :, None] + 128) * b.int()[None]
    pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
    return (pairs.sum(1) - 128 * b.int().sum(0)).int()


def test_a_saturating_kernel_is_not_used(monkeypatch):
    a, b = np.full((4, 64), 127, np.int8), np.full((64, 4), 127, np.int8)
    assert not same(saturating_int_mm(*map(torch.from_numpy, (a, b))), a, b)
    monkeypatch.setattr(torch, "_int_mm", saturating_int_mm)
    products.int_mm_is_exact.cache_clear()
    try:
        assert not products.int_mm_is_exact()
        assert same(int_matmul(torch.from_numpy(a), torch.from_numpy(b)), a, b)
    finally:
        products.int_mm_is_exact.cache_clear()


def test_exact_where_vnni_is_switched_off():
    """On x86, oneDNN told to use AVX2 only really saturates; elsewhere the setting does nothing."""
    code = (
        "import torch; from minq.mac import int_matmul\n"
        "a = torch.full((64, 256), 127, dtype=torch.int8)\n"
        "assert (int_matmul(a, a.T) == 256 * 127 * 127).all()"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    )


def test_the_fast_kernel_is_used_where_it_is_exact(monkeypatch):
    calls = []
    monkeypatch.setattr(products, "int_mm_is_exact", lambda: True)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: calls.append(1) or a.int() @ b.int())
    for dtype, low in ((torch.int8, -128), (torch.uint8, 0)):
        a = torch.randint(low, low + 256, (6, 40)).to(dtype)
        b = torch.randint(-128, 128, (40, 5), dtype=torch.int8)
        assert torch.equal(int_matmul(a, b), a.int() @ b.int())
    assert len(calls) == 2


def test_shapes_follow_numpy_matmul():
    rng = np.random.default_rng(1)
    for left, right in [((7,), (7, 2)), ((3, 7), (7, 2)), ((5, 1, 3, 7), (4, 7, 2)),
                        ((5, 3, 7), (7, 2))]:  # fmt: skip
        a = rng.integers(-128, 128, left).astype(np.int8)
        b = rng.integers(-128, 128, right).astype(np.int8)
        for x, y in kinds(a, b):
            result = int_matmul(x, y)
            assert tuple(result.shape) == np.matmul(a, b).shape and same(result, a, b)


def test_strides_and_operands_are_left_alone():
    rng = np.random.default_rng(2)
    wide = rng.integers(0, 256, (90, 80)).astype(np.uint8)
    a, b = wide[::2, ::2], wide.T[::2, 1::2]  # (45, 40), (40, 45)
    before = wide.copy()
    assert same(int_matmul(a, b), a, b)
    t = torch.from_numpy(wide)
    assert same(int_matmul(t[::2, ::2], t.T[::2, 1::2]), a, b)
    assert (wide == before).all()
    frozen = a.copy()
    frozen.flags.writeable = False
    assert same(int_matmul(frozen, b), a, b)


@pytest.mark.parametrize(
    "a, b, error, words",
    [
        ([[1.0]], [[1]], TypeError, "must be integers"),
        ([[True]], [[1]], TypeError, "must be integers"),
        (np.array([[1]], object), [[1]], TypeError, "must be integers"),
        (np.zeros((2, 0), int), np.zeros((0, 2), int), ValueError, "empty"),
        ([[1, 2]], [[1, 2]], ValueError, "do not fit"),
        ([1, 2], [1, 2], ValueError, r"b\[:, None\]"),
        (torch.ones(1, 1, dtype=torch.int8), np.ones((1, 1), np.int8), TypeError, "one library"),
        (torch.ones(1, 1), torch.ones(1, 1), TypeError, "must be integers"),
    ],
)
def test_bad_operands(a, b, error, words):
    with pytest.raises(error, match=words):
        int_matmul(a, b)


def test_numpy_alone_is_enough():
    code = (
        "import sys, minq.mac as m; print(m.MacArray().run([[1, 2]], [3, 4]).accumulators,"
        "m.requantize([5], 0.3), m.int_matmul([[1]], [[2]]), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout == "[11] [2] [[2]] False\n"


# --- Zero-points ----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_four_terms_of_equation_13(data):
    n, m, batch = (data.draw(st.integers(1, 5)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    w, x = rng.integers(-128, 128, (n, m)), rng.integers(0, 256, (batch, m))
    z_w = data.draw(st.one_of(st.integers(-128, 127), st.just(rng.integers(-128, 128, n))))
    z_x, bias = data.draw(st.integers(0, 255)), rng.integers(-(2**20), 2**20, n)
    terms = zero_point_terms(w, x, z_w, z_x)
    expected = python_matmul(x - z_x, (w - np.reshape(z_w, (-1, 1))).T)
    assert (terms.total == expected).all()
    assert (terms.product == python_matmul(x, w.T)).all()
    # What is known beforehand sits in the bias; a single vector loses the batch axis.
    folded = fold_zero_points(w, bias, z_w, z_x)
    assert (folded + terms.product + terms.weight_zero == expected + bias).all()
    assert (zero_point_terms(w, x[0], z_w, z_x).total == expected[0]).all()
    assert (fold_zero_points(w, None, z_w, z_x) == folded - bias).all()
    # Terms 3 and 4 must not know the data, term 2 must.
    other = zero_point_terms(w, x[::-1] // 2 + 1, z_w, z_x)
    assert (other.input_zero == terms.input_zero).all() and (other.constant == terms.constant).all()


def test_zero_points_in_torch():
    w, x = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), torch.tensor([[5, 6]])
    terms = zero_point_terms(w, x, torch.tensor([1, 0]), 3)
    assert all(isinstance(term, torch.Tensor) for term in terms)
    assert torch.equal(terms.total, (x - 3) @ (w.long() - torch.tensor([[1], [0]])).T)
    assert isinstance(fold_zero_points(w, None, 0, 3), torch.Tensor)


@pytest.mark.parametrize("per_channel", [False, True])
def test_zero_point_operations_by_counting(per_channel):
    n, m, batch = 3, 4, 2
    additions = multiplications = 0
    for _ in range(batch):
        additions += m - 1  # sum of x
        multiplications += n if per_channel else 1  # times z_w
        additions += n  # taken from every output
    counted = zero_point_operations(n, m, batch, per_channel=per_channel)
    assert counted == {"additions": additions, "multiplications": multiplications}


@pytest.mark.parametrize("z_w, z_x, error", [
    ([1, 2, 3], 0, ValueError), (0, [1, 2], ValueError), (0.5, 0, TypeError),
    (2**62, 0, ValueError), (0, 2**62, ValueError),
])  # fmt: skip
def test_bad_zero_points(z_w, z_x, error):
    with pytest.raises(error):
        zero_point_terms([[1, 2], [3, 4]], [1, 2], z_w, z_x)
    with pytest.raises(error):
        fold_zero_points([[1, 2], [3, 4]], None, z_w, z_x)


# --- Requantization -------------------------------------------------------------------------------

RATIOS = st.floats(2.0**-70, 2.0**30)
INT32 = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([-(2**31), 2**31 - 1, 0, 1, -1, -(2**30)]),
    st.integers(-3000, 3000),
)


@settings(max_examples=500, deadline=None)
@given(st.floats(1e-300, 1e300))
def test_multiplier_has_31_bits_and_the_stated_error(ratio):
    multiplier, shift = fixed_point_multiplier(ratio)
    assert 2**30 <= multiplier < 2**31
    error = abs(Fraction(multiplier) * Fraction(2) ** -shift - Fraction(ratio))
    assert error <= min(Fraction(2) ** -(shift + 1), Fraction(ratio) / 2**31)


def test_multiplier_that_rounds_up_to_the_next_power_of_two():
    for ratio in (np.nextafter(1.0, 0.0), np.nextafter(0.25, 0.0)):
        multiplier, shift = fixed_point_multiplier(ratio)
        assert multiplier == 2**30 and 2.0 ** (30 - shift) == pytest.approx(ratio)
    multiplier, shift = fixed_point_multiplier(np.array([0.75, 3.0]))
    assert multiplier.tolist() == [3 * 2**29] * 2 and shift.tolist() == [31, 29]


ROUND = {"half_up": lambda v: math.floor(v + Fraction(1, 2)), "half_even": round}


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_requantize_against_fractions(data):
    """Bit-exact against its own formula in fractions; against exact arithmetic, within delta."""
    bits, signed = data.draw(st.integers(2, 16)), data.draw(st.booleans())
    n, p = integer_grid(bits, signed=signed)
    zero_point, rounding = data.draw(st.integers(n, p)), data.draw(st.sampled_from(sorted(ROUND)))
    acc, ratio = data.draw(INT32), data.draw(RATIOS)
    if acc and data.draw(st.booleans()):  # put the product as near to a tie as floats allow
        ratio = abs((data.draw(st.integers(0, 2**bits)) + 0.5) / acc)
    (y,) = requantize([acc], ratio, zero_point, bits, signed=signed, rounding=rounding).tolist()

    def expected(value):
        return min(max(ROUND[rounding](value) + zero_point, n), p)

    multiplier, shift = fixed_point_multiplier(ratio)
    assert y == expected(acc * multiplier / Fraction(2) ** shift)
    exact = acc * Fraction(ratio)
    delta = abs(exact) / 2**31
    if y != expected(exact):
        assert abs(y - expected(exact)) == 1
        assert abs(exact - math.floor(exact) - Fraction(1, 2)) <= delta


def test_the_stated_error_occurs():
    """The difference of one step is real, not only a bound: found by search near ties."""
    differ = 0
    for acc in range(1, 4000, 2):
        ratio = 100.5 / acc
        exact = ROUND["half_up"](acc * Fraction(ratio))
        differ += int(requantize([acc], ratio)[0]) != exact
    assert 0 < differ < 2000


def test_ties():
    acc = np.arange(-8, 9)
    assert (requantize(acc, 0.5, signed=True) == np.floor(acc / 2 + 0.5)).all()
    assert (requantize(acc, 0.5, signed=True, rounding="half_even") == np.round(acc / 2)).all()
    assert (requantize(acc, 1.0, signed=True, rounding="half_even") == acc).all()
    assert requantize([2, 3], 2.0**30, rounding="half_even").tolist() == [255, 255]  # shift 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(0, 255), st.integers(0, 2**32))
def test_half_even_equals_quantize_for_powers_of_two(shift, zero_point, seed):
    """Nothing is rounded twice then: simulated and integer results agree bit for bit."""
    acc = np.random.default_rng(seed).integers(-(2 ** (shift + 8)), 2 ** (shift + 8), 200)
    acc = np.clip(np.append(acc, [1 << max(shift - 1, 0)]), -(2**31), 2**31 - 1)
    ours = requantize(acc, 2.0**-shift, zero_point, rounding="half_even")
    assert (ours == quantize(acc.astype(float), 2.0**shift, zero_point)).all()


def test_extreme_ratios():
    ends = [-(2**31), 2**31 - 1]
    assert requantize(ends, 2.0**-300, signed=True).tolist() == [0, 0]
    assert requantize(ends, 2.0**-33, 5, signed=True).tolist() == [5, 5]
    assert requantize(ends, 0.9 * 2.0**-32, signed=True).tolist() == [0, 0]
    assert requantize(ends, 2.0**-32, signed=True).tolist() == [0, 0]  # -1/2 goes up to 0
    assert requantize(ends, np.nextafter(2.0**31, 0) * 0.999, signed=True).tolist() == [-128, 127]


@pytest.mark.parametrize("rounding", sorted(ROUND))
def test_per_channel_and_torch(rounding):
    rng = np.random.default_rng(3)
    acc = rng.integers(-(2**20), 2**20, (2, 5, 3)).astype(np.int32)
    ratio = 2.0 ** rng.uniform(-16, -10, 5)
    result = requantize(acc, ratio, 7, axis=1, rounding=rounding)
    assert result.dtype == np.int32 and result.shape == acc.shape
    for c in range(5):
        assert (result[:, c] == requantize(acc[:, c], ratio[c], 7, rounding=rounding)).all()
    t = requantize(torch.from_numpy(acc), torch.from_numpy(ratio), 7, axis=1, rounding=rounding)
    assert t.dtype == torch.int32 and (t.numpy() == result).all()
    half = requantize(torch.from_numpy(acc), torch.tensor(2.0**-12, dtype=torch.bfloat16))
    assert (half.numpy() == requantize(acc, 2.0**-12)).all()


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        (dict(acc=[2**31]), ValueError, "32 bits"),
        (dict(acc=[1.0]), TypeError, "integers"),
        (dict(scale_ratio=0.0), ValueError, "positive"),
        (dict(scale_ratio=-0.5), ValueError, "positive"),
        (dict(scale_ratio=float("nan")), ValueError, "NaN"),
        (dict(scale_ratio=2.0**31), ValueError, r"below 2\^31"),
        (dict(zero_point=256), ValueError, "zero_point"),
        (dict(zero_point=0.5), ValueError, "zero_point"),
        (dict(zero_point=[1, 2, 3]), ValueError, "zero_point"),
        (dict(bits=17), ValueError, "bits"),
        (dict(scale_ratio=[0.5, 0.5, 0.5], axis=0), ValueError, "scale_ratio"),
        (dict(rounding="up"), ValueError, "rounding"),
    ],
)
def test_bad_requantization(kwargs, error, words):
    with pytest.raises(error, match=words):
        requantize(**{"acc": [1, 2], "scale_ratio": 0.5, **kwargs})
