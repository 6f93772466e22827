"""When a quantized network is worse than it should be: find where, and say what to do.

The paper's section 3.7 gives a flow chart; ``debug`` walks it on a network and some inputs:

    1. does the simulation, with all quantizers off, equal the full-precision network?
    2. is the quantized network good enough?
    3. are the weights alone, or the activations alone, to blame?
    4. which quantizers cost most, each alone; which gain most, each switched off?
    5. what do their tensors look like?
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from minq.affine import sqnr
from minq.batches import arguments_for, as_batches, batches_of, flat
from minq.simulate import activation_quantizers, quantizers, weight_quantizers

GOOD, EXACT = 25.0, 60.0  # dB of the outputs: hardly a decision changes; nothing but float error


@dataclass
class Report:
    """What was measured, all in dB of SQNR at the network's outputs.

    exact: all quantizers off. quantized: all on. weights, activations: only these on. alone: each
    quantizer the only one on. without: each the only one off.
    """

    exact: float
    quantized: float
    weights: float
    activations: float
    alone: dict[str, float] = field(default_factory=dict)
    without: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def worst(self, count: int = 5) -> list[str]:
        """The quantizers that cost most when each is the only one on."""
        return sorted(self.alone, key=self.alone.__getitem__)[:count]

    @property
    def verdict(self) -> str:
        """The end of the flow chart, in words."""
        if self.exact < EXACT:
            return (
                f"The simulation itself is wrong: with all quantizers off its outputs differ from "
                f"the model's ({self.exact:.1f} dB). Check that both are in eval mode and see the "
                "same inputs, and what folding or equalization changed."
            )
        if self.quantized >= GOOD:
            return f"Good: {self.quantized:.1f} dB. Measure the accuracy on labelled data."
        kind = "weights" if self.weights < self.activations else "activations"
        cure = {
            "weights": "equalize layers, one scale per channel, AdaRound or bias correction",
            "activations": "other ranges (MSE), equalization with less reach, more bits for a few",
        }[kind]
        text = (
            f"{self.quantized:.1f} dB. The {kind} cost most: alone {getattr(self, kind):.1f} dB, "
            f"the other kind {max(self.weights, self.activations):.1f} dB. Try: {cure}."
        )
        if self.alone:
            names, loss = self.worst(3), self._noise()
            share = sum(loss[n] for n in names) / (sum(loss.values()) or 1.0)
            text += f" Most lossy alone: {', '.join(names)} ({share:.0%} of all noise)."
            if share > 0.5:
                text += " Few stand out: look at their tensors, or give them more bits."
        return text

    def _noise(self) -> dict[str, float]:
        return {n: 10 ** (-d / 10) if math.isfinite(d) else 0.0 for n, d in self.alone.items()}

    def plot(self, axes: Any = None, count: int = 20) -> Any:
        """A bar for each of the most lossy quantizers; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        names = self.worst(count)[::-1]
        axes = axes or plt.subplots(figsize=(7, 0.28 * len(names) + 1))[1]
        colours = ["#0072B2" if self.kinds[n] == "weight" else "#D55E00" for n in names]
        axes.barh(names, [self.alone[n] for n in names], color=colours)
        axes.axvline(GOOD, color="#8a8a8a", lw=1, ls=":")
        axes.set_xlabel(
            "output SQNR with only this quantizer on [dB]; blue: weights, red: activations"
        )
        axes.spines[["top", "right"]].set_visible(False)
        return axes


def debug(
    q: fx.GraphModule, model: nn.Module, data: Any, *, each: bool = True, most: int | None = None
) -> Report:
    """Walk the flow chart on a quantized network ``q`` and the ``model`` it was made from.

    data: one batch, or several, of which only inputs count; a dozen samples are enough. each: also
    try every quantizer alone and left out, two runs for each of them (at most ``most`` of them,
    those with the largest error on their own tensor first). ``q`` is left as it was.

    Raises ValueError where a quantizer has no range yet.
    """
    batches = batches_of(q, data)
    every = quantizers(q)
    if missing := [name for name, x in every.items() if not int(x.batches)]:
        raise ValueError(f"{', '.join(missing[:3])} has no range; calibrate before debugging")
    kinds = dict.fromkeys(every, "activation") | dict.fromkeys(weight_quantizers(q), "weight")

    twin = copy.deepcopy(model).eval()  # some parts may train, others not: leave all as it is
    args = [arguments_for(twin, b) for b in as_batches(data)]
    with torch.no_grad():
        exact = torch.cat([flat(twin(*a, **k)) for a, k in args])

    def measure(on: set[str]) -> float:
        with only(q, on), torch.no_grad():
            return sqnr(exact, torch.cat([flat(_call(q, b)) for b in batches]))

    report = Report(
        exact=measure(set()),
        quantized=measure(set(every)),
        weights=measure(set(weight_quantizers(q))),
        activations=measure(set(activation_quantizers(q))),
        kinds=kinds,
    )
    if each:
        errors = {} if most is None else _own_errors(q, batches[0])
        first = every if most is None else sorted(every, key=errors.__getitem__)[:most]
        for name in first:
            report.alone[name] = measure({name})
            report.without[name] = measure(set(every) - {name})
    return report


@contextmanager
def only(q: fx.GraphModule, names: set[str]) -> Iterator[None]:
    """Within this block only the named quantizers act; afterwards each is as it was.

    >>> with only(q, {"features.0.0.weight_quantizer"}):  # doctest: +SKIP
    ...     y = q(x)
    """
    every = quantizers(q)
    if unknown := set(names) - set(every):
        raise ValueError(
            f"no quantizer is called {', '.join(sorted(unknown))}; there are "
            f"{', '.join(list(every)[:5])}, ..."
        )
    before: dict[str, str] = {name: x.stage for name, x in every.items()}
    try:
        for name, x in every.items():
            x.freeze() if name in names else x.off()
        yield
    finally:
        for name, x in every.items():
            x._enter(before[name])


def _own_errors(q: fx.GraphModule, batch: list[Any]) -> dict[str, float]:
    """What each quantizer does to its own tensor, in dB, with all of them on."""
    every, errors = quantizers(q), {}

    def hook(name: str) -> Any:
        return lambda x, inputs, output: errors.__setitem__(name, sqnr(inputs[0], output))

    handles = [x.register_forward_hook(hook(name)) for name, x in every.items()]
    try:
        with only(q, set(every)), torch.no_grad():
            _call(q, batch)
    finally:
        for handle in handles:
            handle.remove()
    return errors


def _call(q: fx.GraphModule, batch: list[Any]) -> Any:
    keywords = q.meta.get("keywords") or []
    count = len(batch) - len(keywords)
    return q(*batch[:count], **dict(zip(keywords, batch[count:], strict=True)))
