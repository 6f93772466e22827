"""Linear functions with rational coefficients, which integers compute up to a common factor.

A mean of 9 numbers is their sum, and 1 / 9 goes into the scale; bilinear interpolation to twice the
size has coefficients k / 16. ``denominator`` finds the factor that makes all of them whole.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from minq import graph
from minq.deploy.compiler.forms import Island


def denominator(node: fx.Node) -> int:
    """A whole number that makes all coefficients of a linear function whole."""
    kind, x = graph.op(node), node.args[0]
    if kind in ("sum", "cumsum"):
        return 1
    if kind == "mean":
        return count(node)
    dims = int(kind[-2])  # "avg_pool2d"
    sizes = list(zip(graph.shape_of(x)[-dims:], graph.shape_of(node)[-dims:], strict=True))
    if not all(graph.is_fixed(size) for pair in sizes for size in pair):
        raise Island("its sizes vary")
    sizes = [(int(a), int(b)) for a, b in sizes]
    if kind.startswith("avg_pool"):
        return _pool_denominator(node, len(sizes))
    if kind.startswith("adaptive"):  # the windows of place k go from floor(k a / b) to ceil(...)
        return math.prod(
            math.lcm(*(-(-(k + 1) * a // b) - k * a // b for k in range(b))) for a, b in sizes
        )
    align = graph.argument(node, 2, "align_corners")
    if align:  # the places are k (a - 1) / (b - 1)
        factor = math.prod(max(b - 1, 1) // math.gcd(a - 1, max(b - 1, 1)) for a, b in sizes)
    else:  # ((2 k + 1) a / b - 1) / 2
        factor = math.prod(2 * b // math.gcd(a, b) for a, b in sizes)
    return _checked(node, factor)


def _pool_denominator(node: fx.Node, dims: int) -> int:
    """The area of the window; where parts of windows count, what all their areas divide."""
    if (override := graph.argument(node, 6, "divisor_override")) is not None:
        return abs(int(override))
    kernel, padding = (
        graph.each(graph.argument(node, k, name, default), dims)
        for k, name, default in ((1, "kernel_size", 1), (3, "padding", 0))
    )
    partial = any(padding) and not graph.argument(node, 5, "count_include_pad", True)
    if partial or graph.argument(node, 4, "ceil_mode", False):
        return math.prod(math.lcm(*range(1, k + 1)) for k in kernel)
    return math.prod(kernel)


def count(node: fx.Node) -> int:
    """How many numbers a mean or a sum takes together."""
    shape, dims = graph.shape_of(node.args[0]), graph.argument(node, 1, "dim")
    dims = range(len(shape)) if dims in (None, []) else dims
    sizes = [shape[d] for d in ([dims] if isinstance(dims, int) else dims)]
    if not all(map(graph.is_fixed, sizes)):
        raise Island("it goes over the batch")
    return math.prod(map(int, sizes))


def _checked(node: fx.Node, factor: int) -> int:
    """The factor, if it does what it should: interpolation may have any scale factor."""
    x = torch.randint(-128, 128, (1, *map(int, graph.shape_of(node.args[0])[1:])))
    if any(isinstance(a, fx.Node) for a in node.args[1:]):
        raise Island("its sizes vary")
    y = node.target(x.double(), *node.args[1:], **node.kwargs) * factor
    if (y - y.round()).abs().max() > 1e-6:
        raise Island("its coefficients are not rational")
    return factor
