"""Chapter 6: where four rules end the range of the same tensor."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from minq import fake_quantize, ranges, scale_zero_point, sqnr
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

GAMMA, GIANT = 1.0, 11.0  # the tensor: bell-shaped with long tails, and one giant


@cache
def tensor() -> np.ndarray:
    """Ten thousand activations with a deviation of about 1, one of them a giant."""
    x = np.random.default_rng(6).laplace(0, GAMMA / math.sqrt(2), 10_000)
    return np.append(np.clip(x, -5, 5), GIANT)


@cache
def found() -> dict[str, tuple[float, float]]:
    """{rule: its range of the tensor}."""
    x = tensor()
    rules = {
        "min-max": ranges.min_max(x),
        "batch norm, ±6γ": ranges.batch_norm(np.array([GAMMA]), np.array([0.0])),
        "MSE, 8 bits": ranges.mse(x, 8),
        "MSE, 4 bits": ranges.mse(x, 4),
    }
    return {name: (float(low), float(high)) for name, (low, high) in rules.items()}


def quality(low: float, high: float, bits: int = 4) -> float:
    """The SQNR of the tensor on that range."""
    return sqnr(tensor(), fake_quantize(tensor(), *scale_zero_point(low, high, bits), bits))


@drawn
def range_rules() -> Drawing:
    """A tensor with a giant, and under it a bar for the range of each rule."""
    rules = found()
    said = [
        f"{name} from {low:.1f} to {high:.1f}, {quality(low, high):.1f} dB".replace("-", "−")
        for name, (low, high) in rules.items()
    ]
    said = [text.replace("min−max", "min-max") for text in said]
    p = Panel(
        "the same tensor, four ranges",
        f"A peak around 0 with tails to −5 and 5, and one giant at {GIANT:g}. Below it a bar for"
        f" each rule, and the signal over the error with 4 bits: {'; '.join(said)}.",
        width=390,
        height=280,
    )
    x, y = Scale(-7, 12, 6, 384), Scale(0, 1, 106, 28)
    bell = [(v / 10, math.exp(-abs(v / 10) * math.sqrt(2) / GAMMA)) for v in range(-70, 121)]
    p.line(*((x(v), y(height)) for v, height in bell), tone="ink")
    p.line((6, 106), (384, 106))
    p.dot(x(GIANT), 100, 5, "red")
    p.text(384, 84, "one giant", anchor="end", tone="red", size=12)
    tones = ("red", "purple", "green", "blue")
    for i, ((name, (low, high)), tone) in enumerate(zip(rules.items(), tones, strict=True)):
        row = 140 + 36 * i
        p.block(x(low), row, x(high) - x(low), 8, tone, full=0.6)
        p.text(6, row - 9, name, anchor="start", tone=tone, size=12)
        p.text(384, row - 9, f"4 bits: {quality(low, high):.1f} dB", anchor="end", size=12)
    p.text(6, 272, "bars: what the grid covers", anchor="start", tone="soft", size=SMALL)
    best, worst = max(rules, key=lambda r: quality(*rules[r])), quality(*rules["min-max"])
    gain = quality(*rules[best]) - worst
    return Drawing(
        "range_rules",
        "Min-max follows a single giant, batch norm knows only mean and deviation, and MSE weighs"
        f" both errors for the bits there are: with 4 bits it is {gain:.0f} dB above min-max here.",
        (p,),
    )
