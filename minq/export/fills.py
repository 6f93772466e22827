"""One form for masks: masked_fill behind all else that is added, whatever a network writes.

where(c, x, v)                      masked_fill(x, not c, v)
x + where(c, y, -1e9)               masked_fill(x + y, not c, -1e9)    in front of a softmax
x + (0 or -infinity)                masked_fill(x, hidden, -inf)       in front of a softmax
x + masked_fill(y, hidden, -1e9)    masked_fill(x + y, hidden, -1e9)   in front of a softmax
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.graph import call, replace

aten = torch.ops.aten


def write_as_fill(gm: fx.GraphModule) -> fx.GraphModule:
    """masked_fill in place of where with a number, and of a mask that is added in front of softmax.

    where(c, x, v) = masked_fill(x, not c, v). A constant that holds zeros and one number of -1000
    or less, and no row without a zero, hides what -infinity hides. ``gm`` is changed and returned.
    """
    for node in list(gm.graph.nodes):
        kind = graph.op(node)
        if kind == "where" and len(node.args) == 3 and graph.is_float(node):
            condition, a, b = node.args
            for x, other, inverted in ((a, b, True), (b, a, False)):
                value = graph.constant_number(other)
                if value is None or not _like(x, node) or not _flags(condition):
                    continue
                hides = call(node, aten.logical_not.default, condition) if inverted else condition
                replace(node, call(node, aten.masked_fill.Scalar, x, hides, value))
                break
        elif kind in ("add", "sub") and not node.kwargs and len(node.args) == 2:
            _fill(gm, node)
    for node in list(gm.graph.nodes):
        if graph.op(node) == "masked_fill" and node.args[1].op == "get_attr":
            if not graph.get(gm, node.args[1].target).any() and _like(node.args[0], node):
                replace(node, node.args[0])
        elif graph.op(node) == "add" and not node.kwargs:
            _fill_last(node)
    return graph.tidy(gm)


def _fill_last(node: fx.Node) -> None:
    """A sum of scores and of what is hidden already: hidden later, the sum is data."""
    for x, filled in (node.args[:2], node.args[1::-1]):
        moved = filled
        while isinstance(moved, fx.Node) and graph.op(moved) in ("contiguous", "clone", "to"):
            moved = moved.args[0]
        found = _filled(moved) if _like(x, node) and _before_softmax(node) else None
        if found is None or graph.op(x) == "masked_fill":
            continue
        data, flags, inverted, value = found
        if value > -1e9:
            continue  # beside less, a score still counts
        hides = call(node, aten.logical_not.default, flags) if inverted else flags
        nothing = graph.constant_number(data) == 0
        total = x if nothing else call(node, aten.add.Tensor, x, data)
        replace(node, call(node, aten.masked_fill.Scalar, total, hides, value))
        return


def _filled(node: Any) -> tuple[fx.Node, fx.Node, bool, float] | None:
    """What is filled up, the flags that say where, whether where they are not, and the number."""
    if graph.op(node) == "masked_fill":
        found = node.args[0], node.args[1], False, node.args[2]
    elif graph.op(node) == "where" and len(node.args) == 3 and _flags(node.args[0]):
        found = node.args[1], node.args[0], True, graph.constant_number(node.args[2])
    else:
        return None
    real = isinstance(found[0], fx.Node) and graph.is_float(found[0])
    return found if real and isinstance(found[3], int | float) else None


def _before_softmax(node: fx.Node) -> bool:
    """Whether all that reads the node is a softmax over its last dimension."""
    last = len(graph.shape_of(node)) - 1 if graph.is_float(node) else 0
    return bool(node.users) and all(
        graph.op(u) == "softmax" and u.args[1] % (last + 1) == last for u in node.users
    )


def _fill(gm: fx.GraphModule, node: fx.Node) -> None:
    if not _before_softmax(node):
        return
    x, mask = node.args if graph.op(node) == "sub" or _constant(node.args[1]) else node.args[::-1]
    if not _constant(mask) or not isinstance(x, fx.Node) or not _like(x, node):
        return
    value = graph.get(gm, mask.target).detach() * (-1 if graph.op(node) == "sub" else 1)
    low, zeros = float(value.min()), value == 0
    if low > -1e3 or not bool((zeros | (value == low)).all()) or not bool(zeros.any(-1).all()):
        return
    if graph.op(x) == "mul" and len(x.users) == 1:  # scores * seen, where seen is 1 or 0
        for scores, seen in (x.args[:2], x.args[1::-1]):
            if _constant(seen) and isinstance(scores, fx.Node) and _like(scores, x):
                factor = graph.get(gm, seen.target).detach()
                if bool(((factor == 1) | ((factor == 0) & ~zeros)).all()):
                    x = scores
                    break
    path, _, leaf = str(mask.target).rpartition(".")
    name = graph.unused(gm, f"{path}.hidden_by_{leaf}".lstrip("."))
    graph.put(gm, name, ~zeros, trained=False)
    with gm.graph.inserting_before(node):
        hides = gm.graph.get_attr(name)
    hides.meta["val"] = call(node, aten.ne.Scalar, mask, 0).meta["val"]
    replace(node, call(node, aten.masked_fill.Scalar, x, hides, -math.inf))


def _constant(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and graph.is_float(node)


def _like(x: Any, node: fx.Node) -> bool:
    """Whether x has the shape and the kind of the node."""
    if not isinstance(x, fx.Node) or not graph.is_float(x):
        return False
    a, b = x.meta["val"], node.meta["val"]
    return a.dtype == b.dtype and a.ndim == b.ndim and str(a.shape) == str(b.shape)


def _flags(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype is torch.bool
