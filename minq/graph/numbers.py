"""Numbers that operators hold: where they clip, and what they fill up with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from minq.graph.nodes import argument, op, shape_of, traits
from minq.graph.parameters import device_of, get, unused


def clip_arguments(node: fx.Node) -> tuple[Any, Any] | None:
    """Where the operator clips, as it is written: (low, high), each a number, a node or None.

    None stands for no bound, and None alone for an operator that does not clip.
    """
    if (clip := traits(node).clip) is None:
        return None
    ends: list[Any] = [clip.low, clip.high]
    for position, name in enumerate(clip.names, 1):
        end = int(name.startswith("max"))
        ends[end] = argument(node, position, name, ends[end])
    return ends[0], ends[1]


def clip_bounds(node: fx.Node, axis: int = 1) -> tuple[Tensor, Tensor] | None:
    """Where the operator clips, (low, high): whoever wrote it, and in whatever form.

    Args:
        node: any operator.
        axis: the dimension along which bounds may differ.

    Returns:
        Two bounds: each one number, shape (), or one for each place along ``axis``, shape (size,);
        -inf and inf stand for no bound. None for an operator that does not clip, and for bounds
        that are computed from data or differ along another dimension.
    """
    if (ends := clip_arguments(node)) is None:
        return None
    module, bounds = node.graph.owning_module, []
    for value, missing in zip(ends, (-math.inf, math.inf), strict=True):
        if isinstance(value, fx.Node):
            if value.op != "get_attr":
                return None
            value = get(module, value.target).detach()
        bound = torch.as_tensor(missing if value is None else value, device=device_of(module))
        bound = bound if bound.is_floating_point() else bound.float()
        if bound.numel() == 1:
            bounds.append(bound.reshape(()))
            continue
        dims = len(shape_of(node))
        if bound.numel() != ([1] * (dims - bound.ndim) + list(bound.shape))[axis % dims]:
            return None
        bounds.append(bound.flatten())
    return bounds[0], bounds[1]


def set_clip_bounds(node: fx.Node, low: Tensor, high: Tensor) -> None:
    """Let a clip end here instead, at one number or one for each channel of dimension 1.

    The bounds become buffers of its own: what it read before may be another clip's too.
    """
    module = node.graph.owning_module
    arguments: list[fx.Node | None] = []
    for name, value in (("floor", low), ("ceiling", high)):
        if value.isinf().all():
            arguments.append(None)
            continue
        name = unused(module, f"{node.name}_{name}")
        if value.ndim:
            value = value.reshape(-1, *[1] * (len(shape_of(node)) - 2))
        module.register_buffer(name, value)
        with node.graph.inserting_before(node):
            bound = node.graph.get_attr(name)
        bound.meta["val"] = value
        arguments.append(bound)
    node.target, node.kwargs = torch.ops.aten.clamp.Tensor, {}
    node.args = (node.args[0], *arguments)


def fill_value(node: fx.Node) -> float | fx.Node | None:
    """The number that an operator makes a tensor of, or fills (a part of) its input with.

    Returns:
        A number; a node where it is computed; None for operators that fill with none, such as
        ``arange``, or a padding that repeats the border.
    """
    of = traits(node)
    if of.value is not None or of.value_at is None:
        return of.value
    if op(node) == "pad" and argument(node, 2, "mode", "constant") != "constant":
        return None
    padding = op(node) in ("pad", "constant_pad_nd")
    default = node.kwargs.get("fill_value", node.kwargs.get("s"))
    value = argument(node, of.value_at, "value", default)
    value = 0.0 if value is None and padding else value
    return float(value) if isinstance(value, (bool, int, float)) else value


def fills_up(node: fx.Node) -> bool:
    """Whether a move fills up with a number that a grid need not hold.

    0 is on all grids, and about -infinity stands for no value at all.
    """
    value = fill_value(node) if traits(node).role == "move" else None
    return isinstance(value, float) and value != 0 and abs(value) < 1e3


def constant_number(value: Any) -> float | None:
    """The one number that a constant holds everywhere; None for anything else.

    Args:
        value: a number, a node that makes a tensor of one number, one that reads a parameter or
            buffer with a single element that does not train, or a product of such.
    """
    if isinstance(value, (int, float)):
        return float(value)
    if traits(value).role == "make":
        filled = fill_value(value)
        return filled if isinstance(filled, float) else None
    if op(value) == "rescale":  # -1e9 * torch.ones_like(x)
        a, b = map(constant_number, value.args[:2])
        divides = getattr(value.target, "overloadpacket", None) is torch.ops.aten.div
        return None if a is None or b is None else a / b if divides else a * b
    if isinstance(value, fx.Node) and value.op == "get_attr":
        tensor = get(value.graph.owning_module, value.target)
        if isinstance(tensor, Tensor) and tensor.numel() == 1 and not tensor.requires_grad:
            return float(tensor)
    return None
