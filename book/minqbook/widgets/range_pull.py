"""A learned range: how every value pulls at the scale, equations 38 and 39."""

from __future__ import annotations

from typing import Any

import traitlets

from minq.affine import scale_zero_point
from minq.grid import integer_grid
from minqbook.widgets.base import Widget, limited, pack, within

MOST = 10_000  # values: 40 KB in the page, and 90 scales tried in a few hundredths of a second


class RangePull(Widget):
    """Rounding pulls a scale down, clipping pulls it up; drag it and see where they balance.

    The loss is the mean squared error of the data, L = mean (x_hat - x)^2. Its gradient by the
    scale is a sum over all values, each with its straight-through derivative, eq. (38); by the
    zero-point likewise, eq. (39).

    data: floats of any shape, at most 10,000. bits: 2 to 8. signed: the symmetric grid of weights,
    without a zero-point; otherwise an unsigned grid with one. scale, zero_point: where left out,
    those that cover the data (min-max). name: the name of the axis.

    >>> RangePull([-1.0, 0.5, 2.0], bits=2)
    RangePull(bits=2, scale=1, zero_point=1, signed=False)

    Raises TypeError or ValueError for data that hold NaN, are infinite, empty, integers, too many
    or all zero, and for settings that make no grid.
    """

    data = traitlets.Bytes().tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)
    scale = traitlets.Float(1.0).tag(sync=True)
    zero_point = traitlets.Int(0).tag(sync=True)
    signed = traitlets.Bool(False).tag(sync=True)
    name = traitlets.Unicode("x").tag(sync=True)
    shown = ("bits", "scale", "zero_point", "signed")
    _limits = limited(bits=(2, 8), scale=(1e-40, 1e40))

    def __init__(
        self,
        data: Any,
        bits: int = 4,
        *,
        signed: bool = False,
        scale: float | None = None,
        zero_point: int | None = None,
        alt: str = "A histogram with a grid over it; below, the derivative of each rounded value "
        "by the scale, the pull of the values at it, and both pulls over all scales: they balance "
        "near the scale of least error.",
        **traits: Any,
    ) -> None:
        self.values, packed = pack(data, "data", MOST)
        if not self.values.any():
            raise ValueError("data are all zero: any scale is right; pass others")
        n, p = integer_grid(bits, signed=signed)
        low, high = float(self.values.min()), float(self.values.max())
        s, z = scale_zero_point(low, high, bits, signed=signed, symmetric=signed)
        scale = float(s) if scale is None else float(scale)
        zero_point = int(z) if zero_point is None else zero_point
        if signed and zero_point:
            raise ValueError(f"a symmetric grid has zero_point 0, not {zero_point}")
        super().__init__(
            data=packed, bits=bits, signed=signed, scale=scale, zero_point=zero_point, alt=alt,
            **traits,
        )  # fmt: skip

    @traitlets.validate("zero_point")
    def _check_zero_point(self, proposal: Any) -> int:
        n, p = integer_grid(self.bits, signed=self.signed)
        return within(proposal, n, p, f" at {self.bits} bits")

    @traitlets.observe("bits")
    def _stay_on_grid(self, _: Any) -> None:
        n, p = integer_grid(self.bits, signed=self.signed)
        self.zero_point = min(max(self.zero_point, n), p)
