"""Equalization and bias absorption on a whole network: which layers share their channels.

Two layers can be equalized when all between them lets a positive scale of each channel pass. The
same holds for more than two: what is added to a residual stream, and all that reads the stream,
share one scale for each channel. So a set of channels has writers (layers that compute it) and
readers (layers that take it in); the pairs and triples of the paper are its smallest cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from minq import graph
from minq.graph.batches import watch
from minq.ptq import equalize

RELU6 = ("replace", "per_channel", "keep")


@dataclass
class Channels:
    """Layers that write the same channels, layers that read them, and what lies between."""

    writers: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)
    between: list[fx.Node] = field(default_factory=list)
    blocked: bool = False

    @property
    def pair(self) -> bool:
        """Whether this is the paper's case: one layer writes, one reads."""
        return len(self.writers) == len(self.readers) == 1

    def __repr__(self) -> str:
        names = (", ".join(map(graph.layer_name, k)) for k in (self.writers, self.readers))
        return " -> ".join(names)


def shared_channels(gm: fx.GraphModule, *, residual: bool = True) -> list[Channels]:
    """All sets of channels that may be scaled, in the order of computation.

    residual: also those that an addition joins; False leaves the paper's pairs (and what forks).
    """
    parent: dict[fx.Node, fx.Node] = {}

    def root(node: fx.Node) -> fx.Node:
        while parent.setdefault(node, node) is not node:
            node = parent[node]
        return node

    blocked: set[fx.Node] = set()
    tensors = [n for n in gm.graph.nodes if graph.is_float(n) and n.op != "get_attr"]
    for node in tensors:
        data = [x for x in node.all_input_nodes if graph.is_float(x) and x.op != "get_attr"]
        if _scalable(node):
            continue
        if (residual and _adds(node)) or _passes(node):
            for x in data:
                parent[root(x)] = root(node)
        else:
            blocked.update([node, *data])
    for node in gm.graph.nodes:
        if node.op == "output" or not (graph.is_float(node) or node.op == "get_attr"):
            blocked.update(node.all_input_nodes)

    found: dict[fx.Node, Channels] = {}
    for node in tensors:
        if _scalable(node):
            found.setdefault(root(graph.input_of(node)), Channels()).readers.append(node)
            found.setdefault(root(node), Channels()).writers.append(node)
        else:
            found.setdefault(root(node), Channels()).between.append(node)
    for node in blocked & parent.keys():
        found[root(node)].blocked = True
    return [c for c in found.values() if c.writers and c.readers and not c.blocked and _fits(c)]


def _scalable(node: fx.Node) -> bool:
    """A layer with a weight of its own, whose input and output channels can be scaled."""
    if not graph.is_layer(node) or graph.traits(node).role == "embedding":
        return False
    if graph.bias_node(node) is not None and graph.parameter_of(graph.bias_node(node)) is None:
        return False  # a bias that is computed
    return len(graph.parameter_of(graph.weight_node(node)).users) == 1


def _adds(node: fx.Node) -> bool:
    data = [x for x in node.all_input_nodes if x.op != "get_attr"]
    return graph.op(node) == "add" and len(data) == len(node.args) == 2 and _same_shape(data, node)


def _same_shape(inputs: list[fx.Node], node: fx.Node) -> bool:
    return all(graph.shape_of(x) == graph.shape_of(node) for x in inputs)


def _passes(node: fx.Node) -> bool:
    """Whether f(s x) = s f(x) for a scale of each channel, which stays in its place."""
    of = graph.traits(node)
    if not of.homogeneous and graph.clip_bounds(node) is None:  # eq. (20)
        return False
    if is_clip(node) and any(map(_trains, (*node.args[1:], *node.kwargs.values()))):
        return False
    before, after = graph.shape_of(node.args[0]), graph.shape_of(node)
    if of.reshapes:  # (B, C, 1, 1) to (B, C)
        return len(after) == 2 and after[1] == before[1] and all(k == 1 for k in before[2:])
    if graph.op(node) == "mean":  # over places, not over channels or the batch
        dims = graph.argument(node, 1, "dim") or (0,)
        return len(before) > 2 and all(k % len(before) > 1 for k in dims)
    if of.value_at is not None:  # with zeros, and no channels
        return graph.fill_value(node) == 0 and after[1] == before[1]
    return True


def _fits(c: Channels) -> bool:
    """Whether the channels lie where the layers expect them: second, or last for linear layers."""
    return all(
        graph.op(node) != "linear" or len(graph.shape_of(node)) == 2
        for node in (*c.writers, *c.readers)
    )


def scaled_bounds(node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """The bounds of a clip that must be scaled with its channels; None where nothing must be.

    clip(x; l, h) / s = clip(x / s; l / s, h / s). What only keeps its channels' signs, as ReLU,
    needs no new bounds.
    """
    bounds = graph.clip_bounds(node)
    if bounds is None or all(((v == 0) | v.isinf()).all() for v in bounds):
        return None
    return bounds


def is_clip(node: fx.Node) -> bool:
    """Whether the node clips at bounds that must be scaled with its channels."""
    return scaled_bounds(node) is not None


def _trains(bound: Any) -> bool:
    """Whether a clip's bound is a parameter; scaled, it would be one no more."""
    if not isinstance(bound, fx.Node) or bound.op != "get_attr":
        return False
    return isinstance(graph.get(bound.graph.owning_module, bound.target), nn.Parameter)


# --- Passes ---------------------------------------------------------------------------------------


def replace_relu6(gm: fx.GraphModule) -> fx.GraphModule:
    """ReLU in place of every ReLU6, as Nagel et al. 2019 do to equalize; ``gm`` is changed."""
    for node in list(gm.graph.nodes):
        bounds = graph.clip_bounds(node)
        if bounds is not None and [v.tolist() for v in bounds] == [0.0, 6.0]:
            node.target, node.args, node.kwargs = torch.ops.aten.relu.default, node.args[:1], {}
    return graph.tidy(gm)


def check_relu6(relu6: str) -> None:
    """Raise ValueError for a way to treat ReLU6 that does not exist."""
    if relu6 not in RELU6:
        raise ValueError(f"relu6 must be one of {', '.join(RELU6)}, not {relu6!r}")


def equalize_graph(
    gm: fx.GraphModule,
    *,
    relu6: str = "replace",
    residual: bool = True,
    max_scale: float | None = None,
    sweeps: int = 30,
    tolerance: float = 1e-2,
) -> fx.GraphModule:
    """Equalize all layers that share channels, eq. (20) to (22).

    Batch norms must be folded before, quantizers inserted afterwards. Each set of channels gets
    s_i = sqrt(r1_i / r2_i), where r1 is the largest range among its writers and r2 among its
    readers; sets that meet in a layer move each other, so the sweep repeats until no scale changes
    by more than ``tolerance``.

    Args:
        gm: a captured network; it is changed.
        relu6: "replace" it with ReLU first (Nagel et al. 2019), which changes the network's
            function; clip "per_channel" at 6 / s_i, the scaled parameter that the paper names for
            piecewise linear functions, which does not; or "keep" it, and leave the layers around it
            alone.
        residual: also equalize what several layers add up to.
        max_scale: the largest s_i, and 1 / max_scale the smallest. What equalization gives the
            weights it may take from the activations, whose channels get uneven; 2 keeps most of
            both.
        sweeps: stop after so many.
        tolerance: stop where no scale changes by a larger share.

    Returns:
        ``gm`` itself.

    Raises:
        ValueError: for a way to treat ReLU6 that does not exist.
    """
    check_relu6(relu6)
    if relu6 == "replace":
        replace_relu6(gm)
    sets = shared_channels(gm, residual=residual)
    if relu6 == "keep":
        sets = [c for c in sets if not any(is_clip(n) for n in c.between)]
    layers = dict.fromkeys(n for c in sets for n in (*c.writers, *c.readers))
    ranges = {n: _Ranges(graph.weight_of(gm, n), graph.groups_of(n)) for n in layers}
    total = [torch.ones_like(ranges[c.writers[0]].written()) for c in sets]
    for _ in range(sweeps):
        change = 0.0
        for k, c in enumerate(sets):
            written = torch.stack([ranges[n].written() for n in c.writers]).amax(0)
            read = torch.stack([ranges[n].read() for n in c.readers]).amax(0)
            s = _within(equalize.equalization_scales(written, read), total[k], max_scale)
            for node in c.writers:
                ranges[node].outputs /= s
            for node in c.readers:
                ranges[node].inputs *= s
            total[k] *= s
            change = max(change, float(s.log().abs().max()))
        if change < tolerance:
            break
    for node, r in ranges.items():
        weight, _ = equalize.scale_outputs(graph.weight_of(gm, node), None, 1 / r.outputs)
        graph.set_weight(gm, node, equalize.scale_inputs(weight, r.inputs, graph.groups_of(node)))
    for c, s in zip(sets, total, strict=True):
        _scale_between(gm, c, s)
    return graph.tidy(gm)


def scale_channels(gm: fx.GraphModule, c: Channels, s: Tensor) -> None:
    """Divide what the writers write by s, and multiply what the readers read, eq. (21)."""
    for node in c.writers:
        weight, _ = equalize.scale_outputs(graph.weight_of(gm, node), None, s)
        graph.set_weight(gm, node, weight)
    for node in c.readers:
        weight = equalize.scale_inputs(graph.weight_of(gm, node), s, graph.groups_of(node))
        graph.set_weight(gm, node, weight)
    _scale_between(gm, c, s)


def _scale_between(gm: fx.GraphModule, c: Channels, s: Tensor) -> None:
    """Biases, moments and clips of channels that are divided by s."""
    for node in c.writers:
        if (bias := graph.bias_of(gm, node)) is not None:
            graph.set_bias(gm, node, bias / s)
        if (known := graph.notes_of(node).statistics) is not None:
            graph.note(node, statistics=graph.Statistics(known.mean / s, known.variance / s**2))
    for node in c.between:
        if (bounds := scaled_bounds(node)) is not None:
            graph.set_clip_bounds(node, bounds[0] / s, bounds[1] / s)


def _within(s: Tensor, total: Tensor, max_scale: float | None) -> Tensor:
    """The step s, shortened so that no channel's total leaves [1 / max_scale, max_scale]."""
    if max_scale is None:
        return s
    return (total * s).clamp(1 / max_scale, max_scale) / total


class _Ranges:
    """The ranges of a weight's channels while they are scaled: the weight itself can wait."""

    def __init__(self, weight: Tensor, groups: int) -> None:
        by_group = weight.abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        self.largest = by_group.amax(3)  # (groups, outputs, inputs)
        self.outputs = torch.ones(weight.shape[0]).to(weight)
        self.inputs = torch.ones(groups * weight.shape[1]).to(weight)

    def written(self) -> Tensor:
        scaled = self.largest * self.inputs.reshape(len(self.largest), 1, -1)
        return scaled.amax(2).flatten() * self.outputs

    def read(self) -> Tensor:
        scaled = self.largest * self.outputs.reshape(len(self.largest), -1, 1)
        return scaled.amax(1).flatten() * self.inputs


def absorb_biases(
    gm: fx.GraphModule, *, sigmas: float = 3.0, data: Sequence[Sequence[Any]] | None = None
) -> fx.GraphModule:
    """Move high biases into the next layer, eq. (23).

    For every pair of layers with only ReLU, a clip or pooling between them. A clip's bounds fall by
    as much as the bias. Layers that pad with zeros are left alone. With data, eq. (24) says how
    much: the function stays what it is on them, and elsewhere as far as they are like them. Without
    data batch norm does, where it told mean and deviation of the first layer's outputs; then some
    outputs change, see ``absorbable``.

    Args:
        gm: a captured network whose batch norms are folded; it is changed.
        sigmas: without data, how many standard deviations below the mean the bias may cut.
        data: a few batches, from ``minq.graph.batches.batches_of``.

    Returns:
        ``gm`` itself.
    """
    sets = shared_channels(gm, residual=False)
    lowest = None if data is None else _lowest(gm, {c.writers[0] for c in sets}, data)
    for c in sets:
        first = c.writers[0]
        known = graph.notes_of(first).statistics
        if len(c.writers) > 1:
            continue
        if any(not graph.traits(n).shifts and not is_clip(n) for n in c.between):
            continue
        if any(_pads(node) for node in c.readers):
            continue
        if lowest is not None:
            amount = lowest[first]
        elif known is not None:
            amount = equalize.absorbable(known.mean, known.variance.sqrt(), sigmas)
        else:
            continue
        for node in c.between:  # a channel that only ever clips keeps its bias
            if (bounds := scaled_bounds(node)) is not None:
                amount = torch.where(amount < bounds[1], amount, 0)
        bias = graph.bias_of(gm, first)
        for node in c.readers:
            weight, old = graph.weight_of(gm, node), graph.bias_of(gm, node)
            lower, absorbed = equalize.absorb_bias(bias, weight, old, amount, graph.groups_of(node))
            graph.set_bias(gm, node, absorbed)
        graph.set_bias(gm, first, lower)  # the same for all readers
        if known is not None:
            graph.note(first, statistics=graph.Statistics(known.mean - amount, known.variance))
        for node in c.between:
            if (bounds := scaled_bounds(node)) is not None:
                low, high = bounds  # a floor of 0 stays: below the bias there is next to nothing
                graph.set_clip_bounds(node, torch.where(low == 0, low, low - amount), high - amount)
    return graph.tidy(gm)


def _lowest(
    gm: fx.GraphModule, nodes: set[fx.Node], data: Sequence[Sequence[Any]]
) -> dict[fx.Node, Tensor]:
    """The c of eq. (24) of each of these layers."""
    found: dict[fx.Node, Tensor] = {}

    def see(node: fx.Node, value: Any) -> None:
        if node in nodes:
            c = equalize.absorbable_on(value.detach())
            found[node] = torch.minimum(found.get(node, c), c)

    watch(gm, data, see)
    return found


def _pads(node: fx.Node) -> bool:
    """Whether a layer reads zeros around its input."""
    if graph.op(node) == "linear":
        return False
    padding = graph.argument(node, 4, "padding", 0)
    return padding != "valid" and any(padding if isinstance(padding, (list, tuple)) else [padding])
