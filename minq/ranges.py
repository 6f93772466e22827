"""Choosing the range [low, high] that a grid covers: equations 14 to 19 of the paper.

A wide range clips nothing and rounds coarsely; a narrow one rounds finely and clips. An estimator
looks at data and answers (low, high), one pair per tensor, channel or group, in the shape that
``minq.granularity`` names; ``minq.affine.scale_zero_point`` turns the pair into a grid.

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
from collections.abc import Callable

import numpy as np
from array_api_compat import is_torch_array

from minq._checks import Array, as_float, clamp, compute_dtype, like, namespace
from minq.channel_groups import channel_groups
from minq.granularity import Granularity
from minq.grid import Grid, integer_grid
from minq.range_search import Range, partial_ranges, search, solve_noise_model, squared_error

# --- What is seen: eq. (14), (15) and percentiles -------------------------------------------------


def min_max(x: Array, *, axis: int | None = None, group: int | None = None) -> Range:
    """All of the data: q_min = min V, q_max = max V, eq. (14) and (15). Nothing is clipped.

    Args:
        x: float, any shape.
        axis: one range for each index of this axis, instead of one for all.
        group: with ``axis``, one for each ``group`` values of a channel.

    Returns:
        low and high, of shape ``scale_shape(x.shape, axis, group)``.

    Raises:
        TypeError, ValueError: for NaN, infinite, empty or integer data, and for an axis or a
            group that does not fit.

    >>> low, high = min_max([[-1.0, 0.5], [0.25, 8.0]], axis=0)
    >>> low, high
    (array([-1.  ,  0.25]), array([0.5, 8. ]))
    """
    return _per_row(_row_min_max, x, Granularity(axis, group))


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

    Args:
        x: float, any shape.
        percent: how much of the data is kept, above 0 and up to 100.
        axis: as in ``min_max``.
        group: as in ``min_max``.

    Returns:
        low and high, of shape ``scale_shape(x.shape, axis, group)``.

    Raises:
        TypeError, ValueError: as ``min_max``, and where ``percent`` is not in (0, 100].

    >>> low, high = percentile([float(k) for k in range(101)], 90)
    >>> float(low), float(high)
    (5.0, 95.0)
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

    return _per_row(estimate, x, Granularity(axis, group))


# --- The range that loses least: eq. (16) ---------------------------------------------------------


def mse(
    x: Array,
    bits: int | Grid = 8,
    *,
    signed: bool = False,
    narrow_range: bool = False,
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

    Args:
        x: float, any shape.
        bits: of the grid, as are the next three; see ``scale_zero_point``.
        signed: whether its integers go below 0.
        narrow_range: leave out the lowest integer.
        symmetric: keep the zero-point at 0.
        axis: as in ``min_max``.
        group: as in ``min_max``.

    Returns:
        low <= 0 <= high, of shape ``scale_shape(x.shape, axis, group)``.

    Raises:
        TypeError, ValueError: as ``min_max`` and ``scale_zero_point``; negative data do not fit
            the unsigned symmetric grid.

    >>> x = np.random.default_rng(0).standard_normal(10_000)
    >>> low, high = mse(x, bits=4, signed=True, symmetric=True)
    >>> bool(x.min() < low) and bool(high < x.max())  # it pays to clip
    True
    """
    grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)

    def estimate(rows: Array) -> Range:
        ends = _row_min_max(rows)
        starts = [ends, solve_noise_model(rows, ends, grid, symmetric=symmetric)]
        starts += [] if grid.whole else partial_ranges(ends, grid)
        cost = lambda scale, zero_point: squared_error(rows, scale, zero_point, grid)  # noqa: E731
        return search(cost, starts, grid, symmetric=symmetric)

    with np.errstate(over="ignore", invalid="ignore"):  # a candidate that overflows only loses
        return _per_row(estimate, x, Granularity(axis, group))


# --- The range that keeps a classifier's answers: eq. (17) ----------------------------------------


def cross_entropy(
    logits: Array,
    bits: int = 8,
    *,
    signed: bool = False,
    narrow_range: bool = False,
    symmetric: bool = False,
) -> Range:
    """The range for a last layer: argmin H(softmax(v), softmax(v_hat(q_min, q_max))), eq. (17).

    H(a, b) = -sum_k a_k log b_k, summed over the batch. Large logits decide the answer and small
    ones barely matter, which the squared error does not know. Pairs of shrunken min-max ends are
    tried, down to 1/16, then the search of ``mse`` polishes the best one; min-max is among them.

    Args:
        logits: float, (batch, classes).
        bits: of the grid, as are the next three; see ``mse``.
        signed: whether its integers go below 0.
        narrow_range: leave out the lowest integer.
        symmetric: keep the zero-point at 0.

    Returns:
        low <= 0 <= high, two scalars.

    Raises:
        TypeError, ValueError: as ``mse``, and where ``logits`` is not (batch, classes).

    >>> low, high = cross_entropy([[9.0, 8.0, -20.0], [7.5, 9.5, -30.0]], bits=4)
    >>> bool(low > -30)  # one chance in e^30 is worth no levels
    True
    """
    logits = as_float(logits, "logits")
    if len(logits.shape) != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must have shape (batch, classes) with 2 classes or more, not "
            f"{tuple(logits.shape)}; reshape them"
        )
    classes = logits.shape[1]
    grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)

    def estimate(row: Array) -> Range:
        xp = namespace(row)
        v = xp.reshape(row, (-1, classes))
        target = xp.exp(_log_softmax(v))

        def loss(scale: Array, zero_point: Array) -> Array:
            v_hat = grid.fake_quantize(v, scale, zero_point)
            # H(a, b) = H(a) + the divergence of b from a; only the last one can be made smaller.
            terms = target * _log_softmax(v_hat)
            return -xp.sum(xp.astype(terms, xp.float64), keepdims=True)  # eq. (17)

        low, high = _row_min_max(row)
        low, high = clamp(low, high=0.0), clamp(high, low=0.0)
        if symmetric:
            starts = [(low * a, high * a) for a in _shrink(12)]
        else:
            starts = [(low * a, high * b) for a in (*_shrink(3), 0.0) for b in _shrink(3)]
        return search(loss, starts, grid, symmetric=symmetric, relative=False)

    with np.errstate(over="ignore", invalid="ignore"):
        return _per_row(estimate, logits, Granularity())


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

    Args:
        gamma: float, (channels,).
        beta: float, (channels,).
        alpha: how many standard deviations the range holds on each side.
        per_channel: one range for each channel.
        clip: the range of the activation function that follows: (0, inf) for ReLU, (0, 6) for
            ReLU6.

    Returns:
        low and high: two scalars, or (channels,) with ``per_channel``.

    Raises:
        TypeError, ValueError: for shapes that differ, and an alpha that is not positive.

    >>> low, high = batch_norm([1.0, -0.5], [0.0, 4.0], clip=(0, float("inf")))
    >>> float(low), float(high)
    (0.0, 7.0)
    """
    gamma = as_float(gamma, "gamma")
    beta = as_float(like(beta, gamma, gamma.dtype, "beta"), "beta")
    if len(gamma.shape) != 1 or gamma.shape != beta.shape:
        raise ValueError(
            f"gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)} must both be (channels,)"
        )
    alpha = _number(alpha, "alpha")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, not {alpha}; Nagel et al. take 6")
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
    cut depends on the widths.

    Args:
        x: float, any shape.
        groups: how many, at most as many as channels.
        estimate: gives (low, high) of a group's values.
        axis: of the channels.
        group: None; channels are grouped already.

    Returns:
        low and high, of shape (channels,); channels of a group have the same.

    Raises:
        TypeError, ValueError: as ``min_max`` and ``channel_groups``.

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


# --- Rows -----------------------------------------------------------------------------------------


def _per_row(estimate: Callable[[Array], Range], x: Array, granularity: Granularity) -> Range:
    """Run ``estimate``, (rows, values) to (rows, 1) twice, on the rows that share a scale."""
    x = as_float(x)
    granularity.scale_shape(x.shape)  # refuses an axis that x has not
    given = namespace(x)
    values = given.astype(x, compute_dtype(x), copy=False)
    if is_torch_array(values):
        values = values.detach()
        if values.device.type == "cpu":  # NumPy works on the same memory
            values = values.numpy()
    parts = [estimate(rows) for rows in granularity.split(values)]
    low, high = (granularity.join(list(ends), x.shape) for ends in zip(*parts, strict=True))
    return given.asarray(low), given.asarray(high)


def _number(value: float, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
