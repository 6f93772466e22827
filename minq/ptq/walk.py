"""Two networks side by side: the exact one and the quantized one, one operator at a time.

Every step of post-training quantization compares what a layer does with what it did before, given
what all layers in front of it now do. A walk computes both on all data once, from the inputs to the
outputs, and stops at each operator between the two, so that the step can act.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.ptq.storage import KEPT, Again, Batches, Storage
from minq.quantizer import Quantizer


class Run(dict[fx.Node, Batches]):
    """One of the two networks: the values of its operators so far, by node.

    Args:
        gm: a graph with quantizers.
        storage: how values are kept.
        quantized: whether the quantizers act.
        parameters: tensors by name that are used in place of the graph's.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        storage: Storage,
        *,
        quantized: bool,
        parameters: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.gm, self.storage, self.quantized = gm, storage, quantized
        self.parameters = parameters or {}

    @torch.no_grad()
    def compute(self, node: fx.Node) -> Batches:
        """An operator's values, from those of its inputs."""
        quantizer = self.quantizer(node)
        if node.op == "call_module" and quantizer is None:
            return self[node.args[0]]
        function = node.target if quantizer is None else quantizer
        inputs = node.all_input_nodes
        constants = {x: self.parameter(x) for x in inputs if is_constant(x) and x not in self}
        values = {x: self[x] for x in inputs if x in self}

        @torch.no_grad()
        def of_batch(k: int) -> Any:
            here = constants | {x: v[k] for x, v in values.items()}
            args, kwargs = fx.map_arg((node.args, node.kwargs), here.__getitem__)
            return args[0] if node.op == "output" else function(*args, **kwargs)

        if node.op == "output":  # few steps read it, and it may be the largest of all
            return Again(of_batch, len(self.storage.lengths), 0)
        again = max((v.layers for v in values.values() if isinstance(v, Again)), default=0)
        layers = again + (graph.traits(node).multiplies)
        return self.storage.keep(of_batch, layers, quantizer)

    def quantizer(self, node: fx.Node) -> Quantizer | None:
        """The quantizer that a node is, where it acts in this network."""
        if node.op != "call_module" or not self.quantized:
            return None
        module = self.gm.get_submodule(node.target)
        return None if module.stage == "off" else module

    def parameter(self, node: fx.Node) -> Tensor:
        """A parameter, through its quantizer where that acts."""
        if node.op == "call_module":
            x = self.parameter(node.args[0])
            return self.gm.get_submodule(node.target)(x) if self.quantized else x
        if node.target in self.parameters:
            return self.parameters[node.target]
        return graph.get(self.gm, node.target).detach()


class Walk:
    """Visit the operators of a graph in order, with their values before and after quantization.

        walk = Walk(gm, batches, exact_parameters)
        for node in walk:
            walk.exact[node]              # a list, one tensor a batch; this node's too
            walk.quantized[node.args[0]]  # the same in the quantized network; this node's not yet

    gm: a graph with quantizers; they act in the quantized run only. batches: from
        ``minq.graph.batches.batches_of``. exact_parameters: parameters by name that the exact run
        uses in place of those in ``gm``.

    both: whether the exact network is computed too; else ``exact`` is empty, and all takes half as
    long.

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
        both: bool = True,
    ) -> None:
        self.gm, self.batches, self.both = gm, batches, both
        # How many samples each batch has.
        self.lengths = [len(_first_tensor(batch)) for batch in batches]
        storage = Storage(self.lengths, kept)
        self.exact = Run(gm, storage, quantized=False, parameters=exact_parameters)
        self.quantized = Run(gm, storage, quantized=True)
        self.outputs: tuple[Batches, Batches] | None = None
        self._found: dict[tuple[fx.Node, Any], Any] = {}

    def __iter__(self) -> Iterator[fx.Node]:
        nodes = list(self.gm.graph.nodes)
        last_reader = {x: node for node in nodes for x in node.all_input_nodes}
        places = iter(range(len(nodes)))
        for node in nodes:
            if node.op == "output":
                self.outputs = self.exact.compute(node), self.quantized.compute(node)
                return
            if node.op == "placeholder":
                place = next(places)
                self.exact[node] = values = [batch[place] for batch in self.batches]
                yield node
                self.quantized[node] = values
            elif not is_constant(node):
                if self.both:
                    self.exact[node] = self.exact.compute(node)
                yield node
                self.advance(node)
            for x in node.all_input_nodes:
                if last_reader.get(x) is node:  # a new bias has none
                    self._drop(x)

    def _drop(self, node: fx.Node) -> None:
        self.exact.pop(node, None)
        self.quantized.pop(node, None)
        for key in [key for key in self._found if key[0] is node]:
            del self._found[key]

    def once(self, node: fx.Node, key: Any, find: Callable[[], Any]) -> Any:
        """What ``find`` gives, kept for all readers of the node under ``key``."""
        if (node, key) not in self._found:
            self._found[node, key] = find()
        return self._found[node, key]

    def advance(self, node: fx.Node) -> Batches:
        """Let the quantized network compute this operator, if it has not yet."""
        if node not in self.quantized:
            same = self.both and self._untouched(node)
            self.quantized[node] = self.exact[node] if same else self.quantized.compute(node)
        return self.quantized[node]

    def renew(self, node: fx.Node, change: Callable[[Any], Any]) -> None:
        """Follow a new bias: ``change`` is what it does to the values that are kept."""
        if isinstance(values := self.quantized.pop(node, None), Again):
            self.advance(node)
        elif values is not None:  # else they have not been computed yet
            self.quantized[node] = [change(v) for v in values]

    def _untouched(self, node: fx.Node) -> bool:
        """Whether both networks compute the same here, from the same tensors."""
        return self.quantized.quantizer(node) is None and all(
            self._same_constant(x) if is_constant(x) else self.exact[x] is self.quantized[x]
            for x in node.all_input_nodes
        )

    def _same_constant(self, node: fx.Node) -> bool:
        parameter = node.args[0] if node.op == "call_module" else node
        replaced = parameter.target in self.exact.parameters
        return self.quantized.quantizer(node) is None and not replaced


def _first_tensor(batch: Sequence[Any]) -> Tensor:
    return next(v for v in batch if isinstance(v, Tensor) and v.ndim)


def is_constant(node: fx.Node) -> bool:
    """Whether the node is a parameter, or the quantizer of one."""
    return node.op == "get_attr" or (node.op == "call_module" and is_constant(node.args[0]))


def even_stride(size: int, total: int, most: int) -> int:
    """Every which of ``total`` values to take for about ``most``, of batches of ``size``.

    Never in step with the rows or channels of a batch.

    >>> even_stride(size=12, total=24, most=12), even_stride(size=12, total=24, most=24)
    (5, 1)
    """
    every = max(1, total // most)
    while math.gcd(every, size) > 1:
        every += 1
    return every


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
    groups, rows = graph.groups_of(node), []
    for (x, pick), y in zip(_picked(gm, node, inputs, most, generator), outputs, strict=True):
        if graph.op(node) == "linear":
            y = y.reshape(-1, y.shape[-1])[pick]
        else:
            b, *place = torch.unravel_index(pick, (y.shape[0], *y.shape[2:]))
            y = y[(b, slice(None), *place)]
        rows.append((x, y.reshape(len(pick), groups, -1).transpose(0, 1)))
    x, y = (torch.cat(part, 1) for part in zip(*rows, strict=True))
    return x, y


def sample_inputs(
    gm: fx.GraphModule, node: fx.Node, inputs: Batches, most: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """The x of ``sample_rows``, batch by batch."""
    return (x for x, _ in _picked(gm, node, inputs, most, generator))


def _picked(gm, node, inputs, most, generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each batch rows (groups, rows, K), and the numbers of their places."""
    per_batch, shape = max(1, most // len(inputs)), graph.weight_of(gm, node).shape
    sampler = _linear_rows if graph.op(node) == "linear" else _patches
    return (sampler(node, x, per_batch, generator, shape) for x in inputs)


def _linear_rows(node, x, most, generator, shape) -> tuple[Tensor, Tensor]:
    x = x.reshape(-1, x.shape[-1])
    pick = torch.randperm(len(x), generator=generator)[:most].to(x.device)
    return x[pick][None], pick


def _patches(node, x, most, generator, shape) -> tuple[Tensor, Tensor]:
    kernel, groups, dims = shape[2:], graph.groups_of(node), len(shape) - 2
    stride, pads, dilation = graph.geometry(node, kernel)
    x = torch.nn.functional.pad(x, [p for pair in reversed(pads) for p in pair])
    for k in range(dims):  # a view, (batch, channels, *places, *kernel)
        span = dilation[k] * (kernel[k] - 1) + 1
        x = x.unfold(2 + k, span, stride[k])[..., :: dilation[k]]
    places = torch.Size((x.shape[0], *x.shape[2 : 2 + dims]))
    if (total := places.numel()) <= most:
        pick = torch.arange(total)
    else:  # some places twice, rather than a permutation of very many
        pick = torch.randint(total, (most,), generator=generator)
    pick = pick.to(x.device)
    b, *rest = torch.unravel_index(pick, places)
    x = x[(b, slice(None), *rest)].reshape(len(pick), groups, -1)  # (rows, channels, ...)
    return x.transpose(0, 1).contiguous(), pick


def activation_of(gm: fx.GraphModule, node: fx.Node, groups: int) -> Callable | None:
    """The activation function that follows a layer, for rows (groups, rows, outputs / groups)."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if graph.traits(user).role != "activation" or graph.op(user) == "prelu":
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
