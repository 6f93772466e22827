"""Masks, and the scores that they hide: no data, and on no grid.

In front of a softmax a network puts -10^9, or -infinity, where nothing shall be seen: as

    masked_fill(scores, hidden, -inf),    where(seen, scores, -1e9),    scores + mask,
    scores + (1 - seen) * -1e9,           scores * seen - 1e10 (1 - seen)

A grid from there to the largest score would round all scores to one. So nothing that may hold such
numbers gets a quantizer, and no mask does: a 1 that became 0.999 would hide nothing.

Which numbers are meant follows from what is written down: a constant of 10^4 and more, or one of 50
and more that is all that a mask has beside zeros. What else is added to scores, as the distances of
ALiBi or a table of relative positions, is data. A float input that is only added to scores is taken
for a mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph

aten = torch.ops.aten

_LARGE, _MASK = 1e4, 50.0


@dataclass
class Masks:
    """masks: the tensors that are no data. hidden: data that masks are in already. partly: inputs
    that are read both as a mask and as data."""

    masks: set[fx.Node] = field(default_factory=set)
    hidden: set[fx.Node] = field(default_factory=set)
    partly: set[fx.Node] = field(default_factory=set)

    def hides(self, node: fx.Node) -> bool:
        """Whether the node has no grid for this reason."""
        return node in self.masks or node in self.hidden


def find(gm: fx.GraphModule) -> Masks:
    """The masks of a captured graph, and what they hide."""
    found, nodes = Masks(), list(gm.graph.nodes)
    pure: set[fx.Node] = set()  # no layer and no product of two tensors is behind it
    given: set[fx.Node] = set()  # an input is
    sizes: dict[fx.Node, float] = {}  # the largest constant that is written into it
    for node in nodes:
        inputs = node.all_input_nodes
        if not graph.is_float(node) or node.op in ("placeholder", "get_attr"):
            pure.add(node)
        elif graph.traits(node).role == "make":  # only the shape is another tensor's
            pure.add(node)
        elif graph.traits(node).elementwise and all(x in pure for x in inputs):
            pure.add(node)
        if node.op == "placeholder" or any(x in given for x in inputs):
            given.add(node)
        sizes[node] = _size(gm, node, sizes, pure)
    before: set[fx.Node] = set()  # only elements are computed between here and a softmax
    for node in reversed(nodes):
        for user in node.users:
            of = graph.traits(user)
            if of.normalizes == "softmax" and user.args[0] is node:
                before.add(node)
            elif user in before and (of.elementwise or graph.op(user) == "tanh"):
                before.add(node)
    for node in reversed(nodes):
        if node in pure and graph.is_float(node):
            uses = [_use(node, u, found, pure, given, sizes, before) for u in node.users]
            uses = [use for use in uses if use]
            if "mask" in uses and "data" not in uses:
                found.masks.add(node)
            elif "mask" in uses or any(u in found.partly for u in node.users if u in pure):
                found.partly.add(node)
    for node in nodes:
        if node in pure or not graph.is_float(node):
            continue
        if graph.op(node) == "log_softmax" and _passed_on(node, found.hidden):
            found.hidden.add(node)
        elif graph.traits(node).elementwise:
            joined = graph.op(node) not in ("mul", "rescale", "div") and any(
                x in found.masks and graph.is_float(x) for x in node.all_input_nodes
            )
            bound = _MASK if node in before else _LARGE
            if joined or sizes[node] >= bound or _passed_on(node, found.hidden):
                found.hidden.add(node)
    return found


def _size(gm: fx.GraphModule, node: fx.Node, sizes: dict, pure: set) -> float:
    """The largest constant that a mask may have put into the node."""
    kind, numbers = graph.op(node), [a for a in node.args if isinstance(a, (int, float))]
    if node.op == "get_attr":
        return _written(graph.get(gm, node.target)) if graph.is_float(node) else 0.0
    if not graph.traits(node).elementwise:
        return 0.0
    if kind in ("clamp", "clamp_min"):  # where it clips is no number that it writes
        bounds, size = graph.clip_bounds(node), sizes[node.args[0]]
        return size if bounds is None else min(size, float(bounds[0].abs().max()))
    size = max((sizes[x] for x in node.all_input_nodes), default=0.0)
    if kind == "log":
        return math.inf if node in pure else 0.0
    if kind == "masked_fill":
        value = graph.fill_value(node)
        filled = abs(value) if isinstance(value, float) else _number(value)
        return max(size, filled if filled >= _MASK else 0.0)
    if kind in ("where", "maximum", "minimum"):
        filled = max([abs(v) for v in numbers] + [_number(a) for a in node.args], default=0.0)
        return max(size, filled if filled >= _MASK else 0.0)
    if kind in ("mul", "div", "rescale") and node not in pure:
        return sizes[node.args[0]] if kind == "rescale" and node.args[0] in sizes else 0.0
    if kind in ("mul", "rescale", "add", "sub", "rsub", "div") and node in pure and numbers:
        largest = abs(numbers[0])
        largest = 1 / largest if kind in ("div", "rescale") and _divides(node) else largest
        return max(size, largest if largest >= 1e3 else 0.0)
    return size


def _divides(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) is aten.div and not isinstance(
        node.args[0], (int, float)
    )


def _number(node: Any) -> float:
    """The size of a constant that is one number everywhere; 0 for all else."""
    if not isinstance(node, fx.Node) or not graph.is_float(node):
        return 0.0
    return abs(graph.constant_number(node) or 0.0)


def _written(value: Tensor) -> float:
    """How large the numbers are that hide; 0 for data."""
    value = value.detach()
    if value.numel() == 0 or value.is_meta:
        return 0.0
    largest = float(value.abs().nan_to_num(math.inf, math.inf, math.inf).max())
    zeros = bool((value == 0).any())
    if largest >= 1e8 or (zeros and largest >= _LARGE):
        return largest
    two = zeros and bool(((value == 0) | (value.abs() == largest)).all())
    return largest if two and largest >= _MASK else 0.0


def _use(node, user, found, pure, given, sizes, before) -> str:
    """ "mask" or "data", as the reader takes the node; "" where it only looks at its shape."""
    kind = graph.op(user)
    if user in found.masks:
        return "mask"
    if not graph.is_float(user):
        if kind.startswith("sym_"):
            return ""
        return "mask" if isinstance(user.meta.get("val"), Tensor) else "data"
    if user in pure:
        return "" if user in found.partly else "data"
    if kind in ("add", "sub", "maximum", "minimum", "where", "masked_fill"):
        if user in before:
            unknown = node in given and kind in ("add", "sub")
            return "mask" if unknown or sizes[node] >= _MASK else "data"
        return "mask" if sizes[node] >= _LARGE else "data"
    return "data"


def _passed_on(node: fx.Node, hidden: set) -> bool:
    """Whether what is hidden in front of the operator is so behind it."""
    bounds = graph.clip_bounds(node)
    if bounds is not None and bool((bounds[0].abs() < _LARGE).all()):
        return False
    return any(x in hidden for x in node.all_input_nodes)
