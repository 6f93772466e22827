"""What ``torch.export`` gives as a plain graph: nothing wrapped, one form for each thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from minq import graph
from minq.export.refusals import refuse_operators
from minq.graph import Network


def plain(module: fx.GraphModule) -> tuple[Network, str]:
    """A fresh graph of the exported one.

    Returns:
        The network, and the type that autocast inside of ``forward`` asked for, "" for none.
    """
    module.graph._tracer_cls = None  # export's own can only be made by export: pickling needs one
    gm = Network(module, module.graph)
    graph.note_network(gm, captured=True)
    autocast = _inline(gm)
    refuse_operators(gm)
    ops = gm.graph
    for node in list(ops.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            ops.erase_node(node)
        elif graph.op(node) == "_assert_tensor_metadata":
            ops.erase_node(node)
        elif graph.op(node) == "to" and _same_kind(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
            ops.erase_node(node)
        elif graph.op(node) in ("detach_", "lift_fresh_copy", "alias"):
            node.replace_all_uses_with(node.args[0])
            ops.erase_node(node)
        elif graph.op(node) in ("view", "_unsafe_view"):
            # a view asks for strides that another device lacks
            node.target = torch.ops.aten.reshape.default
        elif graph.op(node) == "_native_batch_norm_legit_no_training":
            _old_batch_norm(ops, node)
    return gm, autocast


_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint")


def _inline(gm: Network) -> str:
    """What stands under no_grad, autocast or a checkpoint, as if it stood outside.

    Returns the type that autocast asked for, "" for none.
    """
    autocast = ""
    while wrapped := [n for n in gm.graph.nodes if graph.op(n) in _WRAPPERS]:
        for node in wrapped:
            if graph.op(node) == "wrap_with_autocast" and node.args[2]:
                autocast = str(node.args[1])
            where = [k for k, a in enumerate(node.args) if _holds_graph(gm, a)]
            inner = graph.get(gm, node.args[where[0]].target)
            _paste(gm, inner, node, list(node.args[where[0] + 1 :]))
    return autocast


def _holds_graph(gm: Network, x: Any) -> bool:
    if not isinstance(x, fx.Node) or x.op != "get_attr":
        return False
    return isinstance(graph.get(gm, x.target), fx.GraphModule)


def _paste(gm: Network, inner: fx.GraphModule, node: fx.Node, operands: list[Any]) -> None:
    """Put the nodes of an inner graph in place of the node that calls it."""
    inputs = [n for n in inner.graph.nodes if n.op == "placeholder"]
    known = dict(zip(inputs, operands, strict=True))
    for x in inner.graph.nodes:
        if x.op == "get_attr":
            name = graph.unused(gm, x.target)
            setattr(gm, name, graph.get(inner, x.target))
            x.target = name
    with gm.graph.inserting_before(node):
        results = gm.graph.graph_copy(inner.graph, known)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _same_kind(a: fx.Node, b: fx.Node) -> bool:
    a, b = a.meta["val"], b.meta["val"]
    return (a.dtype, a.device, a.layout) == (b.dtype, b.device, b.layout)


def _old_batch_norm(ops: fx.Graph, node: fx.Node) -> None:
    """The functional batch norm gives three results; the network uses the first."""
    x, gamma, beta, mean, variance, momentum, epsilon = node.args
    with ops.inserting_before(node):
        new = ops.call_function(
            torch.ops.aten.batch_norm.default,
            (x, gamma, beta, mean, variance, False, momentum, epsilon, False),
        )
    for user in list(node.users):
        new.meta.update(user.meta)
        user.replace_all_uses_with(new)
