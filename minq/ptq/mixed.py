"""Mixed precision: more bits for the layers that need them, fewer for those that do not.

    1. how much noise does each layer alone bring into the network's outputs, at b bits?
    2. noises of many small errors add up:  noise(b_1, ..., b_L) ~ sum of n_l(b_l)
    3. choose the bits with the least noise that the budget pays for:

        min sum n_l(b_l)    subject to    sum c_l(b_l) <= budget

What a layer costs is the caller's: bits of storage, bytes that move, energy. The choice is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from minq import graph
from minq.affine import sqnr
from minq.export import capture
from minq.graph.batches import as_batches, batches_of, flatten_outputs
from minq.ptq.debug import call, only
from minq.ptq.pipeline import Equalize, ptq
from minq.ptq.rounding import Nearest, Rounding
from minq.scheme import Scheme

_Table = Mapping[str, Mapping[int, float]]
"""A number for each layer at each bit-width: {layer: {bits: number}}."""


def sensitivity(
    model: nn.Module,
    data: Any,
    bits: Iterable[int] = (2, 4, 8),
    *,
    scheme: Scheme | None = None,
    rounding: str | Rounding = Nearest(correct_bias=False),  # noqa: B008 (it is a value)
    equalize: bool | Equalize = True,
    **settings: Any,
) -> dict[str, dict[int, float]]:
    """The noise of the outputs when one layer's weights alone have b bits: {layer: {b: n}}.

    n = sum ||y - y_hat||^2 / sum ||y||^2, which is 10^(-SQNR / 10).

    Args:
        model, data: as for ``ptq``, labels not needed.
        bits: to try.
        scheme, settings: a ``minq.Scheme`` whose bits of weights do not count, or its fields, as
            ``per_channel=True``. By default activations stay in float.
        rounding, equalize: see ``ptq``.

    Returns:
        A table for ``pareto_front``. The names of its layers are patterns for the ``layers`` of a
        scheme.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> noise = sensitivity(model, torch.randn(64, 8), bits=(4, 8))
    >>> list(noise), noise["0"][4] > 100 * noise["0"][8]
    (['0', '2'], True)
    """
    scheme = Scheme.made(scheme or Scheme(activations=None), settings)
    gm = capture(model, as_batches(data)[0])
    batches = batches_of(gm, data)
    noise: dict[str, dict[int, float]] = {}
    for b in sorted(set(bits)):
        at_b = replace(scheme, weights=b)
        q = ptq(gm, data, scheme=at_b, rounding=rounding, equalize=equalize, progress=False)
        sites: dict[str, set[str]] = {}
        for node in graph.layers(q).values():
            if (weight := graph.weight_node(node)).op == "call_module":
                sites.setdefault(graph.layer_name(node), set()).add(weight.target)
        exact = _outputs(q, batches, set())
        for name, quantizers in sites.items():
            loss = sqnr(exact, _outputs(q, batches, quantizers))
            noise.setdefault(name, {})[b] = 10 ** (-loss / 10)
    return noise


@torch.no_grad()
def _outputs(q: nn.Module, batches: list[Any], on: set[str]) -> torch.Tensor:
    with only(q, on):
        return torch.cat([flatten_outputs(call(q, batch)) for batch in batches])


class Choice(NamedTuple):
    """Bits for each layer, what they cost, and the noise to expect."""

    bits: dict[str, int]
    cost: float
    noise: float

    @property
    def sqnr(self) -> float:
        """The expected SQNR of the outputs in dB."""
        return -10 * math.log10(self.noise) if self.noise else math.inf

    @property
    def layers(self) -> dict[str, dict[str, int]]:
        """For the argument ``layers`` of ``minq.ptq``."""
        return {name: {"weights": b} for name, b in self.bits.items()}


def pareto_front(noise: _Table, cost: _Table) -> list[Choice]:
    """All choices of bits that no other choice beats in both cost and noise, cheapest first.

    Dynamic programming, a layer at a time: if a choice for the first layers is beaten, then so is
    every choice that it begins; so only the front of the first l layers is kept, and

        front(l) = the unbeaten of { (C + c_l(b), N + n_l(b)) : (C, N) in front(l - 1), all b }

    Whole-number costs with a common divisor keep the front short.

    Args:
        noise: {layer: {bits: noise}}, as ``sensitivity`` gives it.
        cost: the same for costs, in any unit.

    Returns:
        The choices, cheapest first.

    Raises:
        ValueError: the two tables differ in layers or bits, or hold a number that is negative or
            not finite.

    >>> noise = {"a": {2: 9.0, 4: 1.0}, "b": {2: 3.0, 4: 1.0}}
    >>> cost = {"a": {2: 2, 4: 4}, "b": {2: 2, 4: 4}}
    >>> [(choice.bits, choice.noise) for choice in pareto_front(noise, cost)]
    [({'a': 2, 'b': 2}, 12.0), ({'a': 4, 'b': 2}, 4.0), ({'a': 4, 'b': 4}, 2.0)]
    """
    _check(noise, cost)
    costs, noises = np.zeros(1), np.zeros(1)
    steps: list[tuple[list[int], np.ndarray, np.ndarray]] = []
    for name, of_layer in noise.items():
        bits = list(of_layer)
        c = (costs + np.array([[cost[name][b]] for b in bits], dtype=np.float64)).ravel()
        n = (noises + np.array([[of_layer[b]] for b in bits], dtype=np.float64)).ravel()
        order = np.lexsort((n, c))  # by cost; the least noise first where costs are equal
        least = np.minimum.accumulate(n[order])
        keep = order[np.concatenate([[True], n[order][1:] < least[:-1]])]
        steps.append((bits, *np.divmod(keep, len(costs))))  # which bits, after which choice
        costs, noises = c[keep], n[keep]

    chosen, at = [], np.arange(len(costs))
    for bits, which, before in reversed(steps):
        chosen.append(np.array(bits)[which[at]])
        at = before[at]
    columns = np.array(chosen[::-1]).T.tolist()
    return [
        Choice(dict(zip(noise, row, strict=True)), float(c), float(n))
        for row, c, n in zip(columns, costs, noises, strict=True)
    ]


def allocate(noise: _Table, cost: _Table, budget: float) -> Choice:
    """The bits with the least noise whose cost is within the budget.

    Args:
        noise: as in ``pareto_front``.
        cost: as in ``pareto_front``.
        budget: in the unit of ``cost``.

    Returns:
        The choice.

    Raises:
        ValueError: as ``pareto_front``, and where even the cheapest choice costs more.

    >>> noise = {"a": {2: 9.0, 4: 1.0}, "b": {2: 3.0, 4: 1.0}}
    >>> cost = {"a": {2: 2, 4: 4}, "b": {2: 2, 4: 4}}
    >>> allocate(noise, cost, budget=7).bits
    {'a': 4, 'b': 2}
    """
    front = pareto_front(noise, cost)
    paid = [choice for choice in front if choice.cost <= budget]
    if not paid:
        raise ValueError(
            f"the cheapest choice costs {front[0].cost:g}, more than the budget {budget:g}; "
            "allow fewer bits, or spend more"
        )
    return paid[-1]


def _check(noise: _Table, cost: _Table) -> None:
    if not noise:
        raise ValueError("noise is empty; give {layer: {bits: noise}}, as sensitivity does")
    if {k: set(v) for k, v in noise.items()} != {k: set(v) for k, v in cost.items()}:
        raise ValueError("noise and cost must have the same layers, each with the same bits")
    for name, table in (("noise", noise), ("cost", cost)):
        for layer, row in table.items():
            if not row or not all(math.isfinite(v) and v >= 0 for v in row.values()):
                raise ValueError(
                    f"{name}[{layer!r}] must hold a finite number from 0 up for each bit-width; "
                    f"it is {dict(row)}"
                )
