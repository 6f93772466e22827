"""Chapters 5 and 13: batch norm folded into a layer, and three ways to treat it in training."""

from __future__ import annotations

import numpy as np

from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel

W, X = np.array([0.5, -0.2]), np.array([1.0, 0.5])
GAMMA, BETA, MEAN, SIGMA = 2.0, 1.0, 0.3, 0.4  # of batch norm, in inference


def folded() -> tuple[np.ndarray, float]:
    """The weights and the bias that do both, eq. (11) and (12)."""
    factor = GAMMA / SIGMA
    return W * factor, BETA - factor * MEAN


def signed(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def numbers(values: np.ndarray) -> str:
    return ", ".join(signed(round(float(v), 6)) for v in values)


@drawn
def folding() -> Drawing:
    """One output of a layer, with batch norm behind it and in it."""
    w, b = folded()
    middle, y = float(W @ X), float(w @ X + b)
    factor = GAMMA / SIGMA
    before = Panel(
        "two operations",
        f"One output: weights {numbers(W)} times inputs {numbers(X)} give {middle:g}. Batch norm"
        f" subtracts the mean {MEAN:g}, divides by σ = {SIGMA:g}, multiplies by γ = {GAMMA:g}, adds"
        f" β = {BETA:g}, and gives {y:g}.",
        height=166,
    )
    before.text(24, 70, f"*x*\n{signed(X[0])}\n{signed(X[1])}", tone="soft")
    before.arrow((42, 70), (64, 70))
    before.box(66, 40, 76, 60, f"*W*\n{numbers(W)}", "blue", full=0.12)
    before.arrow((144, 70), (196, 70))
    before.text(168, 58, f"{middle:g}", size=SMALL)
    before.box(
        198, 40, 100, 60, f"batch norm\n*γ* = {GAMMA:g}, *σ* = {SIGMA:g}", "red", 0.12, size=12
    )
    before.arrow((300, 70), (314, 70))
    before.text(328, 70, f"{y:g}", bold=True)
    before.text(248, 116, f"*μ* = {MEAN:g}, *β* = {BETA:g}", tone="red", size=12)
    before.text(170, 150, "*γ* (*Wx* − *μ*) / *σ* + *β*", tone="ink")
    after = Panel(
        "one operation",
        f"The weights times γ/σ = {factor:g} are {numbers(w)}, and the bias is β − γμ/σ ="
        f" {signed(b)}. The same inputs give the same {y:g}, and batch norm is gone.",
        height=166,
    )
    after.text(24, 70, f"*x*\n{signed(X[0])}\n{signed(X[1])}", tone="soft")
    after.arrow((42, 70), (94, 70))
    after.box(96, 40, 96, 60, f"*γ*/*σ* · *W*\n{numbers(w)}", "blue", full=0.12)
    after.arrow((194, 70), (206, 70))
    after.box(208, 40, 62, 60, f"+ bias\n{signed(b)}", "blue", full=0.12)
    after.arrow((272, 70), (314, 70))
    after.text(328, 70, f"{y:g}", bold=True)
    after.text(144, 116, f"*γ*/*σ* = {factor:g}", tone="blue", size=12)
    after.text(252, 116, "*β* − *γμ*/*σ*", tone="blue", size=12)
    after.text(170, 150, "(*γ*/*σ* · *W*) *x* + (*β* − *γμ*/*σ*)")
    return Drawing(
        "folding",
        "Folding moves γ/σ into the weights and the rest into the bias, so batch norm costs"
        " nothing on the device, and the folded weights are the ones to quantize.",
        (before, after),
    )


@drawn
def ways_of_batch_norm() -> Drawing:
    """What a training step computes in three ways, and what all of them leave to the device."""
    fold = Panel(
        "fold: once, before training",
        "The folded weights are trained. A step quantizes them, multiplies by the inputs and adds"
        " the folded bias. Nothing is normalized: batch norm is gone from the first step on.",
        height=120,
    )
    _chain(
        fold, 66, [("*γ*/*σ* · *W*", 84, "blue"), ("round", 58, "green"), ("times *x*", 70, "line")]
    )
    fold.text(170, 104, "no statistics of the batch at all", tone="soft", size=SMALL)

    dynamic = Panel(
        "dynamic: in every step",
        "A step runs the layer twice. First with the weights in floats, to learn the batch's mean"
        " and deviation. Then the weights, folded by the running deviation, are rounded and"
        " multiplied by the inputs, and the output is corrected to the deviation of this batch.",
        height=170,
    )
    _chain(dynamic, 56, [("*W*", 40, "blue"), ("times *x*", 70, "line")], end="")
    dynamic.text(176, 56, "→  *μ*_{B}, *σ*_{B} of this batch", anchor="start", tone="red")
    _chain(
        dynamic,
        112,
        [("*γ*/*σ* · *W*", 84, "blue"), ("round", 58, "green"), ("times *x*", 70, "line")],
        end="",
    )
    dynamic.arrow((262, 112), (280, 112))
    dynamic.box(282, 95, 56, 34, "· *σ*/*σ*_{B}", "red", 0.12)
    dynamic.arrow((310, 66), (310, 93), tone="red")
    dynamic.text(170, 154, "the layer is computed twice", tone="soft", size=SMALL)

    keep = Panel(
        "keep: fold after training",
        "The weights are rounded as they are, with a scale for each channel, and multiplied by the"
        " inputs. Batch norm follows as it always did. After training its factor goes into the"
        " scales, and no integer changes.",
        height=120,
    )
    _chain(
        keep,
        66,
        [("*W*", 40, "blue"), ("round", 58, "green"), ("times *x*", 70, "line"), ("BN", 40, "red")],
    )
    keep.text(170, 104, "needs a scale for each channel", tone="soft", size=SMALL)

    device = Panel(
        "on the device: all three alike",
        "Whichever way was taken, the device multiplies integer weights by integer inputs,"
        " multiplies the sum by one scale for each channel, and adds one bias. There is no batch"
        " norm.",
        height=120,
    )
    _chain(
        device,
        66,
        [("*W*^{int}", 56, "green"), ("times *x*", 70, "line"), ("scale, bias", 86, "blue")],
    )
    device.text(170, 104, "no batch norm, no statistics", tone="soft", size=SMALL)
    return Drawing(
        "ways_of_batch_norm",
        "Three ways to train end in the same three things on the device, integers, scales and"
        " biases; they differ in when batch norm is folded, and only dynamic pays for it twice.",
        (fold, dynamic, keep, device),
    )


def _chain(p: Panel, y: float, boxes: list[tuple[str, float, str]], end: str = "*y*") -> None:
    """Boxes in a row at the height y, each with its width and tone, and what comes out."""
    x = 0.0
    for i, (words, width, tone) in enumerate(boxes):
        p.box(x, y - 17, width, 34, words, tone, full=0 if tone == "line" else 0.12)
        x += width
        if i < len(boxes) - 1 or end:
            p.arrow((x + 2, y), (x + 22, y))
        x += 24
    if end:
        p.text(x + 6, y, end)
