"""Layers, products and sums: what a device multiplies and adds.

See ``minq.deploy.compiler.forms``.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from minq import graph
from minq.deploy import kernels
from minq.deploy.biases import wide_enough
from minq.deploy.compiler.forms import (
    INF,
    Constant,
    Filled,
    Form,
    Function,
    Hidden,
    Island,
    Parameter,
    Pieces,
    Sum,
    Term,
)
from minq.deploy.compiler.moves import hide, masked_fill
from minq.deploy.compiler.rational import count, denominator
from minq.mac import accumulator_bits_of, bits_for

if TYPE_CHECKING:
    from minq.deploy.compiler.compile import Compiler

aten = torch.ops.aten


# --- Layers and products --------------------------------------------------------------------------


def layer(c: Compiler, node: fx.Node) -> Sum:
    """Eq. (13): W_int x_int, the bias in the same unit, the input's zero-point folded in."""
    kind, w, bias = graph.op(node), c.forms[graph.weight_node(node)], graph.bias_node(node)
    b = c.forms[bias] if bias is not None else None
    if not isinstance(w, Constant) or not isinstance(b, Parameter | None):
        raise Island("its weight is not quantized")
    x = c.grid(node.args[0])
    transposed, groups = graph.traits(node).role == "transposed", graph.groups_of(node)
    if w.scale.numel() > 1 and w.scale.shape[int(transposed)] != w.scale.numel():
        raise Island("its weight has more scales than outputs")
    rows = (graph.transpose_weight(w.values, groups) if transposed else w.values).flatten(1)
    scale = w.scale.reshape(-1) * x.scale
    b_int = torch.zeros(len(rows), dtype=torch.int64)
    if b is not None:
        b_int = _bias(c, node, b.values.double(), x.scale)
    folded = b_int if transposed else b_int - x.zero * rows.sum(1)
    low, high = (x.low - x.zero, x.high - x.zero) if transposed else (x.low, x.high)
    settings, pads = _geometry(node, w.values.ndim - 2)
    module = kernels.Layer(
        getattr(nn.functional, kind),
        w.values.to(kernels.storage(int(w.values.min()), int(w.values.max()))),
        folded.int(),
        x.zero,
        pads,
        not transposed,
        **settings,
    )
    signed = low < 0
    bits = bits_for(low, high) - (not signed)
    module.bound = accumulator_bits_of(rows, bits, activation_signed=signed, bias=folded)
    new = _accumulate(c, graph.layer_name(node), module, (x.node,))
    dims = 0 if kind == "linear" else w.values.ndim - 2
    scale = scale.reshape(-1, *[1] * dims) if len(scale) > 1 else scale.reshape(())
    return Sum((Term(new, scale, 0, *_limits(module)),))


def _bias(c: Compiler, node: fx.Node, bias: Tensor, x: Tensor) -> Tensor:
    """b_int = round(b / (s_w s_x)); 0, and the weight's steps are to widen, where it is too much.

    The steps are those of ONNX files too; a weight without a quantizer of its own has none.
    """
    weight = graph.weight_node(node)
    quantizer = c.wider.get(weight.target, c.q.get_submodule(weight.target))
    wider = wide_enough(quantizer, bias, x)
    if wider is not quantizer:
        c.wider[weight.target] = wider
        return torch.zeros(len(bias), dtype=torch.int64)
    scale = quantizer.scale_zero_point()[0].detach().double() * x
    b_int = torch.round(bias / scale)
    c.biases[node.name] = b_int * scale
    return b_int.long()


def _geometry(node: fx.Node, dims: int) -> tuple[dict[str, Any], list[int]]:
    """Keywords of torch's function, and what to pad before it is called."""
    kind, argument = graph.op(node), graph.argument
    if kind == "linear":
        return {}, []
    groups = graph.groups_of(node)
    if graph.traits(node).role == "transposed":
        names = (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1),
                 ("dilation", 1))  # fmt: skip
        return {k: argument(node, 3 + i, k, v) for i, (k, v) in enumerate(names)}, []
    kernel = graph.shape_of(graph.weight_node(node))[2:]
    stride, pads, dilation = graph.geometry(node, kernel)
    flat = [p for pair in reversed(pads) for p in pair]
    return {"stride": stride, "dilation": dilation, "groups": groups}, flat


def product(c: Compiler, node: fx.Node) -> Form:
    """Two tensors multiplied, as matrices or element by element; zero-points are subtracted."""
    matrices = graph.traits(node).role == "product"
    if not matrices and (scaled := _by_a_constant(c, node)) is not None:
        return scaled
    a, b = (c.factor(x) for x in node.args[:2])
    scale = _scale_of_product(a.scale, b.scale, node, matrices)
    width = graph.shape_of(node.args[0])[-1] if matrices else 1
    if not graph.is_fixed(width):
        raise Island("its sums have any length")
    corners = [(u - a.zero) * (v - b.zero) for u in (a.low, a.high) for v in (b.low, b.high)]
    module = kernels.Product(node.target, (a.zero, b.zero))
    module.bound = bits_for(int(width) * min(*corners, 0), int(width) * max(*corners, 0))
    new = _accumulate(c, graph.place(node), module, (a.node, b.node))
    return Sum((Term(new, scale, 0, *_limits(module)),))


def _scale_of_product(a: Tensor, b: Tensor, node: fx.Node, matrices: bool) -> Tensor:
    """One scale, or one for each row of the left and each column of the right matrix."""
    left, right = (len(graph.shape_of(x)) for x in node.args[:2])
    rows = matrices and left > 1 and a.ndim > 1 and a.shape[-2] == a.numel()
    columns = matrices and right > 1 and b.shape[-1:] == (b.numel(),)
    if (a.numel() > 1 and not rows) or (b.numel() > 1 and not columns):
        raise Island("an operand has several scales along its sums")
    a = a.reshape(-1, 1) if a.numel() > 1 and right > 1 else a.reshape(-1)
    scale = a * b.reshape(-1)
    return scale.reshape(()) if scale.numel() == 1 else scale


def _by_a_constant(c: Compiler, node: fx.Node) -> Sum | None:
    """A tensor times a parameter without quantizer: more scales, nothing to compute."""
    for x, y in (node.args[:2], node.args[1::-1]):
        form = c.forms[x]
        if isinstance(form, Sum) and form.plain and _same_shape(x, node) and c.is_constant(y):
            return form.times(c.values(y))
    return None


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    return [*map(str, graph.shape_of(a))] == [*map(str, graph.shape_of(b))]


def _accumulate(c: Compiler, name: str, module: kernels.Accumulate, args: tuple) -> fx.Node:
    module.bits = c.arithmetic.accumulator_bits
    if module.bound > module.bits and not c.wraps:
        raise ValueError(
            f"{name} may need {module.bound} bits where accumulators have {module.bits}; "
            'allow more, take fewer bits, or pass overflow="wrap"'
        )
    new = c.module(name, module, args)
    c.layers[graph.unused_in(c.layers, name)] = module
    return new


def _limits(module: kernels.Accumulate) -> tuple[int, int]:
    half = 2 ** (min(module.bound, module.bits) - 1)
    return -half, half - 1


# --- Sums -----------------------------------------------------------------------------------------


def add(c: Compiler, node: fx.Node) -> Form:
    """a + alpha b; a mask that is added to scores hides them."""
    kind, alpha = graph.op(node), float(node.kwargs.get("alpha", 1))
    operands = list(node.args[:2])
    if kind == "rsub":
        operands.reverse()
    if kind == "add" and alpha == 1 and (masked := _masked(c, *operands)) is not None:
        return masked
    for x, y in (operands, operands[::-1]):
        filled = isinstance(x, fx.Node) and isinstance(c.forms[x], Filled)
        if filled and not (isinstance(y, fx.Node) and _same_shape(y, node)):
            raise Island("a constant spreads the other operand")
    a, b = map(c.summand, operands)
    b = b.times((-1.0 if kind in ("sub", "rsub") else 1.0) * alpha)
    if not a.terms + b.terms:
        raise Island("it adds constants")
    return Sum(a.terms + b.terms, a.constant + b.constant)


def _masked(c: Compiler, x: Any, y: Any) -> Hidden | None:
    """Scores plus a constant of 0 where they count, and about -infinity where they do not."""
    for scores, mask in ((x, y), (y, x)):
        form = c.forms.get(mask) if isinstance(mask, fx.Node) else None
        known = c.forms.get(scores) if isinstance(scores, fx.Node) else None
        if not isinstance(form, Parameter) or not isinstance(known, Sum) or known.grid is None:
            continue
        values = form.values.double()
        low, high = float(values.min()), float(values.max())
        hidden = values == low
        two = bool(((values == 0) | hidden).all()) and not hidden.all(-1).any()
        if high == 0 and low < -1e3 and two:
            return hide(c, known.grid, low, partial(masked_fill, c, hidden))
    return None


def neg(c: Compiler, node: fx.Node) -> Sum:
    return c.summand(node.args[0]).times(-1.0)


def rescale(c: Compiler, node: fx.Node) -> Form:
    """A product with a number, or with a factor for each channel."""
    a, b = node.args[:2]
    name = getattr(node.target, "overloadpacket", node.target).__name__
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        a, b = (a, b) if isinstance(c.forms[b], Parameter) else (b, a)
        factor = c.values(b)
        return c.summand(a).times(factor if name == "mul" else 1 / factor)
    if isinstance(a, fx.Node):
        if node.kwargs.get("rounding_mode"):
            raise Island("it rounds by itself")
        return c.summand(a).times(float(b) if name == "mul" else 1 / float(b))
    if node.target in (aten.mul.Tensor, operator.mul):
        return c.summand(b).times(float(a))
    raise Island("a number divided by a tensor")


def batch_norm(c: Compiler, node: fx.Node) -> Sum:
    """One factor and one constant for each channel, eq. (9)."""
    x = c.summand(node.args[0])
    gamma, beta, mean, variance = (None if a is None else c.values(a) for a in node.args[1:5])
    if node.args[5] or mean is None:
        raise Island("it normalizes by the batch's own statistics")
    factor = (variance + node.args[7]).rsqrt() * (1.0 if gamma is None else gamma)
    shift = (0.0 if beta is None else beta) - mean * factor
    shape = [-1] + [1] * (len(graph.shape_of(node.args[0])) - 2)
    y = x.times(factor.reshape(shape))
    return replace(y, constant=y.constant + shift.reshape(shape))  # eq. (9)


def rational(c: Compiler, node: fx.Node) -> Sum:
    """A mean, pooling, interpolation: sums of integers, the denominator in the scale."""
    x = c.grid(node.args[0])
    factor = denominator(node)
    average = kernels.Average(node.target, x.zero, factor)
    most = max(abs(x.low - x.zero), abs(x.high - x.zero)) * factor
    if graph.op(node) in ("sum", "cumsum"):
        most *= count(node)
    if most >= 2**31:
        raise Island("its common denominator is too large for 32 bits")
    average.bound = bits_for(-most, most)
    rest = fx.map_arg((node.args[1:], dict(node.kwargs)), c.plain)
    new = c.module(graph.place(node), average, (x.node, *rest[0]), rest[1])
    return Sum((Term(new, x.scale / factor, 0, -most, most),))


# --- What is fused --------------------------------------------------------------------------------


def fused(c: Compiler, node: fx.Node) -> Form:
    """An activation function, of each piece where the input is not put together yet."""
    form = c.forms[node.args[0]]
    if isinstance(form, Pieces) and graph.op(node) != "prelu":
        return Pieces(tuple(_activated(c, node, part) for part in form.parts), form.join)
    return _activated(c, node, form)


def _activated(c: Compiler, node: fx.Node, x: Form) -> Form:
    """Bounds or a second slope for the next rounding, or one more function for a table."""
    if isinstance(x, Function):  # f, and then the activation function: one table
        first, then = x.function, c.of_one_number(node, node.args[0])
        return Function(x.term, lambda r: then(first(r)))
    if isinstance(x, Constant):
        x = c.sum_of(x)
    if not isinstance(x, Sum):
        raise Island("its input is not on a grid")
    if (ends := graph.clip_arguments(node)) is None:
        return _with_slope(x, _slope(c, node))
    return _clipped(x, _bound(c, ends[0], -INF), _bound(c, ends[1], INF))


def _clipped(x: Sum, low: Tensor, high: Tensor) -> Sum:
    """clip(clip(y; a, b); low, high) = clip(y; clip(a; low, high), clip(b; low, high))."""
    a, b = (torch.minimum(torch.maximum(end, low), high) for end in (x.low, x.high))
    return replace(x, low=a, high=b)


def _bound(c: Compiler, value: Any, missing: Tensor) -> Tensor:
    """A bound in double precision, of any shape that broadcasts."""
    if value is None:
        return missing
    if isinstance(value, fx.Node):
        return c.values(value)
    return torch.tensor(float(value), dtype=torch.float64)


def _with_slope(x: Sum, slope: Tensor) -> Sum:
    """y where y >= 0, slope y elsewhere: nothing may be fused before it."""
    if not x.plain:
        raise Island("it follows another function")
    return replace(x, slope=slope)


def _slope(c: Compiler, node: fx.Node) -> Tensor:
    """The slope below 0: one number, or one for each channel, shape (C, 1, ...)."""
    if graph.op(node) == "leaky_relu":
        return torch.tensor(graph.argument(node, 1, "negative_slope", 0.01), dtype=torch.float64)
    slope = c.values(node.args[1])
    if slope.numel() == 1:
        return slope.reshape(())
    return slope.reshape(-1, *[1] * (len(graph.shape_of(node)) - 2))
