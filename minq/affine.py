"""Uniform affine quantization: equations 4 to 8 of the paper.

A real number x is stored as a small integer on a grid with step ``scale`` (in the unit of x):

    x_int = clamp(round(x / scale) + zero_point; n, p)        eq. (4)
    x_hat = scale * (x_int - zero_point)                      eq. (6)

``zero_point`` is the integer that stands for the real number 0, exactly; ``n`` and ``p`` are the
ends of the integer grid. Rounding is half to even, and comes before the zero-point is added.

Every function takes Python numbers, NumPy arrays or torch tensors and answers in kind. How many
values share one scale is said by ``axis`` and ``group``:

    ====================  =====================  ===============================
    granularity           arguments              shape of scale and zero_point
    ====================  =====================  ===============================
    per tensor            (default)              ``()``
    per channel           ``axis=a``             ``(x.shape[a],)``
    per group of g        ``axis=a, group=g``    ``(x.shape[a], ceil(row / g))``
    per group, one row    ``group=g``            ``(ceil(size / g),)``
    ====================  =====================  ===============================

For groups, the values of a channel are one row, read in memory order and cut into pieces of g; the
last piece may be shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj, is_torch_array

from minq._checks import (
    Array,
    as_float,
    check_axis,
    check_bits,
    check_count,
    clamp,
    compute_dtype,
    like,
    namespace,
)

# --- The integer grid -----------------------------------------------------------------------------


def integer_grid(bits: int, *, signed: bool = False, restricted: bool = False) -> tuple[int, int]:
    """The smallest and largest integer (n, p) of a grid of ``bits`` bits, eq. (4) and (8).

    Unsigned: [0, 2^b - 1]. Signed: [-2^(b-1), 2^(b-1) - 1]. Signed and restricted: the lowest level
    is given up so that the grid is its own mirror image, [-(2^(b-1) - 1), 2^(b-1) - 1].

    >>> integer_grid(8), integer_grid(8, signed=True), integer_grid(8, signed=True, restricted=True)
    ((0, 255), (-128, 127), (-127, 127))

    Raises ValueError where ``bits`` is not from 1 to 16, or 1 on a signed grid (it would hold no
    positive level), or ``restricted`` is asked of an unsigned grid.
    """
    bits = check_bits(bits)
    if not signed:
        if restricted:
            raise ValueError("only a signed grid can be restricted; pass signed=True as well")
        return 0, 2**bits - 1
    if bits == 1:
        raise ValueError(
            "a signed grid of 1 bit has no positive level; use 2 bits or more, or signed=False"
        )
    p = 2 ** (bits - 1) - 1
    return (-p if restricted else -p - 1), p


# --- From a range to a grid -----------------------------------------------------------------------


def scale_zero_point(
    low: Array,
    high: Array,
    bits: int = 8,
    *,
    signed: bool = False,
    restricted: bool = False,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> tuple[Array, Array]:
    """The grid that covers the range [low, high]: its scale and zero-point.

    The range is first widened to contain 0, so that 0 is exact. Then

        asymmetric:   scale = (high - low) / (p - n),   zero_point = clamp(round(n - low / scale))
        symmetric:    scale = max(low / n, high / p),   zero_point = 0

    and with ``power_of_two`` the scale is rounded up to 2^k, so that a shift can multiply by it. A
    range that is all zero gets scale 1: every grid holds 0.

    low, high: float, any equal shape. Returns scale (float, same shape) and zero_point (int32).
    Rounding the zero-point can move the ends of the grid by up to scale / 2.

    >>> scale, zero_point = scale_zero_point(-1.0, 2.0, bits=2)
    >>> float(scale), int(zero_point)
    (1.0, 1)
    >>> scale_zero_point([-1.0, 0.0], [0.5, 7.5], bits=4)  # two channels
    (array([0.1, 0.5]), array([10,  0], dtype=int32))

    Raises ValueError where low > high, or a negative low meets the unsigned symmetric grid.
    """
    n, p = integer_grid(bits, signed=signed, restricted=restricted)
    low = as_float(low, "low")
    dtype = compute_dtype(low)
    high = as_float(like(high, low, dtype, "high"), "high")
    low, xp = like(low, low, dtype, "low"), namespace(low)
    if low.shape != high.shape:
        raise ValueError(f"low {tuple(low.shape)} and high {tuple(high.shape)} differ in shape")
    if bool(xp.any(low > high)):
        raise ValueError("low is above high; the range must be given as (low, high)")
    low, high = clamp(low, high=0.0), clamp(high, low=0.0)
    if symmetric and n == 0 and bool(xp.any(low < 0)):
        raise ValueError(
            f"the unsigned symmetric grid cannot hold {float(xp.min(low)):g}; "
            "pass signed=True, or symmetric=False"
        )

    with np.errstate(over="ignore"):
        if not symmetric:
            scale = (high - low) / (p - n)
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
    zero_point = xp.zeros_like(scale) if symmetric else clamp(xp.round(n - low / scale), n, p)
    return scale, xp.astype(zero_point, xp.int32)


def _round_up_to_power_of_two(scale: Array) -> Array:
    """The smallest 2^k that is at least ``scale``, exactly: scale = m 2^k with m in [1/2, 1)."""
    if is_torch_array(scale):
        mantissa, _ = scale.frexp()
    else:
        mantissa, _ = np.frexp(scale)
    return namespace(scale).where(mantissa == 0.5, scale, scale / mantissa)


def grid_limits(
    scale: Array,
    zero_point: Array = 0,
    bits: int = 8,
    *,
    signed: bool = False,
    restricted: bool = False,
) -> tuple[Array, Array]:
    """The real numbers at the two ends of the grid: q_min = s (n - z), q_max = s (p - z).

    >>> q_min, q_max = grid_limits(0.5, 3, bits=4)
    >>> float(q_min), float(q_max)
    (-1.5, 6.0)
    """
    n, p = integer_grid(bits, signed=signed, restricted=restricted)
    scale = _check_scale(as_float(scale, "scale"))
    zero_point = _check_zero_point(like(zero_point, scale, scale.dtype, "zero_point"), n, p)
    return scale * (n - zero_point), scale * (p - zero_point)


# --- Rounding -------------------------------------------------------------------------------------


def round_half_even(x: Array) -> Array:
    """The nearest integer, ties to the even one; its gradient is 0 almost everywhere.

    >>> round_half_even(np.array([0.5, 1.5, 2.5, -0.5]))
    array([ 0.,  2.,  2., -0.])
    """
    return namespace(x).round(x)


def round_straight_through(x: Array) -> Array:
    """Round half to even, with the gradient of the identity, eq. (36). For torch tensors.

    The value is exactly ``round(x)``: x and its rounding are so close that their difference, and
    the sum with x again, are free of error. Autograd sees only the first x.

    >>> import torch
    >>> x = torch.tensor(1.7, requires_grad=True)
    >>> y = round_straight_through(x); y.backward(); y.item(), x.grad.item()
    (2.0, 1.0)
    """
    return x + (round_half_even(x) - x).detach()  # eq. (36)


# --- Quantize and back ----------------------------------------------------------------------------


def quantize(
    x: Array,
    scale: Array,
    zero_point: Array = 0,
    bits: int = 8,
    *,
    signed: bool = False,
    restricted: bool = False,
    axis: int | None = None,
    group: int | None = None,
    rounding: Callable[[Array], Array] = round_half_even,
) -> Array:
    """Real numbers to integers: x_int = clamp(round(x / scale) + zero_point; n, p), eq. (4).

    x: float, any shape. Returns int32 of the same shape, so that later sums cannot overflow; its
    values fit into ``bits`` bits.

    >>> quantize([-1.0, -0.26, 0.0, 0.25, 9.0], scale=0.5, zero_point=1, bits=2)
    array([0, 0, 1, 1, 3], dtype=int32)
    >>> quantize(np.eye(2), scale=[0.5, 0.25], bits=3, axis=0)  # a scale for each row
    array([[2, 0],
           [0, 4]], dtype=int32)

    Raises TypeError or ValueError for NaN, infinite, empty or integer input, a scale that is not
    positive, a zero-point off the grid, and shapes that do not fit.
    """
    x, scale, zero_point, n, p = _operands(
        x, scale, zero_point, bits, signed, restricted, axis, group
    )
    return namespace(x).astype(_to_grid(x, scale, zero_point, n, p, rounding), namespace(x).int32)


def dequantize(
    x_int: Array,
    scale: Array,
    zero_point: Array = 0,
    *,
    axis: int | None = None,
    group: int | None = None,
) -> Array:
    """Integers to real numbers: x_hat = scale * (x_int - zero_point), eq. (6).

    x_int: any integer dtype. Returns the dtype of ``scale``, or the library's default float where
    scale is a Python number.

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
    dtype = compute_dtype(scale)
    given = scale.dtype
    scale = _check_scale(like(scale, x_int, dtype, "scale"))
    zero_point = like(zero_point, x_int, dtype, "zero_point")
    _check_zero_point(zero_point, -(2**16), 2**16)
    scale, zero_point = (
        _align(v, x_int, axis, group, name)
        for v, name in ((scale, "scale"), (zero_point, "zero_point"))
    )
    return narrow(_from_grid(xp.astype(x_int, dtype), scale, zero_point), given)


def fake_quantize(
    x: Array,
    scale: Array,
    zero_point: Array = 0,
    bits: int = 8,
    *,
    signed: bool = False,
    restricted: bool = False,
    axis: int | None = None,
    group: int | None = None,
    rounding: Callable[[Array], Array] = round_half_even,
) -> Array:
    """Quantize and come straight back: x_hat = s [clamp(round(x / s) + z; n, p) - z], eq. (7).

    x: float, any shape. Returns the dtype and shape of x. With ``round_straight_through`` as
    ``rounding``, autograd gives the gradients of eq. (37) to (39) for x, scale and zero_point.

    >>> fake_quantize([-1.0, -0.26, 0.3, 9.0], scale=0.5, zero_point=1, bits=2)
    array([-0.5, -0.5,  0.5,  1. ])

    Raises as ``quantize`` does.
    """
    given = x.dtype if is_array_api_obj(x) else np.float64
    x, scale, zero_point, n, p = _operands(
        x, scale, zero_point, bits, signed, restricted, axis, group
    )
    return narrow(_simulate(x, scale, zero_point, n, p, rounding), given)


def narrow(x: Array, dtype: Any) -> Array:
    """``x`` in the dtype that was asked for, no further than that reaches; its gradient is kept.

    The end of a grid can lie half a step beyond the last finite half float.

    >>> narrow(np.array([65536.0, -1e6, 2.5]), np.float16)
    array([ 6.55e+04, -6.55e+04,  2.50e+00], dtype=float16)
    """
    xp = namespace(x)
    most = float(xp.finfo(dtype).max)
    if most < float(xp.finfo(x.dtype).max):
        if getattr(x, "requires_grad", False):
            x = x + (clamp(x, -most, most) - x).detach()
        else:
            x = clamp(x, -most, most)
    return xp.astype(x, dtype, copy=False)


def _simulate(
    x: Array, scale: Array, zero_point: Array, n: int, p: int, rounding: Callable[[Array], Array]
) -> Array:
    """Eq. (7) on checked operands of one float dtype: eq. (4), then eq. (6)."""
    return _from_grid(_to_grid(x, scale, zero_point, n, p, rounding), scale, zero_point)  # eq. (7)


def _to_grid(
    x: Array, scale: Array, zero_point: Array, n: int, p: int, rounding: Callable[[Array], Array]
) -> Array:
    """Eq. (4) on checked operands of one float dtype."""
    with np.errstate(over="ignore"):  # a quotient that overflows to infinity is clamped anyway
        u = rounding(x / scale)
    if _must_stay(u, zero_point):
        return _clamp(u + zero_point, n, p)  # eq. (4)
    u += zero_point
    return clamp(u, n, p, out=u)  # eq. (4), (5)


def _clamp(x: Array, n: int, p: int) -> Array:
    """Eq. (5): n below n, p above p, else x itself, and with it the gradient 1 also at n and p.

    torch.clamp gives the same values; whether the ends get a gradient depends on its version.
    """
    xp = namespace(x)
    if getattr(x, "requires_grad", False):
        return xp.where(x < n, n, xp.where(x > p, p, x))  # eq. (5)
    return clamp(x, n, p)


def _from_grid(x_int: Array, scale: Array, zero_point: Array) -> Array:
    """Eq. (6) on checked operands of one float dtype; ``x_int`` may be overwritten."""
    if _must_stay(x_int, scale, zero_point):
        return scale * (x_int - zero_point)  # eq. (2), (6), (8a)
    x_int -= zero_point
    x_int *= scale
    return x_int  # eq. (2), (6), (8a)


def _must_stay(u: Array, *others: Array) -> bool:
    """Whether ``u`` must not be overwritten: autograd may need it, or it is a NumPy scalar.

    Overwriting saves most of the time on large arrays, which would go into fresh memory.
    """
    return u.ndim == 0 or any(getattr(v, "requires_grad", False) for v in (u, *others))


# --- How much was lost ----------------------------------------------------------------------------


def sqnr(x: Array, x_hat: Array) -> float:
    """Signal-to-quantization-noise ratio in decibels: 10 log10(sum x^2 / sum (x - x_hat)^2).

    Infinite where nothing was lost. 6 dB are about one bit.

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


# --- Checks and granularity -----------------------------------------------------------------------


def _operands(
    x: Array,
    scale: Array,
    zero_point: Array,
    bits: int,
    signed: bool,
    restricted: bool,
    axis: int | None,
    group: int | None,
) -> tuple[Array, Array, Array, int, int]:
    """Check the arguments and bring x, scale and zero-point to one dtype and shapes that fit."""
    n, p = integer_grid(bits, signed=signed, restricted=restricted)
    x = as_float(x)
    dtype = compute_dtype(x)
    scale = _check_scale(like(scale, x, dtype, "scale"))
    zero_point = _check_zero_point(like(zero_point, x, dtype, "zero_point"), n, p)
    scale = _align(scale, x, axis, group, "scale")
    zero_point = _align(zero_point, x, axis, group, "zero_point")
    return namespace(x).astype(x, dtype, copy=False), scale, zero_point, n, p


def _check_scale(scale: Array) -> Array:
    xp = namespace(scale)
    if not bool(xp.all((scale > 0) & xp.isfinite(scale))):
        worst = float(xp.min(xp.where(xp.isfinite(scale), scale, -xp.inf)))
        raise ValueError(
            f"scale must be positive and finite in {scale.dtype}, found {worst:g}; "
            "scale_zero_point gives a valid one, also for an empty range"
        )
    return scale


def _check_zero_point(zero_point: Array, n: int, p: int) -> Array:
    xp = namespace(zero_point)
    on_grid = (zero_point >= n) & (zero_point <= p) & (xp.round(zero_point) == zero_point)
    if not bool(xp.all(on_grid)):
        raise ValueError(
            f"zero_point must be whole and on the grid [{n}, {p}]; round and clamp it, "
            "or choose another grid with bits= and signed="
        )
    return zero_point


def scale_shape(
    shape: tuple[int, ...], axis: int | None = None, group: int | None = None
) -> tuple[int, ...]:
    """The shape that scale and zero_point have for data of ``shape`` at this granularity.

    >>> scale_shape((64, 32, 3, 3)), scale_shape((64, 32, 3, 3), axis=0)
    ((), (64,))
    >>> scale_shape((64, 32, 3, 3), axis=0, group=128), scale_shape((10,), group=4)
    ((64, 3), (3,))
    """
    rows = () if axis is None else (shape[check_axis(axis, len(shape))],)
    if group is None:
        return rows
    row_length = math.prod(shape) // math.prod(rows)
    return (*rows, math.ceil(row_length / check_count(group, "group")))


def _align(v: Array, x: Array, axis: int | None, group: int | None, name: str) -> Array:
    """Reshape one value per tensor, channel or group so that it broadcasts against x."""
    expected = scale_shape(tuple(x.shape), axis, group)
    if math.prod(v.shape) == 1 and len(v.shape) <= 1:
        return namespace(v).reshape(v, ())
    if tuple(v.shape) != expected:
        raise ValueError(
            f"{name} has shape {tuple(v.shape)}, but data of shape {tuple(x.shape)} with "
            f"axis={axis}, group={group} needs {expected} or a single number"
        )
    xp, ndim = namespace(v), len(x.shape)
    if group is None:
        axis = check_axis(axis, ndim)
        return xp.reshape(v, [-1 if k == axis else 1 for k in range(ndim)])
    row_length = math.prod(x.shape) // math.prod(v.shape[:-1])
    v = xp.broadcast_to(v[..., None], (*v.shape, group))  # (..., pieces, group)
    v = xp.reshape(v, (*v.shape[:-2], -1))[..., :row_length]  # (..., row_length)
    if axis is None:
        return xp.reshape(v, tuple(x.shape))
    axis = check_axis(axis, ndim)
    others = [size for k, size in enumerate(x.shape) if k != axis]
    return xp.moveaxis(xp.reshape(v, (x.shape[axis], *others)), 0, axis)
