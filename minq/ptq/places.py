"""Where the scale of a channel can move: from what makes an activation into the linear layers
that read it.

    W x = (W S) (S^-1 x)

S^-1 goes into the factor gamma of a norm, or into the outputs of the linear layer before. So it is
with the values of an attention layer, whose weighted sums the output layer reads, and with the
product of two branches in an MLP, one of which is linear:

    W_o (P V) S S^-1 = W_o S P (V S^-1),        W (f(g) * u) = W S (f(g) * (S^-1 u))

Which output channel of the maker each reader's input is, is found by following the numbers of the
channels through the operators that move, copy and multiply them. Where heads share their values,
several inputs of the reader are one channel of the maker and get one scale.

Who reads a norm and is no linear layer, such as the residual branch of a transformer that
normalizes behind each addition (BERT), gets the factor s back as an operator of its own, which
costs hardware a requantization for each channel. The function of the network does not change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.ptq import equalize
from minq.ptq.channels import scaled_bounds

aten = torch.ops.aten


@dataclass
class Place:
    """Channels, what makes them, and the linear layers that read them.

    maker: a norm, a product with a factor for each channel, or a linear layer. parameters: those
    that are divided by s. readers: of each linear layer, which channel of the maker each of its
    inputs is, (inputs,). others: users of the maker that must not notice.
    """

    maker: fx.Node
    parameters: list[fx.Node]
    readers: dict[fx.Node, Tensor] = field(default_factory=dict)
    others: list[fx.Node] = field(default_factory=list)

    @property
    def norm(self) -> bool:
        """Whether the maker has a factor for each channel, and is no linear layer."""
        return graph.op(self.maker) != "linear"

    def average(self, of_inputs: dict[fx.Node, Tensor]) -> Tensor:
        """A number for each input of all readers, as its mean for each channel of the maker."""
        index = torch.cat(list(self.readers.values()))
        values = torch.cat([of_inputs[reader] for reader in self.readers])
        channels = int(graph.shape_of(self.maker)[-1])
        total = values.new_zeros(channels).index_add_(0, index, values)
        return total / index.bincount(minlength=channels).clamp(min=1)


def places(gm: fx.GraphModule, batch: list[Any]) -> list[Place]:
    """All places of a network, in the order of computation.

    Args:
        gm: a captured graph without quantizers.
        batch: a value for every input; two samples of it are looked at.

    Returns:
        Those with at least one reader.
    """
    follow = _Follow(gm)
    few = [v[:2] if _grows(node) else v for node, v in zip(_inputs(gm), batch, strict=True)]
    with torch.no_grad():
        follow.run(*few)
    for place in (found := follow.places.values()):
        for reader in list(place.readers):
            if follow.via[place.maker, reader] in place.others:
                del place.readers[reader]
    return [p for p in found if p.readers and (p.norm or not p.others)]


def scale_place(gm: fx.GraphModule, place: Place, s: Tensor) -> None:
    """Divide what the maker gives by s, (channels,), and multiply what the readers read."""
    if place.norm:
        for parameter in place.parameters:
            value = graph.get(gm, parameter.target).detach()
            graph.put(gm, parameter.target, (value / s).to(value.dtype))
    else:
        weight, bias = graph.weight_of(gm, place.maker), graph.bias_of(gm, place.maker)
        weight, bias = equalize.scale_outputs(weight, bias, s)
        graph.set_weight(gm, place.maker, weight)
        if bias is not None:
            graph.set_bias(gm, place.maker, bias)
    for reader, index in place.readers.items():
        graph.own_weight(gm, reader)
        weight = graph.weight_of(gm, reader)
        graph.set_weight(gm, reader, equalize.scale_inputs(weight, s[index]))
    _restore(gm, place.maker, place.others, s)


def _restore(gm: fx.GraphModule, node: fx.Node, users: list[fx.Node], s: Tensor) -> None:
    """Multiply by s in front of these users."""
    if not users:
        return
    name = graph.unused(gm, f"{node.name}_smoothing")
    gm.register_buffer(name, s)
    with gm.graph.inserting_after(node):
        constant = gm.graph.get_attr(name)
    with gm.graph.inserting_after(constant):
        product = gm.graph.call_function(aten.mul.Tensor, (node, constant))
    product.meta.update(node.meta)
    constant.meta["val"] = s
    graph.note(constant, smoothing=True)
    for user in users:
        user.replace_input_with(node, product)


def _inputs(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def _grows(node: fx.Node) -> bool:
    """Whether the first dimension of an input is the batch, of any size."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and not graph.is_fixed(value.shape[0])


# --- What makes channels --------------------------------------------------------------------------


def _parameters(node: fx.Node) -> list[fx.Node] | None:
    """What is divided to scale the channels (last axis) of a node; None where nothing can be."""
    kind = graph.op(node)
    if kind in ("layer_norm", "rms_norm") and len(node.args[1]) == 1:
        gamma = graph.argument(node, 2, "weight")
        beta = graph.argument(node, 3, "bias") if kind == "layer_norm" else None
    elif kind == "mul":
        constants = [a for a in node.args[:2] if isinstance(a, fx.Node) and a.op == "get_attr"]
        gamma, beta = (constants[0] if len(constants) == 1 else None), None
        if gamma is None or graph.shape_of(gamma) != (graph.shape_of(node)[-1],):
            return None
    elif kind == "linear" and graph.is_layer(node):
        gamma, beta = graph.parameter_of(graph.weight_node(node)), graph.bias_node(node)
    else:
        return None
    found = [p for p in (gamma, beta) if p is not None]
    fits = gamma is not None and all(p.op == "get_attr" and len(p.users) == 1 for p in found)
    return found if fits else None


# --- Where channels go ----------------------------------------------------------------------------


class _Follow(fx.Interpreter):
    """Computes a network, and beside it which channel of which maker each number belongs to.

    ``labels``: of a node, {(maker, its user): channel of each number}, in the value's shape.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.places: dict[fx.Node, Place] = {}
        self.labels: dict[fx.Node, dict[tuple[fx.Node, fx.Node], Any]] = {}
        self.via: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        """Of a maker and a reader, the maker's user on the way."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.labels[n] = {}
        given = [(x, key, v) for x in n.all_input_nodes for key, v in self._of(x, n).items()]
        makers = [maker for _, (maker, _), _ in given]
        for x, (maker, user), label in given:
            once = makers.count(maker) == 1  # or its scale would come twice
            new = self._behind(n, x, label, value) if once else None
            if new is None:
                self._lost(maker, user)
            elif graph.op(n) == "linear":
                self.places[maker].readers[n] = new[(0,) * (new.ndim - 1)].clone()
                self.via[maker, n] = user
            else:
                self.labels[n][maker, user] = new
        if isinstance(value, Tensor) and (found := _parameters(n)) is not None:
            self.places[n] = Place(n, found)
        for x in self.user_to_last_uses.get(n, ()):
            self.labels.pop(x, None)
        return value

    def _of(self, x: fx.Node, user: fx.Node) -> dict[tuple[fx.Node, fx.Node], Any]:
        """The labels of an input; a maker's own begin with each of its users."""
        if x not in self.places:
            return self.labels.get(x, {})
        value = self.env[x]
        own = torch.arange(value.shape[-1], device=value.device).expand(value.shape)
        return {(x, user): own, **self.labels.get(x, {})}

    def _behind(self, n: fx.Node, x: fx.Node, label: Any, value: Any) -> Any:
        """The labels behind an operator; None where a channel's scale does not pass."""
        kind, of = graph.op(n), graph.traits(n)
        if kind == "linear":
            own = graph.is_layer(n) and x is graph.input_of(n)
            return label if own and bool((label == label[(0,) * (label.ndim - 1)]).all()) else None
        if kind in ("mul", "rescale", "neg", "to", "_to_copy", "dropout"):
            return None if n.args[:2] == (x, x) else label.expand(value.shape)
        if kind in ("matmul", "bmm", "mm"):  # weighted sums of rows, all of the same channels
            first = label[..., :1, :]
            same = x is n.args[1] and x is not n.args[0] and label.ndim > 1
            return first.expand(value.shape) if same and bool((label == first).all()) else None
        if of.role == "move" and x is n.args[0] and not (
            of.ordered or of.zero_fill or of.float_kernel or of.value_at is not None
        ):
            known = lambda a: label if a is x else self.env[a]  # noqa: E731
            args, kwargs = fx.map_arg((n.args, n.kwargs), known)
            return n.target(*args, **kwargs)
        homogeneous = of.homogeneous and of.role == "activation" and kind != "prelu"
        return label if homogeneous and scaled_bounds(n) is None else None

    def _lost(self, maker: fx.Node, user: fx.Node) -> None:
        """What the user makes of the channels is not read by linear layers alone."""
        if user not in self.places[maker].others:
            self.places[maker].others.append(user)
