"""Figure 4a equals figure 4b: every integer of the network on integers is the simulation's."""

import copy
import math
import warnings
from fractions import Fraction
from itertools import cycle

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from integers import assert_same, quantized
from networks import NETWORKS, Attention, Lambda, captured, network, noise, settle, zoo_graph
from torch import nn

import minq
from minq import Granularity, Grid, mac
from minq.deploy import kernels, simulation
from minq.deploy.normalize import LayerNorm, Softmax, divide_half_even, integer_sqrt
from minq.simulate import activation_quantizers, quantizers, weight_quantizers
from minqbook import zoo

warnings.filterwarnings("ignore", message=".*is not among the operators that are quantized")

GRIDS = {
    "W8A8": {},
    "per channel": {"per_channel": True},
    "W4A4 symmetric": {"weights": 4, "activations": 4, "symmetric": True},
}


# --- The networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_gives_the_integers_of_the_simulation(name, grid):
    _, gm, shape = captured(name)
    q = quantized(gm, noise(8, *shape), **GRIDS[grid])
    assert_same(q, 1.2 * noise(8, *shape, seed=5))  # beyond the ranges, too


@pytest.mark.parametrize(
    "name, grid",
    [*zip(zoo.NAMES, cycle(["W8A8", "per channel"]), strict=False), ("text_encoder", "W8A8")],
)
def test_every_small_network_gives_the_integers_of_the_simulation(name, grid):
    q = quantized(zoo_graph(name), zoo.calibration_set(name, 16), **GRIDS[grid])
    # Tables of rows with scales of their own are off by up to 2^-12 steps, to either side of a tie.
    rows = (name, grid) == ("text_encoder", "per channel")
    net = assert_same(q, zoo.test_set(name, 4)[0], ties=2**-11 if rows else 1e-6)
    assert not net.islands or (name, grid) == ("text_encoder", "per channel")


def test_a_network_at_full_size_gives_the_integers_of_the_simulation():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settle(torchvision.models.mobilenet_v2(weights=None))
    x = noise(1, 3, 224, 224)
    net = assert_same(quantized(model, x, equalize=False), noise(1, 3, 224, 224, seed=2))
    assert not net.islands


def test_a_trained_network_gives_the_integers_of_the_simulation():
    """Learned zero-points are rounded when used, and weights need not lie on their grid."""
    x = zoo.calibration_set("mobilenet_v2", 16)
    q = minq.qat.prepare(zoo_graph("mobilenet_v2"), x, weights=4, activations=4)
    with torch.no_grad():
        for quantizer in quantizers(q).values():
            quantizer.zero_point += 0.3 * (not quantizer.symmetric)
            quantizer.log2_scale += 0.01
    assert_same(minq.qat.finish(q), zoo.test_set("mobilenet_v2", 4)[0])


def test_what_single_precision_gets_wrong_lies_next_to_ties():
    """Given the same 32-bit biases and inputs, a layer in floats differs by one step, rarely."""
    x = zoo.test_set("mobilenet_v2", 32)[0]
    q = quantized(zoo_graph("mobilenet_v2"), zoo.calibration_set("mobilenet_v2", 32))
    net, single = minq.to_integer(q), simulation(q).float()
    first = "stem.2.quantizer"
    scale, zero_point = quantizers(single)[first].scale_zero_point()
    seen = []
    quantizers(single)[first].register_forward_hook(lambda m, _, y: seen.append(y))
    with torch.no_grad():
        y = single(x)
    off = (torch.round(seen[0] / scale) + zero_point - net.trace(x)[first]).abs()
    assert off.max() <= 1 and off.sum() < 1e-4 * off.numel()
    assert (y.argmax(1) == net(x).argmax(1)).float().mean() > 0.95


def test_power_of_two_scales_make_even_single_precision_exact():
    x = noise(8, 6)
    q = quantized(network("linear2d")[0], x)
    for quantizer in quantizers(q).values():
        quantizer.power_of_two = True
        quantizer.set_range(quantizer.low, quantizer.high)
    for name, module in simulation(q).named_parameters():  # biases on their grid
        if name.endswith("bias"):
            q.get_parameter(name).data = module.data.float()
    with torch.no_grad():
        assert torch.equal(minq.to_integer(q)(x), q(x))


def test_edges_carry_integers_of_the_fewest_bytes():
    x = zoo.test_set("mobilenet_v2", 2)[0]
    net = minq.to_integer(quantized(zoo_graph("mobilenet_v2"), x, weights=4))
    program = net.program
    kinds = {node: type(module) for node, module, _, _ in net._watch(x)}
    values = {node: value for node, _, _, value in net._watch(x)}
    floats = [n for n, v in values.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    # The input, before and after it becomes double precision, and the answer.
    assert [n.op for n in floats] == ["placeholder", "call_method", "call_module"]
    for node, kind in kinds.items():
        if kind in (kernels.Requantize, kernels.Quantize):
            assert values[node].dtype == torch.uint8
        if kind is kernels.Layer:
            assert values[node].dtype == torch.int32
    assert all(m.weight.dtype == torch.int8 for m in net.layers.values())
    assert all(m.weight.abs().max() <= 8 for m in net.layers.values())
    assert all(m.bias.dtype == torch.int32 for m in net.layers.values())
    assert sum(b.numel() for b in program.buffers()) > 0


OFTEN_WRITTEN = {
    "a mask of the scores": (Attention, torch.tensor([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]])),
    "padding in front of a maximum": (
        lambda: Lambda(
            lambda m, x: nn.functional.max_pool2d(
                nn.functional.pad(m.conv(x), (0, 1, 0, 1), value=float("-inf")), 3, 2
            ),
            conv=nn.Conv2d(3, 4, 1),
        ),
        noise(2, 3, 8, 8),
    ),
    "branches of branches": (
        lambda: Lambda(
            lambda m, x: torch.cat([torch.cat([m.a(x), m.b(x).relu()], 1), m.a(x)], 1),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(3, 2, 1),
        ),
        noise(2, 3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", OFTEN_WRITTEN)
def test_what_the_real_networks_write_has_an_integer_form(name):
    make, x = OFTEN_WRITTEN[name]
    torch.manual_seed(0)
    assert not assert_same(quantized(make().eval(), x), x).islands


def test_a_masked_score_counts_for_nothing():
    """Also beside scores that are all at the lower end."""
    step, zero = torch.tensor(2.0**-8).double(), torch.tensor(0.0).double()
    grid = kernels.Quantize(step, zero, Grid(0, 255))
    unit = Softmax(
        lambda x: x.softmax(-1), torch.tensor(0.01).double(), 0, grid, False,
        dim=-1, low=-4200, high=255,
    )  # fmt: skip
    assert unit(torch.tensor([[-4200, 0, 0], [-4200, 255, -4200]])).tolist() == [
        [0, 128, 128],
        [0, 255, 0],
    ]
    assert len(unit.table) < 2000


def test_what_has_no_integer_form_is_an_island_and_is_named():
    model = Lambda(
        lambda m, x: m.b(torch.cumprod(m.a(x), 1)),
        a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    q = quantized(model.eval(), noise(4, 3, 8, 8))
    islands = assert_same(q, noise(4, 3, 8, 8)).islands
    assert [text.split(":")[0] for text in islands.values()] == ["cumprod"]


def test_a_layer_without_quantizers_is_an_island():
    q = quantized(network("mobile")[0], noise(4, 3, 8, 8), skip=["3"])
    assert set(minq.to_integer(q).islands) == {"3", "5"}  # its ReLU6 stays in front of the rounding
    assert_same(q, noise(4, 3, 8, 8))


def test_a_layer_that_reads_zeros_is_an_island():
    model = Lambda(lambda m, x: m.b(m.a(x) * 0), a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    islands = assert_same(quantized(model.eval(), noise(32, 6)), noise(32, 6)).islands
    assert islands == {"b": "linear: its input is 0 times a grid"}


@torch.no_grad()
def test_a_bias_that_loses_steps_of_its_output_is_told(tmp_path):
    """Channels of 1e-3 to 1e3 on one grid, behind it each counts as much: s_w s_x is too coarse."""
    torch.manual_seed(0)
    sizes = torch.tensor([1e-3, 1.0, 1e3, 10.0, 0.1, 100.0])
    model = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 3)).eval()
    model[0].weight *= sizes[:, None, None, None]
    model[1].weight /= sizes[:, None, None]
    x = noise(32, 6, 8, 8)
    settings = {"rounding": "nearest", "progress": False}
    q = minq.ptq(model, x, **settings)
    for deploy in (minq.to_integer, lambda q: minq.to_onnx(q, tmp_path / "q.onnx")):
        with pytest.warns(UserWarning, match="round the biases of 1 .*layers={'0': {'activations'"):
            net = deploy(q)
        if deploy is minq.to_integer:
            assert minq.sqnr(q(x), net(x)) < minq.sqnr(model(x), q(x)) - 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finer = minq.ptq(model, x, **settings, layers={"0": {"activations": 16}})
        assert minq.sqnr(finer(x), minq.to_integer(finer)(x)) > 60
        minq.to_integer(minq.ptq(network("mobile")[0], noise(4, 3, 8, 8), weights=2, activations=2))


def test_the_batch_size_is_free_and_a_copy_computes_the_same():
    x = zoo.test_set("inception", 3)[0]
    net = minq.to_integer(quantized(zoo_graph("inception"), x))
    other = copy.deepcopy(net)
    assert torch.equal(torch.cat([net(v[None]) for v in x]), other(x))
    assert "floating" not in str({b.dtype for n, b in net.named_buffers() if "weight" in n})


def test_keywords_and_nested_results():
    from networks import Keywords

    u, v = noise(3, 4), noise(3, 3)
    q = quantized(settle(Keywords()), {"u": u, "v": v})
    y, y_int = q(u=u, v=v), minq.to_integer(q)(u=u, v=v)
    assert set(y_int) == {"sum", "first"}
    assert all((y[k] - y_int[k]).abs().max() < 0.05 for k in y)


# --- Single operators against plain integers and fractions ----------------------------------------

ratios = st.floats(1e-6, 1.0)
zeros = st.integers(0, 255)


def requantizer(scales, zeros, s_y, z_y, constant=0.0, slope=None, low=-np.inf, high=np.inf, **how):
    double = {"dtype": torch.float64}
    real = kernels.Dequantize(
        [torch.tensor(s, **double) for s in scales], zeros, torch.tensor(constant, **double),
        torch.tensor(low, **double), torch.tensor(high, **double),
        None if slope is None else torch.tensor(slope, **double),
    )  # fmt: skip
    step, zero = torch.tensor(s_y, **double), torch.tensor(float(z_y), **double)
    grid = kernels.Quantize(step, zero, Grid(0, 255))
    return kernels.Requantize(real, grid, kernels.Arithmetic(**how))


def half_even(value: Fraction) -> int:
    return round(value)  # Python rounds fractions half to even, exactly


@given(
    st.lists(st.tuples(ratios, zeros, st.integers(-(2**20), 2**20)), min_size=1, max_size=3),
    zeros,
    st.floats(-100, 100),
    st.sampled_from([None, 0.25, 2.0]),
)
def test_requantize_is_exact_arithmetic_but_for_a_step_next_to_a_tie(
    operands, z_y, constant, slope
):
    scales, z, xs = zip(*operands, strict=True)
    unit = requantizer(scales, z, 1.0, z_y, constant, slope)
    total = sum(Fraction(s) * (x - k) for s, k, x in operands) + Fraction(constant)
    if slope is not None and total < 0:
        total *= Fraction(slope)
    exact = min(max(half_even(total) + z_y, 0), 255)
    got = int(unit.in_integers(*(torch.tensor([x]) for x in xs)))
    # Multipliers of 31 bits: each product is off by 2^-31 of its largest, so is the constant.
    delta = (1 + abs(slope or 1)) * sum(abs(x) + 255 + 1 for x in xs) * max(scales) * 2.0**-30
    delta += abs(constant) * 2.0**-50
    tie = abs(abs(total - half_even(total)) - Fraction(1, 2))
    if got != exact:
        assert abs(got - exact) == 1 and tie <= delta
    assert int(unit.in_floats(*(torch.tensor([x]) for x in xs))) in (exact, got)


def test_ties_go_to_the_even_neighbour_or_up():
    x = torch.tensor([-5, -3, -1, 1, 3, 5])
    assert requantizer([0.5], [0], 1.0, 10).in_integers(x).tolist() == [8, 8, 10, 10, 12, 12]
    up = requantizer([0.5], [0], 1.0, 10, rounding="half_up").in_integers(x)
    assert up.tolist() == [8, 9, 10, 11, 12, 13]


def test_a_narrow_multiplier_is_off_by_more():
    x = torch.arange(-(2**15), 2**15)
    wide, narrow = (requantizer([1 / 299.7], [0], 1.0, 128, multiplier_bits=b) for b in (31, 8))
    exact = wide.in_floats(x).int()
    assert (wide.in_integers(x).int() != exact).sum() == 0
    off = (narrow.in_integers(x).int() - exact).abs()
    assert 0 < (off > 0).float().mean() < 0.5 and off.max() == 1


def test_fused_functions_are_the_bounds_of_the_clamp():
    x = torch.arange(-100, 100)
    unit = requantizer([0.1], [0], 0.05, 20, low=0.0, high=6.0)
    assert torch.equal(unit.in_integers(x), unit.in_floats(x))
    assert unit.in_integers(x).min() == 20 and unit.in_integers(x).max() == 140
    assert unit.clipped(x) == 0  # ReLU6 cuts, not the grid
    assert requantizer([0.1], [0], 0.05, 20).clipped(x) == int((x < -10).sum())


def normalized(seed, rows, exact=False):
    """Softmax and layer norm from one 8-bit grid to another, and what they should give."""
    rng = np.random.default_rng(seed)
    scale, zero = torch.tensor(10.0 ** rng.uniform(-4, 0), dtype=torch.float64), 77
    x = torch.tensor(rng.integers(0, 256, (5, rows)), dtype=torch.uint8)
    x[0] = 9  # no variance at all
    s_y, z_y = torch.tensor(1 / 255).double(), torch.tensor(0.0).double()
    grid = kernels.Quantize(s_y, z_y, Grid(0, 255))
    softmax = Softmax(lambda r: r.softmax(-1), scale, zero, grid, exact, dim=-1, low=0, high=255)
    gamma, beta = torch.tensor(rng.normal(size=(2, rows)))
    gamma[rng.integers(rows)] = 0.0
    wide = kernels.Quantize(torch.tensor(0.03).double(), torch.tensor(128.0).double(), Grid(0, 255))
    norm = LayerNorm(
        lambda r: nn.functional.layer_norm(r, (rows,), gamma, beta, 1e-5),
        scale, zero, wide, kernels.Arithmetic(exact),
        dims=1, count=rows, gamma=gamma, beta=beta, eps=1e-5, low=0, high=255,
    )  # fmt: skip
    return x, softmax, norm


@given(st.integers(0, 10**6), st.integers(2, 300))
def test_softmax_and_layer_norm_in_integers_are_off_by_a_step_at_most(seed, rows):
    x, *units = normalized(seed, rows)
    for unit in units:
        got, exact = unit(x), unit.in_floats(x)
        assert got.dtype == torch.uint8
        off = (got.int() - exact.int()).abs()
        assert off.max() <= 1 and off[1:].sum() <= 1 + 1e-3 * off.numel()  # equal scores may tie


def test_exact_softmax_and_layer_norm_are_those_of_torch():
    x, *units = normalized(3, 64, exact=True)
    for unit in units:
        assert torch.equal(unit(x), unit.in_floats(x))


@given(st.integers(-(2**61), 2**61), st.integers(1, 2**61))
def test_integer_division_rounds_half_to_even(a, b):
    assert int(divide_half_even(torch.tensor(a), torch.tensor(b))) == round(Fraction(a, b))


@given(st.integers(0, 2**52 - 1))
def test_the_integer_root_is_exact(x):
    assert int(integer_sqrt(torch.tensor(x))) == math.isqrt(x)


@given(st.integers(1, 40), st.integers(0, 255), st.integers(0, 10**6))
def test_a_layer_is_an_exact_sum_with_the_zero_point_in_the_bias(k, zero, seed):
    rng = np.random.default_rng(seed)
    w, x = rng.integers(-128, 128, (3, k)), rng.integers(0, 256, (2, k))
    b = rng.integers(-(2**20), 2**20, 3)
    folded = torch.tensor(b - zero * w.sum(1), dtype=torch.int32)
    layer = kernels.Layer(nn.functional.linear, torch.tensor(w, dtype=torch.int8), folded, zero)
    got = layer(torch.tensor(x, dtype=torch.uint8))
    assert np.array_equal(got.numpy(), (x - zero) @ w.T + b)


def test_padding_stands_for_zero():
    """A convolution of ones over a padded border sees z_x there, which means 0."""
    q = quantized(Lambda(lambda m, x: m.c(x), c=nn.Conv2d(1, 1, 3, padding=1)), noise(4, 1, 5, 5))
    assert next(iter(activation_quantizers(q).values())).scale_zero_point()[1] > 50
    assert_same(q, noise(4, 1, 5, 5))


# --- Accumulators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_narrow_accumulators_wrap_as_the_array_does(bits):
    x = noise(16, 6)
    q = quantized(nn.Sequential(nn.Linear(6, 5)), x)
    net = minq.to_integer(q, accumulator_bits=bits, overflow="wrap")
    (layer,) = net.layers.values()
    array = mac.MacArray(4, 4, accumulator_bits=bits)
    x_int = net.trace(x)[next(iter(activation_quantizers(q)))]
    expected = array.run(layer.weight.numpy(), x_int.numpy(), layer.bias.numpy())
    assert np.array_equal(layer(x_int).numpy(), expected.accumulators)
    assert expected.overflowed.any() == (bits < expected.bits_needed)
    assert bits < 14 or not expected.overflowed.any() or layer.bound > bits


def test_the_bound_is_reached_by_the_worst_input():
    weight = torch.tensor([[3.0, -2.0, 1.0]])
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight.data = weight
    q = quantized(model, torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0]]), equalize=False)
    (layer,) = minq.to_integer(q).layers.values()
    worst = [torch.where(sign * layer.weight > 0, 255, 0) for sign in (1, -1)]
    sums = [int(layer(w.to(torch.uint8))) for w in worst]
    assert layer.bound == mac.bits_for(min(sums), max(sums))


def test_an_accumulator_that_may_overflow_is_refused_unless_it_may_wrap():
    q = quantized(network("linear2d")[0], noise(8, 6))
    with pytest.raises(ValueError, match='may need .* bits where accumulators have 8.*"wrap"'):
        minq.to_integer(q, accumulator_bits=8)
    rows = minq.to_integer(q, accumulator_bits=8, overflow="wrap").report(noise(8, 6))
    assert all(row.wrapped for row in rows if row.bound)


# --- The report -----------------------------------------------------------------------------------


def test_the_report_counts_what_happens():
    x = zoo.test_set("resnet_basic", 4)[0]
    q = quantized(zoo_graph("resnet_basic"), x / 2)  # narrow ranges, so that something is clipped
    net = minq.to_integer(q)
    report = net.report(x)
    layers = [row for row in report if row.cost is not None]
    assert [row.name for row in layers] == list(minq.graph.layers(q))
    assert sum(row.clipped for row in report) > 0
    trace = net.trace(x)
    assert sum(row.outputs for row in report) == sum(
        v.numel() for name, v in trace.items() if name != "x.quantizer"
    )
    assert "acc. bound" in str(report) and "blocks.0.add" not in str(report)
    first = layers[0]
    assert first.cost.macs == 4 * 16 * 27 * (first.outputs // 64)
    assert 2**30 <= first.multiplier[0] <= first.multiplier[1] < 2**31


def test_a_concatenation_is_rounded_piece_by_piece():
    q = quantized(network("concatenation")[0], noise(4, 3, 8, 8))
    rows = minq.to_integer(q).report(noise(4, 3, 8, 8))
    assert [row.name for row in rows[:2]] == ["a", "b"] and len(rows) == 3


# --- What is refused ------------------------------------------------------------------------------


def test_bad_networks_and_settings_are_refused():
    model, shape = network("linear2d")
    gm = minq.capture(model, noise(2, *shape))
    with pytest.raises(TypeError, match="network with quantizers is needed"):
        minq.to_integer(gm)
    with pytest.raises(TypeError, match="network with quantizers is needed, not Sequential"):
        minq.to_integer(model)
    q = quantized(model, noise(8, *shape))
    for settings, message in (
        ({"multipliers": "exact"}, "multipliers must be 'fixed' or 'float'"),
        ({"rounding": "down"}, "rounding must be"),
        ({"overflow": "saturate"}, "overflow must be"),
        ({"accumulator_bits": 33}, "accumulator_bits must be 2 to 32"),
        ({"multiplier_bits": 1}, "multiplier_bits must be 2 to 31"),
    ):
        with pytest.raises(ValueError, match=message):
            minq.to_integer(q, **settings)
    next(iter(quantizers(q).values())).observe()
    with pytest.raises(RuntimeError, match="still observes; call freeze"):
        minq.to_integer(q)


def test_a_network_in_training_is_refused():
    x = zoo.calibration_set("resnet_basic", 8)
    q = minq.qat.prepare(zoo_graph("resnet_basic"), x, batch_norm="dynamic")
    with pytest.raises(TypeError, match="still in training; call minq.qat.finish"):
        minq.to_integer(q)


def test_activations_with_a_scale_for_each_channel_are_refused():
    q = quantized(network("conv3d")[0], noise(4, 2, 4, 5, 5))
    name, quantizer = next(iter(activation_quantizers(q).items()))
    quantizer.scale.data = torch.full((2,), 0.1)
    quantizer.zero_point.data, quantizer.granularity = torch.zeros(2), Granularity(1)
    with pytest.raises(ValueError, match=f"{name} has 2 scales"):
        minq.to_integer(q)


def test_data_that_does_not_fit_is_refused():
    q = quantized(network("linear2d")[0], noise(8, 6))
    with pytest.raises(ValueError, match="has shape"):
        minq.to_integer(q).trace(noise(8, 5))
    assert weight_quantizers(q)
