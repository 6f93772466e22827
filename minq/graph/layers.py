"""Layers of a captured network: their weights, biases and geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from minq.graph.nodes import argument, each, module_of, op, traits
from minq.graph.parameters import get, put, taken, unused


def input_of(node: fx.Node) -> fx.Node:
    """The data that a layer reads."""
    return node.args[traits(node).operands[0]]


def weight_node(node: fx.Node) -> fx.Node:
    """Where a layer's weight comes from: a parameter, or the quantizer behind it."""
    return node.args[traits(node).weight]


def bias_node(node: fx.Node) -> fx.Node | None:
    """Where a layer's bias comes from, or None."""
    return None if op(node) == "embedding" else argument(node, 2, "bias")


def parameter_of(node: fx.Node | None) -> Any:
    """The ``get_attr`` behind a node, through a quantizer; None where there is none."""
    if node is not None and node.op == "call_module":
        node = node.args[0]
    return node if node is not None and node.op == "get_attr" else None


def groups_of(node: fx.Node) -> int:
    """How many groups a convolution has; 1 for other layers."""
    return argument(node, 6, "groups", 1) if traits(node).spatial else 1


def geometry(node: fx.Node, kernel: Sequence[int]) -> tuple[list, list, list]:
    """Stride, padding (before, after) and dilation of a convolution, one for each dimension."""
    stride, padding, dilation = (
        each(argument(node, k, name, default), len(kernel))
        for k, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if isinstance(padding[0], str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        total = reach if padding[0] == "same" else [0] * len(kernel)
        return stride, [(t // 2, t - t // 2) for t in total], dilation
    return stride, [(p, p) for p in padding], dilation


def is_layer(node: fx.Node) -> bool:
    """Whether the node is a layer whose weight is a parameter."""
    return traits(node).layer and parameter_of(weight_node(node)) is not None


def layer_name(node: fx.Node) -> str:
    """The name of a layer, "features.0.0", after its weight."""
    return parameter_of(weight_node(node)).target.rpartition(".")[0]


def place(node: fx.Node) -> str:
    """Where in the model the node comes from: "layer1.0", or "layer1.0.add" in a larger module."""
    if node.op == "placeholder":
        return str(node.target)
    if is_layer(node):
        return layer_name(node)
    path, kind = module_of(node)
    alone = "torch.nn.modules" in kind and not kind.endswith(("MultiheadAttention", "Sequential"))
    return path if alone and path else f"{path}.{op(node)}".lstrip(".")


def layers(gm: fx.GraphModule) -> dict[str, fx.Node]:
    """The layers by name, in the order of computation; a module's second weight by its own name."""
    found: dict[str, fx.Node] = {}
    for node in filter(is_layer, gm.graph.nodes):
        name, weight = layer_name(node), parameter_of(weight_node(node)).target
        other = parameter_of(weight_node(found.get(name, node))).target != weight
        found[weight if other else name] = node
    return found


def weight_of(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """A layer's weight in front of its quantizer, as (outputs, inputs per group, *kernel)."""
    return outputs_first(node, get(gm, parameter_of(weight_node(node)).target).detach())


def rounded_weight_of(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """A layer's weight behind its quantizer, as ``weight_of`` lays it out."""
    source = weight_node(node)
    weight = get(gm, parameter_of(source).target).detach()
    if source.op == "call_module":
        weight = gm.get_submodule(source.target)(weight).detach()
    return outputs_first(node, weight)


def set_weight(gm: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Give a layer a new weight, in the layout of ``weight_of``."""
    put(gm, parameter_of(weight_node(node)).target, outputs_first(node, value))


def outputs_first(node: fx.Node, weight: Tensor) -> Tensor:
    """A layer's weight as it is stored, as ``weight_of`` lays it out, or the other way round."""
    transposed = traits(node).role == "transposed"
    return transpose_weight(weight, groups_of(node)) if transposed else weight


def transpose_weight(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed convolution with its outputs first; its own inverse.

    Args:
        weight: (inputs, outputs / groups, *kernel), as torch stores it.
        groups: of the convolution.

    Returns:
        The same numbers as (outputs, inputs / groups, *kernel).

    >>> import torch
    >>> transpose_weight(torch.zeros(4, 3, 5, 5), groups=2).shape
    torch.Size([6, 2, 5, 5])
    """
    rows, columns, *kernel = weight.shape
    by_group = weight.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    return by_group.reshape(groups * columns, rows // groups, *kernel)


def bias_of(gm: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """A layer's bias, or None."""
    parameter = parameter_of(bias_node(node))
    return None if parameter is None else get(gm, parameter.target).detach()


def set_bias(gm: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Give a layer a new bias: made where there was none, parted from those that share it."""
    parameter = parameter_of(bias_node(node))
    if parameter is None or len(parameter.users) > 1:
        name = unused(gm, f"{layer_name(node)}.bias".lstrip("."))
        put(gm, name, value)
        with gm.graph.inserting_before(node):
            new = gm.graph.get_attr(name)
        new.meta["val"] = value
        node.args = (*node.args[:2], new, *node.args[3:])
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
    else:
        put(gm, parameter.target, value)


def own_weight(gm: fx.GraphModule, node: fx.Node) -> None:
    """Part a weight that several layers share: this one gets a copy of its own.

    It has the name of the module that reads it, where torch has such modules and it is free.
    """
    parameter = weight_node(node)
    if len(parameter.users) == 1:
        return
    path, _, leaf = parameter.target.rpartition(".")
    module, kind = module_of(node)
    name = f"{module}.weight"
    if "torch.nn.modules" not in kind or not module or taken(gm, name):
        name = unused(gm, f"{path}_copy.{leaf}")
    put(gm, name, get(gm, parameter.target))
    with gm.graph.inserting_before(node):
        new = gm.graph.get_attr(name)
    new.meta.update(parameter.meta)
    node.replace_input_with(parameter, new)
