"""From any form to integers on a grid, and back to real numbers.

See ``minq.deploy.compiler.forms``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from minq.deploy import kernels
from minq.deploy.compiler.forms import (
    Constant,
    Filled,
    Form,
    Function,
    Hidden,
    Normalized,
    Parameter,
    Pieces,
    Real,
    Rows,
    Sum,
)

if TYPE_CHECKING:
    from minq.deploy.compiler.compile import Compiler

aten = torch.ops.aten


def to_grid(c: Compiler, form: Form, grid: kernels.Quantize, name: str) -> fx.Node:
    """The node that gives the integers of a form on a grid."""
    if isinstance(form, Pieces):
        return form.join([to_grid(c, p, grid, f"{name}.{k}") for k, p in enumerate(form.parts)])
    if isinstance(form, Function):
        table = kernels.Table(grid(form.table()), form.term.low)
        return c.module(name, table, (form.term.node,))
    if isinstance(form, Normalized):
        return c.module(name, form.unit(grid), (form.term.node,))
    if isinstance(form, Rows):  # rounded beforehand
        return c.module(name, kernels.Lookup(grid(form.values)), (form.index,))
    if isinstance(form, Filled):
        level = int(grid(torch.tensor(form.value).double()))
        return c.module(name, kernels.Fill(level, grid.dtype), (form.node,))
    if isinstance(form, Parameter):
        return c.buffer(grid(form.values))
    if isinstance(form, Constant):
        form = c.sum_of(form)
    if isinstance(form, Sum):
        unit = kernels.Requantize(form.dequantize(), grid, c.arithmetic)
        return c.module(name, unit, tuple(t.node for t in form.terms))
    return c.module(name, grid, (c.real(form),))


def to_real(c: Compiler, form: Form) -> fx.Node:
    """The node that gives the real numbers of a form, in double precision."""
    if isinstance(form, Real):
        return form.node
    if isinstance(form, Filled):
        return c.graph.call_method("double", (form.node,))
    if isinstance(form, Parameter):
        return c.buffer(form.values.double())
    if isinstance(form, Constant):
        return c.buffer(form.values * form.scale)
    if isinstance(form, Rows):
        return c.module(form.name, kernels.Lookup(form.values), (form.index,))
    if isinstance(form, Pieces):
        return form.join([c.real(p) for p in form.parts])
    if isinstance(form, Hidden):
        hidden = c.graph.call_function(aten.eq.Scalar, (form.term.node, form.term.low))
        values = c.real(Sum((form.term,)))
        return c.graph.call_function(aten.masked_fill.Scalar, (values, hidden, form.value))
    if isinstance(form, Function | Normalized):
        hidden = getattr(form, "hidden", None)
        x = Sum((form.term,)) if hidden is None else Hidden(form.term, hidden)
        return c.graph.call_function(form.function, (to_real(c, x),))
    assert isinstance(form, Sum)
    return c.module("real", form.dequantize(), tuple(t.node for t in form.terms))
