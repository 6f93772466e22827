"""What an integer-only device does, one module an operator: integers in, integers out.

A tensor of integers x stands for the real numbers s (x - z). Its scale s is known when the network
is compiled and appears in no computation; what is left of it are the multipliers of ``Requantize``.

Between two requantizations numbers are 32 bits wide. Sums of products are computed by float64
units, which is exact: every partial sum is an integer below 2^53, in whatever order (see
``minq.mac.int_matmul``, the same argument for float32).
"""

from minq.deploy.kernels.moves import Fill, FillWith, Lookup, Move, Table
from minq.deploy.kernels.rounding import (
    Arithmetic,
    Dequantize,
    Multipliers,
    Quantize,
    Requantize,
    storage,
)
from minq.deploy.kernels.sums import Accumulate, Average, Layer, Product, wrap

__all__ = [
    "Accumulate",
    "Arithmetic",
    "Average",
    "Dequantize",
    "Fill",
    "FillWith",
    "Layer",
    "Lookup",
    "Move",
    "Multipliers",
    "Product",
    "Quantize",
    "Requantize",
    "Table",
    "storage",
    "wrap",
]
