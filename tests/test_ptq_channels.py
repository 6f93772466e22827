"""Equalization and absorption on whole networks: the function stays, ranges meet, and what must
not be scaled is left alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Lambda, Residual, mobile, noise, settle
from torch import nn

import minq
from minq import graph
from minq.ptq.channels import absorb_biases, equalize_graph, replace_relu6, shared_channels

seeds = st.integers(0, 2**31 - 1)


def wild(model, seed=0):
    """Weights whose channels differ by orders of magnitude, so that there is much to equalize."""
    generator = torch.Generator().manual_seed(seed)
    settle(model, seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            p.data *= 10 ** torch.randn(len(p), *[1] * (p.ndim - 1), generator=generator)
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            module.weight.data.abs_()
    return model.double().eval()


def folded(model, x):
    return minq.fold_batch_norms(minq.capture(model, x))


def agrees(gm, model, x, eps=1e-10):
    """Equal up to float64 roundings; a product of scales between 1e-3 and 1e3 costs few of them."""
    with torch.no_grad():
        expected = model(x)
        error = float((gm(x) - expected).abs().max() / expected.abs().max())
    assert error < eps, error


def weights(gm):
    return {k: graph.weight_of(gm, n).clone() for k, n in graph.layers(gm).items()}


def moved(gm, before):
    after = weights(gm)
    return {k for k in before if not torch.allclose(after[k], before[k], rtol=1e-9)}


@st.composite
def chains(draw):
    """Random networks of everything that lets a scale pass."""
    channels = 4
    layers = [nn.Conv2d(3, channels, 3, padding=1)]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(
            ["conv", "depthwise", "grouped", "transposed", "residual", "transposed groups"]
        ))  # fmt: skip
        activation = draw(st.sampled_from(
            [nn.Identity, nn.ReLU, lambda: nn.ReLU6(True), lambda: nn.LeakyReLU(0.1),
             lambda: nn.PReLU(channels), lambda: nn.Hardtanh(0, 4)]
        ))  # fmt: skip
        between = draw(st.sampled_from(
            [nn.Identity, lambda: nn.AvgPool2d(3, 1, 1), lambda: nn.MaxPool2d(3, 1, 1),
             lambda: nn.ZeroPad2d(1), lambda: nn.Upsample(scale_factor=2), nn.Dropout]
        ))  # fmt: skip
        bias = draw(st.booleans())
        make = {
            "conv": lambda b: nn.Conv2d(channels, channels, 1, bias=b),
            "depthwise": lambda b: nn.Conv2d(channels, channels, 3, groups=channels, padding=1,
                                             bias=b),
            "grouped": lambda b: nn.Conv2d(channels, channels, 1, groups=2, bias=b),
            "transposed": lambda b: nn.ConvTranspose2d(channels, channels, 2, bias=b),
            "transposed groups": lambda b: nn.ConvTranspose2d(channels, channels, 2, groups=2,
                                                              bias=b),
            "residual": lambda b: Residual(channels),
        }  # fmt: skip
        layers += [activation(), between(), make[kind](bias)]
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(channels))
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    return nn.Sequential(*layers)


@settings(max_examples=10)
@given(model=chains(), seed=seeds)
def test_equalized_chains_keep_their_function(model, seed):
    model, x = wild(model, seed), noise(2, 3, 5, 5, seed=seed).double()
    gm = folded(model, x)
    before = weights(gm)
    equalize_graph(gm, relu6="per_channel")
    agrees(gm, model, x)
    assert moved(gm, before)


def ranges(gm, c):
    """The largest weight of each channel, among all that write and all that read it."""
    written = [graph.weight_of(gm, n).abs().flatten(1).amax(1) for n in c.writers]
    read = []
    for n in c.readers:
        w, groups = graph.weight_of(gm, n), graph.groups_of(n)
        by_group = w.abs().reshape(groups, len(w) // groups, w.shape[1], -1)
        read.append(by_group.amax((1, 3)).flatten())
    return torch.stack(written).amax(0), torch.stack(read).amax(0)


def test_a_pair_meets_in_the_geometric_mean():
    model = wild(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    x = noise(3, 5).double()
    gm = folded(model, x)
    (pair,) = shared_channels(gm)
    assert pair.pair and repr(pair) == "0 -> 2"
    r1, r2 = model[0].weight.abs().amax(1), model[2].weight.abs().amax(0)
    equalize_graph(gm)
    for r in ranges(gm, pair):
        torch.testing.assert_close(r, (r1 * r2).sqrt())  # eq. (22)
    agrees(gm, model, x)


@pytest.mark.parametrize("residual", [True, False])
def test_ranges_meet_in_every_set_at_once(residual):
    model = wild(nn.Sequential(
        nn.Conv2d(3, 4, 1), Residual(4), Residual(4), nn.Conv2d(4, 5, 3), nn.ReLU(),
        nn.Conv2d(5, 5, 3, groups=5, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1),
    ))  # fmt: skip
    x = noise(2, 3, 6, 6).double()
    gm = folded(model, x)
    equalize_graph(gm, residual=residual, sweeps=2000, tolerance=1e-9)
    agrees(gm, model, x)
    sets = shared_channels(gm, residual=residual)
    for c in sets:
        r1, r2 = ranges(gm, c)
        torch.testing.assert_close(r1, r2, rtol=1e-6, atol=0)
    stream = [c for c in sets if not c.pair]
    assert len(sets) == (5 if residual else 4) and len(stream) == residual
    if residual:
        assert repr(stream[0]) == "0, 1.conv2, 2.conv2 -> 1.conv1, 2.conv1, 3"


def test_one_input_read_twice_is_scaled_for_both():
    model = wild(Lambda(
        lambda m, x: m.b(m.a(x).relu()) + m.c(m.a2(x).relu()).sum(1, keepdim=True),
        a=nn.Conv2d(3, 4, 1), a2=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1), c=nn.Conv2d(4, 2, 1),
    ))  # fmt: skip
    x = noise(2, 3, 4, 4).double()
    gm = folded(model, x)
    equalize_graph(gm)
    agrees(gm, model, x)
    fork = wild(Lambda(
        lambda m, x: (y := m.a(x).relu(), m.b(y).sum() + m.c(y).sum())[1].reshape(1),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1), c=nn.Conv2d(4, 2, 1),
    ))  # fmt: skip
    gm = folded(fork, x)
    assert [repr(c) for c in shared_channels(gm, residual=False)] == ["a -> b, c"]
    equalize_graph(gm)
    agrees(gm, fork, x)


def conv(i=4, o=4):
    return nn.Conv2d(i, o, 1)


class Clip(nn.Module):
    """A user's own: clamp to a floor and a ceiling, which it calls so."""

    def __init__(self, ceiling, floor=None):
        super().__init__()
        self.compute = ceiling if not isinstance(ceiling, torch.Tensor) else None
        if isinstance(ceiling, nn.Parameter):
            self.my_ceiling = ceiling
        elif self.compute is None:
            self.register_buffer("my_ceiling", ceiling)
        self.register_buffer("my_floor", floor)

    def forward(self, x):
        return x.clamp(self.my_floor, self.compute(x) if self.compute else self.my_ceiling)


BLOCKED = {
    "sigmoid": lambda: nn.Sequential(conv(3), nn.Sigmoid(), conv()),
    "SiLU": lambda: nn.Sequential(conv(3), nn.SiLU(), conv()),
    "a clip that trains": lambda: nn.Sequential(
        conv(3), Clip(nn.Parameter(torch.ones(4, 1, 1))), conv()
    ),
    "a clip by place": lambda: nn.Sequential(conv(3), Clip(torch.full((6, 6), 0.1)), conv()),
    "a clip by data": lambda: nn.Sequential(conv(3), Clip(lambda x: x.amax(1, True) / 2), conv()),
    "layer norm": lambda: nn.Sequential(conv(3), nn.LayerNorm([4, 6, 6]), conv()),
    "group norm": lambda: nn.Sequential(conv(3), nn.GroupNorm(2, 4), conv()),
    "flatten": lambda: nn.Sequential(conv(3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)),
    "shuffled channels": lambda: nn.Sequential(conv(3), nn.PixelShuffle(2), conv(1)),
    "padding with ones": lambda: nn.Sequential(conv(3), nn.ConstantPad2d(1, 1.0), conv()),
    "concatenation": lambda: Lambda(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3), b=conv(3), c=conv(8)
    ),
    "an output": lambda: Lambda(lambda m, x: (m.a(x), m.c(m.a(x)))[::-1], a=conv(3), c=conv()),
    "also an output": lambda: Lambda(
        lambda m, x: (lambda y: torch.cat([m.c(y), y], 1))(m.a(x)), a=conv(3), c=conv()
    ),
    "a product": lambda: Lambda(
        lambda m, x: m.c(m.a(x) * m.b(x)), a=conv(3), b=conv(3), c=conv()
    ),
    "a gate": lambda: Lambda(
        lambda m, x: m.c(m.a(x) * m.b(m.a(x).mean((2, 3), True)).sigmoid()),
        a=conv(3), b=conv(), c=conv(),
    ),
    "a constant": lambda: Lambda(
        lambda m, x: m.c(m.a(x) + m.k), a=conv(3), c=conv(), k=noise(4, 1, 1)
    ),
    "a number": lambda: Lambda(lambda m, x: m.c(m.a(x) + 1), a=conv(3), c=conv()),
    "a mean over channels": lambda: Lambda(
        lambda m, x: m.c(m.a(x).mean(1)), a=conv(3, 6), c=nn.Conv1d(6, 2, 1)
    ),
    "turned axes": lambda: Lambda(
        lambda m, x: m.c(m.a(x).transpose(1, 2)), a=conv(3, 6), c=conv(6)
    ),
    "a shared layer": lambda: Lambda(lambda m, x: m.a(m.a(x)).relu(), a=conv(3, 3)),
    "one value for all": lambda: Lambda(
        lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3), b=conv(3, 1), c=conv()
    ),
    "a linear layer over the last axis": lambda: nn.Sequential(
        conv(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
    ),
    "a computed bias": lambda: Lambda(
        lambda m, x: m.c(nn.functional.conv2d(x, m.a.weight, m.a.bias * x.sum())),
        a=conv(3),
        c=conv(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKED)
def test_what_cannot_be_scaled_stays(name):
    model, x = wild(BLOCKED[name]()), noise(2, 3, 6, 6).double()
    gm = folded(model, x)
    before = weights(gm)
    assert shared_channels(gm) == []
    equalize_graph(gm)
    assert not moved(gm, before)
    with torch.no_grad():
        torch.testing.assert_close(gm(x), model(x))


def call(function):
    return lambda: Lambda(lambda m, x: m.b(function(m.a(x))), a=conv(3), b=conv())


def shared_bounds(m, x):
    """One pair of buffers for two clips."""
    x = m.a(x).clamp(m.low, m.high)
    return m.c(m.b(x).clamp(m.low, m.high))


CLIPS = {
    "hardtanh": lambda: nn.Sequential(conv(3), nn.Hardtanh(), conv()),
    "hardtanh elsewhere": lambda: nn.Sequential(conv(3), nn.Hardtanh(-0.5, 2.0), conv()),
    "relu6": lambda: nn.Sequential(conv(3), nn.ReLU6(), conv()),
    "relu": lambda: nn.Sequential(conv(3), nn.ReLU(), conv()),
    "clamp": call(lambda y: y.clamp(-0.5, 1.5)),
    "whole numbers": call(lambda y: y.clamp(-1, 2)),
    "by name": call(lambda y: torch.clamp(y, max=1.5, min=0.25)),
    "a floor": call(lambda y: torch.clamp(y, min=-0.5)),
    "a floor of 0": call(lambda y: y.clamp_min(0.0)),
    "clamp_min": call(lambda y: y.clamp_min(0.1)),
    "clamp_max": call(lambda y: y.clamp_max(0.75)),
    "clip": call(lambda y: torch.clip(y, -2.0, 0.5)),
    "in place": call(lambda y: y.clamp_(-0.5, 1.5)),
    "0 to another number": call(lambda y: y.clamp(0, 2.5)),
    "upside down": call(lambda y: y.clamp(1.0, -1.0)),
    "buffers": lambda: nn.Sequential(
        conv(3), Clip(torch.tensor(1.0), torch.tensor(-1.0)), conv()
    ),
    "a ceiling alone": lambda: nn.Sequential(conv(3), Clip(torch.tensor([0.5])), conv()),
    "by channels": lambda: nn.Sequential(
        conv(3), Clip(noise(4, 1, 1).abs(), -noise(4, 1, 1, seed=2).abs()), conv()
    ),
    "one for all and by channels": lambda: nn.Sequential(
        conv(3), Clip(noise(1, 4, 1, 1).abs(), torch.tensor(0.0)), conv()
    ),
    "shared": lambda: Lambda(
        shared_bounds, a=conv(3), b=conv(), c=conv(), low=-torch.ones(1), high=torch.ones(())
    ),
}


def ends(node):
    """What the operator makes of huge numbers of either sign: its bounds, by brute force."""
    values = [
        graph.get(node.graph.owning_module, a.target) if isinstance(a, torch.fx.Node) else a
        for a in node.args[1:]
    ]
    huge = torch.full((1, 4, 1, 1), 1e30, dtype=torch.float64)
    return [node.target(v, *values, **node.kwargs).flatten() for v in (-huge, huge)]


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_known_whoever_wrote_it_and_moves_with_its_channels(name):
    model, x = wild(CLIPS[name]()), noise(4, 3, 6, 6).double() / 8
    gm = folded(model, x)
    before, found = weights(gm), 0
    for node in gm.graph.nodes:
        bounds = graph.clip_bounds(node)
        if graph.traits(node).role == "activation":
            found += 1
            expected = ends(node)
            measured = [v.double().clamp(-1e30, 1e30).expand(4) for v in bounds]
            if name == "upside down":  # the ceiling wins
                measured[0] = measured[1]
            torch.testing.assert_close(measured, expected)
        else:
            assert bounds is None
    assert found
    equalize_graph(gm, relu6="per_channel")
    assert moved(gm, before)
    agrees(gm, model, x, 1e-9)
    agrees(equalize_graph(gm, relu6="per_channel"), model, x, 1e-9)  # once more


@pytest.mark.parametrize("name", ["buffers", "hardtanh", "by channels", "a ceiling alone"])
def test_absorbing_a_bias_moves_both_ends_of_a_clip(name):
    """f(x - c) = f(x) - c for a clip whose ends fall by c: exact, where ReLU is not."""
    inner = CLIPS[name]()[1]
    model = nn.Sequential(conv(3), nn.BatchNorm2d(4), inner, conv()).double().eval()
    x = noise(4, 3, 6, 6).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.01, 0.02, 0.01, 0.3])), model[1].bias.fill_(0.2)
    gm = folded(model, x)
    before = {k: graph.bias_of(gm, n).clone() for k, n in graph.layers(gm).items()}
    absorb_biases(gm)
    assert any((graph.bias_of(gm, n) < before[k]).any() for k, n in graph.layers(gm).items())
    agrees(gm, model, x)


@pytest.mark.parametrize("name", ["buffers", "hardtanh", "a floor", "by channels", "shared"])
def test_a_network_with_a_clip_of_its_own_goes_all_the_way(name):
    torch.manual_seed(0)
    model, x = CLIPS[name]().eval(), 2 * noise(32, 3, 6, 6)
    with torch.no_grad():
        next(model.parameters())[0] *= 30
    q = minq.ptq(model, x, rounding=minq.ptq.AdaRound(sweeps=2), progress=False)
    assert minq.debug(q, model, x, each=False).exact > 80
    assert minq.sqnr(model(x).detach(), q(x).detach()) > 25
    exact = minq.to_integer(q, multipliers="float")
    assert torch.equal(exact(x), minq.deploy.simulation(q)(x.double()).float())
    blind = minq.ptq(model, example=x[:2], input_range=(-8, 8))
    assert minq.sqnr(model(x).detach(), blind(x).detach()) > 20
    gm = minq.qat.prepare(model, x, activations=None, weights=None)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for network, seen in zip((model, gm), inputs, strict=True):
        network(seen).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-4)
    assert minq.sqnr(model(x).detach(), minq.qat.finish(gm)(x).detach()) > 80


def test_relu6_three_ways():
    model, x = wild(mobile()), noise(4, 3, 8, 8).double() * 30
    gm = folded(model, x)
    clipped = equalize_graph(copy.deepcopy(gm), relu6="per_channel")
    agrees(clipped, model, x)
    kept = copy.deepcopy(gm)
    before = weights(kept)
    equalize_graph(kept, relu6="keep")
    assert not moved(kept, before)

    plain = wild(mobile(nn.ReLU))
    replaced = equalize_graph(copy.deepcopy(gm), relu6="replace")
    agrees(replaced, plain, x)  # as if it had had no ceiling from the start
    agrees(replace_relu6(copy.deepcopy(gm)), plain, x)
    with torch.no_grad():
        assert minq.sqnr(model(x), replaced(x)) < 60  # the price
    with pytest.raises(ValueError, match="relu6 must be one of replace, per_channel, keep"):
        equalize_graph(gm, relu6="other")


def test_clips_per_channel_move_with_the_module():
    model, x = wild(mobile()).float(), noise(4, 3, 8, 8)
    gm = equalize_graph(folded(model, x), relu6="per_channel")
    twin = copy.deepcopy(gm).double()
    agrees(twin, copy.deepcopy(model).double(), x.double(), 1e-5)
    minq.insert_quantizers(gm)
    assert [k for k in minq.quantizers(gm) if "weight" not in k][1] == "2.quantizer"


def test_dead_channels_and_scales_of_any_size():
    model = wild(nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU(), conv()))
    model[0].weight.data[1] = 0
    model[2].weight.data[:, 2] = 0
    model[2].weight.data[3] *= 1e-12
    x = noise(2, 3, 4, 4).double()
    gm = equalize_graph(folded(model, x))
    agrees(gm, model, x)
    assert all(p.isfinite().all() for p in gm.parameters())


def test_what_batch_norm_promised_is_scaled_too():
    """After equalization the promised moments are those of the new outputs."""
    x = noise(4000, 3, 1, 1).double()
    model = wild(nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    y = model[0](x).detach()
    model[1].running_mean.copy_(y.mean((0, 2, 3)))
    model[1].running_var.copy_(y.var((0, 2, 3), unbiased=False))
    gm = folded(model, x)
    node = graph.layers(gm)["0"]
    for _ in range(2):
        w, b = graph.weight_of(gm, node), graph.bias_of(gm, node)
        out = nn.functional.conv2d(x, w, b)
        mean, variance = graph.notes_of(node).statistics
        torch.testing.assert_close(mean, out.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(variance, out.var((0, 2, 3)), rtol=2e-3, atol=1e-3)
        equalize_graph(gm)


# --- Absorption -----------------------------------------------------------------------------------


def high(head=None):
    """A network whose batch norm lifts all its outputs far above zero."""
    head = head or nn.Conv2d(4, 3, 3)
    model = wild(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), head))
    model[1].bias.data.fill_(50.0)
    model[1].weight.data.uniform_(-2, 2)
    model[1].running_mean.zero_()
    model[1].running_var.fill_(float(model[0].weight.detach().square().sum(1).max()) + 1e3)
    return model


@pytest.mark.parametrize("head", [
    lambda: nn.Conv2d(4, 3, 3), lambda: nn.Conv2d(4, 8, 2, groups=4), lambda: nn.Conv2d(4, 2, 1),
    lambda: nn.Sequential(nn.MaxPool2d(2, padding=1), nn.Conv2d(4, 2, 1)),
    lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False)),
])  # fmt: skip
def test_absorption_is_exact_where_everything_is_high(head):
    model, x = high(head()), noise(2, 3, 5, 5).double()
    gm = folded(model, x)
    node = graph.layers(gm)["0"]
    bias, (mean, variance) = graph.bias_of(gm, node), graph.notes_of(node).statistics
    absorb_biases(gm)
    amount = (mean - 3 * variance.sqrt()).clamp(min=0)
    assert (amount > 40).all()
    torch.testing.assert_close(graph.bias_of(gm, node), bias - amount)  # eq. (23)
    torch.testing.assert_close(graph.notes_of(node).statistics.mean, mean - amount)
    agrees(gm, model, x)


def test_absorption_stops_at_other_functions():
    x = noise(2, 3, 5, 5).double()
    for activation in (nn.ReLU6(), nn.LeakyReLU(), nn.SiLU()):
        model = high()
        model[2] = activation
        gm = folded(model, x)
        absorb_biases(gm)
        agrees(gm, model, x)


@pytest.mark.parametrize("activation, ceiling", [(nn.ReLU, 1e9), (nn.ReLU6, 6)])
def test_absorption_by_data_keeps_the_function_on_them(activation, ceiling):
    """What is absorbed is the lowest output on all batches, which the bias was chosen for."""
    convs = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 2), nn.Conv2d(5, 2, 1)
    layers = [convs[0], activation(), convs[1], activation(), convs[2]]
    model = wild(nn.Sequential(*layers))  # no batch norm: nothing but the data tells
    batches = [[noise(3, 3, 5, 5, seed=k).double().abs()] for k in (0, 1)]
    x = torch.cat([batch for (batch,) in batches])
    high = torch.tensor([0.9, 0.5, 0.0, 50.0])  # one too low to take anything, one above ReLU6
    model[0].bias.data = high - model[0](x).detach().amin((0, 2, 3)) + model[0].bias.detach()
    gm = folded(model, x)
    old = [graph.bias_of(gm, node).clone() for node in graph.layers(gm).values()]
    absorb_biases(gm, data=batches)
    agrees(gm, model, x)
    taken = old[0] - graph.bias_of(gm, graph.layers(gm)["0"])
    torch.testing.assert_close(taken, torch.where(high < ceiling, high, 0).double())


def test_no_bias_is_taken_without_a_promise():
    model, x = wild(nn.Sequential(conv(3), nn.ReLU(), conv())), noise(2, 3, 4, 4).double()
    gm = absorb_biases(folded(model, x))
    assert torch.equal(gm(x), model(x))
