"""Without data: what batch norm's statistics say about every tensor of the network.

After folding, a layer knows mean beta and deviation |gamma| of its outputs. From there the moments
of each channel are carried through activation functions, additions and pooling, as if the values
were Gaussian and channels independent. That gives the mean inputs that analytic bias correction
needs, eq. (25) to (28), and ranges for the activations, eq. (18) and (19).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from minq import graph
from minq.ptq import bias as bias_math
from minq.ptq.before import set_corrected_bias
from minq.simulate import is_quantizer, is_weight

ALPHA = 6.0  # deviations on either side that a range holds, as Nagel et al. 2019


@dataclass
class Moments:
    """Mean, variance and range of each channel, four tensors (channels,)."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def gaussian(cls, mean: Tensor, variance: Tensor) -> Moments:
        reach = ALPHA * variance.sqrt()
        return cls(mean, variance, mean - reach, mean + reach)  # eq. (18), (19)


class NoMoments(ValueError):
    """An operator whose outputs batch norm's statistics say nothing about."""


def propagate(gm: fx.GraphModule, inputs: Mapping[str, Moments]) -> dict[fx.Node, Moments]:
    """The moments of every tensor that can be told without data.

    Args:
        gm: a captured network whose batch norms are folded.
        inputs: those of the network's inputs, by name; for pictures that were normalized, mean 0
            and variance 1 in each channel.

    Returns:
        Moments by node. Operators that are not understood, and what hangs on them alone, are left
        out.
    """
    known: dict[fx.Node, Moments] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" and str(node.target) in inputs:
            known[node] = inputs[str(node.target)]
        elif is_quantizer(node) and node.args[0] in known:
            known[node] = known[node.args[0]]
        elif node.op == "call_function":
            moments = _of(gm, node, known)
            if moments is not None:
                known[node] = moments
    return known


def _of(gm: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Moments]) -> Moments | None:
    if (known_outputs := graph.notes_of(node).statistics) is not None:
        return Moments.gaussian(*known_outputs)
    inputs = [x for x in node.all_input_nodes if x.op != "get_attr" and not is_weight(x)]
    if not inputs or any(x not in known for x in inputs) or _channels_last(node):
        return None
    x, *others = (known[x] for x in inputs)
    of = graph.traits(node)
    if graph.is_layer(node) and of.role != "embedding":
        weight, bias = graph.weight_of(gm, node), graph.bias_of(gm, node)
        groups = graph.groups_of(node)
        return Moments.gaussian(*bias_math.conv_moments(weight, bias, x.mean, x.variance, groups))
    if (bounds := graph.clip_bounds(node)) is not None:
        return _clip(x, *bounds)
    if of.moments == "integrate":
        return _through(lambda t: node.target(t, *node.args[1:], **node.kwargs), x)
    if of.moments == "add" and len(others) == 1:
        return _sum(x, *others)
    if of.moments == "cat" and graph.argument(node, 1, "dim", 0) == 1:
        parts = [[getattr(m, name) for m in (x, *others)] for name in Moments.__dataclass_fields__]
        return Moments(*(torch.cat(p) for p in parts))
    if of.moments == "rescale":
        return _times(x, node)
    flat = of.reshapes and len(graph.shape_of(node)) == 2 and graph.shape_of(node)[1] == len(x.mean)
    return x if of.moments == "keep" or flat else None


def _sum(a: Moments, b: Moments) -> Moments:
    """Independent summands; the range cannot be wider than the sum of both."""
    total = Moments.gaussian(a.mean + b.mean, a.variance + b.variance)
    low, high = torch.maximum(total.low, a.low + b.low), torch.minimum(total.high, a.high + b.high)
    return Moments(total.mean, total.variance, low, high)


def _times(x: Moments, node: fx.Node) -> Moments:
    """A product with a number k: mean k mu, variance k^2 sigma^2."""
    k = next(a for a in node.args[:2] if not isinstance(a, fx.Node))
    k = 1 / k if node.target is torch.ops.aten.div.Tensor else k
    low, high = torch.minimum(x.low * k, x.high * k), torch.maximum(x.low * k, x.high * k)
    return Moments(x.mean * k, x.variance * k * k, low, high)


def _channels_last(node: fx.Node) -> bool:
    """A layer whose channels are the last of many dimensions; those of moments are the second."""
    return graph.op(node) == "linear" and len(graph.shape_of(node)) != 2


def _clip(x: Moments, low: Tensor, high: Tensor) -> Moments:
    """ReLU, ReLU6 and any other clip of Gaussian inputs, eq. (28)."""
    mean, variance = torch.empty_like(x.mean), torch.empty_like(x.mean)
    bounds = torch.stack([v.to(x.mean).expand_as(x.mean) for v in (low, high)], 1)
    for pair in bounds.unique(dim=0):
        k = (bounds == pair).all(1)
        mean[k], variance[k] = bias_math.clipped_normal(
            x.mean[k], x.variance[k].sqrt(), *pair.tolist()
        )
    ends = (torch.minimum(torch.maximum(end, low), high) for end in (x.low, x.high))
    return Moments(mean, variance, *ends)


def _through(f, x: Moments, points: int = 64) -> Moments:
    """Any function of a Gaussian, by Gauss-Hermite quadrature."""
    t, w = (torch.as_tensor(v).to(x.mean) for v in np.polynomial.hermite_e.hermegauss(points))
    w = w / w.sum()
    y = f(x.mean[:, None] + x.variance.sqrt()[:, None] * t)
    mean = (y * w).sum(1)
    share = torch.linspace(0, 1, 257).to(x.mean)
    grid = f(x.low[:, None] + (x.high - x.low)[:, None] * share)
    return Moments(mean, ((y - mean[:, None]) ** 2 * w).sum(1), grid.amin(1), grid.amax(1))


# --- Passes ---------------------------------------------------------------------------------------


def calibrate_without_data(
    gm: fx.GraphModule, inputs: Mapping[str, Moments], *, correct_bias: bool = True
) -> fx.GraphModule:
    """Correct biases, and set ranges, from batch norm alone.

    Args:
        gm: a network with quantizers; it is changed.
        inputs: as in ``propagate``.
        correct_bias: whether biases are corrected.

    Returns:
        ``gm`` itself.

    Raises:
        NoMoments: a quantizer stands behind something that the statistics do not reach, as a
            product of two activations; skip that layer, or give calibration data.
    """
    known = propagate(gm, inputs)
    for node in gm.graph.nodes:
        if is_quantizer(node) and not is_weight(node):
            _set_range(gm, node, known)
        elif correct_bias and graph.is_layer(node) and is_weight(graph.weight_node(node)):
            x = known.get(graph.input_of(node))
            table = graph.traits(node).role == "embedding"
            if x is not None and not table and not _channels_last(node):
                weight = graph.weight_of(gm, node)
                error = graph.rounded_weight_of(gm, node) - weight
                shift = bias_math.output_shift(error, x.mean, graph.groups_of(node))
                bias = bias_math.correct_bias(graph.bias_of(gm, node), shift)
                set_corrected_bias(gm, node, bias)
    return graph.tidy(gm)  # layers may have got a bias


def _set_range(gm: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Moments]) -> None:
    source = node.args[0]
    quantizer = gm.get_submodule(node.target)
    if (within := graph.traits(source).within) is not None:
        low, high = map(torch.tensor, within)
    elif source.op == "get_attr":
        value = graph.get(gm, source.target).detach()
        low, high = value.min(), value.max()
    elif source in known:
        low, high = known[source].low.min(), known[source].high.max()
    else:
        raise NoMoments(
            f"no batch norm tells what range {node.target} needs; give calibration data, or "
            f"skip=[{node.target.removesuffix('.quantizer')!r}]"
        )
    quantizer.set_range(low, high)
    quantizer.freeze()
