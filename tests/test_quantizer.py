"""The Quantizer module: its stages, its state, and learning against closed forms."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minq import Quantizer, dequantize, fake_quantize, ranges, scale_zero_point

KINDS = [
    dict(),
    dict(bits=4, signed=True, symmetric=True, axis=0),
    dict(bits=3, signed=True, axis=1),
    dict(bits=4, signed=True, narrow_range=True, symmetric=True, axis=0, group=3),
    dict(bits=5, power_of_two=True),
]


def data(seed=0, *shape):
    return torch.randn(shape or (4, 7), generator=torch.Generator().manual_seed(seed))


def options(kind):
    grid = {k: v for k, v in kind.items() if k not in ("symmetric", "power_of_two")}
    placed = {k: v for k, v in kind.items() if k not in ("axis", "group")}
    split = {k: v for k, v in kind.items() if k in ("axis", "group")}
    return grid, placed, split


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_observe_then_freeze_is_range_grid_and_fake_quantize(kind):
    grid, placed, split = options(kind)
    x, more = data(0), data(1)
    q = Quantizer(**kind)
    assert q(x) is x and q(more) is more and q.stage == "observe"
    low, high = (
        f(a, b)
        for f, a, b in zip(
            (torch.minimum, torch.maximum),
            ranges.min_max(x, **split),
            ranges.min_max(more, **split),
            strict=True,
        )
    )
    expected = fake_quantize(x, *scale_zero_point(low, high, **placed), **grid)
    torch.testing.assert_close(q.freeze()(x), expected, rtol=0, atol=0)
    assert q.stage == "frozen"
    assert torch.equal(q.quantize(x), q.grid.clamp(q.quantize(x)))


def test_average_is_the_mean_of_the_batches():
    batches = [data(seed) for seed in range(5)]
    q = Quantizer(average=True)
    for x in batches:
        q(x)
    torch.testing.assert_close(q.low, torch.stack([x.min() for x in batches]).mean())
    torch.testing.assert_close(q.high, torch.stack([x.max() for x in batches]).mean())


def test_estimators_by_name_and_by_function():
    x = data(2, 1000)
    low, high = ranges.mse(x, 4)
    q = Quantizer(bits=4, estimator="mse")
    q(x)
    assert (q.low, q.high) == (low, high)
    q = Quantizer(estimator=lambda x, *, axis, group: (x.new_tensor(-1.0), x.new_tensor(2.0)))
    q(x)
    assert (float(q.low), float(q.high)) == (-1.0, 2.0)


def test_off_passes_the_input_on_and_observe_starts_again():
    q = Quantizer()
    q(data(0) * 100)
    assert q.off()(data(1)) is not None and q.stage == "off"
    torch.testing.assert_close(q(data(1)), data(1), rtol=0, atol=0)
    q.observe()
    q(data(1))
    torch.testing.assert_close(q.high, data(1).max())


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("stage", ["observe", "freeze", "learn", "off"])
def test_state_dict_restores_everything(kind, stage):
    q = Quantizer(**kind)
    q(data(0))
    getattr(q, stage)()
    if stage == "learn":
        q.scale.data *= 1.1
    file = io.BytesIO()
    torch.save(q.state_dict(), file)
    file.seek(0)
    other = Quantizer(**kind)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.stage == q.stage
    assert [p.requires_grad for p in other.parameters()] == [
        p.requires_grad for p in q.parameters()
    ]
    torch.testing.assert_close(other(data(3)), q(data(3)), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(q)(data(3)), q(data(3)), rtol=0, atol=0)


def test_quantizers_inside_a_network_load_together():
    net = torch.nn.Sequential(Quantizer(axis=0), torch.nn.Linear(7, 3), Quantizer())
    net(data(0))
    for q in (net[0], net[2]):
        q.freeze()
    other = torch.nn.Sequential(Quantizer(axis=0), torch.nn.Linear(7, 3), Quantizer())
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(data(1)), net(data(1)), rtol=0, atol=0)


@given(seed=st.integers(0, 1000), symmetric=st.booleans())
def test_gradients_are_those_of_the_formula_and_only_when_learning(seed, symmetric):
    x = data(seed, 50).requires_grad_()
    q = Quantizer(bits=3, signed=True, symmetric=symmetric)
    q.set_range(-1.0, 1.0)
    q.freeze()(x).sum().backward()
    assert q.scale.grad is None
    q.learn()(x).sum().backward()
    s, z = q.scale.item(), q.zero_point.item()
    steps = x.detach() / s
    level = steps.round() + z
    n, p = q.grid
    inside = (level >= n) & (level <= p)
    ends = torch.where(level < n, n - z, p - z)
    expected = torch.where(inside, steps.round() - steps, ends).sum()  # eq. (38)
    torch.testing.assert_close(q.scale.grad, expected, rtol=1e-4, atol=1e-4)
    if symmetric:
        assert q.zero_point.grad is None
    else:
        torch.testing.assert_close(q.zero_point.grad, (-s * ~inside).sum())  # eq. (39)
    torch.testing.assert_close(x.grad, 2.0 * inside)  # eq. (37), from both passes


def test_learning_finds_a_better_scale():
    """From min-max at 3 bits, descending the squared error gains what clipping is worth."""
    x = data(7, 4000) ** 3
    q = Quantizer(bits=3, signed=True, symmetric=True)
    q(x)
    before = (q.freeze()(x) - x).square().mean()
    optimizer = torch.optim.Adam(q.learn().parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (q(x) - x).square().mean().backward()
        optimizer.step()
    after = (q(x) - x).square().mean()
    kind = dict(bits=3, signed=True, symmetric=True)
    scale, _ = scale_zero_point(*ranges.mse(x, **kind), **kind)
    best = fake_quantize(x, scale, bits=3, signed=True)
    assert after < 0.5 * before
    assert after < 1.05 * (best - x).square().mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_come_back_as_they_came(dtype):
    x = data(0).to(dtype)
    q = Quantizer(bits=8)
    q(x)
    assert q.freeze()(x).dtype == dtype
    assert q.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stage", ["freeze", "learn"])
def test_the_end_of_a_grid_is_no_further_than_a_half_float_reaches(dtype, stage):
    """255 steps of 514 around 65504 begin at -65792; in half floats that would be infinite."""
    most = torch.finfo(dtype).max
    x = torch.tensor([-1.0, 1e-5, 1.0]).to(dtype) * most * (0.5 if dtype == torch.bfloat16 else 1)
    x.requires_grad_()
    q = Quantizer(8)
    q(x)
    y = getattr(q, stage)()(x)
    y.float().sum().backward()
    scale, zero_point = (v.detach() for v in q.scale_zero_point())
    levels = ((x.detach().float() / scale).round() + zero_point).clamp(0, 255)
    expected = scale * (levels - zero_point)
    torch.testing.assert_close(y.detach(), expected.clamp(-most, most).to(dtype), rtol=0, atol=0)
    assert y.isfinite().all() and x.grad[:2].tolist() == [1, 1]  # they are on the grid
    steps = q.quantize(x.detach())
    for back in (
        fake_quantize(x.detach(), scale, zero_point),
        dequantize(steps, scale.to(dtype), zero_point),
    ):
        assert back.dtype == dtype and back.isfinite().all()


def refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_bad_use_is_refused_with_a_helpful_message():
    refused(lambda: Quantizer(bits=0), ValueError, "bits must be from 1 to 16")
    refused(lambda: Quantizer(estimator="best"), ValueError, "min_max, percentile, mse")
    refused(lambda: Quantizer().freeze(), RuntimeError, "no range yet")
    refused(lambda: Quantizer().learn(), RuntimeError, "set_range")
    refused(lambda: Quantizer().quantize(data()), RuntimeError, "no range yet")
    refused(lambda: Quantizer()(torch.tensor([float("nan")])), ValueError, "NaN")
    refused(lambda: Quantizer().set_range(1.0, -1.0), ValueError, "low is above high")
    q = Quantizer(axis=0)
    q(data(0))
    refused(lambda: q(data(0, 5, 7)), ValueError, "keep its size")
    refused(lambda: q.freeze()(data(0, 5, 7)), ValueError, r"needs \(5,\)")
    state = {**q.state_dict(), "_extra_state": {"stage": "asleep"}}
    refused(lambda: Quantizer(axis=0).load_state_dict(state), ValueError, "asleep")
