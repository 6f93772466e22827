"""Chapter 8: where the shift of a layer's output comes from, and how the bias takes it off."""

from __future__ import annotations

import numpy as np

from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, Scale

W, STEP = np.array([0.9, 0.6, -0.7]), 0.5  # the example by hand of the chapter
X = np.array([[1.0, 0, 2], [3, 2, 0]])


def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights' errors, the mean inputs, and the errors of the two outputs."""
    error = STEP * np.round(W / STEP) - W
    return error, X.mean(axis=0), X @ error


def signed(v: float) -> str:
    return f"{v:+.1f}".replace("-", "−")


@drawn
def biased_error() -> Drawing:
    """Errors of weights times mean inputs, added up, and the outputs before and after."""
    error, mean, errors = parts()
    shift = float(error @ mean)
    terms = [
        f"{signed(e)} times {m:g} is {signed(e * m)}" for e, m in zip(error, mean, strict=True)
    ]
    p = Panel(
        "where the shift comes from",
        f"Each weight's rounding error is multiplied by the mean of its input, which is positive"
        f" behind a ReLU: {'; '.join(terms)}. The sum, the shift of the output, is"
        f" {signed(shift)}.",
        height=196,
    )
    for x, head in (
        (60, "error of\nthe weight"),
        (170, "mean of\nits input"),
        (282, "adds to\nthe output"),
    ):
        p.text(x, 38, head, tone="soft", size=SMALL)
    for i, (e, m) in enumerate(zip(error, mean, strict=True)):
        y = 74 + 30 * i
        p.text(60, y, signed(e), tone="red")
        p.text(115, y, "×", tone="soft")
        p.text(170, y, f"{m:g}", tone="blue")
        p.text(222, y, "=", tone="soft")
        p.text(254, y, signed(e * m))
        start, end = sorted((286, 286 + 90 * e * m))
        p.block(start, y - 7, end - start, 14, "red", full=0.6)
    p.line((230, 151), (322, 151), tone="ink")
    p.text(254, 168, signed(shift), bold=True)
    p.block(286, 161, 90 * shift, 14, "red")
    p.line((286, 62), (286, 178), tone="line")
    p.text(60, 168, "shift of the output", tone="soft", anchor="start", size=12)
    return Drawing(
        "biased_error",
        "Inputs behind a ReLU have a positive mean, so rounding errors of weights do not average"
        f" out: their sum {signed(shift)} shifts every output, and the bias can take it off.",
        (p, _outputs(errors, shift)),
    )


def _outputs(errors: np.ndarray, shift: float) -> Panel:
    after = errors - shift
    listed = [" and ".join(signed(v) for v in values) for values in (errors, after)]
    p = Panel(
        "errors of two outputs",
        f"The errors of two outputs on a number line. Before: {listed[0]}, on average"
        f" {signed(shift)}. With the bias less by {shift:.1f}: {listed[1]}, on average 0. What is"
        " left is the variance.",
        height=196,
    )
    x = Scale(-0.4, 0.7, 20, 320)
    for y, words, values in ((74, "before", errors), (158, "with the bias corrected", after)):
        p.text(0, y - 40, words, anchor="start", tone="soft", size=12)
        p.axis(x, y, [-0.2, 0, 0.2, 0.4, 0.6])
        for v in values:
            p.dot(x(v), y, 6, "blue")
        middle = float(values.mean())
        p.line((x(middle), y - 18), (x(middle), y + 8), tone="red", width=2.4)
        p.text(x(middle), y - 25, "mean", tone="red", size=SMALL)
    return p
