"""Integers as C: types, arrays, and the constants of a requantization."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minq.deploy import kernels

C_TYPES = {
    torch.uint8: "uint8_t",
    torch.int8: "int8_t",
    torch.int16: "int16_t",
    torch.int32: "int32_t",
    torch.int64: "int32_t",  # token ids
}


def short(ctype: str) -> str:
    """Of a type, for names of functions.

    >>> short("uint8_t"), short("int16_t"), short("float")
    ('u8', 'i16', 'f')
    """
    return ctype.replace("uint", "u").replace("int", "i").replace("loat", "").removesuffix("_t")


class CArray(NamedTuple):
    """A constant array: its name, the type of its entries, and they themselves."""

    name: str
    ctype: str
    values: list[Any]

    @property
    def bytes(self) -> int:
        return len(self.values) * int("".join(filter(str.isdigit, self.ctype)) or 32) // 8

    def __str__(self) -> str:
        numbers = ", ".join(map(_literal, self.values))
        lines = textwrap.fill(numbers, 116, initial_indent="    ", subsequent_indent="    ")
        return f"static const {self.ctype} {self.name}[{len(self.values)}] = {{\n{lines}\n}};\n"


def _literal(value: Any) -> str:
    """A number; C has no literal for the lowest integer of a type."""
    if isinstance(value, float):
        return f"{value:.9e}f"
    if value == -(2**31):
        return "INT32_MIN"
    if -(2**31) < value < 2**31:
        return str(value)
    return "INT64_MIN" if value == -(2**63) else f"INT64_C({value})"


def weights(values: Tensor) -> tuple[str, list[int]]:
    """Rows of weights as "i4", "i8" or "i16", whichever is the first that holds them all.

    Two weights of 4 bits share a byte, the first in its lower half: those that are half a row
    apart, so that each half of the bytes meets inputs that lie side by side.

    >>> weights(torch.tensor([[1, -2, 7]]))
    ('i4', [113, 14])
    """
    low, high = int(values.min()), int(values.max())
    if -8 <= low and high <= 7:
        rows = torch.nn.functional.pad(values.long(), (0, values.shape[1] % 2))
        first, second = rows.chunk(2, 1)
        return "i4", ((first & 15) + 16 * second).flatten().tolist()
    kind = "i8" if -128 <= low and high <= 127 else "i16"
    return kind, values.long().flatten().tolist()


WEIGHT_TYPES = {"i4": "int8_t", "i8": "int8_t", "i16": "int16_t", "f": "float"}
"""How weights are stored; in floats only by who compares with floats."""


class Rescaling(NamedTuple):
    """The integers of a requantization, one or one for each channel: see ``kernels.Multipliers``.

    ``each`` says of multipliers and shift, offset, bounds whether each channel has its own.
    """

    multipliers: list[list[int]]
    shift: list[int]
    offset: list[int]
    low: list[int]
    high: list[int]
    zero: int
    channels: int
    each: tuple[bool, bool, bool]


def rescaling(
    unit: kernels.Multipliers, low: Tensor, high: Tensor, zero: int, spread, channels: int
) -> Rescaling:
    """``spread`` lays a constant out as the results lie in memory."""
    groups = [[*unit.values, unit.shift], [unit.offset], [low, high]]
    flat = [[spread(v) for v in group] for group in groups]
    kept: list[list[list[int]]] = []
    for period in (channels, flat[0][0].numel()):
        found = [_periodic(group, period) for group in flat]
        kept = [group for group in found if group is not None]
        if len(kept) == len(flat):
            break
    (*multipliers, shift), (offset,), (lowest, highest) = kept
    a, b, c = (len(group[0]) > 1 for group in kept)
    each = a, b, c
    return Rescaling(multipliers, shift, offset, lowest, highest, zero, period, each)


def _periodic(group: list[Tensor], period: int) -> list[list[int]] | None:
    """All values once, or once for each channel; None if neither."""
    if all(bool((v == v[0]).all()) for v in group):
        return [[int(v[0])] for v in group]
    if all(torch.equal(v.reshape(-1, period), v[:period].expand(v.numel() // period, period))
           for v in group):  # fmt: skip
        return [v[:period].tolist() for v in group]
    return None
