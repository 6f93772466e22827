"""The affine quantizer to play with: data on the real line, grid, staircase and error."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minq.affine import fake_quantize, grid_limits, scale_zero_point
from minq.grid import integer_grid
from minqbook.widgets.base import Widget, pack

MOST = 100_000  # values: 400 KB in the page


def wave(samples: int = 400) -> np.ndarray:
    """A smooth signal, more above zero than below, so that the zero-point has work to do."""
    t = np.linspace(0, 2 * np.pi, samples)
    return 0.25 + 0.7 * np.sin(2 * t) + 0.25 * np.sin(5 * t + 1)


class AffinePlayground(Widget):
    """Drag scale, zero-point and bit-width and see what becomes of the data.

    data: floats of any shape, at most 100,000 (default: a smooth wave). scale, zero_point: where
    left out, those that cover the data (min-max). bits: 1 to 16. signed, symmetric: the grid.
    view: "line" (histogram, staircase, error) or "signal" (the values one after the other).
    keep: what a change of bits in the picture keeps, the "range" or the "scale".
    name: the name of the axis.

    In a live notebook the attributes follow the picture and the picture follows them.

    >>> AffinePlayground([-1.0, 0.5, 2.0], bits=2)
    AffinePlayground(bits=2, scale=1, zero_point=1, signed=False, symmetric=False)

    Raises TypeError or ValueError for data that hold NaN, are infinite, empty, integers or too
    many, and for a scale, zero-point or bit-width that make no grid.
    """

    data = traitlets.Bytes().tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)
    scale = traitlets.Float(1.0).tag(sync=True)
    zero_point = traitlets.Int(0).tag(sync=True)
    signed = traitlets.Bool(False).tag(sync=True)
    symmetric = traitlets.Bool(False).tag(sync=True)
    view = traitlets.Enum(["line", "signal"], "line").tag(sync=True)
    keep = traitlets.Enum(["range", "scale"], "range").tag(sync=True)
    name = traitlets.Unicode("x").tag(sync=True)
    shown = ("bits", "scale", "zero_point", "signed", "symmetric")

    def __init__(
        self,
        data: Any = None,
        *,
        scale: float | None = None,
        zero_point: int | None = None,
        bits: int = 4,
        signed: bool = False,
        symmetric: bool = False,
        alt: str = "Data on the real line, the grid of a uniform affine quantizer, its staircase "
        "from x to x-hat and the error; sliders set bits, scale and zero-point.",
        **traits: Any,
    ) -> None:
        self.values, packed = pack(wave() if data is None else data, "data", MOST)
        n, p = integer_grid(bits, signed=signed)
        low, high = float(self.values.min()), float(self.values.max())
        if symmetric and not signed:
            low, high = 0.0, max(high, 0.0)  # this grid has no room below zero: it clips there
        if scale is None:
            scale, fitted = scale_zero_point(low, high, bits, signed=signed, symmetric=symmetric)
        else:
            fitted = 0 if symmetric else np.clip(np.rint(n - min(low, 0) / _positive(scale)), n, p)
        zero_point = int(fitted) if zero_point is None else zero_point
        _check_grid(bits, float(scale), zero_point, signed, symmetric)
        super().__init__(
            data=packed,
            bits=bits,
            scale=float(scale),
            zero_point=zero_point,
            signed=signed,
            symmetric=symmetric,
            alt=alt,
            **traits,
        )

    @property
    def x_hat(self) -> np.ndarray:
        """The data after quantization with what the picture shows now, eq. (7), in float64."""
        return fake_quantize(
            self.values.astype(np.float64),
            self.scale,
            self.zero_point,
            self.bits,
            signed=self.signed,
        )

    @traitlets.validate("bits", "signed")
    def _check_bits(self, proposal: Any) -> Any:
        value = {"bits": self.bits, "signed": self.signed} | {proposal.trait.name: proposal.value}
        integer_grid(value["bits"], signed=value["signed"])
        return proposal.value

    @traitlets.validate("scale")
    def _check_scale(self, proposal: Any) -> float:
        return _positive(proposal.value)

    @traitlets.observe("bits", "signed", "symmetric")
    def _stay_on_grid(self, _: Any) -> None:
        n, p = integer_grid(self.bits, signed=self.signed)
        self.zero_point = 0 if self.symmetric else min(max(self.zero_point, n), p)

    @traitlets.validate("zero_point")
    def _check_zero_point(self, proposal: Any) -> int:
        _check_grid(self.bits, self.scale, proposal.value, self.signed, self.symmetric)
        return proposal.value


def _positive(scale: float) -> float:
    if not 1e-40 <= scale <= 1e40:  # what float32 data can ask for
        raise ValueError(f"scale must be a number from 1e-40 to 1e40, not {scale}")
    return scale


def _check_grid(bits: int, scale: float, zero_point: int, signed: bool, symmetric: bool) -> None:
    grid_limits(_positive(scale), zero_point, bits, signed=signed)
    if symmetric and zero_point:
        raise ValueError(f"a symmetric grid has zero_point 0, not {zero_point}")
