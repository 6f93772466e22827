"""Any network as a graph of operators that the passes can read and change.

``capture`` runs ``torch.export`` on a copy of the model and gives a ``torch.fx.GraphModule``: a
plain module that trains, moves, saves and copies as any other. Its graph holds ATen operators, its
parameters keep their names.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map, tree_map_only

from minq import graph
from minq.batches import arguments_for
from minq.fold import fold_constants
from minq.masks import write_as_fill
from minq.rewrite import rewrite


class CaptureError(ValueError):
    """The model could not be turned into a graph."""


def capture(model: nn.Module, example: Any, *, dynamic_batch: bool = True) -> fx.GraphModule:
    """The model in evaluation mode as a graph of ATen operators; the model itself is left alone.

    example: what the model is called with (see ``as_arguments``), on whatever device; the first
        dimension of each tensor is the batch, and stays free.

    Raises CaptureError where ``torch.export`` cannot follow the model, for example because a branch
    depends on values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, fx.GraphModule) and model.meta.get("minq"):
        return copy.deepcopy(model)
    args, kwargs = tree_map_only(Tensor, _two, arguments_for(model, example))
    dynamic = None
    try:
        if dynamic_batch:
            named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
            dynamic = tree_map(_free_batch, dict(named))
        exported = torch.export.export(
            copy.deepcopy(model).eval(), args, kwargs, dynamic_shapes=dynamic, strict=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if any(_unsafe(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})
            module = exported.module()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CaptureError(
            f"torch.export could not follow {type(model).__name__}: {reason}\n"
            "Its forward must not choose its path by the values of tensors; "
            "torch.export.export(model, example) shows the line to change."
        ) from error
    gm = _plain(module)
    gm.meta["keywords"] = list(kwargs)
    inputs = [n.meta.get("val") for n in gm.graph.nodes if n.op == "placeholder"]
    batch = [v.shape[0] for v in inputs if isinstance(v, Tensor) and v.ndim][:1]
    if dynamic_batch and batch and graph.fixed(batch[0]):
        warnings.warn(f"the model fixes its batch size at {batch[0]}", stacklevel=2)
    return gm


def _free_batch(value: Any) -> dict[int, Any] | None:
    """The first dimension of a tensor may vary."""
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim else None


def _two(x: Tensor) -> Tensor:
    """A batch of one would be taken for a constant."""
    return torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x


def _unsafe(node: fx.Node) -> bool:
    """Whether the node overwrites a tensor that something else may look at."""
    if node.op != "call_function" or not _in_place(node):
        return False
    target = node.args[0]
    views = [graph.op(x) for x in (target, *target.users)]
    return target.op != "call_function" or not graph.TRANSPARENT.isdisjoint(views)


_NOTHING = ("dropout", "feature_dropout", "detach_", "lift_fresh_copy", "alias")
"""Operators that leave their input as it is, in evaluation mode."""


def _in_place(node: fx.Node) -> bool:
    name = graph.op(node)
    return name.endswith("_") and not name.endswith("__") and name != "detach_"


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """A fresh GraphModule of the exported graph: nothing in place, one form for each thing."""
    module.graph._tracer_cls = None  # export's own can only be made by export: pickling needs one
    gm = fx.GraphModule(module, module.graph)
    gm.meta["minq"] = True
    ops = gm.graph
    for node in list(ops.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            ops.erase_node(node)
        elif graph.op(node) == "_assert_tensor_metadata":
            ops.erase_node(node)
        elif graph.op(node) == "to" and _same_kind(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
            ops.erase_node(node)
        elif graph.op(node) in _NOTHING:
            node.replace_all_uses_with(node.args[0])
            ops.erase_node(node)  # what draws random numbers is never taken for dead code
        elif graph.op(node) in ("view", "_unsafe_view"):
            # a view asks for strides that another device lacks
            node.target = torch.ops.aten.reshape.default
        elif graph.op(node) == "_native_batch_norm_legit_no_training":
            _old_batch_norm(ops, node)
        elif node.op == "call_function" and _in_place(node):
            packet = getattr(torch.ops.aten, graph.op(node)[:-1])
            node.target = getattr(packet, node.target._overloadname)
            later = False  # whoever reads the overwritten tensor afterwards, reads the result
            for user in ops.nodes:
                if later:
                    user.replace_input_with(node.args[0], node)
                later = later or user is node
    return write_as_fill(fold_constants(rewrite(graph.tidy(gm))))


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
