"""A step of a network in C, and what is said where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from minq.deploy import kernels
from minq.deploy.c.constants import Rescaling
from minq.deploy.c.views import Array


class CannotWrite(ValueError):
    """The network has an operator that no C function here computes."""


@dataclass(eq=False)
class Call:
    """A step: a C function, what it reads and writes, and its numbers."""

    kind: str
    name: str
    reads: list[Array]
    writes: Array
    numbers: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None  # the layer
    rounding: kernels.Requantize | None = None  # what is behind a layer
    rescaling: Rescaling | None = None
    scratch: int = 0  # numbers beside the result: of a patch
