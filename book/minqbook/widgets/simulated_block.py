"""A residual block with its quantizers: what is simulated in float, what the device computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import traitlets

from minqbook.widgets.base import Widget, within
from minqbook.widgets.pipeline_steps import named_metrics, number

SWITCHES = ("activations", "add", "fold", "fuse", "pool", "weights")
"""The switches, sorted, as they stand in a configuration."""
_ONLY_WITH_ACTIVATIONS = {"add", "fuse", "pool"}  # without activations they change nothing


class SimulatedBlock(Widget):
    """Where a simulation rounds: x, conv, BN, ReLU6, conv, BN, add x, ReLU, max-pool.

    measured: {configuration: {metric: number}}, measured on a real network. A configuration names
    the switches that are on, as a tuple ("fold", "weights") or a string "fold+weights" in any
    order; "" for none. ``configurations()`` lists all 36 that differ, ``quantizers(*on)`` says
    which tensors each of them rounds, so that a chapter can measure exactly what the picture
    shows. Configurations that are missing are shown as not measured. metrics: {metric: (label,
    unit)}. selected: the box or quantizer explained first, "conv1" or "q-bn1" for instance.

    fold: batch norm is part of the convolution, eq. (9) to (12). fuse: no rounding between a
    convolution (or the add) and its activation. weights, activations: round them. add: the add is
    an operation of its own, with both inputs rounded to one shared grid and its output rounded;
    else the branch enters the sum unrounded. pool: max-pool passes its input's grid on; else its
    output is rounded again.

    >>> SimulatedBlock.quantizers("fold", "fuse", "weights", "activations", "add", "pool")
    ('x', 'weight1', 'relu1', 'weight2', 'bn2', 'skip', 'relu2')
    >>> w = SimulatedBlock({"fold+weights": {"sqnr": 30.0}}, activations=False, fold=True)
    >>> w.configuration, w.result
    (('fold', 'weights'), {'sqnr': 30.0})

    Raises TypeError or ValueError for unknown switches, a configuration that comes twice, and
    values that are not finite numbers.
    """

    measured = traitlets.Dict().tag(sync=True)
    metrics = traitlets.List().tag(sync=True)
    fold = traitlets.Bool(False).tag(sync=True)
    fuse = traitlets.Bool(False).tag(sync=True)
    pool = traitlets.Bool(False).tag(sync=True)
    weights = traitlets.Bool(True).tag(sync=True)
    activations = traitlets.Bool(True).tag(sync=True)
    add = traitlets.Bool(True).tag(sync=True)
    view = traitlets.Enum(["simulation", "device"], "simulation").tag(sync=True)
    weight_bits = traitlets.Int(8).tag(sync=True)
    activation_bits = traitlets.Int(8).tag(sync=True)
    selected = traitlets.Unicode("conv1").tag(sync=True)
    shown = ("configuration", "view")

    def __init__(
        self,
        measured: Mapping[Any, Mapping[str, float]],
        *,
        metrics: Mapping[str, Any] | None = None,
        alt: str = "A residual block drawn as boxes with quantizers between them: what a "
        "simulation rounds, and what the device computes with integers instead.",
        **traits: Any,
    ) -> None:
        found: dict[str, dict[str, float]] = {}
        for configuration, values in measured.items():
            told = configuration.split("+") if isinstance(configuration, str) else configuration
            key = "+".join(_canonical(s for s in told if s))
            if not isinstance(values, Mapping):
                raise TypeError(
                    f"measured[{configuration!r}] must be a dict {{metric: number}}, not {values!r}"
                )
            values = {
                k: number(v, f"measured[{configuration!r}][{k!r}]") for k, v in values.items()
            }
            if found.setdefault(key, values) != values:
                raise ValueError(
                    f"measured[{configuration!r}] contradicts another entry: without activations, "
                    "add, fuse and pool change nothing; use SimulatedBlock.configurations()"
                )
        names = list(dict.fromkeys(k for values in found.values() for k in values))
        described = named_metrics(metrics, names)
        super().__init__(measured=found, metrics=described, alt=alt, **traits)

    @staticmethod
    def quantizers(*on: str) -> tuple[str, ...]:
        """The tensors that are rounded with these switches on, in order of computation.

        x: the input; weight1, weight2; conv1, conv2: what a convolution without its batch norm
        writes; bn1, bn2: what batch norm gives (with fold: the convolution); relu1, relu2; skip:
        the input at the add; add: the sum before its ReLU; pool: the output.

        >>> SimulatedBlock.quantizers("weights")
        ('weight1', 'weight2')
        """
        has = set(_canonical(on))
        a = "activations" in has
        rounded = {
            "x": a,
            "weight1": "weights" in has,
            "conv1": a and "fold" not in has,
            "bn1": a and "fuse" not in has,
            "relu1": a,
            "weight2": "weights" in has,
            "conv2": a and "fold" not in has,
            "bn2": "add" in has,
            "skip": "add" in has,
            "add": "add" in has and "fuse" not in has,
            "relu2": a,
            "pool": a and "pool" not in has,
        }
        return tuple(name for name, yes in rounded.items() if yes)

    @staticmethod
    def configurations() -> list[tuple[str, ...]]:
        """All 36 configurations that differ, each the sorted switches that are on.

        >>> len(SimulatedBlock.configurations()), SimulatedBlock.configurations()[:2]
        (36, [(), ('weights',)])
        """
        every = product((False, True), repeat=len(SWITCHES))
        named = (tuple(s for s, on in zip(SWITCHES, row, strict=True) if on) for row in every)
        return list(dict.fromkeys(_canonical(on) for on in named))

    @property
    def configuration(self) -> tuple[str, ...]:
        """The switches that are on now and change something."""
        return _canonical(s for s in SWITCHES if getattr(self, s))

    @property
    def result(self) -> dict[str, float] | None:
        """What was measured in that configuration; None if it was not."""
        return self.measured.get("+".join(self.configuration))

    @traitlets.validate("weight_bits", "activation_bits")
    def _check_bits(self, proposal: Any) -> int:
        return within(proposal, 2, 16)


def _canonical(on: Iterable[str]) -> tuple[str, ...]:
    """The switches that are on, sorted, without those that change nothing."""
    on = set(on)
    if unknown := sorted(on - set(SWITCHES)):
        raise ValueError(f"unknown switch {unknown[0]!r}; a configuration is made of {SWITCHES}")
    return tuple(sorted(on if "activations" in on else on - _ONLY_WITH_ACTIVATIONS))
