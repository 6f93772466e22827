"""The recipes for whoever adds to the library: each is tried as the page writes it."""

import re
from pathlib import Path

import pytest
import torch
from texts import blocks
from torch import nn

import minq
from minq import graph
from minq.graph import ops

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "inside.md"
PYTHON = blocks(PAGE, "python")


def block(start):
    (found,) = [b for b in PYTHON if start in b]
    return found


@pytest.fixture
def names():
    """What a reader has: a trained network and data. Seeded, so that figures are comparable."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return {"minq": minq, "model": model, "calibration": torch.randn(256, 8)}


def run(start, names):
    """The block and what those before it import."""
    imports = [line for b in PYTHON for line in b.splitlines() if re.match(r"(from|import) ", line)]
    for line in imports:
        if "minqbook" not in line:
            exec(line, names)
    exec(compile(block(start), str(PAGE), "exec"), names)
    return names


def quality(names):
    x = names["calibration"]
    return float(minq.sqnr(names["model"](x).detach(), names["q"](x).detach()))


def assert_integers_equal(q, x):
    exact = minq.to_integer(q, multipliers="float")
    assert torch.equal(exact(x), minq.deploy.simulation(q)(x.double()).float())


# --- An operator ----------------------------------------------------------------------------------


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.c(torch.logaddexp(self.b(x), torch.sinc(self.a(x))))


@pytest.mark.filterwarnings("ignore:.*stays in float")
def test_an_operator(names, monkeypatch):
    x, model = names["calibration"], Both()
    before = minq.ptq(model, x, rounding="nearest")
    assert "2 float islands)" in repr(minq.to_integer(before))
    entries = eval(f"[{block('logaddexp')}]", vars(ops))
    for name, traits in entries:
        assert name not in graph.OPERATORS, f"{name} is there by now: show another"
        monkeypatch.setitem(graph.OPERATORS, name, ops.Operator(**traits))
    q = minq.ptq(model, x, rounding="nearest")
    assert {"sinc.quantizer", "logaddexp.quantizer"} <= set(minq.quantizers(q))
    # The function of one number is a table by now; that of two tensors is an island.
    assert "1 float island)" in repr(minq.to_integer(q))
    assert_integers_equal(q, x)


# --- A grid ---------------------------------------------------------------------------------------


def test_a_grid(names):
    q, model, x = run("class PowersOfTwo", names)["q"], names["model"], names["calibration"]
    quantizer = q.get_submodule("0.weight_quantizer")
    powers = {0.0, *(s * 2.0**k for s in (-1, 1) for k in range(7))}
    weight = graph.get(q, "0.weight")
    assert set(quantizer.quantize(weight).double().unique().tolist()) <= powers
    shown = quantizer(weight).detach().double() / quantizer.scale.double()
    assert {round(v, 3) for v in shown.unique().tolist()} <= powers
    assert quality(names) > 10
    assert_integers_equal(q, x)
    with pytest.raises(ValueError, match="AdaRound goes a step down or up"):
        minq.ptq(model, x, weights=names["PowersOfTwo"](-64, 64))
    coarse = minq.ptq(model, x, activations=names["PowersOfTwo"](0, 64), rounding="nearest")
    with pytest.raises(ValueError, match="only weights may"):
        minq.to_integer(coarse)


def test_the_range_of_least_error_is_that_of_the_grid(names):
    grid = run("class PowersOfTwo", names)["PowersOfTwo"](-16, 16)
    x = torch.randn(4000, dtype=torch.float64)

    def error(high):
        scale = torch.tensor(high / 16)
        return float((grid.fake_quantize(x, scale, torch.zeros(())) - x).square().mean())

    found = float(minq.ranges.mse(x, grid, symmetric=True)[1])
    best = min(error(v) for v in torch.linspace(0.5, 6, 400).tolist())
    assert error(found) <= 1.02 * best


def test_a_grid_of_ones_own_learns(names):
    grid = run("class PowersOfTwo", names)["PowersOfTwo"](-8, 8)
    x, s, z = torch.tensor([-30.0, -2.6, 0.2, 3.4, 9.0]), torch.tensor(0.5), None
    x.requires_grad_(), s.requires_grad_()
    y = minq.straight_through.fake_quantize_trained(x, s, z, grid)
    assert y.tolist() == [-4.0, -2.0, 0.0, 4.0, 4.0]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]  # eq. (37)
    # Eq. (38): the level, less x / s where it is not clipped.
    assert float(s.grad) == pytest.approx(-8 + (-4 + 5.2) + (0 - 0.4) + (8 - 6.8) + 8)


def test_a_ternary_network(names):
    assert "weights=minq.Grid(-1, 1)" in PAGE.read_text("utf-8")
    q = minq.ptq(names["model"], names["calibration"], weights=minq.Grid(-1, 1))
    quantizer = q.get_submodule("0.weight_quantizer")
    assert quantizer.quantize(graph.get(q, "0.weight")).unique().tolist() == [-1, 0, 1]
    assert_integers_equal(q, names["calibration"])


def test_a_quantizer_says_which_grid_it_has():
    assert "bits=8, signed" in repr(minq.Quantizer(8, signed=True))
    assert "bits=2, signed, narrow_range" in repr(minq.Quantizer(minq.Grid(-1, 1)))
    assert "Grid(quant_min=-2, quant_max=2), signed" in repr(minq.Quantizer(minq.Grid(-2, 2)))


# --- A range rule, a rounding ---------------------------------------------------------------------


def test_a_range_rule(names):
    run("class Deviations", names)
    quantizers = minq.quantizers(names["q"])
    x = names["calibration"]
    mean, std = float(x.mean()), float(x.std())
    (first,) = [q for name, q in quantizers.items() if name == "input.quantizer"]
    assert float(first.high) == pytest.approx(mean + 5 * std, rel=0.05)
    assert quality(names) > 25
    by_channel = names["Deviations"](2.0).find(x, first, minq.Granularity(axis=1))
    assert torch.allclose(by_channel[1], x.mean(0) + 2 * x.std(0))


def test_a_way_of_rounding(names):
    run("class Stochastic", names)
    quantizer = names["q"].get_submodule("0.weight_quantizer")
    weight, exact = graph.get(names["q"], "0.weight"), names["model"][0].weight
    assert torch.equal(quantizer(weight), weight)
    # Equalization changed the scales of channels: compare in steps, by the network's function.
    assert repr(names["Stochastic"](1)) == "Stochastic(seed=1, correct_bias=True)"
    plain = minq.ptq(names["model"], names["calibration"], weights=4, equalize=False,
                     rounding=names["Stochastic"]())  # fmt: skip
    step = plain.get_submodule("0.weight_quantizer").scale
    off = (graph.get(plain, "0.weight") - exact).detach() / step
    inside = off.abs() < 1
    assert inside.float().mean() > 0.95 and off.abs().max() > 0.5  # some went the longer way
    assert abs(float(off[inside].mean())) < 0.12  # none is favoured
    assert quality(names) > 12
