"""Operators that move values, pick them, put them together or fill up: on integers as on reals.

What is on a grid stays on it, if two things are seen to: what an operator fills up with is the
level of its value and not the number itself, and where values are compared, more steps must mean
more (a negative scale is turned first).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.deploy import kernels
from minq.deploy.compiler.forms import (
    Constant,
    Filled,
    Form,
    Hidden,
    Island,
    Parameter,
    Pieces,
    Plain,
    Sum,
    Term,
)
from minq.deploy.normalize import NOTHING

if TYPE_CHECKING:
    from minq.deploy.compiler.compile import Compiler

aten = torch.ops.aten


def move(c: Compiler, node: fx.Node) -> Form:
    first, *others = node.args
    of, form = graph.traits(node), c.forms.get(first) if isinstance(first, fx.Node) else None
    fills = of.value_at is not None
    more = [] if of.shape_operand else node.all_input_nodes[1:]
    if form is None or any(not isinstance(c.forms[x], Plain) for x in more):
        raise Island("it joins several tensors")
    if isinstance(form, Filled) and not (of.zero_fill or fills) and _one(node):
        return Filled(_call(c, node, form.node, others), form.value)
    if isinstance(form, Hidden) and not (of.ordered or of.zero_fill or fills):
        return replace(form, term=replace(form.term, node=_call(c, node, form.term.node, others)))
    x = c.factor(first)
    if x.scale.ndim:
        raise Island("its input has several scales")
    if of.ordered:
        x = _upwards(c, x)
    if of.zero_fill and x.zero:
        x = _around_zero(c, x)
    if fills:
        filled = _filled(c, node, others, x)
        if not isinstance(filled, list):
            return filled
        others = filled
    new = _call(c, node, x.node, others)
    if _one(node) and not graph.is_float(node):
        return Plain(new)  # where the largest lies
    return Sum((replace(x, node=new),))


def _one(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _call(c: Compiler, node: fx.Node, x: fx.Node, others: list) -> fx.Node:
    """The same operator on other values."""
    new_of = c.shaped if graph.traits(node).shape_operand else c.plain
    args, kwargs = fx.map_arg((tuple(others), dict(node.kwargs)), new_of)
    if graph.traits(node).float_kernel:
        return c.module(graph.place(node), kernels.Move(node.target), (x, *args), kwargs)
    return c.graph.call_function(node.target, (x, *args), kwargs)


def _upwards(c: Compiler, x: Term) -> Term:
    """The same real numbers with a positive scale."""
    if x.scale > 0:
        return x
    wide = c.graph.call_method("int", (x.node,))
    down = c.graph.call_function(aten.neg.default, (wide,))
    return Term(down, -x.scale, -x.zero, -x.high, -x.low)


def _around_zero(c: Compiler, x: Term) -> Term:
    """The same real numbers with the zero-point 0."""
    wide = c.graph.call_method("int", (x.node,))
    less = c.graph.call_function(aten.sub.Tensor, (wide, x.zero))
    return Term(less, x.scale, 0, min(x.low - x.zero, 0), max(x.high - x.zero, 0))


# --- Filling up -----------------------------------------------------------------------------------


def _filled(c: Compiler, node: fx.Node, others: list, x: Term) -> list | Hidden | Pieces:
    """The level of the value that fills up, among the arguments; or scores that are hidden."""
    at, value = graph.traits(node).value_at, graph.fill_value(node)
    if value is None:
        return others
    if isinstance(value, fx.Node):
        raise Island("what it fills up with is not a number")
    assert at is not None
    padding = [*others, "constant"] if graph.op(node) == "pad" and len(others) == 1 else others

    def fill(new: fx.Node, level: Any) -> fx.Node:
        return _call(c, node, new, [*padding[: at - 1], level])

    readers = {graph.op(user) for user in node.users}
    if value == -math.inf and x.scale > 0 and readers <= {"max_pool1d", "max_pool2d", "max_pool3d"}:
        return [*padding[: at - 1], x.low]  # never larger than what is pooled with it
    if x.holds(value):
        return [*padding[: at - 1], x.level(value)]
    if value < x.ends[0] - NOTHING:
        return hide(c, x, value, fill)

    def join(nodes: list[fx.Node]) -> fx.Node:
        kwargs = {k: v for k, v in node.kwargs.items() if k != "value"}
        args, kwargs = fx.map_arg((padding[: at - 1], kwargs), c.plain)
        return c.module(graph.place(node), kernels.FillWith(node.target), (*nodes, *args), kwargs)

    number = c.buffer(torch.tensor(value, dtype=torch.float64))
    return Pieces((Sum((x,)), Filled(number, value)), join)


def hide(c: Compiler, x: Term, value: float, fill: Callable[[fx.Node, Any], fx.Node]) -> Hidden:
    """Scores of which some are filled with a value that counts for nothing beside the others."""
    if x.scale.ndim or not x.scale > 0 or value > x.ends[0] - NOTHING:
        raise Island(f"it fills up with {value:g}, which is not on the grid")
    # As many steps below the lowest level as there are levels: beyond a table of exponentials.
    level = x.low - (x.high - x.low) - 1
    if level < -(2**31):
        raise Island("it hides values of an accumulator")
    wide = c.graph.call_method("int", (x.node,))
    return Hidden(replace(x, node=fill(wide, level), low=level), value)


def masked_fill(c: Compiler, mask: Tensor, x: fx.Node, value: int) -> fx.Node:
    return c.graph.call_function(aten.masked_fill.Scalar, (x, c.buffer(mask), value))


# --- Putting together -----------------------------------------------------------------------------


def join(c: Compiler, node: fx.Node) -> Form:
    """cat, where, maximum, ...: on the one grid that all parts lie on, or rounded to one later."""
    kind, parts = graph.op(node), graph.operands(node)
    if graph.argument(node, 3, "accumulate", False) is True and kind == "index_put":
        raise Island("it adds up")
    if kind != "where" and not all(isinstance(p, fx.Node) for p in parts):
        raise Island("it fills up with numbers")
    forms = [_part(c, p) for p in parts]

    def together(nodes: list[fx.Node]) -> fx.Node:
        """The operator with other values: in the order of its arguments."""
        left = iter(nodes)
        numbers = kind == "where"

        def new(x: Any) -> Any:
            if isinstance(x, list | tuple):
                return type(x)(map(new, x))
            if isinstance(x, fx.Node):
                return next(left) if x in chosen else c.plain(x)
            return next(left) if numbers and isinstance(x, int | float) else x

        chosen = {p for p in parts if isinstance(p, fx.Node)}
        target = aten.where.self if kind == "where" else node.target
        kwargs = {k: new(v) for k, v in node.kwargs.items()}
        return c.graph.call_function(target, tuple(map(new, node.args)), kwargs)

    terms = [f.grid for f in forms if isinstance(f, Sum)]
    if terms and terms[0] is not None:
        x = terms[0]
        same = all(t is not None and t.scale == x.scale and t.zero == x.zero for t in terms)
        rest = [f for f in forms if not isinstance(f, Sum)]
        if graph.traits(node).ordered and not x.scale > 0:
            same = False
        if same and all(_on_grid(f, x) for f in rest):
            return _on_one_grid(c, forms, x, together)
        masks = [f for f in rest if isinstance(f, Filled)]
        if kind == "where" and len(terms) == len(masks) == 1 and not x.holds(masks[0].value):
            return _hidden_where(c, forms, x, masks[0], together)
    return Pieces(tuple(forms), together)


def _part(c: Compiler, x: Any) -> Form:
    if not isinstance(x, fx.Node):
        number = c.buffer(torch.tensor(float(x), dtype=torch.float64))
        return Filled(number, float(x))
    form = c.forms[x]
    if isinstance(form, Plain):
        raise Island("a part of it is no real number")
    return c.sum_of(form) if isinstance(form, Constant) else form


def _on_grid(form: Form, x: Term) -> bool:
    """Whether all values of a constant are levels."""
    if isinstance(form, Filled):
        return x.holds(form.value)
    if isinstance(form, Parameter) and form.values.numel() <= 2**16:
        return all(map(x.holds, form.values.flatten().unique().tolist()))
    return False


def _on_one_grid(c: Compiler, forms: list[Form], x: Term, together: Callable) -> Sum:
    terms = [t for f in forms if isinstance(f, Sum) and (t := f.grid) is not None]
    low, high = min(t.low for t in terms), max(t.high for t in terms)
    like, nodes = terms[0].node, []
    if len({(t.low, t.high) for t in terms}) > 1:  # they may be stored in different types
        like = c.graph.call_method("int", (like,))
    for form in forms:
        if isinstance(form, Filled):
            new = c.module("filled", kernels.Fill(x.level(form.value)), (form.node, like))
        elif isinstance(form, Parameter):
            levels = torch.round(form.values.double() / x.scale) + x.zero
            new = c.graph.call_method("type_as", (c.buffer(levels.int()), like))
        else:
            assert isinstance(form, Sum)
            new = form.terms[0].node
            if like is not terms[0].node:
                new = c.graph.call_method("int", (new,))
        nodes.append(new)
    return Sum((Term(together(nodes), x.scale, x.zero, low, high),))


def _hidden_where(
    c: Compiler, forms: list[Form], x: Term, mask: Filled, together: Callable
) -> Hidden | Pieces:
    """where(seen, scores, -inf)."""
    first = isinstance(forms[0], Sum)

    def fill(new: fx.Node, level: int) -> fx.Node:
        filled = c.module("filled", kernels.Fill(level), (mask.node, new))
        return together([new, filled] if first else [filled, new])

    try:
        return hide(c, x, mask.value, fill)
    except Island:
        return Pieces(tuple(forms), together)
