r"""Chapter 2's accelerator on whole networks: what each layer costs, and what it waits for.

A layer is a matrix product of N outputs and M inputs with B vectors, ``groups`` times
(``MatmulShape``), so ``minq.mac.layer_cost`` counts its cycles, bytes and joules. This file reads
shapes and bits off a graph, and adds the memory behind the array:

- Weights and biases lie in DRAM. A layer fetches them once in each run, whatever the batch.
- A tensor between two layers stays on chip if it fills at most half of the memory there; the other
  half is for the tensor on the other side of the layer. A larger one goes to DRAM: its layer writes
  it once, each reader fetches it once, and the chip repeats what patches share.

DRAM delivers while the array computes, and the slower of the two decides:

    memory cycles = DRAM bytes / bytes per cycle
    latency       = max(array cycles, memory cycles)
    intensity     = MACs / DRAM bytes
    MACs / cycle <= min(R C, bytes per cycle * intensity)        the roofline

(S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52, 2009). Left out are operators that
multiply no matrices (additions, pooling, softmax, norms), the tensor that waits beside a residual
block, and schedules that take several layers through a piece of a picture at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_map_only

from minq import graph
from minq._checks import check_count
from minq.graph.batches import batches_of
from minq.mac import MEMORY, LayerCost, MacArray, MatmulShape, access_energy, layer_cost
from minq.quantizer import Quantizer
from minq.simulate import is_quantizer

BYTES_PER_CYCLE = 16
"""What DRAM delivers in a cycle, as in chapter 2."""

ON_CHIP = 2**20
"""Bytes of memory on the chip: the 1 MB whose energy ``minq.mac.energy`` knows."""

# --- The roofline ---------------------------------------------------------------------------------


def roofline(
    intensity: float, array: MacArray | None = None, bytes_per_cycle: float = BYTES_PER_CYCLE
) -> float:
    """MACs per cycle that array and memory allow: min(R C, bytes per cycle * intensity).

    >>> roofline(2.0), roofline(16.0), roofline(100.0)
    (32.0, 256, 256)
    """
    array = array or MacArray()
    return min(array.rows * array.columns, bytes_per_cycle * intensity)


@dataclass(frozen=True)
class OperatorCost(LayerCost):
    """``LayerCost`` of an operator in a network, with what it needs from DRAM.

    ``bytes`` and ``energy`` have one more kind, "spilled": activations that do not fit on chip.
    """

    kind: str  # "conv2d", "linear", "matmul", ...
    shape: MatmulShape | None  # None for an embedding, which multiplies nothing
    weight_bits: int  # 32 for FP32
    activation_bits: int
    dram_bytes: int

    @property
    def intensity(self) -> float:
        """MACs for each byte of DRAM; infinite where nothing comes from there."""
        return self.macs / self.dram_bytes if self.dram_bytes else math.inf

    def memory_cycles(self, bytes_per_cycle: float = BYTES_PER_CYCLE) -> int:
        """Cycles that DRAM is busy with this operator."""
        if not bytes_per_cycle > 0:
            raise ValueError(f"bytes_per_cycle must be above 0, not {bytes_per_cycle}")
        return math.ceil(self.dram_bytes / bytes_per_cycle)

    def latency(self, bytes_per_cycle: float = BYTES_PER_CYCLE) -> int:
        """Cycles from start to end, of the slower of array and memory."""
        return max(self.cycles, self.memory_cycles(bytes_per_cycle))

    def bound(self, bytes_per_cycle: float = BYTES_PER_CYCLE) -> str:
        """What it waits for: "compute" or "memory"."""
        return "memory" if self.memory_cycles(bytes_per_cycle) > self.cycles else "compute"


def latency(costs: Mapping[str, OperatorCost], bytes_per_cycle: float = BYTES_PER_CYCLE) -> int:
    """Cycles for all operators, one after the other."""
    return sum(cost.latency(bytes_per_cycle) for cost in costs.values())


# --- A whole network ------------------------------------------------------------------------------


def layer_costs(
    gm: fx.GraphModule,
    example: Any = None,
    *,
    array: MacArray | None = None,
    memory: Mapping[str, str] | None = None,
    on_chip: int = ON_CHIP,
    floating: bool = False,
) -> dict[str, OperatorCost]:
    """Every layer and matrix product of a captured graph, in the order of computation.

    gm: from ``minq.capture``, with or without quantizers. Their bits count, not their stage. An
        operator computes in integers if both of its operands are quantized, else in FP32.
    example: what the network is called with, for its shapes and its batch size; by default one
        sample. Nothing is computed with it.
    array, memory: as in ``minq.mac.layer_cost``. A product of two activations finds the second one
        where inputs are.
    on_chip: bytes of memory for activations.
    floating: the network in FP32, whatever its quantizers say.

    Layers are named as by ``minq.graph.layers``, products as by ``minq.graph.place``, and what
    comes a second time "name_1". Warns of operators that multiply matrices and are not counted.
    Raises TypeError for a module that was not captured, ValueError for an example that does not
    fit it.

    >>> import minq
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> gm = minq.insert_quantizers(minq.capture(model, torch.zeros(2, 3, 8, 8)), weights=4)
    >>> for name, cost in layer_costs(gm).items():
    ...     print(name, cost.macs, cost.cycles, cost.dram_bytes, cost.bound())
    0 7776 88 140 compute
    3 2880 198 1480 compute
    """
    if not graph.is_captured(gm):
        raise TypeError(
            f"costs are read off a captured graph, not a {type(gm).__name__}; "
            "pass minq.capture(model, example), or what minq.ptq returns"
        )
    machine = _Machine(array or MacArray(), {**MEMORY, **(memory or {})}, on_chip)
    shapes, constants, names = shapes_of(gm, example), _constants(gm), _names(gm)
    costs = {
        name: machine.cost(_read(node, shapes, constants, floating)) for name, node in names.items()
    }
    if missing := {graph.op(n) for n in gm.graph.nodes if graph.traits(n).uncounted}:
        warnings.warn(f"the costs do not count {', '.join(sorted(missing))}", stacklevel=2)
    return costs


class _Operator(NamedTuple):
    """What the machine has to know of an operator. Weights are the operand that stays in it."""

    kind: str
    shape: MatmulShape | None
    words: dict[str, int]  # of "weights", "inputs", "outputs", "bias", each counted once
    bits: dict[str, int]  # of the first three, as they are stored
    floating: bool
    parameter: bool  # whether the weights are known before the network runs
    zero_points: tuple[bool, bool]  # whether weights and inputs may have one


_WORK = ("multiply", "add", "requantize", "zero_point", *MEMORY)  # of ``LayerCost.energy``


@dataclass(frozen=True)
class _Machine:
    array: MacArray
    memory: dict[str, str]
    on_chip: int

    def __post_init__(self) -> None:
        check_count(self.on_chip, "on_chip")

    def cost(self, operator: _Operator) -> OperatorCost:
        """``layer_cost`` with the width and the place of every tensor, and what is spilled."""
        kind, shape, words, bits, floating, parameter, _ = operator
        memory = self.memory if parameter else self.memory | {"weights": self.memory["inputs"]}
        wide = 32 if floating else self.array.accumulator_bits
        size = {name: words[name] * bits.get(name, wide) for name in words}  # in bits
        activations = ["inputs", "outputs"] if parameter else ["inputs", "outputs", "weights"]
        far = [k for k in activations if memory[k] != "dram" and size[k] > 8 * self.on_chip / 2]
        moved = size | {"spilled": sum(size[k] for k in far)}
        base = LayerCost(0, 0, 0.0, dict.fromkeys(MEMORY, 0), dict.fromkeys(_WORK, 0.0))
        if shape:
            base, traffic = self._products(operator), self.array.traffic(*shape[:3])
            results = shape.groups * shape.n_outputs * shape.batch
            # What a transposed convolution adds up goes out of the array and back in between.
            sums = shape.groups * traffic["partial_sums"] + 2 * max(0, results - words["outputs"])
            moved["inputs"] = shape.groups * traffic["inputs"] * bits["inputs"]
            moved["partial_sums"] = sums * wide
            base.energy["requantize"] *= words["outputs"] / results
        memory = memory | {"spilled": "dram"}
        sizes = {k: math.ceil(v / 8) for k, v in moved.items()}
        joules = {k: access_energy(v, memory[k]) for k, v in moved.items()}
        return OperatorCost(
            **vars(base) | {"bytes": base.bytes | sizes, "energy": base.energy | joules},
            kind=kind,
            shape=shape,
            weight_bits=bits["weights"],
            activation_bits=bits["inputs"],
            dram_bytes=sum(sizes[k] for k in sizes if memory[k] == "dram"),
        )

    def _products(self, operator: _Operator) -> LayerCost:
        """Cycles and arithmetic."""
        assert operator.shape is not None
        n, m, batch, groups = operator.shape
        given: dict[str, Any] = {"array": self.array, "groups": groups}
        given |= {"floating": operator.floating, "memory": self.memory}
        for width, operand in (("weight_bits", "weights"), ("activation_bits", "inputs")):
            given[width] = 32 if operator.floating else operator.bits[operand]
        of_weights, of_inputs = operator.zero_points
        cost = layer_cost(n, m, batch, weight_zero_point=of_weights, **given)
        if of_inputs and not operator.parameter:  # no bias can hold what is not known in advance
            turned = layer_cost(batch, m, n, weight_zero_point=True, **given)
            cost.energy["zero_point"] += turned.energy["zero_point"]
        return cost


# --- Reading the graph ----------------------------------------------------------------------------


def shapes_of(gm: fx.GraphModule, example: Any = None) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor in the graph when it is called with ``example``.

    By default with one sample. Runs on tensors without values, so it costs neither time nor memory.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if example is None:
        values = graph.to_device_of(gm, [_one_sample(node) for node in inputs])
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


def _one_sample(node: fx.Node) -> Any:
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
            numbered = chain([name], (f"{name}_{k}" for k in count(1)))
            found[next(n for n in numbered if n not in found)] = node
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


def _read(node: fx.Node, shapes: dict, constants: set, floating: bool) -> _Operator:
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
    return _Operator(kind, shape, words, bits, not integer, parameter, offset)


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
