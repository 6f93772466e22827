"""Weights with a zero-point, and with a real minimum: against a file's format and other solvers."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import minq
from minq import Scheme, fake_quantize, ranges
from minq.grid import Grid
from minq.minimum import MinimumGrid
from minq.ptq import GPTQ, AdaRound, Nearest, adaround
from minq.ptq.gptq import gptq
from minq.quantizer import Quantizer
from minq.simulate import weight_quantizers
from minq.straight_through import fake_quantize_trained

GRID = MinimumGrid(0, 15)


def q4_1(seed, rows=6, groups=5, offset=0.0):
    """Weights as Q4_1 blocks decode to: d q + m with halves d and m, and codes that are drawn."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (rows, groups, 32))
    d = rng.uniform(1e-3, 1e-2, (rows, groups, 1)).astype(np.float16).astype(np.float32)
    m = (offset + rng.normal(0, 0.05, (rows, groups, 1))).astype(np.float16).astype(np.float32)
    return (d * codes.astype(np.float32) + m).reshape(rows, -1), d


# --- The grid -------------------------------------------------------------------------------------


def by_definition(x, low, high, p):
    """q = round((x - m) / d), d = (max - min) / p: as GGUF's Q4_1 has it, in double precision."""
    d = (high - low) / p
    return d * np.clip(np.round((x - low) / d), 0, p) + low


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40),
    st.integers(1, 8),
)
@settings(max_examples=100, deadline=None)
def test_the_grid_is_a_scale_and_a_minimum(values, bits):
    x, p = np.array(values), 2**bits - 1
    scale, zero_point = MinimumGrid(0, p).cover(x.min(), x.max())
    got = fake_quantize(x, scale, zero_point, MinimumGrid(0, p))
    if np.ptp(x) == 0:
        assert (got == x).all()
    elif np.ptp(x) > 1e-6 * abs(x).max():
        want = by_definition(x, x.min(), x.max(), p)
        step = np.ptp(x) / p
        tie = np.abs((x - x.min()) / step % 1 - 0.5) < 1e-6
        np.testing.assert_allclose(got[~tie], want[~tie], atol=1e-12 * abs(x).max() + 1e-9 * step)
        assert (abs(got - x) <= step * (0.5 + 1e-6)).all()
        np.testing.assert_allclose([got.min(), got.max()], [x.min(), x.max()], rtol=1e-6, atol=1e-9)


def test_numpy_and_torch_agree_and_the_trained_form_too():
    x = np.random.default_rng(0).normal(3, 1, (4, 64)).astype(np.float32)
    scale, zero_point = GRID.cover(*ranges.min_max(x, axis=0))
    got = fake_quantize(x, scale, zero_point, GRID, axis=0)
    t, s, z = torch.tensor(x), torch.tensor(scale), torch.tensor(zero_point)
    assert np.array_equal(fake_quantize(t, s, z, GRID, axis=0).numpy(), got)
    trained = fake_quantize_trained(t, s[:, None], z[:, None], GRID)
    assert np.array_equal(trained.numpy(), got)


def test_its_gradients_are_those_of_autograd():
    x = torch.linspace(-1, 4, 41, dtype=torch.float64) + 0.013
    given = [v.double().requires_grad_() for v in (x, torch.tensor(0.2), torch.tensor(-1.3))]
    mine = torch.autograd.grad(fake_quantize_trained(*given, GRID).square().sum(), given)
    straight = GRID.fake_quantize(*given, minq.round_straight_through)
    theirs = torch.autograd.grad(straight.square().sum(), given)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- Ranges ---------------------------------------------------------------------------------------


def distance(a, b, step):
    """How far apart, in steps of each group."""
    return float((abs(np.asarray(a) - np.asarray(b)).reshape(*step.shape[:2], -1) / step).max())


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_on_such_a_grid_already_costs_nothing(seed, offset):
    """Also where a block does not reach all of its levels, which min-max alone would miss."""
    w, step = q4_1(seed, offset=offset)
    full = [set(np.round((g - g.min()) / d[0])) >= {0.0, 15.0} for g, d in
            zip(w.reshape(-1, 32), step.reshape(-1, 1), strict=True)]  # fmt: skip
    assert 0 < sum(full) < len(full)
    model = nn.Linear(w.shape[1], len(w))
    model.weight.data = torch.tensor(w)
    for rounding in (Nearest(correct_bias=False), GPTQ()):
        q = minq.ptq(
            model, torch.randn(8, w.shape[1]), weights=4, per_channel=True, group_size=32,
            weight_zero_point="real", activations=None, equalize=False, rounding=rounding,
            progress=False,
        )  # fmt: skip
        (quantizer,) = weight_quantizers(q).values()
        weight = quantizer(q.get_parameter("weight")).detach()
        assert distance(weight, w, step) < (1e-4 if offset == 0 else 1e-3)
    sparse = w.reshape(-1, 32)[:, :3] / step.reshape(-1, 1) // 4 * 4  # three codes, four apart
    low, high = ranges.mse(sparse, GRID, axis=0)
    got = fake_quantize(sparse, *GRID.cover(low, high), GRID, axis=0)
    np.testing.assert_allclose(got, sparse, atol=1e-3)


def brute_force(x, p):
    """The least squared error over a fine net of minima and maxima."""
    low, high, width = x.min(), x.max(), np.ptp(x)
    grid = [(low + a * width, high - b * width) for a in np.linspace(-0.15, 0.35, 61)
            for b in np.linspace(-0.15, 0.35, 61)]  # fmt: skip
    return min(((by_definition(x, a, b, p) - x) ** 2).sum() for a, b in grid)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_is_near_brute_force_and_never_above_min_max(bits):
    rng, p = np.random.default_rng(bits), 2**bits - 1
    grid = MinimumGrid(0, p)
    x = rng.normal(size=(12, 32)) + rng.choice([0.0, 0.5, 4.0], (12, 1))
    x[3] = rng.exponential(size=32)

    def errors(low, high):
        got = fake_quantize(x, *grid.cover(low, high), grid, axis=0)
        return ((got - x) ** 2).sum(1)

    found, plain = errors(*ranges.mse(x, grid, axis=0)), errors(*ranges.min_max(x, axis=0))
    best = np.array([brute_force(row, p) for row in x])
    assert (found <= plain * (1 + 1e-9)).all()
    assert found.sum() < 1.1 * best.sum() and best.sum() < 0.9 * plain.sum()


def test_a_minimum_serves_groups_on_one_side_of_zero():
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 0.1 + 1
    error = {}
    for kind in (None, "integer", "real"):
        scheme = Scheme(weights=4, per_channel=True, group_size=32, weight_zero_point=kind)
        quantizer = scheme.weight_quantizer(0)
        quantizer(w)
        error[kind] = float((quantizer.freeze()(w) - w).square().mean())
    assert error["real"] < 0.2 * error["integer"] and error["integer"] <= error[None] * 1.001


# --- In a network ---------------------------------------------------------------------------------


def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    for layer in (model[0], model[2]):
        layer.weight.data += 0.1
    x = torch.randn(256, 64) @ torch.randn(64, 64) / 8
    return model, x


def plain(**more):
    given = {"weights": 3, "activations": None, "per_channel": True, "group_size": 16}
    return given | {"equalize": False, "progress": False} | more


def loss(q, model, x):
    with torch.no_grad():
        return float((q(x) - model(x)).square().mean())


@pytest.mark.parametrize("weight_range", ["min_max", "mse"])
def test_each_freedom_helps_and_gptq_helps_more(weight_range):
    model, x = task()
    found = {}
    for kind in (None, "integer", "real"):
        for rounding in (Nearest(correct_bias=False), GPTQ()):
            q = minq.ptq(
                model, x, rounding=rounding, weight_zero_point=kind, weight_range=weight_range,
                **plain(),
            )  # fmt: skip
            found[kind, type(rounding)] = loss(q, model, x)
            for name, quantizer in weight_quantizers(q).items():
                w = q.get_parameter(name.replace("_quantizer", "")).detach()
                assert len(set(quantizer.quantize(w).flatten().tolist())) <= 8
                if rounding == GPTQ():
                    torch.testing.assert_close(quantizer(w), w, rtol=1e-5, atol=1e-6)
    for rounding in (Nearest, GPTQ):
        assert found["real", rounding] < found["integer", rounding] < found[None, rounding]
    for kind in (None, "integer", "real"):
        assert found[kind, GPTQ] < 0.8 * found[kind, Nearest]


@pytest.mark.parametrize("kind", ["integer", "real"])
def test_adaround_keeps_to_the_two_levels_next_to_a_weight(kind):
    model, x = task()
    settings = plain(group_size=None, weight_zero_point=kind)
    q = minq.ptq(model, x, rounding=AdaRound(), **settings)
    nearest = minq.ptq(model, x, rounding=Nearest(correct_bias=False), **settings)
    assert loss(q, model, x) < 0.8 * loss(nearest, model, x)
    quantizer, w = q.get_submodule("0.weight_quantizer"), model[0].weight.detach()
    rounded, scale = q.get_parameter("0.weight").detach(), quantizer.scale.detach()[:, None]
    torch.testing.assert_close(quantizer(rounded), rounded, rtol=1e-5, atol=1e-6)
    inside = (w - quantizer(w)).abs() <= scale / 2 * 1.001
    assert ((rounded - w).abs() < scale * 1.001)[inside].all() and inside.float().mean() > 0.8


def test_both_ways_to_round_on_data_stay_on_the_grid():
    g = torch.Generator().manual_seed(1)
    w, x = torch.randn(5, 24, generator=g) + 2, torch.randn(200, 24, generator=g)
    scale, zero_point = GRID.cover(*ranges.min_max(w, axis=0))
    nearest = fake_quantize(w, scale, zero_point, GRID, axis=0)
    assert torch.equal(gptq(w, torch.eye(24), scale, zero_point, GRID), nearest)
    apart = adaround.adaround(w, torch.eye(24), w.T.clone(), scale, zero_point, GRID)
    torch.testing.assert_close(apart, nearest)

    def cost(v):
        return float(((w - v) @ x.T).square().sum())

    for rounded in (gptq(w, x, scale, zero_point, GRID),
                    adaround.adaround(w, x, x @ w.T, scale, zero_point, GRID)):  # fmt: skip
        codes = rounded / scale[:, None] + zero_point[:, None]
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        assert -1e-3 < codes.min() and codes.max() < 15.001 and cost(rounded) < cost(nearest)


@pytest.mark.parametrize("kind", ["integer", "real"])
def test_it_is_copied_saved_loaded_and_debugged(kind, tmp_path):
    model, x = task()
    settings = plain(weight_zero_point=kind)
    q = minq.ptq(model, x, rounding="gptq", checkpoint=tmp_path / "half", **settings)
    again = minq.ptq(model, x, rounding="gptq", checkpoint=tmp_path / "half", **settings)
    fresh = minq.insert_quantizers(
        minq.capture(model, x), weights=3, activations=None, per_channel=True, group_size=16,
        weight_zero_point=kind,
    )  # fmt: skip
    fresh.load_state_dict(q.state_dict())
    torch.save(q, tmp_path / "q.pt")
    loaded = torch.load(tmp_path / "q.pt", weights_only=False)
    for other in (again, fresh, loaded, copy.deepcopy(q)):
        assert torch.equal(other(x), q(x))
    report = minq.debug(q, model, x[:32], each=False)
    assert report.exact > 60 and 5 < report.quantized == report.weights < 60
    with pytest.raises(ValueError, match="was made with"):
        other = plain(weight_zero_point=None)
        minq.ptq(model, x, rounding="gptq", checkpoint=tmp_path / "half", **other)


def test_training_moves_the_minimum():
    quantizer = Quantizer(GRID, axis=0)
    w = torch.randn(4, 20)
    quantizer(w)
    before = quantizer.zero_point.clone()
    quantizer.learn()
    adam = torch.optim.Adam([quantizer.scale, quantizer.zero_point], lr=0.01)
    for _ in range(3):
        adam.zero_grad()
        (quantizer(w) - w).square().sum().backward()
        adam.step()
    assert not torch.equal(before, quantizer.zero_point)
    assert not torch.equal(quantizer.zero_point, quantizer.zero_point.round())
    assert "minimum" in repr(quantizer)


# --- On integers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4])
def test_integers_and_a_file_know_a_zero_point(bits, tmp_path):
    model, x = task()
    q = minq.ptq(
        model, x, weights=bits, per_channel=True, weight_zero_point="integer", progress=False,
        rounding="nearest",
    )  # fmt: skip
    assert any((w.zero_point != 0).any() for w in weight_quantizers(q).values())
    integers = minq.to_integer(q, multipliers="float")
    torch.testing.assert_close(integers(x).double(), q(x).double(), rtol=0, atol=0.05)
    minq.to_onnx(q, tmp_path / "q.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    step = float(list(minq.quantizers(q).values())[-1].scale)
    assert abs(y - q(x).detach().numpy()).max() <= 1.01 * step


def test_a_file_knows_groups_with_a_zero_point(tmp_path):
    model, x = task()
    q = minq.ptq(model, x, rounding="gptq", weight_zero_point="integer", **plain(weights=4))
    minq.to_onnx(q, tmp_path / "q.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, q(x).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_they_refuse_a_real_minimum(tmp_path):
    model, x = task()
    q = minq.ptq(model, x, weights=4, weight_zero_point="real", progress=False, rounding="nearest")
    for call in (lambda: minq.to_integer(q), lambda: minq.to_onnx(q, tmp_path / "q.onnx")):
        with pytest.raises(ValueError, match='weight_quantizer has a real .*"integer"'):
            call()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Scheme(weight_zero_point="half"), "weight_zero_point must be None"),
        (lambda: Scheme(weights=Uneven(-2, 2), weight_zero_point="real"), "steps that differ"),
        (lambda: fake_quantize([1.0], 1.0, float("nan"), GRID), "zero_point has 1 NaN"),
    ],
)
def test_it_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()


class Uneven(Grid):
    def quantize(self, x, scale, zero_point, rounding=minq.round_half_even):
        return super().quantize(x, scale, zero_point, rounding)
