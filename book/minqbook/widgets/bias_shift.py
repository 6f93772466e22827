"""Rounding the weights moves the mean of the output: bias correction, equations 25 and 26."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets

from minq.affine import fake_quantize, scale_zero_point
from minqbook.widgets.base import Widget, limited, pack

MOST = 100_000  # values of the inputs: 400 KB in the page
CHANNELS = 128
KERNEL = 128


class BiasShift(Widget):
    """The output of a channel before and after its weights are rounded, and what moved its mean.

    The shift is measured, E[y_hat] - E[y] over the inputs, and computed, Delta W E[x]: the same.

    weight: (C, ...), channel i is row i. inputs: (N, C, K) if weight is depthwise, (N, K) if it is
    dense, real rows. bias: (C,) or None for 0. channels: the numbers of those to show; all weights
    count for the scale, but only the inputs of these travel with the page (default: all).
    channel: the one picked (default: that of the largest shift, in standard deviations
    of y, among those whose weights do not all round to 0).
    bits: 2 to 8, weights only, symmetric min-max. per_channel: a scale for each channel.
    corrected: take the shift off the bias.

    In a live notebook the attributes follow the picture and the picture follows them.

    >>> w = BiasShift([[1.0, 0.3]], [[2.0, 1.0], [4.0, 3.0]], bits=2)
    >>> w
    BiasShift(bits=2, channel=0, per_channel=False, corrected=False)
    >>> w.shift.round(3)
    array([-0.6])

    Raises TypeError or ValueError for arrays that hold NaN, are infinite, empty, integers, too
    large, all zero or do not fit each other, and for channels that do not exist.
    """

    data = traitlets.Bytes().tag(sync=True)  # W, b, inputs one after the other
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)  # C, K, N
    depthwise = traitlets.Bool(True).tag(sync=True)
    channels = traitlets.List(traitlets.Int()).tag(sync=True)
    channel = traitlets.Int(0).tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)
    per_channel = traitlets.Bool(False).tag(sync=True)
    corrected = traitlets.Bool(False).tag(sync=True)
    shown = ("bits", "channel", "per_channel", "corrected")
    _limits = limited(bits=(2, 8))

    def __init__(
        self,
        weight: Any,
        inputs: Any,
        bias: Any = None,
        *,
        channels: Sequence[int] | None = None,
        alt: str = "The histogram of a channel's outputs before and after rounding its weights, an "
        "arrow between their means, the same shift added up from the error of each weight times "
        "its mean input, and the shift of every channel.",
        **traits: Any,
    ) -> None:
        w, _ = pack(weight, "weight", MOST)
        if w.ndim < 2:
            raise ValueError(f"weight must be (C, ...), a row for each channel, not {w.shape}")
        w = w.reshape(len(w), -1)
        count, width = w.shape
        if width > KERNEL:
            raise ValueError(f"{width} weights in a channel are too many; pass at most {KERNEL}")
        if not w.any():
            raise ValueError("weight is all zero: rounding moves nothing; pass other weights")
        chosen = list(range(count) if channels is None else map(int, channels))
        if not 0 < len(chosen) <= CHANNELS or len(set(chosen)) < len(chosen):
            raise ValueError(f"channels must be 1 to {CHANNELS} different numbers, not {chosen}")
        if not all(0 <= c < count for c in chosen):
            raise ValueError(f"channels must be from 0 to {count - 1}, not {chosen}")
        shape = np.shape(inputs)[1:]
        if shape not in ((count, width), (width,)):
            raise ValueError(
                f"inputs {np.shape(inputs)} do not fit weight {w.shape}: expected (N, {count}, "
                f"{width}) patches for a depthwise layer, (N, {width}) for a dense one"
            )
        x, _ = pack(inputs[:, chosen] if len(shape) == 2 else inputs, "inputs", MOST)
        b = np.zeros(count, np.float32) if bias is None else pack(bias, "bias", MOST)[0]
        if b.shape != (count,):
            raise ValueError(f"bias has shape {b.shape}, expected ({count},)")
        self.arrays = (w, b, x)
        free = "channel" not in traits
        traits.setdefault("channel", chosen[0])
        super().__init__(
            data=b"".join(a.tobytes() for a in self.arrays),
            sizes=[count, width, len(x)],
            depthwise=x.ndim == 3,
            channels=chosen,
            alt=alt,
            **traits,
        )
        if free:
            alive = self.w_hat[chosen].any(1)
            self.channel = chosen[int((np.abs(self.relative) * (alive + 1e-9)).argmax())]

    @property
    def w_hat(self) -> np.ndarray:
        """All weights after quantization as the picture shows it now, in float64."""
        w = self.arrays[0].astype(np.float64)
        low, high = (w.min(1), w.max(1)) if self.per_channel else (w.min(), w.max())
        scale, _ = scale_zero_point(low, high, self.bits, signed=True, symmetric=True)
        axis = 0 if self.per_channel else None
        return fake_quantize(w, scale, 0, self.bits, signed=True, axis=axis)

    @property
    def shift(self) -> np.ndarray:
        """Delta W E[x] of each channel in ``channels``, eq. (25)."""
        w, _, x = (a.astype(np.float64) for a in self.arrays)
        return ((self.w_hat - w)[self.channels] * x.mean(0)).sum(1)

    @property
    def relative(self) -> np.ndarray:
        """The same in standard deviations of y; 0 for a channel whose y does not vary."""
        w, _, x = (a.astype(np.float64) for a in self.arrays)
        spread = (w[self.channels] * x).sum(2).std(0) if x.ndim == 3 else (x @ w.T).std(0)
        spread = spread if x.ndim == 3 else spread[self.channels]
        return np.where(spread > 0, self.shift / np.where(spread > 0, spread, 1), 0)

    @traitlets.validate("channel")
    def _check_channel(self, proposal: Any) -> int:
        if self.channels and proposal.value not in self.channels:
            raise ValueError(f"channel must be one of {self.channels}, not {proposal.value}")
        return proposal.value
