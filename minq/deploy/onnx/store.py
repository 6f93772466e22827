"""What a marker becomes: QuantizeLinear and DequantizeLinear, or stored integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from minq._checks import Array
from minq.deploy.onnx.markers import Markers, constant

INTEGERS = ".integers"
"""What follows a quantizer's name in the name of its integers; behind it, how much they are higher
than the quantizer's own."""


def replace(markers: Markers, marker: ir.Node) -> None:
    """Put QuantizeLinear and DequantizeLinear in place of a marker, or the constant's integers."""
    name, quantizer = markers.of(marker)
    x, kind, shift = marker.inputs[0], *_container(markers, name)
    scale, zero_point = (v.detach().numpy() for v in quantizer.scale_zero_point())
    zero_point = np.broadcast_to(zero_point, scale.shape) + shift
    grid = [
        markers.initializer(scale.astype(np.float32), f"{name}.scale"),
        markers.initializer(zero_point.astype(kind.numpy()), f"{name}.zero_point"),
    ]
    granularity = quantizer.granularity
    axis = {} if granularity.axis is None else {"axis": granularity.axis % len(x.shape)}
    back: list[ir.Node] = []
    if (content := constant(x)) is not None:
        integers = quantizer.quantize(torch.from_numpy(content.copy())).numpy() + shift
        if granularity.group is not None:
            integers, back = _rows(markers, integers, axis["axis"], name)
            axis = {"axis": 1, "block_size": granularity.group}
        new = _store(markers, integers, kind, quantizer.bits, name)
    else:
        bounds = [bound + shift for bound in markers.bounds[marker]]
        new = _round(markers, x, grid, axis, bounds, kind, name)
        if marker in markers.originals:
            new[-1].outputs[0].name = f"{name}{INTEGERS}{shift or ''}"
    integers = new[-1].outputs[0] if new else markers.graph.initializers[name + INTEGERS]
    new.append(ir.node("DequantizeLinear", [integers, *grid], axis))
    for node in back:
        node.replace_input_with(0, new[-1].outputs[0])
        new.append(node)
    markers.swap(marker, new)


def _rows(markers: Markers, integers: Array, axis: int, name: str) -> tuple[Array, list[ir.Node]]:
    """One row for each channel, of which groups are cut; and what turns rows into a weight."""
    moved = np.moveaxis(integers, axis, 0)
    shape = markers.initializer(np.array(moved.shape), f"{name}.shape")
    back = [ir.node("Reshape", [None, shape])]
    if axis:
        order = [*range(1, axis + 1), 0, *range(axis + 1, moved.ndim)]
        back.append(ir.node("Transpose", [None], {"perm": order}))
    return moved.reshape(len(moved), -1), back


def _container(markers: Markers, name: str) -> tuple[ir.DataType, int]:
    """The integer type that engines take, and how much higher the grid stands in it.

    UINT8, where a signed grid moves up by 128 with its zero-point; INT8 for narrower weights.
    x86 without VNNI adds products of UINT8 and INT8 in pairs, in 16 bits, and saturates: two of
    255 * 127 are too much, two of 255 * 64 are not.
    """
    quantizer = markers.known[name]
    if quantizer.bits > 8:
        return ir.DataType.INT16 if quantizer.grid.signed else ir.DataType.UINT16, 0
    if not quantizer.grid.signed:
        return ir.DataType.UINT8, 0
    narrow = name in markers.weights and quantizer.bits < 8
    return (ir.DataType.INT8, 0) if narrow else (ir.DataType.UINT8, 128)


def _store(
    markers: Markers, integers: Array, kind: ir.DataType, bits: int, name: str
) -> list[ir.Node]:
    """A constant of integers, in half the space where they have 4 bits."""
    if bits > 4 or name not in markers.weights:
        markers.initializer(integers.astype(kind.numpy()), name + INTEGERS)
        return []
    half = ir.DataType.INT4 if kind == ir.DataType.INT8 else ir.DataType.UINT4
    integers = markers.initializer(integers.astype(half.numpy()), name + INTEGERS)
    return [ir.node("Cast", [integers], {"to": kind.value})]


def _round(markers: Markers, x, grid, axis, bounds, kind, name) -> list[ir.Node]:
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
        scale, zero_point = (constant(v).astype(np.float32) for v in grid)
        bounds = [scale * (bound.astype(np.float32) - zero_point) for _, bound in clamps]
    new = [round_] if kind.bitwidth <= 8 else []
    for (op, _), bound in zip(clamps, bounds, strict=True):
        bound = markers.initializer(bound, f"{name}.{op}")
        new.append(ir.node(op, [new[-1].outputs[0] if new else x, bound]))
    if round_ not in new:
        if new:
            round_.replace_input_with(0, new[-1].outputs[0])
        new.append(round_)
    return new
