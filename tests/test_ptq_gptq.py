"""GPTQ against the slow algorithm it comes from, and against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import Lambda

import minq
from minq import fake_quantize, floats, graph, ranges, scale_zero_point
from minq.grid import Grid
from minq.ptq import GPTQ, Nearest
from minq.ptq import gptq as gptq_module
from minq.ptq import rounding as rounding_module
from minq.ptq.gptq import gptq, hessian, inverse_factor, round_columns, round_in_ranges
from minq.simulate import weight_quantizers


def task(seed=0, outputs=6, width=90, rows=300, correlated=True):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=g)
    if correlated:
        x = x @ torch.randn(width, width, generator=g) / width**0.5 + x.mean(1, keepdim=True)
    return torch.randn(outputs, width, generator=g), x


def grid(w, bits=4, group=None):
    low, high = ranges.min_max(w, axis=0, group=group)
    return scale_zero_point(low, high, bits, signed=True, symmetric=True)


def optimal_brain_quantizer(w, x, scale, bits, damping):
    """Column by column with the whole inverse, from which each finished column is eliminated."""
    w, H = w.double().clone(), (x.T @ x).double()
    H += damping * H.diagonal().mean() * torch.eye(len(H))
    inverse = torch.linalg.inv(H)
    for j in range(w.shape[1]):
        q = fake_quantize(w[:, j], scale[:, j].double(), bits=bits, signed=True, axis=0)
        change = torch.outer((w[:, j] - q) / inverse[j, j], inverse[j])
        w[:, j + 1 :] -= change[:, j + 1 :]
        w[:, j] = q
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return w


@pytest.mark.parametrize("group", [None, 32, 7])
def test_it_is_the_slow_algorithm(group):
    w, x = task()
    w, x = w.double(), x.double()
    scale, _ = grid(w, group=group)
    of_each = scale[:, None].expand_as(w) if group is None else None
    if group:
        of_each = scale.repeat_interleave(group, 1)[:, : w.shape[1]]
    want = optimal_brain_quantizer(w, x, of_each, 4, 0.01)
    got = gptq(w, x, scale, group=group)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_independent_inputs_are_rounded_to_nearest():
    w, _ = task(width=40)
    scale, _ = grid(w)
    got = gptq(w, torch.eye(40), scale)
    assert torch.equal(got, fake_quantize(w, scale, bits=4, signed=True, axis=0))


def test_it_beats_nearest_and_not_brute_force():
    for seed in range(5):
        w, x = task(seed, outputs=1, width=8, rows=40)
        scale, _ = grid(w, bits=2)

        def cost(v, w=w, x=x):
            return float(((w - v) @ x.T).square().sum())

        levels = torch.tensor([-2.0, -1, 0, 1]) * scale
        below = [levels[levels <= v].max() if v >= levels[0] else levels[0] for v in w[0]]
        ends = [sorted({float(b), float(min(b + scale[0], levels[-1]))}) for b in below]
        best = min(cost(torch.tensor([v])) for v in itertools.product(*ends))
        plain = cost(fake_quantize(w, scale, bits=2, signed=True, axis=0))
        assert cost(gptq(w, x, scale, grid=Grid(-2, 1))) <= plain * 1.0001
        assert best <= plain


@pytest.mark.parametrize("group", [None, 4])
def test_grouped_convolution_is_one_task_a_group(group):
    w, x = task(outputs=6, width=2 * 9)
    x = torch.stack([x, x.flip(1), x.roll(1, 1)])
    scale, _ = grid(w, group=group)
    got = gptq(w.reshape(6, 2, 3, 3), x, scale, group=group)
    for k in range(3):
        own = slice(2 * k, 2 * k + 2)
        torch.testing.assert_close(got.flatten(1)[own], gptq(w[own], x[k], scale[own], group=group))


SHARES = (1.0, 0.9, 0.7)


@pytest.mark.parametrize("behind", [0, 30])
@pytest.mark.parametrize("levels", [Grid(-4, 3), floats.NF4])
def test_a_group_gets_the_range_with_the_least_error_once_the_rest_made_up_for_it(levels, behind):
    """What is left when w_r may be any real numbers is e^T (H_gg - H_gr H_rr^-1 H_rg) e."""
    w, x = task(outputs=40, width=12 + behind)
    H = hessian([x[None]])
    U = inverse_factor(H, 0.01)
    H = H[0] + 0.01 * H[0].diagonal().mean() * torch.eye(len(H[0]))
    left = H[:12, :12]
    if behind:
        left = left - H[:12, 12:] @ torch.linalg.solve(H[12:, 12:], H[12:, :12])
    w = w.double()
    losses, rounded = [], []
    for share in SHARES:
        low, high = (share * v for v in ranges.min_max(w[:, :12], axis=0))
        scale, _ = levels.cover(low, high, symmetric=True)
        rounded.append(round_columns(w[:, :12], U[:, :12, :12], scale, 0, levels))
        e = rounded[-1] - w[:, :12]
        losses.append(((e @ left) * e).sum(1))
    best = torch.stack(losses).argmin(0)
    assert len(best.unique()) > 1
    got, low, high = round_in_ranges(w, U, levels, symmetric=True, group=12, shares=SHARES)
    torch.testing.assert_close(got[:, :12], torch.stack(rounded)[best, range(len(w))])
    assert low.shape == high.shape == (len(w), -(-w.shape[1] // 12))
    scale, _ = levels.cover(low, high, symmetric=True)
    scale = scale.repeat_interleave(12, 1)[:, : w.shape[1]]
    torch.testing.assert_close(levels.fake_quantize(got, scale, 0), got)


@pytest.mark.parametrize("kind", [None, "integer", "real"])
def test_ranges_chosen_on_the_way_in_the_pipeline(kind):
    """One range for each output: of those that were tried none costs less, min-max among them."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(24, 10), torch.randn(300, 24) @ torch.randn(24, 24) / 5
    given = {"weights": 3, "activations": None, "per_channel": True, "equalize": False}
    given |= {"weight_range": "min_max", "weight_zero_point": kind, "progress": False}
    lost = {}
    for rounding in (GPTQ(damping=1e-9), GPTQ(damping=1e-9, clip=True)):
        q = minq.ptq(model, x, rounding=rounding, **given)
        with torch.no_grad():
            lost[rounding.clip] = (q(x) - model(x)).square().sum(0)
        ((name, quantizer),) = weight_quantizers(q).items()
        w = graph.get(q, name.replace("_quantizer", "")).detach()
        torch.testing.assert_close(quantizer(w), w, rtol=1e-5, atol=1e-6)
    assert (lost[True] <= lost[False] * 1.001).all() and lost[True].sum() < 0.9 * lost[False].sum()


def test_layers_that_read_one_tensor_share_its_factor(monkeypatch):
    """Queries and keys: as each alone, with one Hessian."""
    calls = []
    monkeypatch.setattr(
        rounding_module, "hessian", lambda rows: calls.append(1) or gptq_module.hessian(rows)
    )
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, 12, generator=g) @ torch.randn(12, 12, generator=g)
    layers = {"q": torch.nn.Linear(12, 5), "k": torch.nn.Linear(12, 3)}
    model = Lambda(lambda m, x: torch.cat([m.q(x), m.k(x)], -1), **layers).eval()
    given = {"weights": 3, "activations": None, "per_channel": True, "equalize": False}
    q = minq.ptq(model, x, rounding=GPTQ(rows=10**6), **given)
    assert len(calls) == 1
    rows = x.flatten(0, 1)
    for name, layer in layers.items():
        w = layer.weight.detach()
        scale = getattr(q, name).weight_quantizer.scale.detach()
        want = gptq(w, rows, scale, grid=Grid(-4, 3))
        torch.testing.assert_close(getattr(q, name).weight.detach(), want, rtol=1e-5, atol=1e-6)


def test_a_weight_of_one_output_is_left_as_it_was():
    w, x = task(outputs=1, width=30)
    before = w.clone()
    gptq(w, x, grid(w)[0])
    assert torch.equal(w, before)


def test_a_dead_input_and_too_few_rows():
    w, x = task(rows=5)
    x[:, 3] = 0
    scale, _ = grid(w)
    got = gptq(w, x, scale)
    k = got / scale[:, None]
    assert torch.isfinite(got).all() and torch.allclose(k, k.round(), atol=1e-5)
    assert torch.equal(gptq(w, 0 * x, scale), fake_quantize(w, scale, bits=4, signed=True, axis=0))


def test_in_the_pipeline():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )
    x = torch.randn(64, 3, 8, 8) + torch.randn(64, 1, 1, 1)
    given = {"weights": 3, "activations": None, "per_channel": True, "equalize": False}
    loss = {}
    for group in (None, 16):
        for rounding in (Nearest(correct_bias=False), GPTQ()):
            q = minq.ptq(model, x, rounding=rounding, group_size=group, **given)
            with torch.no_grad():
                loss[group, type(rounding)] = float((q(x) - model(x)).square().mean())
            for name, quantizer in weight_quantizers(q).items():
                w = graph.get(q, name.replace("_quantizer", "")).detach()
                if rounding == GPTQ():
                    torch.testing.assert_close(quantizer(w), w, rtol=1e-5, atol=1e-6)
                assert (quantizer.scale.ndim == 2) == (group is not None)
    for group in (None, 16):
        assert loss[group, GPTQ] < 0.8 * loss[group, Nearest]
    for rounding in (Nearest, GPTQ):
        assert loss[16, rounding] < loss[None, rounding]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.ones(3, 5)}, "does not fit"),
        ({"damping": 0.0}, "damping"),
        ({"scale": torch.ones(5)}, "scale has shape"),
        ({"scale": torch.zeros(6)}, "positive"),
        ({"group": 0}, "at least 1"),
    ],
)
def test_it_refuses(change, words):
    w, x = task()
    scale, _ = grid(w)
    with pytest.raises(ValueError, match=words):
        gptq(**{"weight": w, "x": x, "scale": scale} | change)


def test_groups_ask_for_channels_and_another_rounding():
    model, x = torch.nn.Linear(4, 4), torch.randn(8, 4)
    with pytest.raises(ValueError, match="per_channel=True"):
        minq.ptq(model, x, group_size=2, rounding="nearest")
    with pytest.raises(ValueError, match="gptq"):
        minq.ptq(model, x, group_size=2, per_channel=True)
