"""One form for what networks write in many: products with parameters, sums over indices, attention.

The passes know layers (``linear``, a weight of its own) and products of two tensors (``matmul``).
Libraries write the same as ``addmm``, ``x @ w + b``, ``w @ x``, ``einsum`` or one large operator;
here they all become the two. The function of the network does not change.
"""

from __future__ import annotations

import string

import torch
from torch import fx

from minq import graph
from minq.graph import call, is_constant, mark_constants, replace

aten = torch.ops.aten


def rewrite(gm: fx.GraphModule) -> fx.GraphModule:
    """All rewritings of this file; ``gm`` is changed and returned."""
    mark_constants(gm)
    for node in list(gm.graph.nodes):
        write = WRITERS.get(graph.op(node))
        if write is not None:
            replace(node, write(node))
    for node in list(gm.graph.nodes):
        if graph.op(node) == "add":
            _take_bias(node)
    return graph.tidy(gm)


def _dims(node: fx.Node) -> int:
    return len(graph.shape_of(node))


# --- Products with parameters ---------------------------------------------------------------------


def _product(node: fx.Node) -> fx.Node | None:
    """x W = linear(x, W^T), and W x = linear(x^T, W)^T for a parameter W."""
    return _matrices(node, *node.args[:2])


def _vectors(node: fx.Node) -> fx.Node:
    """W x of a matrix and a vector, as mv has it."""
    return _product(node) or call(node, aten.matmul.default, *node.args[:2])


def _inner(node: fx.Node) -> fx.Node | None:
    """Sums over the last dimension of both, as ``x @ W.T``."""
    a, b = node.args[:2]
    if not 0 < _dims(b) <= 2 or not _dims(a):
        return None
    b = b if _dims(b) == 1 else call(node, aten.transpose.int, b, 0, 1)
    return _matrices(node, a, b) or call(node, aten.matmul.default, a, b)


def _matrices(node: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node | None:
    if is_constant(b) and not is_constant(a) and _dims(b) == 2:
        return call(node, aten.linear.default, a, _transposed(node, b))
    if is_constant(a) and not is_constant(b) and _dims(a) == 2:
        if _dims(b) == 1:
            return call(node, aten.linear.default, b, a)
        columns = call(node, aten.transpose.int, b, -2, -1)
        return call(node, aten.transpose.int, call(node, aten.linear.default, columns, a), -2, -1)
    return None


def _transposed(node: fx.Node, w: fx.Node) -> fx.Node:
    """W^T; where W itself is one, what it was made of."""
    swaps = graph.op(w) in ("t", "transpose", "permute", "numpy_T") and w.all_input_nodes
    if swaps and _dims(w.args[0]) == 2 and list(w.args[1:]) not in ([[0, 1]], [[-2, -1]]):
        return w.args[0]
    return call(node, aten.transpose.int, w, 0, 1)


def _sum_and_product(node: fx.Node) -> fx.Node:
    """beta c + alpha a b, as addmm, baddbmm and addmv have it."""
    c, a, b = node.args[:3]
    beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
    if beta == alpha == 1 and is_constant(b) and _dims(b) == 2 and not is_constant(a):
        if is_constant(c) and graph.shape_of(c) == graph.shape_of(b)[1:]:
            return call(node, aten.linear.default, a, _transposed(node, b), c)
    product = _matrices(node, a, b) or call(node, aten.matmul.default, a, b)
    if alpha != 1:
        product = call(node, aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    c = c if beta == 1 else call(node, aten.mul.Tensor, c, beta)
    return call(node, aten.add.Tensor, product, c)


def _take_bias(node: fx.Node) -> None:
    """linear(x, W) + b = linear(x, W, b) for a vector b of parameters."""
    for layer, b in (node.args[:2], node.args[1::-1]):
        if node.kwargs.get("alpha", 1) != 1 or not is_constant(b) or is_constant(layer):
            continue
        if not isinstance(layer, fx.Node) or graph.op(layer) != "linear":
            continue
        size = graph.shape_of(layer)[-1:]
        if len(layer.args) == 2 and not layer.kwargs and len(layer.users) == 1:
            if is_constant(layer.args[1]) and graph.shape_of(b) == size and graph.is_float(b):
                replace(node, call(node, aten.linear.default, *layer.args, b))
                return


def _layer_of_data(node: fx.Node) -> fx.Node | None:
    """A linear layer whose weight is computed from the input is a product of two tensors."""
    x, w, b = (*node.args, None)[:3]
    if is_constant(w) or _dims(w) != 2:
        return None
    product = call(node, aten.matmul.default, x, call(node, aten.transpose.int, w, 0, 1))
    return product if b is None else call(node, aten.add.Tensor, product, b)


# --- Sums over indices ----------------------------------------------------------------------------


def _einsum(node: fx.Node) -> fx.Node | None:
    """A product of two tensors in the notation of indices, as permutations around a matmul.

    With indices of both tensors and the result (batch), of one and the result (rows, columns), and
    of both alone (summed): (batch, rows, summed) (batch, summed, columns). Of more tensors two by
    two, from the first that is data; others stay.
    """
    if (found := _indices(node)) is None:
        return None
    *terms, out = found
    left = sorted(zip(node.args[1], terms, strict=True), key=lambda pair: is_constant(pair[0]))
    x, of_x = left.pop(0)
    while left:
        k = next((k for k, (_, of) in enumerate(left) if set(of) & set(of_x)), 0)
        y, of_y = left.pop(k)
        read = {i for _, of in left for i in of} | set(out)
        result = [i for i in dict.fromkeys(of_x + of_y) if i in read] if left else out
        if not set(of_x) ^ set(of_y) <= set(result) <= set(of_x + of_y):
            return None  # an index of one alone is summed
        if (x := _contracted(node, x, y, of_x, of_y, result)) is None:
            return None
        of_x = result
    return x


def _tensordot(node: fx.Node) -> fx.Node | None:
    """A product of two tensors that names the dimensions that are summed."""
    a, b, *dims = node.args[:4]
    of_a, of_b = list(range(_dims(a))), list(range(_dims(a), _dims(a) + _dims(b)))
    for i, j in zip(*dims, strict=True):
        of_b[j] = of_a[i]
    out = [i for i in of_a + of_b if (i in of_a) != (i in of_b)]
    return _contracted(node, a, b, of_a, of_b, out)


def _contracted(
    node: fx.Node, a: fx.Node, b: fx.Node, of_a: list, of_b: list, out: list
) -> fx.Node | None:
    """The product of two tensors, by the indices of both and of the result."""
    batch = [i for i in out if i in of_a and i in of_b]
    rows = [i for i in out if i in of_a and i not in of_b]
    columns = [i for i in out if i in of_b and i not in of_a]
    summed = [i for i in of_a if i in of_b and i not in out]
    if is_constant(a) and not is_constant(b):
        a, b, of_a, of_b, rows, columns = b, a, of_b, of_a, columns, rows
    sizes = dict(zip(of_a + of_b, graph.shape_of(a) + graph.shape_of(b), strict=True))
    if not summed:
        both = _spread(node, a, of_a, out), _spread(node, b, of_b, out)
        return call(node, aten.mul.Tensor, *both)
    rows.sort(key=lambda i: graph.is_fixed(sizes[i]))  # the batch, wherever it lies, first
    if not all(graph.is_fixed(sizes[i]) for i in [*rows[1:], *columns, *summed]):
        return None
    if is_constant(b) and not batch and not is_constant(a):
        x = _grouped(node, a, of_a, [*([i] for i in rows), summed])
        y = call(node, aten.linear.default, x, _grouped(node, b, of_b, [columns, summed]))
        order = [*rows, *columns]
    else:
        x = _grouped(node, a, of_a, [*([i] for i in batch), rows, summed])
        w = _grouped(node, b, of_b, [*([i] for i in batch), summed, columns])
        y = call(node, aten.matmul.default, x, w)
        order = [*batch, *rows, *columns]
        y = _split(node, y, len(batch), [sizes[i] for i in rows])
    y = _split(node, y, len(order) - len(columns), [sizes[i] for i in columns])
    return _permuted(node, y, [order.index(i) for i in out])


def _indices(node: fx.Node) -> list[list] | None:
    """The letters of each tensor and of the result; None where it is no plain product."""
    equation, tensors = node.args[0].replace(" ", ""), node.args[1]
    sides, arrow, out = equation.partition("->")
    terms = sides.split(",")
    if len(tensors) < 2:
        return None
    if not arrow:  # all letters that appear once
        once = sorted(c for c in sides if c.isalpha() and sides.count(c) == 1)
        out = "".join(["..." * ("..." in sides), *once])
    dots = [_dims(x) - len(t) + 3 for x, t in zip(tensors, terms, strict=True) if "..." in t]
    if len(set(dots)) > 1 or (dots and "..." not in out):
        return None
    free = [c for c in string.ascii_letters if c not in equation]
    several = "".join(free[: dots[0]]) if dots else ""
    found = [list(t.replace("...", several)) for t in (*terms, out)]
    return found if all(len(set(t)) == len(t) for t in found) else None


def _spread(node: fx.Node, x: fx.Node, of: list, out: list) -> fx.Node:
    """Its dimensions in the order of the result, with 1 for those that it has not."""
    x = _permuted(node, x, [of.index(i) for i in out if i in of])
    for k, i in enumerate(out):
        if i not in of:
            x = call(node, aten.unsqueeze.default, x, k)
    return x


def _grouped(node: fx.Node, x: fx.Node, of: list, groups: list[list]) -> fx.Node:
    """Dimensions in this order, each group as one."""
    x = _permuted(node, x, [of.index(i) for group in groups for i in group])
    for k, group in enumerate(groups):
        if not group:
            x = call(node, aten.unsqueeze.default, x, k)
        elif len(group) > 1:
            x = call(node, aten.flatten.using_ints, x, k, k + len(group) - 1)
    return x


def _split(node: fx.Node, x: fx.Node, at: int, sizes: list) -> fx.Node:
    """The inverse for one group."""
    if not sizes:
        return call(node, aten.squeeze.dim, x, at)
    if len(sizes) == 1:
        return x
    sizes = [-1, *map(int, sizes[1:])]
    return call(node, aten.unflatten.int, x, at, sizes)


def _permuted(node: fx.Node, x: fx.Node, order: list[int]) -> fx.Node:
    straight = order == list(range(len(order)))
    return x if straight else call(node, aten.permute.default, x, order)


# --- Attention ------------------------------------------------------------------------------------


def spell_out_attention(node: fx.Node) -> fx.Node | None:
    """softmax(Q K^T / sqrt(d) + mask) V as its operators, so that each can be quantized.

    With ``is_causal`` no query sees a later key; with ``enable_gqa`` several queries share a key. A
    query that sees no key at all, as padding may be, gets zeros: the softmax of nothing but
    -infinity would be no number. None, which leaves the operator, where it draws random numbers.
    """
    q, k, v = node.args[:3]
    mask, dropout = graph.argument(node, 3, "attn_mask"), graph.argument(node, 4, "dropout_p", 0.0)
    causal, scale = graph.argument(node, 5, "is_causal", False), node.kwargs.get("scale")
    rows, columns = graph.shape_of(q)[-2], graph.shape_of(k)[-2]
    if dropout or (causal and not (graph.is_fixed(rows) and graph.is_fixed(columns))):
        return None
    if node.kwargs.get("enable_gqa") and _dims(q) > 2:
        shared = int(graph.shape_of(q)[-3]) // int(graph.shape_of(k)[-3])
        if shared > 1:
            k, v = (call(node, aten.repeat_interleave.self_int, x, shared, -3) for x in (k, v))
    scale = graph.shape_of(q)[-1] ** -0.5 if scale is None else scale
    scores = call(node, aten.matmul.default, q, call(node, aten.transpose.int, k, -2, -1))
    scores = call(node, aten.mul.Tensor, scores, scale)
    blind = None
    if mask is not None and graph.is_float(mask):
        scores = call(node, aten.add.Tensor, scores, mask)
    elif mask is not None:
        hidden = call(node, aten.logical_not.default, mask)
        lowest = torch.finfo(node.meta["val"].dtype).min
        scores = call(node, aten.masked_fill.Scalar, scores, hidden, lowest)
        blind = call(node, aten.all.dim, hidden, -1, True)
    if causal:
        place = {"dtype": torch.bool, "device": node.meta["val"].device}
        ones = call(node, aten.ones.default, [int(rows), int(columns)], **place)
        hidden = call(node, aten.triu.default, ones, 1)
        scores = call(node, aten.masked_fill.Scalar, scores, hidden, float("-inf"))
    y = call(node, aten.matmul.default, call(node, aten.softmax.int, scores, -1), v)
    return y if blind is None else call(node, aten.masked_fill.Scalar, y, blind, 0.0)


def _copied(node: fx.Node) -> fx.Node | None:
    """What is written over another tensor of its shape and kind."""
    old, new = (x.meta["val"] for x in node.args[:2])
    return node.args[1] if (old.shape, old.dtype) == (new.shape, new.dtype) else None


def _without_empty(node: fx.Node) -> fx.Node | None:
    """Empty tensors beside others add nothing: a cache of keys may begin as ``tensor([])``."""
    parts = [x for x in node.args[0] if "0" not in map(str, graph.shape_of(x))]
    kind = node.meta["val"].dtype
    if len(parts) in (0, len(node.args[0])) or any(x.meta["val"].dtype != kind for x in parts):
        return None
    return parts[0] if len(parts) == 1 else call(node, aten.cat.default, parts, *node.args[1:])


WRITERS = {
    "mm": _product,
    "matmul": _product,
    "mv": _vectors,
    "inner": _inner,
    "tensordot": _tensordot,
    "addmm": _sum_and_product,
    "addmv": _sum_and_product,
    "baddbmm": _sum_and_product,
    "linear": _layer_of_data,
    "einsum": _einsum,
    "copy": _copied,
    "cat": _without_empty,
    "scaled_dot_product_attention": spell_out_attention,
}
