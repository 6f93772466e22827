"""Where a training starts: ranges of 2-bit weights, how many become 0, what gradient is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets

from minq import ranges
from minq.affine import scale_zero_point
from minq.grid import Grid, integer_grid
from minqbook.widgets.base import Widget, limited
from minqbook.zoo.chain import loss_and_gradients

BITS, STEPS = 2, 60
STARTS = ("too narrow", "MSE", "min-max", "too wide")
NARROW, WIDE = 1 / 8, 2.5
"""Too narrow: an eighth of the MSE scale. Too wide: 2.5 times that of min-max: all becomes 0."""
MOST = 4000  # weights, and pixels of all pictures times 16


class DeadStart(Widget):
    """Train a chain of layers from ranges of your choice, and see what reaches its weights.

    The layers have no biases and a ReLU between any two; each weight tensor is rounded to 2 bits
    with one scale. Weights and scales learn by gradient descent on all pictures at once, with the
    straight-through estimator, eq. (36) to (38); as in learned step size quantization a scale's
    gradient is divided by sqrt(N p).

    weights: of shape (outputs, inputs), each reading what the one before gives. pictures: whole
    numbers from 0 to 16, (N, inputs), read as sixteenths. digits: (N,), the right output of each.
    start: one of ``STARTS``. rate: of weights and scales, 0.003 to 1. step: how many of the 60
    steps are taken.

    ``result()`` has what the page computes.

    >>> from minqbook.zoo import digit_chain
    >>> w = DeadStart(*digit_chain(), start="too wide")
    >>> w
    DeadStart(sizes=[64, 16, 16, 16, 16, 10], start='too wide', rate=0.03, step=0)
    >>> w.result()["zeros"], w.result()["weight_gradients"]
    ([1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0])

    Raises ValueError for shapes that do not fit, pictures and digits out of range, and too many.
    """

    data = traitlets.Bytes().tag(sync=True)  # weights as float32, pixels and digits as bytes
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    count = traitlets.Int(1).tag(sync=True)  # of pictures
    scales = traitlets.Dict().tag(sync=True)  # {start: one scale for each layer}
    start = traitlets.Enum(STARTS, "min-max").tag(sync=True)
    rate = traitlets.Float(0.03).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    steps = traitlets.Int(STEPS).tag(sync=True)
    shown = ("sizes", "start", "rate", "step")
    _limits = limited(rate=(0.003, 1), step=(0, STEPS))

    def __init__(
        self,
        weights: Sequence[Any],
        pictures: Any,
        digits: Any,
        *,
        alt: str = "Two rows of bars for each layer of a network: how many of its 2-bit weights are"
        " 0, inside the grid, or clipped, and how large the gradients are that reach its weights "
        "and its scale. Below, the loss over the steps of a training, and the loss of guessing.",
        **traits: Any,
    ) -> None:
        self.weights = [np.asarray(w, np.float32) for w in weights]
        pictures, digits = np.asarray(pictures), np.asarray(digits)
        sizes = [self.weights[0].shape[1], *(len(w) for w in self.weights)]
        pairs = zip(self.weights, sizes, sizes[1:], strict=False)
        if any(w.shape != (o, i) for w, i, o in pairs) or pictures.shape[1:] != (sizes[0],):
            raise ValueError("each weight must be (outputs, inputs), and read what comes before it")
        if sum(w.size for w in self.weights) > MOST or pictures.size > 16 * MOST:
            raise ValueError(f"at most {MOST} weights and {16 * MOST} pixels travel with the page")
        if (
            digits.shape != pictures.shape[:1]
            or not (0 <= digits).all() & (digits < sizes[-1]).all()
        ):
            raise ValueError(f"digits must be one of 0 to {sizes[-1] - 1} for each picture")
        if not ((0 <= pictures) & (pictures <= 16)).all():
            raise ValueError("pictures must hold whole numbers from 0 to 16")
        self.pictures, self.digits = pictures.astype(np.uint8), digits.astype(np.uint8)
        flat = np.concatenate([w.ravel() for w in self.weights]).astype("<f4")
        super().__init__(
            data=flat.tobytes() + self.pictures.tobytes() + self.digits.tobytes(),
            sizes=sizes,
            count=len(pictures),
            scales={start: [scale_of(w, start) for w in self.weights] for start in STARTS},
            alt=alt,
            **traits,
        )

    def result(self) -> dict[str, Any]:
        """What the page shows after ``step`` steps, see ``train``."""
        weights = [w.astype(np.float64) for w in self.weights]
        scales = self.scales[self.start]
        return train(weights, scales, self.pictures / 16, self.digits, self.rate, self.step)[-1]


def scale_of(weight: np.ndarray, start: str) -> float:
    """The scale of a weight tensor at a start, for the signed symmetric grid of 2 bits.

    >>> [round(scale_of(np.array([0.1, 0.2, -0.3, 0.9]), start), 3) for start in STARTS]
    [0.113, 0.9, 0.9, 2.25]
    """
    grid: dict[str, Any] = {"bits": BITS, "signed": True, "symmetric": True}
    weight = weight.astype(np.float64)
    all_of_it = start in ("min-max", "too wide")
    low, high = ranges.min_max(weight) if all_of_it else ranges.mse(weight, **grid)
    scale = scale_zero_point(low, high, **grid)[0]
    return float(scale) * {"too narrow": NARROW, "too wide": WIDE}.get(start, 1)


def train(
    weights: Sequence[np.ndarray],
    scales: Sequence[float],
    x: np.ndarray,
    digits: np.ndarray,
    rate: float,
    steps: int,
) -> list[dict[str, Any]]:
    """Gradient descent on weights and scales; what was seen before each step, and after the last.

    loss; right, a share; and of each layer: zeros and clipped, shares of its weights;
    weight_gradients, the root of their mean square; scale_gradients; scales.
    """
    weights, s, seen = list(weights), np.array(scales, np.float64), []
    grid = integer_grid(BITS, signed=True)
    for t in range(steps + 1):
        size, sign = np.maximum(np.abs(s), np.finfo(np.float32).tiny), np.where(s < 0, -1.0, 1.0)
        layers = [_quantized(w, v, grid) for w, v in zip(weights, size, strict=True)]
        loss, right, by_hat = loss_and_gradients([k for k, _, _ in layers], x, digits, size)
        by_weight = [g * inside for g, (_, inside, _) in zip(by_hat, layers, strict=True)]
        by_scale = sign * [  # eq. (38), divided by sqrt(N p)
            (g * slope).sum() / math.sqrt(g.size * grid.quant_max)
            for g, (_, _, slope) in zip(by_hat, layers, strict=True)
        ]
        seen.append(
            {
                "loss": loss,
                "right": right,
                "zeros": [float((k == 0).mean()) for k, _, _ in layers],
                "clipped": [float((~inside).mean()) for _, inside, _ in layers],
                "weight_gradients": [float(np.sqrt((g * g).mean())) for g in by_weight],
                "scale_gradients": by_scale.tolist(),
                "scales": size.tolist(),
            }
        )
        if t < steps:
            weights = [w - rate * g for w, g in zip(weights, by_weight, strict=True)]
            s = s - rate * by_scale
    return seen


def _quantized(w: np.ndarray, s: float, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers, where they are inside the grid, eq. (37), and the derivative by s, eq. (38)."""
    u = w / s
    level = np.rint(u)
    integer = grid.clamp(level)
    inside = integer == level
    return integer, inside, integer - u * inside
