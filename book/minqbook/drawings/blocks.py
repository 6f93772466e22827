"""Chapter 20: two ways to spend 4.25 bits on a weight."""

from __future__ import annotations

import numpy as np

from minq import floats
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

SIDE = 9  # of an element


def bits_per_weight(count: int, scale_bits: int) -> float:
    return 4 + scale_bits / count


@drawn
def blocks_of_four_bits() -> Drawing:
    """A group of INT4 and a block of MXFP4: their storage, and their levels."""
    even = np.arange(8.0)
    bent = np.array(floats.float_grid(floats.E2M1))
    integer = _block("INT4, a group of 64", 64, 16, "any number", even[even >= 0], "blue")
    small = _block("MXFP4, a block of 32", 32, 8, "a power of two", bent[bent >= 0], "green")
    return Drawing(
        "blocks_of_four_bits",
        f"Both take {bits_per_weight(64, 16):g} bits for a weight: integers with a precise scale"
        " for each 64, or floats with a cheap power of two for each 32, whose wider steps near the"
        " end forgive a coarse scale.",
        (integer, small),
    )


def _block(title: str, count: int, scale: int, kind: str, levels: np.ndarray, tone: str) -> Panel:
    listed = ", ".join(f"{v:g}" for v in levels)
    p = Panel(
        title,
        f"{count} weights of 4 bits share a scale of {scale} bits, {kind}:"
        f" {bits_per_weight(count, scale):g} bits a weight. The levels at and above 0 are {listed}"
        " times the scale.",
        height=206,
    )
    p.box(0, 30, scale * 4, 18, tone="purple", full=0.3, round_=2)
    p.text(
        scale * 4 + 8, 39, f"scale: {scale} bits, {kind}", anchor="start", size=12, tone="purple"
    )
    for k in range(count):
        x, y = (k % 32) * (SIDE + 1.5), 60 + (k // 32) * (SIDE + 4)
        p.block(x, y, SIDE, SIDE, tone, full=0.5)
    p.text(0, 100, f"{count} weights of 4 bits each", anchor="start", size=12, tone=tone)
    each = f"4 + {scale}/{count} = {bits_per_weight(count, scale):g} bits a weight"
    p.text(0, 122, each, anchor="start")
    at = Scale(0, 7.5, 10, 330)
    p.line((at(0), 160), (at(7.5), 160))
    for v in levels:
        p.line((at(float(v)), 152), (at(float(v)), 168), tone=tone, width=2.2)
        p.text(at(float(v)), 180, f"{v:g}", size=SMALL, tone="soft")
    p.text(10, 198, "levels, times the scale", anchor="start", size=SMALL, tone="soft")
    return p
