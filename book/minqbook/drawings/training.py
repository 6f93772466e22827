"""Chapters 12 and 14: a derivative by decree, and ranges to start from."""

from __future__ import annotations

import math

import numpy as np

from minq import fake_quantize, integer_grid
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

VALUE = 1.7  # that is rounded
COUNT = 10_000  # weights of the layer that the ranges are set for
SPREAD = 1 / math.sqrt(2)  # of a Laplace distribution with a deviation of 1


def detour(y: float) -> tuple[float, float]:
    """What is added to y so that the sum is the rounded y, and the sum."""
    rounded = float(np.rint(y))
    return rounded - y, rounded


@drawn
def straight_and_detour() -> Drawing:
    """How `y + (round(y) - y).detach()` computes forward, and what autograd sees of it."""
    added, rounded = detour(VALUE)
    forward = _paths(
        "forward: two ways, one sum",
        f"The value {VALUE:g} takes two ways. The straight one leaves it as it is. The detour"
        f" rounds it and subtracts it again, which gives {added:.1f}, and passes detach, which"
        f" changes no value. The two are added: {rounded:g}, the rounded value.",
    )
    forward.text(4, 60, f"*y* = {VALUE:g}", anchor="start")
    forward.arrow((58, 60), (288, 60), tone="blue")
    forward.line((72, 60), (72, 130), tone="soft")
    forward.arrow((72, 130), (88, 130))
    forward.arrow((186, 130), (206, 130))
    forward.arrow((276, 130), (300, 130), (300, 73))
    forward.arrow((312, 60), (334, 60))
    forward.text(180, 47, f"{VALUE:g}", tone="blue")
    forward.text(308, 103, f"{added:.1f}", anchor="start", tone="soft")
    forward.text(342, 60, f"{rounded:g}", anchor="start", bold=True)

    backward = _paths(
        "backward: one way only",
        "The gradient comes back from the sum, where it is 1. On the straight way it passes"
        " unchanged. On the detour it stops at detach. So 1 arrives at the value: the derivative"
        " of the rounding counts as 1.",
    )
    backward.text(4, 60, "1", anchor="start", bold=True)
    backward.arrow((288, 60), (20, 60), tone="blue")
    backward.line((72, 60), (72, 130), tone="soft", dash=True)
    backward.line((72, 130), (88, 130), tone="soft", dash=True)
    backward.line((186, 130), (206, 130), tone="soft", dash=True)
    backward.arrow((300, 73), (300, 130), (280, 130), tone="red")
    backward.arrow((334, 60), (313, 60), tone="blue")
    backward.text(180, 47, "1", tone="blue")
    backward.text(240, 161, "stopped", tone="red", size=12)
    backward.text(342, 60, "1", anchor="start", tone="blue")
    return Drawing(
        "straight_and_detour",
        f"Forward the detour corrects {VALUE:g} to {rounded:g}; backward autograd sees the straight"
        " way alone, so the derivative is 1.",
        (forward, backward),
    )


def _paths(title: str, words: str) -> Panel:
    """What both directions share: the two boxes of the detour, and the sum."""
    p = Panel(title, words, width=356, height=176)
    p.box(88, 112, 98, 36, "round(*y*) − *y*")
    p.box(206, 112, 70, 36, "detach", tone="red", full=0.12)
    p.dot(300, 60, 12, tone="soft", hollow=True)
    p.text(300, 60, "+")
    return p


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
