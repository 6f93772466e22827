"""An oracle for ``minq.ranges.mse``: the exact error of any grid, and a search that tries them all.

No step is shared with minq. Values are sorted once; those that round to one level form a run, whose
squared error follows from its length and its sum, so one grid costs as many look-ups as it has
levels, however many values there are.
"""

from __future__ import annotations

import numpy as np


class Exact:
    """x -> the sum of squared errors of x on grids (scale, zero_point, n, p), in float64."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = np.sort(np.asarray(x, dtype=np.float64).ravel())
        self.sums = np.concatenate([[0.0], np.cumsum(self.x)])
        self.energy = float(self.x @ self.x)

    def __call__(self, scale, zero_point, n: int, p: int) -> np.ndarray:
        scale, zero_point = np.broadcast_arrays(
            np.atleast_1d(np.asarray(scale, dtype=np.float64)), zero_point
        )
        levels = (np.arange(n, p + 1) - zero_point[:, None]) * scale[:, None]  # (grids, levels)
        between = (levels[:, 1:] + levels[:, :-1]) / 2
        ends = np.full((len(levels), 1), len(self.x))
        cuts = np.hstack([0 * ends, np.searchsorted(self.x, between), ends])
        lengths, sums = np.diff(cuts), np.diff(self.sums[cuts])
        # sum (x - v)^2 = sum x^2 - 2 v sum x + v^2 count, over each level v
        return self.energy + np.sum(levels * (levels * lengths - 2 * sums), axis=1)


def exhaustive(
    error: Exact, n: int, p: int, symmetric: bool, steps: int = 120
) -> tuple[float, float, int]:
    """The smallest error, its scale and its zero-point.

    Symmetric: 4000 steps down to 1/1024 of min-max's. Asymmetric: ``steps`` steps down to 1/256 for
    every place (or 64 of them), then 200 steps and every place around the best.
    """
    low, high = min(error.x[0], 0.0), max(error.x[-1], 0.0)

    def best(scales: np.ndarray, places) -> tuple[float, float, int]:
        found = []
        for place in places:
            errors = error(scales, place, n, p)
            k = int(errors.argmin())
            found.append((float(errors[k]), float(scales[k]), int(place)))
        return min(found)

    if symmetric:
        widest = max(high / p, low / n if n else 0.0)
        return best(widest * np.geomspace(2**-10, 1, 4000), [0])
    widest = (high - low) / (p - n)
    places = range(n, p + 1, max(1, (p - n) // 64))
    _, scale, place = best(widest * np.geomspace(2**-8, 1, steps), places)
    near = max(3, (p - n) // 40)
    return best(
        scale * np.geomspace(0.88, 1.13, 200), range(max(n, place - near), min(p, place + near) + 1)
    )
