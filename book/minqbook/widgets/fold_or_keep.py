"""Batch norm while a layer trains: which integers change when nothing but statistics move."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minq import ranges
from minq.affine import scale_zero_point
from minq.grid import integer_grid
from minqbook.widgets.base import Widget, limited, pack, within

BITS = 4
MOMENTUM = 0.1  # of the running statistics: the share of the new batch
WAYS = ("fold once", "by the batch", "dynamic", "keep")
MOST = 4000  # numbers of the weight, and of all statistics


class FoldOrKeep(Widget):
    """Move the statistics of a layer's outputs, and see which 4-bit integers of its weight flip.

    The weight W stays as it is. What is rounded is f W, with f = gamma / sqrt(variance + eps), and
    the variance is

        fold once      the running one, for ever
        by the batch   that of the batch
        dynamic        the running one, after it has taken in a tenth of the batch's
        keep           none: W itself is rounded, and batch norm stays behind the layer

    Scales are those of min-max when f has the running statistics; they stay. ``keep`` has one for
    each channel always. Channels are sorted by \\|f\\|.

    weight: (channels, ...). gamma, beta, mean, variance: (channels,), of the batch norm.
    batch_means, batch_variances: (batches, channels). way: one of ``WAYS``. per_channel: scales of
    the other ways. batch: which batch, from 1; 0 for one with the running statistics. spread: its
    variances are multiplied by this, 0.25 to 4. shift: its means are moved by so many running
    deviations, -2 to 2. channel: which one is drawn large.

    ``result()`` has what the page computes.

    >>> w = FoldOrKeep([[1.0, 0.4], [0.5, 0.7]], [1.0, 4.0], [0.0, 1.0], [0.0, 2.0], [1.0, 4.0],
    ...                [[0.1, 2.2]], [[1.3, 3.0]], spread=1.5)
    >>> w
    FoldOrKeep(sizes=[2, 2, 1], way='by the batch', per_channel=False, batch=1, spread=1.5, shift=0)
    >>> found = w.result()
    >>> found["before"], found["integers"]
    (array([[5., 2.],
           [5., 7.]]), array([[4., 1.],
           [5., 7.]]))

    Raises TypeError or ValueError for NaN, variances that are not positive, gammas of 0, shapes
    that do not fit, too many numbers, and settings out of their limits.
    """

    data = traitlets.Bytes().tag(sync=True)  # float32: weight, gamma, beta, mean, variance, batches
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)  # channels, weights of each, batches
    eps = traitlets.Float(1e-5).tag(sync=True)
    way = traitlets.Enum(WAYS, "by the batch").tag(sync=True)
    per_channel = traitlets.Bool(False).tag(sync=True)
    batch = traitlets.Int(1).tag(sync=True)
    spread = traitlets.Float(1.0).tag(sync=True)
    shift = traitlets.Float(0.0).tag(sync=True)
    channel = traitlets.Int(0).tag(sync=True)
    shown = ("sizes", "way", "per_channel", "batch", "spread", "shift")
    _limits = limited(spread=(0.25, 4), shift=(-2, 2))

    def __init__(
        self,
        weight: Any,
        gamma: Any,
        beta: Any,
        mean: Any,
        variance: Any,
        batch_means: Any,
        batch_variances: Any,
        *,
        eps: float = 1e-5,
        alt: str = "All integers of a layer's weight as a field of small cells, channel by channel,"
        " in which those are marked that flip when the statistics of batch norm move. Below, the "
        "weights of one channel on their grid, before and after.",
        **traits: Any,
    ) -> None:
        names = ("weight", "gamma", "beta", "mean", "variance", "batch_means", "batch_variances")
        given = (weight, gamma, beta, mean, variance, batch_means, batch_variances)
        values = {name: pack(v, name, MOST)[0] for name, v in zip(names, given, strict=True)}
        w = values["weight"] = values["weight"].reshape(len(values["weight"]), -1)
        batches = len(values["batch_means"])
        for name in names[1:]:
            shape = (batches, len(w)) if name.startswith("batch") else (len(w),)
            if values[name].shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, not {values[name].shape}")
        for name in ("variance", "batch_variances"):
            if not (values[name] > 0).all():
                raise ValueError(f"{name} must be above 0")
        if not values["gamma"].all():
            raise ValueError("gamma must not be 0: such a channel is a constant")
        order = np.argsort(np.abs(values["gamma"]) / np.sqrt(values["variance"] + eps))
        self.values = {
            name: (v[:, order] if name.startswith("batch") else v[order]).astype(np.float64)
            for name, v in values.items()
        }
        super().__init__(
            data=b"".join(v.astype("<f4").tobytes() for v in self.values.values()),
            sizes=[*w.shape, batches],
            eps=eps,
            alt=alt,
            **traits,
        )

    def result(self) -> dict[str, Any]:
        """What the page shows.

        places, the weights in steps of the grid, before they are rounded; integers, and before,
        those of the running statistics; scale and bias of each channel on the device; mean and
        deviation, of the layer's outputs on this batch, rounding left out: batch norm's are beta
        and \\|gamma\\|; passes, how often a step computes the layer.
        """
        v, way = self.values, self.way
        w, gamma, beta, variance = v["weight"], v["gamma"], v["beta"], v["variance"]
        mean_b, variance_b = v["mean"], variance
        if self.batch:
            mean_b = v["batch_means"][self.batch - 1]
            variance_b = v["batch_variances"][self.batch - 1]
        mean_b = mean_b + self.shift * np.sqrt(variance + self.eps)
        variance_b = variance_b * self.spread
        mean, used = {
            "fold once": (v["mean"], variance),
            "by the batch": (mean_b, variance_b),
        }.get(way) or (
            (1 - MOMENTUM) * v["mean"] + MOMENTUM * mean_b,
            (1 - MOMENTUM) * variance + MOMENTUM * variance_b,
        )
        at_first, now = gamma / np.sqrt(variance + self.eps), gamma / np.sqrt(used + self.eps)
        folded = w * at_first[:, None]
        if way == "keep":
            first_places = places = w / (s := _scales(w, True))[:, None]
            scale = s * np.abs(now)  # eq. (43)
        else:
            scale = _scales(folded, self.per_channel)
            first_places, places = folded / scale[:, None], (w * now[:, None]) / scale[:, None]
        grid = integer_grid(BITS, signed=True)
        normal = gamma / np.sqrt(variance_b + self.eps)
        factor = at_first if way == "fold once" else normal
        return {
            "places": places,
            "integers": grid.clamp(np.rint(places)) + 0.0,
            "before": grid.clamp(np.rint(first_places)) + 0.0,
            "scale": scale,
            "bias": beta - now * mean,  # eq. (42)
            "mean": beta + (factor * (mean_b - v["mean"]) if way == "fold once" else 0.0),
            "deviation": np.abs(factor) * np.sqrt(variance_b),
            "passes": 1 if way in ("fold once", "keep") else 2,
        }

    @traitlets.validate("batch")
    def _check_batch(self, proposal: Any) -> int:
        return within(proposal, 0, len(self.values["batch_means"]))

    @traitlets.validate("channel")
    def _check_channel(self, proposal: Any) -> int:
        return within(proposal, 0, len(self.values["weight"]) - 1)


def _scales(w: np.ndarray, per_channel: bool) -> np.ndarray:
    """One scale for each channel, all alike unless ``per_channel``."""
    low, high = ranges.min_max(w, axis=0 if per_channel else None)
    scale = scale_zero_point(low, high, BITS, signed=True, symmetric=True)[0]
    return np.broadcast_to(scale, len(w))
