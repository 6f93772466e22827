"""The array in Verilog, simulated, against ``minq.mac``; its floats against NumPy and ml_dtypes."""

import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minq.mac import Cycle, MacArray, fixed_point_multiplier, requantize
from minqbook.gates import icarus
from minqbook.gates.machine import Layer, differences, run_verilog

pytestmark = pytest.mark.skipif(
    bool(icarus.installed()) and not os.environ.get("CI"), reason=icarus.installed()
)

# Each is compiled once: array, weight bits, input bits, signed inputs.
MACHINES = [
    (MacArray(2, 3, 12, "wrap"), 8, 8, False),
    (MacArray(3, 2, 12, "saturate"), 8, 8, False),
    (MacArray(3, 2, 9, "saturate", double_buffer=True), 4, 6, True),
    (MacArray(1, 1, 32, "wrap", double_buffer=True), 4, 8, False),
    (MacArray(2, 4, 48, "wrap"), 16, 16, True),
]


@st.composite
def layers(draw, weight_bits, input_bits, signed, accumulator_bits):
    """Layers that fill the array or do not, with numbers up to both ends of their grids."""

    def integers(bits, shape, signed=True):
        low = -(2 ** (bits - 1)) if signed else 0
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        numbers = rng.integers(low, low + 2**bits, shape)
        ends = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
        extreme = np.where(rng.random(shape) < 0.5, low, low + 2**bits - 1)
        return np.where(rng.random(shape) < ends, extreme, numbers)

    n, m, batch = (draw(st.integers(1, 7)) for _ in range(3))
    bias = integers(min(accumulator_bits + 2, 40), n)  # wider than the accumulator, too
    return Layer(
        integers(weight_bits, (n, m)), integers(input_bits, (batch, m), signed), bias
    )


@pytest.mark.parametrize("number", range(len(MACHINES)))
@settings(max_examples=12)
@given(st.data())
def test_verilog_equals_the_model_in_every_cycle(number, data):
    """Loads, vectors, products, sums before and after, and every overflow."""
    array, weight_bits, input_bits, signed = MACHINES[number]
    one = layers(weight_bits, input_bits, signed, array.accumulator_bits)
    some = data.draw(st.lists(one, min_size=1, max_size=6))
    found = run_verilog(array, some, weight_bits, input_bits, input_signed=signed)
    for layer, cycles in zip(some, found, strict=True):
        assert not differences(cycles, array.trace(layer.weight, layer.x, layer.bias))
        assert len(cycles) == array.cycles(*layer.weight.shape, len(layer.x))


@pytest.mark.parametrize("signed", [False, True])
def test_weight_zero_points_are_subtracted_in_every_row(signed):
    """The extra channel: the sums are those of the weights minus their zero-point, eq. (13)."""
    rng, array, some = np.random.default_rng(5), MacArray(2, 3, 14, "saturate"), []
    for _ in range(20):
        n, m, batch = rng.integers(1, 7, 3)
        w, x = rng.integers(-8, 8, (n, m)), rng.integers(-8 if signed else 0, 8, (batch, m))
        some.append(Layer(w, x, rng.integers(-100, 100, n), int(rng.integers(-8, 8))))
    found = run_verilog(array, some, 4, 4, input_signed=signed, zero_point=True)
    sums = [Cycle._fields.index(k) for k in ("before", "after", "overflow")]
    for layer, cycles in zip(some, found, strict=True):
        expected = array.trace(layer.weight - layer.zero_point, layer.x, layer.bias)
        for one, other in zip(cycles, expected, strict=True):
            assert all(np.array_equal(one[k], other[k]) for k in sums)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "rounding"),
    [(8, False, False, "half_even"), (8, True, True, "half_even"), (4, False, False, "half_up")],
)
def test_requantizer_equals_minq(bits, signed, narrow, rounding):
    """31-bit multipliers, all shifts, ties, both ends of 32-bit accumulators."""
    rng = np.random.default_rng(bits)
    program = icarus.compiled(
        "test_requantize",
        ("element.v", "requantize.v", "test_requantize.v"),
        BITS=bits,
        SIGNED=int(signed),
        NARROW_RANGE=int(narrow),
        HALF_UP=int(rounding == "half_up"),
    )
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    words, expected = [], []
    for k in range(1500):
        wide = int(rng.integers(1, 33))
        acc = int(rng.integers(-(2 ** (wide - 1)), 2 ** (wide - 1)))
        acc = (acc, -(2**31), 2**31 - 1)[(k % 50 > 47) + (k % 50 > 48)]
        ratio = 2.0 ** rng.uniform(-34, 8)
        if k % 3 == 0:  # ties are frequent
            ratio, acc = 2.0 ** -int(rng.integers(0, 9)), int(rng.integers(-600, 600))
        z = int(rng.integers(low, -low + 1 if signed else 2**bits))
        multiplier, shift = fixed_point_multiplier(ratio)
        words += [acc, 0 if shift > 62 else multiplier, min(shift, 62), z]
        expected += [
            int(requantize([acc], ratio, z, bits, signed=signed, narrow_range=narrow,
                           rounding=rounding)[0])
        ]  # fmt: skip
    assert [int(line) for line in icarus.simulate(program, words)] == expected


# --- Floats -----------------------------------------------------------------------------------

FLOATS = {
    "float32": (np.float32, np.uint32, 8, 23, 1),
    "bfloat16": (ml_dtypes.bfloat16, np.uint16, 8, 7, 1),
    "E4M3": (ml_dtypes.float8_e4m3fn, np.uint8, 4, 3, 0),
}
# Zeros, the ends of subnormals and normals, one and its neighbours, infinity, NaN.
EDGES = np.array(
    [0, 1, 0x7FFFFF, 0x800000, 0x800001, 0x3F800000, 0x3F7FFFFF, 0x3F800001, 0x7F7FFFFF,
     0x7F800000, 0x7FC00000, 0x4B800000, 0x33800000, 0x1F800000, 0x20000000], np.uint32
)  # fmt: skip
EDGES = np.concatenate([EDGES, EDGES | 0x80000000])


def float_numbers(name, rng):
    """Weights and inputs of a format and float32 biases: random bits, near misses, edges."""
    kind, word, *_ = FLOATS[name]
    width, n = 8 * word().itemsize, 700
    anything = [rng.integers(0, 2**width, n, dtype=np.uint64).astype(word) for _ in range(2)]
    usual = [rng.normal(size=n) * 2.0 ** rng.integers(-3, 3, n) for _ in range(2)]
    small = [v[: n // 2] * 2.0**-66 for v in usual]  # their product is subnormal in float32
    a, b = (
        np.concatenate([v, u.astype(kind).view(word), s.astype(kind).view(word)])
        for v, u, s in zip(anything, usual, small, strict=True)
    )
    with np.errstate(all="ignore"):
        product = a.view(kind).astype(np.float32) * b.view(kind).astype(np.float32)
        nearly = -product * (1 + rng.integers(-4, 5, len(a)) * 2.0 ** rng.integers(-25, 1, len(a)))
        half = product * 2.0 ** rng.integers(22, 26, len(a))  # the sum lies near a tie
    c = rng.integers(0, 2**32, len(a), dtype=np.uint64).astype(np.uint32)
    turn = rng.integers(0, 3, len(a))
    with np.errstate(all="ignore"):
        near = np.where(turn == 1, nearly, half).astype(np.float32)
    c = np.where(turn == 0, c, near.view(np.uint32))
    edges = (EDGES >> (32 - width)).astype(word)
    corner = rng.integers(0, len(edges), (3, 700))
    return (
        np.concatenate([a, edges[corner[0]]]),
        np.concatenate([b, edges[corner[1]]]),
        np.concatenate([c, EDGES[corner[2]]]),
    )


def bits_of(value):
    """float32 as integers, every NaN as the one that the hardware makes."""
    return np.where(np.isnan(value), np.uint32(0x7FC00000), value.view(np.uint32))


def flushed(value):
    return np.where(np.abs(value) < 2.0**-126, np.copysign(np.float32(0), value), value)


@pytest.mark.parametrize("flush", [0, 1])
@pytest.mark.parametrize("name", FLOATS)
def test_multiply_add_equals_numpy(name, flush):
    """Product and sum, bit for bit: the product rounded to float32 and then the sum."""
    kind, _, exponent, fraction, infinite = FLOATS[name]
    a, b, c = float_numbers(name, np.random.default_rng(exponent + fraction))
    program = icarus.compiled(
        "test_float",
        ("float.v", "test_float.v"),
        EXPONENT=exponent,
        FRACTION=fraction,
        INFINITE=infinite,
        FLUSH=flush,
    )
    lines = icarus.simulate(program, np.stack([v.astype(np.int64) for v in (a, b, c)], 1).flat)
    found = np.array([[int(v, 16) for v in line.split()] for line in lines], np.uint32)
    with np.errstate(all="ignore"):
        x, y = (v.view(kind).astype(np.float32) for v in (a, b))
        z = c.view(np.float32)
        if flush:
            x, y, z = (flushed(v) if exponent == 8 else v for v in (x, y)), None, flushed(z)
            x, y = x
            exact = x.astype(np.float64) * y  # 48 digits fit
            product = np.where(np.abs(exact) < 2.0**-126, np.copysign(0, exact), x * y)
            product = product.astype(np.float32)
            total = flushed(product + z)
        else:
            product = x * y
            total = product + z
    assert np.array_equal(found[:, 0], bits_of(product))
    assert np.array_equal(found[:, 1], bits_of(total))


def test_a_wrong_parameter_is_said():
    with pytest.raises(RuntimeError, match="test_array"):
        icarus.compiled("test_array", ("element.v",), ROWS=2)
