"""Scales of channels by expected noise."""

import pytest
import torch
from torch import nn

import minq
from minq.ptq.balance import Balance, Reader, balance, descend
from minq.ptq.rounding import Nearest


def _net(seed=0):
    """An inverted residual between two layers, its hidden channels of very different size."""
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.expand, self.project = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
            self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x))))
            return self.head((x + self.project(y)).mean((2, 3)))

    net = Net().eval()
    sizes = torch.logspace(-1, 1, 16)
    net.depthwise.weight.data *= sizes.reshape(-1, 1, 1, 1)
    net.project.weight.data /= sizes.reshape(1, -1, 1, 1)
    return net, torch.randn(8, 3, 12, 12)


def _reader(groups=1, outputs=4, inputs=6, places=3, rows=50):
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(groups, outputs, inputs, places, generator=g)
    x = torch.randn(rows, groups, inputs, places, generator=g)
    x = x * torch.logspace(-1, 1, groups * inputs).reshape(groups, inputs, 1)
    square = x.square().mean((0, 3)).flatten()
    return Reader(weight, square, x.abs().amax((0, 3)).flatten(), 2.0), x


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_noise_is_what_a_uniform_error_of_one_step_makes(groups, per_channel):
    r, x = _reader(groups)
    g = torch.Generator().manual_seed(2)
    a = torch.randn(len(r.square), generator=g) / 2
    b = torch.randn(r.weight.shape[0] * r.weight.shape[1], generator=g) / 2
    columns, rows = a.reshape(groups, 1, -1, 1).exp(), b.reshape(groups, -1, 1, 1).exp()
    scaled, x_scaled = r.weight * columns / rows, x / columns.transpose(0, 1).reshape(groups, -1, 1)
    sizes = scaled.abs().amax((2, 3), keepdim=True)
    step = (sizes if per_channel else sizes.amax()) / 7
    weights = activations = 0.0
    step_x = x_scaled.abs().max() / 255
    for _ in range(300):
        e = (torch.rand(scaled.shape, generator=g) - 0.5) * step * rows
        weights += torch.einsum("goip,ngip->ngo", e, x_scaled).square().sum((1, 2)).mean() / 300
        e = (torch.rand(x.shape, generator=g) - 0.5) * step_x
        seen = torch.einsum("goip,ngip->ngo", scaled * rows, e)
        activations += seen.square().sum((1, 2)).mean() / 300
    for bits, expected in (((4, None), weights), ((None, 8), activations)):
        noise = r.noise(a, b, *bits, per_channel, exact=True)
        assert float(noise) == pytest.approx(float(expected) / 2.0, rel=0.1)
        smooth = r.noise(a, b, *bits, per_channel)  # the p-norm of n is up to n^(1/p) larger
        assert noise <= smooth * (1 + 1e-4) and smooth <= noise * 24 ** (2 / 16)


def test_descent_finds_the_best_scales_of_two_channels():
    r, _ = _reader(inputs=2)
    b = torch.zeros(4)

    def total(logs, exact):
        return r.noise(logs[0], b, 4, 6, True, exact)

    (found,) = descend([torch.zeros(2)], total)
    line = torch.linspace(-4, 4, 401)
    best = min(float(total([torch.stack([v / 2, -v / 2])], True)) for v in line)  # a common factor
    assert float(total([found], True)) < 1.05 * best < float(total([torch.zeros(2)], True))


def test_nothing_moves_where_that_would_cost():
    start = [torch.zeros(2)]  # the smooth total falls to the left, the exact one to the right

    def total(logs, exact):
        return (-logs[0] if exact else logs[0]).exp().sum()

    assert torch.equal(descend(start, total)[0], start[0])


@pytest.mark.parametrize("bits", [(4, 8), (8, 8), (8, None), (None, 8)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_function_stays(per_channel, bits):
    net, x = _net()
    gm = minq.capture(net, x)
    before = gm.state_dict()["project.weight"].clone()
    balance(gm, [[x]], *bits, per_channel=per_channel)
    assert minq.sqnr(net(x), gm(x)) > 100
    assert not torch.equal(before, gm.get_parameter("project.weight"))


def test_relu6_can_be_kept():
    net, x = _net()
    gm = minq.capture(net, x)
    balance(gm, [[x]], 4, 8, per_channel=True, relu6="keep")
    assert torch.equal(gm.get_parameter("depthwise.weight"), net.depthwise.weight)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_network_with_uneven_channels_gains(per_channel):
    net, x = _net()
    db = {}
    for equalize in (False, Balance()):
        q = minq.ptq(
            net, [x], weights=4, per_channel=per_channel, equalize=equalize,
            rounding=Nearest(correct_bias=False), progress=False,
        )  # fmt: skip
        db[bool(equalize)] = minq.sqnr(net(x), q(x))
    assert db[True] > db[False] + 3
