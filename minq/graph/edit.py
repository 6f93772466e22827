"""Changing a captured graph: new operators in place of old ones, and what is left over."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from minq.graph.notes import note, notes_of


def replace(node: fx.Node, new: fx.Node | None) -> None:
    """Let all that reads the node read the new one; None leaves it as it is."""
    if new is not None:
        node.replace_all_uses_with(new)
        node.graph.erase_node(node)


def call(before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new operator in front of a node, from the same place of the model."""
    with before.graph.inserting_before(before):
        new = before.graph.call_function(target, args, kwargs)
    new.meta.update({k: m for k, m in before.meta.items() if k != "val"})
    values = tree_map_only(fx.Node, lambda a: a.meta["val"], (args, kwargs))
    first = next(v for v in tree_leaves(before.meta["val"]) if isinstance(v, Tensor))
    note(new, constant=_all_constant(new))
    with torch.no_grad(), getattr(first, "fake_mode", None) or nullcontext():
        new.meta["val"] = target(*values[0], **values[1])
    return new


def mark_constants(gm: fx.GraphModule) -> None:
    """Note of each node whether parameters and buffers alone decide its value."""
    for node in gm.graph.nodes:
        computed = node.op == "call_function" and _all_constant(node)
        note(node, constant=node.op == "get_attr" or computed)


def _all_constant(node: fx.Node) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(map(is_constant, inputs))


def is_constant(node: Any) -> bool:
    """What ``mark_constants`` has noted."""
    return notes_of(node).constant


def tidy(gm: fx.GraphModule) -> fx.GraphModule:
    """Drop what nothing uses any more, check the graph and compile it again."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    used = {n.target for n in gm.graph.nodes if n.op == "get_attr"}
    called = tuple(f"{n.target}." for n in gm.graph.nodes if n.op == "call_module")
    for path, module in gm.named_modules():
        if f"{path}.".startswith(called):  # a module that is called keeps what is its own
            continue
        for kind in (module._parameters, module._buffers):
            for leaf in [k for k in kind if (f"{path}.{k}" if path else k) not in used]:
                del kind[leaf]
    gm.graph.lint()
    gm.recompile()
    return gm
