"""Cross-layer equalization by hand: move range from one layer into the next, equations 20 to 22."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import traitlets

from minqbook.widgets.base import Widget, limited, pack, within

MOST = 100_000  # values in all arrays together: 400 KB in the page
CHANNELS = 128


class Equalizer(Widget):
    """Drag the scale of a channel between two layers: one range shrinks, the other one grows.

    y = W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1), S = diag(scales), f = ReLU, eq. (21).
    f must be positively homogeneous. Where the network has a ReLU6 in this place, this picture
    takes a plain ReLU, so its y is not that of the network.

    weight1: (C, ...), channel i is row i. weight2: (outputs, C), channel i is column i; trailing
    axes of length 1 may stay. bias1: (C,) or None for 0. inputs: (N, C, K) if weight1 is depthwise,
    (N, K) if it is dense, or None: then the output is not shown. All floats, at most 128 channels.
    bits: 2 to 8 for both weights, symmetric min-max, one scale a tensor. scales: s_i, or 1 for all.
    channel: the one picked, from 0 (default: the widest of the first layer). log: the axis.

    In a live notebook the attributes follow the picture and the picture follows them.

    >>> w = Equalizer([[8.0], [1.0]], [[2.0, 4.0]], scales=[2.0, 0.5])
    >>> w
    Equalizer(bits=8, channel=0)
    >>> w.ranges
    (array([4., 2.]), array([4., 2.]))

    Raises TypeError or ValueError for arrays that hold NaN, are infinite, empty, integers, too
    large, all zero or do not fit each other, and for scales that are not positive.
    """

    data = traitlets.Bytes().tag(sync=True)  # W1, b1, W2, inputs one after the other
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)  # C, K, outputs, N
    depthwise = traitlets.Bool(True).tag(sync=True)
    scales = traitlets.List(traitlets.Float()).tag(sync=True)
    channel = traitlets.Int(0).tag(sync=True)
    bits = traitlets.Int(8).tag(sync=True)
    log = traitlets.Bool(True).tag(sync=True)
    shown = ("bits", "channel")
    _limits = limited(bits=(2, 8))

    def __init__(
        self,
        weight1: Any,
        weight2: Any,
        bias1: Any = None,
        inputs: Any = None,
        *,
        scales: Any = None,
        alt: str = "For every channel, a bar up for its range in the first layer and a bar down "
        "for its range in the second. Scaling a channel makes one longer and the other shorter; "
        "the output of both layers stays as it is.",
        **traits: Any,
    ) -> None:
        w1, _ = pack(weight1, "weight1", MOST)
        w2, _ = pack(weight2, "weight2", MOST)
        if w1.ndim < 2 or w2.ndim < 2 or w2.size != w2.shape[0] * len(w1):
            raise ValueError(
                f"weight1 {w1.shape} and weight2 {w2.shape} do not fit: weight1 needs (C, ...), a "
                "row for each channel, weight2 (outputs, C), a column for each"
            )
        channels = len(w1)
        w1, w2 = w1.reshape(channels, -1), w2.reshape(-1, channels)
        if channels > CHANNELS:
            raise ValueError(f"{channels} channels are too many to draw; pass at most {CHANNELS}")
        if not (w1.any() and w2.any()):
            raise ValueError("weight1 or weight2 is all zero: nothing can be equalized")
        zeros = np.zeros(channels, np.float32)
        b1 = zeros if bias1 is None else pack(bias1, "bias1", MOST)[0]
        if b1.shape != (channels,):
            raise ValueError(f"bias1 has shape {b1.shape}, expected ({channels},)")
        x = np.zeros((0, *w1.shape), np.float32)
        if inputs is not None:
            x, _ = pack(inputs, "inputs", MOST)
            if x.shape[1:] not in (w1.shape, w1.shape[1:]):
                raise ValueError(
                    f"inputs {x.shape} do not fit weight1 {w1.shape}: expected "
                    f"{('N', *w1.shape)} patches for a depthwise layer, {('N', w1.shape[1])} for a "
                    "dense one"
                )
        self.arrays = (w1, b1, w2, x)
        traits.setdefault("channel", int(np.abs(w1).max(1).argmax()))
        super().__init__(
            data=b"".join(a.tobytes() for a in self.arrays),
            sizes=[*w1.shape, len(w2), len(x)],
            depthwise=x.ndim == 3,
            scales=[1.0] * channels if scales is None else [float(s) for s in scales],
            alt=alt,
            **traits,
        )

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """S^-1 W1, S^-1 b1 and W2 S with the scales that the picture shows now, in float64."""
        w1, b1, w2, _ = (a.astype(np.float64) for a in self.arrays)
        s = np.array(self.scales)
        return w1 / s[:, None], b1 / s, w2 * s  # eq. (21)

    @property
    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """max |W| of each channel in the first and in the second layer, as scaled now."""
        w1, _, w2 = self.pair
        return np.abs(w1).max(1), np.abs(w2).max(0)

    @traitlets.validate("channel")
    def _check_channel(self, proposal: Any) -> int:
        return within(proposal, 0, len(self.arrays[0]) - 1)

    @traitlets.validate("scales")
    def _check_scales(self, proposal: Any) -> list[float]:
        channels = len(self.arrays[0])
        if len(proposal.value) != channels:
            raise ValueError(f"{len(proposal.value)} scales, expected one for each of {channels}")
        if not all(s > 0 and math.isfinite(s) for s in proposal.value):
            raise ValueError("scales must be positive and finite; else ReLU(s x) is not s ReLU(x)")
        return proposal.value
