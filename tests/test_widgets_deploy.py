"""TwoPaths in Python: integers and floats give what torch, whole numbers and fractions give."""

import copy
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import pytest

pytest.importorskip("anywidget")
pytest.importorskip("torch")
import torch
import traitlets
from networks import network, noise
from torch.nn import functional as F

import minq
from minq import graph
from minq.mac import fixed_point_multiplier
from minqbook import zoo
from minqbook.widgets import TwoPaths
from minqbook.widgets.two_paths import FLOATS

CASES = {
    "conv2d": {},  # stride 2, no padding, no activation
    "grouped": {"per_channel": True},
    "mobile": {"activations": 5},  # a stem, a depthwise and a pointwise layer, ReLU6, linear
    "mobile per channel": {"per_channel": True, "weights": 4},
    "residual": {"symmetric": True, "equalize": False},  # signed activations
    "linear2d": {"equalize": False},  # Hardtanh
}


@cache
def quantized(case):
    """A quantized network, an input, and the names of layers that TwoPaths can show."""
    model, shape = network(case.split(" per ")[0])
    data = noise(16, *shape)
    q = minq.ptq(model, data, rounding="nearest", progress=False, **CASES[case])
    names = []
    for name in graph.layers(q):
        try:
            TwoPaths(q, data[:1], [name])
            names.append(name)
        except ValueError as error:
            assert "right behind it" in str(error)
    return q, data[:1], names


def inside(q, picture):
    """Every value of the network by its node."""
    values = {}

    class Record(torch.fx.Interpreter):
        def run_node(self, node):
            values[node] = super().run_node(node)
            return values[node]

    with torch.no_grad():
        Record(q).run(picture)
    return values


def around(q, name):
    """A layer's node, the quantizers of its weight and output, and the function between."""
    node = graph.layers(q)[name]
    after = next(iter(node.users))
    act = None if after.op == "call_module" else after
    after = next(iter(act.users)) if act is not None else after
    return node, q.get_submodule(node.args[1].target), q.get_submodule(after.target), act, after


@pytest.mark.parametrize("case", CASES)
def test_the_simulation_is_torchs_and_the_device_equals_it(case):
    """In float64, with the biases on the accumulator's grid, nothing is left to chance."""
    q, picture, names = quantized(case)
    assert names
    values = inside(q, picture)
    w = TwoPaths(q, picture, names, floats="double")
    for w.layer, name in enumerate(names):
        node, q_w, q_y, act, after = around(q, name)
        s_x, s_w = w.layers[w.layer]["s_x"], np.array(w.layers[w.layer]["s_w"])
        x = values[node.args[0]].double()
        weight = values[node.args[1]].double()
        bias = graph.bias_of(q, node)
        unit = torch.tensor(s_w * s_x)
        b = None if bias is None else (bias.double() / unit).round() * unit
        rest = node.args[3:]
        y = F.linear(x, weight, b) if weight.ndim == 2 else F.conv2d(x, weight, b, *rest)
        if act is not None:
            rest = [values.get(a, a) if hasattr(a, "op") else a for a in act.args[1:]]
            y = act.target(y, *rest, **act.kwargs)
        oracle = q_y.quantize(y)[0].numpy().reshape(w.device().shape)
        assert np.array_equal(w.simulated(), oracle)
        assert np.array_equal(w.device(), oracle)
        # The network itself leaves its biases in float: one step apart, and only where a tie is
        # as near as the bias moved; single precision adds less than 0.01 of a step.
        own = q_y.quantize(values[after])[0].numpy().reshape(oracle.shape)
        steps = (y / q_y.scale).numpy().reshape(oracle.shape)
        moved = 0 if bias is None else abs(b - bias).reshape(-1, 1, 1).numpy() / float(q_y.scale)
        assert np.abs(own - oracle).max() <= 1
        assert (abs(steps - np.floor(steps) - 0.5) <= moved + 0.01)[own != oracle].all()


def by_whole_numbers(w):
    """The chosen layer's outputs from Python's own integers and fractions, and how many ties."""
    layer, (x, weight) = w.layers[w.layer], w._integers
    x = torch.tensor(x - layer["z_x"])[None].long()
    rest = (layer[k] for k in ("stride", "padding", "dilation", "groups"))
    acc = F.conv2d(x, torch.tensor(weight).long(), None, *rest)[0].numpy()
    y, ties = np.zeros(acc.shape, int), 0
    for o, r, c in np.ndindex(y.shape):
        s_w = layer["s_w"][o % len(layer["s_w"])]
        low, high = layer["range"][o % len(layer["range"])]
        multiplier, shift = fixed_point_multiplier(s_w * layer["s_x"] / layer["s_y"])
        exact = Fraction((int(acc[o, r, c]) + layer["bias"][o]) * multiplier, 2**shift)
        y[o, r, c] = min(max(round(exact) + layer["z_y"], low), high)
        ties += exact.denominator == 2 and low < y[o, r, c] < high
    return y, ties


@pytest.mark.parametrize("case", ["conv2d", "mobile per channel", "residual"])
def test_the_device_computes_with_whole_numbers_alone(case):
    """The sum, the multiplier, the shift, the clamp."""
    q, picture, names = quantized(case)
    w = TwoPaths(q, picture, names)
    for w.layer in range(len(names)):
        assert np.array_equal(w.device(), by_whole_numbers(w)[0])


def test_scales_that_are_powers_of_two_give_ties_and_single_precision_is_exact():
    q, picture, names = quantized("mobile per channel")  # 4-bit weights: long steps, many ties
    q = copy.deepcopy(q)
    for quantizer in minq.quantizers(q).values():
        quantizer.scale.data = quantizer.scale.log2().ceil().exp2()
    w, ties = TwoPaths(q, picture, names), 0
    for w.layer in range(len(names)):
        y, met = by_whole_numbers(w)
        ties += met
        assert np.array_equal(w.device(), y)
        for w.floats in ("double", "single"):
            assert np.array_equal(w.simulated(), y)
    assert ties > 5


def test_lesser_floats_differ_only_near_ties():
    """Not farther from a tie than k + 8 roundings of size u can carry a sum of k products."""
    differ = {"single": 0, "half": 0}
    for case in CASES:
        q, picture, names = quantized(case)
        w = TwoPaths(q, picture, names)
        for (w.layer, _), w.floats in product(enumerate(names), differ):
            layer, (x, weight) = w.layers[w.layer], w._integers
            off = w.device() != w.simulated()
            differ[w.floats] += off.sum()
            info, k = np.finfo(FLOATS[w.floats]), weight[0].size
            unit = (np.array(layer["s_w"]) * layer["s_x"])[:, None, None]
            b = np.reshape(layer["bias"], (-1, 1, 1))

            def convolve(x, weight, layer=layer):
                x, weight = (torch.tensor(v).double() for v in (x, weight))
                rest = (layer[k] for k in ("stride", "padding", "dilation", "groups"))
                return F.conv2d(x[None], weight, None, *rest)[0].numpy()

            steps = unit / layer["s_y"] * (convolve(x - layer["z_x"], weight) + b)
            size = unit * (convolve(abs(x - layer["z_x"]), abs(weight)) + abs(b))
            error = (k + 8) * info.eps / 2 * size + 8 * k * float(info.smallest_subnormal)
            to_tie = abs(steps - np.floor(steps) - 0.5)
            assert (to_tie <= 1.1 * error / layer["s_y"])[off].all()
    # Half precision's roundings are 2^13 times as large: some of them are seen.
    assert 10 * differ["single"] < differ["half"] > 10


@cache
def small():
    q, picture, names = quantized("mobile")
    return TwoPaths(q, picture, {name: f"layer {i}" for i, name in enumerate(names)})


def test_what_travels():
    w = small()
    sizes = [np.prod(m["in"]) + np.prod(m["kernel"]) for m in w.layers]
    assert len(w.data) == sum(sizes)
    assert [m["at"] for m in w.layers] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert [m["title"] for m in w.layers] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert [w.channel, w.row, w.column, w.term] == w.layers[0]["start"]
    q, picture, names = quantized("mobile")
    last = TwoPaths(q, picture, names[-1:])
    assert last.device().shape == (5, 1, 1) and last.channel == last.device().argmax()
    assert repr(TwoPaths(q, picture, names, layer=1, channel=2, row=3, column=1)) == (
        "TwoPaths(layer=1, channel=2, row=3, column=1, floats='single')"
    )
    assert TwoPaths(q, picture, names[1:2]).layers[0]["limits"][0][0] == 0.0  # ReLU6, equalized


def test_text_stands_for_the_picture():
    w = small()
    assert w._repr_mimebundle_()[0]["text/plain"] == f"{w!r}\n{w.alt}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": []}, "empty"),
        ({"layers": ["nowhere"]}, "no layer is called 'nowhere'"),
        ({"picture": noise(2, 3, 8, 8)}, "pass one picture"),
        ({"layer": 4}, "from 0 to 3"),
        ({"channel": 6}, "channel must be from 0 to 5"),
        ({"row": 4}, "row must be from 0 to 3"),
        ({"term": 27}, "term must be from 0 to 26"),
        ({"floats": "quarter"}, "floats"),
    ],
)
def test_refuses(change, says):
    q, picture, names = quantized("mobile")
    arguments = {"picture": picture, "layers": names} | change
    with pytest.raises((ValueError, traitlets.TraitError), match=says):
        TwoPaths(q, **arguments)


@pytest.mark.parametrize(
    ("case", "how", "says"),
    [
        ("conv1d", {}, "is a conv1d"),
        ("dilated", {}, "is a word"),
        ("plain batch norm", {}, "right behind it"),  # LeakyReLU is no clamp
        ("conv2d", {"weights": None}, "needs a quantizer"),
        ("conv2d", {"activations": 12}, "more than 8 bits"),
    ],
)
def test_refuses_layers(case, how, says):
    model, shape = network(case)
    q = minq.ptq(model, noise(8, *shape), rounding="nearest", progress=False, **how)
    with pytest.raises(ValueError, match=says):
        TwoPaths(q, noise(1, *shape), list(graph.layers(q))[:1])


def test_refuses_a_network_that_is_not_quantized():
    with pytest.raises(TypeError, match="minq.ptq"):
        TwoPaths(network("mobile")[0], noise(1, 3, 8, 8), ["0"])


def test_a_network_of_the_zoo():
    """The page of chapter 5: light, in agreement in single precision, and not in half."""
    data = zoo.calibration_set("mobilenet_v2", 8)
    how = {"rounding": "nearest", "activation_range": "min_max", "weight_range": "min_max"}
    q = minq.ptq(zoo.load("mobilenet_v2"), data, progress=False, **how)
    names = ["stem.0", "blocks.1.depthwise.0", "blocks.1.project.0", "classifier"]
    w = TwoPaths(q, data[:1], names)
    assert len(w.data) * 4 / 3 + len(w._esm) + len(w._css) < 150_000
    for w.layer in range(4):
        device = w.device()
        w.floats = "single"
        assert np.sum(device != w.simulated()) <= 1
    assert w.layers[0]["z_x"] > 0 == w.layers[1]["z_x"]
    w.layer, w.floats = 1, "half"
    assert np.sum(w.device() != w.simulated()) > 10
