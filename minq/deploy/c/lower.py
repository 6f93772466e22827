"""The program of integers as a list of steps, each a call of one C function.

One walk through the graph. Layers take the rounding behind them along, where nothing else reads
their accumulators; what only moves numbers becomes a view, and a copy where a step needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from minq import graph
from minq.deploy import kernels
from minq.deploy.c import operators, windows
from minq.deploy.c.constants import C_TYPES, rescaling
from minq.deploy.c.steps import Call, CannotWrite
from minq.deploy.c.views import Array, View, in_memory, loops, moved, places, whole
from minq.deploy.normalize import LayerNorm, Softmax

MOVES = {
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "squeeze", "unsqueeze",
    "select", "slice", "expand", "narrow", "upsample_nearest2d", "clone", "contiguous", "movedim",
    "swapaxes", "detach", "alias", "flip", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
}  # fmt: skip
"""Operators whose results are the places that torch's operator gives for places."""

HANDLERS: dict[type, Callable[..., None]] = {
    kernels.Layer: windows.layer,
    kernels.Requantize: operators.requantize,
    kernels.Product: operators.product,
    kernels.Average: operators.average,
    kernels.Table: operators.table,
    kernels.Lookup: operators.lookup,
    Softmax: operators.rows,
    LayerNorm: operators.rows,
}


class Lowering:
    """Walks through a program, in ``run``: its calls, inputs and outputs."""

    def __init__(self, program: fx.GraphModule, sample: list[Any]) -> None:
        self.program, self.calls = program, []
        interpreter = fx.Interpreter(program, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(*sample, enable_io_processing=False)
        self.values = interpreter.env  # for one sample: shapes, types, and constants
        self.views: dict[fx.Node, View] = {}
        self.inputs: list[tuple[Array, kernels.Quantize | None]] = []
        self.outputs: list[tuple[Array, kernels.Dequantize]] = []
        self.modules = dict(program.named_modules())
        self.given: set[fx.Node] = set()  # what depends on an input
        self._fused: dict[fx.Node, fx.Node] = {}  # a rounding -> the layer that takes it along
        self._copies: dict[tuple, Array] = {}
        self.padded: dict[fx.Node, tuple] = {}  # a padding that the layer behind does

    def run(self) -> Lowering:
        """Walk through the graph once."""
        for node in self.program.graph.nodes:
            depends = not self.given.isdisjoint(node.all_input_nodes)
            if node.op == "placeholder" or depends:
                self.given.add(node)
            if node.op == "output":
                for given in node.all_input_nodes:
                    if given not in self.views:
                        self.refuse(given, "its result does not depend on the input")
            elif node.op == "placeholder" or depends:
                self._node(node)
            else:
                self._constant(node)
        return self

    def refuse(self, node: fx.Node, why: str) -> Any:
        """Say which operator cannot be written, and what to do."""
        raise CannotWrite(
            f"{node.name} cannot be written as C: {why}; leave it out, split the network there, "
            "or run it with net(x) or ONNX Runtime"
        )

    # --- nodes ------------------------------------------------------------------------------------

    def _constant(self, node: fx.Node) -> None:
        value = self.values[node]
        if isinstance(value, Tensor) and value.dtype in C_TYPES:
            array = Array(node.name, value.dtype, tuple(value.shape), False, "constant", value)
            self.views[node] = whole(array)

    def _node(self, node: fx.Node) -> None:
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if node.op == "placeholder":
            self._placeholder(node)
            return None
        if node.op == "call_method" and node.target == "double":
            return None  # seen from the placeholder
        if isinstance(module, kernels.Quantize):
            if node not in self.views:
                self.refuse(node, "it rounds a float island")
            return None
        if isinstance(module, kernels.Dequantize):
            return self._dequantize(node, module)
        if node in self._fused:
            return None
        for kind, handler in HANDLERS.items():
            if isinstance(module, kind):
                return handler(self, node, module)
        if isinstance(module, kernels.Move) or node.op == "call_function":
            return self._move(node, module.function if module is not None else node.target)
        return self.refuse(node, f"there is no C function for {_title(node, module)}")

    def _placeholder(self, node: fx.Node) -> None:
        value = self.values[node]
        if not value.is_floating_point():
            if value.dtype != torch.int64:
                self.refuse(node, f"an input of {value.dtype} is not supported, int64 is")
            array = Array(node.name, torch.int32, tuple(value.shape), False, "input")
            self.inputs.append((array, None))
            self.views[node] = whole(array)
            return
        readers = [r for double in node.users for r in double.users]
        grids = [self.modules.get(r.target) for r in readers]
        if len(readers) != 1 or not isinstance(grids[0], kernels.Quantize):
            self.refuse(node, "an input must go through one quantizer and nothing else")
        x, grid = self.values[readers[0]], grids[0]
        array = Array(node.name, x.dtype, tuple(x.shape), x.ndim == 4, "input")
        self.inputs.append((array, grid))
        self.views[readers[0]] = whole(array)

    def _dequantize(self, node: fx.Node, real: kernels.Dequantize) -> None:
        plain = real.slope is None and not bool(real.constant.any())
        bounds = bool((real.low != -math.inf).any() or (real.high != math.inf).any())
        if len(node.args) != 1 or not plain or bounds:
            self.refuse(node, "an output must be one tensor on a grid; give it a quantizer")
        if any(user.op != "output" for user in node.users):
            self.refuse(node, "a float island reads it")
        view = self.views[node.args[0]]
        array = self.array(view, view.array.channels_last)
        if array.where != "arena":
            array = self._copy(view, view.array.channels_last)
        array.where = "output"
        self.outputs.append((array, real))
        self.views[node] = whole(array)

    # --- views ------------------------------------------------------------------------------------

    def array(self, view: View, channels_last: bool) -> Array:
        """The numbers one after another, as a step needs them: copied where they are not."""
        flat = channels_last and len(view.shape) == 4
        if view.is_array(flat):
            if view.shape == view.array.shape and flat == view.array.channels_last:
                return view.array
            # The same bytes with another shape.
            return view.array
        if view.array.where == "constant":
            assert view.array.values is not None
            values = in_memory(view.array.values.flatten()[view.index], flat)
            name = f"{view.array.name}_{len(self._copies)}"
            self._copies[name,] = found = Array(
                name, values.dtype, view.shape, flat, "constant", values
            )
            return found
        key = (view.array, flat, tuple(view.shape), tuple(view.index.flatten().tolist()))
        if key not in self._copies:
            self._copies[key] = self._copy(view, flat)
        return self._copies[key]

    def _copy(self, view: View, channels_last: bool) -> Array:
        taken = {c.writes.name for c in self.calls}
        name = graph.unused_in(taken, f"{view.array.name}_copy")
        found = Array(name, view.array.dtype, view.shape, channels_last)
        self.join(name, [(view, places(found.shape, channels_last))], found)
        return found

    def join(
        self, name: str, parts: list[tuple[View, Tensor]], into: Array, level: int | None = None
    ) -> None:
        """Copy views to places of an array, which is filled with ``level`` before."""
        moves = []
        for view, where in parts:
            source, target = (in_memory(i, into.channels_last) for i in (view.index, where))
            nest = loops(source, target)
            if nest is None:
                raise CannotWrite(f"{name} cannot be written as C: its copy needs too many loops")
            moves.append((view.array, nest, int(source[0]), int(target[0])))
        reads = list(dict.fromkeys(array for array, *_ in moves))
        self.calls.append(Call("join", name, reads, into, {"moves": moves, "level": level}))

    def _move(self, node: fx.Node, function: Any) -> None:
        """Copies, and operators of their own kind that the compiler only calls moves."""
        kind = graph.op(node) if node.op == "call_function" else function._schema.name[6:]
        if kind in ("cat", "concat"):
            return self._cat(node)
        source, *rest = node.args
        if not isinstance(source, fx.Node) or any(isinstance(a, fx.Node) for a in rest):
            self.refuse(node, f"{kind} of several tensors")
        if kind == "max_pool2d":
            return windows.max_pool(self, node)
        if kind in ("pad", "constant_pad_nd"):
            return windows.pad(self, node)
        if kind not in MOVES:
            self.refuse(node, f"there is no C function for {kind}")
        self.views[node] = moved(self.views[source], function, tuple(rest), dict(node.kwargs))
        return None

    def _cat(self, node: fx.Node) -> None:
        parts = [self.views[p] for p in node.args[0]]
        value, first = self.values[node], parts[0].array
        if len({p.array.dtype for p in parts}) > 1:
            self.refuse(node, "its parts are of different types")
        flat = first.channels_last and value.ndim == 4
        out = Array(node.name, first.dtype, tuple(value.shape), flat)
        dim = node.args[1] if len(node.args) > 1 else 0
        where = places(out.shape, flat).split([p.shape[dim] for p in parts], dim)
        self.join(node.name, list(zip(parts, where, strict=True)), out)
        self.views[node] = whole(out)

    # --- results ----------------------------------------------------------------------------------

    def result(self, node: fx.Node, channels_last: bool) -> tuple[Array, kernels.Requantize | None]:
        """The array that a layer writes: its accumulators, or what the rounding behind makes."""
        (user, *more) = node.users
        unit = self.modules.get(user.target) if user.op == "call_module" else None
        fits = isinstance(unit, kernels.Requantize) and not more and len(user.args) == 1
        at, value = (user, self.values[user]) if fits else (node, self.values[node])
        flat = channels_last and value.ndim == 4
        array = Array(at.name, value.dtype, tuple(value.shape), flat)
        self.views[at] = whole(array)
        if fits:
            self._fused[user] = node
        return array, unit if fits else None

    def add(self, call: Call) -> None:
        """One more step; its rounding is laid out as its result is."""
        if call.rounding is not None:
            unit, y = call.rounding, call.writes
            if unit.exact:
                raise CannotWrite(
                    'multipliers in floats cannot be written as C; pass multipliers="fixed" to '
                    "minq.to_integer"
                )
            if unit.negative is not None:
                raise CannotWrite(
                    f"{y.name} cannot be written as C: there is no leaky ReLU; take ReLU or ReLU6"
                )
            shape = y.shape

            def spread(v: Tensor) -> Tensor:
                return in_memory(v.long().broadcast_to(shape), y.channels_last)

            zero, channels = int(unit.grid.zero_point), shape[1] if y.channels_last else shape[-1]
            call.rescaling = rescaling(
                unit.multipliers, unit.low, unit.high, zero, spread, channels
            )
            layer = call.kind not in ("rescale", "add")
            if layer and call.rescaling.channels != channels:
                raise CannotWrite(
                    f"{y.name} cannot be written as C: scales differ within a channel"
                )
        self.calls.append(call)


def _title(node: fx.Node, module: nn.Module | None) -> str:
    function = getattr(module, "function", None)
    name = getattr(function, "__name__", "")
    what = type(module).__name__ if module is not None else str(node.target)
    return f"{what} ({name})" if name else what
