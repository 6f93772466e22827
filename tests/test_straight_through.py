"""Eq. (36) to (39): the fused quantizer against the formula, closed forms, torch's own kernels."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minq import Granularity, Grid, fake_quantize, integer_grid
from minq.grid import round_half_even, round_straight_through
from minq.straight_through import (
    clamp,
    derivative_by_input,
    derivative_by_scale,
    derivative_by_zero_point,
    fake_quantize_trained,
    scale_gradient,
)

FORMS = [((), None, None), ((5,), 0, None), ((4, 6), None, None), ((4, 6), 0, None),
         ((4, 6), 1, 4), ((3, 5, 2), -1, None), ((3, 7), None, 4), ((2, 3, 4, 5), 1, None),
         ((6, 3, 3, 3), 0, 5), ((2, 3, 4, 5), None, None), ((1, 3, 1, 1), None, None)]  # fmt: skip
"""Shape, axis, group."""
LAYOUTS = ["contiguous", "channels_last", "transposed", "strided"]


class Case:
    """Numbers to quantize: many in the middle between two levels, many outside the grid."""

    def __init__(self, seed, form, bits, signed, dtype, layout="contiguous", exact=True):
        rng = torch.Generator().manual_seed(seed)
        shape, self.axis, self.group = form
        self.granularity = Granularity(self.axis, self.group)
        self.bits, self.signed = bits, signed
        self.n, self.p = self.grid = integer_grid(bits, signed=signed)
        size = self.granularity.scale_shape(shape)
        self.scale = torch.rand(size, generator=rng, dtype=dtype) + 0.1
        if exact:  # powers of two: x / scale is what we want it to be
            self.scale = self.scale.log2().round().exp2()
        self.zero_point = torch.randint(self.n, self.p + 1, size, generator=rng).to(dtype)
        width = self.p - self.n + 4
        steps = torch.rand(shape, generator=rng, dtype=dtype) * 1.5 * width - 0.25 * width
        ties = steps.floor() + 0.5
        u = torch.where(torch.rand(shape, generator=rng) < 0.4, ties, steps)
        s, z = self.aligned(u)
        self.x = lay(s * (u + self.n - z), layout)
        self.g = lay(torch.randn(shape, generator=rng, dtype=dtype), layout)

    def aligned(self, x):
        return (self.granularity.align(v, x.shape) for v in (self.scale, self.zero_point))

    def formula(self, x, scale, zero_point):
        return fake_quantize(
            x, scale, zero_point, self.bits, signed=self.signed, axis=self.axis, group=self.group,
            rounding=round_straight_through,
        )  # fmt: skip


def lay(x, layout):
    """The same values, elsewhere in memory."""
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and x.ndim > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and x.ndim:
        return torch.stack([x, x * torch.nan], -1)[..., 0]
    return x


cases = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    form=st.sampled_from(FORMS),
    bits=st.integers(2, 16),
    signed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(LAYOUTS),
    exact=st.booleans(),
) | st.builds(
    Case,
    seed=st.integers(0, 10**6),
    form=st.sampled_from(FORMS),
    bits=st.just(1),
    signed=st.just(False),
    dtype=st.just(torch.float32),
)


def bits_of(x):
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)


@given(cases, st.booleans())
def test_value_is_fake_quantize_bit_for_bit(case, learns):
    s, z = case.aligned(case.x)
    y = fake_quantize_trained(case.x.requires_grad_(learns), s, z, case.grid)
    for rounding in (round_straight_through, round_half_even):
        expected = fake_quantize(
            case.x.detach(), case.scale, case.zero_point, case.bits, signed=case.signed,
            axis=case.axis, group=case.group, rounding=rounding,
        )  # fmt: skip
        assert y.dtype == expected.dtype and torch.equal(bits_of(y), bits_of(expected))
    if case.x.is_contiguous(memory_format=torch.channels_last) if case.x.ndim == 4 else False:
        assert y.is_contiguous(memory_format=torch.channels_last)
    zero = torch.zeros_like(case.scale).clamp(case.n, case.p)
    y = fake_quantize_trained(case.x, s, None, case.grid)
    assert torch.equal(y, case.formula(case.x, case.scale, zero))


@given(cases)
def test_gradients_are_those_of_the_formula(case):
    """Autograd of eq. (7) with straight-through rounding; sums within (terms + 8) roundings."""
    parts = (case.x, case.scale, case.zero_point)
    leaves = [v.detach().clone().requires_grad_() for v in parts]
    case.formula(*leaves).backward(case.g)
    mine = [v.detach().clone().requires_grad_() for v in parts]
    s, z = (case.granularity.align(v, case.x.shape) for v in mine[1:])
    y = fake_quantize_trained(mine[0], s, z, case.grid)
    y.backward(case.g)

    epsilon = torch.finfo(case.x.dtype).eps
    terms = case.x.numel() + 8
    torch.testing.assert_close(mine[0].grad, leaves[0].grad, rtol=4 * epsilon, atol=0)
    with torch.no_grad():
        s, z, g = s.detach(), z.detach(), case.g.abs()
        size = g * (y.detach().abs() / s + (case.x / s).abs().clamp(max=case.p - case.n + 1) + 1)
    for k, bound in ((1, size), (2, 2 * g * s)):
        # How large the sums are that each derivative is made of, summed by autograd itself.
        probe = torch.ones_like(case.scale, requires_grad=True)
        one = case.granularity.align(probe, case.x.shape)
        (largest,) = torch.autograd.grad((one * bound).sum(), probe)
        assert ((mine[k].grad - leaves[k].grad).abs() <= epsilon * terms * largest).all()


@given(cases)
def test_gradients_are_the_closed_forms(case):
    """Each element alone: what comes back for it is eq. (37), (38), (39) as they are written."""
    x, g = case.x.detach(), case.g
    s, z = (v.expand_as(x).clone() for v in case.aligned(x))
    leaves = [v.clone().requires_grad_() for v in (x, s, z)]
    fake_quantize_trained(*leaves, case.grid).backward(g)
    forms = (derivative_by_input, derivative_by_scale, derivative_by_zero_point)
    epsilon = torch.finfo(x.dtype).eps
    levels = (x / s).abs().clamp(max=case.p - case.n + 1) + 1
    for leaf, form, size in zip(leaves, forms, (1, levels, s), strict=True):
        expected = g * form(x, s, z, case.grid)
        assert ((leaf.grad - expected).abs() <= 4 * epsilon * g.abs() * size).all(), form


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3))[:-1])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_any_of_the_three_can_be_trained_alone(form, wanted):
    case = Case(1, form, 4, True, torch.float64)
    everything = [v.clone().requires_grad_() for v in (case.x, *case.aligned(case.x))]
    some = [v.detach().clone().requires_grad_(w) for v, w in zip(everything, wanted, strict=True)]
    for leaves in (everything, some):
        fake_quantize_trained(*leaves, case.grid).backward(case.g)
    for a, b, w in zip(everything, some, wanted, strict=True):
        assert torch.equal(a.grad, b.grad) if w else b.grad is None


def test_a_gradient_that_is_one_number_everywhere():
    """The gradient of a sum has no memory of its own, only strides of 0."""
    case = Case(3, ((2, 3, 4, 5), None, None), 3, False, torch.float64)
    s = case.scale.requires_grad_()
    fake_quantize_trained(case.x, s, case.zero_point, case.grid).sum().backward()
    parts = (case.x, s.detach(), case.zero_point, case.grid)
    torch.testing.assert_close(s.grad, derivative_by_scale(*parts).sum())


# --- Oracles that are not ours --------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 8), st.booleans(), st.booleans())
def test_torch_has_the_same_learnable_quantizer(seed, bits, signed, per_channel):
    """torch multiplies by 1 / s, which may differ at ties; so no value is near one.

    Zero-points below 0 are left out: at one of them its kernel for one scale clipped elsewhere
    (torch 2.15).
    """
    signed = signed and bits > 1
    n, p = integer_grid(bits, signed=signed)
    rng = torch.Generator().manual_seed(seed)
    shape, size = (4, 3, 5), (3,) if per_channel else (1,)
    scale = (torch.rand(size, generator=rng) + 0.1).requires_grad_()
    lowest = n if per_channel else max(n, 0)
    zero_point = torch.randint(lowest, p + 1, size, generator=rng).float().requires_grad_()
    with torch.no_grad():
        s, z = (v.reshape(-1, 1) for v in (scale, zero_point))
        levels = torch.randint(n - 3, p + 4, shape, generator=rng)
        x = s * (levels - z + 0.8 * torch.rand(shape, generator=rng) - 0.4)
    g = torch.randn(shape, generator=rng)

    leaves = [x.clone().requires_grad_(), scale, zero_point]
    if per_channel:
        theirs = torch._fake_quantize_learnable_per_channel_affine(*leaves, 1, n, p, 1.0)
    else:
        theirs = torch._fake_quantize_learnable_per_tensor_affine(*leaves, n, p, 1.0)
    expected = torch.autograd.grad(theirs, leaves, g)
    ours = fake_quantize_trained(
        leaves[0], *(v.reshape(-1, 1) if per_channel else v for v in leaves[1:]), Grid(n, p)
    )
    found = torch.autograd.grad(ours, leaves, g)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    levels = p - n + 3
    atol = 1e-6 * float(g.abs().sum())
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=atol * levels)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=atol)


@given(st.integers(0, 10**6), st.sampled_from(FORMS), st.integers(2, 8), st.booleans())
def test_finite_differences_where_they_exist(seed, form, bits, signed):
    case = Case(seed, form, bits, signed, torch.float64, exact=False)
    x = case.x
    s, z = (v.expand_as(x).clone() for v in case.aligned(x))
    f = lambda x, s, z: fake_quantize_trained(x, s, z, case.grid)  # noqa: E731
    leaves = [v.clone().requires_grad_() for v in (x, s, z)]
    by_x, by_s, by_z = torch.autograd.grad(f(*leaves).sum(), leaves)

    def slope(dx, ds, dz, h=1e-6):
        return (f(x + h * dx, s + h * ds, z + h * dz) - f(x - h * dx, s - h * ds, z - h * dz)) / (
            2 * h
        )

    # A clipped value is s (n - z) or s (p - z), whatever x is: smooth in all three.
    level = x / s + z
    clipped = (level < case.n - 1) | (level > case.p + 1)
    for found, direction in ((by_x, (1, 0, 0)), (by_s, (0, 1, 0)), (by_z, (0, 0, 1))):
        error = (slope(*direction) - found)[clipped]
        assert (error.abs() < 1e-7 * (case.p - case.n + 1)).all()
    # Scale and data grow together: x_hat (t x, t s) = t x_hat (x, s), no rounding changes.
    off_ties = ((x / s) - (x / s).floor() - 0.5).abs() > 1e-4
    euler = x * by_x + s * by_s
    torch.testing.assert_close(slope(x, s, 0)[off_ties], euler[off_ties], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(euler, f(x, s, z), rtol=1e-12, atol=1e-12)


# --- The two helpers ------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from(LAYOUTS))
def test_clamp_is_torch_clamp(seed, layout):
    rng = torch.Generator().manual_seed(seed)
    x = lay(4 * torch.randn(2, 3, 4, 5, generator=rng), layout)
    low, high = torch.zeros(3, 1, 1), torch.rand(3, 1, 1, generator=rng) + 1
    g = lay(torch.randn(x.shape, generator=rng), layout)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = clamp(a, low, high), torch.clamp(b, low, high)
    for y in (ours, theirs):
        y.backward(g)
    assert torch.equal(ours, theirs) and torch.equal(a.grad, b.grad)
    assert torch.equal(clamp(x, low, high), theirs)


def test_clamp_lets_the_ends_through():
    x = torch.tensor([0.0, 6.0, -1e-30, 6.000001], requires_grad=True)
    clamp(x, torch.tensor(0.0), torch.tensor(6.0)).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]


@given(st.floats(-(2.0**99), 2.0**99, width=32), st.floats(0, 8, width=32))
def test_scale_gradient_changes_only_the_gradient(value, factor):
    x = torch.tensor(value, requires_grad=True)
    y = scale_gradient(x, factor)
    (3 * y).backward()
    assert torch.equal(y.detach(), x.detach())
    torch.testing.assert_close(x.grad, torch.tensor(3 * factor), rtol=1e-6, atol=0)
