"""Smoothing: range moved from the activations of a layer norm into the weights that read them.

A layer norm ends with a factor gamma_i and a shift beta_i for each channel. Divide both by s_i, and
multiply what reads channel i by s_i:

    W x = (W S) (S^-1 x)

In a transformer that normalizes behind each addition (BERT), the residual branch reads the layer
norm's output too. There the factor stays an operator of its own, x * s, which costs hardware a
requantization for each channel. The function of the network does not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.graph.batches import batches_of
from minq.ptq import equalize


def smooth(gm: fx.GraphModule, data: Any, *, alpha: float = 0.5) -> fx.GraphModule:
    """Smooth the output of every layer norm that linear layers read.

    Args:
        gm: a captured graph without quantizers; it is changed.
        data: what to measure the activations on, a batch or several.
        alpha: see ``equalize.smoothing_scales``.

    Returns:
        ``gm`` itself.
    """
    sites = {node: _readers(node) for node in gm.graph.nodes if _scalable(gm, node)}
    sites = {node: readers for node, readers in sites.items() if readers}
    largest = _largest(gm, batches_of(gm, data), sites)
    for node, readers in sites.items():
        for reader in readers:
            graph.own_weight(gm, reader)
        weights = [graph.weight_of(gm, reader) for reader in readers]
        ranges = torch.stack([equalize.input_ranges(w) for w in weights]).amax(0)
        s = equalize.smoothing_scales(largest[node], ranges, alpha)
        for parameter in node.args[2:4]:
            if parameter is not None:
                graph.put(gm, parameter.target, graph.get(gm, parameter.target).detach() / s)
        for reader, weight in zip(readers, weights, strict=True):
            graph.set_weight(gm, reader, equalize.scale_inputs(weight, s))
        _restore(gm, node, [user for user in node.users if user not in readers], s)
    return graph.tidy(gm)


def _scalable(gm: fx.GraphModule, node: fx.Node) -> bool:
    """A layer norm over the last axis, with parameters that nothing else uses."""
    if graph.op(node) != "layer_norm" or len(node.args[1]) != 1:
        return False
    gamma, beta = (*node.args[2:4], None, None)[:2]
    given = [p for p in (gamma, beta) if p is not None]
    return gamma is not None and all(p.op == "get_attr" and len(p.users) == 1 for p in given)


def _readers(node: fx.Node) -> list[fx.Node]:
    return [u for u in node.users if graph.op(u) == "linear" and graph.is_layer(u)]


def _largest(gm: fx.GraphModule, batches: list[list[Any]], nodes: Any) -> dict[fx.Node, Tensor]:
    """The largest size of each channel (last axis) on all data."""
    found: dict[fx.Node, Tensor] = {}

    class Look(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node in nodes:
                now = value.detach().abs().flatten(0, -2).amax(0)
                found[node] = torch.maximum(found.get(node, now), now)
            return value

    with torch.no_grad():
        for batch in batches:
            Look(gm).run(*batch)
    return found


def _restore(gm: fx.GraphModule, node: fx.Node, users: list[fx.Node], s: Tensor) -> None:
    """Multiply by s in front of all that is no linear layer."""
    if not users:
        return
    name = graph.unused(gm, f"{node.name}_smoothing")
    gm.register_buffer(name, s)
    with gm.graph.inserting_after(node):
        constant = gm.graph.get_attr(name)
    with gm.graph.inserting_after(constant):
        product = gm.graph.call_function(torch.ops.aten.mul.Tensor, (node, constant))
    product.meta.update(node.meta)
    constant.meta["val"] = s
    graph.note(constant, smoothing=True)
    for user in users:
        user.replace_input_with(node, product)
