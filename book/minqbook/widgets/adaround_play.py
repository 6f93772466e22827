"""AdaRound at work on a real layer: every weight finds its way up or down, equations 31 to 34."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minq.affine import scale_zero_point
from minq.grid import integer_grid
from minqbook.widgets.base import Widget, limited, pack

MOST = 2048  # weights: each is a dot
WORK = 70_000  # multiplications a step: then 500 steps take about a tenth of a second
STEPS = 500


class AdaRoundPlay(Widget):
    """Watch h(V) of every weight move to 0 or 1 while the error of the layer's output falls.

    The run is computed in the page, in float64, from the weights and G = E[x x^T] alone, since the
    error of an output is (w~ - w) G (w~ - w)^T: full-batch Adam on V, eq. (32),

        sum over outputs of K error / error of rounding to nearest + penalty f_reg(V)

    with beta from 20 to 2 after a warm start of 20 %. Each output counts relative to its own error
    with nearest, so that ``penalty`` needs no other value for another layer; in a loss that counts
    plain squared errors, as ``minq.ptq.adaround`` has it, it means something else.

    weight: (outputs, ...), at most 2,048 weights, and outputs K^2 at most 70,000. inputs: (N, K),
    real rows that go into the layer; or gram: (K, K), E[x x^T]. scale: one, or one for each output;
    min-max if left out. The grid is signed, its zero-point 0. bits: 2 to 8. penalty: 0.01 to 100.
    lr: of Adam. seed: of the 200 stochastic roundings to compare with. step: how much of the run is
    shown (default: all 500 steps).

    >>> AdaRoundPlay([[0.6, 0.6]], gram=[[1.0, 1.0], [1.0, 1.0]], scale=0.5)
    AdaRoundPlay(bits=4, penalty=10, step=500)

    Raises TypeError or ValueError for arrays that hold NaN, are infinite, empty, integers, too
    large, all zero or do not fit each other, a gram that is not symmetric, and a scale that is not
    positive.
    """

    data = traitlets.Bytes().tag(sync=True)  # W, gram one after the other
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)  # outputs, K
    scale = traitlets.List(traitlets.Float()).tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)
    penalty = traitlets.Float(10.0).tag(sync=True)
    lr = traitlets.Float(0.05).tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    steps = traitlets.Int(STEPS).tag(sync=True)
    step = traitlets.Int(STEPS).tag(sync=True)
    shown = ("bits", "penalty", "step")
    _limits = limited(
        bits=(2, 8), penalty=(0.01, 100), lr=(1e-4, 1), steps=(10, 1000), step=(0, 1000)
    )

    def __init__(
        self,
        weight: Any,
        inputs: Any = None,
        gram: Any = None,
        scale: Any = None,
        bits: int = 4,
        *,
        alt: str = "A dot for each weight, at the fraction of W/s and at h(V): the dots leave the "
        "diagonal and end at 0 or 1, some on the far side. Beside it the error of the layer's "
        "output, step by step, against rounding to nearest and 200 random roundings.",
        **traits: Any,
    ) -> None:
        w, _ = pack(weight, "weight", MOST)
        if w.ndim < 2:
            raise ValueError(f"weight must be (outputs, ...), a row for each output, not {w.shape}")
        w = w.reshape(len(w), -1)
        outputs, width = w.shape
        if outputs * width**2 > WORK:
            raise ValueError(
                f"weight {w.shape} is too large to run in the page: outputs K^2 must be at most "
                f"{WORK:,}; pass at most {WORK // width**2} outputs"
            )
        if (inputs is None) == (gram is None):
            raise TypeError("pass inputs (N, K), or gram (K, K), but not both")
        if inputs is not None:
            x, _ = pack(inputs, "inputs", 10_000_000)
            if x.ndim != 2 or x.shape[1] != width:
                raise ValueError(f"inputs {x.shape} do not fit: expected (N, {width}) rows")
            gram = x.T.astype(np.float64) @ x / len(x)
        g, _ = pack(gram, "gram", WORK)
        if g.shape != (width, width) or not np.allclose(g, g.T, rtol=1e-4, atol=1e-6 * g.max()):
            raise ValueError(f"gram must be symmetric and {(width, width)}, not {g.shape}")
        if not (w.any() and g.any()):
            raise ValueError("weight or inputs are all zero: any rounding is right; pass others")
        self.arrays = (w, g)
        integer_grid(bits, signed=True)
        if scale is None:
            scale, _ = scale_zero_point(float(w.min()), float(w.max()), bits, signed=True,
                                        symmetric=True)  # fmt: skip
        scale = np.atleast_1d(np.asarray(scale, np.float64)).ravel()
        if len(scale) not in (1, outputs) or not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"scale must be 1 or {outputs} positive numbers, not {scale}")
        steps = traits.get("steps", STEPS)
        traits.setdefault("step", steps)
        super().__init__(
            data=w.tobytes() + g.tobytes(),
            sizes=[outputs, width],
            scale=scale.tolist(),
            bits=bits,
            alt=alt,
            **traits,
        )
