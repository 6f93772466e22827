"""Choosing the range [low, high] that a grid covers: equations 14 to 19 of the paper.

A wide range clips nothing and rounds coarsely; a narrow one rounds finely and clips. An estimator
looks at data and answers (low, high), one pair per tensor, channel or group, in the shape that
``minq.affine.scale_shape`` names; ``minq.affine.scale_zero_point`` turns the pair into a grid.

    =================  =======================================================  ================
    ``min_max``        all of it                                                eq. (14), (15)
    ``percentile``     the middle 99.9 % of it
    ``mse``            what makes ||V - V_hat||^2 smallest                      eq. (16)
    ``cross_entropy``  what changes a classifier's answers least                eq. (17)
    ``batch_norm``     no data: six standard deviations around each mean        eq. (18), (19)
    ``grouped``        one of the others, for channels in few groups
    =================  =======================================================  ================

``mse`` and ``cross_entropy`` return low <= 0 <= high, the ends of a grid that holds 0. The others
say what they saw, and ``scale_zero_point`` widens that to 0.

NumPy arrays and torch tensors are answered in kind, half floats in float32, without gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_api_compat import is_numpy_array, is_torch_array

from minq._checks import (
    Array,
    as_float,
    check_axis,
    check_count,
    clamp,
    compute_dtype,
    like,
    namespace,
)
from minq.affine import integer_grid, scale_shape, scale_zero_point

Range = tuple[Array, Array]

# --- What is seen: eq. (14), (15) and percentiles -------------------------------------------------


def min_max(x: Array, *, axis: int | None = None, group: int | None = None) -> Range:
    """All of the data: q_min = min V, q_max = max V, eq. (14) and (15). Nothing is clipped.

    x: float, any shape. Returns low and high of shape ``scale_shape(x.shape, axis, group)``.

    >>> low, high = min_max([[-1.0, 0.5], [0.25, 8.0]], axis=0)
    >>> low, high
    (array([-1.  ,  0.25]), array([0.5, 8. ]))

    Raises TypeError or ValueError for NaN, infinite, empty or integer data, and for an axis or a
    group that does not fit.
    """
    return _per_row(_row_min_max, x, axis, group)


def _row_min_max(x: Array) -> Range:
    xp = namespace(x)
    return xp.min(x, axis=1, keepdims=True), xp.max(x, axis=1, keepdims=True)  # eq. (14), (15)


def percentile(
    x: Array, percent: float = 99.9, *, axis: int | None = None, group: int | None = None
) -> Range:
    """The middle ``percent`` per cent of the data; equal shares are cut off below and above.

    low is the percentile (100 - percent) / 2 and high the percentile (100 + percent) / 2. The
    percentile P of N sorted values is the one at position P / 100 (N - 1), counted from 0; between
    two positions it is interpolated linearly. So 100 is ``min_max``.

    >>> low, high = percentile([float(k) for k in range(101)], 90)
    >>> float(low), float(high)
    (5.0, 95.0)

    Raises as ``min_max`` does, and ValueError where ``percent`` is not in (0, 100].
    """
    percent = _number(percent, "percent")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be above 0 and at most 100, not {percent}; try 99.9")

    def estimate(rows: Array) -> Range:
        xp = namespace(rows)
        rows = xp.sort(rows, axis=1, stable=False)
        last = rows.shape[1] - 1

        def at(position: float) -> Array:
            k = min(int(position), max(last - 1, 0))
            t = position - k
            next_k = min(k + 1, last)
            below, above = rows[:, k : k + 1], rows[:, next_k : next_k + 1]
            # Rounding must not carry the sum past the two values between which it lies.
            return xp.minimum(xp.maximum(below * (1 - t) + above * t, below), above)

        cut = (100 - percent) / 200 * last
        return at(cut), at(last - cut)

    return _per_row(estimate, x, axis, group)


# --- The range that loses least: eq. (16) ---------------------------------------------------------


def mse(
    x: Array,
    bits: int = 8,
    *,
    signed: bool = False,
    restricted: bool = False,
    symmetric: bool = False,
    axis: int | None = None,
    group: int | None = None,
) -> Range:
    """The range with the smallest squared error: argmin ||V - V_hat(q_min, q_max)||_F^2, eq. (16).

    The sum of squared errors has many small dents and, for most data, one wide valley. So

    1. a smooth model of the error, convex in (low, high), is solved by Newton's method, as in
       Sakr et al. 2022, "Optimal clipping and magnitude-aware differentiation for improved
       quantization-aware training": rounding costs each value its variance, scale^2 / 12, and
       clipping costs the square of what is cut off;
    2. from there, or from min-max where that is better, the exact error is compared along ever
       smaller changes of the grid's step and of its place (its zero-point).

    The answer is never worse than min-max, which is among the candidates.

    x: float, any shape. ``bits``, ``signed``, ``restricted`` and ``symmetric`` name the grid, as
    for ``scale_zero_point``. Returns low <= 0 <= high of ``scale_shape(x.shape, axis, group)``.

    >>> x = np.random.default_rng(0).standard_normal(10_000)
    >>> low, high = mse(x, bits=4, signed=True, symmetric=True)
    >>> bool(x.min() < low) and bool(high < x.max())  # it pays to clip
    True

    Raises as ``min_max`` and ``scale_zero_point`` do: negative data do not fit the unsigned
    symmetric grid.
    """
    n, p = integer_grid(bits, signed=signed, restricted=restricted)
    grid: dict[str, Any] = dict(
        bits=bits, signed=signed, restricted=restricted, symmetric=symmetric
    )

    def estimate(rows: Array) -> Range:
        low, high = _row_min_max(rows)
        widest, _ = scale_zero_point(low, high, **grid)
        starts = [(low, high), _solve_noise_model(rows, widest, n, p, symmetric)]
        return _search(lambda s, z: _squared_error(rows, s, z, n, p), starts, n, p, grid)

    with np.errstate(over="ignore", invalid="ignore"):  # a candidate that overflows only loses
        return _per_row(estimate, x, axis, group)


def _squared_error(x: Array, scale: Array, zero_point: Array, n: int, p: int) -> Array:
    """||V - V_hat||^2 / scale^2 of each row: eq. (16) in units of the step."""
    xp = namespace(x)
    per_step = 1 / scale
    total = xp.astype(xp.zeros_like(scale), xp.float64)
    moved = bool(xp.any(zero_point != 0))  # on a symmetric grid there is nothing to add
    for i, j in _blocks(x):
        u = x[i, j] * per_step[i]
        if moved:
            u += zero_point[i]
        error = xp.round(u)
        error = clamp(error, n, p, out=error)
        error -= u  # eq. (16), before the sum of squares
        total[i] += xp.astype(xp.vecdot(error, error), xp.float64)[:, None]
    return total


def _solve_noise_model(x: Array, widest: Array, n: int, p: int, symmetric: bool) -> Range:
    """Minimise the model of eq. (16), in which rounding adds s^2 / 12 to each of N values,

        E(low, high) = sum (low - x)_+^2 + sum (x - high)_+^2 + N s^2 / 12,

    where (t)_+ is t above 0 and 0 below, and s is (high - low) / (p - n), or, if symmetric,
    low = n s and high = p s. E is convex and quadratic in pieces, so Newton's method on the zero
    of its derivative takes a few steps. ``widest`` is the step of min-max.

    Long rows are thinned to a sample first; what the sample answers is the start for all values.
    """
    xp = namespace(x)
    sample = x[:, :: max(1, x.shape[1] // _BLOCK)]
    # A little inside the optimum of a Gaussian: from there, Newton's steps never go too far.
    start = (1 + math.log2(p - n) / 3) * xp.mean(xp.abs(sample), axis=1, keepdims=True)
    if symmetric:
        scale = xp.minimum(start / p, widest)
        low, high = n * scale, p * scale
    else:
        smallest, largest = _row_min_max(x)
        smallest, largest = clamp(smallest, high=0.0), clamp(largest, low=0.0)
        low, high = xp.maximum(-start, smallest), xp.minimum(start, largest)
    for rows in (sample, x) if sample.shape != x.shape else (x,):
        for _ in range(12):
            width, rounding = high - low, rows.shape[1] / 12
            below, cut_below = _tail(rows, low, -1)
            above, cut_above = _tail(rows, high, 1)
            # Newton: minus half of dE/ds, or of dE/dlow and dE/dhigh, over half its derivative.
            # From where nothing is cut off it falls to 0, and climbs again.
            if symmetric:
                slope = p * cut_above - n * cut_below - rounding * scale
                step = slope / (p * p * above + n * n * below + rounding)
                scale = xp.minimum(clamp(scale + step, low=0.0), widest)
                low, high = n * scale, p * scale
            else:
                rounding = rounding / (p - n) ** 2
                out_low = (cut_below - rounding * width) / (below + rounding)
                out_high = (cut_above - rounding * width) / (above + rounding)
                low = xp.maximum(clamp(low - out_low, high=0.0), smallest)
                high = xp.minimum(clamp(high + out_high, low=0.0), largest)
            if not bool(xp.any(xp.abs(high - low - width) > 0.01 * width)):
                break
    return low, high


def _tail(x: Array, end: Array, side: int) -> tuple[Array, Array]:
    """The values of each row beyond ``end``: how many, and the sum of what is cut off them."""
    xp = namespace(x)
    count, cut = xp.zeros_like(end), xp.zeros_like(end)
    for i, j in _blocks(x):
        excess = x[i, j] - end[i] if side > 0 else end[i] - x[i, j]
        beyond = xp.astype(excess > 0, x.dtype)  # 1 beyond the end, else 0
        count[i] += xp.vecdot(beyond, beyond)[:, None]
        cut[i] += xp.vecdot(beyond, excess)[:, None]
    return count, cut


# --- The range that keeps a classifier's answers: eq. (17) ----------------------------------------


def cross_entropy(
    logits: Array,
    bits: int = 8,
    *,
    signed: bool = False,
    restricted: bool = False,
    symmetric: bool = False,
) -> Range:
    """The range for a last layer: argmin H(softmax(v), softmax(v_hat(q_min, q_max))), eq. (17).

    H(a, b) = -sum_k a_k log b_k, summed over the batch. Large logits decide the answer and small
    ones barely matter, which the squared error does not know. Pairs of shrunken min-max ends are
    tried, down to 1/16, then the search of ``mse`` polishes the best one; min-max is among them.

    logits: float (batch, classes). Returns low <= 0 <= high, two scalars.

    >>> low, high = cross_entropy([[9.0, 8.0, -20.0], [7.5, 9.5, -30.0]], bits=4)
    >>> bool(low > -30)  # one chance in e^30 is worth no levels
    True

    Raises as ``mse`` does, and ValueError where ``logits`` is not (batch, classes).
    """
    logits = as_float(logits, "logits")
    if len(logits.shape) != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must have shape (batch, classes) with 2 classes or more, not "
            f"{tuple(logits.shape)}; reshape them"
        )
    classes = logits.shape[1]
    n, p = integer_grid(bits, signed=signed, restricted=restricted)
    grid: dict[str, Any] = dict(
        bits=bits, signed=signed, restricted=restricted, symmetric=symmetric
    )

    def estimate(row: Array) -> Range:
        xp = namespace(row)
        v = xp.reshape(row, (-1, classes))
        target = xp.exp(_log_softmax(v))

        def loss(scale: Array, zero_point: Array) -> Array:
            v_int = clamp(xp.round(v / scale) + zero_point, n, p)
            v_hat = scale * (v_int - zero_point)
            # H(a, b) = H(a) + the divergence of b from a; only the last one can be made smaller.
            terms = target * _log_softmax(v_hat)
            return -xp.sum(xp.astype(terms, xp.float64), keepdims=True)  # eq. (17)

        low, high = _row_min_max(row)
        low, high = clamp(low, high=0.0), clamp(high, low=0.0)
        if symmetric:
            starts = [(low * a, high * a) for a in _shrink(12)]
        else:
            starts = [(low * a, high * b) for a in (*_shrink(3), 0.0) for b in _shrink(3)]
        return _search(loss, starts, n, p, grid, relative=False)

    with np.errstate(over="ignore", invalid="ignore"):
        return _per_row(estimate, logits, None, None)


def _shrink(parts: int) -> list[float]:
    """1 down to 1/16, each octave in so many parts."""
    return [2 ** (-k / parts) for k in range(4 * parts)]


def _log_softmax(v: Array) -> Array:
    """log softmax(v) along the classes; the largest logit is taken out first, so exp is safe."""
    xp = namespace(v)
    v = v - xp.max(v, axis=1, keepdims=True)
    return v - xp.log(xp.sum(xp.exp(v), axis=1, keepdims=True))


# --- The range that batch normalization promises: eq. (18), (19) ----------------------------------


def batch_norm(
    gamma: Array,
    beta: Array,
    alpha: float = 6.0,
    *,
    per_channel: bool = False,
    clip: tuple[float, float] | None = None,
) -> Range:
    """The range of a batch norm's output, without data, eq. (18) and (19):

        q_min = min (beta - alpha |gamma|),    q_max = max (beta + alpha |gamma|)

    since channel k of the output has mean beta_k and standard deviation |gamma_k|.

    gamma, beta: float (channels,). ``clip`` is the range of the activation function that follows:
    (0, inf) for ReLU, (0, 6) for ReLU6. Returns two scalars, or (channels,) with ``per_channel``.

    >>> low, high = batch_norm([1.0, -0.5], [0.0, 4.0], clip=(0, float("inf")))
    >>> float(low), float(high)
    (0.0, 7.0)

    Raises ValueError for shapes that differ and an alpha that is not positive.
    """
    gamma = as_float(gamma, "gamma")
    beta = as_float(like(beta, gamma, gamma.dtype, "beta"), "beta")
    if len(gamma.shape) != 1 or gamma.shape != beta.shape:
        raise ValueError(
            f"gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)} must both be (channels,)"
        )
    alpha = _number(alpha, "alpha")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, not {alpha}; the paper takes 6")
    xp, dtype = namespace(gamma), compute_dtype(gamma)
    if is_torch_array(gamma):
        gamma, beta = gamma.detach(), beta.detach()
    gamma, beta = xp.astype(gamma, dtype), xp.astype(beta, dtype)
    low, high = beta - alpha * xp.abs(gamma), beta + alpha * xp.abs(gamma)
    if not per_channel:
        low, high = xp.min(low), xp.max(high)  # eq. (18), (19)
    if clip is not None:
        floor, ceiling = _number(clip[0], "clip[0]"), _number(clip[1], "clip[1]")
        if not floor < ceiling:
            raise ValueError(f"clip must be (low, high) with low < high, not {clip}")
        low, high = clamp(low, floor, ceiling), clamp(high, floor, ceiling)
    return low, high


# --- Channels that share a range ------------------------------------------------------------------


def channel_groups(widths: Array, groups: int) -> np.ndarray:
    """Which channels share a range: group 0 to ``groups`` - 1 of each, int64, shape (channels,).

    Sorted by width, the channels are cut where the noise of rounding is least: a group of N
    channels, the widest r wide, has N r^2 / 12 up to a factor, so sum_g N_g r_g^2 is made as small
    as it can be, exactly, by dynamic programming. Two channels of 100 get a group of their own.

    >>> channel_groups([1.0, 50.0, 2.0, 1.5], 2)
    array([0, 1, 0, 0])
    """
    widths = np.asarray(as_float(widths, "widths"), np.float64)
    groups = check_count(groups, "groups")
    if widths.ndim != 1 or groups > len(widths):
        raise ValueError(
            f"{widths.shape} widths cannot make {groups} groups; give one width a channel, and at "
            "most as many groups as channels"
        )
    order = np.argsort(widths, kind="stable")
    ends = np.arange(len(widths) + 1)
    size = ends - ends[:, None]
    noise = np.append(0.0, widths[order] ** 2)  # of a channel in a group that ends with it
    step = np.where(size > 0, size * noise, np.inf)  # a group of the sorted channels i to j - 1
    best, cuts = step[0], []
    for _ in range(groups - 1):
        total = best[:, None] + step
        cuts.append(total.argmin(0))
        best = total.min(0)
    labels, end = np.zeros(len(widths), np.int64), len(widths)
    for group, cut in zip(range(groups - 1, 0, -1), reversed(cuts), strict=True):
        labels[order[cut[end] : end]] = group
        end = cut[end]
    return labels


def grouped(
    x: Array,
    groups: int,
    estimate: Callable[..., Range] = min_max,
    *,
    axis: int = -1,
    group: None = None,
) -> Range:
    """One range for each of a few groups of channels, chosen by ``channel_groups``.

    Bondarenko et al. 2021, "Understanding and overcoming the challenges of efficient transformer
    quantization", sort the embedding's channels and cut them into groups of equal size; here the
    cut depends on the widths. estimate: gives (low, high) of a group's values. Returns low and high
    of shape (channels,); channels of a group have the same.

    >>> low, high = grouped([[1.0, 50.0, -2.0], [0.0, -9.0, 1.0]], 2)
    >>> low, high
    (array([-2., -9., -2.]), array([ 1., 50.,  1.]))
    """
    if group is not None:
        raise ValueError("channels are grouped already; leave group=None")
    low, high = min_max(x, axis=axis)
    xp = namespace(x := as_float(x))
    channels = xp.moveaxis(x, axis, 0)
    widths = high - low
    labels = channel_groups(widths.cpu() if is_torch_array(widths) else widths, groups)
    for k in range(groups):
        (members,) = np.nonzero(labels == k)
        members = xp.asarray(members)
        low[members], high[members] = estimate(channels[members])
    return low, high


# --- The search of eq. (16) and (17) --------------------------------------------------------------

# How far a round of the search reaches, as a share of the step; about a third of the one before.
_ROUNDS = (0.25, 0.08, 0.025, 0.008)


def _search(
    cost: Callable[[Array, Array], Array],
    starts: list[Range],
    n: int,
    p: int,
    grid: dict,
    relative: bool = True,
) -> Range:
    """The cheapest range of each row, among ``starts`` and what lies around the best of them.

    cost(scale, zero_point): (rows, 1) to (rows, 1); in units of scale^2 where ``relative``. The
    first start wins ties, so that the answer is never worse than it.
    """
    unit, _ = scale_zero_point(*starts[0], **grid)  # of all squares, so that none can overflow
    xp, dtype = namespace(unit), unit.dtype
    best: list[Array] = []

    def offer(scale: Array, zero_point: Array, low: Array, high: Array) -> None:
        price = cost(scale, zero_point)
        if relative:
            price = price * xp.astype(scale / unit, xp.float64) ** 2
        candidate = [price, scale, zero_point, low, high]
        if best:
            better = (price < best[0]) & xp.isfinite(high - low)
            pairs = zip(candidate, best, strict=True)
            candidate = [xp.where(better, new, old) for new, old in pairs]
        best[:] = candidate

    def offer_grid(scale: Array, zero_point: Array) -> None:
        offer(scale, zero_point, scale * (n - zero_point), scale * (p - zero_point))

    for low, high in starts:
        scale, zero_point = scale_zero_point(low, high, **grid)
        low, high = clamp(low, high=0.0), clamp(high, low=0.0)
        offer(scale, xp.astype(zero_point, dtype), low, high)
    for reach in _ROUNDS:
        _, scale, zero_point, _, _ = best
        for share in (-1, -0.5, 0.5, 1):
            offer_grid(scale * (1 + share * reach), zero_point)  # the step
        if grid["symmetric"]:
            continue
        _, scale, zero_point, _, _ = best
        far = math.ceil(reach / 4 * (p - n))
        for k in (-far, far):
            offer_grid(scale, clamp(zero_point + k, n, p))  # the place
    return best[3], best[4]


# --- Rows and blocks ------------------------------------------------------------------------------

_BLOCK = 2**17
"""Values worked on at a time: as many as stay in a core's cache between two operations."""


def _per_row(
    estimate: Callable[[Array], Range], x: Array, axis: int | None, group: int | None
) -> Range:
    """Run ``estimate``, (rows, values) to (rows, 1) twice, on x seen as channels or groups."""
    x = as_float(x)
    shape = scale_shape(tuple(x.shape), axis, group)
    xp = given = namespace(x)
    x = xp.astype(x, compute_dtype(x), copy=False)
    if is_torch_array(x):
        x = x.detach()
        if x.device.type == "cpu":  # NumPy works on the same memory
            x = x.numpy()
            xp = namespace(x)
    if axis is None:
        rows = xp.reshape(x, (1, -1))
    else:
        axis = check_axis(axis, len(x.shape))
        rows = xp.reshape(xp.moveaxis(x, axis, 0), (x.shape[axis], -1))
    if is_numpy_array(rows):
        rows = np.ascontiguousarray(rows)  # the order of a sum must not depend on strides
    if group is None:
        parts = [estimate(rows)]
    else:
        whole = rows.shape[1] // group * group
        parts = []
        if whole:
            parts.append(estimate(xp.reshape(rows[:, :whole], (-1, group))))
        if whole < rows.shape[1]:
            parts.append(estimate(rows[:, whole:]))
    low, high = (
        xp.reshape(xp.concat([xp.reshape(v, (rows.shape[0], -1)) for v in ends], axis=1), shape)
        for ends in zip(*parts, strict=True)
    )
    return given.asarray(low), given.asarray(high)


def _blocks(x: Array) -> Iterator[tuple[slice, slice]]:
    """Cut (rows, values) into pieces of ``_BLOCK`` values; on an accelerator, all is one piece."""
    rows, length = x.shape
    block = _BLOCK if is_numpy_array(x) else rows * length
    height = max(1, block // length)
    for i in range(0, rows, height):
        for j in range(0, length, block):
            yield slice(i, i + height), slice(j, j + block)


def _number(value: float, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
