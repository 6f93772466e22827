"""Ways to round a layer's weights, as objects: which one, and with which settings.

    ============  ==================================================================
    ``AdaRound``  down or up, so that the layer's output changes least    chapter 9
    ``GPTQ``      column by column; the rest makes up for each error     chapter 17
    ``Nearest``   to the nearest level, biases corrected                 chapter 8
    ============  ==================================================================

``minq.ptq`` also takes the short forms "adaround", "gptq" and "nearest".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from minq import graph
from minq._checks import by_name, check_count, compute_dtype
from minq.ptq import heldout
from minq.ptq.adaround import adaround
from minq.ptq.gptq import hessian, inverse_factor, round_columns, round_in_ranges
from minq.ptq.walk import Walk, activation_of, sample_inputs, sample_rows
from minq.quantizer import Quantizer


class Rounding(ABC):
    """How weights get onto their grid."""

    correct_bias: bool
    """Whether the mean error of a layer is taken off its bias, where that lowers its error."""

    needs_data: ClassVar[bool] = False

    reads_exact: ClassVar[bool] = True
    """Whether ``round`` looks at ``walk.exact``; without, that network need not be computed."""

    def prepare(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Change the graph before it gets quantizers, where this rounding needs it."""
        return gm

    @abstractmethod
    def rounds(self, node: fx.Node) -> bool:
        """Whether the layer's weight is to be rounded; its quantizer rounds all others."""

    @abstractmethod
    def round(self, gm: fx.GraphModule, node: fx.Node, walk: Walk) -> Tensor:
        """The layer's weight on its grid, whose quantizer may get another range."""


@dataclass(frozen=True)
class Nearest(Rounding):
    """Each weight to the nearest level, which is what its quantizer does.

    Args:
        correct_bias: take the mean error of each layer off its bias, where that lowers the
            layer's error behind its activation function.
    """

    reads_exact: ClassVar[bool] = False

    correct_bias: bool = True

    def rounds(self, node: fx.Node) -> bool:
        return False

    def round(self, gm: fx.GraphModule, node: fx.Node, walk: Walk) -> Tensor:
        return graph.rounded_weight_of(gm, node)


@dataclass(frozen=True, kw_only=True)
class _OnRows(Rounding):
    """Rounding by rows of data: what a layer reads for some places of its output.

    Embeddings are rounded to nearest, and so is a weight that several layers read; a head that
    shares its weight with an embedding gets one of its own.
    """

    needs_data: ClassVar[bool] = True

    rows: int = 4096
    seed: int = 0
    correct_bias: bool = False

    def __post_init__(self) -> None:
        check_count(self.rows, "rows")

    def prepare(self, gm: fx.GraphModule) -> fx.GraphModule:
        for node in list(graph.layers(gm).values()):
            readers = list(graph.weight_node(node).users)
            if _has_rows(node) and [u for u in readers if graph.op(u) != "embedding"] == [node]:
                graph.own_weight(gm, node)  # the embedding was computed with it by then
        return gm

    def rounds(self, node: fx.Node) -> bool:
        return _has_rows(node) and len(graph.weight_node(node).users) == 1


def _has_rows(node: fx.Node) -> bool:
    return graph.traits(node).role in ("convolution", "linear")


@dataclass(frozen=True, kw_only=True)
class AdaRound(_OnRows):
    """Down or up, so that the layer's output changes least, see ``minq.ptq.adaround``.

    Args:
        sweeps: passes over each layer's weights.
        rows: of data, for each layer.
        seed: which rows.
        correct_bias: see ``Nearest``; there is little left to correct.
        held_out: let half of the rows judge how the other half is used, see ``minq.ptq.heldout``:
            for few bits and few samples. Takes a few times as long.

    Raises:
        TypeError, ValueError: ``sweeps`` or ``rows`` is not a positive whole number.

    >>> AdaRound(sweeps=5)
    AdaRound(rows=4096, seed=0, correct_bias=False, sweeps=5, held_out=False)
    """

    sweeps: int = 20
    held_out: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.sweeps, "sweeps")

    def round(self, gm: fx.GraphModule, node: fx.Node, walk: Walk) -> Tensor:
        quantizer = _quantizer_of(gm, node)
        if quantizer.granularity.group is not None:
            raise ValueError(
                f"{graph.layer_name(node)}: AdaRound takes one scale for each output, not groups; "
                'pass rounding="gptq" or "nearest"'
            )
        if not quantizer.grid.even:
            raise ValueError(
                f"{graph.layer_name(node)}: AdaRound goes a step down or up, and the steps of "
                f'{quantizer.grid} differ; pass rounding="gptq" or "nearest"'
            )
        generator = torch.Generator().manual_seed(self.seed)  # whichever layers are done already
        inputs, outputs = walk.quantized[graph.input_of(node)], walk.exact[node]
        x, y = sample_rows(gm, node, inputs, outputs, self.rows, generator)
        scale, zero_point = (v.detach() for v in quantizer.scale_zero_point())
        weight = graph.weight_of(gm, node)
        task: dict[str, Any] = {
            "bias": graph.bias_of(gm, node),
            "activation": activation_of(gm, node, x.shape[0]),
        }
        if self.held_out:
            factor, task["shrinkage"] = heldout.choose(
                weight, x, y, scale, zero_point, quantizer.grid, **task
            )
            quantizer.set_range(quantizer.low * factor, quantizer.high * factor)
            scale = quantizer.scale.detach()
        grid = quantizer.grid
        return adaround(weight, x, y, scale, zero_point, grid, sweeps=self.sweeps, **task)


@dataclass(frozen=True, kw_only=True)
class GPTQ(_OnRows):
    """Column by column, also for weights in groups, see ``minq.ptq.gptq``.

    Args:
        rows, seed, correct_bias: see ``AdaRound``.
        damping: share of the mean diagonal that is added to the diagonal of x^T x.
        clip: choose the range of each group of weights, or of each output, by the loss that is
            minimized, when its turn comes; without, the scheme's ``weight_range`` finds it, or what
            equalizes. See ``minq.ptq.gptq.round_in_ranges``.
    """

    reads_exact: ClassVar[bool] = False

    damping: float = 0.01
    clip: bool = False

    def round(self, gm: fx.GraphModule, node: fx.Node, walk: Walk) -> Tensor:
        quantizer, source = _quantizer_of(gm, node), graph.input_of(node)
        weight, group = graph.weight_of(gm, node), quantizer.granularity.group

        def factor() -> Tensor:
            generator = torch.Generator().manual_seed(self.seed)
            rows = sample_inputs(gm, node, walk.quantized[source], self.rows, generator)
            return inverse_factor(hessian(x.to(compute_dtype(x)) for x in rows), self.damping)

        shared = graph.op(node) == "linear"  # all that read one tensor read the same rows of it
        U = walk.once(source, "factor", factor) if shared else factor()
        if self.clip and quantizer.granularity.axis == 0:
            rounded, low, high = round_in_ranges(
                weight, U, quantizer.grid, symmetric=quantizer.symmetric, group=group
            )
            quantizer.set_range(low, high)
            return rounded
        scale, zero_point = (v.detach() for v in quantizer.scale_zero_point())
        return round_columns(weight, U, scale, zero_point, quantizer.grid, group=group)


def _quantizer_of(gm: fx.GraphModule, node: fx.Node) -> Quantizer:
    return gm.get_submodule(graph.weight_node(node).target)


NAMES: dict[str, Rounding] = {"adaround": AdaRound(), "nearest": Nearest(), "gptq": GPTQ()}


def as_rounding(value: str | Rounding) -> Rounding:
    """The rounding that a short form stands for.

    Raises:
        ValueError: no rounding has that name.
        TypeError: it is neither a rounding nor a name.

    >>> as_rounding("nearest")
    Nearest(correct_bias=True)
    """
    return by_name(value, Rounding, NAMES, "rounding", example="AdaRound()")
