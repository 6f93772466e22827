"""Softmax and norms without a float: sums, one division or square root, fixed point.

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
from minq.mac import rounded_shift

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
        return self.grid(self.function(self.real(x)))

    def real(self, x: Tensor) -> Tensor:
        return self.scale * (x.double() - self.zero)

    def in_integers(self, x: Tensor) -> Tensor:
        """As the device computes it."""
        return self.grid.saturate(self.levels(x))

    def levels(self, x: Tensor) -> Tensor:
        """Rounded, but not clamped yet; int64."""
        raise NotImplementedError

    def clipped(self, x: Tensor) -> int:
        """How many results the grid cuts off."""
        levels = self.levels(x)
        return int((levels != self.grid.integers.clamp(levels)).sum())


class Softmax(Normalize):
    r"""exp(s x_i) / sum_j exp(s x_j), over one dimension, from a table of exponentials.

        e_i = E[max x - x_i],    E[d] = round(2^24 exp(-s d))
        y_i = round(e_i m / (2^h sum_j e_j)) + z_y,    m 2^-h = 1 / s_y

    The scores are whole numbers of steps below the largest, so the table is short: 17.4 / s steps,
    or as many as the grid has levels. hidden: what the level ``low`` stands for, if that is a mask
    (``minq.deploy.compiler.forms.Hidden``); it lies beyond the table.
    """

    def __init__(
        self, function, scale, zero, grid, exact,
        *, dim: int, low: int, high: int, hidden: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(function, scale, zero, grid, exact)
        self.dim, self.low, self.hidden = dim, low, hidden
        steps = torch.arange(self.entries(scale, low, high, hidden)).double()
        table = torch.round(2.0**FRACTION * torch.exp(-scale.abs() * steps)).long()
        if hidden is not None:
            table[-1] = 0
        self.register_buffer("table", table)
        self._scale_results()

    @staticmethod
    def entries(scale: Tensor, low: int, high: int, hidden: float | None = None) -> int:
        """How long the table is."""
        end = math.ceil((FRACTION + 1) * math.log(2) / float(scale.abs())) + 1  # from here on 0
        if hidden is None:
            return min(high - low, end) + 1
        return min((high - low - 1) // 2 + 1, end) + 1  # one more, for what is hidden

    def _scale_results(self) -> None:
        """1 / s_y as an integer and a shift."""
        mantissa, exponent = math.frexp(1 / float(self.grid.scale))
        self.multiplier, self.shift = round(mantissa * 2**26), 26 - exponent
        self.fixed = [torch.tensor(self.multiplier)], torch.tensor(self.shift)
        if self.shift < 0:
            raise ValueError(f"a softmax cannot end on a grid of step {float(self.grid.scale):g}")

    def real(self, x: Tensor) -> Tensor:
        real = super().real(x)
        return real if self.hidden is None else real.masked_fill(x == self.low, self.hidden)

    def exponentials(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """max x - x, and E of it."""
        x = x.long() if self.scale > 0 else -x.long()
        below = x.amax(self.dim, keepdim=True) - x
        return below, self.table[below.clamp(max=len(self.table) - 1)]

    def levels(self, x: Tensor) -> Tensor:
        _, e = self.exponentials(x)
        total = e.sum(self.dim, keepdim=True) << self.shift
        return divide_half_even(e * self.multiplier, total) + self.grid.zero_point.long()


class LogSoftmax(Softmax):
    r"""s x_i - log sum_j exp(s x_j), from the same table and one of logarithms.

        -y_i = s (max x - x_i) + log(2^-24 sum_j e_j),    both with 28 bits behind the point

    The sum is 2^k (1 + f), its logarithm k log 2 + log(1 + f), which a table of 2^12 entries and a
    straight line between two of them give up to 2^-27.
    """

    BITS, INDEX = 28, 12

    def _scale_results(self) -> None:
        one = 2.0**self.BITS
        f = torch.arange(2**self.INDEX + 1).double() / 2**self.INDEX
        self.register_buffer("logarithms", torch.round(one * torch.log1p(f)).long())
        self.step, self.log2 = round(float(self.scale.abs()) * one), round(math.log(2) * one)
        mantissa, exponent = math.frexp(1 / float(self.grid.scale))
        self.multiplier, self.shift = round(mantissa * 2**22), 22 - exponent + self.BITS
        self.fixed = [torch.tensor(self.multiplier)], torch.tensor(self.shift)

    def logarithm(self, total: Tensor) -> Tensor:
        """2^28 log(2^-24 total), total from 2^24 to 2^52."""
        _, exponent = torch.frexp(total.double())
        k = exponent.long() - 1
        fraction = (total << (52 - k)) - (1 << 52)  # f, 52 bits
        rest = 52 - self.INDEX
        index, between = fraction >> rest, (fraction & ((1 << rest) - 1)) >> (rest - 20)
        low, high = self.logarithms[index], self.logarithms[index + 1]
        return (k - FRACTION) * self.log2 + low + (((high - low) * between) >> 20)

    def levels(self, x: Tensor) -> Tensor:
        below, e = self.exponentials(x)
        y = -(below * self.step + self.logarithm(e.sum(self.dim, keepdim=True)))
        scaled = rounded_shift(y * self.multiplier, torch.tensor(self.shift), "half_even")
        return scaled + self.grid.zero_point.long()


class LayerNorm(Normalize):
    r"""(x - mean) / sqrt(variance + eps) gamma + beta over N numbers, or over groups of channels.

        u_i = N x_i - sum x,    V = N sum x^2 - (sum x)^2,    x without its zero-point
        (x_i - mean) / sqrt(variance + eps) = u_i / sqrt(V + eps N^2 / s^2)

    RMS norm takes no mean away (``center``): u_i = N x_i and V = N sum x^2. u and V are integers,
    and the scale has left all but eps. W = 2^t (V + eps N^2 / s^2), with t even and as large as 52
    bits allow, is brought to 51 or 52 bits by a shift of 2 k before its root r is taken; then v =
    u 2^(t / 2 + k + 24) / r, and gamma 2^-24 / s_y is a multiplier for each channel, as in any
    layer.
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
        low: int,
        high: int,
        groups: int | None = None,
        center: bool = True,
    ) -> None:
        super().__init__(function, scale, zero, grid, arithmetic.exact)
        self.dims, self.count = tuple(range(-dims, 0)), count
        self.groups, self.center = groups, center
        most, epsilon = self._largest(scale, zero, count, eps, low, high, center)
        self.up = max((51 - math.frexp(most + epsilon)[1]) // 2, 0)  # t / 2
        self.epsilon = round(epsilon * 4.0**self.up)
        ratio = gamma * math.copysign(1.0, float(scale)) * 2.0**-FRACTION / grid.scale
        self.multipliers = Multipliers(
            [ratio], [0], beta / grid.scale, arithmetic.multiplier_bits, arithmetic.rounding
        )
        self.fixed = self.multipliers.values, self.multipliers.shift

    @staticmethod
    def _largest(scale, zero, count, eps, low, high, center) -> tuple[float, float]:
        """The largest V, and eps in its unit."""
        most = max(abs(low - zero), abs(high - zero), (high - low) if center else 0)
        return float(count * most) ** 2, eps * (count / float(scale)) ** 2

    @classmethod
    def fits(cls, scale, zero, *, count, eps, low, high, center=True, **_) -> bool:
        """Whether 52 bits hold all squares."""
        sums = cls._largest(scale, zero, count, eps, low, high, center)
        return count <= 2**20 and sum(sums) < 2**50

    def levels(self, x: Tensor) -> Tensor:
        x, shape = x.long() - self.zero, x.shape
        if self.groups is not None:
            x = x.reshape(len(x), self.groups, -1)
        dims = self.dims if self.groups is None else (-1,)
        u, v = self.count * x, self.count * (x * x).sum(dims, keepdim=True)
        if self.center:
            total = x.sum(dims, keepdim=True)
            u, v = u - total, v - total * total
        w = (v << (2 * self.up)) + self.epsilon
        _, exponent = torch.frexp(w.double())
        k = torch.clamp((52 - exponent.long()) // 2, min=0)
        root = integer_sqrt(w << (2 * k)).clamp(min=1)
        y = divide_half_even(u << (k + self.up + FRACTION), root).reshape(shape)
        return self.multipliers(y) + self.grid.zero_point.long()
