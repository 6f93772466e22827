"""Equalization by expected noise: which scale of each channel costs the outputs least.

Cross-layer equalization (eq. 20 to 24) makes ranges equal. How much a range matters is another
question; and with a scale for each output channel the ranges of outputs do not matter at all, while
inputs of very different size still share one step. So ask for what counts, the noise behind each
layer. Let input channel i be x_i / a_i, the weight's column W_oi a_i, and its row divided by b_o.
An error of a uniform step Delta has the variance Delta^2 / 12, so that the output gets

    from weights        N_w = sum_o (b_o s_o)^2 / 12 * T sum_i m_i / a_i^2
    from activations    N_a = t^2 / 12 * sum_oi (W_oi a_i)^2

with the steps s_o = max_i |W_oi| a_i / b_o / (2^(bits - 1) - 1), or the largest of all where the
weight has one scale, and t = max_i (r_i / a_i) / (2^bits - 1). m_i is the mean square of channel i,
r_i its largest, T the number of the kernel's places. The sum over all layers of (N_w + N_a) /
(energy of the output) is convex in log a and log b: the way down leads to the best there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.grid import integer_grid
from minq.ptq.channels import is_clip, scale_channels, shared_channels
from minq.scheme import Scheme

_SHARP = 16
"""max_i u_i is taken as (sum u_i^16)^(1/16) on the way down, which has a gradient everywhere."""

_STEPS, _RATE, _BATCHES = 100, 0.1, 4


@dataclass
class Reader:
    """What the noise of one layer depends on.

    weight: (groups, outputs / groups, inputs / groups, places of the kernel). square, largest:
    (inputs,), of the layer's input by channel. energy: the mean square of the output, summed over
    channels.
    """

    weight: Tensor
    square: Tensor
    largest: Tensor
    energy: float

    def __post_init__(self) -> None:
        size = self.weight.abs().amax(3)
        self.peak = size.amax(2, keepdim=True).clamp(min=1e-30)  # of each output
        self.share = size / self.peak
        # Made once: a step is then a product with a vector. Denormal numbers would be slow.
        sharp = self.share**_SHARP
        self.sharp = torch.where(sharp > 1e-30, sharp, 0.0)
        self.power = self.weight.square().sum((1, 3)).flatten()  # of each input

    def noise(
        self, a: Tensor, b: Tensor, weights: int | None, activations: int | None,
        per_channel: bool, exact: bool = False,
    ) -> Tensor:  # fmt: skip
        """(N_w + N_a) / energy, inputs multiplied by exp(-a) and outputs by exp(-b)."""
        groups, outputs, inputs, places = self.weight.shape
        columns, b = a.reshape(groups, inputs, 1), b.reshape(groups, outputs, 1)
        total = a.new_zeros(())
        if weights is not None:
            if exact:
                rows = (self.share * columns.exp().transpose(1, 2)).amax(2, keepdim=True)
                rows = rows.clamp(min=1e-30).log()
            else:
                rows = (self.sharp @ (_SHARP * columns).exp()).clamp(min=1e-30).log() / _SHARP
            step = rows + self.peak.log()
            if not per_channel:
                step = _largest(step - b, exact) + b
            step = (2 * step).exp() / (2 ** (weights - 1) - 1) ** 2
            fed = (self.square.reshape(columns.shape) * (-2 * columns).exp()).sum(1, keepdim=True)
            total = total + places * (step * fed).sum() / 12
        if activations is not None:
            step = _largest(self.largest.clamp(min=1e-30).log() - a, exact)
            read = (self.power * (2 * a).exp()).sum()
            total = total + (2 * step).exp() / (2**activations - 1) ** 2 * read / 12
        return total / self.energy


def _largest(u: Tensor, exact: bool) -> Tensor:
    return u.amax() if exact else torch.logsumexp(_SHARP * u.flatten(), 0) / _SHARP


@dataclass(frozen=True)
class Balance:
    """How ``minq.ptq`` equalizes: for the least expected noise.

    Args:
        relu6: "per_channel" or "keep", see ``balance``.

    Raises:
        ValueError: another ``relu6``.
    """

    relu6: str = "per_channel"

    def __post_init__(self) -> None:
        if self.relu6 not in ("per_channel", "keep"):
            raise ValueError(f"relu6 must be per_channel or keep, not {self.relu6!r}")

    def apply(self, gm: fx.GraphModule, batches: Sequence[Any], scheme: Scheme) -> None:
        grids = scheme.weights, scheme.activations
        bits = (None if grid is None else integer_grid(grid).bits for grid in grids)
        balance(gm, batches, *bits, per_channel=scheme.per_channel, relu6=self.relu6)


def balance(
    gm: fx.GraphModule,
    batches: Sequence[Any],
    weights: int | None = 8,
    activations: int | None = 8,
    *,
    per_channel: bool = False,
    relu6: str = "per_channel",
) -> fx.GraphModule:
    """Scale all shared channels for the least expected noise; ``gm`` is changed and returned.

    The network's function stays. Batch norms must be folded before, quantizers inserted afterwards.

    Args:
        batches: from ``minq.graph.batches.batches_of``; the first few are looked at.
        weights, activations, per_channel: what is going to be quantized, and how.
        relu6: "keep" leaves the layers around a ReLU6 alone; else its clip moves with the channels.
    """
    sets = shared_channels(gm)
    if relu6 == "keep":
        sets = [c for c in sets if not any(is_clip(n) for n in c.between)]
    if not sets or weights is activations is None:
        return gm
    readers = _measure(gm, batches[:_BATCHES])
    read = {node: k for k, c in enumerate(sets) for node in c.readers}
    written = {node: k for k, c in enumerate(sets) for node in c.writers}

    def total(logs: Sequence[Tensor], exact: bool) -> Tensor:
        noise = logs[0].new_zeros(())
        for node in dict.fromkeys((*read, *written)):
            r = readers[node]
            a = logs[read[node]] if node in read else torch.zeros_like(r.square)
            outputs = r.weight.shape[0] * r.weight.shape[1]
            b = logs[written[node]] if node in written else r.square.new_zeros(outputs)
            noise = noise + r.noise(a, b, weights, activations, per_channel, exact)
        return noise

    logs = descend([torch.zeros_like(readers[c.readers[0]].square) for c in sets], total)
    for c, log in zip(sets, logs, strict=True):
        scale_channels(gm, c, log.exp().to(graph.weight_of(gm, c.writers[0])))
    return graph.tidy(gm)


def descend(
    start: Sequence[Tensor], total: Callable[[Sequence[Tensor], bool], Tensor]
) -> list[Tensor]:
    """Where the smooth total is least, if the exact one is less there than at the start."""
    logs = [s.clone().requires_grad_() for s in start]
    adam = torch.optim.Adam(logs, lr=_RATE)
    with torch.enable_grad():
        for step in range(_STEPS):
            adam.param_groups[0]["lr"] = _RATE * (1 + math.cos(math.pi * step / _STEPS)) / 2
            adam.zero_grad()
            total(logs, False).log().backward()
            adam.step()
    with torch.no_grad():
        found = [s.detach() for s in logs]
        return found if total(found, True) < total(start, True) else list(start)


@torch.no_grad()
def _measure(gm: fx.GraphModule, batches: Sequence[Any]) -> dict[fx.Node, Reader]:
    """Every layer with the moments of what it reads and gives."""
    run = _Run(gm)
    for batch in batches:
        run.run(*batch)
    readers = {}
    for node, seen in run.seen.items():
        squares, largest, energy = zip(*seen, strict=True)
        weight, groups = graph.weight_of(gm, node).detach(), graph.groups_of(node)
        readers[node] = Reader(
            weight.reshape(groups, len(weight) // groups, weight.shape[1], -1),
            torch.stack(squares).mean(0),
            torch.stack(largest).amax(0),
            max(sum(energy) / len(energy), 1e-30),
        )
    return readers


class _Run(fx.Interpreter):
    """Computes a network and notes, for each layer and batch, (square, largest, energy)."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.seen: dict[fx.Node, list[tuple[Tensor, Tensor, float]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        y = super().run_node(n)
        if graph.is_layer(n) and graph.op(n) != "embedding":
            axis = -1 if graph.op(n) == "linear" else 1
            x, out = (t.movedim(axis, -1).flatten(0, -2) for t in (self.env[graph.input_of(n)], y))
            energy = float((out - out.mean(0)).square().mean(0).sum())
            self.seen.setdefault(n, []).append((x.square().mean(0), x.abs().amax(0), energy))
        return y
