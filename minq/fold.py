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

    Such as a weight of length 1 (weight normalization), the queries' part of a larger weight, or
    shares that sum to 1 (EfficientDet's fusion of resolutions). The result is a parameter, or a
    buffer where no parameter is in it; it has the name of the one parameter that it replaces, or
    that name with a number. A single number that something is multiplied or divided by goes into
    the graph.
    """
    import torch
    from torch import fx

    from minq import graph

    values: dict[fx.Node, object] = {}  # of all that is known
    origins: dict[fx.Node, set[fx.Node]] = {}  # the parameters and buffers behind it
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            value = graph.get(gm, node.target)
            if isinstance(value, torch.Tensor):
                values[node], origins[node] = value.detach(), {node}
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
        _store(gm, name, values[node], trained)
        with gm.graph.inserting_before(node):
            new = gm.graph.get_attr(name)
        new.meta.update(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in values)
    return graph.tidy(gm)


def _decided(node, values) -> bool:
    """Whether the operator's inputs are known, and decide its result."""
    import torch

    from minq import graph

    if node.op != "call_function" or not all(x in values for x in node.all_input_nodes):
        return False
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    if graph.is_layer(node) and graph.op(node) == "embedding":
        return False  # a table of positions stays a layer: its weight has a weight's bits
    return bool(node.all_input_nodes) or graph.op(node) in graph.MAKERS - {"empty"}


def _small(value, inputs) -> bool:
    """No table of what is easily computed again: not far above what it is made of."""
    import torch

    size = value.numel() if isinstance(value, torch.Tensor) else 0
    return size <= max(2**22, 4 * sum(x.numel() for x in inputs))


def _numbers(node, values) -> None:
    """A factor or summand that is one number goes into the graph."""
    from minq import graph

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
    import re
    from itertools import count

    import torch

    from minq import graph

    given = {x: graph.get(gm, x.target) for x in origins}
    trained = [x for x, v in given.items() if isinstance(v, torch.nn.Parameter)]
    if not origins:
        path = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1][0]
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


def _store(gm, name, value, trained) -> None:
    """Make the parameter or buffer of that name, in place of what has it."""
    import torch

    path, _, leaf = name.rpartition(".")
    module = gm
    for part in path.split(".") if path else ():  # a module without parameters is not in the graph
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    for kind in (module._parameters, module._buffers):
        kind.pop(leaf, None)
    module.__dict__.pop(leaf, None)
    value = value.detach().clone(memory_format=torch.contiguous_format)
    if trained and value.is_floating_point():
        module.register_parameter(leaf, torch.nn.Parameter(value))
    else:
        module.register_buffer(leaf, value)


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
    from minq.idioms import write_idioms

    return add_stacked(write_idioms(fold_constants(fold_batch_norms(gm))))
