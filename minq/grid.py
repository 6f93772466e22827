"""The integer grid as a value, with equations 4 to 8 of the paper on checked arrays.

A real number x is stored as a small integer on a grid with step ``scale`` (in the unit of x):

    x_int = clamp(round(x / scale) + zero_point; n, p)        eq. (4)
    x_hat = scale * (x_int - zero_point)                      eq. (6)

``Grid`` holds n and p, the smallest and the largest integer.

The methods of ``Grid`` check nothing: they take arrays of one library, one float dtype and shapes
that broadcast. ``operands`` checks arguments and brings them to that form; ``minq.affine`` does
both in one call. Everything here works on NumPy arrays and on torch tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from array_api_compat import is_torch_array

from minq._checks import Array, as_float, check_bits, clamp, compute_dtype, like, namespace
from minq.granularity import Granularity

Rounding = Callable[[Array], Array]

# --- Rounding -------------------------------------------------------------------------------------


def round_half_even(x: Array) -> Array:
    """The nearest integer, ties to the even one; its gradient is 0 almost everywhere.

    Args:
        x: float, any shape.

    Returns:
        Whole numbers in the dtype of x.

    >>> round_half_even(np.array([0.5, 1.5, 2.5, -0.5]))
    array([ 0.,  2.,  2., -0.])
    """
    return namespace(x).round(x)


def round_straight_through(x: Array) -> Array:
    """Round half to even, with the gradient of the identity, eq. (36). For torch tensors.

    The value is exactly ``round(x)``: x and its rounding are so close that their difference, and
    the sum with x again, are free of error. Autograd sees only the first x.

    Args:
        x: a float tensor, any shape.

    Returns:
        Whole numbers in the dtype of x.

    >>> import torch
    >>> x = torch.tensor(1.7, requires_grad=True)
    >>> y = round_straight_through(x); y.backward(); y.item(), x.grad.item()
    (2.0, 1.0)
    """
    return x + (round_half_even(x) - x).detach()  # eq. (36)


# --- The integer grid -----------------------------------------------------------------------------


class Grid(NamedTuple):
    """The integers from ``quant_min`` to ``quant_max``: n and p of the formulas.

    ``integer_grid`` makes one from a number of bits. A pair by nature: ``n, p = grid``. A subclass
    that holds some of these integers only, such as powers of two, has a ``quantize`` of its own.

    >>> grid = integer_grid(4, signed=True)
    >>> grid, grid.bits, grid.signed, grid.narrow_range
    (Grid(quant_min=-8, quant_max=7), 4, True, False)
    """

    quant_min: int
    quant_max: int

    @property
    def bits(self) -> int:
        """Bits of a code: the smallest b for which 2^b codes are enough."""
        return self.steps.bit_length()

    @property
    def steps(self) -> int:
        """From one end to the other: p - n."""
        return self.quant_max - self.quant_min

    @property
    def even(self) -> bool:
        """Whether every integer from n to p is a level, so that eq. (4) rounds to it."""
        return type(self).quantize is Grid.quantize

    @property
    def whole(self) -> bool:
        """Whether a zero-point is one of its integers; ``minq.minimum`` has the grid without."""
        return True

    @property
    def real(self) -> str:
        """What of it is no integer, in words, so that integers cannot compute with it; or ""."""
        return ""

    @property
    def signed(self) -> bool:
        """Whether it holds negative integers."""
        return self.quant_min < 0

    @property
    def narrow_range(self) -> bool:
        """Whether it is its own mirror image: n = -p."""
        return self.quant_min == -self.quant_max

    def clamp(self, x: Array, out: Array | None = None) -> Array:
        """Eq. (5): n below n, p above p, else x itself, and with it the gradient 1 also at n and p.

        torch.clamp gives the same values; whether the ends get a gradient depends on its version.
        """
        n, p = self
        if out is None and getattr(x, "requires_grad", False):
            where = namespace(x).where
            return where(x < n, n, where(x > p, p, x))  # eq. (5)
        return clamp(x, n, p, out=out)

    def quantize(
        self, x: Array, scale: Array, zero_point: Array, rounding: Rounding = round_half_even
    ) -> Array:
        """Eq. (4): clamp(round(x / s) + z; n, p), whole numbers in the dtype of x."""
        with np.errstate(over="ignore"):  # a quotient that overflows to infinity is clamped anyway
            u = rounding(x / scale)
        if _must_stay(u, zero_point):
            return self.clamp(u + zero_point)  # eq. (4)
        u += zero_point
        return self.clamp(u, out=u)  # eq. (4), (5)

    @staticmethod
    def dequantize(x_int: Array, scale: Array, zero_point: Array) -> Array:
        """Eq. (6): s (x_int - z). All three have one float dtype; x_int may be overwritten."""
        if _must_stay(x_int, scale, zero_point):
            return scale * (x_int - zero_point)  # eq. (2), (6), (8a)
        x_int -= zero_point
        x_int *= scale
        return x_int  # eq. (2), (6), (8a)

    def fake_quantize(
        self, x: Array, scale: Array, zero_point: Array, rounding: Rounding = round_half_even
    ) -> Array:
        """Eq. (7): s [clamp(round(x / s) + z; n, p) - z], which is eq. (4), then eq. (6)."""
        x_int = self.quantize(x, scale, zero_point, rounding)
        return self.dequantize(x_int, scale, zero_point)  # eq. (7)

    def limits(self, scale: Array, zero_point: Array) -> tuple[Array, Array]:
        """The real numbers at both ends: q_min = s (n - z), q_max = s (p - z)."""
        return scale * (self.quant_min - zero_point), scale * (self.quant_max - zero_point)

    def hold(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The range, widened to contain 0, which has to be a level."""
        return clamp(low, high=0.0), clamp(high, low=0.0)

    def as_zero_point(self, v: Array, rounding: Rounding = round_half_even) -> Array:
        """The zero-point next to a real number: whole, and on the grid."""
        return self.clamp(rounding(v))

    def cover(
        self, low: Array, high: Array, *, symmetric: bool = False, power_of_two: bool = False
    ) -> tuple[Array, Array]:
        """The scale and zero-point with which the grid covers [low, high]. Checks its arguments.

        The range is first widened to contain 0, so that 0 is exact. Then

            asymmetric:   s = (high - low) / (p - n),   z = clamp(round(n - low / s); n, p)
            symmetric:    s = max(low / n, high / p),   z = 0

        and with ``power_of_two`` the scale is rounded up to 2^k, so that a shift can multiply by
        it. A range that is all zero gets scale 1: every grid holds 0.

        Args:
            low, high: float, any equal shape.
            symmetric: no zero-point.
            power_of_two: round the scale up to a power of two.

        Returns:
            scale (float) and zero_point (int32), in the shape of low. Rounding the zero-point can
            move the ends of the grid by up to scale / 2.

        Raises:
            ValueError: low > high, or a negative low meets the unsigned symmetric grid.

        >>> scale, zero_point = Grid(0, 3).cover(-1.0, 2.0)
        >>> float(scale), int(zero_point)
        (1.0, 1)
        """
        n, p = self
        low, high = self.hold(*_range(low, high))
        xp, dtype = namespace(low), low.dtype
        if symmetric and not self.signed and bool(xp.any(low < 0)):
            raise ValueError(
                f"the unsigned symmetric grid cannot hold {float(xp.min(low)):g}; "
                "pass signed=True, or symmetric=False"
            )
        with np.errstate(over="ignore"):
            if not symmetric:
                scale = (high - low) / self.steps
            elif n == 0:
                scale = high / p  # eq. (8b), unsigned
            else:
                scale = xp.maximum(low / n, high / p)  # eq. (8c), signed
        if not bool(xp.all(xp.isfinite(scale))):
            raise ValueError(f"the range is too wide for {dtype}; convert low and high to float64")
        # A range so small that its step would underflow still needs a step above 0.
        smallest = xp.asarray(xp.finfo(dtype).smallest_normal, dtype=dtype)
        scale = xp.where(low == high, xp.ones_like(scale), xp.maximum(scale, smallest))
        if power_of_two:
            scale = _round_up_to_power_of_two(scale)
        zero_point = xp.zeros_like(scale) if symmetric else self.as_zero_point(n - low / scale)
        return scale, xp.astype(zero_point, xp.int32) if self.whole else zero_point


def integer_grid(bits: int | Grid, *, signed: bool = False, narrow_range: bool = False) -> Grid:
    """The grid of ``bits`` bits: its smallest and largest integer (n, p), eq. (4) and (8).

    Unsigned: [0, 2^b - 1]. Signed: [-2^(b-1), 2^(b-1) - 1]. Signed with a narrow range: the lowest
    level is given up so that the grid is its own mirror image, [-(2^(b-1) - 1), 2^(b-1) - 1].
    A ``Grid`` in place of bits is what it is, whatever the flags say.

    Args:
        bits: b, from 1 to 16, or a grid.
        signed: whether its integers go below 0.
        narrow_range: leave out the lowest one.

    Returns:
        The grid.

    Raises:
        ValueError: ``bits`` is not from 1 to 16, or 1 on a signed grid (it would hold no positive
            level), or ``narrow_range`` is asked of an unsigned grid.

    >>> [tuple(integer_grid(8, signed=s, narrow_range=r)) for s, r in ((0, 0), (1, 0), (1, 1))]
    [(0, 255), (-128, 127), (-127, 127)]
    """
    if isinstance(bits, Grid):
        return bits
    bits = check_bits(bits)
    if not signed:
        if narrow_range:
            raise ValueError("only a signed grid can have a narrow range; pass signed=True as well")
        return Grid(0, 2**bits - 1)
    if bits == 1:
        raise ValueError(
            "a signed grid of 1 bit has no positive level; use 2 bits or more, or signed=False"
        )
    p = 2 ** (bits - 1) - 1
    return Grid(-p if narrow_range else -p - 1, p)


INT4 = integer_grid(4, signed=True)
"""The grid of 4-bit weights, -8 to 7."""


def _range(low: Array, high: Array) -> tuple[Array, Array]:
    """A range in one float dtype, checked."""
    low = as_float(low, "low")
    dtype = compute_dtype(low)
    high = as_float(like(high, low, dtype, "high"), "high")
    low = like(low, low, dtype, "low")
    if low.shape != high.shape:
        raise ValueError(f"low {tuple(low.shape)} and high {tuple(high.shape)} differ in shape")
    if bool(namespace(low).any(low > high)):
        raise ValueError("low is above high; the range must be given as (low, high)")
    return low, high


def _round_up_to_power_of_two(scale: Array) -> Array:
    """The smallest 2^k that is at least ``scale``, exactly: scale = m 2^k with m in [1/2, 1)."""
    mantissa, _ = scale.frexp() if is_torch_array(scale) else np.frexp(scale)
    return namespace(scale).where(mantissa == 0.5, scale, scale / mantissa)


def _must_stay(u: Array, *others: Array) -> bool:
    """Whether ``u`` must not be overwritten: autograd may need it, or it is a NumPy scalar.

    Overwriting saves most of the time on large arrays, which would go into fresh memory.
    """
    return u.ndim == 0 or any(getattr(v, "requires_grad", False) for v in (u, *others))


# --- From arguments to operands -------------------------------------------------------------------


def operands(
    x: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    granularity: Granularity,
    name: str = "x",
) -> tuple[Array, Array, Array]:
    """x, scale and zero_point, checked, in one float dtype and shapes that broadcast.

    Args:
        x: float, any shape; half floats become float32.
        scale, zero_point: as ``granularity`` says, or single numbers.
        name: what an error calls x.

    Raises:
        TypeError, ValueError: NaN, infinite, empty or integer x, a scale that is not positive, a
            zero-point off the grid, shapes that do not fit.

    >>> x, scale, zero_point = operands(np.eye(2), [0.5, 0.25], 0, Grid(0, 7), Granularity(0))
    >>> scale.shape, zero_point.shape
    ((2, 1), ())
    """
    x = as_float(x, name)
    dtype = compute_dtype(x)
    scale = check_scale(like(scale, x, dtype, "scale"))
    zero_point = check_zero_point(like(zero_point, x, dtype, "zero_point"), grid)
    scale = granularity.align(scale, x.shape, "scale")
    zero_point = granularity.align(zero_point, x.shape, "zero_point")
    return namespace(x).astype(x, dtype, copy=False), scale, zero_point


def check_scale(scale: Array) -> Array:
    """``scale``, which must be positive and finite."""
    xp = namespace(scale)
    if not bool(xp.all((scale > 0) & xp.isfinite(scale))):
        worst = float(xp.min(xp.where(xp.isfinite(scale), scale, -xp.inf)))
        raise ValueError(
            f"scale must be positive and finite in {scale.dtype}, found {worst:g}; "
            "scale_zero_point gives a valid one, also for an empty range"
        )
    return scale


def check_zero_point(zero_point: Array, grid: Grid) -> Array:
    """``zero_point``, which must be whole and on the grid, or on a grid without, finite."""
    xp, (n, p) = namespace(zero_point), grid
    if not grid.whole:
        return as_float(zero_point, "zero_point")
    on_grid = (zero_point >= n) & (zero_point <= p) & (xp.round(zero_point) == zero_point)
    if not bool(xp.all(on_grid)):
        raise ValueError(
            f"zero_point must be whole and on the grid [{n}, {p}]; round and clamp it, "
            "or choose another grid with bits= and signed="
        )
    return zero_point
