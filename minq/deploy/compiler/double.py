"""A graph in double precision: what its operators name themselves follows, too."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from minq import graph

_WIDER = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


def in_double(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph of ``gm`` with every real number that an operator makes in double precision.

    Its modules and parameters are those of ``gm``, for ``.double()`` to turn. An operator may name
    a type (softmax(dtype=float32), zeros(dtype=float16), to(float32)), and one that gets no real
    numbers (arange, zeros, whole numbers divided) answers in single precision: neither follows by
    itself, and double would meet float.

    >>> import minq
    >>> from torch import nn
    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return x.softmax(-1, dtype=torch.float32) + torch.arange(3) / 3
    >>> gm = in_double(minq.capture(Net(), torch.zeros(2, 3)))
    >>> gm(torch.zeros(2, 3).double())[0]
    tensor([0.3333, 0.6667, 1.0000], dtype=torch.float64)
    """
    wide = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    wide.meta.update(gm.meta)
    for node in list(wide.graph.nodes):
        if node.op != "call_function":
            continue
        given = (node.args, dict(node.kwargs))
        node.args, node.kwargs = tree_map_only(torch.dtype, lambda t: _WIDER.get(t, t), given)
        if graph.op(node) == "softmax" and len(node.args) > 2 and node.args[2] is True:
            node.args = (*node.args[:2], False)  # from half to float
        if graph.is_float(node) and not any(map(graph.is_float, node.all_input_nodes)):
            _answer_in_double(wide.graph, node)
    wide.recompile()
    return wide


def _answer_in_double(g: fx.Graph, node: fx.Node) -> None:
    """An operator that makes real numbers of none."""
    schema: Any = getattr(node.target, "_schema", None)
    if schema is not None and any(a.name == "dtype" for a in schema.arguments):
        if not any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
            node.update_kwarg("dtype", torch.float64)
        return
    with g.inserting_after(node):
        new = g.call_function(torch.ops.aten.to.dtype, (node, torch.float64))
    new.meta.update(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
