"""AWQ: finer steps for the weights that large activations meet, Lin et al. 2023.

Not all weights matter alike: an error in column i costs the output in proportion to x_i. So scale
the columns before rounding, and the activations back,

    W x  ~  Q(W S) (S^-1 x)

A column that is s times as large has an error of the same size behind Q, as long as the largest
weight of its group stays the largest, and after S^-1 one that is s times as small. But whoever
makes the largest weight grow makes the step grow for its whole group. Between the two, with
a_i = mean |x_i|, one number is searched:

    s_i = a_i^alpha,    alpha = argmin over 20 numbers in [0, 1] of  ||Q(W S) S^-1 x - W x||^2

alpha = 0 is plain rounding, so the error on the data is never above it. S^-1 is folded into what
makes x, see ``minq.ptq.places``; layers that read the same x share it, and their errors add up.

The squared error of all rows x of data is a sum over outputs, e^T G e with G = x^T x / rows, as in
``minq.ptq.gptq``; AWQ chooses the grid, and GPTQ can round on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from minq import graph
from minq._checks import as_float, check_count
from minq.estimators import SHARES, MinMax, Shrunk
from minq.ptq import equalize
from minq.ptq.places import Place, places, scale_place
from minq.ptq.walk import Walk, even_stride
from minq.quantizer import Quantizer
from minq.scheme import Scheme

Quantize = Callable[[Tensor], Tensor]

POINTS = 20
"""Values of alpha that are tried, from 0 to 1."""


# --- The scales -----------------------------------------------------------------------------------


def awq_scales(activations: Tensor, alpha: float) -> Tensor:
    """s_i = a_i^alpha, divided by their geometric mean; 1 for a channel that is always 0.

    Args:
        activations: a, the mean |x_i| of each channel, (channels,).
        alpha: from 0, where all scales are 1, to 1.

    Returns:
        s, (channels,).

    Raises:
        ValueError: alpha outside of [0, 1], or negative activations.

    >>> awq_scales(torch.tensor([16.0, 1.0]), 0.5)
    tensor([2.0000, 0.5000])
    """
    return equalize.smoothing_scales(activations, torch.ones_like(activations), alpha)


@dataclass
class Reader:
    """A linear layer that reads what is scaled.

    weight: (outputs, inputs). gram: G = x^T x / rows, (inputs, inputs). quantize: Q, of a weight.
    index: which channel each input is, by default the same.
    """

    weight: Tensor
    gram: Tensor
    quantize: Quantize
    index: Tensor | None = None

    def scaled(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """s for each input, and W S."""
        s = (s if self.index is None else s[self.index]).to(self.weight)
        return s, self.weight * s

    def error(self, s: Tensor) -> float:
        """The mean over rows of ||Q(W S) S^-1 x - W x||^2, as e^T G e."""
        s, scaled = self.scaled(s)
        change = (self.quantize(scaled) - scaled) / s
        return float((change @ self.gram).mul_(change).sum(dtype=torch.float64))


class Found(NamedTuple):
    """The best of the scales that were tried: alpha, s (channels,), and the error of each alpha."""

    alpha: float
    scales: Tensor
    errors: dict[float, float]


@torch.no_grad()
def search_scales(readers: Sequence[Reader], activations: Tensor, *, points: int = POINTS) -> Found:
    """The alpha with the least error behind all readers of a tensor, and its scales.

    Args:
        readers: the layers, whose errors add up.
        activations: a, (channels,).
        points: how many values of alpha, evenly from 0 to 1.

    Returns:
        What was found; the smaller alpha where two cost the same.
    """
    errors = {}
    for k in range(check_count(points, "points")):
        alpha = k / (points - 1) if k else 0.0
        s = awq_scales(activations, alpha)
        errors[alpha] = sum(reader.error(s) for reader in readers)
    best = min(errors, key=errors.__getitem__)
    return Found(best, awq_scales(activations, best), errors)


def awq(weight: Tensor, x: Tensor, quantize: Quantize, *, points: int = POINTS) -> Found:
    """AWQ for one layer: the scales of its inputs with which ``quantize`` changes W x least.

    Args:
        weight: W, (outputs, inputs).
        x: rows of data, (rows, inputs).
        quantize: Q, from a weight to the same weight on its grid.
        points: how many values of alpha.

    Returns:
        What was found. The layer is then Q(W S) on inputs that are divided by s.

    Raises:
        TypeError, ValueError: operands that are no finite floats, or do not fit each other.

    >>> w, x = torch.tensor([[0.6, 4.0]]), torch.tensor([[10.0, 0.1]])
    >>> found = awq(w, x, torch.round)
    >>> found.errors[found.alpha] < found.errors[0.0]
    True
    """
    weight, x = as_float(weight, "weight"), as_float(x)
    if weight.ndim != 2 or x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}; expected "
            "(outputs, inputs) and (rows, inputs)"
        )
    reader = Reader(weight.detach(), x.T @ x / len(x), quantize)
    return search_scales([reader], x.abs().mean(0), points=points)


# --- The ranges -----------------------------------------------------------------------------------


@torch.no_grad()
def search_shares(weight: Tensor, gram: Tensor, quantizer: Quantizer) -> Tensor:
    """For each group of weights how far min-max shrinks, so that its own part of the output changes
    least: e_g^T G_gg e_g over the inputs of group g.

    Args:
        weight: (outputs, inputs).
        gram: (inputs, inputs), as of ``Reader``.
        quantizer: with ``axis=0``; it gets the ranges.

    Returns:
        One of ``SHARES`` for each group, in the shape of the scale.
    """
    outputs, inputs = weight.shape
    group = quantizer.granularity.group or inputs
    padded = -(-inputs // group) * group
    G = torch.nn.functional.pad(gram, (0, padded - inputs) * 2)
    blocks = G.reshape(padded // group, group, -1, group).diagonal(dim1=0, dim2=2).movedim(-1, 0)

    def cost(share: float) -> Tensor:
        quantizer.estimator = Shrunk(torch.tensor(share))
        quantizer.observe()(weight)
        change = torch.nn.functional.pad(quantizer.freeze()(weight) - weight, (0, padded - inputs))
        change = change.reshape(outputs, -1, group).transpose(0, 1)  # (groups, outputs, group)
        return (change @ blocks).mul_(change).sum(2).T

    costs = torch.stack([cost(share) for share in SHARES])
    shares = costs.new_tensor(SHARES)[costs.argmin(0)]
    return shares.reshape(quantizer.scale.shape)


# --- In a network ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class AWQ:
    """How ``minq.ptq`` equalizes: for the weights of linear layers, by what they read.

    While alpha is searched, ranges are min-max, as in the paper.

    Args:
        points: values of alpha that are tried.
        clip: also look for the range of each group of weights, see ``search_shares``; without, the
            scheme's ``weight_range`` finds it.
        rows: of data, that errors are judged on.

    Raises:
        TypeError, ValueError: a count that is no positive whole number.

    >>> AWQ(clip=True)
    AWQ(points=20, clip=True, rows=4096)
    """

    points: int = POINTS
    clip: bool = False
    rows: int = 4096

    def __post_init__(self) -> None:
        check_count(self.points, "points")
        check_count(self.rows, "rows")

    def apply(self, gm: fx.GraphModule, batches: Sequence[Any], scheme: Scheme) -> None:
        found = [p for p in places(gm, batches[0]) if _improves(p, scheme)]
        for reader in (reader for place in found for reader in place.readers):
            graph.own_weight(gm, reader)
        waiting = {p.maker: {graph.input_of(reader) for reader in p.readers} for p in found}
        moments: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        scales: dict[fx.Node, Tensor] = {}
        for node in (walk := Walk(gm, batches)) if found else ():
            if not any(node in inputs for inputs in waiting.values()):
                continue
            moments[node] = _moments(walk.exact[node], self.rows)
            for place in found:
                if place.maker in waiting and waiting[place.maker] <= moments.keys():
                    scales[place.maker] = self._search(gm, place, moments, scheme)
                    del waiting[place.maker]
            if not waiting:
                break  # nobody looks at what follows, least of all at logits
            moments = {x: m for x, m in moments.items() if any(x in w for w in waiting.values())}
        for place in found:
            scale_place(gm, place, scales[place.maker])
        graph.tidy(gm)

    def _search(self, gm, place: Place, moments, scheme: Scheme) -> Tensor:
        """The scales of a place; its readers' ranges are noted."""
        readers = {
            node: Reader(
                graph.weight_of(gm, node),
                moments[graph.input_of(node)][0],
                _quantize(_quantizer(node, scheme)),
                index,
            )
            for node, index in place.readers.items()
        }
        mean = {node: moments[graph.input_of(node)][1] for node in readers}
        s = search_scales(list(readers.values()), place.average(mean), points=self.points).scales
        for node, reader in readers.items():
            quantizer = _quantizer(node, scheme)
            if self.clip and quantizer is not None and quantizer.granularity.axis == 0:
                of_inputs, scaled = reader.scaled(s)
                gram = reader.gram / of_inputs / of_inputs[:, None]
                shares = search_shares(scaled, gram, quantizer)
                graph.note(graph.weight_node(node), shares=shares)
        return s


def _improves(place: Place, scheme: Scheme) -> bool:
    """Whether any reader gets a quantizer; a weight that an embedding shares stays shared."""
    shared = any(
        graph.op(user) == "embedding"
        for reader in place.readers
        for user in graph.weight_node(reader).users
    )
    return not shared and any(_quantizer(reader, scheme) for reader in place.readers)


def _quantizer(node: fx.Node, scheme: Scheme) -> Quantizer | None:
    name = graph.place(node)
    if any(fnmatch(name, pattern) for pattern in scheme.skip):
        return None
    return scheme.of(name).weight_quantizer(0)


def _quantize(quantizer: Quantizer | None) -> Quantize:
    def quantize(weight: Tensor) -> Tensor:
        if quantizer is None:
            return weight
        quantizer.estimator = MinMax()  # any other would be searched for 20 times
        quantizer.to(weight.device).observe()(weight)
        return quantizer.freeze()(weight)

    return quantize


def _moments(values: Sequence[Tensor], rows: int) -> tuple[Tensor, Tensor]:
    """x^T x / rows and the mean |x| of each channel, on an even selection of all rows."""
    gram, mean, count = 0.0, 0.0, 0
    every = 0
    for v in values:
        v = v.detach().flatten(0, -2)
        if not every:
            every = even_stride(len(v), len(v) * len(values), rows)
        v = v[::every]
        gram, mean, count = gram + v.T @ v, mean + v.abs().sum(0), count + len(v)
    return gram / count, mean / count
