"""Joules for one operation, from a published table and, where it is silent, a stated rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minq._checks import check_count

# M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014: picojoules at
# 45 nm and 0.9 V, by (kind of number, bits); memory per 64 bits, DRAM at the low end of 1300-2600.
ADD_PJ = {("int", 8): 0.03, ("int", 16): 0.05, ("int", 32): 0.1, ("float", 16): 0.4,
          ("float", 32): 0.9}  # fmt: skip
MULTIPLY_PJ = {("int", 8): 0.2, ("int", 32): 3.1, ("float", 16): 1.1, ("float", 32): 3.7}
ACCESS_PJ = {"sram_8k": 10.0, "sram_32k": 20.0, "sram_1m": 100.0, "dram": 1300.0}


def add_energy(bits: int, *, floating: bool = False) -> float:
    """Joules for one addition. Integer widths not in the table: 32-bit energy x bits / 32, ours.

    Args:
        bits: of both summands.
        floating: whether they are floats.

    Returns:
        Joules.

    Raises:
        ValueError: for floats of other than 16 or 32 bits.

    >>> round(add_energy(32) * 1e12, 3), round(add_energy(24) * 1e12, 3)
    (0.1, 0.075)
    """
    if floating:
        return _float_energy(ADD_PJ, bits)
    return 1e-12 * ADD_PJ.get(("int", bits), ADD_PJ["int", 32] * check_count(bits, "bits") / 32)


def multiply_energy(weight_bits: int, activation_bits: int, *, floating: bool = False) -> float:
    """Joules for one multiplication.

    An integer multiplier of p x q bits adds up p q one-bit products. Widths that are not in the
    table are **our extrapolation** by that area from 8 x 8 bits; for 32 x 32 it would give 3.2 pJ
    where the table says 3.1.

    Args:
        weight_bits: of one factor.
        activation_bits: of the other.
        floating: whether they are floats.

    Returns:
        Joules.

    Raises:
        ValueError: for floats of other than 16 or 32 bits, or of two widths.

    >>> [round(multiply_energy(*bits) * 1e12, 3) for bits in ((8, 8), (4, 8), (4, 4))]
    [0.2, 0.1, 0.05]
    """
    if floating:
        return _float_energy(MULTIPLY_PJ, weight_bits if weight_bits == activation_bits else None)
    area = check_count(weight_bits, "weight_bits") * check_count(activation_bits, "activation_bits")
    known = MULTIPLY_PJ.get(("int", weight_bits)) if weight_bits == activation_bits else None
    return 1e-12 * (known or MULTIPLY_PJ["int", 8] * area / 64)


def _float_energy(table: Mapping[Any, float], bits: int | None) -> float:
    if ("float", bits) not in table:
        raise ValueError(
            "floating point comes in 16 or 32 bits here, equal for weights and activations; "
            "pass both as 16 or 32, or floating=False"
        )
    return 1e-12 * table["float", bits]


def access_energy(bits: float, memory: str) -> float:
    """Joules to move ``bits`` bits between the array and a memory.

    Args:
        bits: how many.
        memory: one of ``ACCESS_PJ``, such as "dram".

    Returns:
        Joules.

    Raises:
        ValueError: for a memory that is not known.

    >>> access_energy(64, "dram") / access_energy(64, "sram_8k")
    130.0
    """
    if memory not in ACCESS_PJ:
        raise ValueError(f"memory must be one of {', '.join(ACCESS_PJ)}, not {memory!r}")
    return 1e-12 * ACCESS_PJ[memory] * bits / 64
