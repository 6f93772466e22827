"""Integers and small floats side by side: their grids under real data, and what each loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets

from minq import floats, ranges
from minq.affine import fake_quantize, sqnr
from minq.grid import integer_grid
from minqbook.widgets.base import Widget, limited, pack, within

MOST = 50_000  # values of all data: 200 KB in the page
BEYOND = 1 + 1e-9  # of the largest number: x / s may round up a little
GRIDS: dict[str, Any] = {
    "INT4": 4,
    "FP4 E2M1": floats.E2M1,
    "INT8": 8,
    "FP8 E4M3": floats.E4M3,
    "FP8 E5M2": floats.E5M2,
}
"""Bits of a signed integer, or a float format."""


class NumberGrids(Widget):
    """The numbers that 4 or 8 bits can stand for, as integers or floats, under real data.

    data: {title: floats}, any shape, read in memory order, at most 50,000 values in all. tensor:
    which one is shown. format: a key of ``GRIDS``. block: values that share a scale, 0 for all of
    them. powers: scales are powers of two and take 8 bits, by the rule of the MX formats; else they
    take 16. reach: the grid ends at this share of the largest |x| of its block (with ``powers``
    before the scale is rounded down to a power of two). shown_block: whose grid is drawn. zoom: the
    histogram shows max |x| / 2^zoom.

    ``result()`` has what the page computes.

    >>> w = NumberGrids({"a": [0.1, -0.7, 1.2, 3.0]}, format="FP4 E2M1")
    >>> w
    NumberGrids(titles=['a'], tensor=0, format='FP4 E2M1', block=0, powers=False, reach=1)
    >>> w.result()["x_hat"]
    array([ 0.  , -0.75,  1.  ,  3.  ])

    Raises TypeError or ValueError for data that hold NaN, are infinite, empty, integers, all zero
    or too many.
    """

    data = traitlets.Bytes().tag(sync=True)
    titles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    tensor = traitlets.Int(0).tag(sync=True)
    format = traitlets.Enum(list(GRIDS), "INT4").tag(sync=True)
    block = traitlets.Enum([0, 16, 32, 64, 128], 0).tag(sync=True)
    powers = traitlets.Bool(False).tag(sync=True)
    reach = traitlets.Float(1.0).tag(sync=True)
    shown_block = traitlets.Int(0).tag(sync=True)
    zoom = traitlets.Int(0).tag(sync=True)
    shown = ("titles", "tensor", "format", "block", "powers", "reach")
    _limits = limited(reach=(0.02, 2.0), zoom=(0, 8))

    def __init__(
        self,
        data: Mapping[str, Any],
        *,
        alt: str = "A histogram of real data; under it the grids of INT4, FP4, INT8 and two FP8 "
        "formats as rows of ticks, each with its SQNR; below, the distance between neighbours on "
        "each grid against the size of the number.",
        **traits: Any,
    ) -> None:
        if not data:
            raise ValueError("data is empty; give at least one, {title: values}")
        self.values = {title: pack(v, title, MOST)[0].ravel() for title, v in data.items()}
        if (total := sum(v.size for v in self.values.values())) > MOST:
            raise ValueError(f"{total:,} values are more than {MOST:,}; give a sample of each")
        if zero := [title for title, v in self.values.items() if not v.any()]:
            raise ValueError(f"{zero[0]} is all zero: every grid holds it")
        super().__init__(
            data=b"".join(v.tobytes() for v in self.values.values()),
            titles=list(data),
            sizes=[v.size for v in self.values.values()],
            alt=alt,
            **traits,
        )

    def result(self) -> dict[str, Any]:
        """What the page shows of the chosen format, in float64.

        scale, one for each block; x_hat; mse; sqnr in dB; zeros, the share of values that became 0;
        clipped, the share beyond the end of the grid; bits, stored for each value.
        """
        x = self.values[self.titles[self.tensor]].astype(np.float64)
        grid, group = GRIDS[self.format], min(self.block, x.size) or x.size
        is_float = isinstance(grid, floats.FloatFormat)
        largest = grid.largest if is_float else integer_grid(grid, signed=True)[1]
        low, high = ranges.min_max(x, group=group)
        most = self.reach * np.maximum(-low, high)
        if self.powers:
            scale = floats.power_below(most) * 2.0 ** -math.floor(math.log2(largest))
            scale = np.clip(scale, 2.0**-127, 2.0**127)
        else:
            scale = most / largest
        scale = np.where(most > 0, scale, 1.0)
        if is_float:
            x_hat = floats.fake_quantize_float(x, grid, scale, group=group)
        else:
            x_hat = fake_quantize(x, scale, bits=grid, signed=True, group=group)
        of_each = np.repeat(scale, group)[: x.size]
        return {
            "scale": scale,
            "x_hat": x_hat,
            "mse": np.mean((x - x_hat) ** 2),
            "sqnr": sqnr(x, x_hat),
            "zeros": np.mean((x != 0) & (x_hat == 0)),
            "clipped": np.mean(np.abs(x / of_each) > largest * BEYOND),
            "bits": (grid.bits if is_float else grid) + (8 if self.powers else 16) / group,
        }

    @traitlets.validate("tensor")
    def _check_tensor(self, proposal: Any) -> int:
        return within(proposal, 0, len(self.values) - 1)

    @traitlets.validate("shown_block")
    def _check_block(self, proposal: Any) -> int:
        return within(proposal, 0, max(v.size for v in self.values.values()) - 1)
