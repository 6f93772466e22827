"""Constants that a network spreads over its batch: known before it runs, but for their number.

A network that makes its mask from positions gives every sample the same one. The size of the batch
alone decides such a tensor, so its one row is a constant, and an operator on elements spreads it:

    mask = f(positions.expand(batch, -1))    ->    constant.expand(batch, ...)
    scores + constant.expand(batch, ...)     ->    scores + constant
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.graph import call, replace

aten = torch.ops.aten

_ELEMENTWISE = frozenset("to masked_fill logical_not logical_and logical_or __and__ __or__".split())


def fold_spread(gm: fx.GraphModule) -> fx.GraphModule:
    """Write such tensors as constants; ``gm`` is changed and returned."""
    known = _decided(gm)
    ends = [n for n in known if any(user not in known for user in n.users)]
    ends = [n for n in ends if isinstance(n.meta.get("val"), Tensor) and _size(n) is not None]
    ends = [n for n in ends if known[n]]
    two, three = (_values(known, size) if ends else {} for size in (2, 3))
    found = {n: row for n in ends if (row := _row(n, two, three)) is not None}
    for node, row in found.items():
        path, _ = graph.module_of(node)
        name = graph.unused(gm, f"{path}.made_{node.name}".lstrip("."))
        graph.put(gm, name, row, trained=False)
        with gm.graph.inserting_before(node):
            new = gm.graph.get_attr(name)
        new.meta["val"] = row
        sizes = [_size(node), *[-1] * (row.ndim - 1)]
        replace(node, call(node, aten.expand.default, new, sizes))
    for node in list(gm.graph.nodes):
        _spread_later(node)
    return graph.tidy(gm)


def _decided(gm: fx.GraphModule) -> dict[fx.Node, bool]:
    """What buffers and the batch size decide: {node: whether the size is in it}."""
    known: dict[fx.Node, bool] = {}
    letter = None
    for node in gm.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            if not _trained(node):
                known[node] = False
        elif graph.op(node) == "sym_size" and inputs[0].op == "placeholder" and node.args[1] == 0:
            letter = letter or str(node.meta["val"])
            if str(node.meta["val"]) == letter:
                known[node] = True
        elif node.op == "call_function" and all(x in known for x in inputs):
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if not random and not graph.is_layer(node) and graph.op(node) != "empty":
                known[node] = any(known[x] for x in inputs)
    return known


def _size(node: fx.Node) -> Any:
    """The node that says how many samples a decided tensor has in its first dimension, if any."""
    shape = graph.shape_of(node)
    if not shape or graph.is_fixed(shape[0]):
        return None
    sizes = (n for n in node.graph.nodes if graph.op(n) == "sym_size" and n.args[1] == 0)
    return next((n for n in sizes if str(n.meta["val"]) == str(shape[0])), None)


def _row(node: fx.Node, two: dict[fx.Node, Any], three: dict[fx.Node, Any]) -> Tensor | None:
    """What a tensor has for each of two and of three samples, where that is the same for all."""
    made = graph.traits(node).role == "make"
    if made or (graph.op(node) == "expand" and node.args[0].op == "get_attr"):
        return None  # that is its form already
    row = two[node][:1]
    if row.numel() > 2**22 or (row.is_floating_point() and bool((row == row.flatten()[0]).all())):
        return None  # one number everywhere is a maker's, as ``zeros``
    alike = all(torch.equal(v[node], row.expand_as(v[node])) for v in (two, three))
    return row.clone() if alike else None


@torch.no_grad()
def _values(known: dict[fx.Node, bool], size: int) -> dict[fx.Node, Any]:
    """The value of each decided node for a batch of that size."""
    values: dict[fx.Node, Any] = {}
    for node in known:
        if node.op == "get_attr":
            values[node] = graph.get(node.graph.owning_module, node.target)
        elif graph.op(node) == "sym_size" and node.args[0].op == "placeholder":
            values[node] = size
        else:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return values


def _spread_later(node: fx.Node) -> None:
    """An operator on elements takes the one row, and its result is spread where that is needed."""
    of = graph.traits(node)
    copies = graph.op(node) in ("contiguous", "clone")
    fits = (of.masks and of.role != "move") or graph.op(node) in _ELEMENTWISE or copies
    rows = [x for x in node.all_input_nodes if graph.op(x) == "expand" and _one_row(x)]
    if not rows or not fits:
        return
    args, kwargs = fx.map_arg(
        (node.args, dict(node.kwargs)), lambda x: x.args[0] if x in rows else x
    )
    if graph.op(node) == "masked_fill" and node.args[0] in rows and not _one_row(node.args[1]):
        return
    new = call(node, node.target, *args, **kwargs)
    shape, one = (list(map(str, graph.shape_of(n))) for n in (node, new))
    if one == shape:
        replace(node, new)
    elif one == ["1", *shape[1:]]:
        sizes = [rows[0].args[1][0], *[-1] * (len(one) - 1)]
        replace(node, call(node, aten.expand.default, new, sizes))


def _one_row(x: fx.Node) -> bool:
    """Whether it is one row, spread over the batch or not spread yet; not one that is trained."""
    x = x.args[0] if graph.op(x) == "expand" else x
    if _trained(x):
        return False
    shape = graph.shape_of(x)
    return not shape or str(shape[0]) == "1"


def _trained(x: fx.Node) -> bool:
    if x.op != "get_attr":
        return False
    return isinstance(graph.get(x.graph.owning_module, x.target), torch.nn.Parameter)
