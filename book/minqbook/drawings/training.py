"""Chapters 12 and 14: the derivative of a staircase by decree, and ranges to start from."""

from __future__ import annotations

import math

import numpy as np

from minq import fake_quantize, integer_grid
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

BITS, LOW, HIGH = 3, -4, 3  # of the staircase: eight levels, a step of 1
COUNT = 10_000  # weights of the layer that the ranges are set for
SPREAD = 1 / math.sqrt(2)  # of a Laplace distribution with a deviation of 1


def staircase(x: float) -> float:
    """The quantizer: scale 1, signed, 3 bits."""
    return float(fake_quantize(float(x), 1.0, 0, BITS, signed=True))


def gate(x: float) -> float:
    """Eq. (37): 1 where the value is rounded to a level of its own, 0 where it is clipped."""
    return float(LOW <= round(x) <= HIGH)


@drawn
def staircase_and_gate() -> Drawing:
    """The quantizer forward, and what the estimator takes for its slope backward."""
    x = Scale(-6.5, 5.5, 14, 326)
    ends = (LOW - 0.5, HIGH + 0.5)
    forward = Panel(
        "forward: a staircase",
        f"The quantized value over x. Between {ends[0]:g} and {ends[1]:g} a staircase of eight"
        " levels runs along the diagonal; outside it is flat, clipped. The slope is 0 everywhere"
        " but at the jumps.".replace("-", "−"),
        height=210,
    )
    y = Scale(LOW, HIGH, 164, 44)
    forward.line((x(ends[0]), y(ends[0])), (x(ends[1]), y(ends[1])), tone="blue", dash=True)
    steps = [(v, staircase(v)) for v in np.linspace(-6.5, 5.5, 601)]
    forward.line(*((x(a), y(b)) for a, b in steps), tone="ink", width=2)
    forward.axis(x, 180, [-6, -4, -2, 0, 2, 4])
    forward.text(x(-6.5), y(LOW) - 16, "clipped", anchor="start", tone="red")
    forward.text(x(5.5), y(HIGH) - 12, "clipped", anchor="end", tone="red")
    forward.text(x(0.6), y(-1.6), "slope 1\non average", anchor="start", tone="blue", size=12)

    backward = Panel(
        "backward: a gate",
        f"The slope that the estimator uses. It is 1 between {ends[0]:g} and {ends[1]:g}, where the"
        " gradient passes, and 0 outside, where it is stopped. The true slope is 0 on both"
        " sides.".replace("-", "−"),
        height=210,
    )
    y = Scale(0, 1, 164, 74)
    for level in (0, 1):
        backward.line((14, y(level)), (326, y(level)), tone="grid")
        backward.text(8, y(level), f"{level}", anchor="end", size=SMALL, tone="soft")
    backward.block(x(ends[0]), y(1), x(ends[1]) - x(ends[0]), 90, "blue", full=0.14)
    gates = [(v, gate(v)) for v in np.linspace(-6.5, 5.5, 601)]
    backward.line(*((x(a), y(b)) for a, b in gates), tone="blue", width=2.4)
    backward.axis(x, 180, [-6, -4, -2, 0, 2, 4])
    backward.text(x(-0.5), 58, "estimator: 1", tone="blue")
    backward.text(x(-0.5), 118, "the gradient passes", tone="blue", size=12)
    backward.text(x(-0.5), 150, "true slope: 0", tone="soft", size=12)
    backward.text(x(-6.5), 118, "stopped", anchor="start", tone="red", size=12)
    backward.text(x(5.5), 118, "stopped", anchor="end", tone="red", size=12)
    return Drawing(
        "staircase_and_gate",
        "Forward the value takes a staircase; backward the gradient sees its average slope, 1"
        " inside the grid, so it passes the rounding and stops only where values are clipped.",
        (forward, backward),
    )


def starts() -> dict[str, float]:
    """Three scales for 2-bit weights with long tails: {what is wrong with it: scale}."""
    largest = SPREAD * math.log(COUNT)  # exceeded by about one weight
    return {"too wide": largest / 2, "too narrow": 0.2, "least squared error": least_error()}


def shares(scale: float) -> tuple[float, float]:
    """Shares of weights that become 0, and that are clipped, on the grid -2, -1, 0, 1."""
    low, high = integer_grid(2, signed=True)

    def beyond(v: float) -> float:
        return 0.5 * math.exp(-v / SPREAD)

    zero = 1 - 2 * beyond(scale / 2)
    return zero, beyond((high + 0.5) * scale) + beyond((0.5 - low) * scale)


def least_error() -> float:
    """The scale with the least squared error, found by trying."""
    x = np.linspace(-12, 12, 4801)
    p = np.exp(-np.abs(x) / SPREAD)
    tried = np.linspace(0.3, 3, 136)
    errors = [(p * (fake_quantize(x, float(s), 0, 2, signed=True) - x) ** 2).sum() for s in tried]
    return float(tried[int(np.argmin(errors))])


@drawn
def starting_ranges() -> Drawing:
    """The same weights on three grids of four levels, and what becomes of them."""
    panels = [_start(name, scale) for name, scale in starts().items()]
    zero = shares(starts()["too wide"])[0]
    return Drawing(
        "starting_ranges",
        f"With 2 bits the range that holds every weight turns {zero:.0%} of them into zeros, and"
        " zeros stop the gradient of their neighbours: such a start is dead, however accurate.",
        tuple(panels),
    )


def _start(name: str, scale: float) -> Panel:
    zero, clipped = shares(scale)
    fate = {
        "too wide": "No gradient comes through zeros: the start is dead.",
        "too narrow": "Clipped weights get no gradient: most of them are stuck.",
        "least squared error": "The start to take: fewer zeros, and little is clipped.",
    }[name]
    p = Panel(
        f"{name}: step {scale:.2f}",
        f"A peaked curve of weights with long tails over a grid of four levels with a step of"
        f" {scale:.2f}. {zero:.0%} of the weights become 0, {clipped:.0%} are clipped. {fate}",
        width=300,
        height=190,
    )
    x, y = Scale(-7, 5, 8, 292), Scale(0, 1, 134, 34)

    def density(v: float) -> float:
        return math.exp(-abs(v) / SPREAD)

    def under(low: float, high: float, tone: str) -> None:
        low, high = max(low, x.low), min(high, x.high)
        if low < high:
            inside = [low + (high - low) * k / 60 for k in range(61)]
            top = [(x(v), y(density(v))) for v in inside]
            p.area((x(low), 134), *top, (x(high), 134), tone=tone, full=0.45)

    under(-scale / 2, scale / 2, "red")
    under(-9, -2.5 * scale, "purple")
    under(1.5 * scale, 9, "purple")
    p.curve(density, x, y, tone="ink")
    p.line((8, 134), (292, 134))
    for level in range(-2, 2):
        if x.low <= level * scale <= x.high:
            p.line((x(level * scale), 126), (x(level * scale), 144), tone="blue", width=2.4)
    p.text(x(-7), 52, f"zero: {zero:.0%}", anchor="start", tone="red")
    p.text(x(-7), 72, f"clipped: {clipped:.0%}", anchor="start", tone="purple")
    p.text(150, 158, "levels −2, −1, 0, 1", tone="blue", size=SMALL)
    p.text(150, 178, fate.split(":")[0].rstrip("."), tone="soft", size=SMALL)
    return p
