"""Tensors that are moved, picked, spread or put together: where in memory each number lies.

A view holds, for each number of a tensor, its place in the array that it comes from, as a tensor of
places. torch itself moves the places, by the operator that would move the numbers. What comes out
is written down as nested loops, or seen to be the array itself: then nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DEPTH = 5
"""The most loops of a copy."""


@dataclass(eq=False)
class Array:
    """Numbers in memory. channels_last: pictures lie as (B, H, W, C), one after another."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    channels_last: bool = False
    where: str = "arena"  # or "input", "output", "constant"
    values: Tensor | None = field(default=None, repr=False)  # of a constant

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


def places(shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """Where each number of a tensor lies, one after another from 0 on.

    >>> places((1, 2, 1, 3), True).flatten().tolist()
    [0, 2, 4, 1, 3, 5]
    """
    index = torch.arange(torch.Size(shape).numel())
    if channels_last:
        b, c, h, w = shape
        return index.reshape(b, h, w, c).permute(0, 3, 1, 2)
    return index.reshape(shape)


def in_memory(x: Tensor, channels_last: bool) -> Tensor:
    """The numbers in the order in which they lie, flat."""
    return (x.permute(0, 2, 3, 1) if channels_last else x).flatten()


@dataclass(eq=False)
class View:
    """Numbers of an array, in an order and shape of their own."""

    array: Array
    index: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.index.shape)

    def is_array(self, channels_last: bool) -> bool:
        """Whether the numbers, in that order, are the array from its first to its last byte."""
        flat = in_memory(self.index, channels_last and len(self.shape) == 4)
        return flat.numel() == self.array.size and torch.equal(flat, torch.arange(flat.numel()))


def whole(array: Array) -> View:
    return View(array, places(array.shape, array.channels_last))


def loops(source: Tensor, target: Tensor) -> list[tuple[int, int, int]] | None:
    """Nested loops, outermost first, that visit both lists of places: (count, step, step).

    None where there are none of at most ``DEPTH``. Both begin at ``source[0]`` and ``target[0]``.

    >>> loops(torch.tensor([0, 4, 1, 5, 2, 6]), torch.arange(6))
    [(3, 1, 2), (2, 4, 1)]
    """
    both, found = torch.stack([source, target]), []
    while both.shape[1] > 1:
        steps = both[:, 1:] - both[:, :-1]
        other = (steps != steps[:, :1]).any(0).nonzero()
        count = int(other[0]) + 1 if len(other) else both.shape[1]
        while count > 1 and not _repeats(both, count):
            count -= 1
        if count == 1 or len(found) == DEPTH:
            return None
        found.append((count, int(steps[0, 0]), int(steps[1, 0])))
        both = both[:, ::count]
    return found[::-1]


def _repeats(both: Tensor, count: int) -> bool:
    """Whether all blocks of ``count`` places are the first one, moved."""
    if both.shape[1] % count:
        return False
    blocks = both.reshape(2, -1, count)
    return bool(((blocks - blocks[:, :, :1]) == (blocks - blocks[:, :, :1])[:, :1]).all())


def moved(view: View, function: Any, args: tuple, kwargs: dict) -> View:
    """The view after an operator that only moves, picks or spreads numbers."""
    return View(view.array, function(view.index.double(), *args, **kwargs).long())
