"""Folding: a batch norm becomes part of the layer in front of it, equations 9 to 12 of the paper.

``minq.export.constants`` folds what parameters alone decide.
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

    Args:
        weight: (outputs, ...).
        bias: (outputs,), or None for 0.
        gamma: (outputs,), as are beta, mean and variance.
        beta: what batch norm adds.
        mean: running mean.
        variance: running variance.
        epsilon: added to the variance.

    Returns:
        The new weight and bias.

    Raises:
        ValueError: a vector's length is not the number of outputs, or a variance plus epsilon is
            not positive.

    >>> w, b = fold_batch_norm([[1.0, 2.0]], None, [3.0], [0.5], [2.0], [4.0], epsilon=0.0)
    >>> w, b
    (array([[1.5, 3. ]]), array([-2.5]))
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
    """Fold every batch norm that follows a layer into it.

    Mean beta and variance gamma^2 of the layer's outputs, which the batch norm states, are kept in
    the layer's notes for the steps that work without data. A batch norm stays where it is if it
    follows no layer, if something else reads the layer's output too, if it normalizes by the
    batch's own statistics, or another dimension than the layer's outputs.

    Args:
        gm: from ``minq.capture``; it is changed.

    Returns:
        ``gm`` itself.
    """
    import torch

    from minq import graph

    for node in list(gm.graph.nodes):
        if graph.op(node) != "batch_norm" or not graph.is_layer(layer := node.args[0]):
            continue
        if graph.traits(layer).role == "embedding" or len(layer.users) > 1 or node.args[5]:
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
        spread = gamma**2 * variance / (variance + node.args[7])
        graph.note(layer, statistics=graph.Statistics(beta.clone(), spread))
        node.replace_all_uses_with(layer)
        gm.graph.erase_node(node)
    return graph.tidy(gm)


def fold(gm: GraphModule) -> GraphModule:
    """Fold batch norms and constants, and write idioms in one form; ``gm`` is changed, returned."""
    from minq.export.constants import add_stacked, fold_constants
    from minq.export.idioms import write_idioms

    return add_stacked(write_idioms(fold_constants(fold_batch_norms(gm))))
