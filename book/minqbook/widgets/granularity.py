"""One scale for a whole weight tensor, for each channel, or for each group of weights (2.2.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minq.affine import fake_quantize, scale_zero_point
from minqbook.widgets.base import Widget, limited, pack, within

MOST = 100_000  # weights: 400 KB in the page
DEAD = np.float32(1e-4)  # of the largest weight: a channel below it computes nothing


class Granularity(Widget):
    """Give a tensor one scale, or one for each channel or group, and see which channels survive.

    weights: floats (channels, ...), at most 100,000, not all zero. bits: 2 to 8. granularity:
    "tensor", "channel" or "group" (``group`` consecutive weights of a channel; the last group may
    be shorter). symmetric: a signed grid with zero-point 0, else an unsigned one. Every range is
    min-max. scale_bits: what storing one scale costs, 16 or 32; an asymmetric grid stores a
    zero-point of ``bits`` bits as well. order: "sorted" (largest first) or "natural". log:
    magnitudes on a logarithmic axis. channel: the one looked at (default: the smallest live one).

    In a live notebook the attributes follow the picture and the picture follows them.

    >>> w = Granularity([[1.0, -0.5], [0.02, 0.01]], bits=4)
    >>> w
    Granularity(shape=(2, 2), bits=4, granularity='tensor', group=2, symmetric=True)
    >>> w.x_hat[1]  # the small channel is gone
    array([0., 0.])
    >>> w.granularity = "channel"
    >>> w.x_hat[1].round(3)
    array([0.02 , 0.011])

    Raises TypeError or ValueError for weights that hold NaN, are infinite, empty, all zero,
    integers, too many or have one axis only, and for a group longer than a channel.
    """

    weights = traitlets.Bytes().tag(sync=True)
    channels = traitlets.Int(1).tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)
    granularity = traitlets.Enum(["tensor", "channel", "group"], "tensor").tag(sync=True)
    group = traitlets.Int(1).tag(sync=True)
    symmetric = traitlets.Bool(True).tag(sync=True)
    scale_bits = traitlets.Enum([16, 32], 16).tag(sync=True)
    order = traitlets.Enum(["natural", "sorted"], "sorted").tag(sync=True)
    log = traitlets.Bool(True).tag(sync=True)
    channel = traitlets.Int(0).tag(sync=True)
    shown = ("shape", "bits", "granularity", "group", "symmetric")
    _limits = limited(bits=(2, 8))

    def __init__(
        self,
        weights: Any,
        *,
        bits: int = 4,
        group: int | None = None,
        channel: int | None = None,
        alt: str = "The range of each channel of a weight tensor with the grid of its scale; below "
        "it the SQNR of each channel, and one channel before and after quantization.",
        **traits: Any,
    ) -> None:
        values, packed = pack(weights, "weights", MOST)
        if values.ndim < 2:
            raise ValueError(
                f"weights need two or more axes, channels first, not shape {values.shape}; "
                "reshape them to (channels, weights per channel)"
            )
        if not values.any():
            raise ValueError("weights are all zero: no scale fits them; pass trained weights")
        self.shape = values.shape
        self.values = values.reshape(len(values), -1)
        largest = np.abs(self.values).max(axis=1)
        self.dead = largest < DEAD * largest.max()
        smallest = int(np.where(self.dead, np.inf, largest).argmin())
        super().__init__(
            weights=packed,
            channels=len(values),
            bits=bits,
            group=min(8, self.values.shape[1]) if group is None else group,
            channel=smallest if channel is None else channel,
            alt=alt,
            **traits,
        )

    @property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Scales and zero-points of what the picture shows now; shapes as in minq.affine."""
        x = self.values.astype(np.float64)
        starts = np.arange(0, x.shape[1], self.group if self.granularity == "group" else x.shape[1])
        low, high = (f.reduceat(x, starts, axis=1) for f in (np.minimum, np.maximum))
        if self.granularity == "tensor":
            low, high = low.min(), high.max()
        elif self.granularity == "channel":
            low, high = low[:, 0], high[:, 0]
        return scale_zero_point(
            low, high, self.bits, signed=self.symmetric, symmetric=self.symmetric
        )

    @property
    def x_hat(self) -> np.ndarray:
        """The weights after quantization as the picture shows it now, float64, (channels, ...)."""
        x_hat = fake_quantize(
            self.values.astype(np.float64),
            *self.grid,
            self.bits,
            signed=self.symmetric,
            axis=None if self.granularity == "tensor" else 0,
            group=self.group if self.granularity == "group" else None,
        )
        return x_hat.reshape(self.shape)

    @traitlets.validate("group")
    def _check_group(self, proposal: Any) -> int:
        return within(proposal, 1, self.values.shape[1], ", the weights of a channel")

    @traitlets.validate("channel")
    def _check_channel(self, proposal: Any) -> int:
        return within(proposal, 0, len(self.values) - 1)
