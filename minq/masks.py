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

SOFTMAX = frozenset({"softmax", "log_softmax", "_safe_softmax"})

_ARITHMETIC = frozenset(
    """add sub rsub mul div neg rescale where maximum minimum clamp clamp_min clamp_max log to
    _to_copy type_as triu tril abs nan_to_num""".split()
)
"""What masks are made with, one element at a time."""

_ELEMENTWISE = _ARITHMETIC | graph.TRANSPARENT | graph.JOINS
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
        elif graph.op(node) in graph.MAKERS or graph.op(node) in _ELEMENTWISE:
            if all(x in pure for x in inputs):
                pure.add(node)
        if node.op == "placeholder" or any(x in given for x in inputs):
            given.add(node)
        sizes[node] = _size(gm, node, sizes, pure)
    before: set[fx.Node] = set()  # only elements are computed between here and a softmax
    for node in reversed(nodes):
        for user in node.users:
            kind = graph.op(user)
            if kind in SOFTMAX and user.args[0] is node:
                before.add(node)
            elif user in before and (kind in _ELEMENTWISE or kind == "tanh"):
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
        elif graph.op(node) in _ELEMENTWISE:
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
    if kind not in _ELEMENTWISE:
        return 0.0
    if kind in ("clamp", "clamp_min"):  # where it clips is no number that it writes
        bounds, size = graph.clip_bounds(node), sizes[node.args[0]]
        return size if bounds is None else min(size, float(bounds[0].abs().max()))
    size = max((sizes[x] for x in node.all_input_nodes), default=0.0)
    if kind == "log":
        return math.inf if node in pure else 0.0
    if kind == "masked_fill":
        value = graph.argument(node, 2, "value")
        filled = abs(value) if isinstance(value, (int, float)) else _number(gm, value)
        return max(size, filled if filled >= _MASK else 0.0)
    if kind in ("where", "maximum", "minimum"):
        filled = max([abs(v) for v in numbers] + [_number(gm, a) for a in node.args], default=0.0)
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


def _number(gm: fx.GraphModule, node: Any) -> float:
    """The size of a constant that is one number everywhere; 0 for all else."""
    if not isinstance(node, fx.Node) or not graph.is_float(node):
        return 0.0
    return abs(_single(gm, node) or 0.0)


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
    kind = graph.op(node)
    if kind in ("clamp", "clamp_min"):
        low = graph.argument(node, 1, "min")
        if isinstance(low, (int, float)) and abs(low) < _LARGE:
            return False
    return any(x in hidden for x in node.all_input_nodes)


# --- One form -------------------------------------------------------------------------------------


def write_as_fill(gm: fx.GraphModule) -> fx.GraphModule:
    """masked_fill in place of where with a number, and of a mask that is added in front of softmax.

    where(c, x, v) = masked_fill(x, not c, v). A constant that holds zeros and one number of -1000
    or less, and no row without a zero, hides what -infinity hides. ``gm`` is changed and returned.
    """
    from minq.rewrite import call, replace

    for node in list(gm.graph.nodes):
        kind = graph.op(node)
        if kind == "where" and len(node.args) == 3 and graph.is_float(node):
            condition, a, b = node.args
            for x, other, turned in ((a, b, True), (b, a, False)):
                value = _single(gm, other)
                if value is None or not _like(x, node) or not _flags(condition):
                    continue
                hides = call(node, aten.logical_not.default, condition) if turned else condition
                replace(node, call(node, aten.masked_fill.Scalar, x, hides, value))
                break
        elif kind in ("add", "sub") and not node.kwargs and len(node.args) == 2:
            _fill(gm, node)
    return graph.tidy(gm)


def _fill(gm: fx.GraphModule, node: fx.Node) -> None:
    from minq.rewrite import call, replace

    readers = list(node.users)
    last = len(graph.shape_of(node)) - 1 if graph.is_float(node) else 0
    if not readers or any(
        graph.op(u) != "softmax" or u.args[1] % (last + 1) != last for u in readers
    ):
        return
    x, mask = node.args if graph.op(node) == "sub" or _constant(node.args[1]) else node.args[::-1]
    if not _constant(mask) or not isinstance(x, fx.Node) or not _like(x, node):
        return
    value = graph.get(gm, mask.target).detach() * (-1 if graph.op(node) == "sub" else 1)
    low, zeros = float(value.min()), value == 0
    if low > -1e3 or not bool((zeros | (value == low)).all()) or not bool(zeros.any(-1).all()):
        return
    if graph.op(x) == "mul" and len(x.users) == 1:  # scores * seen, where seen is 1 or 0
        for scores, seen in (x.args[:2], x.args[1::-1]):
            if _constant(seen) and isinstance(scores, fx.Node) and _like(scores, x):
                factor = graph.get(gm, seen.target).detach()
                if bool(((factor == 1) | ((factor == 0) & ~zeros)).all()):
                    x = scores
                    break
    path, _, leaf = str(mask.target).rpartition(".")
    name = graph.unused(gm, f"{path}.hidden_by_{leaf}".lstrip("."))
    gm.get_submodule(path).register_buffer(name.rpartition(".")[2], ~zeros)
    with gm.graph.inserting_before(node):
        hides = gm.graph.get_attr(name)
    hides.meta["val"] = call(node, aten.ne.Scalar, mask, 0).meta["val"]
    replace(node, call(node, aten.masked_fill.Scalar, x, hides, -math.inf))


def _constant(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and graph.is_float(node)


def _single(gm: fx.GraphModule, a: Any) -> float | None:
    """The number that a constant is, everywhere; None for anything else."""
    if isinstance(a, (int, float)):
        return float(a)
    if graph.op(a) in ("full", "full_like", "new_full", "fill", "scalar_tensor"):
        place = {"new_full": 2, "scalar_tensor": 0}.get(graph.op(a), 1)
        value = a.args[place] if len(a.args) > place else None
        return float(value) if isinstance(value, (int, float)) else None
    if isinstance(a, fx.Node) and a.op == "get_attr":
        value = graph.get(gm, a.target)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
            return float(value)
    return None


def _like(x: Any, node: fx.Node) -> bool:
    """Whether x has the shape and the kind of the node."""
    if not isinstance(x, fx.Node) or not graph.is_float(x):
        return False
    a, b = x.meta["val"], node.meta["val"]
    return a.dtype == b.dtype and a.ndim == b.ndim and str(a.shape) == str(b.shape)


def _flags(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype is torch.bool
