"""When a quantized network is worse than it should be: find where, and say what to do.

The paper's section 3.7 gives a flow chart, figure 9. ``debug`` walks it on a network and inputs:

    1. does the simulation, before rounding and with all quantizers off, equal the full-precision
       network?
    2. is the quantized network good enough?
    3. are the weights alone, or the activations alone, to blame?
    4. which quantizers cost most, each alone; which gain most, each switched off?
    5. what do their tensors look like?
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from minq import graph
from minq.affine import sqnr
from minq.export import evaluation_copy, outside, unwrapped
from minq.graph.batches import arguments_for, as_batches, batches_of, flatten_outputs
from minq.ptq.before import rounded_parameters, without_rounding
from minq.quantizer import Quantizer
from minq.simulate import activation_quantizers, quantizers

GOOD, EXACT = 25.0, 60.0  # dB of the outputs: hardly a decision changes; nothing but float error


@dataclass
class Report:
    """What was measured, all in dB of SQNR at the network's outputs.

    exact: all quantizers off, and parameters as they were before rounding. quantized: all on.
    weights, activations: only these on. alone: each quantizer the only one on. without: each the
    only one off. The rounding of a weight, by whatever method, and the bias that was corrected for
    it, come and go with the weight's quantizer.

    needed: where ``exact`` begins to be no more than float error. repeated: one run of the model
    against another. trained: the network comes from ``minq.qat``, and all numbers but ``exact``
    compare it with itself, all quantizers off.
    """

    exact: float
    quantized: float
    weights: float
    activations: float
    alone: dict[str, float] = field(default_factory=dict)
    without: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    needed: float = EXACT
    repeated: float = math.inf
    trained: bool = False

    def worst(self, count: int = 5) -> list[str]:
        """The quantizers that cost most when each is the only one on."""
        return sorted(self.alone, key=self.alone.__getitem__)[:count]

    @property
    def verdict(self) -> str:
        """The end of the flow chart, in words."""
        if self.repeated < self.needed:
            return (
                f"The model answers differently every time ({self.repeated:.1f} dB between two "
                "runs on the same inputs), so nothing can be compared with it. Something random "
                "is left on in eval mode, such as F.dropout without training=self.training."
            )
        if self.exact >= self.needed:
            return self._losses
        if self.trained:
            return (
                f"Training has moved the network: with all quantizers off its outputs are "
                f"{self.exact:.1f} dB from the model's, which is no fault. So from here on it is "
                f"compared with itself, all quantizers off. {self._losses} What counts for a "
                "trained network is its accuracy on labelled data."
            )
        return (
            f"The simulation itself is wrong: with all quantizers off its outputs differ from "
            f"the model's ({self.exact:.1f} dB). Check that both see the same inputs, that no "
            "weight was changed afterwards, and what folding or equalization changed "
            '(Equalize(relu6="replace") and absorb=True change a little, TF32 on a GPU does too).'
        )

    @property
    def _losses(self) -> str:
        """The verdict on a network whose simulation is sound."""
        if self.quantized >= GOOD:
            return f"Good: {self.quantized:.1f} dB. Measure the accuracy on labelled data."
        kind = "weights" if self.weights < self.activations else "activations"
        cure = {
            "weights": "equalize layers, one scale per channel, AdaRound or bias correction",
            "activations": "other ranges (MSE), a smaller max_scale of equalization, more bits for "
            "a few",
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


@outside()
def debug(
    q: fx.GraphModule, model: nn.Module, data: Any, *, each: bool = True, most: int | None = None
) -> Report:
    """Walk the flow chart on a quantized network ``q`` and the ``model`` it was made from.

    Both are looked at in copies and in eval mode, so a network in training trains on as if nothing
    had been. One that was trained differs from the model with all quantizers off; then all other
    numbers compare it with itself, and ``Report.trained`` says so.

    Args:
        q: what ``minq.ptq``, ``minq.qat`` or ``minq.qat.prepare`` return.
        model: what it was made from.
        data: one batch, or several, of which only inputs count; a dozen samples are enough.
        each: also try every quantizer alone and left out, two runs for each of them.
        most: at most so many of them, those with the largest error on their own tensor first.

    Returns:
        What was measured.

    Raises:
        ValueError: a quantizer has no range yet.
    """
    q = unwrapped(q)
    batches = batches_of(q, data)
    every = _all_quantizers(q)
    if missing := [name for name, x in every.items() if not int(x.batches)]:
        raise ValueError(f"{', '.join(missing[:3])} has no range; calibrate before debugging")
    weights = set(every) - set(activation_quantizers(q))
    kinds = {name: "weight" if name in weights else "activation" for name in every}

    q = copy.deepcopy(q).eval()
    twin = evaluation_copy(unwrapped(model))  # all is left as it is
    args = [arguments_for(twin, b) for b in as_batches(data)]

    def answers(on: set[str]) -> Tensor:
        with only(q, on):
            return torch.cat([flatten_outputs(call(q, b)) for b in batches])

    def measure(on: set[str]) -> float:
        return sqnr(reference, answers(on))

    device = graph.device_of(q)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        outputs = [flatten_outputs(twin(*a, **k)) for a, k in args]
        reference, off = torch.cat(outputs), answers(set())
        report = Report(
            exact=sqnr(reference, off),
            quantized=0.0,
            weights=0.0,
            activations=0.0,
            kinds=kinds,
            needed=_float_error(reference.dtype),
            repeated=sqnr(outputs[0], flatten_outputs(twin(*args[0][0], **args[0][1]))),
        )
        report.trained = graph.network_notes(q).trained and report.exact < report.needed
        if report.trained:
            reference = off
        report.quantized = measure(set(every))
        report.weights = measure(weights)
        report.activations = measure(set(every) - weights)
        if each:
            errors = {} if most is None else _own_errors(q, batches[0])
            first = every if most is None else sorted(every, key=errors.__getitem__)[:most]
            for name in first:
                report.alone[name] = measure({name})
                report.without[name] = measure(set(every) - {name})
    return report


def _float_error(dtype: torch.dtype) -> float:
    """What two orders of the same sums may differ by: 60 dB, in half floats ten times their step.

    >>> _float_error(torch.float32), round(_float_error(torch.float16))
    (60.0, 40)
    """
    return min(EXACT, -20 * math.log10(10 * torch.finfo(dtype).eps))


def _all_quantizers(q: fx.GraphModule) -> dict[str, Quantizer]:
    """Also those of layers that a batch norm is folded into anew in every step of a training."""
    inside = {name: m for name, m in q.named_modules() if isinstance(m, Quantizer)}
    return quantizers(q) | inside


@contextmanager
def only(q: fx.GraphModule, names: Iterable[str]) -> Iterator[None]:
    """Within this block only the named quantizers act; afterwards each is as it was.

    A weight whose quantizer does not act is what it was before it was rounded, as far as ``ptq``
    changed it, and the bias that was corrected for it too.

    Args:
        q: a quantized network; nothing that an optimizer holds is replaced.
        names: of quantizers.

    Raises:
        ValueError: there is no such quantizer.
        RuntimeError: one has no range yet.

    >>> with only(q, {"features.0.0.weight_quantizer"}):  # doctest: +SKIP
    ...     y = q(x)
    """
    every, names = _all_quantizers(q), set(names)
    if unknown := names - set(every):
        raise ValueError(
            f"no quantizer is called {', '.join(sorted(unknown))}; there are "
            f"{', '.join(list(every)[:5])}, ..."
        )
    for name in names:
        every[name].require_range()
    rounded = [p for p, quantizer in rounded_parameters(q).items() if quantizer not in names]
    exact = {p: without_rounding(q, p) for p in rounded}
    # Tensors are lent: no parameter is made, dropped or written to.
    lent = [(v, v.data) for v in (graph.get(q, p) for p in rounded)]
    with ExitStack() as stages:
        for name, x in every.items():
            stages.enter_context(x.acting_as("frozen" if name in names else "off"))
        try:
            for name, value in exact.items():
                graph.get(q, name).data = value
            yield
        finally:
            for parameter, value in lent:
                parameter.data = value


def _own_errors(q: fx.GraphModule, batch: list[Any]) -> dict[str, float]:
    """What each quantizer does to its own tensor, in dB, with all of them on."""
    every, errors = _all_quantizers(q), {}

    def hook(name: str) -> Any:
        return lambda x, inputs, output: errors.__setitem__(name, sqnr(inputs[0], output))

    handles = [x.register_forward_hook(hook(name)) for name, x in every.items()]
    try:
        with only(q, set(every)), torch.no_grad():
            call(q, batch)
    finally:
        for handle in handles:
            handle.remove()
    return errors


def call(q: fx.GraphModule, batch: list[Any]) -> Any:
    """The network's answer to the values of all its inputs, as ``batches_of`` gives them."""
    args, kwargs = tree_unflatten(batch, q._in_spec)
    return q(*args, **kwargs)
