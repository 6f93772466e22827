"""Operators that overwrite a tensor, rewritten as operators that give a new one.

    y = x[:, 2:4]; y.fill_(7)      becomes      x = slice_scatter(x, fill(x[:, 2:4], 7), 1, 2, 4)

Whoever reads the tensor afterwards, itself or through a view, reads the new one.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from minq import graph


def functional(gm: fx.GraphModule) -> bool:
    """Rewrite all operators in place; False where one of them needs ``run_decompositions``.

    In that case the graph is left half changed.
    """
    for node in list(gm.graph.nodes):
        if overwrites(node) and not _rewrite(gm.graph, node):
            return False
    return True


def overwrites(node: fx.Node) -> bool:
    """Whether the node writes its result into its first argument."""
    name = graph.op(node)
    return name.endswith("_") and not name.endswith("__") and name != "detach_"


def _is_view(node: Any) -> bool:
    """Whether the node's result may show the storage of its first argument."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _rewrite(ops: fx.Graph, node: fx.Node) -> bool:
    path, root = [], node.args[0]
    while _is_view(root):
        path.append(root)
        root = root.args[0]
    backs = [_write_back(view) for view in path]
    if not isinstance(root, fx.Node) or None in backs:
        return False
    order = {x: k for k, x in enumerate(ops.nodes)}  # what is made below comes before the node

    def later(x: fx.Node) -> list[fx.Node]:
        return [user for user in x.users if order.get(user, -1) > order[node]]

    aliases = [root]
    for x in ops.nodes:
        if order.get(x, -1) < order[node] and _is_view(x) and x.args[0] in aliases:
            aliases.append(x)
    if any(graph.traits(x).view == "maybe" and later(x) for x in aliases[1:]):
        return False
    with ops.inserting_before(node):
        value = _new_value(ops, node)
        for view, back in zip(path, backs, strict=True):
            parent, (scatter, args, kwargs) = view.args[0], back or (None, (), {})
            if scatter is not None:
                value = _like(ops, parent, scatter, (parent, value, *args), kwargs)
    # Views of the old tensor that are read later are taken again, of the new one.
    now = {root: value}
    for x in aliases[1:]:
        if later(x) or (x is node.args[0] and node.users):
            for view in _chain(x, now):
                with ops.inserting_before(node):
                    args = (now[view.args[0]], *view.args[1:])
                    now[view] = _like(ops, view, view.target, args, view.kwargs)
    for x in aliases:
        for user in later(x):
            user.replace_input_with(x, now[x])
    if node.users:
        node.replace_all_uses_with(now[node.args[0]])
    ops.erase_node(node)
    return True


def _chain(view: fx.Node, known: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """The views from what is known to this one, in order."""
    found = []
    while view not in known:
        found.append(view)
        view = view.args[0]
    return found[::-1]


def _write_back(view: fx.Node) -> tuple | None:
    """(operator, arguments, keywords) that puts what a view shows into the tensor behind it."""
    kind, aten = graph.op(view), torch.ops.aten
    if graph.traits(view).view == "always":
        return None, (), {}
    if kind == "slice":
        return aten.slice_scatter.default, view.args[1:], view.kwargs
    if kind == "select":
        return aten.select_scatter.default, view.args[1:], view.kwargs
    if kind == "narrow" and all(isinstance(a, int) for a in view.args[1:]):
        dim, start, length = view.args[1:]
        return aten.slice_scatter.default, (dim, start, start + length), {}
    return None


def _new_value(ops: fx.Graph, node: fx.Node) -> fx.Node:
    """The operator without its underscore."""
    target, aten = node.args[0], torch.ops.aten
    if graph.op(node) == "copy_" and isinstance(node.args[1], fx.Node):
        source = node.args[1]
        (shape, dtype), (own_shape, own_dtype) = _kind_of(source), _kind_of(target)
        if dtype != own_dtype:
            source = _like(ops, target, aten.to.dtype, (source, own_dtype), {}, stack=node)
        if shape != own_shape:
            source = _like(ops, target, aten.expand_as.default, (source, target), {}, stack=node)
        return source
    packet = getattr(aten, graph.op(node)[:-1])
    functional = getattr(packet, node.target._overloadname)
    return _like(ops, target, functional, node.args, node.kwargs, stack=node)


def _kind_of(node: fx.Node) -> tuple:
    value = node.meta["val"]
    return tuple(map(str, value.shape)), value.dtype


def _like(
    ops: fx.Graph, known: fx.Node, target: Any, args: Any, kwargs: Any, stack: fx.Node | None = None
) -> fx.Node:
    """A new node whose value has the shape of a known one's."""
    new = ops.call_function(target, tuple(args), dict(kwargs))
    new.meta.update(known.meta if stack is None else stack.meta)
    new.meta["val"] = known.meta.get("val")
    return new
