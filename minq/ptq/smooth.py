"""Smoothing: range moved from the activations behind a norm into the weights that read them.

Layer norm and RMS norm end with a factor gamma_i for each channel, layer norm also with a shift
beta_i. Divide both by s_i, and multiply what reads channel i by s_i:

    W x = (W S) (S^-1 x)

s_i is chosen to balance the largest values on both sides, see ``equalize.smoothing_scales``;
``minq.ptq.places`` knows which layers read which norm. ``minq.ptq.awq`` moves scales in the same
places the other way round, for the sake of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.graph.batches import batches_of, watch
from minq.ptq import equalize
from minq.ptq.places import places, scale_place
from minq.scheme import Scheme


@dataclass(frozen=True)
class Smooth:
    """How ``minq.ptq`` equalizes: activations behind norms smooth, at the cost of the weights.

    Args:
        alpha: 0 evens out the weights, 1 the activations, 1/2 both alike.

    Raises:
        ValueError: alpha outside of [0, 1].

    >>> Smooth(0.75)
    Smooth(alpha=0.75)
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        equalize.smoothing_scales([1.0], [1.0], self.alpha)

    def apply(self, gm: fx.GraphModule, batches: Sequence[Any], scheme: Scheme) -> None:
        _smooth(gm, batches, self.alpha)


def smooth(gm: fx.GraphModule, data: Any, *, alpha: float = 0.5) -> fx.GraphModule:
    """Smooth the output of every norm that linear layers read.

    Args:
        gm: a captured graph without quantizers; it is changed.
        data: what to measure the activations on, a batch or several.
        alpha: see ``equalize.smoothing_scales``.

    Returns:
        ``gm`` itself.
    """
    return _smooth(gm, batches_of(gm, data), alpha)


def _smooth(gm: fx.GraphModule, batches: Sequence[Any], alpha: float) -> fx.GraphModule:
    found = [place for place in places(gm, batches[0]) if place.norm]
    largest = _largest(gm, batches, {place.maker for place in found})
    for place in found:
        ranges = torch.zeros_like(largest[place.maker])
        for reader, index in place.readers.items():
            read = equalize.input_ranges(graph.weight_of(gm, reader))
            ranges.scatter_reduce_(0, index, read.to(ranges), "amax")
        scale_place(gm, place, equalize.smoothing_scales(largest[place.maker], ranges, alpha))
    return graph.tidy(gm)


def _largest(gm: fx.GraphModule, batches: Sequence[Any], nodes: Any) -> dict[fx.Node, Tensor]:
    """The largest size of each channel (last axis) on all data."""
    found: dict[fx.Node, Tensor] = {}

    def see(node: fx.Node, value: Any) -> None:
        if node in nodes:
            now = value.detach().abs().flatten(0, -2).amax(0)
            found[node] = torch.maximum(found.get(node, now), now)

    watch(gm, batches, see)
    return found
