"""Sums, products, means, tables and rows: what each is as a step in C."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from minq.deploy import kernels
from minq.deploy.c.constants import Rescaling, rescaling
from minq.deploy.c.resample import separable
from minq.deploy.c.steps import Call
from minq.deploy.c.views import Array, View, whole
from minq.deploy.normalize import LayerNorm, LogSoftmax, Softmax

if TYPE_CHECKING:
    from minq.deploy.c.lower import Lowering


def requantize(c: Lowering, node: fx.Node, unit: kernels.Requantize) -> None:
    """A rounding by itself, or a sum of two tensors with one."""
    if len(node.args) > 2:
        c.refuse(node, f"a sum of {len(node.args)} tensors with one rounding")
    value = c.values[node]
    views = [c.views[a] for a in node.args]
    views = [View(v.array, v.index.broadcast_to(value.shape)) for v in views]
    flat = any(v.array.channels_last for v in views) and value.ndim == 4
    reads = [c.array(v, flat) for v in views]
    y = Array(node.name, value.dtype, tuple(value.shape), flat)
    c.views[node] = whole(y)
    c.add(Call("add" if len(reads) == 2 else "rescale", node.name, reads, y, rounding=unit))


def product(c: Lowering, node: fx.Node, module: kernels.Product) -> None:
    if "matmul" not in str(module.function) and "bmm" not in str(module.function):
        c.refuse(node, "a product of two tensors, number by number")
    a, b = (c.views[n] for n in node.args)
    shape = c.values[node].shape
    if len(shape) < 2 or len(a.shape) < 2 or len(b.shape) < 2:
        c.refuse(node, "a product with a vector")
    stack = shape[:-2]
    a = View(a.array, a.index.broadcast_to(*stack, *a.shape[-2:]))
    b = View(b.array, b.index.transpose(-1, -2).broadcast_to(*stack, b.shape[-1], b.shape[-2]))
    y, unit = c.result(node, False)
    numbers = {"stack": math.prod(stack), "rows": shape[-2], "columns": shape[-1]}
    numbers |= {"inner": a.shape[-1], "zeros": module.zeros}
    reads = [c.array(a, False), c.array(b, False)]
    c.add(Call("matmul", node.name, reads, y, numbers, module, unit))


def average(c: Lowering, node: fx.Node, module: kernels.Average) -> None:
    x, y_value = c.views[node.args[0]], c.values[node]
    if len(x.shape) != 4:
        c.refuse(node, "a mean or a sum of anything but the pixels of pictures")
    size = y_value.shape[2:] if y_value.ndim == 4 else (1, 1)
    found = separable(
        module, node.args[1:], dict(node.kwargs), (x.shape[2], x.shape[3]), (size[0], size[1])
    )
    if found is None:
        c.refuse(node, "it is not a mean, pooling or interpolation of pixels")
    source = c.array(x, True)
    y, unit = c.result(node, True)
    numbers: dict[str, Any] = {
        "size": (*x.shape[2:], x.shape[1]),
        "out": (*size, x.shape[1]),
        "axes": found,
    }
    numbers["zero"] = module.zero
    c.add(Call("resample", node.name, [source], y, numbers, module, unit))


def table(c: Lowering, node: fx.Node, module: kernels.Table) -> None:
    x = c.views[node.args[0]]
    source = c.array(x, x.array.channels_last)
    value = c.values[node]
    y = Array(node.name, value.dtype, tuple(value.shape), source.channels_last)
    c.views[node] = whole(y)
    c.add(Call("table", node.name, [source], y, {"low": module.low}, module))


def lookup(c: Lowering, node: fx.Node, module: kernels.Lookup) -> None:
    index, value = c.views[node.args[0]], c.values[node]
    if module.weight.is_floating_point():
        c.refuse(node, "a table of real numbers")
    y = Array(node.name, value.dtype, tuple(value.shape))
    c.views[node] = whole(y)
    c.add(Call("lookup", node.name, [c.array(index, False)], y, {}, module))


def rows(c: Lowering, node: fx.Node, module: Softmax | LayerNorm) -> None:
    """Softmax and norms, of rows that lie one after another."""
    x, value = c.views[node.args[0]], c.values[node]
    width = value.shape[-1]
    if isinstance(module, LogSoftmax):
        c.refuse(node, "a logarithm of softmax")
    if module.exact:
        c.refuse(node, "multipliers in floats")
    if isinstance(module, Softmax):
        if module.dim not in (-1, value.ndim - 1) or not module.scale > 0:
            c.refuse(node, "a softmax over another dimension than the last")
    else:
        width = math.prod(value.shape[d] for d in module.dims)
        if module.groups is not None:
            c.refuse(node, "a norm of groups of channels")
    y = Array(node.name, value.dtype, tuple(value.shape))
    source = c.array(x, False)
    c.views[node] = whole(y)
    kind = "softmax" if isinstance(module, Softmax) else "layer_norm"
    call = Call(kind, node.name, [source], y, {"width": width}, module)
    low, high = (torch.tensor(v) for v in module.grid.integers)
    zero = int(module.grid.zero_point)
    if isinstance(module, LayerNorm):
        shape = (value.numel() // width, width)

        def spread(v: Tensor) -> Tensor:
            return (v.reshape(-1) if v.numel() > 1 else v).long().broadcast_to(shape).flatten()

        call.rescaling = rescaling(module.multipliers, low, high, zero, spread, width)
    else:
        call.rescaling = Rescaling([[1]], [0], [0], [int(low)], [int(high)], zero, 1, (False,) * 3)
    c.add(call)
