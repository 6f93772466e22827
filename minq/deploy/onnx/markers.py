"""A graph of ONNX with a marker for each quantizer: finding, inserting and replacing nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from minq._checks import Array
from minq.quantizer import Quantizer

_MOVING = frozenset(
    """Reshape Transpose Squeeze Unsqueeze Flatten Identity Concat MaxPool GlobalMaxPool Slice Split
    Gather Expand Pad Resize DepthToSpace Tile ReduceMax ReduceMin""".split()
)
"""ONNX operators that only move values, or pick from them."""


class Named(NamedTuple):
    """A quantizer and its name."""

    name: str
    quantizer: Quantizer

    @property
    def per_tensor(self) -> bool:
        return self.quantizer.granularity.axis is None

    @property
    def in_groups(self) -> bool:
        return self.quantizer.granularity.group is not None


class Markers:
    """The markers of a graph, and what each of them clamps to."""

    def __init__(self, graph: ir.Graph, known: dict[str, Quantizer], weights: set[str]) -> None:
        self.graph, self.known, self.weights = graph, known, weights
        self.bounds: dict[ir.Node, tuple[Array, Array]] = {}
        self.originals = set(self.all())

    def all(self) -> Iterator[ir.Node]:
        return (node for node in self.graph if node.domain == "minq")

    def quantizer_of(self, value: ir.Value | None) -> Named | None:
        """The name and the quantizer whose marker gives this value, or None."""
        node = None if value is None else value.producer()
        return None if node is None or node.domain != "minq" else self.of(node)

    def of(self, marker: ir.Node) -> Named:
        """The quantizer that a marker stands for."""
        name = marker.attributes["name"].as_string()
        return Named(name, self.known[name])

    def ends(self, marker: ir.Node) -> tuple[Array, Array]:
        grid = self.of(marker).quantizer.grid
        return np.array(grid.quant_min), np.array(grid.quant_max)

    def insert(self, marker: ir.Node, value: ir.Value) -> ir.Node:
        """Another marker of the same quantizer, behind ``value``; nobody reads it yet."""
        new = ir.node("Quantizer", [value], dict(marker.attributes), domain="minq")
        self.bounds[new] = self.ends(marker)
        new.outputs[0].type, new.outputs[0].shape = value.type, value.shape
        source = value.producer()
        if source is None:
            self.graph.insert_before(self.graph[0], new)
        else:
            self.graph.insert_after(source, new)
        return new

    def on_grid(self, value: ir.Value) -> Named | None:
        """The name and the quantizer whose grid the values are on, or None."""
        while (node := value.producer()) is not None and self.moves(node):
            if node.op_type == "Concat":
                break
            value = node.inputs[0]
        return self.quantizer_of(value)

    def moves(self, node: ir.Node) -> bool:
        if node.op_type == "Resize":
            return node.attributes["mode"].as_string() == "nearest"
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            value = node.inputs[2] if len(node.inputs) > 2 else None
            return value is None or not np.any(constant(value, 1))
        return node.op_type in _MOVING and node.domain == ""

    def initializer(self, array: Array, name: str) -> ir.Value:
        """A constant of the graph; the same name with the same content is kept once."""
        array = np.array(array, order="C")
        known = self.graph.initializers.get(name)
        while known is not None:
            if known.const_value.shape == array.shape and np.array_equal(constant(known), array):
                return known
            name += "_"
            known = self.graph.initializers.get(name)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def swap(self, old: ir.Node, new: list[ir.Node]) -> None:
        """The new nodes in place of the old one."""
        value, result = old.outputs[0], new[-1].outputs[0]
        result.type, result.shape = value.type, value.shape
        self.graph.insert_before(old, new)
        if value.is_graph_output():
            result.name = value.name
        ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)


def constant(value: ir.Value | None, default: Any = None) -> Any:
    """The content of an initializer."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return default if tensor is None else tensor.numpy()
