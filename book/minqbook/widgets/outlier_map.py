"""Activations of a transformer, token by channel: what a few outliers do to all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import traitlets

from minq.affine import quantize, scale_zero_point
from minq.grid import integer_grid, round_half_even
from minq.ranges import channel_groups
from minqbook.widgets.base import Widget, limited, pack, within

MOST = 100_000  # values of all tensors; they travel as float16


class OutlierMap(Widget):
    """Real activations under a range, clipped or not, for all channels or for groups of them.

    tensors: {title: (tokens, channels)} floats; they are rounded to float16, and all that is shown
    is computed from that. tokens: a name for each row. The channels are cut into ``groups`` by
    ``minq.ranges.channel_groups``; a group's range is its smallest to its largest value, cut where
    a value is larger than ``clip`` times the group's largest. bits: 4 to 16, on an unsigned grid.
    tensor, token, channel: what is picked.

    ``result()`` has what the page computes. Raises ValueError or TypeError for other shapes, NaN
    and values beyond float16.
    """

    data = traitlets.Bytes().tag(sync=True)
    titles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    bits = traitlets.Int(8).tag(sync=True)
    groups = traitlets.Int(1).tag(sync=True)
    clip = traitlets.Float(1.0).tag(sync=True)
    tensor = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)
    channel = traitlets.Int(0).tag(sync=True)
    view = traitlets.Enum(["quantized", "error"], "quantized").tag(sync=True)
    shown = ("titles", "tensor", "bits", "groups", "clip")
    _limits = limited(bits=(4, 16), clip=(0.005, 1.0, " of the range"))

    def __init__(
        self,
        tensors: Mapping[str, Any],
        tokens: Sequence[str],
        *,
        alt: str = "Two maps of an activation, a row for each token and a column for each channel: "
        "the real values, and what is left of them on a grid of integers. Below them the range of "
        "each channel and the ranges that the grid gives them.",
        **traits: Any,
    ) -> None:
        if not tensors:
            raise ValueError("tensors is empty; give at least one, {title: (tokens, channels)}")
        arrays = [pack(v, title, MOST)[0] for title, v in tensors.items()]
        shape = arrays[0].shape
        if any(v.ndim != 2 or v.shape != shape for v in arrays):
            raise ValueError(
                "all tensors must have one shape (tokens, channels), not "
                + ", ".join(str(v.shape) for v in arrays)
            )
        if len(tokens) != shape[0]:
            raise ValueError(f"{len(tokens)} tokens are named, the tensors have {shape[0]} rows")
        if sum(v.size for v in arrays) > MOST:
            raise ValueError(f"the tensors hold more than {MOST:,} values; give fewer tokens")
        with np.errstate(over="ignore"):
            self.values = np.stack(arrays).astype("<f2")
        if not np.isfinite(self.values).all():
            raise ValueError("a value is beyond float16 (65,504); divide the tensor first")
        chosen = traits.get("tensor", 0)
        if not 0 <= chosen < len(arrays):
            raise ValueError(f"tensor must be from 0 to {len(arrays) - 1}, not {chosen}")
        token, channel = divmod(int(np.abs(self.values[chosen]).argmax()), shape[1])
        super().__init__(
            data=self.values.tobytes(),
            titles=list(tensors),
            tokens=list(tokens),
            alt=alt,
            **({"token": token, "channel": channel} | traits),
        )

    def result(self) -> dict[str, Any]:
        """What the page shows, in float64.

        group, low, high, scale, zero_point (channels,); x_int, x_hat (tokens, channels); rounding
        and clipping, the two parts of the mean squared error; clipped, the share of clipped values;
        sqnr of all values and typical, that of the median token, in dB; levels, how many integers
        the median channel uses.
        """
        x = self.values[self.tensor].astype(np.float64)
        low, high = x.min(0), x.max(0)
        group = channel_groups(high - low, self.groups)
        low, high = (
            np.array([end(v[group == g]) for g in range(self.groups)])[group]
            for end, v in ((np.min, low), (np.max, high))
        )
        limit = self.clip * np.maximum(abs(low), abs(high))
        low, high = np.clip([low, high], -limit, limit)
        scale, zero_point = scale_zero_point(low, high, self.bits)
        x_int = quantize(x, scale, zero_point, self.bits, axis=1)
        x_hat = scale * (x_int - zero_point)
        n, p = integer_grid(self.bits)
        k = round_half_even(x / scale) + zero_point
        out, square = (k < n) | (k > p), (x - x_hat) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens = 10 * np.log10((x**2).sum(1) / square.sum(1))
            sqnr = 10 * np.log10((x**2).sum() / square.sum())
        return {
            "group": group, "low": low, "high": high, "scale": scale, "zero_point": zero_point,
            "x_int": x_int, "x_hat": x_hat,
            "rounding": square[~out].sum() / x.size, "clipping": square[out].sum() / x.size,
            "clipped": out.mean(), "sqnr": sqnr, "typical": np.sort(tokens)[len(tokens) // 2],
            "levels": int(np.sort([len(np.unique(c)) for c in x_int.T])[x.shape[1] // 2]),
        }  # fmt: skip

    @traitlets.validate("groups")
    def _check_groups(self, proposal: Any) -> int:
        return within(proposal, 1, self.values.shape[2], ", the channels")

    @traitlets.validate("tensor", "token", "channel")
    def _check_place(self, proposal: Any) -> int:
        axis = ("tensor", "token", "channel").index(proposal.trait.name)
        return within(proposal, 0, self.values.shape[axis] - 1)
