"""Two networks side by side: the exact one and the quantized one, one operator at a time.

Every step of post-training quantization compares what a layer does with what it did before, given
what all layers in front of it now do. A walk computes both on all data once, from the inputs to the
outputs, and stops at each operator between the two, so that the step can act.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph

Batches = list[Any]


class Walk:
    """Visit the operators of a graph in order, with their values before and after quantization.

        walk = Walk(gm, batches, exact_parameters)
        for node in walk:
            walk.exact[node]              # a list, one tensor a batch; this node's too
            walk.quantized[node.args[0]]  # the same in the quantized network; this node's not yet

    gm: a graph with quantizers; they act in the quantized run only. batches: from
        ``graph.batches_of``. exact_parameters: parameters by name that the exact run uses in place
        of those in ``gm``.

    A value is dropped after its last reader. Where nothing in front of an operator is quantized,
    the two runs share one tensor.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        batches: list[Batches],
        exact_parameters: dict[str, Tensor] | None = None,
    ) -> None:
        self.gm, self.batches = gm, batches
        self.parameters = exact_parameters or {}
        self.exact: dict[fx.Node, Batches] = {}
        self.quantized: dict[fx.Node, Batches] = {}
        self.outputs: tuple[Any, Any] | None = None

    def __iter__(self) -> Iterator[fx.Node]:
        nodes = list(self.gm.graph.nodes)
        last_reader = {x: node for node in nodes for x in node.all_input_nodes}
        places = iter(range(len(nodes)))
        for node in nodes:
            if node.op == "output":
                self.outputs = tuple(
                    [self._arguments(node.args[0], run, k) for k in range(len(self.batches))]
                    for run in (self.exact, self.quantized)
                )
                return
            if node.op == "placeholder":
                place = next(places)
                self.exact[node] = [batch[place] for batch in self.batches]
                yield node
                self.quantized[node] = self.exact[node]
            elif not _constant(node):
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

    def _run(self, node: fx.Node, run: dict) -> Batches:
        exact = run is self.exact
        if node.op == "call_module":
            module = self.gm.get_submodule(node.target)
            x = run[node.args[0]]
            return x if exact or module.stage == "off" else [module(v) for v in x]
        if not exact and self._untouched(node):
            return self.exact[node]
        results = []
        for k in range(len(self.batches)):
            args = self._arguments(node.args, run, k)
            kwargs = self._arguments(node.kwargs, run, k)
            results.append(node.target(*args, **kwargs))
        return results

    def _arguments(self, args: Any, run: dict, k: int) -> Any:
        constants: dict[fx.Node, Any] = {}

        def value(node: fx.Node) -> Any:
            if node in run:
                return run[node][k]
            if node not in constants:
                constants[node] = self._parameter(node, run is self.exact)
            return constants[node]

        return fx.map_arg(args, value)

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
            if _constant(x):
                parameter = x.args[0] if x.op == "call_module" else x
                stage = self.gm.get_submodule(x.target).stage if x.op == "call_module" else "off"
                if stage != "off" or parameter.target in self.parameters:
                    return False
            elif self.exact[x] is not self.quantized[x]:
                return False
        return True


def _constant(node: fx.Node) -> bool:
    """Whether the node is a parameter, or the quantizer of one."""
    return node.op == "get_attr" or (node.op == "call_module" and _constant(node.args[0]))


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
