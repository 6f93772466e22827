"""What is known without data, against Monte Carlo and against what data say."""

import pytest
import torch
from networks import Lambda, Residual, mobile, network, noise, settle
from torch import nn

import minq
from minq import graph
from minq.ptq.datafree import Moments, NoMoments, calibrate_without_data, propagate
from minq.ptq.pipeline import ptq, set_weight_ranges
from minq.ptq.rounding import Nearest
from minq.simulate import quantizers

COUNT = 200_000


def moments(mean, std):
    mean, std = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, std))
    return Moments.gaussian(mean, std**2)


MEAN, STD = [0.0, 0.7, -1.0, 3.0], [1.0, 0.5, 2.0, 0.1]

FUNCTIONS = {
    "linear": lambda: nn.Linear(4, 5),
    "without a bias": lambda: nn.Linear(4, 3, bias=False),
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "a clip": lambda: nn.Hardtanh(0, 1),
    "leaky ReLU": lambda: nn.LeakyReLU(0.2),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "SiLU": nn.SiLU,
    "hardswish": nn.Hardswish,
    "GELU": nn.GELU,
    "hardsigmoid": nn.Hardsigmoid,
    "a product with a number": lambda: Lambda(lambda m, x: x * -3.0),
    "a quotient": lambda: Lambda(lambda m, x: x / 4.0),
    "in turn": lambda: nn.Sequential(nn.Linear(4, 3), nn.SiLU()),
    "a sum": lambda: Lambda(lambda m, x: m.a(x) + m.b(x), a=Select(0), b=Select(2)),
    "concatenation": lambda: Lambda(lambda m, x: torch.cat([x.relu(), x], 1)),
}  # fmt: skip
ELEMENTWISE = list(FUNCTIONS)[2:-3]


class Select(nn.Module):
    """Two of the inputs, so that what is added is independent."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4)[first : first + 2])

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_against_monte_carlo(name):
    torch.manual_seed(0)
    model = FUNCTIONS[name]().double().eval()
    x = torch.tensor(MEAN) + noise(COUNT, 4).double() * torch.tensor(STD)
    gm = minq.capture(model, x[:2])
    (source,) = [n for n in gm.graph.nodes if n.op == "placeholder"]
    known = propagate(gm, {str(source.target): moments(MEAN, STD)})
    (output,) = [n for n in gm.graph.nodes if n.op == "output"]
    result = known[output.all_input_nodes[0]]
    with torch.no_grad():
        y = model(x)
    mean, variance = y.mean(0), y.var(0)
    # 5 standard errors of the mean, and of the variance by the fourth moment.
    slack = 5 * (variance / COUNT).sqrt() + 1e-6
    assert ((result.mean - mean).abs() < slack).all()
    fourth = ((y - mean) ** 4).mean(0)
    slack = 5 * ((fourth - variance**2).clamp(min=0) / COUNT).sqrt() + 1e-3 * variance + 1e-6
    assert ((result.variance - variance).abs() < slack).all()
    # 6 deviations are hardly ever left; the range is no wider than what they can reach.
    span = 1e-3 * (result.high - result.low)
    assert (result.low <= y.amin(0) + span).all() and (result.high >= y.amax(0) - span).all()
    if name in ELEMENTWISE:
        reach = torch.linspace(-6, 6, 10_001, dtype=torch.float64)[:, None]
        with torch.no_grad():
            ends = model(torch.tensor(MEAN) + reach * torch.tensor(STD))
        torch.testing.assert_close(result.low, ends.amin(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(result.high, ends.amax(0), rtol=1e-3, atol=1e-3)


def test_convolutions_by_groups_and_clips_per_channel():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.Identity(),
        Lambda(lambda m, x: x.clamp(m.low, m.high), low=torch.zeros(6, 1, 1),
               high=torch.linspace(0.5, 3, 6).reshape(6, 1, 1)),
    ).double()  # fmt: skip
    x = noise(40_000, 4, 3, 3).double() * torch.tensor(STD).reshape(4, 1, 1)
    x += torch.tensor(MEAN).reshape(4, 1, 1)
    gm = minq.capture(model, x[:2])
    known = propagate(gm, {"input": moments(MEAN, STD)})
    (clamp,) = [n for n in gm.graph.nodes if graph.op(n) == "clamp"]
    with torch.no_grad():
        y = model(x)
    torch.testing.assert_close(known[clamp].mean, y.mean((0, 2, 3)), rtol=0.02, atol=0.01)
    assert torch.equal(known[clamp].high, torch.linspace(0.5, 3, 6).double())


def honest(model, x, rounds=3):
    """Batch norms that tell the truth about their inputs, as after training."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        for _ in range(rounds):
            model(x)
    return model.eval()


def toy(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = settle(mobile(nn.ReLU, width=16), seed)
    for p in model.parameters():
        if p.ndim > 1:  # positive on average, so that rounding errors have a mean
            p.data += p.data.abs().mean() / 2
    return honest(model, noise(256, 3, 16, 16, seed=seed))


def test_batch_norm_tells_the_moments_of_each_layer():
    model, x = toy(), noise(256, 3, 16, 16)
    gm = minq.fold_batch_norms(minq.capture(model, x[:2]))
    known = propagate(gm, {"input": Moments.gaussian(torch.zeros(3), torch.ones(3))})
    seen = x
    for k in range(9):
        seen = model[k](seen).detach()
        if k in (1, 4, 7):
            node = graph.layers(gm)[str(k - 1)]
            torch.testing.assert_close(known[node].mean, seen.mean((0, 2, 3)), rtol=0.1, atol=0.1)
            torch.testing.assert_close(
                known[node].variance, seen.var((0, 2, 3)), rtol=0.2, atol=0.1
            )


@pytest.mark.parametrize("seed", range(3))
def test_without_data_it_runs_and_beats_uncorrected_rounding(seed):
    model, x = toy(seed), noise(64, 3, 16, 16, seed=9)
    settings = dict(weights=4, per_channel=False, equalize=False)
    sqnr = {}
    with torch.no_grad():
        for correct in (True, False):
            rounding = Nearest(correct_bias=correct)
            gm = ptq(model, example=x[:2], input_range=(-4, 4), rounding=rounding, **settings)
            assert {q.stage for q in quantizers(gm).values()} == {"frozen"}
            sqnr[correct] = minq.sqnr(model(x), gm(x))
        full = ptq(model, example=x[:2], input_range=(-4, 4), weights=8, per_channel=True)
        assert minq.sqnr(model(x), full(x)) > 20
    assert sqnr[True] > sqnr[False] + 1


def test_only_the_example_is_needed_and_it_is_no_calibration():
    model, x = toy(), noise(4, 3, 16, 16)
    gm = ptq(model, example=x, input_range=(-1.0, 3.0))
    q = quantizers(gm)["input.quantizer"]
    assert (float(q.low), float(q.high)) == (-1, 3)
    other = ptq(model, example=5 * x, input_range=(-1.0, 3.0))
    for a, b in zip(quantizers(gm).values(), quantizers(other).values(), strict=True):
        assert torch.equal(a.scale, b.scale)


def test_residual_networks_and_softmax():
    model = settle(nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Residual(), Residual(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1),
    ))  # fmt: skip
    x = noise(64, 3, 8, 8)
    model = honest(model, x)
    gm = ptq(model, example=x[:2], input_range=(-4, 4))
    with torch.no_grad():
        assert minq.sqnr(model(x), gm(x)) > 15
    q = quantizers(gm)["8.quantizer"]
    assert (float(q.low), float(q.high)) == (0, 1)


@pytest.mark.parametrize("name", ["matmul", "linear3d", "attention"])
def test_what_the_statistics_do_not_reach_is_named(name):
    model, shape = network(name)
    with pytest.raises(NoMoments, match="give calibration data, or skip="):
        ptq(model, example=noise(2, *shape))


def test_a_layer_without_bias_gets_the_correction():
    layer = nn.Linear(4, 3, bias=False)
    x = noise(100, 4) + 2
    gm = minq.capture(layer, x)
    minq.insert_quantizers(gm, weights=2, activations=16, weight_range="min_max")
    set_weight_ranges(gm)
    calibrate_without_data(gm, {"input": moments([2.0] * 4, [1.0] * 4)})
    (node,) = graph.layers(gm).values()
    error = graph.rounded_weight_of(gm, node) - layer.weight.detach()
    torch.testing.assert_close(
        graph.bias_of(gm, node), -(error @ torch.full((4,), 2.0))
    )  # eq. (25)
    with torch.no_grad():
        shift = (gm(x) - x @ graph.rounded_weight_of(gm, node).T).mean(0)
    torch.testing.assert_close(shift, graph.bias_of(gm, node), rtol=0, atol=1e-3)
