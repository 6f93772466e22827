"""Constants: what parameters alone decide is computed once, and sums of stacks are sums."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import torch
from torch import fx

from minq import graph


def fold_constants(gm: fx.GraphModule) -> fx.GraphModule:
    """Compute once what parameters alone decide; ``gm`` is changed and returned.

    Such as a weight of length 1 (weight normalization), the queries' part of a larger weight, or
    shares that sum to 1 (EfficientDet's fusion of resolutions). The result is a parameter, or a
    buffer where no parameter is in it; it has the name of the one parameter that it replaces, or
    that name with a number. A single number that something is multiplied or divided by goes into
    the graph.
    """
    values: dict[fx.Node, Any] = {}  # of all that is known
    origins: dict[fx.Node, set[fx.Node]] = {}  # the parameters and buffers behind it
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            value = graph.get(gm, node.target)
            if isinstance(value, torch.Tensor):
                values[node], origins[node] = value.detach(), {node}
        elif (value := _made(gm, node)) is not None:
            values[node], origins[node] = value, set()
        elif _decided(node, values):
            origins[node] = set().union(*(origins[x] for x in node.all_input_nodes))
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            with torch.no_grad():
                value = node.target(*args, **kwargs)
            if _small(value, [values[x] for x in origins[node]]):
                values[node] = value
    results = [
        node for node in values
        if node.op == "call_function" and isinstance(values[node], torch.Tensor)
        and any(user not in values for user in node.users)
    ]  # fmt: skip
    for node in results:
        _numbers(node, values)
    results = [node for node in results if any(user not in values for user in node.users)]
    makes: dict[fx.Node, int] = {}  # how many results a parameter has a share in
    for node in results:
        for x in origins[node]:
            makes[x] = makes.get(x, 0) + 1
    for node in results:
        if len(origins[node]) == 1 and (x := next(iter(origins[node]))) and _same(values, node, x):
            node.replace_all_uses_with(x)
            continue
        name, trained = _name(gm, node, origins[node], makes, values)
        graph.put(gm, name, values[node].contiguous(), trained=trained)
        with gm.graph.inserting_before(node):
            new = gm.graph.get_attr(name)
        new.meta.update(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in values)
    return graph.tidy(gm)


def _decided(node, values) -> bool:
    """Whether the operator's inputs are known, and decide its result."""
    if node.op != "call_function" or not all(x in values for x in node.all_input_nodes):
        return False
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    if graph.is_layer(node) and graph.op(node) == "embedding":
        return False  # a table of positions stays a layer: its weight has a weight's bits
    return bool(node.all_input_nodes) or (
        graph.traits(node).role == "make" and graph.op(node) != "empty"
    )


def _made(gm, node) -> torch.Tensor | None:
    """What ``x.new_ones(3)`` gives: of ``x`` only the type counts, where the sizes are fixed."""
    if graph.traits(node).role != "make" or not node.all_input_nodes:
        return None
    number, like = graph.fill_value(node), node.meta["val"]
    if not isinstance(number, float) or not all(map(graph.is_fixed, like.shape)):
        return None
    made = torch.full([*map(int, like.shape)], number, dtype=like.dtype, device=graph.device_of(gm))
    return made if _small(made, []) else None


def _small(value, inputs) -> bool:
    """No table of what is easily computed again: not far above what it is made of."""
    size = value.numel() if isinstance(value, torch.Tensor) else 0
    return size <= max(2**22, 4 * sum(x.numel() for x in inputs))


def _numbers(node, values) -> None:
    """A factor or summand that is one number goes into the graph."""
    value = values[node]
    if value.numel() != 1 or not graph.is_float(node):
        return
    for user in list(node.users):
        if user in values or graph.op(user) not in ("mul", "div", "add", "sub") or user.kwargs:
            continue
        x, other = user.args[:2]
        if other is not node and graph.op(user) in ("mul", "add"):
            x, other = other, x
        if other is node and value.ndim <= len(graph.shape_of(x)) and x is not node:
            user.args = (x, value.item(), *user.args[2:])


def _same(values, node, x) -> bool:
    """Whether a result is the parameter itself: detached, copied, or laid out anew."""
    a, b = values[node], values[x]
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def _name(gm, node, origins, makes, values) -> tuple[str, bool]:
    """What to call a result, and whether it is trained."""
    given = {x: graph.get(gm, x.target) for x in origins}
    trained = [x for x, v in given.items() if isinstance(v, torch.nn.Parameter)]
    if not origins:
        path, _ = graph.module_of(node)
        return graph.unused(gm, f"{path}.made_{node.name}".lstrip(".")), False
    largest = max(trained or origins, key=lambda x: values[x].numel())
    alone = all(makes[x] == 1 and all(user in values for user in x.users) for x in [largest])
    name = re.sub(r"parametrizations\.(\w+)\.original\d*$", r"\1", str(largest.target))
    if graph.op(node) == "_weight_norm" or name.endswith("_orig"):
        name = re.sub("_(v|g|orig)$", "", name)
    if alone and (name == largest.target or not graph.taken(gm, name)):
        return name, bool(trained)
    numbered = (f"{name}_{k}" for k in count(1))
    return next(n for n in numbered if not graph.taken(gm, n)), bool(trained)


def add_stacked(gm: fx.GraphModule) -> fx.GraphModule:
    """a + b + ... in place of the sum over a stack of them; ``gm`` is changed and returned."""
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
