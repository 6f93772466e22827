"""Chapter 3: a grid on the number line, and where five numbers go."""

from __future__ import annotations

import numpy as np

from minq import dequantize, fake_quantize, scale_zero_point
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

BITS, LOW, HIGH = 3, -1.0, 2.5  # the example by hand of the chapter
VALUES = (-0.9, -0.3, 0.2, 1.1, 2.9)


def grid() -> tuple[float, int]:
    """Its scale and zero-point."""
    s, z = scale_zero_point(LOW, HIGH, BITS)
    return float(s), int(z)


def signed(v: float) -> str:
    return f"{v:g}".replace("-", "−")


@drawn
def affine_grid() -> Drawing:
    """Eight levels on the number line, their integers, and what happens to five values."""
    s, z = grid()
    levels = dequantize(np.arange(2**BITS), s, z)
    became = [float(fake_quantize(v, s, z, BITS)) for v in VALUES]
    moves = [f"{signed(v)} to {signed(b)}" for v, b in zip(VALUES, became, strict=True)]
    p = Panel(
        f"{BITS} bits: {2**BITS} levels",
        f"A number line with {2**BITS} levels, a step of {s:g} apart, from {signed(levels[0])} to"
        f" {levels[-1]:g}. Below them stand the integers 0 to {2**BITS - 1}, and {z}, the"
        f" zero-point, stands under the real 0. Four values inside go to the nearest level,"
        f" {', '.join(moves[:-1])}. One lies outside and is clipped to the end, {moves[-1]}.",
        width=390,
        height=190,
    )
    x = Scale(-2, 3.5, 12, 378)
    low, high = x(levels[0] - s / 2), x(levels[-1] + s / 2)
    p.block(12, 76, low - 12, 12, "red", full=0.22)
    p.block(low, 76, high - low, 12, "green", full=0.22)
    p.block(high, 76, 378 - high, 12, "red", full=0.22)
    p.line((12, 82), (378, 82))
    for code, level in enumerate(levels):
        tone, wide = ("purple", 2.4) if code == z else ("blue", 1.4)
        p.line((x(level), 72), (x(level), 91), tone=tone, width=wide)
        p.text(x(level), 102, signed(level), size=SMALL, tone="soft")
        p.text(x(level), 128, f"{code}", tone=tone, bold=code == z)
    for value, level in zip(VALUES, became, strict=True):
        tone = "green" if low < x(value) < high else "red"
        p.dot(x(value), 50, 4, tone)
        p.arrow((x(value), 52), (x(level), 72), tone=tone)
        p.text(x(value), 37, signed(value), tone=tone)
    p.text(12, 60, "clipped", anchor="start", tone="red", size=12)
    p.text(378, 102, "clipped", anchor="end", tone="red", size=12)
    p.text(0, 102, "real", anchor="start", tone="soft", size=SMALL)
    p.text(0, 128, "integer", anchor="start", tone="blue", size=12)
    p.text(x(0) + 12, 148, f"zero-point *z* = {z}", anchor="end", tone="purple", size=12)
    a, b = x(levels[-3]), x(levels[-2])
    p.line((a, 140), (a, 145), (b, 145), (b, 140), tone="blue")
    p.text(b + 8, 148, f"step *s* = {s:g}", anchor="start", tone="blue", size=12)
    p.text(195, 178, "*x* → clamp(round(*x*/*s*) + *z*) → *s* · (integer − *z*)", size=12)
    return Drawing(
        "affine_grid",
        "Scale and zero-point lay the integers over the number line so that the real 0 falls on"
        " one of them; what lies inside moves by half a step at most, what lies outside is cut.",
        (p,),
    )
