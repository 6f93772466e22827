"""Simulated quantization of a whole network: which tensors of its graph get a quantizer.

The rules are those of section 2.3 of the paper:

- a layer's weight is quantized, on a signed grid around zero;
- the result of every operator that computes is quantized, on an unsigned grid with a zero-point,
  after the activation function that hardware applies before rounding (ReLU and its like);
- an operator that only moves values (reshape, max-pooling, ...) leaves them on their grid;
- branches that are concatenated are rounded once, on the grid of the result;
- the inputs of the network are quantized, whole numbers such as token ids are not;
- biases stay as they are: hardware adds them to the wide accumulator.

An operator outside these rules computes in float, and a warning names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import fx

from minq import graph, masks, ranges
from minq.quantizer import Estimator, Quantizer
from minq.recurrent import SEQUENCES, STEPS

_COMPUTING = graph.LAYERS | graph.PRODUCTS | graph.FUSED | graph.OTHERS | graph.JOINS


def insert_quantizers(
    gm: fx.GraphModule,
    *,
    weights: int | None = 8,
    activations: int | None = 8,
    per_channel: bool = False,
    group_size: int | None = None,
    symmetric: bool = False,
    weight_estimator: str | Estimator = "mse",
    activation_estimator: str | Estimator = "output",
    skip: Iterable[str] = (),
    layers: Mapping[str, Mapping[str, Any]] | None = None,
) -> fx.GraphModule:
    """Put quantizers into a captured graph; ``gm`` is changed and returned. All of them are off.

    weights, activations: bits, or None for none of that kind.
    per_channel: one scale for each output channel of a weight.
    group_size: one for each so many weights of a channel, which per_channel=True must allow.
    symmetric: activations too get a signed grid without zero-point.
    skip: layers that stay in float, by name or pattern, as ``"classifier"`` or ``"features.0.*"``.
    layers: other settings for some layers, {pattern: {"weights": 4, "activations": 8,
        "per_channel": True, "group_size": 32, "symmetric": True, "groups": 8}}; the first pattern
        that fits counts. groups: the last axis of the activation gets so many ranges, see
        ``ranges.grouped``.

    Quantizers are submodules, ``features.0.0.weight_quantizer`` and ``features.0.2.quantizer``.
    Raises ValueError for a pattern that fits nothing.
    """
    if quantizers(gm):
        raise ValueError("the graph has quantizers already; start again from minq.capture")
    plan = _Plan(gm, skip, layers, weights, activations, per_channel, group_size, symmetric)
    quantized: dict[fx.Node, fx.Node] = {}
    found = plan.found = masks.find(gm)
    data = plan.data = _data(gm) - found.masks
    unsupported: dict[str, list[str]] = {}
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and graph.is_float(node):
            if node not in found.masks | found.partly:
                _after(gm, node, plan.activation(node, activation_estimator), quantized, plan)
        if node.op != "call_function" or node not in data:
            continue
        kind = graph.op(node)
        if kind not in _COMPUTING and not graph.fills_up(node):
            if kind not in graph.TRANSPARENT and kind != "rescale" and node not in found.hidden:
                unsupported.setdefault(kind, []).append(place(node))
            continue
        if plan.skips(node):
            continue
        if kind in graph.LAYERS | graph.PRODUCTS:
            _quantize_weights(gm, node, plan, weight_estimator, quantized)
        _quantize_inputs(gm, node, plan, activation_estimator, quantized)
        later = node in found.hidden or _rounded_later(node, plan) or _on_one_scale(node, plan)
        if graph.is_float(node) and not later:
            _after(gm, node, plan.activation(node, activation_estimator), quantized, plan)
    plan.check()
    _warn_of_floats(gm, plan)
    for kind, where in unsupported.items():
        warnings.warn(
            f"{kind} is not among the operators that are quantized and stays in float, in "
            f"{', '.join(where[:5])}{' ...' if len(where) > 5 else ''}; "
            f"{_SEQUENCE if kind in SEQUENCES else _REWRITE}",
            stacklevel=3,
        )
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


def is_weight(node: fx.Node) -> bool:
    """Whether the node quantizes a weight: a parameter that a layer or a product reads."""
    if not is_quantizer(node) or node.args[0].op != "get_attr":
        return False
    return any(graph.op(user) in graph.LAYERS | graph.PRODUCTS for user in node.users)


def place(node: fx.Node) -> str:
    """Where in the model the node comes from: "layer1.0", or "layer1.0.add" in a larger module."""
    if node.op == "placeholder":
        return str(node.target)
    if graph.is_layer(node):
        return graph.layer_name(node)
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    alone = "torch.nn.modules" in kind and not kind.endswith(("MultiheadAttention", "Sequential"))
    return path if alone and path else f"{path}.{graph.op(node)}".lstrip(".")


# --- Which quantizer, and where -------------------------------------------------------------------


_WHOLE = {"axis": None, "group": None}


def _outputs(node: fx.Node, weight: fx.Node) -> int | None:
    """The dimension of a weight that holds the outputs; None where it is none, or not one."""
    kind = graph.op(node)
    if kind in graph.PRODUCTS:  # rows on the left, columns on the right; a vector has one output
        axis = -2 if weight is node.args[0] else -1
        return axis if len(graph.shape_of(weight)) > 1 else None
    if kind in graph.TRANSPOSED:  # with groups it holds a channel of every group
        return 1 if graph.groups_of(node) == 1 else None
    return 0


class _Plan:
    """The settings of each layer, and which patterns were used."""

    found: masks.Masks
    data: set[fx.Node]

    def __init__(
        self, gm, skip, layers, weights, activations, per_channel, group_size, symmetric
    ) -> None:
        self.gm = gm
        self.skip = {skip: False} if isinstance(skip, str) else dict.fromkeys(skip, False)
        self.layers, self.used = dict(layers or {}), set()
        self.default = {
            "weights": weights,
            "activations": activations,
            "per_channel": per_channel,
            "group_size": group_size,
            "symmetric": symmetric,
            "groups": None,
        }
        for pattern, setting in self.layers.items():
            if unknown := set(setting) - set(self.default):
                raise ValueError(
                    f"layers[{pattern!r}] has {', '.join(sorted(unknown))}; it may have "
                    f"{', '.join(self.default)}"
                )

    def skips(self, node: fx.Node) -> bool:
        hits = [pattern for pattern in self.skip if fnmatch(place(node), pattern)]
        self.skip.update(dict.fromkeys(hits, True))
        return bool(hits)

    def setting(self, node: fx.Node) -> dict[str, Any]:
        names = [place(node)]
        if graph.op(node) in graph.FUSED and graph.is_layer(node.args[0]):
            names.append(place(node.args[0]))  # what a layer and its ReLU give is one tensor
        for pattern, setting in self.layers.items():
            if any(fnmatch(name, pattern) for name in names):
                self.used.add(pattern)
                return self.default | dict(setting)
        return self.default

    def weight(
        self, node: fx.Node, weight: fx.Node, estimator: str | Estimator
    ) -> Quantizer | None:
        setting, axis = self.setting(node), None
        if setting["weights"] is None:
            return None
        if setting["per_channel"]:
            axis = _outputs(node, weight)
        if setting["group_size"] is not None and axis is None:
            raise ValueError(
                f"{place(node)}: groups are cut out of output channels, and this weight has one "
                "scale for all of them; pass per_channel=True, or skip= the layer"
            )
        return Quantizer(
            setting["weights"],
            signed=True,
            symmetric=True,
            axis=axis,
            group=setting["group_size"],
            estimator=estimator,
        )

    def activation(self, node: fx.Node, estimator: str | Estimator) -> Quantizer | None:
        setting = self.setting(node)
        if setting["activations"] is None or self.skips(node):
            return None
        both, groups = setting["symmetric"], setting["groups"]
        quantizer = Quantizer(
            setting["activations"],
            signed=both,
            symmetric=both,
            axis=None if groups is None else -1,
            estimator=estimator,
        )
        if groups is not None:
            quantizer.estimate = partial(
                ranges.grouped, groups=groups, estimate=partial(quantizer.estimate, **_WHOLE)
            )
        return quantizer

    def check(self) -> None:
        unused = [p for p, hit in self.skip.items() if not hit]
        unused += [p for p in self.layers if p not in self.used]
        if unused:
            names = ", ".join(list(graph.layers(self.gm))[:8])
            raise ValueError(f"no layer is called {', '.join(unused)}; there are {names}, ...")


def _data(gm: fx.GraphModule) -> set[fx.Node]:
    """All that carries real numbers of input or parameters: no shapes, indices or masks."""
    data = set()
    for node in gm.graph.nodes:
        if graph.op(node) in graph.MAKERS:
            continue
        given = node.op in ("placeholder", "get_attr")
        if graph.is_real(node):
            if given or any(x in data for x in node.all_input_nodes):
                data.add(node)
    return data


def _after(gm, node, quantizer, quantized, plan, name=None) -> None:
    """Put a quantizer between a node and all that reads it, but for masks."""
    if quantizer is None or node in quantized:
        return
    if node.op == "get_attr":
        name = f"{node.target}_quantizer"
    else:
        name = f"{name or place(node)}.quantizer".lstrip(".")
    name = graph.unused(gm, name)
    quantizer.off().to(graph.device_of(gm))
    gm.add_submodule(name, quantizer)
    users = [user for user in node.users if user not in plan.found.masks]
    with gm.graph.inserting_after(node):
        new = gm.graph.call_module(name, (node,))
    new.meta.update(node.meta)
    for user in users:
        user.replace_input_with(node, new)
    quantized[node] = quantized[new] = new


def _quantize_weights(gm, node, plan, estimator, quantized) -> None:
    operands = node.args if graph.op(node) in graph.PRODUCTS else [graph.weight_node(node)]
    for weight in operands:
        if weight.op == "get_attr" and graph.is_float(weight):
            _after(gm, weight, plan.weight(node, weight, estimator), quantized, plan)


def _warn_of_floats(gm: fx.GraphModule, plan: _Plan) -> None:
    """Name the layers whose weight or input is on no grid, though nobody asked for that."""
    weights, inputs = [], []
    for node in gm.graph.nodes:
        if graph.op(node) not in graph.LAYERS | graph.PRODUCTS or plan.skips(node):
            continue
        setting = plan.setting(node)
        if graph.op(node) in graph.LAYERS and setting["weights"] is not None:
            if not is_quantizer(graph.weight_node(node)):
                weights.append(place(node))
        if setting["activations"] is not None and any(map(plan.found.hides, _operands(node))):
            inputs.append(place(node))
    for names, what in ((weights, "weight"), (inputs, "input")):
        if names:
            warnings.warn(
                f"the {what} of {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} "
                f"{_REASONS[what]}",
                stacklevel=4,
            )


_SEQUENCE = f"its sequences must have a fixed length (with batch_first=True) of at most {STEPS}"

_REWRITE = "pass skip= for the layers around it, or rewrite it"

_REASONS = {
    "weight": "is computed from the network's input and has no grid of its own; pass skip= for the "
    "layer, or rewrite it",
    "input": "may hold the large numbers of a mask and stays in float; mask behind the layer, or "
    "pass skip= for it",
}


def _quantize_inputs(gm, node, plan, estimator, quantized) -> None:
    """Whatever the operator reads must be on a grid: what came from float gets a quantizer here."""
    for x in _operands(node):
        source = _source(x)
        if source in quantized or not graph.is_float(source):
            continue
        if x in plan.found.masks or {x, source} & plan.found.hidden:
            continue
        if source in plan.data and graph.op(source) in _COMPUTING and not plan.skips(source):
            continue  # rounded after the operator in between, or together with others
        if graph.op(node) in graph.FUSED and x is node.args[0]:
            continue  # rounded behind the activation function
        if source.op == "get_attr":  # a constant that is added, such as a positional embedding
            _after(gm, source, plan.activation(node, estimator), quantized, plan)
        else:
            name = f"{place(node)}.input"
            _after(gm, x, plan.activation(node, estimator), quantized, plan, name)


def _operands(node: fx.Node) -> list[fx.Node]:
    """The data an operator computes with: no weights, biases, masks or whole numbers."""
    kind = graph.op(node)
    if kind in graph.LAYERS:
        return [] if kind == "embedding" else [graph.input_of(node)]
    if kind in graph.SINGULAR:
        return []
    if kind in graph.JOINS:
        inputs = graph.parts_of(node)
    elif kind in graph.PRODUCTS or kind in ("add", "sub", "rsub", "mul", "div", "pow"):
        inputs = list(node.args[:2])
    else:
        inputs = list(node.args[:1])
    return [x for x in inputs if isinstance(x, fx.Node) and graph.is_float(x)]


def _source(node: fx.Node) -> fx.Node:
    """Where the values were computed: back through all that only moves them."""
    while graph.op(node) in graph.TRANSPARENT or graph.op(node) == "rescale":
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs or not graph.is_real(inputs[0]):
            break  # whole numbers that become real ones start here
        if graph.op(node) == "getitem" and graph.op(inputs[0]) not in graph.TRANSPARENT:
            break  # one of the results of an operator that computes
        node = inputs[0]
    return node


def _on_one_scale(node: fx.Node, plan: _Plan) -> bool:
    """Whether an embedding is on a grid as it is, or is added to others before it is rounded."""
    if graph.op(node) != "embedding":
        return False
    setting = plan.setting(node)
    many = setting["weights"] is not None and setting["per_channel"]
    return not many or all(graph.op(user) in ("add", "sub") for user in node.users)


def _rounded_later(node: fx.Node, plan: _Plan) -> bool:
    """Whether the next operator works on the accumulator, before anything is rounded."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    if user in plan.found.hidden:
        return False
    if graph.op(user) in graph.FUSED:
        return graph.op(node) not in graph.FUSED and user.args[0] is node
    return graph.op(user) in graph.JOINS | graph.SINGULAR
