"""What an integer-only device does, one module an operator: integers in, integers out.

A tensor of integers x stands for the real numbers s (x - z). Its scale s is known when the network
is compiled and appears in no computation; what is left of it are the multipliers of ``Requantize``.

Between two requantizations numbers are 32 bits wide. Sums of products are computed by float64
units, which is exact: every partial sum is an integer below 2^53, in whatever order (see
``minq.mac.int_matmul``, the same argument for float32).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from minq.grid import Grid
from minq.mac import fixed_point_multiplier, rounded_shift


def storage(low: int, high: int) -> torch.dtype:
    """The smallest dtype that holds [low, high].

    >>> storage(0, 255), storage(-8, 7), storage(0, 511)
    (torch.uint8, torch.int8, torch.int16)
    """
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return dtype
    raise ValueError(f"[{low}, {high}] needs more than 64 bits")


def wrap(x: Tensor, bits: int) -> Tensor:
    """x mod 2^bits, in [-2^(bits - 1), 2^(bits - 1)): what two's complement keeps.

    >>> wrap(torch.tensor([127, 128, -129]), 8)
    tensor([ 127, -128,  127])
    """
    half = 2 ** (bits - 1)
    return ((x + half) & (2 * half - 1)) - half


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes, see ``minq.to_integer``; ``exact`` is with multipliers in floats."""

    exact: bool = False
    multiplier_bits: int = 31
    rounding: str = "half_even"
    accumulator_bits: int = 32


# --- Into and out of the integers -----------------------------------------------------------------


class Quantize(nn.Module):
    """x_int = clamp(round(x / s) + z; n, p), eq. (4), in double precision."""

    def __init__(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.integers, self.dtype = grid, storage(*grid)

    def forward(self, x: Tensor) -> Tensor:
        return self.integers.quantize(x.double(), self.scale, self.zero_point).to(self.dtype)

    def clamp(self, levels: Tensor) -> Tensor:
        return self.integers.clamp(levels).to(self.dtype)


class Dequantize(nn.Module):
    r"""The real numbers that integers stand for: sum_k s_k (x_k - z_k) + c, then what is fused.

    scales: one for each operand, of shapes that broadcast. constant: c. low, high: bounds of a
    fused clamp or ReLU. slope: factor of negative sums (leaky ReLU), before the bounds.
    """

    def __init__(
        self,
        scales: Sequence[Tensor],
        zeros: Sequence[int],
        constant: Tensor,
        low: Tensor,
        high: Tensor,
        slope: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.zeros = list(zeros)
        for k, scale in enumerate(scales):
            self.register_buffer(f"scale{k}", scale)
        for name, value in (("constant", constant), ("low", low), ("high", high), ("slope", slope)):
            self.register_buffer(name, value)

    @property
    def scales(self) -> list[Tensor]:
        return [getattr(self, f"scale{k}") for k in range(len(self.zeros))]

    def forward(self, *xs: Tensor) -> Tensor:
        parts = [s * (x.double() - z) for s, x, z in zip(self.scales, xs, self.zeros, strict=True)]
        y = sum(parts[1:], parts[0]) + self.constant  # eq. (6)
        if self.slope is not None:
            y = torch.where(y < 0, y * self.slope, y)
        return torch.clamp(y, self.low, self.high)


class Multipliers(nn.Module):
    r"""round(sum_k r_k (x_k - z_k) + c) without a float, where r_k = s_k / s_y:

        (sum_k m_k x_k + o) >> shift,    m_k = round(r_k 2^shift),    o = c 2^shift - sum_k m_k z_k

    One shift for all operands; the largest multiplier has ``bits`` bits. So a sum of tensors, as a
    residual addition, costs one multiplication for each operand and one rounding.

    **Error.** m_k 2^-shift is within 2^-(shift + 1) of r_k, so what is rounded is off by at most
    sum_k |x_k - z_k| 2^-(shift + 1): the integer is that of exact arithmetic unless it lies that
    close to a tie, and then differs by one.
    """

    def __init__(
        self,
        ratios: Sequence[Tensor],
        zeros: Sequence[int],
        constant: Tensor,
        bits: int = 31,
        rounding: str = "half_even",
    ) -> None:
        super().__init__()
        self.rounding, self.count = rounding, len(ratios)
        largest = torch.stack(torch.broadcast_tensors(*(r.abs() for r in ratios))).amax(0)
        largest = largest.clamp(min=2.0**-100)  # a channel may be multiplied by 0
        _, shift = map(torch.as_tensor, fixed_point_multiplier(largest))
        shift = shift - (31 - bits)  # of ``fixed_point_multiplier``, whose integers have 31 bits
        if (shift < 0).any():
            raise ValueError(
                f"a scale is {largest.max():g} times as large as the next one, too much for a "
                f"multiplier of {bits} bits"
            )
        room = 61 - math.ceil(math.log2(float(constant.abs().max()) + 1))
        self.register_buffer("shift", shift.clamp(max=room))
        offset = self._fixed(constant)
        for k, (ratio, zero) in enumerate(zip(ratios, zeros, strict=True)):
            multiplier = self._fixed(ratio)
            self.register_buffer(f"multiplier{k}", multiplier)
            offset = offset - multiplier * zero
        self.register_buffer("offset", offset)

    def _fixed(self, value: Tensor) -> Tensor:
        """value 2^shift, rounded."""
        return torch.round(value * 2.0 ** self.shift.double()).long()

    @property
    def values(self) -> list[Tensor]:
        """m_k, int64."""
        return [getattr(self, f"multiplier{k}") for k in range(self.count)]

    def total(self, *xs: Tensor) -> Tensor:
        """The sum before the shift, int64."""
        products = (x.long() * m for x, m in zip(xs, self.values, strict=True))
        return sum(products, self.offset)

    def forward(self, *xs: Tensor) -> Tensor:
        return rounded_shift(self.total(*xs), self.shift, self.rounding)


class Requantize(nn.Module):
    r"""From wide integers to the next layer's, the last step of figure 2: of one operand or a sum.

        y_int = clamp(round(y / s_y) + z_y; low, high)

    A fused ReLU or clamp only narrows the bounds from those of the grid, since rounding keeps the
    order; a leaky ReLU has multipliers of its own for negative sums. ``exact`` computes with real
    numbers, as the simulation does, in place of ``Multipliers``.
    """

    def __init__(self, real: Dequantize, grid: Quantize, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.real, self.grid, self.exact = real, grid, arithmetic.exact

        def multipliers(factor: Tensor | float) -> Multipliers:
            ratios = [s * factor / grid.scale for s in real.scales]
            constant = real.constant * factor / grid.scale
            how = arithmetic.multiplier_bits, arithmetic.rounding
            return Multipliers(ratios, real.zeros, constant, *how)

        self.multipliers = multipliers(1.0)
        self.negative = None if real.slope is None else multipliers(real.slope)
        low, high = (torch.round(v / grid.scale) + grid.zero_point for v in (real.low, real.high))
        self.register_buffer("low", grid.integers.clamp(low).long())
        self.register_buffer("high", grid.integers.clamp(high).long())
        self.fixed = self.multipliers.values, self.multipliers.shift
        n, p = grid.integers
        self.cuts = bool((low >= n).all()), bool((high <= p).all())

    def forward(self, *xs: Tensor) -> Tensor:
        return self.in_floats(*xs) if self.exact else self.in_integers(*xs)

    def in_floats(self, *xs: Tensor) -> Tensor:
        """As the simulation computes it, in double precision."""
        return self.grid(self.real(*xs))

    def in_integers(self, *xs: Tensor) -> Tensor:
        """As the device computes it."""
        return torch.clamp(self.levels(*xs), self.low, self.high).to(self.grid.dtype)

    def levels(self, *xs: Tensor) -> Tensor:
        """Rounded, but not clamped yet; int64."""
        y = self.multipliers(*xs)
        if self.negative is not None:
            y = torch.where(self.multipliers.total(*xs) < 0, self.negative(*xs), y)
        return y + self.grid.zero_point.long()

    def clipped(self, *xs: Tensor) -> int:
        """How many results the grid cuts off that no fused function cuts already."""
        levels, (low, high), (n, p) = self.levels(*xs), self.cuts, self.grid.integers
        outside = torch.zeros_like(levels, dtype=torch.bool)
        if not low:
            outside |= levels < n
        if not high:
            outside |= levels > p
        return int(outside.sum())


class Table(nn.Module):
    """Any function of one number on a grid of few levels: looked up, y = table[x - n]."""

    def __init__(self, levels: Tensor, n: int) -> None:
        super().__init__()
        self.register_buffer("table", levels)
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long() - self.n]


# --- Sums of products -----------------------------------------------------------------------------


class Accumulate(nn.Module):
    """What ends in an accumulator: an exact sum, of which ``bits`` bits are kept, as int32.

    bound: the bits that no input can overflow. Only where it exceeds ``bits`` can anything wrap.
    """

    bits, bound = 32, 32

    def keep(self, total: Tensor) -> Tensor:
        total = total.long()
        return (wrap(total, self.bits) if self.bound > self.bits else total).int()


class Layer(Accumulate):
    """W_int x_int + b_int with 32-bit accumulators: a convolution, a linear layer.

    weight: integers, less their zero-point if they have one. bias: INT32, of scale s_w s_x, with
    the input's zero-point folded in, b - z_x sum W of eq. (13); so the input is padded with z_x,
    which stands for 0. The border of a transposed convolution sees a part of W only, and there x -
    z_x is what is multiplied.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor,
        zero: int,
        pads: Sequence[int] = (),
        folded: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.function, self.zero, self.pads, self.folded = function, zero, list(pads), folded
        self.settings = settings
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.pads):
            x = F.pad(x, self.pads, value=self.zero)
        x = x.double() if self.folded else x.double() - self.zero
        return self.keep(
            self.function(x, self.weight.double(), self.bias.double(), **self.settings)
        )


class Product(Accumulate):
    """(a - z_a)(b - z_b): of two matrices, or element by element; both depend on the input."""

    def __init__(self, function: Callable[..., Tensor], zeros: Sequence[int]) -> None:
        super().__init__()
        self.function, self.zeros = function, list(zeros)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.keep(self.function(a.double() - self.zeros[0], b.double() - self.zeros[1]))


class Average(Accumulate):
    """A linear function with rational coefficients: means, pooling, interpolation, sums.

    factor: their common denominator. f(x - z) factor is an integer, and 1 / factor goes into the
    scale.
    """

    def __init__(self, function: Callable[..., Tensor], zero: int, factor: int) -> None:
        super().__init__()
        self.function, self.zero, self.factor = function, zero, factor

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.function(x.double() - self.zero, *args, **kwargs)
        return self.keep(torch.round(y * self.factor))


class Lookup(nn.Module):
    """Rows of an integer table: an embedding."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, index: Tensor) -> Tensor:
        return self.weight[index]


class Move(nn.Module):
    """An operator that only moves or picks values, and that torch has for floats alone."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.function(x.double(), *args, **kwargs)
        return tree_map_only(Tensor, lambda t: t.to(x.dtype) if t.is_floating_point() else t, y)


class FillWith(nn.Module):
    """An operator that fills up with a level that is given: masked_fill, padding."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, level: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(x.double(), *args, level.item(), **kwargs).to(x.dtype)


class Fill(nn.Module):
    """One level in a tensor of a shape that is given; of the type of other integers, or its own."""

    def __init__(self, level: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.level, self.dtype = level, dtype

    def forward(self, shape: Tensor, like: Tensor | None = None) -> Tensor:
        dtype = self.dtype if like is None else like.dtype
        return torch.full_like(shape, self.level, dtype=dtype)
