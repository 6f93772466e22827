"""Sums of products, as they stand in 32-bit accumulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def wrap(x: Tensor, bits: int) -> Tensor:
    """x mod 2^bits, in [-2^(bits - 1), 2^(bits - 1)): what two's complement keeps.

    >>> wrap(torch.tensor([127, 128, -129]), 8)
    tensor([ 127, -128,  127])
    """
    half = 2 ** (bits - 1)
    return ((x + half) & (2 * half - 1)) - half


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
