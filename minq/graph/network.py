"""A captured network that stays what it is when it is copied, moved, saved and loaded.

PyTorch saves a ``GraphModule`` as source code, and traces that again when it is loaded: all that
was known of the graph is gone then. A ``Network`` saves the nodes themselves, operators by name and
tensors by their shapes, and refuses inputs of a size that the graph was not captured for.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from minq.graph.nodes import is_fixed
from minq.graph.notes import convert_notes, network_notes
from minq.graph.parameters import device_of


class Network(fx.GraphModule):
    """A graph of operators that refuses inputs of sizes it does not hold for (``check_sizes``)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        notes = network_notes(self)
        if not torch.compiler.is_compiling():
            warn_of_shapes(self, args, kwargs)
        if notes.sizes:
            named = [kwargs[k] for k in notes.keywords if k in kwargs]
            check_sizes(self, tree_leaves((args, named)))
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError:  # deep inside, perhaps because of a size that is fixed
            for node, value in tensor_inputs(self, tree_leaves((args, kwargs))):
                check_shape(node, value)
            raise

    def __copy__(self) -> Network:
        """With the same parameters; fx's own copy would forget what is checked here."""
        gm = Network(self, copy.deepcopy(self.graph))
        gm.meta.update(self.meta)
        return gm

    def __reduce__(self) -> tuple:
        state = self.__dict__.copy()
        nodes = [_described(node) for node in state.pop("_graph").nodes]
        return _restored, (state, nodes, self._graph._codegen)

    def _apply(self, fn: Any, recurse: bool = True) -> Network:
        """Notes, and operators that make tensors, go where the parameters go."""
        before = device_of(self)
        super()._apply(fn, recurse)
        convert_notes(self, fn)
        if (device := device_of(self)) != before:
            move_makers(self, device)
        return self


def move_makers(gm: fx.GraphModule, device: torch.device) -> None:
    """Let the operators that make tensors make them on that device."""
    makers = [node for node in gm.graph.nodes if node.kwargs.get("device") is not None]
    for node in makers:
        node.update_kwarg("device", device)
    if makers:
        gm.recompile()


def on_cpu(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy on the CPU; operators that make tensors make them there too."""
    gm = copy.deepcopy(gm).cpu()
    move_makers(gm, torch.device("cpu"))
    return gm


# --- Which sizes of inputs the graph holds for ----------------------------------------------------


def tensor_inputs(gm: fx.GraphModule, values: list[Any]) -> Iterator[tuple[fx.Node, Tensor]]:
    """Inputs of the network and what they are given, where both are tensors."""
    inputs = (node for node in gm.graph.nodes if node.op == "placeholder")
    for node, value in zip(inputs, values, strict=False):
        if isinstance(value, Tensor) and isinstance(node.meta.get("val"), Tensor):
            yield node, value


def check_shape(node: fx.Node, value: Tensor) -> None:
    """Refuse an input of a shape that the network was not captured with; only the batch may vary.

    Raises:
        ValueError: a dimension that is a number in the graph is another one.
    """
    expected = node.meta["val"]
    fits = value.ndim == expected.ndim and all(
        not is_fixed(e) or int(e) == v for e, v in zip(expected.shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"input {node.name} has shape {tuple(value.shape)}; the model was captured with "
            f"{tuple(expected.shape)}, where letters may vary"
        )


def warn_of_shapes(gm: fx.GraphModule, args: tuple, kwargs: dict[str, Any]) -> None:
    """Warn of inputs of another size than the captured one, in a dimension that is not free."""
    values = [*args, *(kwargs[k] for k in network_notes(gm).keywords if k in kwargs)]
    if len(values) != sum(node.op == "placeholder" for node in gm.graph.nodes):
        return
    for node, value in tensor_inputs(gm, values):
        try:
            check_shape(node, value)
        except ValueError as error:
            warnings.warn(
                f"{error}. What forward asks of the other sizes was decided then, as the path "
                "that it takes; capture (quantize) the model with inputs of this size",
                stacklevel=3,
            )


def check_sizes(gm: fx.GraphModule, values: list[Any]) -> None:
    """Refuse inputs of sizes for which the model takes another path than the one in the graph.

    Args:
        gm: a network; its notes hold conditions such as "x.shape[0] > 4".
        values: one for every input.

    Raises:
        ValueError: a condition does not hold.
    """
    conditions = network_notes(gm).sizes
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    inputs = dict(zip(names, values, strict=False)) if len(names) == len(values) else {}
    for condition in conditions if inputs else ():
        if not eval(condition, dict(_EXACT), inputs):
            given = [f"{k}: {tuple(v.shape)}" for k, v in inputs.items() if f"{k}." in condition]
            raise ValueError(
                f"the model takes another path for inputs of this size ({', '.join(given)}); the "
                f"network was captured where {' and '.join(conditions)}. Give it data of "
                "such sizes, or capture (quantize) the model again with data of the sizes that it "
                "will run on"
            )


_EXACT = {"Mod": lambda a, b: a % b, "Max": max, "Min": min, "Abs": abs, "math": math,
          "torch": torch}  # fmt: skip


# --- Saving and loading ---------------------------------------------------------------------------


class _Named:
    """Stands for a node, or an operator, where objects are saved."""

    def __init__(self, name: str) -> None:
        self.name = name


def operator_name(target: Any) -> Any:
    """An ATen operator as its name, "aten.conv2d.default", which can be saved; else itself."""
    return _Named(str(target)) if isinstance(target, torch._ops.OpOverload) else target


def operator(named: Any) -> Any:
    """The operator of that name."""
    if not isinstance(named, _Named):
        return named
    namespace, packet, overload = named.name.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except AttributeError as error:
        raise ValueError(
            f"the network needs the operator {named.name}, which is not registered here; import "
            "what defines it before the network is loaded"
        ) from error


_LEFT = frozenset("val stack_trace torch_fn tensor_meta from_node source_fn_stack".split())
"""What export notes of a node for itself, and what is described."""


def _described(node: fx.Node) -> tuple:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: _Named(x.name))
    meta = {k: m for k, m in node.meta.items() if k not in _LEFT}
    if "val" in node.meta:
        meta["val"] = tree_map(describe, node.meta["val"])
    target = operator_name(node.target)
    return node.op, node.name, target, _plain(args), _plain(kwargs), meta


def _plain(value: Any) -> Any:
    """Lists and dicts of fx as those of Python."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    return value


def _restored(state: dict[str, Any], nodes: list[tuple], codegen: Any) -> Network:
    gm, ops, sizes = Network(nn.Module(), fx.Graph()), fx.Graph(), Sizes()
    gm.__dict__.update(state)
    made: dict[str, fx.Node] = {}

    def real(value: Any) -> Any:
        return made[value.name] if isinstance(value, _Named) else value

    for kind, name, target, args, kwargs, meta in nodes:
        args, kwargs = fx.node.map_aggregate((args, kwargs), real)
        made[name] = node = ops.create_node(kind, operator(target), args, kwargs, name)
        node.meta.update(meta)
        if "val" in meta:
            node.meta["val"] = tree_map(sizes.value, meta["val"], is_leaf=_is_description)
    ops.set_codegen(codegen)
    gm.graph = ops
    return gm


# --- What is known of a value ---------------------------------------------------------------------


class Description:
    """A tensor's shape and type, or a size: a number, or the letters of one that is free."""

    def __init__(self, shape: tuple | None, dtype: torch.dtype | None, size: Any = None) -> None:
        self.shape, self.dtype, self.size = shape, dtype, size


def _is_description(value: Any) -> bool:
    return isinstance(value, Description)


def _size(value: Any) -> int | str:
    return int(value) if is_fixed(value) else str(value)


def describe(value: Any) -> Any:
    """What a node's value is known to be, in plain numbers and letters."""
    if isinstance(value, Tensor):
        return Description(tuple(map(_size, value.shape)), value.dtype)
    if isinstance(value, (SymInt, SymFloat, SymBool)):
        return Description(None, None, str(value))
    return value


class Sizes:
    """Free sizes of one network, each so large and odd that it equals no other by accident.

    A symbol of ``torch.export`` has the value of the example: where that equals the number of
    channels, comparing the two would freeze it.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self.known: dict[str, Any] = {}
        self.primes = _primes(10007)

    def size(self, text: int | str) -> Any:
        """The number, or the symbol of that text; 2 * s is twice the symbol s."""
        if isinstance(text, int):
            return text
        if text not in self.known:
            self.known[text] = self._symbol() if text.isidentifier() else self._expression(text)
        return self.known[text]

    def _symbol(self) -> SymInt:
        empty = torch.empty(next(self.primes), device="meta")
        return self.mode.from_tensor(empty, static_shapes=False).shape[0]  # type: ignore

    def _expression(self, text: str) -> Any:
        names = compile(text, "size", "eval").co_names
        known = {n: self.size(n) for n in names if n not in _FUNCTIONS}
        try:
            return eval(text, dict(_FUNCTIONS), known)
        except Exception:  # a function that only sympy knows: a size of its own
            return self._symbol()

    def value(self, described: Any) -> Any:
        """The (fake) tensor or size of that description."""
        if not isinstance(described, Description):
            return described
        if described.shape is None:
            return self.size(described.size)
        shape = [self.size(s) for s in described.shape]
        with self.mode:
            return torch.empty(shape, dtype=described.dtype)


_FUNCTIONS = {"Mod": lambda a, b: a % b, "Max": torch.sym_max, "Min": torch.sym_min}


def _primes(start: int) -> Iterator[int]:
    k = start
    while True:
        if all(k % d for d in range(2, math.isqrt(k) + 1)):
            yield k
        k += 2


def own_sizes(gm: fx.GraphModule) -> None:
    """Replace what is known of values by the same in sizes that equal nothing by accident."""
    sizes = Sizes()
    for node in gm.graph.nodes:
        if "val" in node.meta:
            leaves, spec = tree_flatten(node.meta["val"])
            node.meta["val"] = spec.unflatten([sizes.value(describe(v)) for v in leaves])
