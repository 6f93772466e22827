"""One weight that descends a staircase: true and straight-through gradients, equation 36."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minqbook.widgets.base import Widget, limited, pack, within

MOST = 1_000_000  # values; only three means of them travel
STEPS = 120


class Descent(Widget):
    """Train a single quantized weight by gradient descent, with a gradient of your choice.

    The loss L(w) = mean (q(w) x - t)^2 needs three means of the data only, and all else is computed
    in the page, in float64. q rounds to the symmetric grid of ``bits`` bits over [-limit, limit].

    x, target: floats of one shape. start: the first weight. rate: of gradient descent, 0.001 to 2.
    bits: 2 to 8. gradient: "straight-through", "true" (of the staircase) or "full precision" (no
    quantizer while it trains). limit: the largest level (default: 1.6 times the best weight).
    step: how many of the 120 steps are taken.

    >>> Descent([1.0, 2.0], [0.5, 1.0], start=-0.5)
    Descent(bits=3, rate=0.1, gradient='straight-through', start=-0.5, step=0)

    Raises TypeError or ValueError for arrays that hold NaN, are infinite, empty, integers or of
    different shapes, an x that is all zero, and settings out of their limits.
    """

    moments = traitlets.List(traitlets.Float()).tag(sync=True)  # means of x^2, x t, t^2
    limit = traitlets.Float(1.0).tag(sync=True)
    bits = traitlets.Int(3).tag(sync=True)
    rate = traitlets.Float(0.1).tag(sync=True)
    start = traitlets.Float(0.0).tag(sync=True)
    gradient = traitlets.Enum(
        ["straight-through", "true", "full precision"], "straight-through"
    ).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    steps = traitlets.Int(STEPS).tag(sync=True)
    shown = ("bits", "rate", "gradient", "start", "step")
    _limits = limited(bits=(2, 8), rate=(0.001, 2), step=(0, STEPS))

    def __init__(
        self,
        x: Any,
        target: Any,
        start: float | None = None,
        bits: int = 3,
        *,
        limit: float | None = None,
        alt: str = "A parabola, the loss of one weight, and the staircase that it becomes when the "
        "weight is rounded. A point moves on the staircase by the chosen gradient; below, the "
        "weight and its rounded value over the steps, which jumps between two levels.",
        **traits: Any,
    ) -> None:
        x, t = (pack(v, name, MOST)[0] for v, name in ((x, "x"), (target, "target")))
        if x.shape != t.shape:
            raise ValueError(f"x {x.shape} and target {t.shape} must have one shape")
        x, t = x.astype(np.float64).ravel(), t.astype(np.float64).ravel()
        moments = [float(np.mean(v)) for v in (x * x, x * t, t * t)]
        if not moments[0] > 0:
            raise ValueError("x is all zero: every weight has the same loss; pass other data")
        if limit is None:
            limit = 1.6 * abs(moments[1] / moments[0]) or 1.0
        if not 1e-30 <= limit <= 1e30:
            raise ValueError(f"limit must be a number from 1e-30 to 1e30, not {limit}")
        super().__init__(
            moments=moments,
            limit=float(limit),
            start=-0.6 * float(limit) if start is None else float(start),
            bits=bits,
            alt=alt,
            **traits,
        )

    @property
    def optimum(self) -> float:
        """The best weight without a quantizer, E[x t] / E[x^2]."""
        return self.moments[1] / self.moments[0]

    @traitlets.validate("start")
    def _check_start(self, proposal: Any) -> float:
        return within(proposal, -1.25 * self.limit, 1.25 * self.limit, " (1.25 times the limit)")
