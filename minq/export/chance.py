"""Operators that draw random numbers: dropout is taken out, all others are named."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx

from minq import graph
from minq.graph import Network, place

_DROPOUTS = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout".split())


def drop_dropout(exported: Any) -> list[str]:
    """Take dropout out of the graph; where the model leaves it on, say so."""
    on = []
    for module in exported.graph_module.modules():
        for node in list(module.graph.nodes) if isinstance(module, fx.GraphModule) else ():
            kind = graph.op(node)
            if kind.rstrip("_") in _DROPOUTS:
                if node.args[1] and node.args[2]:
                    on.append(place(node))
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
            elif kind == "scaled_dot_product_attention" and graph.argument(node, 4, "dropout_p"):
                on.append(place(node))
                args = [*node.args[:3], graph.argument(node, 3, "attn_mask"), 0.0]
                args.append(graph.argument(node, 5, "is_causal", False))
                keep = ("scale", "enable_gqa")
                node.args = tuple(args)
                node.kwargs = {k: v for k, v in node.kwargs.items() if k in keep}
    return on


def random_places(gm: Network) -> list[str]:
    """The places of operators that draw random numbers whenever they are called."""
    found = []
    for node in gm.graph.nodes:
        tags = getattr(node.target, "tags", ())
        on = graph.op(node) == "rrelu" and graph.argument(node, 3, "training", False)
        if torch.Tag.nondeterministic_seeded in tags:
            if on or graph.traits(node).random != "training":
                found.append(place(node))
    return found


def warn_of_chance(dropped: list[str], drawn: list[str]) -> None:
    if dropped:
        warnings.warn(
            f"the model leaves dropout on in evaluation mode, in {', '.join(dropped)}; the network "
            "is captured without it. Where that is not meant, pass training=self.training to "
            "dropout's function",
            stacklevel=2,
        )
    if drawn:
        warnings.warn(
            f"the model draws random numbers in evaluation mode, in {', '.join(drawn)}; the "
            "network does so too, so two of its answers differ and cannot be compared",
            stacklevel=2,
        )
