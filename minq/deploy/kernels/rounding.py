"""Into and out of the integers: the first and the last step of every operator on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes, see ``minq.to_integer``; ``exact`` is with multipliers in floats."""

    exact: bool = False
    multiplier_bits: int = 31
    rounding: str = "half_even"
    accumulator_bits: int = 32


class Quantize(nn.Module):
    """x_int = clamp(round(x / s) + z; quant_min, quant_max), eq. (4), in double precision."""

    def __init__(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.integers, self.dtype = grid, storage(*grid)

    def forward(self, x: Tensor) -> Tensor:
        return self.integers.quantize(x.double(), self.scale, self.zero_point).to(self.dtype)

    def saturate(self, levels: Tensor) -> Tensor:
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
        quant_min, quant_max = grid.integers
        self.cuts = bool((low >= quant_min).all()), bool((high <= quant_max).all())

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
        levels, (low, high) = self.levels(*xs), self.cuts
        quant_min, quant_max = self.grid.integers
        outside = torch.zeros_like(levels, dtype=torch.bool)
        if not low:
            outside |= levels < quant_min
        if not high:
            outside |= levels > quant_max
        return int(outside.sum())
