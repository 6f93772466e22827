"""Where to set the range: clip the tails, or round everything else more coarsely (section 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minq.affine import fake_quantize, scale_zero_point
from minqbook.widgets.base import Widget, limited, pack

MOST = 20_000  # values: 80 KB in the page, and one look at all of them fits into a frame
WIDEST = 1.25  # the range may end this far beyond the data


class RangeTradeoff(Widget):
    """Drag the ends of the range and see clipping error traded for rounding error.

    data: floats of any shape, at most 20,000, not all zero. bits: 2 to 8. low, high: the range,
    min-max where left out; it always contains 0. symmetric: one width on both sides of 0 (a signed
    grid, or an unsigned one where no value is negative). reveal: show the curves and the optimum at
    once; else the reader first looks for it and the page tells how many dB were missing. name: the
    name of the axis.

    In a live notebook the attributes follow the picture and the picture follows them.

    >>> w = RangeTradeoff([-1.0, 0.5, 2.0], bits=2)
    >>> w
    RangeTradeoff(bits=2, low=-1, high=2, symmetric=False)
    >>> w.grid, w.x_hat
    ((1.0, 1), array([-1.,  0.,  2.]))

    Raises TypeError or ValueError for data that hold NaN, are infinite, empty, all zero, integers
    or too many, and for a range that is empty or reaches far beyond the data.
    """

    data = traitlets.Bytes().tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)
    low = traitlets.Float(0.0).tag(sync=True)
    high = traitlets.Float(0.0).tag(sync=True)
    symmetric = traitlets.Bool(False).tag(sync=True)
    reveal = traitlets.Bool(True).tag(sync=True)
    name = traitlets.Unicode("x").tag(sync=True)
    shown = ("bits", "low", "high", "symmetric")
    _limits = limited(bits=(2, 8))

    def __init__(
        self,
        data: Any,
        *,
        low: float | None = None,
        high: float | None = None,
        bits: int = 4,
        symmetric: bool = False,
        alt: str = "A histogram with the range to quantize, hatched where values are clipped; "
        "below it rounding, clipping and total error against the width of the range.",
        **traits: Any,
    ) -> None:
        self.values, packed = pack(data, "data", MOST)
        self.values = self.values.ravel()
        least, most = min(float(self.values.min()), 0.0), max(float(self.values.max()), 0.0)
        if least == most:
            raise ValueError("data are all zero: there is no range to set; pass data that vary")
        low, high = least if low is None else float(low), most if high is None else float(high)
        if symmetric:
            high = max(-low, high)
            low = -high if least < 0 else 0.0
        both = 2 if least < 0 else 1
        widest = WIDEST * (both * max(-least, most) if symmetric else most - least)
        if not low <= 0 <= high or not 0 < high - low <= widest:
            raise ValueError(
                f"the range must contain 0 and be at most {widest:.3g} wide "
                f"({WIDEST} times the data), not [{low}, {high}]"
            )
        super().__init__(
            data=packed, bits=bits, low=low, high=high, symmetric=symmetric, alt=alt, **traits
        )

    @property
    def signed(self) -> bool:
        """Whether the grid has negative integers: only where it is symmetric and must."""
        return self.symmetric and bool(self.values.min() < 0)

    @property
    def grid(self) -> tuple[float, int]:
        """Scale and zero-point of the range that the picture shows now."""
        low, high = self.low, self.high
        if self.symmetric:
            high = max(-low, high)
            low = -high if self.signed else 0.0
        scale, zero_point = scale_zero_point(
            low, high, self.bits, signed=self.signed, symmetric=self.symmetric
        )
        return float(scale), int(zero_point)

    @property
    def x_hat(self) -> np.ndarray:
        """The data after quantization with the range that the picture shows now, in float64."""
        values = self.values.astype(np.float64)
        return fake_quantize(values, *self.grid, self.bits, signed=self.signed)

    @traitlets.validate("low", "high")
    def _check_end(self, proposal: Any) -> float:
        value, name = proposal.value, proposal.trait.name
        if not np.isfinite(value) or (value > 0 if name == "low" else value < 0):
            side = "below" if name == "low" else "above"
            raise ValueError(f"{name} must be finite and 0 or {side} (0 stays exact), not {value}")
        return value
