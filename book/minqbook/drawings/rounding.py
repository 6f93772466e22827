"""Chapter 9: soft rounding on a number line, and the order of the layers."""

from __future__ import annotations

import math

from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

ZETA, BELOW = 1.1, -0.1  # the stretch of the sigmoid, zeta and gamma in the paper
WEIGHT = 2.3  # in steps of the grid: between 2 and 3


def stretched(v: float) -> float:
    """The sigmoid from -0.1 to 1.1, before the clamp."""
    return (ZETA - BELOW) / (1 + math.exp(-v)) + BELOW


def h(v: float) -> float:
    """The rectified sigmoid: how far up a weight is rounded."""
    return min(1.0, max(0.0, stretched(v)))


def v_of(h: float) -> float:
    """The V whose h this is, for h between 0 and 1."""
    share = (h - BELOW) / (ZETA - BELOW)
    return math.log(share / (1 - share))


@drawn
def between_two_levels() -> Drawing:
    """A weight between two levels, and the function that carries it to one of them."""
    return Drawing(
        "between_two_levels",
        "While AdaRound learns, a weight may stand anywhere between its two levels; the stretched"
        " sigmoid reaches 0 and 1 at a finite V, so that the choice can become final.",
        (_line(), _sigmoid()),
    )


def _line() -> Panel:
    low, share = math.floor(WEIGHT), WEIGHT - math.floor(WEIGHT)
    p = Panel(
        "a weight between two levels",
        f"A number line in steps of the grid. The weight is {WEIGHT:g} steps. Nearest rounding can"
        f" only send it to {low}. Soft rounding puts it at {low} + h(V), which starts at the weight"
        f" itself, h = {share:.1f}, moves with the gradient, and ends at {low} or at {low + 1}.",
        height=196,
    )
    x = Scale(1.6, 3.4, 14, 326)
    p.block(x(low), 112, x(low + 1) - x(low), 8, "blue", full=0.3)
    p.axis(x, 116, [low, low + 1])
    p.text(170, 152, "*W*/*s*, in steps of the grid", tone="soft", size=SMALL)
    for level in (low, low + 1):
        p.dot(x(level), 116, 6, "ink", hollow=True)
    p.dot(x(WEIGHT), 116, 6, "blue")
    p.text(x(WEIGHT), 136, f"{WEIGHT:g}", tone="blue", size=SMALL)
    p.arrow((x(WEIGHT) - 8, 104), (x(low) + 3, 104), tone="soft", dash=True)
    p.text((x(low) + x(WEIGHT)) / 2 - 16, 90, "nearest", tone="soft", size=SMALL)
    p.arrow((x(WEIGHT) + 8, 104), (x(low + 1) - 3, 104), tone="green")
    p.text(
        (x(low + 1) + x(WEIGHT)) / 2 + 12, 90, "if the output asks for it", tone="green", size=SMALL
    )
    p.line((x(low), 66), (x(low), 56), (x(WEIGHT), 56), (x(WEIGHT), 66), tone="blue")
    p.text((x(low) + x(WEIGHT)) / 2, 42, f"*h*(*V*) = {share:.1f}", tone="blue")
    p.text(170, 182, "soft weight = *s* · (⌊*W*/*s*⌋ + *h*(*V*))")
    return p


def _sigmoid() -> Panel:
    share = WEIGHT - math.floor(WEIGHT)
    ends, start = v_of(1.0), v_of(share)
    p = Panel(
        "*h*(*V*), the stretched sigmoid",
        f"A sigmoid that would run from {BELOW:g} to {ZETA:g} is cut off at 0 and 1. It is 0"
        f" left of V = −{ends:.1f} and 1 right of {ends:.1f}. The weight starts at"
        f" V = {start:.1f}".replace("-", "−")
        + f", where h is {share:.1f}.",
        height=196,
    )
    x, y = Scale(-6, 6, 34, 326), Scale(0, 1, 146, 52)
    for level in (0, 1):
        p.line((34, y(level)), (326, y(level)), tone="grid")
        p.text(26, y(level), f"{level}", anchor="end", size=SMALL, tone="soft")
    p.curve(stretched, x, y, tone="soft", dash=True)
    p.curve(h, x, y, tone="blue", width=2.4)
    p.axis(x, 166, [-6, -3, 0, 3, 6])
    p.text(338, 166, "*V*", anchor="end")
    p.dot(x(start), y(share), 6, "blue")
    p.text(x(start) - 12, y(share) - 12, "start", anchor="end", tone="blue", halo=True)
    p.text(x(-5.9), y(0) - 14, "down, for good", anchor="start", tone="green", size=SMALL)
    p.text(x(5.9), y(1) + 14, "up, for good", anchor="end", tone="green", size=SMALL)
    p.text(x(-4.4), y(1) + 14, f"cut at *V* = ±{ends:.1f}", tone="soft", size=SMALL)
    return p


@drawn
def layer_by_layer() -> Drawing:
    """Two networks side by side: what one layer is fitted to, and on which inputs."""
    p = Panel(
        "fitting the third layer",
        "Two copies of a network of four layers, one above the other. In the upper one, in floats,"
        " the output of layer 3 is read: it is the target. In the lower one layers 1 and 2 are"
        " rounded already, and what comes out of them is the input of layer 3. Layer 4 is"
        " not touched yet. Then the same for layer 4.",
        width=390,
        height=196,
    )
    columns = [26, 118, 210, 302]
    for y, row in ((60, "float network"), (150, "rounded so far")):
        p.text(0, y - 32, row, anchor="start", tone="soft", size=SMALL)
        p.arrow((0, y), (24, y))
        for i, x in enumerate(columns):
            done = y > 100 and i < 2
            now = y > 100 and i == 2
            tone = "green" if done else "blue" if now else "line"
            words = f"layer {i + 1}" + ("\nrounded" if done else "\nwanted" if now else "")
            later = y > 100 and i == 3
            p.box(x, y - 20, 64, 40, words, tone, full=0.15 * (done or now), dash=later, size=SMALL)
            if i < 3:
                p.arrow((x + 65, y), (x + 91, y))
        p.arrow((columns[3] + 65, y), (390, y))
    p.dot(288, 60, 5, "red")
    p.dot(288, 150, 5, "blue")
    p.line((288, 66), (288, 144), tone="red", dash=True)
    p.text(282, 104, "make these alike", anchor="end", tone="red")
    p.dot(196, 150, 5, "green")
    p.text(196, 184, "its real input, errors included", tone="green", size=SMALL)
    return Drawing(
        "layer_by_layer",
        "Layers are rounded from front to back: each sees the inputs that the rounded layers"
        " before it really give, and is fitted to what the float layer put out.",
        (p,),
    )
