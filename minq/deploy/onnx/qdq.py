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
- What was moved on a grid, or filled up with zero, is on that grid: rounding it once more changes
  nothing, and lets the moving itself, and a layer behind it, work on integers.
- A mean over the picture is a global average pooling.

One rewriting keeps an engine from going further. ONNX Runtime takes a float weight or bias between
a DequantizeLinear and a QuantizeLinear for one that it may round itself: to a grid of its own, and
a bias to 32 bits that may not hold it. The float side of a product with a quantized weight it
rounds too, and of two grids, one behind the other, it makes one. So a layer that stays in float,
and a second grid, read max(x, lowest), which is x, and which no pattern looks through.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from minq._checks import Array
from minq.deploy.biases import wide_enough
from minq.deploy.onnx import store
from minq.deploy.onnx.markers import Markers, Named, constant
from minq.quantizer import Quantizer

_LAYERS = frozenset({"Conv", "Gemm", "ConvTranspose"})

_WITH_WEIGHTS = _LAYERS | {"MatMul", "Einsum"}


class Rewriting(Markers):
    """Replaces the markers of a graph, so that engines find the patterns they know."""

    def __init__(self, model: ir.Model, known: dict[str, Quantizer], weights: set[str]) -> None:
        super().__init__(model.graph, known, weights)
        self.model = model
        self.hidden: dict[ir.Value, ir.Value] = {}  # x -> max(x, lowest)

    def run(self) -> None:
        for node in list(self.graph):
            if node.op_type == "ReduceMean":
                self._pool(node)
        for marker in self.originals:
            self.bounds[marker] = self.ends(marker)
        for marker in list(self.all()):
            self._towards_layers(marker)
        for node in list(self.graph):
            self._stay_on_grid(node)
        layers = [node for node in self.graph if node.op_type in _LAYERS]
        for work in (self._widen_for_bias, self._quantize_bias):  # layers may share a weight
            for node in layers:
                work(node)
        for node in list(self.graph):
            if node.op_type in _WITH_WEIGHTS:
                self._stay_in_float(node)
        for marker in list(self.all()):
            self._round_twice(marker)
        for marker in list(self.all()):
            store.replace(self, marker)
        self._name_batch()
        for tidy in (
            ir.passes.common.RemoveUnusedNodesPass(),
            ir.passes.common.TopologicalSortPass(),
            ir.passes.common.NameFixPass(),
        ):
            tidy(self.model)
        self.graph.opset_imports.pop("minq", None)

    # --- rewriting --------------------------------------------------------------------------------

    def _pool(self, node: ir.Node) -> None:
        """mean(x, (2, 3)) as global average pooling, for which there are integer kernels."""
        x, axes = node.inputs[0], constant(node.inputs[1] if len(node.inputs) > 1 else None)
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
        self.swap(node, new)

    def _towards_layers(self, marker: ir.Node) -> None:
        """Round as early as possible: before clamps, and before values are moved."""
        quantizer, per_tensor = self.of(marker).quantizer, self.of(marker).per_tensor
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
            elif self.moves(source) and per_tensor and len(source.outputs) == 1:
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
            if not moved or x is None or x.is_initializer() or self.on_grid(x):
                continue
            new = self.insert(marker, x)
            self.bounds[new] = self.bounds[marker]
            source.replace_input_with(i, new.outputs[0])
            self._towards_layers(new)

    def _stay_on_grid(self, node: ir.Node) -> None:
        """What was moved stays on its grid: say so, and the moving can work on integers."""
        x = node.inputs[0] if self.moves(node) and node.op_type != "Concat" else _not_zero(node)
        found = self.quantizer_of(x)
        if x is None or found is None or not found.per_tensor:
            return
        for value in node.outputs:
            readers = [reader for reader, _ in value.uses()]
            if not readers or value.is_graph_output() or all(r.domain == "minq" for r in readers):
                continue
            uses = list(value.uses())
            new = self.insert(x.producer(), value)
            for reader, i in uses:
                reader.replace_input_with(i, new.outputs[0])

    def _biased(self, node: ir.Node) -> tuple[Array, Array, Named] | None:
        """The bias of a layer, the scale of its input, and the quantizer of its weight."""
        if len(node.inputs) < 3 or (bias := constant(node.inputs[2])) is None:
            return None
        x, weight = map(self.quantizer_of, node.inputs[:2])
        if x is None or weight is None or not x.per_tensor or weight.in_groups or bias.ndim != 1:
            return None
        return bias, _scale(x.quantizer), weight

    def _widen_for_bias(self, node: ir.Node) -> None:
        """Steps of a weight that are wide enough for its bias."""
        if found := self._biased(node):
            bias, s_x, weight = found
            self.known[weight.name] = wide_enough(weight.quantizer, torch.from_numpy(bias), s_x)

    def _quantize_bias(self, node: ir.Node) -> None:
        """b_int = round(b / (s_w s_x)), what an accumulator of integers can add."""
        if not (found := self._biased(node)):
            return
        bias, s_x, weight = found
        scale = np.asarray(_scale(weight.quantizer) * s_x)
        bias_int = np.round(bias / scale)
        name = node.inputs[2].name
        bias_int = self.initializer(bias_int.astype(np.int32), f"{name}.{node.outputs[0].name}")
        scale = self.initializer(scale.astype(np.float32), f"{bias_int.name}.scale")
        new = ir.node("DequantizeLinear", [bias_int, scale], {"axis": 0} if scale.shape else {})
        self.graph.insert_before(node, new)
        node.replace_input_with(2, new.outputs[0])

    def _stay_in_float(self, node: ir.Node) -> None:
        """max(x, lowest) in front of a layer of which one side is not of integers."""
        x, *others = node.inputs
        if not self.on_grid(x):
            if node.op_type == "MatMul" and self.on_grid(others[0]):
                self._hide(node, 1)  # or the engine would round x, which is meant to stay in float
        elif not all(map(self._of_integers, others)):
            self._hide(node, 0)

    def _round_twice(self, marker: ir.Node) -> None:
        """The same in front of a grid behind another one."""
        first = self.on_grid(marker.inputs[0])
        if first is not None and first.name != self.of(marker).name:
            self._hide(marker, 0)

    def _hide(self, node: ir.Node, place: int) -> None:
        x = node.inputs[place]
        if (hidden := self.hidden.get(x)) is None:
            lowest = self.initializer(np.finfo(np.float32).min, "lowest")
            apart = ir.node("Max", [x, lowest])
            hidden = self.hidden[x] = apart.outputs[0]
            hidden.type, hidden.shape = x.type, x.shape
            self.graph.insert_after(x.producer(), apart)
        node.replace_input_with(place, hidden)

    def _of_integers(self, value: ir.Value | None) -> bool:
        if value is None:
            return True
        if (found := self.on_grid(value)) is not None:
            return not found.in_groups
        node = value.producer()
        return node is not None and node.op_type == "DequantizeLinear"

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


def _not_zero(node: ir.Node) -> ir.Value | None:
    """The x of where(hidden, 0, x)."""
    if node.op_type != "Where" or np.any(constant(node.inputs[1], 1)):
        return None
    return node.inputs[2]


def _clamp_of(node: ir.Node) -> tuple[ir.Value, Array | None, Array | None] | None:
    """What is clamped, and the constant bounds, where a node is a clamp."""
    if node.op_type == "Relu":
        return node.inputs[0], np.float32(0), None
    if node.op_type == "Clip":
        bounds = [*node.inputs[1:], None, None][:2]
        arrays = [constant(v) for v in bounds]
        if any(v is not None and a is None for v, a in zip(bounds, arrays, strict=True)):
            return None
        return node.inputs[0], *arrays
    if node.op_type in ("Max", "Min") and len(node.inputs) == 2:
        for x, other in (node.inputs, node.inputs[::-1]):
            bound = constant(other)
            if bound is not None and x.shape is not None and bound.ndim <= len(x.shape):
                return (x, bound, None) if node.op_type == "Max" else (x, None, bound)
    return None
