"""Reading a node of a captured graph: its operator, its shape, its arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from minq.graph.notes import notes_of
from minq.graph.ops import OPERATORS, UNKNOWN, Operator

_SAME = {"_softmax": "softmax", "_log_softmax": "log_softmax", "clip": "clamp"}


def op(node: Any) -> str:
    """The operator's short name, "conv2d"; "" for what is not a call of an operator.

    A product with a plain number only changes the scale, so it is called "rescale"; so is one with
    the constants that ``minq.ptq.smooth`` leaves behind.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", node.target)
    name = packet.__name__
    if name == "div" and node.kwargs.get("rounding_mode"):
        return "floor_divide"
    if name in ("mul", "div"):
        numbers = [not isinstance(a, fx.Node) or notes_of(a).smoothing for a in node.args[:2]]
        if name == "div" and numbers == [True, False]:
            return "reciprocal"
        name = "rescale" if any(numbers) else name
    if name in ("max", "min") and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        return f"{name}imum"
    return _SAME.get(name, name)


def traits(node: Any) -> Operator:
    """The operator's entry in the table of operators; that of an unknown one for all else."""
    return OPERATORS.get(op(node), UNKNOWN)


def operands(node: fx.Node) -> list[Any]:
    """The tensors that an operator computes with, and numbers in place of such.

    Weights, biases, indices and the conditions of a ``where`` are not among them.
    """
    found: list[Any] = []
    for position in traits(node).operands:
        value = node.args[position] if len(node.args) > position else None
        found.extend(value if isinstance(value, (list, tuple)) else [value])
    return [value for value in found if value is not None]


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an operator, given by position or by name, else its default."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def each(value: Any, dims: int) -> list:
    """An argument with one number for all dimensions, or one for each, as the latter."""
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * dims if len(value) == 1 else value


def is_float(node: Any) -> bool:
    """Whether the node gives a floating-point tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def is_real(node: fx.Node) -> bool:
    """Whether any tensor that the node gives holds real (or complex) numbers."""
    tensors = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return any(v.is_floating_point() or v.is_complex() for v in tensors)


def shape_of(node: fx.Node) -> tuple:
    """The shape of the node's tensor; the batch size is a symbol."""
    return tuple(node.meta["val"].shape)


def is_fixed(size: Any) -> bool:
    """Whether a dimension is a number, not a symbol.

    A symbol that torch has found to be a number still has the symbol's type: its text tells.
    """
    return str(size).isdigit()


def module_of(node: fx.Node) -> tuple[str, str]:
    """Path and class of the innermost module that the node comes from; ("", "") for none."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    return path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
