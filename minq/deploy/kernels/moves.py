"""Integers that are looked up, moved, picked or filled in: nothing is computed with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


class Table(nn.Module):
    """Any function of one number on a grid of few levels: looked up, y = table[x - low]."""

    def __init__(self, levels: Tensor, low: int) -> None:
        super().__init__()
        self.register_buffer("table", levels)
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long() - self.low]


class Lookup(nn.Module):
    """Rows of an integer table: an embedding."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, index: Tensor) -> Tensor:
        return self.weight[index]


class Move(nn.Module):
    """An operator that only moves or picks values, and that torch has for floats alone."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.function(x.double(), *args, **kwargs)
        return tree_map_only(Tensor, lambda t: t.to(x.dtype) if t.is_floating_point() else t, y)


class FillWith(nn.Module):
    """An operator that fills up with a level that is given: masked_fill, padding."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, level: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(x.double(), *args, level.item(), **kwargs).to(x.dtype)


class Fill(nn.Module):
    """One level in a tensor of a shape that is given; of the type of other integers, or its own."""

    def __init__(self, level: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.level, self.dtype = level, dtype

    def forward(self, shape: Tensor, like: Tensor | None = None) -> Tensor:
        dtype = self.dtype if like is None else like.dtype
        return torch.full_like(shape, self.level, dtype=dtype)
