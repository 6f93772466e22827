"""Markers to QuantizeLinear and DequantizeLinear, so that an engine finds the patterns it knows.

In a QDQ graph, QuantizeLinear and DequantizeLinear, eq. (4) and (6), stand where the quantizers
stood, weights are stored as integers, biases as INT32 with the scale s_w s_x, and all operators
between are the float ones. An engine that knows a pattern such as DQ - Conv - Q replaces it by one
integer kernel; one that does not computes the same in float.

Four rewritings, all exact, bring the graph into the shape that ONNX Runtime knows. They rest on two
facts: rounding Q is monotone, and it looks at each element alone.

- Clamping before rounding is clamping after it: Q(clamp(x; a, b)) = clamp(Q(x); Q(a), Q(b)). So a
  ReLU in front of Q vanishes where Q(a) and Q(b) are the ends of the grid, and clamps integers
  elsewhere. A grid that does not fill its type, 4 bits in UINT8, is clamped the same way.
- Moving before rounding is moving after it: Q(concat(x, y)) = concat(Q(x), Q(y)), also for reshape
  and its like. So each branch of a concatenation is rounded by the layer that it comes from.
- What was moved on a grid is on that grid: rounding it once more changes nothing, and lets the
  moving itself work on integers.
- A mean over the picture is a global average pooling.

One rewriting keeps an engine from going further. ONNX Runtime takes a float weight or bias between
a DequantizeLinear and a QuantizeLinear for one that it may round itself: to a grid of its own, and
a bias to 32 bits that may not hold it. The float side of a product with a quantized weight it
rounds too, and of two grids, one behind the other, it makes one. So a layer that stays in float,
and a second grid, read max(x, lowest), which is x, and which no pattern looks through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from minq._checks import Array
from minq.quantizer import Quantizer

INTEGERS = ".integers"
"""What follows a quantizer's name in the name of its integers; behind it, how much they are higher
than the quantizer's own."""

_MOVING = frozenset(
    """Reshape Transpose Squeeze Unsqueeze Flatten Identity Concat MaxPool GlobalMaxPool Slice Split
    Gather Expand Pad Resize DepthToSpace Tile ReduceMax ReduceMin""".split()
)
"""ONNX operators that only move values, or pick from them."""

_LAYERS = frozenset({"Conv", "Gemm", "ConvTranspose"})

_WITH_WEIGHTS = _LAYERS | {"MatMul", "Einsum"}


class Rewriting:
    """Replaces the markers of a graph, so that engines find the patterns they know."""

    def __init__(self, model: ir.Model, known: dict[str, Quantizer], weights: set[str]) -> None:
        self.model, self.graph, self.known = model, model.graph, known
        self.weights = weights
        self.bounds: dict[ir.Node, tuple[Array, Array]] = {}
        self.hidden: dict[ir.Value, ir.Value] = {}  # x -> max(x, lowest)
        self.originals = set(self._markers())

    def run(self) -> None:
        for node in list(self.graph):
            if node.op_type == "ReduceMean":
                self._pool(node)
        for marker in self.originals:
            self.bounds[marker] = self._ends(marker)
        for marker in list(self._markers()):
            self._towards_layers(marker)
        for node in list(self.graph):
            self._stay_on_grid(node)
        for node in list(self.graph):
            if node.op_type in _LAYERS:
                self._quantize_bias(node)
        for node in list(self.graph):
            if node.op_type in _WITH_WEIGHTS:
                self._stay_in_float(node)
        for marker in list(self._markers()):
            self._round_twice(marker)
        for marker in list(self._markers()):
            self._replace(marker)
        self._name_batch()
        for tidy in (
            ir.passes.common.RemoveUnusedNodesPass(),
            ir.passes.common.TopologicalSortPass(),
            ir.passes.common.NameFixPass(),
        ):
            tidy(self.model)
        self.graph.opset_imports.pop("minq", None)

    # --- markers ----------------------------------------------------------------------------------

    def _markers(self) -> Iterator[ir.Node]:
        return (node for node in self.graph if node.domain == "minq")

    def _quantizer(self, value: ir.Value | None) -> Any:
        """The name and the quantizer whose marker gives this value, or None."""
        node = None if value is None else value.producer()
        if node is None or node.domain != "minq":
            return None
        name = node.attributes["name"].as_string()
        return name, self.known[name]

    def _ends(self, marker: ir.Node) -> tuple[Array, Array]:
        _, quantizer = self._quantizer(marker.outputs[0])
        return np.array(quantizer.grid.quant_min), np.array(quantizer.grid.quant_max)

    def _insert(self, marker: ir.Node, value: ir.Value) -> ir.Node:
        """Another marker of the same quantizer, behind ``value``; nobody reads it yet."""
        new = ir.node("Quantizer", [value], dict(marker.attributes), domain="minq")
        self.bounds[new] = self._ends(marker)
        new.outputs[0].type, new.outputs[0].shape = value.type, value.shape
        source = value.producer()
        if source is None:
            self.graph.insert_before(self.graph[0], new)
        else:
            self.graph.insert_after(source, new)
        return new

    # --- rewriting --------------------------------------------------------------------------------

    def _pool(self, node: ir.Node) -> None:
        """mean(x, (2, 3)) as global average pooling, for which there are integer kernels."""
        x, axes = node.inputs[0], _constant(node.inputs[1] if len(node.inputs) > 1 else None)
        rank = None if x.shape is None else len(x.shape)
        if rank is None or rank < 3 or axes is None:
            return
        if sorted(int(a) % rank for a in axes) != list(range(2, rank)):
            return
        new = [ir.node("GlobalAveragePool", [x])]
        new[0].outputs[0].type = x.type
        new[0].outputs[0].shape = ir.Shape([*x.shape[:2], *[1] * (rank - 2)])
        keep = node.attributes.get("keepdims")
        if keep is not None and not keep.as_int():
            new.append(ir.node("Flatten", [new[0].outputs[0]], {"axis": 1}))
        self._swap(node, new)

    def _towards_layers(self, marker: ir.Node) -> None:
        """Round as early as possible: before clamps, and before values are moved."""
        _, quantizer = self._quantizer(marker.outputs[0])
        per_tensor = quantizer.granularity.axis is None
        while (source := marker.inputs[0].producer()) is not None:
            if len(marker.inputs[0].uses()) > 1 or marker.inputs[0].is_graph_output():
                return
            if per_tensor and (clamp := _clamp_of(source)) is not None:
                x, low, high = clamp
                ends = self.bounds[marker]
                # Q(clamp(x; a, b)) = clamp(Q(x); Q(a), Q(b))
                self.bounds[marker] = tuple(
                    end if v is None else np.clip(_to_grid(quantizer, v), *ends)
                    for v, end in zip((low, high), ends, strict=True)
                )
                marker.replace_input_with(0, x)
                self.graph.remove(source, safe=True)
            elif self._moves(source) and per_tensor and len(source.outputs) == 1:
                self._spread(marker, source)
                return
            else:
                return

    def _spread(self, marker: ir.Node, source: ir.Node) -> None:
        """Q(concat(x, y)) = concat(Q(x), Q(y)): round what is not rounded yet."""
        if any(bound.ndim for bound in self.bounds[marker]):
            return
        for i, x in enumerate(source.inputs):
            moved = source.op_type == "Concat" or i == 0
            if not moved or x is None or x.is_initializer() or self._on_grid(x):
                continue
            new = self._insert(marker, x)
            self.bounds[new] = self.bounds[marker]
            source.replace_input_with(i, new.outputs[0])
            self._towards_layers(new)

    def _on_grid(self, value: ir.Value) -> Any:
        """The name and the quantizer whose grid the values are on, or None."""
        while (node := value.producer()) is not None and self._moves(node):
            if node.op_type == "Concat":
                break
            value = node.inputs[0]
        return self._quantizer(value)

    def _moves(self, node: ir.Node) -> bool:
        if node.op_type == "Resize":
            return node.attributes["mode"].as_string() == "nearest"
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            value = node.inputs[2] if len(node.inputs) > 2 else None
            return value is None or not np.any(_constant(value, 1))
        return node.op_type in _MOVING and node.domain == ""

    def _stay_on_grid(self, node: ir.Node) -> None:
        """What was moved stays on its grid: say so, and the moving can work on integers."""
        if not self._moves(node) or node.op_type == "Concat":
            return
        found = self._quantizer(node.inputs[0])
        if found is None or found[1].granularity.axis is not None:
            return
        for value in node.outputs:
            readers = [reader for reader, _ in value.uses()]
            if not readers or value.is_graph_output() or all(r.domain == "minq" for r in readers):
                continue
            uses = list(value.uses())
            new = self._insert(node.inputs[0].producer(), value)
            for reader, i in uses:
                reader.replace_input_with(i, new.outputs[0])

    def _quantize_bias(self, node: ir.Node) -> None:
        """b_int = round(b / (s_w s_x)), what an accumulator of integers can add."""
        if len(node.inputs) < 3 or (bias := _constant(node.inputs[2])) is None:
            return
        found = [self._quantizer(x) for x in node.inputs[:2]]
        if None in found or found[0][1].granularity.axis is not None or bias.ndim != 1:
            return
        (_, x), (_, weight) = found
        if weight.granularity.group is not None:
            return
        scale = np.asarray(_scale(weight) * _scale(x))
        bias_int = np.round(bias / scale)
        if np.abs(bias_int).max() >= 2**31:
            return  # no accumulator of 32 bits can hold it; the layer computes in float
        name = node.inputs[2].name
        bias_int = self._initializer(bias_int.astype(np.int32), f"{name}.{node.outputs[0].name}")
        scale = self._initializer(scale.astype(np.float32), f"{bias_int.name}.scale")
        new = ir.node("DequantizeLinear", [bias_int, scale], {"axis": 0} if scale.shape else {})
        self.graph.insert_before(node, new)
        node.replace_input_with(2, new.outputs[0])

    def _stay_in_float(self, node: ir.Node) -> None:
        """max(x, lowest) in front of a layer of which one side is not of integers."""
        x, *others = node.inputs
        if not self._on_grid(x):
            if node.op_type == "MatMul" and self._on_grid(others[0]):
                self._hide(node, 1)  # or the engine would round x, which is meant to stay in float
        elif not all(map(self._of_integers, others)):
            self._hide(node, 0)

    def _round_twice(self, marker: ir.Node) -> None:
        """The same in front of a grid behind another one."""
        first = self._on_grid(marker.inputs[0])
        if first is not None and first[0] != self._quantizer(marker.outputs[0])[0]:
            self._hide(marker, 0)

    def _hide(self, node: ir.Node, place: int) -> None:
        x = node.inputs[place]
        if (hidden := self.hidden.get(x)) is None:
            lowest = self._initializer(np.finfo(np.float32).min, "lowest")
            apart = ir.node("Max", [x, lowest])
            hidden = self.hidden[x] = apart.outputs[0]
            hidden.type, hidden.shape = x.type, x.shape
            self.graph.insert_after(x.producer(), apart)
        node.replace_input_with(place, hidden)

    def _of_integers(self, value: ir.Value | None) -> bool:
        if value is None:
            return True
        if (found := self._on_grid(value)) is not None:
            return found[1].granularity.group is None
        node = value.producer()
        return node is not None and node.op_type == "DequantizeLinear"

    # --- replacing --------------------------------------------------------------------------------

    def _replace(self, marker: ir.Node) -> None:
        name, quantizer = self._quantizer(marker.outputs[0])
        x, kind, shift = marker.inputs[0], *self._container(name)
        scale, zero_point = (v.detach().numpy() for v in quantizer.scale_zero_point())
        zero_point = np.broadcast_to(zero_point, scale.shape) + shift
        grid = [
            self._initializer(scale.astype(np.float32), f"{name}.scale"),
            self._initializer(zero_point.astype(kind.numpy()), f"{name}.zero_point"),
        ]
        granularity = quantizer.granularity
        axis = {} if granularity.axis is None else {"axis": granularity.axis % len(x.shape)}
        back: list[ir.Node] = []
        if (content := _constant(x)) is not None:
            integers = quantizer.quantize(torch.from_numpy(content.copy())).numpy() + shift
            if granularity.group is not None:
                integers, back = self._rows(integers, axis["axis"], name)
                axis = {"axis": 1, "block_size": granularity.group}
            new = self._store(integers, kind, quantizer.bits, name)
        else:
            bounds = [bound + shift for bound in self.bounds[marker]]
            new = self._round(x, grid, axis, bounds, kind, name)
            if marker in self.originals:
                new[-1].outputs[0].name = f"{name}{INTEGERS}{shift or ''}"
        integers = new[-1].outputs[0] if new else self.graph.initializers[name + INTEGERS]
        new.append(ir.node("DequantizeLinear", [integers, *grid], axis))
        for node in back:
            node.replace_input_with(0, new[-1].outputs[0])
            new.append(node)
        self._swap(marker, new)

    def _rows(self, integers: Array, axis: int, name: str) -> tuple[Array, list[ir.Node]]:
        """One row for each channel, of which groups are cut; and what turns rows into a weight."""
        moved = np.moveaxis(integers, axis, 0)
        shape = self._initializer(np.array(moved.shape), f"{name}.shape")
        back = [ir.node("Reshape", [None, shape])]
        if axis:
            order = [*range(1, axis + 1), 0, *range(axis + 1, moved.ndim)]
            back.append(ir.node("Transpose", [None], {"perm": order}))
        return moved.reshape(len(moved), -1), back

    def _container(self, name: str) -> tuple[ir.DataType, int]:
        """The integer type that engines take, and how much higher the grid stands in it.

        UINT8, where a signed grid moves up by 128 with its zero-point; INT8 for narrower weights.
        x86 without VNNI adds products of UINT8 and INT8 in pairs, in 16 bits, and saturates: two of
        255 * 127 are too much, two of 255 * 64 are not.
        """
        quantizer = self.known[name]
        if quantizer.bits > 8:
            return ir.DataType.INT16 if quantizer.grid.signed else ir.DataType.UINT16, 0
        if not quantizer.grid.signed:
            return ir.DataType.UINT8, 0
        narrow = name in self.weights and quantizer.bits < 8
        return (ir.DataType.INT8, 0) if narrow else (ir.DataType.UINT8, 128)

    def _store(self, integers: Array, kind: ir.DataType, bits: int, name: str) -> list[ir.Node]:
        """A constant of integers, in half the space where they have 4 bits."""
        if bits > 4 or name not in self.weights:
            self._initializer(integers.astype(kind.numpy()), name + INTEGERS)
            return []
        half = ir.DataType.INT4 if kind == ir.DataType.INT8 else ir.DataType.UINT4
        integers = self._initializer(integers.astype(half.numpy()), name + INTEGERS)
        return [ir.node("Cast", [integers], {"to": kind.value})]

    def _round(self, x, grid, axis, bounds, kind, name) -> list[ir.Node]:
        """QuantizeLinear, and the clamp to what the grid, or an activation function, leaves."""
        ends = np.iinfo(kind.numpy())
        clamps = [
            (op, bound)
            for op, bound, end in zip(("Max", "Min"), bounds, (ends.min, ends.max), strict=True)
            if np.any(bound != end)
        ]
        round_ = ir.node("QuantizeLinear", [x, *grid], axis)
        if kind.bitwidth <= 8:
            bounds = [bound.astype(kind.numpy()) for _, bound in clamps]
        else:  # ONNX Runtime clamps integers of 8 bits only, so the real numbers are
            scale, zero_point = (_constant(v).astype(np.float32) for v in grid)
            bounds = [scale * (bound.astype(np.float32) - zero_point) for _, bound in clamps]
        new = [round_] if kind.bitwidth <= 8 else []
        for (op, _), bound in zip(clamps, bounds, strict=True):
            bound = self._initializer(bound, f"{name}.{op}")
            new.append(ir.node(op, [new[-1].outputs[0] if new else x, bound]))
        if round_ not in new:
            if new:
                round_.replace_input_with(0, new[-1].outputs[0])
            new.append(round_)
        return new

    def _initializer(self, array: Array, name: str) -> ir.Value:
        """A constant of the graph; the same name with the same content is kept once."""
        array = np.array(array, order="C")
        known = self.graph.initializers.get(name)
        while known is not None:
            if known.const_value.shape == array.shape and np.array_equal(_constant(known), array):
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

    def _swap(self, old: ir.Node, new: list[ir.Node]) -> None:
        """The new nodes in place of the old one."""
        value, result = old.outputs[0], new[-1].outputs[0]
        result.type, result.shape = value.type, value.shape
        self.graph.insert_before(old, new)
        if value.is_graph_output():
            result.name = value.name
        ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)

    def _name_batch(self) -> None:
        """Call the free dimension "batch"."""
        free = {
            str(value.shape[0])
            for value in self.graph.inputs
            if value.shape and not isinstance(value.shape[0], int)
        }
        values = [*self.graph.inputs, *(v for node in self.graph for v in node.outputs)]
        for value in values:
            if value.shape is not None:
                value.shape = ir.Shape(["batch" if str(n) in free else n for n in value.shape])


def _scale(quantizer: Quantizer) -> Array:
    return quantizer.scale_zero_point()[0].detach().double().numpy()


def _to_grid(quantizer: Quantizer, value: Array) -> Array:
    """Q of a bound, which may be infinite."""
    finite = np.clip(value, np.finfo(np.float32).min, np.finfo(np.float32).max)
    return quantizer.quantize(torch.from_numpy(np.asarray(finite, np.float32))).numpy()


def _constant(value: ir.Value | None, default: Any = None) -> Any:
    """The content of an initializer."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return default if tensor is None else tensor.numpy()


def _clamp_of(node: ir.Node) -> tuple[ir.Value, Array | None, Array | None] | None:
    """What is clamped, and the constant bounds, where a node is a clamp."""
    if node.op_type == "Relu":
        return node.inputs[0], np.float32(0), None
    if node.op_type == "Clip":
        bounds = [*node.inputs[1:], None, None][:2]
        arrays = [_constant(v) for v in bounds]
        if any(v is not None and a is None for v, a in zip(bounds, arrays, strict=True)):
            return None
        return node.inputs[0], *arrays
    if node.op_type in ("Max", "Min") and len(node.inputs) == 2:
        for x, other in (node.inputs, node.inputs[::-1]):
            bound = _constant(other)
            if bound is not None and x.shape is not None and bound.ndim <= len(x.shape):
                return (x, bound, None) if node.op_type == "Max" else (x, None, bound)
    return None
