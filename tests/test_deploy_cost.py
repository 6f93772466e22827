"""What a network costs: shapes against torch, cycles against the machine, bytes against hooks."""

import copy
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Attention, Lambda, captured, mobile, noise, settle, tied, zoo_graph
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import minq
from minq import graph
from minq.deploy.cost import latency, layer_costs, roofline
from minq.deploy.products import shapes_of
from minq.mac import (
    MEMORY,
    MacArray,
    access_energy,
    conv_as_matmul,
    layer_cost,
    zero_point_operations,
)
from minq.simulate import quantizers
from minqbook import zoo


def torch_macs(model, *x):
    """Oracle: multiplications as torch counts them while the model runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*x)
    return counter.get_total_flops() // 2


def total(costs, name="macs"):
    return sum(getattr(cost, name) for cost in costs.values())


def quantized(model, x, **settings):
    return minq.insert_quantizers(minq.capture(model, x), **settings)


def only(costs):
    (cost,) = costs.values()
    return cost


# --- Multiplications ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_real_networks_multiply_as_often_as_torch_counts(name):
    model = getattr(torchvision.models, name)().eval()
    gm = minq.fold_batch_norms(minq.capture(model, torch.zeros(2, 3, 64, 64)))
    for batch in (1, 3):
        x = torch.zeros(batch, 3, 64, 64)
        assert total(layer_costs(gm, x)) == torch_macs(model, x)
    assert list(layer_costs(gm)) == list(graph.layers(gm))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_small_networks_multiply_as_often_as_torch_counts(name):
    model, x = zoo.load(name), zoo.calibration_set(name, 2)
    gm = zoo_graph(name)
    costs = layer_costs(gm, x)
    assert total(costs) == torch_macs(model, x) and set(graph.layers(gm)) <= set(costs)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_operator_multiplies_as_often_as_torch_counts(name):
    model, gm, shape = captured(name)
    x = noise(3, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        costs = layer_costs(gm, x)
    fused = [isinstance(m, nn.MultiheadAttention) for m in model.modules()]
    assert total(costs) == torch_macs(gm if any(fused) else model, x)
    integers = layer_costs(minq.insert_quantizers(gm), x)
    assert list(costs) == list(integers) and total(integers) == total(costs)


@st.composite
def convolutions(draw):
    """A convolution of one to three dimensions and an input for it."""
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    few = st.integers(1, 3)
    kernel, stride, dilation = (draw(st.tuples(*[few] * dims)) for _ in range(3))
    padding = tuple(
        draw(st.integers(0, (k - 1) * d)) for k, d in zip(kernel, dilation, strict=True)
    )
    channels = [groups * draw(few) for _ in range(2)]
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")
    layer = kind(*channels, kernel, stride, padding, groups=groups, dilation=dilation,
                 bias=draw(st.booleans()))  # fmt: skip
    size = [(k - 1) * d + 1 + draw(few) for k, d in zip(kernel, dilation, strict=True)]
    return layer, torch.zeros(draw(few), channels[0], *size)


@settings(max_examples=25)
@given(convolutions())
def test_any_convolution_multiplies_as_often_as_torch_counts(convolution):
    layer, x = convolution
    cost = only(layer_costs(minq.capture(nn.Sequential(layer), x), x))
    assert cost.macs == torch_macs(layer, x)
    n, m, batch, groups = cost.shape
    assert cost.macs == n * m * batch * groups and cost.kind == type(
        layer
    ).__name__.lower().replace("convtranspose", "conv_transpose")
    if isinstance(layer, nn.Conv2d):
        sizes = x.shape[1], layer.out_channels, layer.kernel_size, tuple(x.shape[2:])
        assert cost.shape == conv_as_matmul(
            *sizes, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
            groups=layer.groups, batch=len(x),
        )  # fmt: skip


@pytest.mark.parametrize(
    "left, right, shape",
    [
        ((5, 6), (2, 6, 4), (4, 6, 5, 2)),
        ((2, 3, 5, 6), (6, 4), (4, 6, 30, 1)),
        ((2, 3, 5, 6), (3, 6, 4), (4, 6, 10, 3)),
        ((2, 1, 5, 6), (2, 3, 6, 4), (4, 6, 5, 6)),
        ((2, 5, 6), (6,), (1, 6, 10, 1)),
        ((6,), (2, 6, 4), (4, 6, 1, 2)),
    ],
)
def test_products_of_any_shape(left, right, shape):
    """By hand: N, M and B of each matrix, and how many matrices; torch agrees on the product."""
    model = Lambda(lambda m, a, b: torch.matmul(a, b))
    gm = minq.capture(model, (torch.zeros(left), torch.zeros(right)), dynamic_batch=False)
    cost = only(layer_costs(gm))
    assert cost.shape == shape and list(layer_costs(gm)) == ["matmul"]
    columns = torch.zeros(right)[:, None] if len(right) == 1 else torch.zeros(right)
    assert cost.macs == math.prod(shape) == torch_macs(model, torch.zeros(left), columns)


def test_a_parameter_stays_in_the_array_on_either_side():
    for function, *size in (
        (lambda m, x: x @ m.w, 6, 4),
        (lambda m, x: m.w @ x.transpose(1, 2), 4, 6),
    ):
        model = Lambda(function, w=nn.Parameter(torch.randn(size)))
        gm = quantized(model, torch.zeros(2, 5, 6), weights=4)
        cost = only(layer_costs(gm, torch.zeros(3, 5, 6)))
        assert cost.shape == (4, 6, 15, 1) and cost.bytes["weights"] == 24 * 4 / 8
        # Its zero-points are known: the input's becomes a bias, and nothing is left to do.
        assert cost.energy["zero_point"] == 0 and cost.bytes["bias"] == 4 * 4


def test_attention_pays_for_the_zero_points_of_both_operands():
    gm = quantized(Attention().eval(), torch.ones(2, 6, dtype=torch.int64))
    costs = layer_costs(gm)
    products = [cost for cost in costs.values() if cost.kind == "matmul"]
    for cost in products:
        n, m, batch, groups = cost.shape
        pairs = ((n, batch), (batch, n))
        work = [zero_point_operations(a, m, b) for a, b in pairs]
        joules = sum(0.1 * k["additions"] + 3.1 * k["multiplications"] for k in work) * 1e-12
        assert cost.energy["zero_point"] == pytest.approx(groups * joules)
        assert cost.bytes["bias"] == 0 and cost.dram_bytes == 0 and cost.intensity == math.inf
        assert cost.energy["weights"] == access_energy(8 * groups * n * m, MEMORY["inputs"])
    assert len(products) == 2
    symmetric = quantized(Attention().eval(), torch.ones(2, 6, dtype=torch.int64), symmetric=True)
    assert not any(cost.energy["zero_point"] for cost in layer_costs(symmetric).values())


def test_an_embedding_fetches_rows_and_multiplies_nothing():
    gm = quantized(tied(), torch.ones(2, 5, dtype=torch.int64), weights=4)
    cost = layer_costs(gm, torch.ones(3, 5, dtype=torch.int64))["head"]
    assert (cost.macs, cost.cycles, cost.shape, cost.kind) == (0, 0, None, "embedding")
    assert {k: v for k, v in cost.bytes.items() if v} == {"weights": 30, "outputs": 30}
    assert cost.dram_bytes == 30 and cost.latency() == 2 and cost.bound() == "memory"
    assert cost.total_energy == pytest.approx(3 * 5 * 4 * 4 / 64 * 1400e-12)


# --- Cycles ---------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(convolutions(), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_the_machine_itself_takes_as_many_cycles(convolution, rows, columns, double):
    """One group after the other on the array, a cycle at a time, patches from torch's unfold."""
    layer, x = convolution
    if not isinstance(layer, nn.Conv2d):
        return
    array = MacArray(rows, columns, double_buffer=double)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    vectors = patches.transpose(1, 2).flatten(0, 1).tensor_split(layer.groups, 1)
    weights = layer.weight.flatten(1).tensor_split(layer.groups)
    cycles = [
        sum(1 for _ in array.trace(np.ones(w.shape, int), np.ones(v.shape, int)))
        for w, v in zip(weights, vectors, strict=True)
    ]
    assert only(layer_costs(minq.capture(nn.Sequential(layer), x), x, array=array)).cycles == sum(
        cycles
    )


# --- Bytes and joules -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (3, 5), (None, None)])
def test_a_layer_alone_costs_what_layer_cost_says(bits):
    """Nothing is counted a second way: without spilling it is the same to the last digit."""
    for layer, x in (
        (nn.Conv2d(4, 6, 3, 2, groups=2), torch.zeros(3, 4, 9, 9)),
        (nn.Linear(7, 5), torch.zeros(3, 4, 7)),
    ):
        gm = quantized(nn.Sequential(layer), x, weights=bits[0], activations=bits[1])
        cost = only(layer_costs(gm, x, array=MacArray(4, 4)))
        w, a = (b or 32 for b in bits)
        kwargs = dict(weight_bits=w, activation_bits=a, floating=bits[0] is None)
        alone = layer_cost(**cost.shape._asdict(), array=MacArray(4, 4), **kwargs)
        assert cost.bytes == alone.bytes | {"spilled": 0}
        assert cost.energy == alone.energy | {"spilled": 0.0}
        assert (cost.macs, cost.cycles) == (alone.macs, alone.cycles)
        assert (cost.weight_bits, cost.activation_bits) == (w, a)


def tensor_sizes(model, x):
    """Oracle: {layer: (words of its input, words of its output)}, from hooks in the real model."""
    found, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):

            def hook(module, inputs, output, name=name):
                found[name] = inputs[0].numel(), output.numel()

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("bits, floating", [(8, False), (4, False), (8, True)])
def test_dram_delivers_parameters_once_and_large_tensors_once_for_each_reader(bits, floating):
    model, on_chip = settle(mobile(width=12)), 2000
    modules, x = dict(model.named_modules()), noise(4, 3, 16, 16)
    gm = minq.fold_batch_norms(minq.capture(model, x))
    gm = minq.insert_quantizers(gm, weights=bits, activations=bits)
    costs = layer_costs(gm, x, on_chip=on_chip, floating=floating)
    width, spilled = 32 if floating else bits, []
    for name, words in tensor_sizes(model, x).items():
        large = [math.ceil(n * width / 8) for n in words if n * width / 8 > on_chip / 2]
        weight = modules[name].weight
        parameters = math.ceil(weight.numel() * width / 8) + 4 * len(weight)
        assert costs[name].dram_bytes == parameters + sum(large)
        assert costs[name].bytes["spilled"] == sum(large)
        assert costs[name].energy["spilled"] == access_energy(8 * sum(large), "dram")
        assert costs[name].intensity == costs[name].macs / (parameters + sum(large))
        spilled.append(sum(large))
    assert any(spilled) and not all(spilled)


def test_a_memory_of_half_a_tensor_more_or_less():
    """It stays where twice its size is: 100 words of 8 bits in 200 bytes, not in 199."""
    gm = quantized(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.zeros(2, 1, 10, 10))
    spilled = [only(layer_costs(gm, on_chip=size)).bytes["spilled"] for size in (200, 199)]
    assert spilled == [0, 200]


def test_memories_can_be_named():
    gm = quantized(nn.Sequential(nn.Conv2d(2, 3, 3)), torch.zeros(2, 2, 10, 10))
    near = only(layer_costs(gm, memory={"weights": "sram_1m", "bias": "sram_8k"}))
    assert near.dram_bytes == 0 and near.energy["weights"] == access_energy(54 * 8, "sram_1m")
    # Without a memory in between, each patch comes from DRAM whole, and nothing is spilled.
    far = only(layer_costs(gm, memory={"inputs": "dram", "outputs": "dram"}, on_chip=1))
    assert far.dram_bytes == 54 + 12 + 18 * 64 + 3 * 64 and far.bytes["spilled"] == 0
    with pytest.raises(ValueError, match="memory must be one of"):
        layer_costs(gm, memory={"weights": "disk"})
    with pytest.raises(ValueError, match="may only name"):
        layer_costs(gm, memory={"weight": "dram"})


def test_what_a_transposed_convolution_adds_up_waits_outside_the_array():
    """3 x 3 inputs spread over 2 x 2 pixels each, without and with overlap."""
    for stride, size in ((2, 6), (1, 4)):
        layer = nn.ConvTranspose2d(2, 5, 2, stride)
        gm = quantized(nn.Sequential(layer), torch.zeros(2, 2, 3, 3))
        cost = only(layer_costs(gm))
        assert cost.shape == (20, 2, 9, 1) and cost.bytes["outputs"] == 5 * size**2
        assert cost.bytes["partial_sums"] == 2 * 4 * (20 * 9 - 5 * size**2)
        assert cost.energy["requantize"] == pytest.approx(5 * size**2 * 3.2e-12)
        assert cost.bytes["bias"] == 4 * 5


def test_bits_come_from_the_quantizers_around_a_layer():
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    settings = {"2": {"weights": 3, "activations": 4}}
    costs = layer_costs(quantized(model, torch.zeros(2, 6), weights=6, layers=settings))
    found = [(c.weight_bits, c.activation_bits, c.bytes["outputs"]) for c in costs.values()]
    assert found == [(6, 8, 7), (3, 8, 3), (6, 4, 3)]  # 5 outputs of 4 bits are 3 bytes
    # What only moves values, or scales all of them, leaves them on their grid.
    layers = dict(a=nn.Linear(6, 4), b=nn.Linear(4, 3))
    moved = Lambda(lambda m, x: m.b((m.a(x) * 0.5).flip(1)), **layers)
    (_, cost) = layer_costs(quantized(moved, torch.zeros(2, 6), activations=5)).values()
    assert cost.activation_bits == 5 and cost.energy["requantize"] > 0
    # A skipped layer computes in FP32, and reads what the layer before has left.
    costs = layer_costs(quantized(model, torch.zeros(2, 6), skip=["2"]))
    float_, before = costs["2"], costs["0"]
    assert (float_.weight_bits, float_.activation_bits) == (32, 8)
    assert float_.energy["multiply"] == pytest.approx(35 * 3.7e-12)
    assert float_.energy["requantize"] == 0 and before.energy["requantize"] > 0
    # Weights alone in 4 bits: fewer bytes, the same arithmetic.
    cost = layer_costs(quantized(model, torch.zeros(2, 6), weights=4, activations=None))["0"]
    assert cost.bytes["weights"] == 21 and cost.energy["multiply"] == pytest.approx(42 * 3.7e-12)


def test_zero_points_of_weights_cost_and_floats_have_none():
    gm = quantized(nn.Sequential(nn.Linear(6, 4)), torch.zeros(2, 6))
    for name, q in quantizers(gm).items():
        if "weight" in name:
            q.symmetric = False
    cost = only(layer_costs(gm))
    assert cost.energy["zero_point"] == pytest.approx((9 * 0.1 + 3.1) * 1e-12)
    assert only(layer_costs(gm, floating=True)).energy["zero_point"] == 0


def test_a_bias_is_where_there_is_one_or_a_zero_point_makes_one():
    x = torch.zeros(2, 6)
    for bias, symmetric, floating, size in (
        (True, True, False, 16), (False, False, False, 16), (False, True, False, 0),
        (True, False, True, 16), (False, False, True, 0),
    ):  # fmt: skip
        gm = quantized(nn.Sequential(nn.Linear(6, 4, bias=bias)), x, symmetric=symmetric)
        assert only(layer_costs(gm, floating=floating)).bytes["bias"] == size


# --- The roofline ---------------------------------------------------------------------------------


def test_the_roofline_is_a_slope_and_a_flat_top():
    array = MacArray(8, 4)
    assert [roofline(i, array, 4) for i in (0, 1, 8, 9, math.inf)] == [0, 4, 32, 32, 32]


@settings(max_examples=20)
@given(convolutions(), st.integers(1, 64), st.integers(1, 4000), st.integers(1, 8))
def test_no_layer_is_above_the_roof_and_the_slower_side_decides(convolution, bandwidth, chip, side):
    layer, x = convolution
    array = MacArray(side, side, double_buffer=True)
    gm = quantized(nn.Sequential(layer), x)
    cost = only(layer_costs(gm, x, array=array, on_chip=chip))
    assert cost.macs / cost.latency(bandwidth) <= roofline(cost.intensity, array, bandwidth) * (
        1 + 1e-12
    )
    memory = math.ceil(cost.dram_bytes / bandwidth)
    assert cost.latency(bandwidth) == max(cost.cycles, memory)
    assert cost.bound(bandwidth) == ("memory" if memory > cost.cycles else "compute")


@settings(max_examples=10)
@given(convolutions(), st.integers(1, 2000))
def test_less_memory_slower_memory_and_more_bits_never_help(convolution, chip):
    layer, x = convolution
    gm = quantized(nn.Sequential(layer), x, weights=4, activations=4)
    narrow, chips = layer_costs(gm, x, on_chip=chip), (chip, 2 * chip, 10**9)
    wide = only(layer_costs(gm, x, on_chip=chip, floating=True)).bytes
    assert all(size <= wide[kind] or kind == "bias" for kind, size in only(narrow).bytes.items())
    for a, b in pairwise([layer_costs(gm, x, on_chip=c) for c in chips]):
        assert total(a, "dram_bytes") >= total(b, "dram_bytes")
        assert total(a, "total_energy") >= total(b, "total_energy") and latency(a) >= latency(b)
    assert (
        latency(narrow, 1) >= latency(narrow, 2) >= latency(narrow, 1e9) == total(narrow, "cycles")
    )
    assert total(layer_costs(gm, x, floating=True), "macs") == total(narrow, "macs")


def test_a_batch_shares_the_weights():
    gm = quantized(nn.Sequential(nn.Linear(100, 100)), torch.zeros(2, 100))
    one, many = (only(layer_costs(gm, torch.zeros(b, 100))) for b in (1, 40))
    assert one.dram_bytes == many.dram_bytes == 10_000 + 400
    assert many.intensity == 40 * one.intensity and many.macs == 40 * one.macs
    assert (one.bound(8), many.bound(8)) == ("memory", "compute")


# --- The graph ------------------------------------------------------------------------------------


def test_names_are_those_of_layers_and_products():
    _, gm, _ = captured("attention")
    layers = graph.layers(gm)
    products = [n for n in gm.graph.nodes if graph.traits(n).role == "product"]
    names = list(layer_costs(gm))
    assert set(layers) <= set(names) and {graph.place(n) for n in products} <= set(names)
    assert len(names) == len(layers) + len(products)
    for name in ("shared convolution", "residual"):
        _, gm, _ = captured(name)
        names = list(layer_costs(gm))
        calls = [n for n in gm.graph.nodes if graph.is_layer(n)]
        assert len(names) == len(calls) and set(graph.layers(gm)) <= set(names)
    assert list(layer_costs(captured("shared convolution")[1])) == ["conv", "conv_1"]


def test_shapes_are_those_of_the_running_network_and_nothing_is_touched():
    for name in ("transposed", "pooling", "encoder", "split", "two results"):
        _, gm, shape = captured(name)
        gm = minq.insert_quantizers(gm)
        for q in quantizers(gm).values():
            q.observe()
        before = {n: n.meta["val"] for n in gm.graph.nodes if "val" in n.meta}
        state = copy.deepcopy(gm.state_dict())
        x, seen = noise(3, *shape), {}

        class Watch(torch.fx.Interpreter):
            def run_node(self, node, seen=seen):
                value = super().run_node(node)
                if isinstance(value, torch.Tensor):
                    seen[node] = value.shape
                return value

        found = shapes_of(gm, x)
        assert {n: n.meta["val"] for n in gm.graph.nodes if "val" in n.meta} == before
        after = gm.state_dict()
        assert all(torch.equal(v, after[k]) for k, v in state.items() if torch.is_tensor(v))
        Watch(gm).run(x, enable_io_processing=False)
        assert found == seen
        (x,) = (n for n in gm.graph.nodes if n.op == "placeholder")
        assert shapes_of(gm)[x] == (1, *shape)


def test_bad_input():
    gm = minq.capture(nn.Linear(6, 4), torch.zeros(2, 6))
    with pytest.raises(TypeError, match="minq.capture"):
        layer_costs(nn.Linear(6, 4))
    with pytest.raises(ValueError, match="captured with"):
        layer_costs(gm, torch.zeros(2, 7))
    for on_chip, error in ((0, ValueError), (1e6, TypeError)):
        with pytest.raises(error, match="on_chip"):
            layer_costs(gm, on_chip=on_chip)
    with pytest.raises(ValueError, match="bytes_per_cycle"):
        latency(layer_costs(gm), 0)


def test_what_multiplies_and_is_not_counted_is_named():
    model = Lambda(lambda m, x: m.b(m.a(x), x), a=nn.Linear(6, 4), b=nn.Bilinear(4, 6, 3))
    gm = minq.capture(model, torch.zeros(2, 6))
    with pytest.warns(UserWarning, match="do not count bilinear"):
        assert list(layer_costs(gm)) == ["a"]
