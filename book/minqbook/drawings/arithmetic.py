"""Chapters 2 and 18: the widths of one multiply-accumulate, and a division made of two integers."""

from __future__ import annotations

import math

from minq.mac import accumulator_bits
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

K = 1152  # products in a sum: a kernel of 3 x 3 over 128 channels
BIT = 9

SUM, RATIO, ZERO_POINT = 9236, 1 / 80, 5  # of the example by hand in chapter 18


@drawn
def accumulator_path() -> Drawing:
    """How many bits a number has on its way through one element of the array."""
    product, total = accumulator_bits(1), accumulator_bits(K)
    p = Panel(
        f"one output of {K:,} inputs",
        f"From top to bottom: a weight and an input of 8 bits each are multiplied to a product of"
        f" {product} bits. {K:,} products are added in an accumulator of 32 bits, of which the sum"
        f" needs {total} at most; {32 - total} are to spare. The bias, of 32 bits, is where the sum"
        " starts. Scaled, rounded and clamped, 8 bits leave.",
        height=296,
    )
    _register(p, 40, 40, 8, "weight, 8 bits", "blue")
    p.text(170, 45, "×", size=16)
    _register(p, 228, 40, 8, "input, 8 bits", "blue")
    p.arrow((170, 58), (170, 80))
    _register(p, 98, 100, product, f"product, {product} bits", "green")
    p.arrow((170, 114), (170, 136))
    p.text(180, 124, f"add {K:,} of them", anchor="start", tone="soft", size=SMALL)
    _register(p, 26, 156, 32, f"accumulator, 32 bits; the sum fits in {total}", "red", used=total)
    p.arrow((170, 170), (170, 192))
    p.text(180, 180, "bias: 32 bits too", anchor="start", tone="soft", size=SMALL)
    p.box(62, 194, 216, 34, "times scale, round, clamp", "line")
    p.arrow((170, 230), (170, 248))
    _register(p, 134, 268, 8, "output, 8 bits", "blue")
    p.text(26, 287, "each square is a bit", anchor="start", tone="soft", size=SMALL)
    return Drawing(
        "accumulator_path",
        f"Eight bits come in and eight go out, but in between a sum of {K:,} products needs"
        f" {total}, so the accumulator, not the multiplier, has 32.",
        (p,),
    )


def _register(
    p: Panel, x: float, y: float, bits: int, name: str, tone: str, used: int | None = None
) -> None:
    """A row of squares, one a bit, under its name; those that are not used are empty."""
    free = bits - (bits if used is None else used)
    for k in range(bits):
        p.box(x + k * BIT, y - 4, BIT, 14, tone=tone, full=0 if k < free else 0.3, round_=0)
    p.text(x + bits * BIT / 2, y - 13, name, tone=tone, size=12)


def fixed_point(bits: int) -> tuple[int, int]:
    """The ratio as a multiplier of so many bits and a right shift."""
    fraction, exponent = math.frexp(RATIO)
    return round(fraction * 2**bits), bits - exponent


def output(bits: int) -> int:
    """What the device computes: multiply, shift with rounding, add the zero-point, clamp."""
    multiplier, shift = fixed_point(bits)
    rounded = (SUM * multiplier + (1 << (shift - 1))) >> shift
    return min(max(rounded + ZERO_POINT, 0), 255)


@drawn
def requantization() -> Drawing:
    """The steps from an accumulator to the next layer's integer, and where they may go wrong."""
    (small, shift), (large, far) = fixed_point(8), fixed_point(16)
    product = SUM * small
    rounded = output(8) - ZERO_POINT
    steps = Panel(
        "from the sum to the output",
        f"The sum {SUM} is multiplied by {small}, which gives {product:,}; shifted right by {shift}"
        f" bits with rounding, {rounded}; plus the zero-point {ZERO_POINT}, {output(8)}; clamped to"
        f" 0 to 255, {output(8)}. No step has a fraction.",
        height=256,
    )
    rows = [
        (f"sum *A* = {SUM}", "32 bits", "red"),
        (f"times {small}", f"= {product:,}", "line"),
        (f"shift right by {shift}, round", f"= {rounded}", "line"),
        (f"plus zero-point {ZERO_POINT}", f"= {output(8)}", "line"),
        ("clamp to 0 … 255", f"{output(8)}, 8 bits", "blue"),
    ]
    for i, (words, result, tone) in enumerate(rows):
        y = 24 + 46 * i
        steps.box(0, y, 196, 30, words, tone, full=0 if tone == "line" else 0.12)
        steps.text(210, y + 15, result, anchor="start", tone="soft")
        if i < 4:
            steps.arrow((98, y + 31), (98, y + 45))
    exact, near, nearer = SUM * RATIO, SUM * small / 2**shift, SUM * large / 2**far
    line = Panel(
        "why a coarse multiplier may be off by one",
        f"A number line from 115 to 116 with the tie at 115.5. The exact quotient is {exact:.2f},"
        f" left of the tie. With a multiplier of 16 bits it is {nearer:.4f}, still left: 115. With"
        f" one of 8 bits it is {near:.2f}, right of the tie: 116, one step too high.",
        height=256,
    )
    x = Scale(115.3, 115.7, 20, 320)
    line.block(x(115.3), 118, x(115.5) - x(115.3), 14, "green", full=0.25)
    line.block(x(115.5), 118, x(115.7) - x(115.5), 14, "red", full=0.25)
    line.axis(x, 125, [115.3, 115.4, 115.5, 115.6, 115.7], form="{:.1f}")
    line.text(x(115.4), 166, "rounds to 115", tone="green")
    line.text(x(115.6), 166, "rounds to 116", tone="red")
    line.dot(x(exact), 125, 5, "ink")
    line.dot(x(near), 125, 5, "red")
    line.line((x(exact), 118), (x(exact), 84), tone="ink")
    line.line((x(near), 118), (x(near), 84), tone="red")
    line.text(x(exact), 58, f"*A* / 80 = {exact:.2f}\n16 bits: {nearer:.4f}", size=12)
    line.text(x(near) + 20, 58, f"{small} / 2^{{{shift}}}\n{near:.2f}", tone="red", size=12)
    line.line((x(115.5), 106), (x(115.5), 144), tone="ink", dash=True)
    line.text(x(115.5), 98, "tie", size=SMALL, tone="soft", halo=True)
    line.text(170, 208, f"ratio 1/80; {large} / 2^{{{far}}} has 16 bits", tone="soft", size=SMALL)
    return Drawing(
        "requantization",
        "A multiplication and a shift replace the division by the scale; they round to the wrong"
        " side only where the exact result lies beside a tie.",
        (steps, line),
    )
