"""What a tensor of the network on integers stands for.

The simulation computes with real numbers that lie on grids, y = s (y_int - z). The compiler writes
down of each tensor what it is:

    a tensor is ...   it comes from                              and stands for
    Sum               layers, additions, means, moves            sum_k s_k (x_k - z_k) + c, clamped
    Hidden            a mask of scores                           one grid, and a value far below it
    Pieces            a concatenation that is not rounded yet    several of them
    Function          GELU, sigmoid, ... of one grid             f(s (x - z)): a table once rounded
    Normalized        softmax or a norm of one grid              the same of whole rows
    Rows              an embedding whose rows have scales        rows of a table
    Constant          a parameter behind its quantizer           s w_int
    Parameter         one that has no quantizer                  itself
    Filled            zeros, ones, full                          one number everywhere
    Real              what has no integer form or quantizer      itself: an island of floats
    Plain             token ids, masks, shapes                   no real numbers

A quantizer turns any of them into integers on its grid, which ends the computation with scales: a
``Sum`` of one term again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from minq.deploy import kernels

INF = torch.tensor(math.inf, dtype=torch.float64)
ZERO = torch.tensor(0.0, dtype=torch.float64)

ENTRIES = 2**16
"""The longest table that a device keeps: a function of all that 16 bits hold."""


class Island(Exception):
    """An operator has no integer form here."""


@dataclass(frozen=True)
class Term:
    """scale (x - zero), x the integers of a node, in [low, high]."""

    node: fx.Node
    scale: Tensor
    zero: int
    low: int
    high: int

    def holds(self, value: float) -> bool:
        """Whether a real number is exactly one of the grid's."""
        level = value / float(self.scale) + self.zero
        return self.low <= level <= self.high and level == round(level)

    def level(self, value: float) -> int:
        return round(value / float(self.scale) + self.zero)

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest real number."""
        low, high = (float(self.scale) * (v - self.zero) for v in (self.low, self.high))
        return min(low, high), max(low, high)


@dataclass(frozen=True)
class Sum:
    """sum of terms + constant, times slope where negative, then clamped to [low, high]."""

    terms: tuple[Term, ...]
    constant: Tensor = ZERO
    low: Tensor = -INF
    high: Tensor = INF
    slope: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing is fused yet."""
        unbounded = (self.low == -math.inf) & (self.high == math.inf)
        return self.slope is None and bool(unbounded.all())

    @property
    def grid(self) -> Term | None:
        """The one tensor that this is, if it has one scale."""
        if len(self.terms) != 1 or not self.plain or self.constant.any():
            return None
        return self.terms[0] if self.terms[0].scale.ndim == 0 else None

    def times(self, factor: Tensor | float) -> Sum:
        """factor times a sum with nothing fused."""
        terms = tuple(replace(t, scale=t.scale * factor) for t in self.terms)
        return Sum(terms, self.constant * factor)

    def dequantize(self) -> kernels.Dequantize:
        scales, zeros = [t.scale for t in self.terms], [t.zero for t in self.terms]
        return kernels.Dequantize(scales, zeros, self.constant, self.low, self.high, self.slope)


@dataclass(frozen=True)
class Hidden:
    """A grid whose lowest level, ``term.low``, stands for ``value``: so far down that beside any
    other score its exponential is nothing."""

    term: Term
    value: float


@dataclass(frozen=True)
class Pieces:
    """Forms that are rounded to one grid and then put together."""

    parts: tuple[Form, ...]
    join: Callable[[list[fx.Node]], fx.Node]


@dataclass(frozen=True)
class Function:
    """A function of the real numbers on a grid."""

    term: Term
    function: Callable[[Tensor], Tensor]

    def table(self) -> Tensor:
        """Its value at every level, in double precision."""
        x = self.term
        return self.function(x.scale * (torch.arange(x.low, x.high + 1).double() - x.zero))


@dataclass(frozen=True)
class Normalized:
    """A function of rows of real numbers on a grid; ``unit`` makes it for a grid of results."""

    term: Term
    function: Callable[[Tensor], Tensor]
    unit: Callable[[kernels.Quantize], nn.Module]
    hidden: float | None = None  # what the grid's lowest level stands for, see ``Hidden``


@dataclass(frozen=True)
class Rows:
    """Rows of a table of real numbers, picked by whole numbers."""

    values: Tensor
    index: fx.Node
    name: str


@dataclass(frozen=True)
class Constant:
    """scale times integers that are known; in what the graph calls a parameter."""

    values: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Real:
    """Real numbers in double precision."""

    node: fx.Node


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer that no quantizer rounds."""

    values: Tensor


@dataclass(frozen=True)
class Filled:
    """One number in a tensor of the shape that a node has."""

    node: fx.Node
    value: float


@dataclass(frozen=True)
class Plain:
    """No real numbers: token ids, masks, shapes."""

    node: fx.Node


Form = (
    Sum | Hidden | Pieces | Function | Normalized | Rows
    | Constant | Parameter | Filled | Real | Plain
)  # fmt: skip
"""What a tensor of the network stands for."""
