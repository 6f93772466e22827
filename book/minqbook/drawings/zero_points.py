"""Chapter 2: the four terms of one product as areas, with two zero-points and with one."""

from __future__ import annotations

from minq.mac import zero_point_terms
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel

UNIT, BASE, LEFT = 18, 182, 56
INPUT, INPUT_ZERO = 7, 2
WEIGHTS = ((9, 3), (6, 0))  # one weight on two grids: its integer and zero-point


def terms(weight: int, weight_zero: int) -> list[int]:
    """The four terms of eq. (13) over s_w s_x, for one product."""
    found = zero_point_terms([[weight]], [[INPUT]], weight_zero, INPUT_ZERO)
    return [int(term.reshape(-1)[0]) for term in found]


@drawn
def zero_point_areas() -> Drawing:
    """What is cut off the rectangle that the array computes."""
    titles = ("weight with a zero-point", "symmetric weight")
    panels = [_areas(title, w, z) for title, (w, z) in zip(titles, WEIGHTS, strict=True)]
    return Drawing(
        "zero_point_areas",
        "Of what a zero-point cuts off, only the strip of the weight's zero-point changes with the"
        " data; with symmetric weights it is gone, and the rest goes into the bias.",
        tuple(panels),
    )


def _areas(title: str, weight: int, zero: int) -> Panel:
    product, by_weight, by_input, both = terms(weight, zero)
    total = product + by_weight + by_input + both
    words = (
        f"A rectangle {weight} wide and {INPUT} high, the weight times the input, has the area"
        f" {product}. "
    )
    if zero:
        words += (
            f"A strip {zero} wide on its left, {-by_weight}, depends on the data. A strip"
            f" {INPUT_ZERO} high at its foot, {-by_input}, is known beforehand. Their corner,"
            f" {both}, was cut off twice and is added again. What is left is {total}."
        )
    else:
        words += (
            f"There is no strip on its left. The strip {INPUT_ZERO} high at its foot, {-by_input},"
            f" is known beforehand. What is left is {total}, as before."
        )
    p = Panel(title, words, height=256)
    wide, high = weight * UNIT, INPUT * UNIT
    cut, foot = zero * UNIT, INPUT_ZERO * UNIT
    top = BASE - high
    p.block(LEFT + cut, top, wide - cut, high - foot, "blue", full=0.35)
    p.text(LEFT + cut + (wide - cut) / 2, top + (high - foot) / 2, f"{total}", bold=True)
    p.block(LEFT, BASE - foot, wide, foot, "green", full=0.3)
    p.text(LEFT + cut + (wide - cut) / 2, BASE - foot / 2, "known", size=12)
    if zero:
        p.block(LEFT, top, cut, high, "red", full=0.3)
        p.text(LEFT + cut / 2, top + (high - foot) / 2, "data", size=12)
    p.box(LEFT, top, wide, high, tone="ink", round_=0)
    p.text(LEFT + wide / 2, top - 12, f"*W*_{{int}} = {weight}", size=12)
    p.text(LEFT - 8, top + (high - foot) / 2, "*x*_{int}", anchor="end", size=12)
    p.text(LEFT - 8, top + (high - foot) / 2 + 16, f"= {INPUT}", anchor="end", size=12)
    p.text(LEFT - 8, BASE - foot / 2, f"*z*_{{x}} = {INPUT_ZERO}", anchor="end", size=SMALL)
    if zero:
        p.text(LEFT + cut / 2, BASE + 14, f"*z*_{{w}} = {zero}", size=SMALL)
    parts = [f"{product}", f"− {-by_weight}"] if zero else [f"{product}"]
    parts += [f"− {-by_input}", f"+ {both}"] if zero else [f"− {-by_input}"]
    p.text(LEFT, 218, f"{' '.join(parts)} = {total}", anchor="start")
    cost = (
        "one term needs the inputs: it costs additions"
        if zero
        else "nothing is left to do at run time"
    )
    p.text(LEFT, 240, cost, anchor="start", tone="red" if zero else "green", size=SMALL)
    return p
