"""Uniform affine quantization in one call each: equations 4 to 8 of the paper, with all checks.

A real number x is stored as a small integer on a grid with step ``scale`` (in the unit of x):

    x_int = clamp(round(x / scale) + zero_point; n, p)        eq. (4)
    x_hat = scale * (x_int - zero_point)                      eq. (6)

``zero_point`` is the integer that stands for the real number 0, exactly; ``n`` and ``p`` are the
ends of the integer grid. Rounding is half to even, and comes before the zero-point is added.

Every function takes Python numbers, NumPy arrays or torch tensors and answers in kind. ``bits``,
``signed`` and ``narrow_range`` name the grid, as in ``minq.grid.integer_grid``; ``axis`` and
``group`` say how many values share one scale, as in ``minq.granularity.Granularity``.
"""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import is_array_api_obj

from minq._checks import Array, as_float, compute_dtype, like, namespace, saturating_cast
from minq.granularity import Granularity
from minq.grid import (
    Grid,
    Rounding,
    check_scale,
    check_zero_point,
    integer_grid,
    operands,
    round_half_even,
)


def scale_zero_point(
    low: Array,
    high: Array,
    bits: int = 8,
    *,
    signed: bool = False,
    narrow_range: bool = False,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> tuple[Array, Array]:
    """The scale and zero-point with which a grid covers the range [low, high].

    The range is first widened to contain 0, so that 0 is exact. ``minq.grid.Grid.cover`` has the
    formulas, eq. (8) among them.

    Args:
        low, high: float, any equal shape.
        bits, signed, narrow_range: the grid.
        symmetric: no zero-point.
        power_of_two: round the scale up to a power of two.

    Returns:
        scale (float) and zero_point (int32), in the shape of low.

    Raises:
        ValueError: low > high, or a negative low meets the unsigned symmetric grid.

    >>> scale, zero_point = scale_zero_point(-1.0, 2.0, bits=2)
    >>> float(scale), int(zero_point)
    (1.0, 1)
    >>> scale_zero_point([-1.0, 0.0], [0.5, 7.5], bits=4)  # two channels
    (array([0.1, 0.5]), array([10,  0], dtype=int32))
    """
    grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)
    return grid.cover(low, high, symmetric=symmetric, power_of_two=power_of_two)


def grid_limits(
    scale: Array,
    zero_point: Array = 0,
    bits: int = 8,
    *,
    signed: bool = False,
    narrow_range: bool = False,
) -> tuple[Array, Array]:
    """The real numbers at the two ends of the grid: q_min = s (n - z), q_max = s (p - z).

    Args:
        scale: s, positive, any shape.
        zero_point: z, whole, of the same shape.
        bits: of the grid, as are the next two; see ``scale_zero_point``.
        signed: whether its integers go below 0.
        narrow_range: leave out the lowest integer.

    Returns:
        q_min and q_max, of the shape of ``scale``.

    Raises:
        TypeError, ValueError: a scale that is not positive, a zero-point off the grid.

    >>> q_min, q_max = grid_limits(0.5, 3, bits=4)
    >>> float(q_min), float(q_max)
    (-1.5, 6.0)
    """
    grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)
    scale = check_scale(as_float(scale, "scale"))
    zero_point = check_zero_point(like(zero_point, scale, scale.dtype, "zero_point"), grid)
    return grid.limits(scale, zero_point)


def quantize(
    x: Array,
    scale: Array,
    zero_point: Array = 0,
    bits: int = 8,
    *,
    signed: bool = False,
    narrow_range: bool = False,
    axis: int | None = None,
    group: int | None = None,
    rounding: Rounding = round_half_even,
) -> Array:
    """Real numbers to integers: x_int = clamp(round(x / scale) + zero_point; n, p), eq. (4).

    Args:
        x: float, any shape.
        scale, zero_point: one number, or one for each channel or group.
        bits, signed, narrow_range: the grid.
        axis, group: the granularity.
        rounding: real numbers to whole ones.

    Returns:
        int32 in the shape of x, so that later sums cannot overflow; its values fit ``bits`` bits.

    Raises:
        TypeError, ValueError: NaN, infinite, empty or integer input, a scale that is not positive,
            a zero-point off the grid, shapes that do not fit.

    >>> quantize([-1.0, -0.26, 0.0, 0.25, 9.0], scale=0.5, zero_point=1, bits=2)
    array([0, 0, 1, 1, 3], dtype=int32)
    >>> quantize(np.eye(2), scale=[0.5, 0.25], bits=3, axis=0)  # a scale for each row
    array([[2, 0],
           [0, 4]], dtype=int32)
    """
    grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)
    x, scale, zero_point = operands(x, scale, zero_point, grid, Granularity(axis, group))
    return namespace(x).astype(grid.quantize(x, scale, zero_point, rounding), namespace(x).int32)


def dequantize(
    x_int: Array,
    scale: Array,
    zero_point: Array = 0,
    *,
    axis: int | None = None,
    group: int | None = None,
) -> Array:
    """Integers to real numbers: x_hat = scale * (x_int - zero_point), eq. (6).

    Args:
        x_int: any integer dtype.
        scale, zero_point, axis, group: as in ``quantize``.

    Returns:
        The dtype of ``scale``, or the library's default float where scale is a Python number.

    Raises:
        TypeError, ValueError: x_int that is empty or not integer, a scale that is not positive, a
            zero-point that is not whole, shapes that do not fit.

    >>> dequantize([0, 1, 3], scale=0.5, zero_point=1)
    array([-0.5,  0. ,  1. ])
    """
    x_int = x_int if is_array_api_obj(x_int) else np.asarray(x_int)
    xp = namespace(x_int)
    if not xp.isdtype(x_int.dtype, "integral"):
        raise TypeError(f"x_int must be integers, not {x_int.dtype}; call quantize first")
    if math.prod(x_int.shape) == 0:
        raise ValueError("x_int is empty; at least one value is needed")
    scale = as_float(scale if is_array_api_obj(scale) else xp.asarray(scale) * 1.0, "scale")
    given, dtype, granularity = scale.dtype, compute_dtype(scale), Granularity(axis, group)
    scale = check_scale(like(scale, x_int, dtype, "scale"))
    zero_point = like(zero_point, x_int, dtype, "zero_point")
    check_zero_point(zero_point, Grid(-(2**16), 2**16))
    scale = granularity.align(scale, x_int.shape, "scale")
    zero_point = granularity.align(zero_point, x_int.shape, "zero_point")
    x_hat = Grid.dequantize(xp.astype(x_int, dtype), scale, zero_point)
    return saturating_cast(x_hat, given)


def fake_quantize(
    x: Array,
    scale: Array,
    zero_point: Array = 0,
    bits: int = 8,
    *,
    signed: bool = False,
    narrow_range: bool = False,
    axis: int | None = None,
    group: int | None = None,
    rounding: Rounding = round_half_even,
) -> Array:
    """Quantize and come straight back: x_hat = s [clamp(round(x / s) + z; n, p) - z], eq. (7).

    With ``round_straight_through`` as ``rounding``, autograd gives the gradients of eq. (37) to
    (39) for x, scale and zero_point.

    Args:
        x, scale, zero_point, bits, signed, narrow_range, axis, group, rounding: as in ``quantize``.

    Returns:
        The dtype and shape of x.

    Raises:
        TypeError, ValueError: as ``quantize``.

    >>> fake_quantize([-1.0, -0.26, 0.3, 9.0], scale=0.5, zero_point=1, bits=2)
    array([-0.5, -0.5,  0.5,  1. ])
    """
    given = x.dtype if is_array_api_obj(x) else np.float64
    grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)
    x, scale, zero_point = operands(x, scale, zero_point, grid, Granularity(axis, group))
    return saturating_cast(grid.fake_quantize(x, scale, zero_point, rounding), given)


def sqnr(x: Array, x_hat: Array) -> float:
    """Signal-to-quantization-noise ratio in decibels: 10 log10(sum x^2 / sum (x - x_hat)^2).

    6 dB are about one bit.

    Args:
        x: the signal, float, any shape.
        x_hat: what became of it, of the same shape.

    Returns:
        Decibels; infinity where nothing was lost.

    Raises:
        TypeError, ValueError: for data that are no floats, and shapes that differ.

    >>> round(sqnr([1.0, 2.0], [1.0, 1.9]), 2)
    26.99
    """
    x = as_float(x)
    x_hat = as_float(like(x_hat, x, x.dtype, "x_hat"), "x_hat")
    if x.shape != x_hat.shape:
        raise ValueError(f"x {tuple(x.shape)} and x_hat {tuple(x_hat.shape)} differ in shape")
    xp = namespace(x)
    x, x_hat = xp.astype(x, xp.float64), xp.astype(x_hat, xp.float64)
    signal, noise = float(xp.sum(x**2)), float(xp.sum((x - x_hat) ** 2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
