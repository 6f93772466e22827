"""The MAC array: trace, vectorised run and closed forms against each other and Python integers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minq import mac
from minq.grid import integer_grid
from minq.mac import (
    MacArray,
    accumulator_bits,
    accumulator_bits_of,
    add_energy,
    bits_for,
    conv_as_matmul,
    layer_cost,
    multiply_energy,
)


@st.composite
def layers(draw):
    """A small array, and a layer that does not fit it evenly."""
    array = MacArray(
        rows=draw(st.integers(1, 4)),
        columns=draw(st.integers(1, 4)),
        accumulator_bits=draw(st.sampled_from([4, 8, 12, 16, 17, 32, 48])),
        overflow=draw(st.sampled_from(["wrap", "saturate"])),
        double_buffer=draw(st.booleans()),
    )
    n, m, batch = (draw(st.integers(1, 9)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([2, 20, 128]))
    w = rng.integers(-size, size, (n, m))
    x = rng.integers(0, 2 * size, (batch, m))
    bias = rng.integers(-(2**7), 2**7, n) if draw(st.booleans()) else None
    return array, w, x, bias


def python_run(array, w, x, bias):
    """The accumulators in plain Python: one row sum after another, wrapped or clamped each time."""
    bits, low = array.accumulator_bits, -(2 ** (array.accumulator_bits - 1))

    def fit(value):
        if array.overflow == "saturate":
            return min(max(value, low), -low - 1)
        value %= 2**bits
        return value - 2**bits if value >= -low else value

    out = []
    for vector in x.tolist():
        for n, row in enumerate(w.tolist()):
            acc = fit(0 if bias is None else int(bias[n]))
            for j in range(0, len(row), array.columns):
                piece = slice(j, j + array.columns)
                acc = fit(acc + sum(p * q for p, q in zip(row[piece], vector[piece], strict=True)))
            out.append(acc)
    return np.array(out).reshape(len(x), len(w))


# --- The array ------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(layers())
def test_run_and_trace_equal_plain_python(layer):
    """For "wrap", ``run`` wraps once at the end: so wrapping at each step is the same."""
    array, w, x, bias = layer
    expected, result = python_run(*layer), array.run(w, x, bias)
    assert (result.accumulators == expected).all()
    exact = x @ w.T + (0 if bias is None else bias)
    assert (result.exact == exact).all() and (result.overflowed == (expected != exact)).all()
    final = np.full(expected.shape, 2**60)
    for cycle in array.trace(w, x, bias):
        if cycle.vector is not None:
            final[cycle.vector, slice(*cycle.rows)] = cycle.after
    assert (final == expected).all()


@settings(max_examples=300, deadline=None)
@given(layers())
def test_trace_equals_closed_forms(layer):
    array, w, x, bias = layer
    trace = list(array.trace(w, x, bias))
    sizes = (*w.shape, len(x))
    assert [cycle.index for cycle in trace] == list(range(array.cycles(*sizes)))
    computing = [cycle for cycle in trace if cycle.vector is not None]
    macs = sum(cycle.products.size for cycle in computing)
    assert macs == math.prod(sizes)
    assert array.utilisation(*sizes) == macs / (array.rows * array.columns * len(trace)) <= 1
    last = w.shape[1]
    words = {
        "weights": sum(c.loading[2] - c.loading[1] for c in trace if c.loading),
        "bias": len(w),
        "inputs": sum(c.x.size for c in computing),
        "partial_sums": sum(c.after.size * ((c.columns[0] > 0) + (c.columns[1] < last))
                            for c in computing),
        "outputs": sum(c.after.size for c in computing if c.columns[1] == last),
    }  # fmt: skip
    assert array.traffic(*sizes) == words


@settings(max_examples=200, deadline=None)
@given(layers())
def test_trace_is_a_machine_that_could_exist(layer):
    """Registers hold only what was loaded; sums chain; one tile, one row, one vector a cycle."""
    array, w, x, bias = layer
    registers = np.full((2, array.rows, array.columns), 2**40)  # current weights, next weights
    sums, done, current = {}, 0, None
    for cycle in array.trace(w, x, bias):
        if cycle.vector is not None:
            tile = cycle.rows, cycle.columns
            if tile != current:  # the tile just loaded takes over
                registers[0], current = registers[1], tile
            r, c = (stop - start for start, stop in tile)
            assert r <= array.rows and c <= array.columns
            assert (cycle.x == x[cycle.vector, slice(*cycle.columns)]).all()
            assert (cycle.products == registers[0, :r, :c] * cycle.x).all()
            for k, n in enumerate(range(*cycle.rows)):
                key = cycle.vector, n
                if key in sums:
                    assert sums[key] == cycle.before[k]
                sums[key] = cycle.after[k]
            total = cycle.before + cycle.products.sum(1)
            half = 2 ** (array.accumulator_bits - 1)
            assert (cycle.overflow == ((total < -half) | (total >= half))).all()
            assert ((total - cycle.after) % (2 * half) == 0).all() or array.overflow == "saturate"
            done += 1
        if cycle.loading:
            n, start, stop = cycle.loading
            registers[1, n % array.rows, : stop - start] = w[n, start:stop]
            assert array.double_buffer or cycle.vector is None
    assert len(sums) == len(w) * len(x)


def test_wrapping_forgives_on_the_way_and_saturation_does_not():
    w, x = [[100, 100, -100]], [1, 1, 1]
    wrap, clamp = MacArray(1, 1, 8), MacArray(1, 1, 8, "saturate")
    assert [c.overflow[0] for c in wrap.trace(w, x) if c.overflow is not None] == [0, 1, 1]
    assert wrap.run(w, x).accumulators == 100 and clamp.run(w, x).accumulators == 27
    assert wrap.run(w, x).bits_needed == 8 and clamp.run(w, x).bits_needed == 9
    # The order decides; a wider row adds all three before it clamps.
    assert clamp.run([[100, -100, 100]], x).accumulators == 100
    assert MacArray(1, 3, 8, "saturate").run(w, x).accumulators == 100


@settings(max_examples=200, deadline=None)
@given(layers())
def test_bits_needed_is_the_smallest_width_that_works(layer):
    array, w, x, bias = layer
    needed = array.run(w, x, bias).bits_needed
    array = MacArray(array.rows, array.columns, max(needed, 2), array.overflow)
    assert not array.run(w, x, bias).overflowed.any()
    if needed > 2:
        narrow = MacArray(array.rows, array.columns, needed - 1, array.overflow)
        half = 2 ** (needed - 2)
        start = np.zeros(1) if bias is None else bias
        flags = [c.overflow.any() for c in narrow.trace(w, x, bias) if c.vector is not None]
        assert any(flags) or (start < -half).any() or (start >= half).any()
        if array.overflow == "wrap":
            assert narrow.run(w, x, bias).overflowed.any()


def test_large_layers_and_torch():
    rng = np.random.default_rng(0)
    w, x = rng.integers(-128, 128, (30, 1000)), rng.integers(0, 256, (20, 1000))
    exact = x @ w.T
    for overflow in ("wrap", "saturate"):
        array = MacArray(accumulator_bits=32, overflow=overflow)
        assert (array.run(w, x).accumulators == exact).all()
        narrow = MacArray(accumulator_bits=18, overflow=overflow)
        assert (narrow.run(w, x).accumulators == python_run(narrow, w, x, None)).all()
        result = narrow.run(torch.from_numpy(w).to(torch.int8), torch.from_numpy(x)[0])
        assert isinstance(result.accumulators, torch.Tensor) and result.accumulators.shape == (30,)
        assert (result.accumulators.numpy() == narrow.run(w, x).accumulators[0]).all()
        assert result.overflowed.dtype == torch.bool


@pytest.mark.parametrize("double_buffer, expected", [(False, 4 * (128 + 8 * 3136)),
                                                     (True, 4 * 8 * 3136 + 16)])  # fmt: skip
def test_cycles_by_hand(double_buffer, expected):
    """N = 128, M = 64, B = 3136 on 16 x 16: 8 x 4 tiles; only the first load cannot be hidden."""
    assert MacArray(double_buffer=double_buffer).cycles(128, 64, 3136) == expected


def test_double_buffering_never_costs_and_hides_at_most_half():
    for n in range(1, 12):
        for m in range(1, 12):
            for batch in range(1, 12):
                plain = MacArray(4, 3).cycles(n, m, batch)
                hidden = MacArray(4, 3, double_buffer=True).cycles(n, m, batch)
                assert plain / 2 < hidden <= plain


@pytest.mark.parametrize(
    "kwargs, error",
    [
        (dict(rows=0), ValueError),
        (dict(columns=2.0), TypeError),
        (dict(accumulator_bits=1), ValueError),
        (dict(accumulator_bits=49), ValueError),
        (dict(overflow="clip"), ValueError),
    ],
)
def test_bad_arrays(kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))):
        MacArray(**kwargs)


@pytest.mark.parametrize("method", ["run", "trace"])
@pytest.mark.parametrize(
    "w, x, bias, error, words",
    [
        ([[1.5]], [1], None, TypeError, "weight must be integers"),
        ([[1]], [float("nan")], None, TypeError, "x must be integers"),
        ([1, 2], [1, 2], None, ValueError, "do not fit"),
        ([[1, 2]], [1, 2, 3], None, ValueError, "do not fit"),
        ([[1, 2]], [[[1, 2]]], None, ValueError, "do not fit"),
        ([[1, 2]], np.zeros((0, 2), int), None, ValueError, "empty"),
        ([[1, 2]], [1, 2], [1, 2], ValueError, "bias"),
        ([[1, 2]], [1, 2], [0.5], TypeError, "bias"),
        ([[2**40]], [2**22], None, ValueError, "2\\^62"),
    ],
)
def test_bad_operands(method, w, x, bias, error, words):
    with pytest.raises(error, match=words):
        getattr(MacArray(), method)(w, x, bias)


# --- Widths ---------------------------------------------------------------------------------------


@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70))
def test_bits_for_holds_both_and_no_narrower_width_does(a, b):
    low, high = min(a, b), max(a, b)
    bits = bits_for(low, high)
    assert -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)
    assert bits == 1 or low < -(2 ** (bits - 2)) or high >= 2 ** (bits - 2)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bounds_are_safe_and_reached(data):
    k, w_bits = data.draw(st.integers(1, 40)), data.draw(st.integers(2, 8))
    x_bits, signed = data.draw(st.integers(2, 8)), data.draw(st.booleans())
    w_low, w_high = integer_grid(w_bits, signed=True)
    x_low, x_high = integer_grid(x_bits, signed=signed)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    w = rng.integers(w_low, w_high, (3, k), endpoint=True)
    bias = rng.integers(-1000, 1000, 3)
    worst = accumulator_bits(k, w_bits, x_bits, activation_signed=signed, bias=abs(bias).max())
    these = accumulator_bits_of(w, x_bits, activation_signed=signed, bias=bias)
    assert these <= worst
    array = MacArray(3, 1, 48, "saturate")  # counts every partial sum
    x = rng.integers(x_low, x_high, (5, k), endpoint=True)
    assert array.run(w, x, bias).bits_needed <= these
    # The worst inputs for these weights, and the worst weights of all, reach the bounds.
    corners = np.concatenate([np.where(w > 0, x_high, x_low), np.where(w > 0, x_low, x_high)])
    assert array.run(w, corners, bias).bits_needed == these
    ends = np.array([[w_low] * k, [w_high] * k])
    inputs = np.array([[x_low] * k, [x_high] * k])
    top = abs(bias).max()
    biases = [[-top] * 2, [top] * 2]
    reached = max(array.run(ends, inputs, b).bits_needed for b in biases)
    assert reached == worst


def test_known_widths():
    assert accumulator_bits(2**16 - 1, activation_bits=8) == 32
    assert accumulator_bits(2**16 + 1000, activation_bits=8) == 33
    assert accumulator_bits(9, 4, 4) < accumulator_bits(9, 8, 8)
    with pytest.raises(ValueError, match="bits"):
        accumulator_bits(9, 17)


# --- Cost -----------------------------------------------------------------------------------------


def test_energy_table_is_the_published_one():
    """Horowitz, ISSCC 2014, typed a second time: pJ at 45 nm and 0.9 V."""
    published = [
        (add_energy(8), 0.03), (add_energy(16), 0.05), (add_energy(32), 0.1),
        (add_energy(16, floating=True), 0.4), (add_energy(32, floating=True), 0.9),
        (multiply_energy(8, 8), 0.2), (multiply_energy(32, 32), 3.1),
        (multiply_energy(16, 16, floating=True), 1.1),
        (multiply_energy(32, 32, floating=True), 3.7),
        (mac.access_energy(64, "sram_8k"), 10), (mac.access_energy(64, "sram_32k"), 20),
        (mac.access_energy(64, "sram_1m"), 100), (mac.access_energy(64, "dram"), 1300),
    ]  # fmt: skip
    for joules, picojoules in published:
        assert joules == pytest.approx(picojoules * 1e-12)


def test_extrapolated_multipliers():
    """By area, and within 4 % of the table at the other end of it."""
    assert multiply_energy(4, 8) == multiply_energy(8, 4) == pytest.approx(0.1e-12)
    assert multiply_energy(4, 4) == pytest.approx(0.05e-12)
    assert multiply_energy(32, 31) == pytest.approx(31 / 32 * multiply_energy(32, 32), rel=0.04)


def test_layer_cost_by_hand():
    """5 outputs, 7 inputs, 3 vectors on 2 x 4: 3 x 2 tiles."""
    array = MacArray(2, 4, accumulator_bits=16)
    cost = layer_cost(5, 7, 3, array, weight_bits=4, activation_bits=8, weight_zero_point=True)
    assert cost.macs == 105 and cost.cycles == 2 * (5 + 3 * 3)
    assert cost.utilisation == 105 / (8 * cost.cycles)
    assert cost.bytes == {"weights": 18, "bias": 10, "inputs": 63, "partial_sums": 60,
                          "outputs": 15}  # fmt: skip
    picojoules = {
        "multiply": 105 * 0.1,
        "add": 105 * 0.05,
        "requantize": 15 * (3.1 + 0.05),
        "zero_point": 3 * (11 * 0.05 + 3.1),
        "weights": 5 * 7 * 4 / 64 * 1300,
        "bias": 5 * 16 / 64 * 1300,
        "inputs": 63 * 8 / 64 * 100,
        "partial_sums": 30 * 16 / 64 * 10,
        "outputs": 15 * 8 / 64 * 100,
    }
    assert cost.energy == pytest.approx({k: v * 1e-12 for k, v in picojoules.items()}, rel=1e-12)
    assert cost.total_energy == pytest.approx(sum(picojoules.values()) * 1e-12)
    assert cost.total_bytes == sum(cost.bytes.values())
    symmetric = layer_cost(5, 7, 3, array, weight_bits=4)
    assert symmetric.energy["zero_point"] == 0


def test_formats_compare():
    shape = conv_as_matmul(64, 128, 3, 56, padding=1)._asdict()
    fp32 = layer_cost(**shape, weight_bits=32, activation_bits=32, floating=True)
    int8 = layer_cost(**shape)
    w4a8 = layer_cost(**shape, weight_bits=4)
    int4 = layer_cost(**shape, weight_bits=4, activation_bits=4)
    for kind, ratio in {"weights": 4, "inputs": 4, "outputs": 4, "partial_sums": 1}.items():
        assert fp32.bytes[kind] == ratio * int8.bytes[kind]
    energies = [cost.total_energy for cost in (fp32, int8, w4a8, int4)]
    assert energies == sorted(energies, reverse=True)
    assert fp32.energy["multiply"] == pytest.approx(3.7 / 0.2 * int8.energy["multiply"])
    assert fp32.energy["requantize"] == 0 < int8.energy["requantize"]
    assert fp32.cycles == int8.cycles


def test_groups_repeat_a_layer():
    one, eight = layer_cost(3, 9, 100), layer_cost(3, 9, 100, groups=8)
    assert eight.cycles == 8 * one.cycles and eight.utilisation == one.utilisation
    assert eight.bytes["inputs"] == 8 * one.bytes["inputs"]
    assert eight.total_energy == pytest.approx(8 * one.total_energy)


def test_memory_can_be_chosen():
    default, near = layer_cost(8, 8), layer_cost(8, 8, memory={"weights": "sram_8k"})
    assert default.energy["weights"] == pytest.approx(130 * near.energy["weights"])
    assert default.energy["inputs"] == near.energy["inputs"]


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(memory={"weight": "dram"}),
        dict(memory={"weights": "tape"}),
        dict(floating=True),
        dict(floating=True, weight_bits=32, activation_bits=16),
        dict(floating=True, weight_bits=32, activation_bits=32, weight_zero_point=True),
        dict(weight_bits=0),
        dict(groups=0),
        dict(batch=0),
    ],
)
def test_bad_costs(kwargs):
    with pytest.raises(ValueError):
        layer_cost(8, 8, **kwargs)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_convolution_is_that_matrix_product(data):
    """Shapes and numbers against torch: unfold gives the input vectors, conv2d the outputs."""
    groups = data.draw(st.integers(1, 3))
    c_in, c_out = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    pair = lambda low, high: (data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))  # noqa: E731
    kernel, size, padding = pair(1, 3), pair(5, 8), pair(0, 2)
    how = dict(stride=pair(1, 3), padding=padding, dilation=pair(1, 2))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    image = torch.randint(0, 256, (2, c_in, *size), generator=g)
    weight = torch.randint(-128, 128, (c_out, c_in // groups, *kernel), generator=g)
    y = torch.nn.functional.conv2d(image.double(), weight.double(), groups=groups, **how).long()
    shape = conv_as_matmul(c_in, c_out, kernel, size, groups=groups, batch=2, **how)
    n, m, batch, _ = shape
    assert (shape.groups, n, batch) == (groups, c_out // groups, y.numel() // c_out)
    patches = torch.nn.functional.unfold(image.double(), kernel, **how).long()  # (2, C k k, pixels)
    vectors = patches.unflatten(1, (groups, m)).permute(1, 0, 3, 2).reshape(groups, batch, m)
    for k in range(groups):
        rows = weight.reshape(groups, n, m)[k]
        expected = y.unflatten(1, (groups, n))[:, k].flatten(2).permute(0, 2, 1).reshape(batch, n)
        assert torch.equal(MacArray().run(rows, vectors[k]).accumulators, expected)


def test_depthwise_convolutions_starve_the_array():
    depthwise = layer_cost(**conv_as_matmul(32, 32, 3, 14, padding=1, groups=32)._asdict())
    dense = layer_cost(**conv_as_matmul(32, 32, 3, 14, padding=1)._asdict())
    assert depthwise.utilisation < 9 / 256 and dense.utilisation > 0.9


@pytest.mark.parametrize(
    "kwargs",
    [dict(groups=3), dict(kernel_size=9), dict(stride=0), dict(padding=-1), dict(input_size=0)],
)
def test_bad_convolutions(kwargs):
    with pytest.raises(ValueError):
        conv_as_matmul(**{**dict(in_channels=4, out_channels=4, kernel_size=3, input_size=8),
                          **kwargs})  # fmt: skip
