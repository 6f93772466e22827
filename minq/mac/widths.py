"""How wide an accumulator must be so that nothing overflows."""

from __future__ import annotations

import numpy as np

from minq._checks import Array, check_count
from minq.grid import integer_grid
from minq.mac.products import linear_operands


def bits_for(low: int, high: int) -> int:
    """The smallest two's complement width that holds ``low`` and ``high``.

    Args:
        low: an integer.
        high: another.

    Returns:
        Bits.

    >>> bits_for(-128, 127), bits_for(0, 128), bits_for(0, 0)
    (8, 9, 1)
    """
    return 1 + max((v if v >= 0 else ~v).bit_length() for v in (int(low), int(high)))


def accumulator_bits(
    n_inputs: int,
    weight_bits: int = 8,
    activation_bits: int = 8,
    *,
    weight_signed: bool = True,
    activation_signed: bool = False,
    bias: int = 0,
) -> int:
    """Bits that no weights and inputs of these widths can overflow: K times the extreme products.

    Since each product's range contains 0, the bound holds for every partial sum, in any order. It
    grows by one bit each time K doubles.

    Args:
        n_inputs: K.
        weight_bits: of the weights.
        activation_bits: of the inputs.
        weight_signed: whether weights go below 0.
        activation_signed: whether inputs do.
        bias: the largest magnitude it may have.

    Returns:
        Bits.

    >>> accumulator_bits(1), accumulator_bits(64 * 3 * 3), accumulator_bits(576, weight_bits=4)
    (16, 26, 22)
    """
    k, bias = check_count(n_inputs, "n_inputs"), abs(int(bias))
    w = integer_grid(weight_bits, signed=weight_signed)
    x = integer_grid(activation_bits, signed=activation_signed)
    corners = [p * q for p in w for q in x]
    return bits_for(k * min(corners) - bias, k * max(corners) + bias)


def accumulator_bits_of(
    weight: Array,
    activation_bits: int = 8,
    *,
    activation_signed: bool = False,
    bias: Array | None = None,
) -> int:
    """Bits that no input can overflow, given these weights: the worst input of every output row.

    The largest sum pairs positive weights with the largest input and negative weights with the
    smallest; it also bounds every partial sum.

    Args:
        weight: integers, (N, M).
        activation_bits: of the inputs.
        activation_signed: whether inputs go below 0.
        bias: integers, (N,), or None for 0.

    Returns:
        Bits.

    >>> accumulator_bits_of([[1, -2, 3]], activation_bits=8), accumulator_bits(3)
    (11, 18)
    """
    low, high = integer_grid(activation_bits, signed=activation_signed)
    w, _, b, _ = linear_operands(weight, np.full(np.shape(weight)[-1:], max(high, -low)), bias)
    positive, negative = np.maximum(w, 0).sum(1), np.minimum(w, 0).sum(1)
    smallest, largest = positive * low + negative * high, positive * high + negative * low
    return bits_for((b + smallest).min(), (b + largest).max())
