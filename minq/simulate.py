"""Simulated quantization of a whole network: which tensors of its graph get a quantizer.

The rules are those of section 2.3 of the paper, but that an average gets a grid of its own:

- a layer's weight is quantized, on a signed grid around zero;
- the result of every operator that computes is quantized, on an unsigned grid with a zero-point,
  after the activation function that hardware applies before rounding (ReLU and its like);
- an operator that only moves values (reshape, max-pooling, ...) leaves them on their grid;
- keys and values of attention get a quantizer of their own where a cache is asked for;
- branches that are concatenated are rounded once, on the grid of the result;
- the inputs of the network are quantized, whole numbers such as token ids are not;
- biases stay as they are: hardware adds them to the wide accumulator.

An operator outside these rules computes in float, and a warning names it.
"""

from __future__ import annotations

import warnings
from fnmatch import fnmatch
from typing import Any

from torch import fx

from minq import attention, graph, masks
from minq.cache import Cache
from minq.export.recurrent import SEQUENCES, STEPS
from minq.granularity import Granularity
from minq.graph import place
from minq.quantizer import Quantizer
from minq.scheme import Scheme


def insert_quantizers(
    gm: fx.GraphModule, scheme: Scheme | None = None, **settings: Any
) -> fx.GraphModule:
    """Put quantizers into a captured graph. All of them are off.

    Quantizers are submodules, ``features.0.0.weight_quantizer`` and ``features.0.2.quantizer``.

    Args:
        gm: what ``minq.capture`` returns; it is changed.
        scheme, settings: a ``minq.Scheme``, or its fields one by one.

    Returns:
        ``gm`` itself.

    Raises:
        ValueError: a pattern of ``skip`` or ``layers`` fits nothing, or weights that share one
            scale are to be cut into groups.
    """
    if quantizers(gm):
        raise ValueError("the graph has quantizers already; start again from minq.capture")
    plan = _Plan(gm, Scheme.made(scheme, settings))
    _quantize_cache(plan)
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and graph.is_float(node):
            if node not in plan.found.masks | plan.found.partly:
                _after(node, plan.activation(node), plan)
        elif plan.computes(node) and not plan.skips(node):
            if graph.traits(node).multiplies:
                _quantize_weights(node, plan)
            _quantize_inputs(node, plan)
            if graph.is_float(node) and not _stays(node, plan):
                _after(node, plan.activation(node), plan)
    plan.check()
    _warn_of_floats(plan)
    _warn_of_unsupported(plan)
    return graph.tidy(gm)


def quantizers(gm: fx.GraphModule) -> dict[str, Quantizer]:
    """All quantizers by name, in the order of computation."""
    return {
        node.target: gm.get_submodule(node.target) for node in gm.graph.nodes if is_quantizer(node)
    }


def weight_quantizers(gm: fx.GraphModule) -> dict[str, Quantizer]:
    """The quantizers of parameters, by name."""
    return {n.target: gm.get_submodule(n.target) for n in gm.graph.nodes if is_weight(n)}


def activation_quantizers(gm: fx.GraphModule) -> dict[str, Quantizer]:
    """The quantizers of all that depends on the input, by name."""
    weights = weight_quantizers(gm)
    return {name: q for name, q in quantizers(gm).items() if name not in weights}


def is_quantizer(node: fx.Node) -> bool:
    """Whether the node calls a quantizer."""
    if node.op != "call_module":
        return False
    return isinstance(node.graph.owning_module.get_submodule(node.target), Quantizer)


def place_of(node: fx.Node) -> str:
    """The name that ``layers=`` takes for a quantizer: "a" of a.quantizer and a.input.quantizer."""
    return str(node.target).removesuffix(".quantizer").removesuffix(".input")


def is_weight(node: fx.Node) -> bool:
    """Whether the node quantizes a weight: a parameter that a layer or a product reads."""
    if not is_quantizer(node) or node.args[0].op != "get_attr":
        return False
    return any(graph.traits(user).multiplies for user in node.users)


# --- Which quantizer, and where -------------------------------------------------------------------


def _outputs(node: fx.Node, weight: fx.Node) -> int | None:
    """The dimension of a weight that holds the outputs; None where it is none, or not one."""
    of = graph.traits(node)
    if of.role == "product":  # rows on the left, columns on the right; a vector has one output
        axis = -2 if weight is node.args[0] else -1
        return axis if len(graph.shape_of(weight)) > 1 else None
    if of.role == "transposed":  # with groups it holds a channel of every group
        return 1 if graph.groups_of(node) == 1 else None
    return 0


class _Plan:
    """What is known while quantizers are put in: each layer's scheme, masks, what is done."""

    def __init__(self, gm: fx.GraphModule, scheme: Scheme) -> None:
        self.gm, self.scheme = gm, scheme
        self.found = masks.find(gm)
        self.data = _data(gm) - self.found.masks
        self.used: set[str] = set()
        """Patterns of the scheme that fit a layer."""
        self.quantized: set[fx.Node] = set()
        """What is on a grid: quantizers, and what they read."""
        self.unsupported: dict[str, list[str]] = {}
        """Where each kind of operator stays in float because there is no rule for it."""

    def computes(self, node: fx.Node) -> bool:
        """Whether the operator computes with data, by a rule; if there is none, it is noted."""
        if node.op != "call_function" or node not in self.data:
            return False
        of = graph.traits(node)
        if of.computes or graph.fills_up(node):
            return True
        if not of.passes and node not in self.found.hidden:
            self.unsupported.setdefault(graph.op(node), []).append(place(node))
        return False

    def skips(self, node: fx.Node) -> bool:
        hits = [pattern for pattern in self.scheme.skip if fnmatch(place(node), pattern)]
        self.used.update(hits)
        return bool(hits)

    def of(self, node: fx.Node) -> Scheme:
        names = [place(node)]
        if graph.traits(node).role == "activation" and graph.is_layer(node.args[0]):
            names.append(place(node.args[0]))  # what a layer and its ReLU give is one tensor
        if (pattern := self.scheme.pattern_of(names)) is None:
            return self.scheme
        self.used.add(pattern)
        return self.scheme.with_pattern(pattern)

    def weight(self, node: fx.Node, weight: fx.Node) -> Quantizer | None:
        quantizer = self.of(node).weight_quantizer(_outputs(node, weight))
        granularity = Granularity() if quantizer is None else quantizer.granularity
        if granularity.group is not None and granularity.axis is None:
            raise ValueError(
                f"{place(node)}: groups are cut out of output channels, and this weight has one "
                "scale for all of them; pass per_channel=True, or skip= the layer"
            )
        return quantizer

    def activation(self, node: fx.Node) -> Quantizer | None:
        scheme = self.of(node)
        return None if self.skips(node) else scheme.activation_quantizer()

    def check(self) -> None:
        patterns = (*self.scheme.skip, *(self.scheme.layers or ()))
        if unused := [pattern for pattern in patterns if pattern not in self.used]:
            names = ", ".join(list(graph.layers(self.gm))[:8])
            raise ValueError(f"no layer is called {', '.join(unused)}; there are {names}, ...")


def _data(gm: fx.GraphModule) -> set[fx.Node]:
    """All that carries real numbers of input or parameters: no shapes, indices or masks."""
    data = set()
    for node in gm.graph.nodes:
        if graph.traits(node).role == "make":
            continue
        given = node.op in ("placeholder", "get_attr")
        if graph.is_real(node):
            if given or any(x in data for x in node.all_input_nodes):
                data.add(node)
    return data


def _after(node: fx.Node, quantizer: Quantizer | None, plan: _Plan, name: str = "") -> None:
    """Put a quantizer between a node and all that reads it, but for masks."""
    if quantizer is None or node in plan.quantized:
        return
    if node.op == "get_attr":
        name = f"{node.target}_quantizer"
    else:
        name = f"{name or place(node)}.quantizer".lstrip(".")
    gm = plan.gm
    name = graph.unused(gm, name)
    quantizer.off().to(graph.device_of(gm))
    gm.add_submodule(name, quantizer)
    users = [user for user in node.users if user not in plan.found.masks]
    with gm.graph.inserting_after(node):
        new = gm.graph.call_module(name, (node,))
    new.meta.update(node.meta)
    for user in users:
        user.replace_input_with(node, new)
    plan.quantized |= {node, new}


def _quantize_weights(node: fx.Node, plan: _Plan) -> None:
    operands = node.args if graph.traits(node).role == "product" else [graph.weight_node(node)]
    for weight in operands:
        if weight.op == "get_attr" and graph.is_float(weight):
            _after(weight, plan.weight(node, weight), plan)


def _quantize_cache(plan: _Plan) -> None:
    """Keys and values, before anything else rounds them."""
    found = list(attention.stored(plan.gm))
    if plan.scheme.cache is not None and not found:
        raise ValueError("there is no softmax between two products, so no cache; leave cache=None")
    for node, kind, turned in found:
        cache = Cache.made(plan.of(node).cache)
        if cache is not None and not plan.skips(node):
            name = f"{graph.module_of(node)[0]}.{kind}".lstrip(".")
            _after(node, cache.quantizer(kind, turned), plan, name)


def _warn_of_floats(plan: _Plan) -> None:
    """Name the layers whose weight or input is on no grid, though nobody asked for that."""
    weights, inputs = [], []
    for node in plan.gm.graph.nodes:
        if not graph.traits(node).multiplies or plan.skips(node):
            continue
        scheme = plan.of(node)
        if graph.traits(node).layer and scheme.weights is not None:
            if not is_quantizer(graph.weight_node(node)):
                weights.append(place(node))
        if scheme.activations is not None and any(map(plan.found.hides, _operands(node))):
            inputs.append(place(node))
    for names, what in ((weights, "weight"), (inputs, "input")):
        if names:
            warnings.warn(f"the {what} of {_some(names)} {_REASONS[what]}", stacklevel=4)


def _warn_of_unsupported(plan: _Plan) -> None:
    """Name the operators that no rule is for."""
    for kind, places in plan.unsupported.items():
        warnings.warn(
            f"{kind} is not among the operators that are quantized and stays in float, in "
            f"{_some(places)}; {_SEQUENCE if kind in SEQUENCES else _REWRITE}",
            stacklevel=4,
        )


def _some(names: list[str]) -> str:
    names = [*dict.fromkeys(names)]
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


_SEQUENCE = f"its sequences must have a fixed length (with batch_first=True) of at most {STEPS}"

_REWRITE = "pass skip= for the layers around it, or rewrite it"

_REASONS = {
    "weight": "is computed from the network's input and has no grid of its own; pass skip= for the "
    "layer, or rewrite it",
    "input": "may hold the large numbers of a mask and stays in float; mask behind the layer, or "
    "pass skip= for it",
}


def _quantize_inputs(node: fx.Node, plan: _Plan) -> None:
    """Whatever the operator reads must be on a grid: what came from float gets a quantizer here."""
    for x in _operands(node):
        source = _source(x)
        if source in plan.quantized or not graph.is_float(source):
            continue
        if x in plan.found.masks or {x, source} & plan.found.hidden:
            continue
        if source in plan.data and graph.traits(source).computes and not plan.skips(source):
            continue  # rounded after the operator in between, or together with others
        if graph.traits(node).role == "activation" and x is node.args[0]:
            continue  # rounded behind the activation function
        if source.op == "get_attr":  # a constant that is added, such as a positional embedding
            _after(source, plan.activation(node), plan)
        else:
            _after(x, plan.activation(node), plan, f"{place(node)}.input")


def _operands(node: fx.Node) -> list[fx.Node]:
    """The data an operator computes with: no weights, biases, masks or whole numbers, and nothing
    that it divides by or takes the logarithm of."""
    if graph.traits(node).singular:
        return []
    given = graph.operands(node)[: 1 if graph.op(node) == "div" else None]
    return list(filter(graph.is_float, given))


def _source(node: fx.Node) -> fx.Node:
    """Where the values were computed: back through all that only moves them."""
    while graph.traits(node).passes:
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs or not graph.is_real(inputs[0]):
            break  # whole numbers that become real ones start here
        if graph.op(node) == "getitem" and graph.traits(inputs[0]).role != "move":
            break  # one of the results of an operator that computes
        node = inputs[0]
    return node


def _stays(node: fx.Node, plan: _Plan) -> bool:
    """Whether what the operator gives gets no quantizer of its own here."""
    if node in plan.found.hidden or _has_pole(node):
        return True
    return _rounded_later(node, plan) or _on_one_scale(node, plan)


def _has_pole(node: fx.Node) -> bool:
    """Whether all that reads the node divides by it, or takes its logarithm: at the level 0 that
    would be infinite. So do functions of one tensor behind each other, as sqrt(mean(x^2) + eps)."""
    of = graph.traits(node)
    return _leads_to_pole(node, not _others(node) and (of.tabulated or of.integer == "rational"))


def _leads_to_pole(node: fx.Node, computed: bool) -> bool:
    """The same behind moves; behind other functions only where the node is one of them itself."""

    def at(user: fx.Node) -> bool:
        of = graph.traits(user)
        if of.singular or (graph.op(user) == "div" and user.args[0] is not node):
            return True
        alone = of.tabulated or of.role == "activation" or of.integer == "rational"
        if not (of.passes or (computed and alone)) or user.args[0] is not node:
            return False
        return not any(map(graph.is_float, _others(user))) and _leads_to_pole(user, computed)

    return bool(node.users) and all(map(at, node.users))


def _others(node: fx.Node) -> list[fx.Node]:
    """What an operator reads beside its first input; what gives it a shape is not read."""
    return [] if graph.traits(node).shape_operand else node.all_input_nodes[1:]


def _on_one_scale(node: fx.Node, plan: _Plan) -> bool:
    """Whether an embedding is on a grid as it is, or is added to others before it is rounded."""
    if graph.traits(node).role != "embedding":
        return False
    scheme = plan.of(node)
    many = scheme.weights is not None and scheme.per_channel
    return not many or all(graph.op(user) in ("add", "sub") for user in node.users)


def _rounded_later(node: fx.Node, plan: _Plan) -> bool:
    """Whether the next operator works on the accumulator, before anything is rounded."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    if user in plan.found.hidden:
        return False
    if graph.traits(user).role == "activation":
        return graph.traits(node).role != "activation" and user.args[0] is node
    return graph.traits(user).role == "join"
