"""A captured graph read as matrix products: their shapes, their operands' bits, their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_map_only

from minq import graph
from minq.graph.batches import batches_of
from minq.mac import MatmulShape
from minq.quantizer import Quantizer
from minq.simulate import is_quantizer


class Operator(NamedTuple):
    """What the machine has to know of an operator. Weights are the operand that stays in it."""

    kind: str
    shape: MatmulShape | None
    words: dict[str, int]  # of "weights", "inputs", "outputs", "bias", each counted once
    bits: dict[str, int]  # of the first three, as they are stored
    floating: bool
    parameter: bool  # whether the weights are known before the network runs
    zero_points: tuple[bool, bool]  # whether weights and inputs may have one

    @property
    def results(self) -> int:
        """How many sums the array gives: of a transposed convolution more than outputs."""
        if (shape := self.shape) is None:
            return 0
        return shape.groups * shape.n_outputs * shape.batch


def operators(gm: fx.GraphModule, example: Any, floating: bool) -> Iterator[tuple[str, Operator]]:
    """All layers and products with their names, in the order of computation."""
    shapes, constants = shapes_of(gm, example), _constants(gm)
    for name, node in _names(gm).items():
        yield name, _read(node, shapes, constants, floating)


def shapes_of(gm: fx.GraphModule, example: Any = None) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor in the graph when it is called with ``example``.

    By default with one sample. Runs on tensors without values, so it costs neither time nor memory.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if example is None:
        values = graph.to_device_of(gm, [one_sample(node) for node in inputs])
    else:
        (values,) = batches_of(gm, [example])
    found: dict[fx.Node, torch.Size] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = self.env[node.args[0]] if is_quantizer(node) else super().run_node(node)
            if isinstance(value, Tensor):
                found[node] = value.shape
            return value

    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = tree_map_only(Tensor, mode.from_tensor, values)
            Shapes(gm).run(*fake, enable_io_processing=False)
    except DynamicOutputShapeException:  # a shape that depends on values
        with torch.no_grad():
            Shapes(gm).run(*values, enable_io_processing=False)
    return found


def one_sample(node: fx.Node) -> Any:
    """Zeros for an input of a graph, a batch of one."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return value
    sizes = [int(s) if graph.is_fixed(s) else 1 for s in value.shape]  # a letter is the batch
    return torch.zeros(sizes, dtype=value.dtype)


def _names(gm: fx.GraphModule) -> dict[str, fx.Node]:
    """Layers and products by name, in the order of computation; each call of a shared one."""
    of_weight = {_weight(node): name for name, node in graph.layers(gm).items()}
    found: dict[str, fx.Node] = {}
    for node in gm.graph.nodes:
        if graph.traits(node).multiplies:
            name = of_weight[_weight(node)] if graph.is_layer(node) else graph.place(node)
            found[graph.unused_in(found, name)] = node
    return found


def _weight(node: fx.Node) -> str:
    return graph.parameter_of(graph.weight_node(node)).target


def _constants(gm: fx.GraphModule) -> set[fx.Node]:
    """All that is known before the network runs: parameters, and what is computed from them."""
    known: set[fx.Node] = set()
    for node in gm.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (inputs and known.issuperset(inputs)):
            known.add(node)
    return known


def _read(node: fx.Node, shapes: dict, constants: set, floating: bool) -> Operator:
    """An operator as a matrix product."""
    kind, bias, y = graph.op(node), None, shapes[node]
    if graph.traits(node).layer:
        weight, x, bias = graph.weight_node(node), graph.input_of(node), graph.bias_node(node)
        shape = _layer_shape(node, shapes[weight], shapes[x], y)
    else:
        x, weight = node.args[:2]
        turned = x in constants and weight not in constants
        weight, x = (x, weight) if turned else (weight, x)
        shape = _product_shape(shapes[weight], y, turned)
    grids: dict[str, Any] = {"weights": _grid(weight), "inputs": _grid(x)}
    grids["outputs"] = _grid_after(node)
    bits = {k: 32 if floating or q is None else q.bits for k, q in grids.items()}
    words = {"weights": shapes[weight].numel(), "inputs": shapes[x].numel(), "outputs": y.numel()}
    if kind == "embedding":  # it fetches a row for each index, and leaves it on the weights' grid
        words |= {"weights": y.numel(), "inputs": 0}
        bits |= {"outputs": bits["weights"]}
    parameter, integer = weight in constants, not floating and grids["weights"] and grids["inputs"]
    offset = (
        bool(integer) and not grids["weights"].symmetric,
        bool(integer) and not grids["inputs"].symmetric,
    )
    words["bias"] = 0
    if shape and (bias is not None or (parameter and offset[1])):  # zero-points fold into it
        transposed = graph.traits(node).role == "transposed"
        words["bias"] = y[1] if transposed else shape.groups * shape.n_outputs
    return Operator(kind, shape, words, bits, not integer, parameter, offset)


def _layer_shape(node, weight, x, y) -> MatmulShape | None:
    """N, M, B of a layer. A transposed convolution multiplies its inputs, and spreads the products.

    convolution of any dimension: N = C_out / g, M = C_in / g x kernel, B = output pixels
    transposed:                   N = C_out / g x kernel, M = C_in / g, B = input pixels
    """
    if graph.op(node) == "embedding":
        return None
    groups, rows, columns = graph.groups_of(node), weight[0], weight[1:].numel()
    if graph.traits(node).role == "transposed":  # the weight is (C_in, C_out / g, *kernel)
        return MatmulShape(columns, rows // groups, x.numel() // rows, groups)
    return MatmulShape(rows // groups, columns, y.numel() // rows, groups)


def _product_shape(weight: torch.Size, y: torch.Size, turned: bool) -> MatmulShape:
    """N, M, B of x W, or of W x where ``turned``; every matrix W of a stack is a group."""
    if len(weight) == 1:
        m, n = weight[0], 1
    else:
        n, m = weight[-2:] if turned else weight[:-3:-1]
    groups = weight[:-2].numel()
    return MatmulShape(n, m, y.numel() // (groups * n), groups)


def _grid(node: fx.Node) -> Quantizer | None:
    """The quantizer behind an operand, through all that only moves values."""
    while not is_quantizer(node):
        if graph.op(node) == "embedding":
            node = graph.weight_node(node)
        elif graph.traits(node).passes and node.all_input_nodes:
            node = node.all_input_nodes[0]
        else:
            return None
    return node.graph.owning_module.get_submodule(node.target)


def _grid_after(node: fx.Node) -> Quantizer | None:
    """The quantizer that an operator's result goes through, behind its activation function."""
    passed = ("activation", "move", "join", "rescale")
    while len(node.users) == 1:
        (node,) = node.users
        if is_quantizer(node):
            return node.graph.owning_module.get_submodule(node.target)
        if graph.traits(node).role not in passed:
            return None
    return None
