"""Chapter 4: the same weights on one grid, on a grid a channel, on a grid a group."""

from __future__ import annotations

import numpy as np

from minq import fake_quantize, quantize, ranges, scale_zero_point, sqnr
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel

BITS = 3
WEIGHTS = np.array([[1.2, -0.8, 0.54, 0.30], [0.15, -0.10, 0.05, 0.24]])  # the chapter's by hand
CELL, HIGH, LEFT = 40, 34, 0
WAYS: dict[str, dict[str, int]] = {
    "one scale for the tensor": {},
    "one for each channel (row)": {"axis": 0},
    "one for each group of 2": {"axis": 0, "group": 2},
}


def rounded(**granularity: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Integers, scales and the SQNR of the weights."""
    low, high = ranges.min_max(WEIGHTS, **granularity)
    s, z = scale_zero_point(low, high, BITS, signed=True, symmetric=True)
    codes = quantize(WEIGHTS, s, z, BITS, signed=True, **granularity)
    again = fake_quantize(WEIGHTS, s, z, BITS, signed=True, **granularity)
    return codes.astype(int), np.asarray(s), sqnr(WEIGHTS, again)


def signed(v: float) -> str:
    return f"{v:g}".replace("-", "−")


@drawn
def granularities() -> Drawing:
    """The weights, and their integers three times; what shares a scale is in one frame."""
    panels = [_weights(), *(_integers(title, way) for title, way in WAYS.items())]
    gained = [rounded(**way)[2] for way in WAYS.values()]
    return Drawing(
        "granularities",
        "The smaller the block that shares a scale, the less a small weight suffers from a large"
        f" one elsewhere: {gained[0]:.1f} dB for the tensor, {gained[1]:.1f} dB for each channel,"
        f" {gained[2]:.1f} dB for groups of 2.",
        tuple(panels),
    )


def _cells(p: Panel, values: np.ndarray, deep: np.ndarray) -> None:
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            x, y = LEFT + j * CELL, 26 + i * HIGH
            zero = value == 0
            p.block(x + 2, y + 2, CELL - 4, HIGH - 4, "red" if zero else "blue", full=deep[i, j])
            p.text(x + CELL / 2, y + HIGH / 2, signed(value), size=12, bold=bool(zero))


def _weights() -> Panel:
    rows = ["; ".join(signed(v) for v in row) for row in WEIGHTS]
    p = Panel(
        "the weights",
        f"Eight weights in two rows, one for each output channel: {rows[0]}, and {rows[1]}. The"
        " deeper the colour, the larger the weight.",
        width=290,
        height=124,
    )
    _cells(p, WEIGHTS, 0.06 + 0.5 * np.abs(WEIGHTS) / np.abs(WEIGHTS).max())
    for i in range(2):
        p.text(4 * CELL + 10, 26 + (i + 0.5) * HIGH, f"channel {i + 1}", anchor="start", size=12)
    return p


def _integers(title: str, way: dict[str, int]) -> Panel:
    codes, s, db = rounded(**way)
    zeros = int((codes == 0).sum())
    said = ", ".join(f"{v:.2g}" for v in np.ravel(s))
    rows = ["; ".join(signed(v) for v in row) for row in codes]
    p = Panel(
        title,
        f"The integers of both rows: {rows[0]}, and {rows[1]}. Scales: {said}. {zeros} of the eight"
        f" integers are 0, and the signal is {db:.1f} dB above the error.",
        width=290,
        height=124,
    )
    _cells(p, codes, 0.06 + 0.5 * np.abs(codes) / 4)
    wide, high = way.get("group", 4), 1 if way else 2
    for i in range(0, 2, high):
        for j in range(0, 4, wide):
            place = (LEFT + j * CELL, 26 + i * HIGH, wide * CELL, high * HIGH)
            p.box(*place, tone="ink", round_=2)
    for i, row in enumerate(s.reshape(-1, 4 // wide)):
        y = 26 + (i + high / 2) * HIGH
        text = ", ".join(f"{v:.2g}" for v in row)
        p.text(4 * CELL + 10, y, f"*s* = {text}", anchor="start", size=12)
    count = "none is 0" if not zeros else f"{zeros} of 8 are 0"
    p.text(LEFT, 112, f"{count}, {db:.1f} dB", anchor="start", tone="soft", size=SMALL)
    return p
