"""Softmax and layer norm without a float: sums, one division or square root, fixed point.

Both come after a quantizer and end in one, so they need integers in and integers out; what they
keep in between are numbers of 24 fraction bits or more, so that a result differs from that of exact
arithmetic by one step at most, and only next to a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minq.deploy.kernels import Arithmetic, Multipliers, Quantize

FRACTION = 24
"""Bits behind the point of an exponential, and of a normalized value."""

NOTHING = 42.0
"""exp(-42) < 2^-60: beside 1, nothing even in double precision. So far down a masked score lies."""


def divide_half_even(a: Tensor, b: Tensor) -> Tensor:
    """round(a / b), b > 0, ties to even; int64, 2 |a| and 2 b below 2^63.

    >>> divide_half_even(torch.tensor([3, 5, 7, -3]), torch.tensor(2))
    tensor([ 2,  2,  4, -2])
    """
    quotient = torch.div(a, b, rounding_mode="floor")
    twice = 2 * (a - quotient * b)
    up = (twice > b) | ((twice == b) & (quotient % 2 == 1))
    return quotient + up.long()


def integer_sqrt(x: Tensor) -> Tensor:
    """floor(sqrt(x)) of int64 below 2^52, which double precision holds.

    >>> integer_sqrt(torch.tensor([0, 15, 16, 2**52 - 1]))
    tensor([       0,        3,        4, 67108863])
    """
    root = x.double().sqrt().floor().long()
    return root - (root * root > x).long()


class Normalize(nn.Module):
    """Integers of one grid to integers of another by a function of whole rows."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        scale: Tensor,
        zero: int,
        grid: Quantize,
        exact: bool,
    ) -> None:
        super().__init__()
        self.function, self.zero, self.grid, self.exact = function, zero, grid, exact
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.in_floats(x) if self.exact else self.in_integers(x)

    def in_floats(self, x: Tensor) -> Tensor:
        """As the simulation computes it, in double precision."""
        return self.grid(self.function(self.scale * (x.double() - self.zero)))

    def in_integers(self, x: Tensor) -> Tensor:
        """As the device computes it."""
        return self.grid.clamp(self.levels(x))

    def levels(self, x: Tensor) -> Tensor:
        """Rounded, but not clamped yet; int64."""
        raise NotImplementedError

    def clipped(self, x: Tensor) -> int:
        """How many results the grid cuts off."""
        levels = self.levels(x)
        return int((levels != levels.clamp(self.grid.n, self.grid.p)).sum())


class Softmax(Normalize):
    r"""exp(s x_i) / sum_j exp(s x_j), over one dimension, from a table of exponentials.

        e_i = E[max x - x_i],    E[d] = round(2^24 exp(-s d))
        y_i = round(e_i m / (2^h sum_j e_j)) + z_y,    m 2^-h = 1 / s_y

    The scores are whole numbers of steps below the largest, so the table is short.
    """

    def __init__(self, function, scale, zero, grid, exact, *, dim: int, low: int, high: int):
        super().__init__(function, scale, zero, grid, exact)
        self.dim = dim
        end = math.ceil((FRACTION + 1) * math.log(2) / float(scale.abs())) + 1  # from here on 0
        steps = torch.arange(min(high - low, end) + 1).double()
        table = torch.round(2.0**FRACTION * torch.exp(-scale.abs() * steps)).long()
        self.register_buffer("table", table)
        mantissa, exponent = math.frexp(1 / float(grid.scale))
        self.multiplier, self.shift = round(mantissa * 2**26), 26 - exponent
        self.fixed = [torch.tensor(self.multiplier)], torch.tensor(self.shift)
        if self.shift < 0:
            raise ValueError(f"a softmax cannot end on a grid of step {float(grid.scale):g}")

    def levels(self, x: Tensor) -> Tensor:
        x = x.long() if self.scale > 0 else -x.long()
        below = x.amax(self.dim, keepdim=True) - x
        e = self.table[below.clamp(max=len(self.table) - 1)]
        total = e.sum(self.dim, keepdim=True) << self.shift
        return divide_half_even(e * self.multiplier, total) + self.grid.zero_point.long()


class LayerNorm(Normalize):
    r"""(x - mean) / sqrt(variance + eps) gamma + beta over N numbers.

        u_i = N x_i - sum x,    W = sum u^2 + eps N^3 / s^2
        (x_i - mean) / sqrt(variance + eps) = u_i sqrt(N) / sqrt(W)

    u and W are integers, and the scale has left all but eps. W is brought to 51 or 52 bits by a
    shift of 2 k before its root r is taken, v = u 2^(k + 24) / r, and gamma sqrt(N) 2^-24 / s_y is
    a multiplier for each channel, as in any layer.
    """

    def __init__(
        self,
        function,
        scale: Tensor,
        zero: int,
        grid: Quantize,
        arithmetic: Arithmetic,
        *,
        dims: int,
        count: int,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
    ) -> None:
        super().__init__(function, scale, zero, grid, arithmetic.exact)
        self.dims, self.count = tuple(range(-dims, 0)), count
        self.epsilon = round(eps * count**3 / float(scale) ** 2)
        ratio = gamma * math.copysign(math.sqrt(count), float(scale)) * 2.0**-FRACTION / grid.scale
        self.multipliers = Multipliers(
            [ratio], [0], beta / grid.scale, arithmetic.multiplier_bits, arithmetic.rounding
        )
        self.fixed = self.multipliers.values, self.multipliers.shift

    def levels(self, x: Tensor) -> Tensor:
        x = x.long()
        u = self.count * x - x.sum(self.dims, keepdim=True)
        w = (u * u).sum(self.dims, keepdim=True) + self.epsilon
        _, exponent = torch.frexp(w.double())
        k = torch.clamp((52 - exponent.long()) // 2, min=0)
        root = integer_sqrt(w << (2 * k)).clamp(min=1)
        v = divide_half_even(u << (k + FRACTION), root)
        return self.multipliers(v) + self.grid.zero_point.long()
