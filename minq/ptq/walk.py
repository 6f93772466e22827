"""Two networks side by side: the exact one and the quantized one, one operator at a time.

Every step of post-training quantization compares what a layer does with what it did before, given
what all layers in front of it now do. A walk computes both on all data once, from the inputs to the
outputs, and stops at each operator between the two, so that the step can act.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from minq import graph
from minq._checks import saturating_cast
from minq.quantizer import Quantizer

Batches = Sequence[Any]

KEPT = 2**27
"""Bytes that the values of one operator may take, on all data together; twice as many for each
layer more that would have to be computed again."""

_CHAIN = 4
"""Layers that are computed again for one value, at most."""


class Again(Sequence):
    """A value for each batch, computed whenever it is read: too large to be kept."""

    def __init__(self, compute: Callable[[int], Any], count: int, layers: int) -> None:
        self.compute, self.batches, self.layers = compute, count, layers

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, k: Any) -> Any:
        if not 0 <= k < self.batches:
            raise IndexError(k)
        return self.compute(k)


class Integers(Sequence):
    """The values behind a quantizer of up to 8 bits, each in one byte."""

    def __init__(self, quantizer: Quantizer, values: Iterable[Tensor]) -> None:
        self.scale, self.zero_point = (v.detach() for v in quantizer.scale_zero_point())
        self.grid, self.codes = quantizer.grid, []
        for v in values:
            self.dtype = v.dtype
            levels = self.grid.quantize(v, self.scale, self.zero_point)
            self.codes.append(levels.sub_(self.grid.quant_min).to(torch.uint8))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, k: Any) -> Tensor:
        levels = self.codes[k].to(self.scale.dtype).add_(self.grid.quant_min)
        return saturating_cast(
            self.grid.dequantize(levels, self.scale, self.zero_point), self.dtype
        )


class Walk:
    """Visit the operators of a graph in order, with their values before and after quantization.

        walk = Walk(gm, batches, exact_parameters)
        for node in walk:
            walk.exact[node]              # a list, one tensor a batch; this node's too
            walk.quantized[node.args[0]]  # the same in the quantized network; this node's not yet

    gm: a graph with quantizers; they act in the quantized run only. batches: from
        ``minq.batches.batches_of``. exact_parameters: parameters by name that the exact run uses
        in place of those in ``gm``.

    A value is dropped after its last reader. Where nothing in front of an operator is quantized,
    the two runs share one tensor. Values of more than ``kept`` bytes on all data are not stored but
    computed again for each reader, from a few layers further up; those that have passed a
    quantizer are stored as its integers.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        batches: Sequence[Batches],
        exact_parameters: dict[str, Tensor] | None = None,
        *,
        kept: int = KEPT,
    ) -> None:
        self.gm, self.batches, self.kept = gm, batches, kept
        self.parameters = exact_parameters or {}
        self.exact: dict[fx.Node, Batches] = {}
        self.quantized: dict[fx.Node, Batches] = {}
        self.outputs: tuple[Any, Any] | None = None
        # How many samples each batch has.
        self.lengths = [len(_first_tensor(batch)) for batch in batches]

    def __iter__(self) -> Iterator[fx.Node]:
        nodes = list(self.gm.graph.nodes)
        last_reader = {x: node for node in nodes for x in node.all_input_nodes}
        places = iter(range(len(nodes)))
        for node in nodes:
            if node.op == "output":
                self.outputs = self._run(node, self.exact), self._run(node, self.quantized)
                return
            if node.op == "placeholder":
                place = next(places)
                self.exact[node] = [batch[place] for batch in self.batches]
                yield node
                self.quantized[node] = self.exact[node]
            elif not is_constant(node):
                with torch.no_grad():
                    self.exact[node] = self._run(node, self.exact)
                yield node
                self.advance(node)
            for x in node.all_input_nodes:
                if last_reader.get(x) is node:  # a new bias has none
                    self.exact.pop(x, None)
                    self.quantized.pop(x, None)

    def advance(self, node: fx.Node) -> Batches:
        """Let the quantized network compute this operator, if it has not yet."""
        if node not in self.quantized:
            with torch.no_grad():
                self.quantized[node] = self._run(node, self.quantized)
        return self.quantized[node]

    def renew(self, node: fx.Node, change: Callable[[Any], Any]) -> None:
        """Follow a new bias: ``change`` is what it does to the values that are kept."""
        if isinstance(values := self.quantized.pop(node), Again):
            self.advance(node)
        else:
            self.quantized[node] = [change(v) for v in values]

    def _run(self, node: fx.Node, run: dict) -> Batches:
        """The operator's values: a list, or what computes them again."""
        exact = run is self.exact
        if node.op == "call_module":
            module = self.gm.get_submodule(node.target)
            if exact or module.stage == "off":
                return run[node.args[0]]
        elif not exact and node.op != "output" and self._untouched(node):
            return self.exact[node]
        args, kwargs, constants = node.args, node.kwargs, {}
        for x in node.all_input_nodes:
            if is_constant(x) and x not in run:
                constants[x] = self._parameter(x, exact)
        values = {x: run[x] for x in node.all_input_nodes if x in run}

        def compute(k: int) -> Any:
            here = constants | {x: v[k] for x, v in values.items()}
            given = fx.map_arg((args, kwargs), here.__getitem__)
            with torch.no_grad():
                if node.op == "output":
                    return given[0][0]
                return (module if node.op == "call_module" else node.target)(*given[0], **given[1])

        count = len(self.batches)
        repeated = [v.layers for v in values.values() if isinstance(v, Again)]
        if node.op == "output":
            return Again(compute, count, 0)  # few steps read it, and it may be the largest of all
        first = compute(0)
        everything = chain([first], map(compute, range(1, count)))
        if self._size(first) > self.kept:
            if node.op == "call_module" and module.bits <= 8 and not module.scale.ndim:
                return Integers(module, everything)
            layers = max(repeated, default=0) + (graph.op(node) in graph.LAYERS | graph.PRODUCTS)
            if layers <= _CHAIN and self._size(first) > self.kept << max(layers - 1, 0):
                return Again(compute, count, layers)
        return list(everything)

    def _size(self, first: Any) -> int:
        """Bytes of an operator's values on all data, from those of the first batch."""
        tensors = [v for v in tree_leaves(first) if isinstance(v, Tensor)]
        return sum(v.nbytes for v in tensors) * sum(self.lengths) // self.lengths[0]

    def _parameter(self, node: fx.Node, exact: bool) -> Tensor:
        """A parameter, through its quantizer in the quantized run."""
        if node.op == "call_module":
            x = self._parameter(node.args[0], exact)
            return x if exact else self.gm.get_submodule(node.target)(x)
        if exact and node.target in self.parameters:
            return self.parameters[node.target]
        return graph.get(self.gm, node.target).detach()

    def _untouched(self, node: fx.Node) -> bool:
        """Whether both runs give the operator the same tensors."""
        for x in node.all_input_nodes:
            if is_constant(x):
                parameter = x.args[0] if x.op == "call_module" else x
                stage = self.gm.get_submodule(x.target).stage if x.op == "call_module" else "off"
                if stage != "off" or parameter.target in self.parameters:
                    return False
            elif self.exact[x] is not self.quantized[x]:
                return False
        return True


def _first_tensor(batch: Sequence[Any]) -> Tensor:
    return next(v for v in batch if isinstance(v, Tensor) and v.ndim)


def is_constant(node: fx.Node) -> bool:
    """Whether the node is a parameter, or the quantizer of one."""
    return node.op == "get_attr" or (node.op == "call_module" and is_constant(node.args[0]))


# --- Rows: a layer's inputs and outputs as a matrix product ---------------------------------------


def sample_rows(
    gm: fx.GraphModule,
    node: fx.Node,
    inputs: Batches,
    outputs: Batches,
    most: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Some places of a layer's output, and what the layer reads for each.

    For a convolution a place is a pixel of a picture, and what it reads is a patch. Returns
    x (groups, rows, K) and y (groups, rows, outputs / groups), so that y = x W^T + b with the
    weight seen as (groups, outputs / groups, K); at most ``most`` rows, evenly from all batches.
    """
    per_batch, shape = max(1, most // len(inputs)), graph.weight_of(gm, node).shape
    sampler = _linear_rows if graph.op(node) == "linear" else _patches
    rows = [
        sampler(node, x, y, per_batch, generator, shape)
        for x, y in zip(inputs, outputs, strict=True)
    ]
    return tuple(torch.cat(part, 1) for part in zip(*rows, strict=True))


def _linear_rows(node, x, y, most, generator, shape) -> tuple[Tensor, Tensor]:
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    pick = torch.randperm(len(x), generator=generator)[:most].to(x.device)
    return x[pick][None], y[pick][None]


def _patches(node, x, y, most, generator, shape) -> tuple[Tensor, Tensor]:
    kernel, groups, dims = shape[2:], graph.groups_of(node), len(shape) - 2
    stride, pads, dilation = graph.geometry(node, kernel)
    x = torch.nn.functional.pad(x, [p for pair in reversed(pads) for p in pair])
    for k in range(dims):  # a view, (batch, channels, *places, *kernel)
        span = dilation[k] * (kernel[k] - 1) + 1
        x = x.unfold(2 + k, span, stride[k])[..., :: dilation[k]]
    places = (y.shape[0], *y.shape[2:])
    total = torch.Size(places).numel()
    if total <= most:
        pick = torch.arange(total)
    else:  # some places twice, rather than a permutation of very many
        pick = torch.randint(total, (most,), generator=generator)
    where = torch.unravel_index(pick.to(x.device), places)
    b, *rest = where
    x, y = x[(b, slice(None), *rest)], y[(b, slice(None), *rest)]  # (rows, channels, ...)
    x, y = x.reshape(len(pick), groups, -1), y.reshape(len(pick), groups, -1)
    return x.transpose(0, 1).contiguous(), y.transpose(0, 1).contiguous()


def activation_of(gm: fx.GraphModule, node: fx.Node, groups: int) -> Callable | None:
    """The activation function that follows a layer, for rows (groups, rows, outputs / groups)."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if graph.op(user) not in graph.FUSED - {"prelu"}:
        return None
    if (bounds := graph.clip_bounds(user, -1 if graph.op(node) == "linear" else 1)) is not None:
        if all(v.ndim == 0 for v in bounds):
            low, high = map(float, bounds)
        else:
            low, high = (v.reshape(groups, 1, -1) if v.ndim else v for v in bounds)
        return lambda t: torch.clamp(t, low, high)
    if any(isinstance(a, fx.Node) for a in (*user.args[1:], *user.kwargs.values())):
        return None
    return lambda t: user.target(t, *user.args[1:], **user.kwargs)
