"""A grid that starts at a real number: a scale and a minimum in place of a scale and a zero-point.

    q     = clamp(round((x - m) / s); 0, p)        codes, as of eq. (4)
    x_hat = s q + m                                eq. (6)

From the range of a group of weights, s = (max - min) / p and m = min, so that both extremes are
levels. Nothing makes 0 a level, and the range need not hold it: weights have no padding, and a
group whose values all lie on one side wastes no codes. GGUF stores weights so, in Q4_1: 32 codes of
4 bits, s and m in 16 bits each, 5 bits a weight.

In the words of equations 4 to 7 the zero-point is a real number, z = -m / s, so that it is added
before rounding. Integers alone cannot compute with it: W x = s (q x) + m sum x.
"""

from __future__ import annotations

from minq._checks import Array
from minq.grid import Grid, Rounding, round_half_even


class MinimumGrid(Grid):
    """The integers from n to p, at n the real minimum of the range; z = n - minimum / s.

    >>> import minq
    >>> grid = MinimumGrid(0, 3)
    >>> scale, zero_point = grid.cover(1.0, 2.5)
    >>> float(scale), float(zero_point)
    (0.5, -2.0)
    >>> minq.fake_quantize([1.0, 1.6, 9.0], scale, zero_point, grid)
    array([1. , 1.5, 2.5])
    """

    __slots__ = ()

    @property
    def whole(self) -> bool:
        return False

    @property
    def real(self) -> str:
        return "a real minimum"

    @property
    def even(self) -> bool:
        return True

    def quantize(
        self, x: Array, scale: Array, zero_point: Array, rounding: Rounding = round_half_even
    ) -> Array:
        """q = clamp(round(x / s + z); n, p), whole numbers in the dtype of x."""
        return self.clamp(rounding(x / scale + zero_point))

    def hold(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The range as it is."""
        return low, high

    def as_zero_point(self, v: Array, rounding: Rounding = round_half_even) -> Array:
        """v itself."""
        return v
