"""Accumulators to the next layer's integers, by a multiplication and a shift: figure 2."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import is_torch_array

from minq._checks import Array, as_float, like
from minq.granularity import Granularity
from minq.grid import check_zero_point, integer_grid
from minq.mac.products import as_integers, magnitude


def fixed_point_multiplier(ratio: Array) -> tuple[Any, Any]:
    """A positive number as hardware multiplies by it: an integer and a right shift.

        ratio ~ multiplier 2^-shift,   multiplier in [2^30, 2^31)

    The multiplier is rounded to 31 bits, so |multiplier 2^-shift - ratio| is at most 2^-(shift + 1)
    and at most 2^-31 ratio.

    Args:
        ratio: positive, a number or an array.

    Returns:
        multiplier and shift: two ints of a number, two int64 arrays of an array.

    Raises:
        TypeError, ValueError: ``ratio`` is not positive, finite and floating point.

    >>> fixed_point_multiplier(0.75)
    (1610612736, 31)
    """
    ratio = as_float(ratio, "scale_ratio")
    if is_torch_array(ratio):
        ratio = ratio.detach().double().cpu().numpy()
    ratio = np.asarray(ratio, np.float64)
    if not (ratio > 0).all():
        raise ValueError(f"scale_ratio must be positive, found {ratio.min():g}; see quantize")
    fraction, exponent = np.frexp(ratio)  # ratio = fraction 2^exponent, fraction in [1/2, 1)
    multiplier = np.rint(np.ldexp(fraction, 31)).astype(np.int64)
    shift = 31 - exponent.astype(np.int64)
    carry = multiplier == 2**31
    multiplier, shift = np.where(carry, 2**30, multiplier), shift - carry
    return (multiplier, shift) if ratio.ndim else (int(multiplier), int(shift))


def requantize(
    acc: Array,
    scale_ratio: Array,
    zero_point: Array = 0,
    bits: int = 8,
    *,
    signed: bool = False,
    narrow_range: bool = False,
    axis: int | None = None,
    rounding: str = "half_up",
) -> Array:
    """Accumulators to the next layer's integers without a float, as in figure 2.

        y_int = clamp(round(acc ratio) + zero_point; n, p),    ratio = s_w s_x / s_y
        round(acc ratio) ~ (acc multiplier + 2^(shift - 1)) >> shift

    All steps are exact in 64 bits: the product stays within 2^62.

    **Error.** Only the multiplier is inexact, so what is rounded to an integer is off by at most

        delta = |acc ratio| 2^-31,

    which is at most 2^-23 wherever an 8-bit result is not clamped. So y_int equals the result of
    exact arithmetic unless acc * ratio lies within delta of a tie, and then differs by one step.

    Args:
        acc: integers that fit 32 bits, any shape.
        scale_ratio: positive and below 2^31, one number or one for each index of ``axis``.
        zero_point: of the next layer's grid; one, or one for each index of ``axis``.
        bits: of that grid.
        signed: whether its integers go below 0.
        narrow_range: leave out the lowest integer.
        axis: of the channels, where they have ratios of their own.
        rounding: ties go up, toward +infinity ("half_up", TFLite's single rounding), or to the even
            neighbour ("half_even", the rounding of ``quantize``).

    Returns:
        int32, of acc's shape.

    Raises:
        TypeError, ValueError: for accumulators that are not integers or exceed 32 bits, ratios that
            are not in (0, 2^31), zero-points off the grid, and shapes that do not fit.

    >>> requantize([-3, -1, 1, 3, 1000], 0.5, signed=True)
    array([ -1,   0,   1,   2, 127], dtype=int32)
    >>> requantize([-3, -1, 1, 3, 1000], 0.5, signed=True, rounding="half_even")
    array([ -2,   0,   0,   2, 127], dtype=int32)
    """
    if rounding not in ("half_up", "half_even"):
        raise ValueError(f'rounding must be "half_up" or "half_even", not {rounding!r}')
    grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)
    x, back = as_integers(acc, "acc")
    if x.min() < -(2**31) or x.max() >= 2**31:
        raise ValueError(
            f"acc holds {magnitude(x)}, beyond 32 bits, where a 64-bit product would overflow; "
            "shift it right first, and multiply scale_ratio by the same power of two"
        )
    # Two ints would have 32 bits in WebAssembly, where NumPy's own integer is that short.
    multiplier, shift = (np.asarray(v, np.int64) for v in fixed_point_multiplier(scale_ratio))
    if (shift < 0).any():
        raise ValueError("scale_ratio must be below 2^31; check s_w * s_x / s_y")
    # Below 2^-32 every 32-bit accumulator rounds to 0, and int64 has no such shift.
    multiplier, shift = np.where(shift > 62, 0, multiplier), np.minimum(shift, 62)
    granularity = Granularity(axis)
    multiplier = granularity.align(multiplier, x.shape, "scale_ratio")
    shift = granularity.align(shift, x.shape, "scale_ratio")
    z = check_zero_point(like(zero_point, x, np.float64, "zero_point"), grid).astype(np.int64)
    z = granularity.align(z, x.shape, "zero_point")

    y = rounded_shift(x.astype(np.int64) * multiplier, shift, rounding)
    return back(grid.clamp(y + z).astype(np.int32))


def rounded_shift(product: Array, shift: Array, rounding: str = "half_even") -> Array:
    """round(product 2^-shift), by an addition and a shift: (product + 2^(shift - 1)) >> shift.

    Nothing is checked.

    Args:
        product: int64, below 2^62 in magnitude.
        shift: int64 of the same library, 0 to 62, of a shape that broadcasts.
        rounding: ties go up ("half_up") or to the even neighbour ("half_even").

    Returns:
        int64.

    >>> rounded_shift(np.array([-6, -2, 2, 5, 6]), np.array(2))
    array([-2,  0,  0,  1,  2])
    >>> rounded_shift(np.array([-6, -2, 2, 5, 6]), np.array(2), "half_up")
    array([-1,  0,  1,  1,  2])
    """
    half = ((shift * 0 + 1) << shift) >> 1
    y = (product + half) >> shift  # the shift of a negative number rounds down
    if rounding == "half_even":
        tie = (product & (2 * half - 1)) == half
        y = y - (tie & (y % 2 == 1)) * 1
    return y
