"""Functions of one number, of rows of numbers, of whole numbers: tables, and what replaces a float.

See ``minq.deploy.compiler.forms``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from minq import graph
from minq.deploy import kernels
from minq.deploy.compiler.forms import (
    ENTRIES,
    Constant,
    Filled,
    Form,
    Function,
    Hidden,
    Island,
    Normalized,
    Parameter,
    Plain,
    Real,
    Rows,
    Sum,
    Term,
)
from minq.deploy.normalize import LayerNorm, LogSoftmax, Softmax

if TYPE_CHECKING:
    from minq.deploy.compiler.compile import Compiler


# --- Tables ---------------------------------------------------------------------------------------


def pointwise(c: Compiler, node: fx.Node) -> Function:
    """f(s (x - z)) of one grid, also behind another such function."""
    (x, *more) = [n for n in node.all_input_nodes if not isinstance(c.forms[n], Parameter)]
    if more:
        raise Island("it has several operands")
    then, form = c.of_one_number(node, x), c.forms[x]
    before = form.function if isinstance(form, Function) else None
    term = form.term if isinstance(form, Function) else c.grid(x)
    _check_size(term.high - term.low + 1)
    return Function(term, then if before is None else lambda r: then(before(r)))


def _check_size(entries: int) -> None:
    if entries > ENTRIES:
        raise Island(f"its table would have {entries:,} entries, more than {ENTRIES:,}")


def converted(c: Compiler, node: fx.Node) -> Form:
    """to(float) and its like: real numbers stay what they are; few whole numbers are a grid."""
    form = c.forms[node.args[0]]
    if not graph.is_float(node):
        if isinstance(form, Plain):
            return Plain(c.copy(node, c.plain))
        raise Island("whole numbers are made of data")
    if not isinstance(form, Plain):
        return form
    dtype = node.args[0].meta["val"].dtype
    if dtype not in (torch.bool, torch.uint8, torch.int8):
        return Real(c.copy(node, c.real_or_plain))
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    # What follows, such as / 255, is a table too: exactly what floats would give.
    return Function(Term(form.node, torch.tensor(1.0).double(), 0, low, high), lambda r: r)


def made(c: Compiler, node: fx.Node) -> Form:
    """zeros, ones, full and their like: one number in a new tensor."""
    if not graph.is_float(node):
        return Plain(c.copy(node, c.shaped))
    value = graph.fill_value(node)
    if not isinstance(value, float):
        return Real(c.copy(node, c.real_or_plain))  # arange, linspace, eye
    if graph.op(node) in ("fill", "zero"):
        shape = (c.shaped(node.args[0]), value)
        new = c.graph.call_function(torch.ops.aten.full_like.default, shape)
    else:
        new = c.copy(node, c.shaped)
    new.update_kwarg("dtype", torch.float64)
    return Filled(new, value)


# --- Rows -----------------------------------------------------------------------------------------


def softmax(c: Compiler, node: fx.Node) -> Normalized:
    form = c.forms[node.args[0]]
    hidden = form.value if isinstance(form, Hidden) else None
    x = form.term if isinstance(form, Hidden) else c.grid(node.args[0])
    function = c.of_one_number(node, node.args[0])
    logarithm = graph.op(node) == "log_softmax"
    if logarithm and hidden is not None:
        raise Island("the logarithm of nothing")
    rows = {"dim": node.args[1], "low": x.low, "high": x.high, "hidden": hidden}
    _check_size(Softmax.entries(x.scale, x.low, x.high, hidden))
    kind = LogSoftmax if logarithm else Softmax

    def unit(grid: kernels.Quantize) -> nn.Module:
        return kind(function, x.scale, x.zero, grid, c.arithmetic.exact, **rows)

    return Normalized(x, function, unit, hidden)


def norm(c: Compiler, node: fx.Node) -> Normalized:
    """Layer norm, RMS norm, group norm, instance norm: rows less their mean, by their root."""
    kind, shape, argument = graph.op(node), graph.shape_of(node.args[0]), graph.argument
    if kind in ("layer_norm", "rms_norm"):
        sizes = [int(n) for n in node.args[1]]
        groups, affine, default = None, sizes, (1e-5 if kind == "layer_norm" else None)
        weight, bias = (*node.args[2:4], None, None)[:2] if kind == "layer_norm" else (
            argument(node, 2, "weight"), None)  # fmt: skip
        eps = argument(node, 4 if kind == "layer_norm" else 3, "eps", default)
        if eps is None:  # as torch does: of the type of its input
            eps = torch.finfo(torch.float64).eps
    else:
        if not all(map(graph.is_fixed, shape[1:])):
            raise Island("its rows have any length")
        channels = int(shape[1])
        affine = [channels] + [1] * (len(shape) - 2)
        if kind == "group_norm":
            groups, eps = node.args[1], argument(node, 4, "eps", 1e-5)
            weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
        else:
            groups, weight, bias, eps = channels, node.args[1], node.args[2], node.args[7]
            if not node.args[5]:
                raise Island("it normalizes by statistics of its own")
        sizes = [channels // groups, *map(int, shape[2:])]
    gamma = torch.ones(affine).double() if weight is None else c.values(weight).reshape(affine)
    beta = torch.zeros(affine).double() if bias is None else c.values(bias).reshape(affine)
    x, function, count = c.grid(node.args[0]), _function(c, node), math.prod(sizes)
    rows = {"groups": groups, "dims": len(sizes), "count": count, "center": kind != "rms_norm",
            "gamma": gamma, "beta": beta, "eps": eps, "low": x.low, "high": x.high}  # fmt: skip
    if not LayerNorm.fits(x.scale, x.zero, **rows):
        raise Island("its sums of squares need more than 52 bits")

    def unit(grid: kernels.Quantize) -> nn.Module:
        return LayerNorm(function, x.scale, x.zero, grid, c.arithmetic, **rows)

    return Normalized(x, function, unit)


def _function(c: Compiler, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The operator with all its parameters, in double precision."""

    def value(n: Any) -> Any:
        return c.values(n) if isinstance(n, fx.Node) else n

    args, kwargs = fx.map_arg((node.args[1:], dict(node.kwargs)), value)
    return lambda x: node.target(x, *args, **kwargs)


# --- Embeddings -----------------------------------------------------------------------------------


def embedding(c: Compiler, node: fx.Node) -> Sum | Rows:
    w, index = c.forms[node.args[0]], c.forms[node.args[1]]
    if not isinstance(w, Constant):
        raise Island("its weight is not quantized")
    if not isinstance(index, Plain):
        raise Island("its indices are made of data")
    name = graph.layer_name(node)
    if w.scale.numel() > 1:
        return Rows(w.values * w.scale, index.node, name)
    low, high = int(w.values.min()), int(w.values.max())
    lookup = kernels.Lookup(w.values.to(kernels.storage(low, high)))
    new = c.module(name, lookup, (index.node,))
    return Sum((Term(new, w.scale.reshape(()), 0, low, high),))


def rows_as_term(c: Compiler, rows: Rows) -> Sum:
    """Rows with scales of their own, for a sum of them: integers of one scale that is fine enough.

    With 2^k steps to the largest number, 128 steps of the result, the table is off by up to 2^(6-k)
    steps, and a multiplier of 31 bits by up to 2^(k-32): k = 19 makes both 2^-13. With multipliers
    in floats it is the table itself.
    """
    values, name, steps = rows.values, rows.name, 2**19
    most = float(values.abs().max())
    scale = torch.tensor(1.0 if c.arithmetic.exact or most == 0 else most / steps).double()
    table = values if c.arithmetic.exact else torch.round(values / scale).int()
    new = c.module(name, kernels.Lookup(table), (rows.index,))
    return Sum((Term(new, scale, 0, -steps, steps),))
