"""Chapter 7: two layers share their ranges, and a high bias moves into the next layer."""

from __future__ import annotations

import math

import numpy as np

from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

R1 = np.array([16.0, 1.0, 2.0])  # largest weights of three channels, where layer 1 makes them
R2 = np.array([0.25, 4.0, 0.5])  # and where layer 2 reads them
LEVELS = 127  # of an 8-bit symmetric grid, on one side of zero

BETA, GAMMA = 5.0, 1.0  # mean and deviation of a channel in front of its ReLU


def levels(ranges: np.ndarray) -> np.ndarray:
    """How many levels each channel gets from the grid that the widest one sets."""
    return np.round(ranges / ranges.max() * LEVELS).astype(int)


def equalized() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """s and both layers' ranges behind equalization."""
    s = np.sqrt(R1 / R2)  # eq. (22)
    return s, R1 / s, R2 * s


@drawn
def two_layers() -> Drawing:
    """Three channels of two layers, before and after equalization."""
    s, after1, after2 = equalized()
    panels = [
        _ranges("as trained", R1, R2, ["ReLU"] * 3),
        _ranges("equalized", after1, after2, [f"*s* = {v:g}" for v in s]),
    ]
    return Drawing(
        "two_layers",
        "Dividing a channel by s in layer 1 and multiplying it by s in layer 2 changes nothing"
        " behind the ReLU, but it shares out the grid: no channel is left with 8 levels.",
        tuple(panels),
    )


def _ranges(title: str, r1: np.ndarray, r2: np.ndarray, middle: list[str]) -> Panel:
    rows = [
        f"channel {i + 1} reaches {a:g} in layer 1, {m} levels, and {b:g} in layer 2, {n} levels"
        for i, (a, b, m, n) in enumerate(zip(r1, r2, levels(r1), levels(r2), strict=True))
    ]
    steps = [f" s is {', '.join(m.split()[-1] for m in middle)}." if "=" in middle[0] else ""]
    p = Panel(title, f"Largest weights: {'; '.join(rows)}.{steps[0]}", height=196)
    p.text(84, 36, "layer 1 makes it", tone="blue")
    p.text(256, 36, "layer 2 reads it", tone="red")
    for i, (a, b, m, n) in enumerate(zip(r1, r2, levels(r1), levels(r2), strict=True)):
        y = 62 + 46 * i
        p.block(140 - 100 * a / r1.max(), y, 100 * a / r1.max(), 16, "blue")
        p.block(200, y, 100 * b / r2.max(), 16, "red")
        p.arrow((144, y + 8), (196, y + 8))
        p.text(170, y - 8, middle[i], tone="soft", size=SMALL)
        p.text(140, y + 27, f"largest {a:g}: {m} levels", anchor="end", size=SMALL, tone="blue")
        p.text(200, y + 27, f"{b:g}: {n} levels", anchor="start", size=SMALL, tone="red")
        p.text(0, y + 8, f"{i + 1}", anchor="start", tone="soft", bold=True)
    return p


@drawn
def absorbed_bias() -> Drawing:
    """A channel's values in front of ReLU, before and after c is taken off its bias."""
    c = max(0.0, BETA - 3 * GAMMA)  # the data-free stand-in for eq. (24)
    high = BETA + 3 * GAMMA
    return Drawing(
        "absorbed_bias",
        f"A channel that hardly ever falls below c = {c:g} needs no levels there: taking c off its"
        f" bias and adding W₂c to the next one shrinks its range from {high:g} to {high - c:g}.",
        (_bell("as trained", BETA, c, 0), _bell("absorbed", BETA - c, 0, c)),
    )


def _bell(title: str, mean: float, c: float, taken: float) -> Panel:
    high = mean + 3 * GAMMA
    p = Panel(title, "", height=190)
    x, y = Scale(-1, 9, 14, 326), Scale(0, 1, 140, 52)

    def density(v: float) -> float:
        return math.exp(-0.5 * ((v - mean) / GAMMA) ** 2)

    p.block(x(0), 136, x(high) - x(0), 8, "blue", full=0.35)
    p.curve(density, x, y, tone="ink")
    p.axis(x, 140, [0, 2, 4, 6, 8])
    p.line((x(0), 30), (x(0), 140), tone="red", dash=True)
    p.text(x(0) + 5, 34, "ReLU cuts here", anchor="start", tone="red", size=SMALL)
    p.text((x(0) + x(high)) / 2, 176, f"range of the grid: 0 to {high:g}", tone="blue")
    if c:
        p.line((x(c), 88), (x(c), 140), tone="green")
        p.text(x(c), 77, "*c* = *β* − 3*γ*", tone="green", halo=True)
        p.words = (
            f"The channel's values in front of ReLU form a bell around {mean:g}, which reaches down"
            f" to c = {c:g}, far right of the cut at 0. Its grid spans 0 to {high:g};"
            f" what lies below {c:g} is empty."
        )
    else:
        p.text(326, 60, f"*b*_{{1}} − {taken:g}\n*b*_{{2}} + *W*_{{2}} · {taken:g}", anchor="end")
        p.words = (
            f"The first bias is {taken:g} less, so the bell lies around {mean:g} and begins at the"
            f" cut. Its grid spans 0 to {high:g}. The second bias is larger by {taken:g} times the"
            " weights that read the channel."
        )
    return p
