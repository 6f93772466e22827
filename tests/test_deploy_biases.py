"""Biases of 2^31 steps of s_w s_x and more, where weights are next to nothing."""

import pytest
import torch
from integers import assert_same
from networks import Lambda, noise
from test_to_c import assert_equal, needs_gcc
from torch import nn
from torch.nn import functional as F

import minq
from minq.deploy.biases import wide_enough
from minq.quantizer import Quantizer
from minq.simulate import activation_quantizers
from minqbook.chip import toolchain

LAYERS = {  # a layer, its input, how many products an output sums, the axis of outputs or None
    "linear": (lambda: nn.Linear(4, 3), (4,), 4, 0),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), 18, 0),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5), 9, 0),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, 2), (4, 5, 5), 36, 1),
    "transposed, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (4, 5, 5), 18, None),
}


def quantized(model, x, **settings):
    rounding = minq.ptq.Nearest(correct_bias=False)
    return minq.ptq(model, x, rounding=rounding, equalize=False, progress=False, **settings)


def dead(name, per_channel=True):
    """A layer whose output 1 is all but its bias, -20; all of them where they share a scale."""
    make, shape, products, axis = LAYERS[name]
    layer, x = make(), noise(8, *shape)
    with torch.no_grad():
        tiny = layer.weight.select(axis, 1) if per_channel and axis is not None else layer.weight
        tiny.fill_(1e-12)
        layer.bias.copy_(noise(len(layer.bias)))
        layer.bias[1] = -20.0
    return nn.Sequential(layer), x, products


@torch.no_grad()
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_beyond_32_bits_widens_the_steps_of_weights(name, per_channel):
    """An output may be half a step away from its bias, and M |b| / 2^23 for the wider steps."""
    model, x, products = dead(name, per_channel)
    q = quantized(model, x, per_channel=per_channel)
    before = [v.clone() for v in (*q.parameters(), *q.buffers())]
    net = assert_same(q, x)
    assert all(map(torch.equal, before, (*q.parameters(), *q.buffers()))), "q is left alone"
    (layer,) = net.layers.values()
    assert 2**29 < layer.bias.long().abs().max() <= 2**30 + 2**8
    step = float([*activation_quantizers(q).values()][-1].scale_zero_point()[0])
    away = (net(x).select(1, 1) + 20).abs().max()
    assert away <= (0.5 + 1e-3) * step + products * 20 / 2**23


@torch.no_grad()
def test_layers_that_share_a_weight_share_its_wider_steps():
    """Only the second bias is beyond 32 bits."""
    weight = noise(4, 4)
    weight[0] = 1e-12
    model = Lambda(
        lambda m, x: F.linear(F.linear(x, m.w, m.a).relu(), m.w, m.b),
        w=nn.Parameter(weight), a=nn.Parameter(torch.tensor([1e-6, 0.5, 0.5, 0.5])),
        b=nn.Parameter(torch.tensor([20.0, 0.5, 0.5, 0.5])),
    )  # fmt: skip
    first, second = assert_same(quantized(model, noise(8, 4), per_channel=True), noise(8, 4)) \
        .layers.values()  # fmt: skip
    assert torch.equal(first.weight, second.weight)
    assert max(m.bias.long().abs().max() for m in (first, second)) <= 2**30 + 2**8


def test_steps_that_are_powers_of_two_stay_so():
    quantizer = Quantizer(8, signed=True, symmetric=True, power_of_two=True, axis=0)
    quantizer.set_range(*torch.tensor([[-1.0, -1e-12], [1.0, 1e-12]])).freeze()
    wider = wide_enough(quantizer, torch.tensor([0.1, 0.1]), 0.75).scale
    assert wider[0] == quantizer.scale[0] and wider[1].log2() % 1 == 0
    assert 1 <= wider[1] / (0.1 / (2**30 * 0.75)) < 2


@needs_gcc
@torch.no_grad()
def test_c_computes_such_biases(tmp_path):
    """In 32 bits: the sanitizers see no overflow."""
    (groups,), x, _ = dead("groups")
    (linear,), *_ = dead("linear")
    model = Lambda(lambda m, x: m.b(m.a(x).mean((2, 3))[:, 1:5]), a=groups, b=linear)
    net = minq.to_integer(quantized(model, x, per_channel=True))
    files = minq.to_c(net, tmp_path)
    program = toolchain.build(files, tmp_path / "made", flags=toolchain.SANITIZERS)
    assert_equal(net, files, program, x.split(1))
