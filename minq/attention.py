"""Where a captured network attends: the tensors that a decoder would store in its cache.

    softmax(q k^T / sqrt(size)) v

is two products with a softmax between them. Keys are looked for behind everything that computes
them, such as the turns of RoPE, and in front of what only repeats them, because heads share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import fx

from minq import graph

_REPEATS = {
    "reshape", "flatten", "expand", "unsqueeze", "squeeze", "repeat", "repeat_interleave", "slice",
    "contiguous", "clone", "to",
}  # fmt: skip
"""Operators that may leave tokens and channels, the last two dimensions, in their place."""


class Stored(NamedTuple):
    """Keys or values: (..., tokens, size), or where ``turned``, (..., size, tokens)."""

    node: fx.Node
    kind: str
    turned: bool


def stored(gm: fx.GraphModule) -> Iterator[Stored]:
    """Keys and values of all attention in a captured network, in the order of computation."""
    for node in gm.graph.nodes:
        if not _product(node):
            continue
        weights = _behind_moves(node.args[0])
        if graph.op(weights) != "softmax" or (scores := _scores(weights.args[0])) is None:
            continue
        keys, swapped = scores.args[1], False
        if _swaps(keys):
            keys, swapped = keys.args[0], True
        yield Stored(_unrepeated(keys) if swapped else keys, "keys", not swapped)
        yield Stored(_unrepeated(node.args[1]), "values", False)


def _product(node: fx.Node) -> bool:
    return graph.traits(node).role == "product" and all(
        isinstance(x, fx.Node) and graph.is_float(x) and x.op != "get_attr" for x in node.args[:2]
    )


def _behind_moves(node: fx.Node) -> fx.Node:
    while graph.traits(node).role == "move" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _scores(node: fx.Node) -> fx.Node | None:
    """The one product whose result, scaled and masked, a softmax reads."""
    found, waiting, seen = [], [node], set()
    while waiting:
        if (x := waiting.pop()) in seen or not graph.is_float(x):
            continue
        seen.add(x)
        if _product(x):
            found.append(x)
        elif x.op == "call_function" and not graph.traits(x).layer:
            waiting.extend(x.all_input_nodes)
    return found[0] if len(found) == 1 else None


def _swaps(node: fx.Node) -> bool:
    """Whether an operator exchanges the last two dimensions, and nothing else."""
    kind, last = graph.op(node), len(graph.shape_of(node)) - 1
    if kind == "transpose":
        return {d % (last + 1) for d in node.args[1:3]} == {last - 1, last}
    if kind == "permute":
        order = [d % (last + 1) for d in node.args[1]]
        return order == [*range(last - 1), last, last - 1]
    return kind == "mT"


def _unrepeated(node: fx.Node) -> fx.Node:
    """Back through what leaves tokens and channels in their place."""
    while graph.op(node) in _REPEATS:
        before = node.args[0]
        if len(graph.shape_of(before)) < 3 or not _same_ends(before, node):
            break
        node = before
    return node


def _same_ends(before: fx.Node, node: fx.Node) -> bool:
    a, b = (tuple(map(str, graph.shape_of(x)[-2:])) for x in (before, node))
    return a == b
