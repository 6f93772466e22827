"""Folding: what is known before the network runs goes into the layers.

Batch norms are equations 9 to 12 of the paper; constants and sums of stacks are what libraries
write in other words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minq._checks import Array, as_float, like, namespace

if TYPE_CHECKING:
    from torch.fx import GraphModule


def fold_batch_norm(
    weight: Array,
    bias: Array | None,
    gamma: Array,
    beta: Array,
    mean: Array,
    variance: Array,
    epsilon: float = 1e-5,
) -> tuple[Array, Array]:
    """One layer that computes BN(W x + b) by itself, with per-output-channel statistics.

        BN(y) = gamma (y - mean) / sqrt(variance + epsilon) + beta          eq. (9)
        W~ = gamma / sqrt(variance + epsilon) W                             eq. (11)
        b~ = beta + gamma / sqrt(variance + epsilon) (b - mean)             eq. (12)

    weight: (outputs, ...), everything else (outputs,). Returns the new weight and bias.

    >>> w, b = fold_batch_norm([[1.0, 2.0]], None, [3.0], [0.5], [2.0], [4.0], epsilon=0.0)
    >>> w, b
    (array([[1.5, 3. ]]), array([-2.5]))

    Raises ValueError where a vector's length is not the number of outputs, or a variance plus
    epsilon is not positive.
    """
    weight = as_float(weight, "weight")
    xp, outputs = namespace(weight), weight.shape[0]
    vectors = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    vectors["bias"] = [0.0] * outputs if bias is None else bias
    for name, v in vectors.items():
        vectors[name] = v = as_float(like(v, weight, weight.dtype, name), name)
        if tuple(v.shape) != (outputs,):
            raise ValueError(
                f"{name} has shape {tuple(v.shape)}, weight {tuple(weight.shape)}: "
                f"one value for each of the {outputs} outputs is needed"
            )
    if not bool(xp.all(vectors["variance"] + epsilon > 0)):
        raise ValueError("variance + epsilon must be positive")
    factor = vectors["gamma"] / xp.sqrt(vectors["variance"] + epsilon)
    folded = weight * xp.reshape(factor, (-1,) + (1,) * (weight.ndim - 1))  # eq. (11)
    return folded, vectors["beta"] + factor * (vectors["bias"] - vectors["mean"])  # eq. (12)


def fold_batch_norms(gm: GraphModule) -> GraphModule:
    """Fold every batch norm that follows a layer into it; ``gm`` is changed and returned.

    What the batch norm promised about the layer's outputs, mean beta and variance gamma^2, is kept
    as ``node.meta["moments"]`` for the steps that work without data. A batch norm stays where
    it is if it follows no layer, if something else reads the layer's output too, if it normalizes
    by the batch's own statistics, or another dimension than the layer's outputs.
    """
    import torch

    from minq import graph

    for node in list(gm.graph.nodes):
        if graph.op(node) != "batch_norm" or not graph.is_layer(layer := node.args[0]):
            continue
        if graph.op(layer) == "embedding" or len(layer.users) > 1 or node.args[5]:
            continue
        if graph.op(layer) == "linear" and len(graph.shape_of(layer)) > 2:
            continue
        graph.own_weight(gm, layer)
        weight, bias = graph.weight_of(gm, layer), graph.bias_of(gm, layer)
        gamma, beta, mean, variance = (
            None if v is None else graph.get(gm, v.target).detach() for v in node.args[1:5]
        )
        gamma = torch.ones_like(mean) if gamma is None else gamma
        beta = torch.zeros_like(mean) if beta is None else beta
        weight, bias = fold_batch_norm(weight, bias, gamma, beta, mean, variance, node.args[7])
        graph.set_weight(gm, layer, weight)
        graph.set_bias(gm, layer, bias)
        # After batch norm a channel has variance gamma^2, but for the share of epsilon.
        layer.meta["moments"] = beta.clone(), gamma**2 * variance / (variance + node.args[7])
        node.replace_all_uses_with(layer)
        gm.graph.erase_node(node)
    return graph.tidy(gm)


def fold_constants(gm: GraphModule) -> GraphModule:
    """Compute once what parameters alone decide; ``gm`` is changed and returned.

    Such as a weight of length 1 (weight normalization), or shares that sum to 1 (EfficientDet's
    fusion of resolutions). The result is a parameter; a single number that something is multiplied
    or divided by goes into the graph. What only shows a parameter in another shape stays.
    """
    import torch
    from torch import fx

    from minq import graph

    made: set[fx.Node] = set()

    def value(node: fx.Node) -> torch.Tensor:
        return graph.get(gm, node.target).detach()

    for node in list(gm.graph.nodes):
        inputs, kind = node.all_input_nodes, graph.op(node)
        if kind in ("mul", "div") and node.args[1] in made and value(node.args[1]).numel() == 1:
            if value(node.args[1]).ndim <= len(graph.shape_of(node.args[0])):
                node.args = (node.args[0], value(node.args[1]).item(), *node.args[2:])
                continue
        if node.op != "call_function" or kind in graph.LAYERS | graph.PRODUCTS:
            continue
        if not inputs or any(x.op != "get_attr" for x in inputs) or not graph.is_float(node):
            continue
        if kind in graph.TRANSPARENT and made.isdisjoint(inputs):
            continue
        with torch.no_grad():
            result = node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))
        name = graph.unused(gm, f"{inputs[0].target}_{kind}")
        graph.put(gm, name, result)
        with gm.graph.inserting_before(node):
            new = gm.graph.get_attr(name)
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        gm.graph.erase_node(node)
        made.add(new)
    return graph.tidy(gm)


def add_stacked(gm: GraphModule) -> GraphModule:
    """a + b + ... in place of the sum over a stack of them; ``gm`` is changed and returned."""
    import torch

    from minq import graph

    for node in list(gm.graph.nodes):
        if graph.op(node) != "sum" or graph.op(stack := node.args[0]) != "stack":
            continue
        dims, over = len(graph.shape_of(stack)), graph.argument(node, 1, "dim") or ()
        along = graph.argument(stack, 1, "dim", 0) % dims
        keeps = len(node.args) > 2 or node.kwargs or len(stack.users) > 1
        if keeps or [k % dims for k in over] != [along]:
            continue
        total, *rest = stack.args[0]
        with gm.graph.inserting_before(node):
            for x in rest:
                total = gm.graph.call_function(torch.ops.aten.add.Tensor, (total, x))
                total.meta.update(node.meta)
        node.replace_all_uses_with(total)
        gm.graph.erase_node(node)
    return graph.tidy(gm)


def fold(gm: GraphModule) -> GraphModule:
    """All of these steps; ``gm`` is changed and returned."""
    return add_stacked(fold_constants(fold_batch_norms(gm)))
