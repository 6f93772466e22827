"""Layers and pooling: a window that moves over a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.nn import functional as F

from minq import graph
from minq.deploy import kernels
from minq.deploy.c.steps import Call
from minq.deploy.c.views import Array, places, whole

if TYPE_CHECKING:
    from minq.deploy.c.lower import Lowering

LANES = 16
"""Channels that a depthwise convolution computes at a time."""


def layer(c: Lowering, node: fx.Node, module: kernels.Layer) -> None:
    """A convolution of pictures or rows, or a linear layer."""
    if module.bound > module.bits:
        c.refuse(node, f"its accumulator needs {module.bound} bits and wraps at {module.bits}")
    source, w = node.args[0], module.weight
    if module.function is F.linear:
        x = c.views[source]
        reads, rows = c.array(x, False), x.index.numel() // w.shape[1]
        y, unit = c.result(node, False)
        inputs = w.shape[1]
        numbers = {"rows": rows, "inputs": inputs, "outputs": w.shape[0]}
        return c.add(Call("linear", node.name, [reads], y, numbers, module, unit, scratch=inputs))
    if module.function is not F.conv2d:
        c.refuse(node, f"there is no C function for {module.function.__name__}, only for conv2d")
    pads = [*module.pads, 0, 0, 0, 0][:4]
    source, pads = _padding_before(c, source, module, pads)
    x, (out_c, depth, kh, kw) = c.views[source], w.shape
    reads = c.array(x, True)
    y, unit = c.result(node, True)
    size, out = (*x.shape[2:], x.shape[1]), (*c.values[node].shape[2:], out_c)
    stride, dilation = (graph.each(module.settings[k], 2) for k in ("stride", "dilation"))
    groups = module.settings["groups"]
    if (kh, kw, groups) == (1, 1, 1) and tuple(stride) == (1, 1) and not any(pads):
        numbers = {"rows": out[0] * out[1], "inputs": depth, "outputs": out_c}
        return c.add(Call("linear", node.name, [reads], y, numbers, module, unit, scratch=depth))
    numbers = {"size": size, "out": out, "kernel": (kh, kw), "stride": stride, "groups": groups}
    numbers |= {"dilation": dilation, "pad": (pads[2], pads[0]), "zero": module.zero}
    if groups == size[2] == out_c:
        taps = kh * kw * LANES
        return c.add(Call("depthwise", node.name, [reads], y, numbers, module, unit, scratch=taps))
    patch = kh * kw * depth
    return c.add(Call("conv2d", node.name, [reads], y, numbers, module, unit, scratch=patch))


def _padding_before(c: Lowering, source: fx.Node, module, pads: list) -> tuple[fx.Node, list]:
    """A padding by the zero-point in front is the convolution's own: nothing is copied."""
    padded = c.padded.get(source)
    if padded is None or padded[2] != module.zero:
        return source, pads
    before, more, _ = padded
    return before, [a + b for a, b in zip(pads, more, strict=True)]


def pad(c: Lowering, node: fx.Node) -> None:
    """Filled with one level around: a copy, unless the convolution behind does it."""
    source, widths, *rest = node.args
    mode = rest[0] if rest and isinstance(rest[0], str) else "constant"
    level = int(([v for v in rest if not isinstance(v, str)] or [node.kwargs.get("value") or 0])[0])
    x, value = c.views[source], c.values[node]
    if mode != "constant":
        c.refuse(node, f"padding that is {mode}")
    if len(widths) <= 4 and value.ndim == 4 and min(widths) >= 0:
        users = [c.modules.get(u.target) for u in node.users]
        folded = (kernels.Layer, F.conv2d, level)
        if all(
            (type(m), getattr(m, "function", 0), getattr(m, "zero", None)) == folded for m in users
        ):
            c.padded[node] = source, [*widths, 0, 0, 0, 0][:4], level
            return
    flat = x.array.channels_last and value.ndim == 4
    y = Array(node.name, x.array.dtype, tuple(value.shape), flat)
    inside = F.pad(torch.ones(x.shape), widths).bool()
    if min(widths) < 0:
        c.refuse(node, "padding that cuts off")
    where = places(y.shape, flat)[inside].reshape(x.shape)
    c.join(node.name, [(x, where)], y, level)
    c.views[node] = whole(y)


def max_pool(c: Lowering, node: fx.Node) -> None:
    def pair(k: int, name: str, default: object) -> tuple[int, int]:
        value = graph.argument(node, k, name, default)
        return tuple(graph.each(value, 2))  # type: ignore[return-value]

    kernel = pair(1, "kernel_size", 1)
    stride = pair(2, "stride", kernel) if graph.argument(node, 2, "stride", None) else kernel
    x, value = c.views[node.args[0]], c.values[node]
    if len(x.shape) != 4:
        c.refuse(node, "pooling of anything but a batch of pictures")
    reads = c.array(x, True)
    y = Array(node.name, value.dtype, tuple(value.shape), True)
    numbers = {
        "size": (*x.shape[2:], x.shape[1]), "out": (*value.shape[2:], x.shape[1]), "zero": 0,
        "kernel": kernel, "stride": stride, "pad": pair(3, "padding", 0), "groups": 1,
        "dilation": pair(4, "dilation", 1),
    }  # fmt: skip
    c.add(Call("max_pool", node.name, [reads], y, numbers))
    c.views[node] = whole(y)
