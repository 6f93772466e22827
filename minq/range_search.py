"""Finding the cheapest range: the search behind equations 16 and 17.

Data come as rows, (rows, values); every row has its own range. A cost of the range has many small
dents and, for most data, one wide valley, so ``search`` compares a few starting points, then ever
smaller changes of the best one. ``solve_noise_model`` gives a start near the bottom of the valley
of the squared error, and ``squared_error`` is that error itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from array_api_compat import is_numpy_array

from minq._checks import Array, clamp, namespace
from minq.grid import Grid

Range = tuple[Array, Array]

ROUNDS = (0.25, 0.08, 0.025, 0.008)
"""How far a round of the search goes, as a share of the step; about a third of the one before."""

BLOCK = 2**17
"""Values worked on at a time: as many as stay in a core's cache between two operations."""


class Candidate(NamedTuple):
    """A range for each row, and what it costs; all (rows, 1)."""

    price: Array
    scale: Array
    zero_point: Array
    low: Array
    high: Array

    def or_cheaper(self, other: Candidate) -> Candidate:
        """Row by row the cheaper one; this one where they cost the same."""
        xp = namespace(self.price)
        better = (other.price < self.price) & xp.isfinite(other.high - other.low)
        return Candidate(*(xp.where(better, b, a) for a, b in zip(self, other, strict=True)))


def search(
    cost: Callable[[Array, Array], Array],
    starts: list[Range],
    grid: Grid,
    *,
    symmetric: bool,
    relative: bool = True,
) -> Range:
    """The cheapest range of each row, among ``starts`` and what lies around the best of them.

    Args:
        cost: (scale, zero_point) to a price, all (rows, 1).
        starts: ranges (low, high); the first one wins ties, so the answer is never worse than it.
        grid, symmetric: the grids to choose from.
        relative: whether prices are in units of scale^2.

    Returns:
        low <= 0 <= high, (rows, 1) each.
    """
    unit, _ = grid.cover(*starts[0], symmetric=symmetric)  # of all prices: none can overflow
    xp = namespace(unit)

    def candidate(scale: Array, zero_point: Array, low: Array, high: Array) -> Candidate:
        price = cost(scale, zero_point)
        if relative:
            price = price * xp.astype(scale / unit, xp.float64) ** 2
        return Candidate(price, scale, zero_point, low, high)

    def start(low: Array, high: Array) -> Candidate:
        scale, zero_point = grid.cover(low, high, symmetric=symmetric)
        zero_point = xp.astype(zero_point, unit.dtype)
        return candidate(scale, zero_point, *grid.hold(low, high))

    def on_grid(scale: Array, zero_point: Array) -> Candidate:
        return candidate(scale, zero_point, *grid.limits(scale, zero_point))

    best = start(*starts[0])
    for low, high in starts[1:]:
        best = best.or_cheaper(start(low, high))
    for share in ROUNDS:
        center = best
        for step in (-share, -0.5 * share, 0.5 * share, share):
            best = best.or_cheaper(on_grid(center.scale * (1 + step), center.zero_point))
        if symmetric:
            continue
        center, far = best, share / 4 * grid.steps
        far = math.ceil(far) if grid.whole else far
        for shift in (-far, far):
            moved = grid.as_zero_point(center.zero_point + shift)
            best = best.or_cheaper(on_grid(center.scale, moved))
    return best.low, best.high


# --- The squared error: eq. (16) ------------------------------------------------------------------


def squared_error(x: Array, scale: Array, zero_point: Array, grid: Grid) -> Array:
    """||V - V_hat||^2 / scale^2 of each row: eq. (16) in units of the step.

    x: (rows, values). scale, zero_point: (rows, 1), of the same dtype. Returns float64 (rows, 1).

    The zero-point is added before rounding: a tie may fall to the other side, with the same error.
    """
    xp = namespace(x)
    per_step = 1 / scale
    total = xp.astype(xp.zeros_like(scale), xp.float64)
    moved = bool(xp.any(zero_point != 0))  # on a symmetric grid there is nothing to add
    for i, j in blocks(x):
        u = x[i, j] * per_step[i]
        if moved:
            u += zero_point[i]
        if grid.even:
            error = xp.round(u)
            error = grid.clamp(error, out=error)
        else:
            error = grid.quantize(u, 1.0, 0.0)
        error -= u  # eq. (16), before the sum of squares
        total[i] += xp.astype(xp.vecdot(error, error), xp.float64)[:, None]
    return total


def partial_ranges(ends: Range, grid: Grid) -> list[Range]:
    """Ranges that start at the smallest value, and have the largest at some earlier level than p.

    For grids with a minimum. Data that are on such a grid already, as weights from a file, and
    reach few of its levels, have no error on one of these.

    Args:
        ends: smallest and largest value of each row, (rows, 1).

    >>> [(low, round(high, 3)) for low, high in partial_ranges((1.0, 2.0), Grid(0, 3))]
    [(1.0, 4.0), (1.0, 2.5)]
    """
    (low, high), p = ends, grid.steps
    return [(low, low + (high - low) * (p / k)) for k in range(max(1, p - 15), p)]


def solve_noise_model(x: Array, ends: Range, grid: Grid, *, symmetric: bool) -> Range:
    """Minimise a model of eq. (16), in which rounding adds s^2 / 12 to each of N values,

        E(low, high) = sum (low - x)_+^2 + sum (x - high)_+^2 + N s^2 / 12,

    where (t)_+ is t above 0 and 0 below, and s is (high - low) / (p - n), or, if symmetric,
    low = n s and high = p s. E is convex and quadratic in pieces, so Newton's method on the zero
    of its derivative takes a few steps.

    Long rows are thinned to a sample first; what the sample answers is the start for all values.

    Args:
        x: (rows, values).
        ends: smallest and largest value of each row, (rows, 1).

    Returns:
        low <= 0 <= high, (rows, 1) each, inside the range of min-max; on a ``MinimumGrid`` around
        the mean in place of 0.
    """
    xp = namespace(x)
    if not grid.whole:  # the values lie around their mean, as others do around 0
        center = xp.mean(x, axis=1, keepdims=True)
        ends = (ends[0] - center, ends[1] - center)
        low, high = solve_noise_model(x - center, ends, Grid(*grid), symmetric=symmetric)
        return low + center, high + center
    sample = x[:, :: max(1, x.shape[1] // BLOCK)]
    # A little inside the optimum of a Gaussian: from there, Newton's steps never go too far.
    start = (1 + math.log2(grid.steps) / 3) * xp.mean(xp.abs(sample), axis=1, keepdims=True)
    solve = _newton_symmetric if symmetric else _newton
    return solve([sample, x] if sample.shape != x.shape else [x], start, ends, grid)


def _newton(samples: list[Array], start: Array, ends: Range, grid: Grid) -> Range:
    """The minimum over low and high: Newton divides half of dE/dlow by half of its derivative."""
    xp, (smallest, largest) = namespace(start), ends
    smallest, largest = clamp(smallest, high=0.0), clamp(largest, low=0.0)
    low, high = xp.maximum(-start, smallest), xp.minimum(start, largest)
    for x in samples:
        rounding = x.shape[1] / 12 / grid.steps**2
        for _ in range(12):
            width = high - low
            below, cut_below = tail(x, low, -1)
            above, cut_above = tail(x, high, 1)
            low = low - (cut_below - rounding * width) / (below + rounding)
            high = high + (cut_above - rounding * width) / (above + rounding)
            # From where nothing is cut off it falls to 0, and climbs again.
            low = xp.maximum(clamp(low, high=0.0), smallest)
            high = xp.minimum(clamp(high, low=0.0), largest)
            if _settled(width, high - low):
                break
    return low, high


def _newton_symmetric(samples: list[Array], start: Array, ends: Range, grid: Grid) -> Range:
    """The minimum over the step, with low = n s and high = p s."""
    xp, (n, p) = namespace(start), grid
    widest, _ = grid.cover(*ends, symmetric=True)
    scale = xp.minimum(start / p, widest)
    for x in samples:
        rounding = x.shape[1] / 12
        for _ in range(12):
            below, cut_below = tail(x, n * scale, -1)
            above, cut_above = tail(x, p * scale, 1)
            slope = p * cut_above - n * cut_below - rounding * scale  # minus half of dE/ds
            step = slope / (p * p * above + n * n * below + rounding)
            before, scale = scale, xp.minimum(clamp(scale + step, low=0.0), widest)
            if _settled(p * before - n * before, p * scale - n * scale):
                break
    return n * scale, p * scale


def _settled(before: Array, now: Array) -> bool:
    """Whether no width changed by more than a hundredth."""
    xp = namespace(now)
    return not bool(xp.any(xp.abs(now - before) > 0.01 * before))


def tail(x: Array, end: Array, side: int) -> tuple[Array, Array]:
    """The values of each row beyond ``end``: how many, and the sum of what is cut off them.

    x: (rows, values). end: (rows, 1). side: 1 for those above ``end``, -1 for those below.
    """
    xp = namespace(x)
    count, cut = xp.zeros_like(end), xp.zeros_like(end)
    for i, j in blocks(x):
        excess = x[i, j] - end[i] if side > 0 else end[i] - x[i, j]
        beyond = xp.astype(excess > 0, x.dtype)  # 1 beyond the end, else 0
        count[i] += xp.vecdot(beyond, beyond)[:, None]
        cut[i] += xp.vecdot(beyond, excess)[:, None]
    return count, cut


def blocks(x: Array) -> Iterator[tuple[slice, slice]]:
    """Cut (rows, values) into pieces of ``BLOCK`` values; on an accelerator, all is one piece."""
    rows, length = x.shape
    block = BLOCK if is_numpy_array(x) else rows * length
    height = max(1, block // length)
    for i in range(0, rows, height):
        for j in range(0, length, block):
            yield slice(i, i + height), slice(j, j + block)
