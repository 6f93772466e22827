"""The multiply-accumulate array at work, cycle by cycle: figures 1 and 2 of the paper, animated."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minq import mac
from minq._checks import as_float
from minq.affine import quantize, scale_zero_point
from minq.mac import as_integers
from minqbook.widgets.base import Widget, limited, pack

LIMITS = {"rows": (2, 6), "columns": (2, 6), "accumulator_bits": (8, 32), "weight_bits": (2, 8),
          "activation_bits": (2, 8), "cycle": (0, 10_000)}  # fmt: skip
SIZES = {"outputs": 12, "inputs": 12, "vectors": 6}
"""What fits on a page."""

# The first pointwise convolution of EfficientNet-Lite0, batch norm folded into it, trained on
# ImageNet: 6 of its 16 outputs, 8 of its 32 inputs, at three places of a photo. Apache-2.0. How it
# was cut out stands in tests/test_mac_array_widget.py.
WEIGHT = [
    [0.11, 0.38, -0.19, -0.72, 0.49, -0.05, -0.31, 0.19],
    [-0.14, 0.32, -0.27, 0.53, 5.78, 0.18, -0.66, -0.18],
    [-0.59, -0.31, 0.39, 0.05, -1.19, -0.01, -0.53, -0.01],
    [-0.17, -0.07, -0.16, -0.10, 3.30, 0.26, -0.27, -3.76],
    [0.60, 0.74, -0.35, -0.10, 0.32, 0.21, -0.23, 0.04],
    [1.71, 0.16, 0.61, -0.11, 0.04, -1.54, -0.33, 0.02],
]
BIAS = [-11.89, -20.91, 17.86, -24.61, -6.24, 8.65]
INPUTS = [
    [5.98, 2.50, 1.41, 2.42, 1.84, 0.17, 3.12, 3.05],
    [5.87, 1.80, 2.59, 0.00, 2.05, 0.06, 5.85, 4.74],
    [5.31, 3.51, 0.47, 6.00, 2.06, 0.88, 4.06, 2.13],
]


class MacArray(Widget):
    """Step through y = W x + b on a small array of processing elements (``minq.mac.MacArray``).

    weight: (N, M). x: (M,) or (B, M). bias: (N,), or None for 0. All floats, or all integers; at
    most 12 x 12 weights and 6 vectors (default: a slice of a trained layer).
    Floats are quantized in the page, weights symmetric to ``weight_bits``, inputs asymmetric to
    ``activation_bits``, both min-max per tensor; the reader can look at the float32 layer too.
    Integers are taken as they are and must fit 8 bits.
    rows, columns: 2 to 6. accumulator_bits: 8 to 32. overflow: "wrap" or "saturate".
    double_buffer: load the next tile while one computes. numbers: "integers" or "float32".
    cycle: how many cycles have passed (default: the first one that computes).

    In a live notebook the attributes follow the picture, so this asks the model in Python what the
    picture shows:

    >>> widget = MacArray(accumulator_bits=16)
    >>> int(widget.array.run(*widget.operands).overflowed.sum())
    1

    Raises TypeError or ValueError for arrays that hold NaN, are infinite, empty, too large for a
    page, of mixed kinds or do not fit each other; for weights or inputs that are all zero; for
    integers beyond 8 bits; and for settings outside their limits.
    """

    data = traitlets.Bytes().tag(sync=True)  # W, x, b one after the other
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)  # N, M, B
    quantized = traitlets.Bool(False).tag(sync=True)
    rows = traitlets.Int(4).tag(sync=True)
    columns = traitlets.Int(4).tag(sync=True)
    accumulator_bits = traitlets.Int(16).tag(sync=True)
    overflow = traitlets.Enum(["wrap", "saturate"], "wrap").tag(sync=True)
    double_buffer = traitlets.Bool(False).tag(sync=True)
    weight_bits = traitlets.Int(8).tag(sync=True)
    activation_bits = traitlets.Int(8).tag(sync=True)
    numbers = traitlets.Enum(["integers", "float32"], "integers").tag(sync=True)
    cycle = traitlets.Int(0).tag(sync=True)
    shown = ("rows", "columns", "accumulator_bits", "overflow", "numbers", "cycle")
    _limits = limited(**LIMITS)

    def __init__(
        self,
        weight: Any = None,
        x: Any = None,
        bias: Any = None,
        *,
        alt: str = "An array of processing elements that computes y = W x + b cycle by cycle: "
        "weights are loaded and held, input vectors stream in, accumulators grow, may overflow, "
        "and are requantized.",
        **traits: Any,
    ) -> None:
        if weight is None and x is None and bias is None:
            weight, x, bias = WEIGHT, INPUTS, BIAS
        if weight is None or x is None:
            raise TypeError("weight and x belong together: pass both, or neither")
        (w, integers), (x, x_integers) = _read(weight, "weight"), _read(x, "x")
        x = np.atleast_2d(x)
        b, b_integers = _read(bias, "bias") if bias is not None else (np.zeros(len(w)), integers)
        if not integers == x_integers == b_integers:
            raise TypeError("weight, x and bias must be all floats or all integers; cast one kind")
        if w.ndim != 2 or x.ndim != 2 or x.shape[1] != w.shape[1] or b.shape != w.shape[:1]:
            raise ValueError(
                f"weight {w.shape}, x {x.shape} and bias {b.shape} do not fit: weight needs "
                "(N, M), x (M,) or (B, M), bias (N,)"
            )
        sizes = [*w.shape, len(x)]
        for size, (name, most) in zip(sizes, SIZES.items(), strict=True):
            if size > most:
                raise ValueError(f"{size} {name} are too many to draw; pass at most {most}")
        if not (w.any() and x.any()):
            raise ValueError("weight or x is all zero, so there is nothing to see; pass other data")
        if integers:
            traits |= _given_bits(w, x, traits)
        traits.setdefault("cycle", min(traits.get("rows", 4), len(w)) + 1)
        packed = b"".join(pack(values, "data", most=144)[1] for values in (w, x, b))
        super().__init__(data=packed, sizes=sizes, quantized=integers, alt=alt, **traits)

    @property
    def array(self) -> mac.MacArray:
        """The machine as it is set now."""
        return mac.MacArray(
            self.rows, self.columns, self.accumulator_bits, self.overflow, self.double_buffer
        )

    @property
    def operands(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """W_int (N, M), x_int (B, M) and the bias (N,) that the array computes with, int64."""
        return self._layer()[0]

    @property
    def requantization(self) -> dict[str, Any]:
        """What turns an accumulator into an output: ``requantize(acc, **widget.requantization)``.

        The output grid covers the exact sums of these very vectors, min-max.
        """
        (w, x, b), step = self._layer()
        exact = x @ w.T + b
        scale, zero_point = scale_zero_point(
            step * exact.min(), step * exact.max(), self.activation_bits
        )
        return {"scale_ratio": step / scale, "zero_point": zero_point, "bits": self.activation_bits}

    def _layer(self) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], float]:
        """The operands, and s_w s_x: what one unit of an accumulator stands for."""
        n, m, batch = self.sizes
        values = np.frombuffer(self.data, "<f4").astype(np.float64)
        w, x, b = np.split(values, [n * m, n * m + batch * m])
        w, x = w.reshape(n, m), x.reshape(batch, m)
        if self.quantized:
            return (w.astype(np.int64), x.astype(np.int64), b.astype(np.int64)), 1.0
        s_w, _ = scale_zero_point(w.min(), w.max(), self.weight_bits, signed=True, symmetric=True)
        s_x, z_x = scale_zero_point(x.min(), x.max(), self.activation_bits)
        w_int = quantize(w, s_w, 0, self.weight_bits, signed=True).astype(np.int64)
        x_int = quantize(x, s_x, z_x, self.activation_bits).astype(np.int64)
        b_int = np.clip(np.rint(b / (s_w * s_x)), -(2**31), 2**31 - 1).astype(np.int64)
        return (w_int, x_int, mac.fold_zero_points(w_int, b_int, 0, z_x)), s_w * s_x  # eq. (13)


def _read(x: Any, name: str) -> tuple[np.ndarray, bool]:
    """``x`` as float64, and whether it came as integers."""
    x = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
    integers = x.dtype.kind in "iu"
    return (as_integers(x, name)[0] if integers else as_float(x, name)).astype(np.float64), integers


def _given_bits(w: np.ndarray, x: np.ndarray, traits: dict[str, Any]) -> dict[str, int]:
    """The widths of a layer that came as integers: those asked for, or the least that hold it."""
    if traits.get("numbers") == "float32":
        raise ValueError('numbers="float32" needs floats; pass the layer before quantize')
    least = {"weight_bits": mac.bits_for(w.min(), w.max()),
             "activation_bits": mac.bits_for(x.min(), x.max()) - (x.min() >= 0)}  # fmt: skip
    bits = {k: int(traits.get(k, max(v, 2))) for k, v in least.items()}
    for k, v in least.items():
        if v > min(bits[k], 8):
            raise ValueError(
                f"the integers given need {k}={v}, above {min(bits[k], 8)}; quantize first"
            )
    return bits
