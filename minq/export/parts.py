"""Operators that torch makes of others, written as these: multiply, swapaxes, hstack, kron, ...

One needs no entry in the table of operators where all of the others have theirs.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from minq import graph
from minq.export.idioms import IDIOMS
from minq.export.rewrite import WRITERS
from minq.graph import OPERATORS

_KNOWN = OPERATORS.keys() | WRITERS.keys() | IDIOMS | {"view", "_unsafe_view"}
_MADE = torch._C.DispatchKey.CompositeImplicitAutograd


def in_parts(exported: Any) -> Any:
    """The exported program without such operators."""
    tried: set[Any] = set()
    while True:
        graphs = [m.graph for m in exported.graph_module.modules() if hasattr(m, "graph")]
        found = {n.target for g in graphs for n in g.nodes if _is_made_of_known(n)} - tried
        if not found:
            return exported
        tried |= found
        exported = exported.run_decompositions({f: partial(f._op_dk, _MADE) for f in found})


def _is_made_of_known(node: fx.Node) -> bool:
    """Whether it has no entry, and all that torch makes it of has one."""
    if graph.op(node) in _KNOWN or not graph.is_real(node):
        return False
    if not getattr(node.target, "_can_decompose", bool)() or graph.op(node).endswith("_"):
        return False
    args, kwargs = tree_map_only(fx.Node, lambda a: a.meta["val"], (node.args, dict(node.kwargs)))
    modes = [v.fake_mode for v in tree_leaves((args, kwargs)) if hasattr(v, "fake_mode")]
    with modes[0] if modes else nullcontext(), _Parts() as parts:
        node.target._op_dk(_MADE, *args, **kwargs)
    return parts.names <= _KNOWN


class _Parts(TorchDispatchMode):
    """Notes the operators that give real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves(y) if isinstance(v, Tensor)]
        if any(v.is_floating_point() or v.is_complex() for v in tensors):
            self.names.add(func.overloadpacket.__name__)
        return y
