"""Features of very different units in one input: one step is too coarse for the small ones.

Where an income in thousands lies beside shares of one, all shares are rounded to 0, though the next
layer W weighs them as much. What is left of its sums, channels c taken as independent:

    sum over c of Var(x_c) |W_c|^2  /  sum over c of Var(q(x_c) - x_c) |W_c|^2
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from minq import graph
from minq.ptq.readers import step
from minq.ptq.walk import Walk, is_constant
from minq.simulate import is_quantizer

FEW = 10.0
"""dB that 8 bits should leave of every layer's sums; a Gaussian tensor leaves it 40."""

_MOST = 2**18


@torch.no_grad()
def worst_sums(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> float:
    """The SQNR in dB, by the formula above, behind the reader of an input that fares worst."""
    source = node.args[0]
    while graph.traits(source).passes and source.all_input_nodes:
        source = source.all_input_nodes[0]
    if source.op != "placeholder":  # inside, equalization brings channels to one size
        return math.inf
    x = walk.quantized[node.args[0]][0].detach()
    if x.ndim < 2 or not x.is_floating_point():
        return math.inf
    x = x[: max(2, _MOST // max(x[0].numel(), 1))]
    noise = gm.get_submodule(node.target)(x) - x
    found = [math.inf]
    for signal, lost, whole in _behind(gm, node, x - x.mean(0), noise - noise.mean(0), x):
        if signal > 1e-6 * whole:  # a constant says nothing
            found.append(10 * math.log10(signal / lost) if lost else math.inf)
    return min(found)


def _behind(gm: fx.GraphModule, node: fx.Node, *x: Tensor) -> Iterator[list[float]]:
    """The sizes of tensors that a node gives, in what each of its readers makes of them."""
    for user in node.users:
        given = [a for a in user.all_input_nodes if a is not node]
        if user.args[:1] != (node,) or is_quantizer(user):
            continue
        if graph.is_layer(user):
            yield [_in_sums(gm, user, v) for v in x]
        elif graph.traits(user).role == "move" and not given:
            yield from _behind(gm, user, *(step(gm, node, user)(v) for v in x))
        elif graph.op(user) in ("batch_norm", "mul", "div") and all(map(is_constant, given)):
            f = step(gm, node, user)
            yield [float((f(v) - f(torch.zeros_like(v))).double().square().mean()) for v in x]


def _in_sums(gm: fx.GraphModule, layer: fx.Node, x: Tensor) -> float:
    """The sum over channels of E[x_c^2] |W_c|^2."""
    w = graph.get(gm, graph.parameter_of(graph.weight_node(layer)).target).detach()
    of = graph.traits(layer)
    if of.role != "transposed":  # (groups, outputs, inputs of a group, kernel)
        w = w.unflatten(0, (graph.groups_of(layer), -1)).transpose(1, 2).flatten(0, 1)
    power = x.square().movedim(1 if of.spatial else -1, 0).flatten(1).mean(1)
    return float(power.double() @ w.double().square().flatten(1).sum(1))
