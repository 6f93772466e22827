"""What libraries spell out, or hide in one large operator, as the operators that passes know.

    x / sqrt(mean(x^2) + eps) * w      rms_norm, over any one dimension
    (x - mean(x)) / sqrt(...) * w + b  layer_norm
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

IDIOMS = frozenset(("glu", "embedding_bag"))
"""The large operators among them."""


def write_idioms(gm: fx.GraphModule) -> fx.GraphModule:
    """All of these; ``gm`` is changed and returned."""
    for node in list(gm.graph.nodes):
        kind = graph.op(node)
        if kind in ("mul", "div"):
            replace(node, _norm(node))
        elif kind == "glu":
            replace(node, _glu(node))
        elif kind == "embedding_bag":
            _embedding_bag(node)
    for node in list(gm.graph.nodes):
        if graph.op(node) in ("mul", "add"):
            _take(gm, node)
    return graph.tidy(gm)


def _norm(node: fx.Node) -> fx.Node | None:
    """x rsqrt(mean(x^2) + eps), in any order, or x / sqrt(...); and so with x - mean(x) for x."""
    for x, factor in (node.args[:2], node.args[1::-1]):
        if graph.op(node) == "mul":
            inner = _under_root(factor)
        else:
            inner = factor.args[0] if graph.op(factor) == "sqrt" else None
        if inner is None or (graph.op(node) == "div" and x is not node.args[0]):
            continue
        if (found := _mean_square(inner)) is None:
            continue
        of, centered, dim, eps = found
        if (_centered(x, dim) if centered else x) is of:
            return _norm_along(node, of, centered, dim, eps)
    return None


def _norm_along(node: fx.Node, x: fx.Node, centered: bool, dim: int, eps: float) -> fx.Node:
    last, width = len(graph.shape_of(x)) - 1, [int(graph.shape_of(x)[dim])]
    x = x if dim == last else call(node, aten.transpose.int, x, dim, last)
    if centered:
        y = call(node, aten.layer_norm.default, x, width, None, None, eps, False)
    else:
        y = call(node, aten.rms_norm.default, x, width, None, eps)
    return y if dim == last else call(node, aten.transpose.int, y, dim, last)


def _under_root(node: Any) -> fx.Node | None:
    """What 1 / sqrt is taken of."""
    kind = graph.op(node) if isinstance(node, fx.Node) else ""
    if kind == "rsqrt" or (kind == "pow" and node.args[1] == -0.5):
        return node.args[0]
    if kind == "reciprocal" and graph.op(node.args[-1]) == "sqrt":
        return node.args[-1].args[0]
    return None


def _mean_square(node: fx.Node) -> tuple[fx.Node, bool, int, float] | None:
    """Of mean(x^2, dim, keepdim=True) + eps: x, whether its mean is taken off, dim and eps."""
    if graph.op(node) != "add" or not isinstance(node.args[1], (int, float)) or node.kwargs:
        return None
    mean, eps = node.args[0], float(node.args[1])
    if graph.op(mean) == "var":
        x, biased = mean.args[0], graph.argument(mean, 2, "unbiased", True) is False
        biased = biased or mean.kwargs.get("correction") == 0
        dim = _one_dim(mean, graph.argument(mean, 3, "keepdim", False))
        return None if dim is None or not biased else (x, True, dim, eps)
    if (dim := _dim_of_mean(mean)) is None:
        return None
    square = mean.args[0]
    kind, args = graph.op(square), square.args
    squared = kind == "square" or (kind == "pow" and args[1] == 2)
    if not (squared or (kind == "mul" and args[0] is args[1])):
        return None
    x = _centered(args[0], dim)
    return (args[0], False, dim, eps) if x is None else (x, True, dim, eps)


def _centered(node: fx.Node, dim: int) -> fx.Node | None:
    """The x of x - mean(x)."""
    if graph.op(node) != "sub" or node.kwargs or len(node.args) != 2:
        return None
    x, mean = node.args
    return x if _dim_of_mean(mean) == dim and mean.args[0] is x else None


def _dim_of_mean(mean: Any) -> int | None:
    if graph.op(mean) != "mean":
        return None
    return _one_dim(mean, graph.argument(mean, 2, "keepdim", False))


def _one_dim(node: fx.Node, keepdim: bool) -> int | None:
    """The one dimension, of fixed size, that is averaged over and kept."""
    shape, dims = graph.shape_of(node.args[0]), graph.argument(node, 1, "dim")
    if keepdim is not True or not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return None
    dim = dims[0] % len(shape)
    return dim if graph.is_fixed(shape[dim]) else None


def _take(gm: fx.GraphModule, node: fx.Node) -> None:
    """norm(x) w + b with parameters w and b is one operator."""
    at = 2 if graph.op(node) == "mul" else 3
    for y, w in (node.args[:2], node.args[1::-1]):
        turned = graph.op(y) == "transpose"
        norm = y.args[0] if turned else y
        if graph.op(norm) not in ("rms_norm", "layer_norm")[at - 2 :] or node.kwargs:
            continue
        args = list(norm.args)
        if len(y.users) > 1 or len(norm.users) > 1 or len(args) <= at or args[at] is not None:
            continue
        if at == 2 and args[3:] and isinstance(args[3], fx.Node):
            continue
        dims, dim = len(graph.shape_of(y)), y.args[1] if turned else -1
        if not isinstance(w, fx.Node) or w.op != "get_attr" or len(args[1]) != 1:
            continue
        shape = [1] * (dims - len(graph.shape_of(w))) + list(graph.shape_of(w))
        if shape != [args[1][0] if k == dim % dims else 1 for k in range(dims)]:
            continue
        if len(graph.shape_of(w)) > 1:
            if len(w.users) > 1:
                continue
            graph.put(gm, str(w.target), graph.get(gm, w.target).detach().flatten())
            w.meta["val"] = w.meta["val"].flatten()
        args[at] = w
        new = call(node, norm.target, *args)
        replace(node, call(node, y.target, new, *y.args[1:]) if turned else new)
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
