"""What libraries spell out, or hide in one large operator, as the operators that passes know.

    x / sqrt(mean(x^2) + eps) * w      rms_norm
    glu(x)                             a sigmoid(b) of the two halves
    embedding_bag of equal bags        an embedding, and its sum, mean or maximum

The function of the network does not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from minq import graph
from minq.graph import call, replace

aten = torch.ops.aten


def write_idioms(gm: fx.GraphModule) -> fx.GraphModule:
    """All of these; ``gm`` is changed and returned."""
    for node in list(gm.graph.nodes):
        kind = graph.op(node)
        if kind in ("mul", "div"):
            replace(node, _rms_norm(node))
        elif kind == "glu":
            replace(node, _glu(node))
        elif kind == "embedding_bag":
            _embedding_bag(node)
    for node in list(gm.graph.nodes):
        if graph.op(node) == "mul":
            _take_weight(node)
    return graph.tidy(gm)


def _rms_norm(node: fx.Node) -> fx.Node | None:
    """x rsqrt(mean(x^2) + eps), in any order, or x / sqrt(...)."""
    for x, factor in (node.args[:2], node.args[1::-1]):
        if graph.op(node) == "mul":
            inner = _under_root(factor)
        else:
            inner = factor.args[0] if graph.op(factor) == "sqrt" else None
        found = None if inner is None else _mean_square(inner)
        if found is not None and found[0] is x and (graph.op(node) == "mul" or x is node.args[0]):
            width = int(graph.shape_of(x)[-1])
            return call(node, aten.rms_norm.default, x, [width], None, found[1])
    return None


def _under_root(node: Any) -> fx.Node | None:
    """What 1 / sqrt is taken of."""
    kind = graph.op(node) if isinstance(node, fx.Node) else ""
    if kind == "rsqrt" or (kind == "pow" and node.args[1] == -0.5):
        return node.args[0]
    if kind == "reciprocal" and graph.op(node.args[-1]) == "sqrt":
        return node.args[-1].args[0]
    return None


def _mean_square(node: fx.Node) -> tuple[fx.Node, float] | None:
    """x and eps of mean(x^2, -1, keepdim=True) + eps."""
    if graph.op(node) != "add" or not isinstance(node.args[1], (int, float)) or node.kwargs:
        return None
    mean, eps = node.args[:2]
    if graph.op(mean) != "mean" or graph.argument(mean, 2, "keepdim", False) is not True:
        return None
    square, dims = mean.args[0], graph.argument(mean, 1, "dim")
    last = len(graph.shape_of(square)) - 1
    if list(dims or ()) not in ([-1], [last]) or not graph.is_fixed(graph.shape_of(square)[-1]):
        return None
    kind, args = graph.op(square), square.args
    squared = kind == "square" or (kind == "pow" and args[1] == 2)
    squared = squared or (kind == "mul" and args[0] is args[1])
    return (args[0], float(eps)) if squared else None


def _take_weight(node: fx.Node) -> None:
    """rms_norm(x) w with a parameter w is one operator."""
    for y, w in (node.args[:2], node.args[1::-1]):
        if graph.op(y) != "rms_norm" or len(y.users) > 1 or graph.argument(y, 2, "weight"):
            continue
        if w.op == "get_attr" and list(graph.shape_of(w)) == list(y.args[1]):
            eps = graph.argument(y, 3, "eps")
            replace(node, call(node, aten.rms_norm.default, y.args[0], y.args[1], w, eps))
            return


def _glu(node: fx.Node) -> fx.Node | None:
    x, dim = node.args[0], graph.argument(node, 1, "dim", -1)
    if not graph.is_fixed(size := graph.shape_of(x)[dim]):
        return None
    half = int(size) // 2
    a, b = (call(node, aten.slice.Tensor, x, dim, k * half, (k + 1) * half) for k in (0, 1))
    return call(node, aten.mul.Tensor, a, call(node, aten.sigmoid.default, b))


def _embedding_bag(node: fx.Node) -> None:
    """Rows of indices, each a bag: torch lays them out in one and says where each begins."""
    weight, flat, begins, *rest = node.args
    scaled, mode, _, shares, _, padding = (*rest, *[None] * 6)[:6]
    if scaled or shares is not None or padding not in (None, -1) or graph.op(flat) != "reshape":
        return
    index = flat.args[0]
    sizes = graph.shape_of(index)
    if len(sizes) != 2 or graph.op(begins) != "arange" or begins.args[0] != 0:
        return
    if len(begins.args) != 3 or str(begins.args[2]) != str(sizes[1]):
        return
    rows = call(node, aten.embedding.default, weight, index)
    total = {0: aten.sum.dim_IntList, 1: aten.mean.dim, 2: aten.amax.default}[mode or 0]
    new = call(node, total, rows, [1])
    for user in list(node.users):
        if graph.op(user) == "getitem" and user.args[1] == 0:
            user.replace_all_uses_with(new)
