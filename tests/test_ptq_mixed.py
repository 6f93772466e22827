"""Mixed precision: the choice of bits against brute force, the noise against a hand-made one."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from networks import zoo_graph
from torch import nn

import minq
from minq.ptq import Nearest
from minq.ptq.mixed import Choice, allocate, pareto_front, sensitivity
from minqbook import zoo


def tables(seed, layers=5, bits=(2, 3, 4, 8), whole=True):
    draw = random.Random(seed)
    noise, cost = {}, {}
    for k in range(layers):
        size, factor = draw.randint(1, 9), draw.lognormvariate(0, 2)
        noise[f"l{k}"] = {b: factor * 4.0**-b * draw.uniform(0.5, 2) for b in bits}
        cost[f"l{k}"] = {b: size * b if whole else size * b * draw.uniform(0.9, 1.1) for b in bits}
    return noise, cost


def every(noise, cost):
    for row in itertools.product(*(v for v in noise.values())):
        chosen = dict(zip(noise, row, strict=True))
        yield Choice(
            chosen,
            sum(cost[k][b] for k, b in chosen.items()),
            sum(noise[k][b] for k, b in chosen.items()),
        )


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed):
    noise, cost = tables(seed, whole=seed % 2 == 0)
    all_choices = list(every(noise, cost))
    costs = sorted(c.cost for c in all_choices)
    for budget in (costs[0], costs[len(costs) // 3], costs[len(costs) // 2] + 0.5, math.inf):
        best = min((c for c in all_choices if c.cost <= budget), key=lambda c: c.noise)
        found = allocate(noise, cost, budget)
        assert found.noise == pytest.approx(best.noise, rel=1e-12)
        assert found.cost <= budget
        again = sum(cost[k][b] for k, b in found.bits.items())
        assert again == pytest.approx(found.cost)
        assert sum(noise[k][b] for k, b in found.bits.items()) == pytest.approx(found.noise)


@pytest.mark.parametrize("seed", range(4))
def test_the_front_is_all_that_is_not_beaten(seed):
    noise, cost = tables(seed, layers=4)
    front = pareto_front(noise, cost)
    pairs = [(c.cost, c.noise) for c in front]
    assert pairs == sorted(pairs) and all(a[1] > b[1] for a, b in itertools.pairwise(pairs))
    everything = {(c.cost, c.noise) for c in every(noise, cost)}
    beaten = {
        a for a in everything if any(b[0] <= a[0] and b[1] < a[1] * (1 - 1e-12) for b in everything)
    }
    costs = {c for c, _ in pairs}
    assert costs == {c for c, _ in everything - beaten}


def test_noise_of_a_layer_is_what_that_layer_alone_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(64, 8)
    noise = sensitivity(model, x, bits=(3, 6), equalize=False, weight_range="min_max")
    with torch.no_grad():
        y = model(x)
        for name in ("0", "2"):
            for b in (3, 6):
                w = model.get_submodule(name).weight
                scale, _ = minq.scale_zero_point(w.min(), w.max(), b, signed=True, symmetric=True)
                rounded = minq.fake_quantize(w, scale, bits=b, signed=True)
                other = torch.func.functional_call(model, {f"{name}.weight": rounded}, x)
                want = float((y - other).square().sum() / y.square().sum())
                assert noise[name][b] == pytest.approx(want, rel=1e-4)


def test_the_expected_noise_is_near_the_measured_and_beats_uniform_bits():
    model, x = zoo_graph("mobilenet_v2"), zoo.calibration_set("mobilenet_v2", 32)
    bits = (3, 4, 5, 8)
    given = {"per_channel": True, "activations": None, "rounding": Nearest(correct_bias=False)}
    noise = sensitivity(model, x, bits, per_channel=True)
    names = dict(model.named_parameters())
    cost = {k: {b: b * names[f"{k}.weight"].numel() for b in bits} for k in noise}
    found = allocate(noise, cost, sum(row[4] for row in cost.values()))
    with torch.no_grad():
        exact = model(x)

        def measured(**settings):
            q = minq.ptq(model, x, **given, **settings)
            return minq.sqnr(exact, q(x))

        mixed, uniform = measured(layers=found.layers), measured(weights=4)
    assert mixed > uniform + 1
    assert abs(mixed - found.sqnr) < 3
    assert set(found.bits) == {n.removesuffix(".weight") for n in names if names[n].ndim > 1}


@pytest.mark.parametrize(
    "noise, cost, words",
    [
        ({}, {}, "empty"),
        ({"a": {2: 1.0}}, {"b": {2: 1}}, "same layers"),
        ({"a": {2: 1.0}}, {"a": {4: 1}}, "same bits"),
        ({"a": {2: math.nan}}, {"a": {2: 1}}, "noise.'a'. must hold a finite"),
        ({"a": {2: 1.0}}, {"a": {2: -1}}, "cost.'a'. must hold a finite"),
        ({"a": {}}, {"a": {}}, "for each bit-width"),
        ({"a": {2: 1.0}}, {"a": {2: 9}}, "costs 9, more than the budget 5"),
    ],
)
def test_it_refuses(noise, cost, words):
    with pytest.raises(ValueError, match=words):
        allocate(noise, cost, 5)
