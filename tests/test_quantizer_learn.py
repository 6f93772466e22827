"""A quantizer that learns: logarithmic scales, keeping and loading them, gradient factors."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_quantizer import KINDS, data

from minq import Quantizer, fake_quantize
from minq.straight_through import derivative_by_scale, derivative_by_zero_point

KINDS = [dict(bits=4), *KINDS[1:]]


def made(kind, seed=0, **options):
    q = Quantizer(**kind)
    q(data(seed))
    return q.learn(**options)


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def trained(q, steps=3, rate=0.3, seed=5):
    optimizer = torch.optim.SGD([p for p in q.parameters() if p.requires_grad], lr=rate)
    for k in range(steps):
        optimizer.zero_grad()
        (q(data(seed + k)) - data(seed + k)).square().sum().backward()
        optimizer.step()
    return q


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_trained(kind):
    plain, logarithmic = made(kind), made(kind, logarithmic=True)
    always = kind.get("power_of_two", False)
    names = {n for n, p in plain.named_parameters() if p.requires_grad}
    zero_point = set() if kind.get("symmetric") else {"zero_point"}
    assert names == {"log2_scale" if always else "scale"} | zero_point
    names = {n for n, p in logarithmic.named_parameters() if p.requires_grad}
    assert names == {"log2_scale"} | zero_point
    frozen = Quantizer(**kind)
    frozen(data())
    for q in (plain, logarithmic):  # learning begins where freezing is
        torch.testing.assert_close(q(data(2)), frozen.freeze()(data(2)), rtol=1e-6, atol=0)
        assert not any(p.requires_grad for p in q.freeze().parameters())


@given(st.floats(-1000, 1000), st.sampled_from(KINDS))
def test_a_logarithmic_scale_stays_positive_whatever_the_step(step, kind):
    q = made(kind, logarithmic=True)
    before = q.scale_zero_point()[0].detach()
    with torch.no_grad():
        q.log2_scale += max(min(step, 100), -100)
    scale, zero_point = q.scale_zero_point()
    assert (scale > 0).all() and scale.isfinite().all()
    n, p = q.grid
    assert ((n <= zero_point) & (zero_point <= p)).all()
    if not q.power_of_two:
        torch.testing.assert_close((scale / before).log2(), q.log2_scale - before.log2(), rtol=1e-3,
                                   atol=1e-3)  # fmt: skip
    y = q(data(1))
    assert y.isfinite().all()
    y.sum().backward()
    assert q.log2_scale.grad.isfinite().all()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_brutal_training_stays_on_the_grid(optimizer):
    for kind in KINDS:
        q = made(kind, logarithmic=True)
        made_of = optimizer([p for p in q.parameters() if p.requires_grad], lr=3.0)
        for k in range(20):
            made_of.zero_grad()
            q(data(k)).square().mean().backward()
            made_of.step()
            scale, zero_point = q.scale_zero_point()
            assert (scale > 0).all() and torch.equal(zero_point, zero_point.round())
            assert torch.equal(zero_point, q.grid.clamp(zero_point))


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_a_scale_that_is_trained_to_below_zero_counts_as_its_size_and_goes_on(kind):
    """s = |v|: the grid is that of |v|, and d s / d v = -1, so descent moves v away from 0."""
    q, twin = made(kind), made(kind)
    with torch.no_grad():
        q.scale.mul_(-0.5), twin.scale.mul_(0.5)
    equal(q.scale_zero_point()[0], twin.scale_zero_point()[0])
    for x in (q, twin):
        x(data(1)).square().sum().backward()
    equal(q.scale.grad, -twin.scale.grad)
    equal(q.freeze().scale, twin.freeze().scale)  # and nothing is below 0 afterwards
    assert (q.scale > 0).all()


def test_a_scale_of_zero_is_left_again():
    """All is clipped to 0 there, and eq. (38) says p or n - z: descent makes the grid wider."""
    q = made(KINDS[1])
    q.scale.data.zero_()
    assert q(data(1)).isfinite().all() and (q.scale_zero_point()[0] > 0).all()
    (q(data(1)) - data(1)).square().sum().backward()
    assert (q.scale.grad < 0).all()


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_a_linear_scale_below_zero_finds_the_grid_again(kind):
    q, x = made(kind), data(0)
    expected = (made(kind).freeze()(x) - x).square().mean()
    with torch.no_grad():
        q.scale.mul_(-0.2)
    optimizer = torch.optim.Adam([q.scale, q.zero_point], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (q(x) - x).square().mean().backward()
        optimizer.step()
    assert (q.scale_zero_point()[0] > 0).all() and (q(x) - x).square().mean() < 2 * expected


def test_a_power_of_two_stays_one_while_it_is_trained():
    q, seen = made(KINDS[4]), set()
    optimizer = torch.optim.Adam(q.parameters(), lr=0.2)
    for k in range(40):
        optimizer.zero_grad()
        (q(0.05 * data(k))).sub(0.05 * data(k)).square().sum().backward()
        optimizer.step()
        exponent = q.scale_zero_point()[0].detach().log2()
        assert exponent == exponent.round()
        seen.add(float(exponent))
    assert len(seen) > 1  # it does move
    q.freeze()
    assert float(q.scale.log2()) in seen


@given(st.integers(0, 1000), st.sampled_from(KINDS[:4]))
def test_the_logarithm_has_the_gradient_of_the_chain_rule(seed, kind):
    """d s / d log2 s = s ln 2."""
    plain, logarithmic = made(kind, seed), made(kind, seed, logarithmic=True)
    with torch.no_grad():  # one grid, bit for bit
        plain.scale.copy_(logarithmic.scale_zero_point()[0])
    x, g = 2 * data(seed + 1), data(seed + 2)
    for q in (plain, logarithmic):
        q(x).backward(g)
    s = plain.scale.detach()
    torch.testing.assert_close(
        logarithmic.log2_scale.grad, plain.scale.grad * s * torch.tensor(2.0).log(),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    if not plain.symmetric:
        equal(logarithmic.zero_point.grad, plain.zero_point.grad)


@given(st.integers(0, 1000), st.floats(-3, 18), st.booleans())
def test_gradients_reach_a_real_zero_point(seed, z, logarithmic):
    """Rounded and clamped when used; eq. (39) goes through to where it is on the grid."""
    q = made(dict(bits=4), seed, logarithmic=logarithmic)
    q.zero_point.data.fill_(z)
    s, whole = (v.detach() for v in q.scale_zero_point())
    assert whole == min(max(torch.tensor(z).round(), 0), 15)
    x, g = 2 * data(seed + 1), data(seed + 2)
    q(x).backward(g)
    on_grid = 0 <= torch.tensor(z).round() <= 15
    expected = on_grid * (g * derivative_by_zero_point(x, s, whole, q.grid)).sum()
    torch.testing.assert_close(q.zero_point.grad, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 1000), st.sampled_from(KINDS[:4]), st.booleans())
def test_normalize_divides_by_the_root_of_elements_times_levels(seed, kind, logarithmic):
    plain = made(kind, seed, logarithmic=logarithmic)
    divided = made(kind, seed, logarithmic=logarithmic, normalize=True)
    x = 2 * data(seed + 1)
    equal(plain(x), divided(x))
    for q in (plain, divided):
        q(x).square().sum().backward()
    name = "log2_scale" if logarithmic else "scale"
    mine, theirs = (getattr(q, name).grad for q in (divided, plain))
    elements = x.numel() / plain.scale.numel()
    torch.testing.assert_close(
        mine, theirs / (elements * plain.grid.quant_max) ** 0.5, rtol=1e-5, atol=1e-7
    )
    if not plain.symmetric:
        equal(divided.zero_point.grad, plain.zero_point.grad)


def test_eq_38_in_one_number():
    q = made(dict(bits=4, signed=True, symmetric=True))
    s, x = q.scale.detach().clone(), 2 * data(3)
    q(x).sum().backward()
    expected = derivative_by_scale(x, s, torch.tensor(0.0), q.grid).sum()
    torch.testing.assert_close(q.scale.grad, expected, rtol=1e-4, atol=1e-4)


# --- Keeping and loading --------------------------------------------------------------------------


@pytest.mark.parametrize("receiver", ["fresh", "observed", "frozen", "learning", "logarithmic"])
@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_state_dict_in_both_directions(kind, logarithmic, receiver):
    """From a trained quantizer to one in any stage; then both train on alike."""
    q = trained(made(kind, logarithmic=logarithmic, normalize=True))
    file = io.BytesIO()
    torch.save(q.state_dict(), file)
    file.seek(0)
    other = Quantizer(**kind)
    if receiver != "fresh":
        other(data(9))
    if receiver == "frozen":
        other.freeze()
    if receiver in ("learning", "logarithmic"):
        other.learn(logarithmic=receiver == "logarithmic")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.stage, other.normalize) == ("learn", True)
    assert (other.log2_scale is None) == (q.log2_scale is None)
    for a in (other, copy.deepcopy(q)):
        equal(a(data(3)), q(data(3)))
        assert [p.requires_grad for p in a.parameters()] == [
            p.requires_grad for p in q.parameters()
        ]
    trained(other), trained(q)
    equal(other(data(3)), q(data(3)))
    for b in (q.freeze(), other.freeze()):
        equal(b.scale, q.scale_zero_point()[0])
    # And back: what is frozen now goes into one that learns, whose optimizer keeps its parameter.
    third = made(kind, 8, logarithmic=True)
    held = third.log2_scale
    third.load_state_dict(q.state_dict())
    assert third.stage == "frozen" and not any(p.requires_grad for p in third.parameters())
    equal(third(data(3)), q(data(3)))
    torch.testing.assert_close(third.learn(logarithmic=True)(data(3)), q(data(3)))
    assert third.log2_scale is held


def test_loading_keeps_the_parameter_that_an_optimizer_holds():
    q, other = made(KINDS[1], logarithmic=True), made(KINDS[1], 4, logarithmic=True)
    before = other.log2_scale
    other.load_state_dict(q.state_dict())
    assert other.log2_scale is before


def test_a_state_without_this_quantizer_changes_nothing():
    net = torch.nn.Sequential(torch.nn.Linear(7, 7), made(dict(bits=4), logarithmic=True))
    expected = net[1](data(3))
    net.load_state_dict({"0.weight": torch.eye(7), "0.bias": torch.zeros(7)}, strict=False)
    assert net[1].log2_scale is not None
    equal(net(data(3)), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_saving_and_leaving_write_the_scale(kind):
    q = trained(made(kind, logarithmic=True))
    scale, zero_point = (v.detach().clone() for v in q.scale_zero_point())
    equal(q.state_dict()["scale"], scale)
    assert q.log2_scale is not None and q.stage == "learn"  # saving ends nothing
    y = q(data(3)).detach()
    q.freeze()
    equal(q.scale, scale)
    equal(q(data(3)), y)
    grid = {k: v for k, v in kind.items() if k not in ("symmetric", "power_of_two")}
    equal(y, fake_quantize(data(3), scale, zero_point, **grid))
    q.learn(logarithmic=True)
    torch.testing.assert_close(q.scale_zero_point()[0], scale, rtol=1e-6, atol=0)
    equal(q.forget_training().scale, scale)
    assert q.log2_scale is None and q.stage == "frozen"


@pytest.mark.parametrize("away", ["freeze", "off", "observe"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_who_leaves_training_and_comes_back_finds_the_same_parameters(kind, away):
    """An optimizer holds them; and where nothing happened in between, training goes on alike."""
    q = trained(made(kind, logarithmic=True))
    never = copy.deepcopy(q)
    before = dict(q.named_parameters())
    getattr(q, away)()
    assert not any(p.requires_grad for p in q.parameters())
    if away == "observe":
        q(data(9)), never.set_range(*(v.clone() for v in (q.low, q.high)))
    q.learn(logarithmic=True)
    assert dict(q.named_parameters()).keys() == before.keys()
    assert all(p is before[name] for name, p in q.named_parameters())
    trained(q), trained(never)
    equal(q(data(3)), never(data(3)))


def test_a_scale_that_is_trained_itself_has_no_logarithm():
    q = made(KINDS[1], logarithmic=True).learn()
    assert q.log2_scale is None and q.scale.requires_grad


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_observing_after_learning_starts_again(kind):
    q = trained(made(kind, logarithmic=True)).observe()
    assert not any(p.requires_grad for p in q.parameters())
    q(data(1))
    expected = Quantizer(**kind)
    expected(data(1))
    equal(q.freeze()(data(3)), expected.freeze()(data(3)))
    q.learn(logarithmic=True).set_range(q.low * 2, q.high * 2)
    expected.set_range(expected.low * 2, expected.high * 2)
    torch.testing.assert_close(
        q.scale_zero_point()[0], expected.scale_zero_point()[0], rtol=1e-6, atol=0
    )
