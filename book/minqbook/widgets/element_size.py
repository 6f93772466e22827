"""The gates of one multiply-accumulate element: what its bits cost, beside floats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import traitlets

from minq.mac import accumulator_bits
from minqbook.widgets.base import Widget

BITS = (2, 3, 4, 6, 8, 16)
FLOATS = ("float32", "bfloat16", "fp8_e4m3")
PARTS = ("multiplier", "adder", "flip_flops")
PRODUCTS = 1152
"""The narrower accumulator is safe for a sum of so many products."""
UNITS = 64
"""Arrays are compared on the area of so many float32 multiply-adds, 8 x 8."""


class ElementSize(Widget):
    """Choose bits and see an element's gates: multiplier, adder and registers, drawn to scale.

    records: what ``python -m minqbook.gates`` counted (``results/gates.json``). weight_bits,
    input_bits: one of 2, 3, 4, 6, 8, 16. accumulator: "32" bits, or "safe": as many as a sum of
    1,152 products can need.

    ``result()`` has what the page computes.

    Raises ValueError if records lack an element or a float.
    """

    alt = traitlets.Unicode(
        "An element of the array drawn to scale, divided into multiplier, adder and registers, and"
        " as many of it as fit into the area of one float32 multiply-add."
    ).tag(sync=True)
    # [weight bits, input bits, accumulator bits, multiplier, adder, flip-flops], by name for floats
    elements = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    floats = traitlets.Dict().tag(sync=True)
    weight_bits = traitlets.Enum(BITS, 8).tag(sync=True)
    input_bits = traitlets.Enum(BITS, 8).tag(sync=True)
    accumulator = traitlets.Enum(["32", "safe"], "32").tag(sync=True)
    shown = ("weight_bits", "input_bits", "accumulator")

    def __init__(self, records: Iterable[Mapping[str, Any]], **traits: Any) -> None:
        plain = [r for r in records if not r["variant"]]
        keys = ("weight_bits", "input_bits", "acc_bits", *PARTS)
        elements = [[r[k] for k in keys] for r in plain if r["unit"] == "element"]
        floats = {r["unit"]: [r[k] for k in PARTS] for r in plain if r["unit"] in FLOATS}
        need = {(w, x, a) for w in BITS for x in BITS for a in (32, safe_bits(w, x))}
        if missing := need - {tuple(e[:3]) for e in elements}:
            raise ValueError(f"records lack {len(missing)} elements, such as {min(missing)}")
        if absent := set(FLOATS) - floats.keys():
            raise ValueError(f"records lack {', '.join(sorted(absent))}")
        super().__init__(elements=elements, floats=floats, **traits)

    def result(self) -> dict[str, int]:
        """What the page shows: acc_bits; cells of each part and of all; products, how many can be
        summed safely; per_cycle, multiply-adds of an array on the area of 64 float32 ones."""
        w, x = self.weight_bits, self.input_bits
        acc = 32 if self.accumulator == "32" else safe_bits(w, x)
        (parts,) = (e[3:] for e in self.elements if e[:3] == [w, x, acc])
        cells = sum(parts)
        return {
            "acc_bits": acc,
            **dict(zip(PARTS, parts, strict=True)),
            "cells": cells,
            "products": (2 ** (acc - 1)) // (2 ** (w - 1) * (2**x - 1)),
            "per_cycle": UNITS * sum(self.floats["float32"]) // cells,
        }


def safe_bits(weight_bits: int, input_bits: int) -> int:
    """Bits of an accumulator that a sum of ``PRODUCTS`` products cannot overflow.

    >>> safe_bits(8, 8), safe_bits(4, 8), safe_bits(2, 2)
    (27, 23, 14)
    """
    return accumulator_bits(PRODUCTS, weight_bits, input_bits)
