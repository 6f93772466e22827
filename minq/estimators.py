"""Range estimators as objects: how a quantizer finds the range of the data it observes.

Each is a rule of ``minq.ranges`` with its settings:

    =================  ====================================================================
    ``MinMax()``       all of the data
    ``Percentile()``   the middle 99.9 % of it
    ``MSE()``          the least squared error, eq. (16)
    ``Output()``       ``MSE()``, unless the next operators' outputs prefer another range
    ``Grouped()``      one range for each of a few groups of channels, by another estimator
    ``Shrunk()``       a given share of all of the data
    ``Custom()``       a function of one's own
    =================  ====================================================================

A quantizer also takes the short forms "min_max", "percentile", "mse" and "output", or the function
itself; ``as_estimator`` turns them into objects, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from minq import ranges
from minq._checks import check_count
from minq.granularity import Granularity
from minq.grid import Grid

if TYPE_CHECKING:
    from minq.quantizer import Quantizer

Range = tuple[Tensor, Tensor]


class Estimator:
    """What finds a range. Subclasses say how, in ``find``."""

    average: ClassVar[bool] = True
    """How ranges of several batches become one: their mean, or else their union."""

    by_output: ClassVar[bool] = False
    """Whether ``minq.ptq`` compares the range with others, by the error behind the tensor."""

    def find(self, x: Tensor, quantizer: Quantizer, granularity: Granularity) -> Range:
        """The range of x that suits the quantizer's grid.

        Args:
            x: float, any shape.
            quantizer: which grid the range is for.
            granularity: which values share a range.

        Returns:
            low and high, in the shape of the scale.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MinMax(Estimator):
    """All of the data, eq. (14) and (15)."""

    average: ClassVar[bool] = False

    def find(self, x, quantizer, granularity) -> Range:
        return ranges.min_max(x, axis=granularity.axis, group=granularity.group)


@dataclass(frozen=True)
class Percentile(Estimator):
    """The middle ``percent`` per cent of the data."""

    percent: float = 99.9

    def find(self, x, quantizer, granularity) -> Range:
        return ranges.percentile(x, self.percent, axis=granularity.axis, group=granularity.group)


@dataclass(frozen=True)
class MSE(Estimator):
    """The range with the least squared error, eq. (16)."""

    def find(self, x, quantizer, granularity) -> Range:
        return ranges.mse(
            x,
            quantizer.grid,
            symmetric=quantizer.symmetric,
            axis=granularity.axis,
            group=granularity.group,
        )


@dataclass(frozen=True)
class Output(MSE):
    """As ``MSE``; ``minq.ptq``, which knows what reads the tensor, compares it with others."""

    by_output: ClassVar[bool] = True


@dataclass(frozen=True)
class Grouped(Estimator):
    """One range for each of ``count`` groups of channels, see ``ranges.grouped``."""

    count: int
    estimator: Estimator = field(default_factory=MinMax)

    def __post_init__(self) -> None:
        check_count(self.count, "groups")

    @property
    def average(self) -> bool:  # type: ignore[override]
        return self.estimator.average

    def find(self, x, quantizer, granularity) -> Range:
        estimate = lambda channels: self.estimator.find(channels, quantizer, Granularity())  # noqa: E731
        return ranges.grouped(x, self.count, estimate, axis=granularity.axis)


@dataclass(frozen=True, eq=False)
class Shrunk(Estimator):
    """A share of all the data's range, for each scale its own; ``minq.ptq.awq`` finds them."""

    shares: Tensor

    def find(self, x, quantizer, granularity) -> Range:
        low, high = ranges.min_max(x, axis=granularity.axis, group=granularity.group)
        return shrunk(low, high, self.shares.to(low), quantizer.grid)


SHARES = tuple(1 - k / 20 for k in range(10))
"""Ranges that are tried where one is searched for, as shares of min-max."""


def shrunk(low: Tensor, high: Tensor, share: Tensor | float, grid: Grid) -> Range:
    """A share of a range, towards 0, or where a grid has a minimum, towards its middle.

    >>> from minq.grid import Grid
    >>> shrunk(-1.0, 3.0, 0.5, Grid(0, 3))
    (-0.5, 1.5)
    """
    center = 0 * low if grid.whole else (low + high) / 2
    return center + share * (low - center), center + share * (high - center)


@dataclass(frozen=True)
class Custom(Estimator):
    """A function ``(x, *, axis, group) -> (low, high)``."""

    function: Callable[..., Range]

    def find(self, x, quantizer, granularity) -> Range:
        return self.function(x, axis=granularity.axis, group=granularity.group)

    def __repr__(self) -> str:
        """The same in every run, so that a checkpoint knows it again."""
        return f"Custom({_name(self.function)})"


def _name(value: Any) -> str:
    if isinstance(value, partial):
        given = [*map(_name, value.args), *(f"{k}={_name(v)}" for k, v in value.keywords.items())]
        return f"partial({', '.join([_name(value.func), *given])})"
    return getattr(value, "__qualname__", str(type(value))) if callable(value) else str(value)


NAMES: dict[str, Estimator] = {
    "min_max": MinMax(),
    "percentile": Percentile(),
    "mse": MSE(),
    "output": Output(),
}


def as_estimator(value: str | Estimator | Callable[..., Range]) -> Estimator:
    """The estimator that a name, an estimator or a function stands for.

    Raises:
        ValueError: no estimator has that name.
        TypeError: it is none of the three.

    >>> as_estimator("percentile")
    Percentile(percent=99.9)
    """
    if isinstance(value, Estimator):
        return value
    if isinstance(value, str):
        if value not in NAMES:
            raise ValueError(
                f"estimator must be one of {', '.join(NAMES)} or a function, not {value!r}"
            )
        return NAMES[value]
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            f"estimator must be an object such as MSE(), one of {', '.join(NAMES)}, or a function "
            f"(x, *, axis, group) -> (low, high), not {value!r}"
        )
    return Custom(value)
