"""What rounding added to the parameters, so that the network before it can still be asked.

AdaRound, GPTQ and bias correction change parameters that stand in front of quantizers. What they
added to each is kept in the network's notes by the parameter's name, in half floats that are
relative to the largest: two bytes for each weight that was rounded this way, and an error 70 dB
below that of the rounding. It moves and is copied with the network; whoever has no use for
``minq.debug`` deletes it. The parameter minus this is what was there before, also where a parameter
was changed since.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from minq import graph
from minq.simulate import is_weight


def set_rounded_weight(gm: fx.GraphModule, node: fx.Node, weight: Tensor) -> None:
    """``graph.set_weight`` with a weight on its grid; what that added is kept."""
    name = graph.parameter_of(graph.weight_node(node)).target
    before = _before(gm, name)
    graph.set_weight(gm, node, weight)
    _keep(gm, name, before)


def set_corrected_bias(gm: fx.GraphModule, node: fx.Node, bias: Tensor) -> None:
    """``graph.set_bias`` with the bias that rounding needs; what that added is kept."""
    old = graph.parameter_of(graph.bias_node(node))
    before = torch.zeros_like(bias) if old is None else _before(gm, old.target)
    graph.set_bias(gm, node, bias)
    _keep(gm, graph.parameter_of(graph.bias_node(node)).target, before)


def without_rounding(gm: fx.GraphModule, name: str) -> Tensor:
    """A parameter as it was before it was rounded or corrected: a tensor of its own."""
    before = _before(gm, name)
    return before if name in graph.network_notes(gm).added else before.clone()


def _before(gm: fx.GraphModule, name: str) -> Tensor:
    parameter = graph.get(gm, name).detach()
    if (share := graph.network_notes(gm).added.get(name)) is None:
        return parameter
    return parameter - share.values.to(parameter) * share.unit


def _keep(gm: fx.GraphModule, name: str, before: Tensor) -> None:
    added = graph.get(gm, name).detach() - before
    if unit := float(added.abs().max()):
        share = graph.Share((added / unit).half(), unit)
        graph.note_network(gm, added=graph.network_notes(gm).added | {name: share})


def rounded_parameters(gm: fx.GraphModule) -> dict[str, str]:
    """{parameter that was changed: the quantizer of the weight for whose rounding it was}."""
    found = {}
    for node in gm.graph.nodes:
        if is_weight(node):
            found[node.args[0].target] = node.target
            for bias in map(graph.bias_node, filter(graph.is_layer, node.users)):
                if (parameter := graph.parameter_of(bias)) is not None:
                    found[parameter.target] = node.target
    return {name: found[name] for name in graph.network_notes(gm).added if name in found}
