"""Keeping the values of an operator on all data: as they are, as integers, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from minq._checks import saturating_cast
from minq.quantizer import Quantizer

Batches = Sequence[Any]
"""A value for each batch."""

KEPT = 2**27
"""Bytes that the values of one operator may take, on all data together; twice as many for each
layer more that would have to be computed again."""

CHAIN = 4
"""Layers that are computed again for one value, at most."""


class Again(Sequence):
    """A value for each batch, computed whenever it is read: too large to be kept.

    layers: how many layers are computed again for one value.
    """

    def __init__(self, compute: Callable[[int], Any], count: int, layers: int) -> None:
        self.compute, self.batches, self.layers = compute, count, layers

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, k: Any) -> Any:
        if not 0 <= k < self.batches:
            raise IndexError(k)
        return self.compute(k)


class Integers(Sequence):
    """The values behind a quantizer of up to 8 bits, each in one byte."""

    @staticmethod
    def fit(quantizer: Quantizer) -> bool:
        """Whether its values are integers of one byte, on one scale."""
        other = quantizer.scale.ndim or quantizer.dynamic or quantizer.grid.real
        return quantizer.bits <= 8 and not other

    def __init__(self, quantizer: Quantizer, values: Iterable[Tensor]) -> None:
        self.scale, self.zero_point = (v.detach() for v in quantizer.scale_zero_point())
        self.grid, self.codes = quantizer.grid, []
        for v in values:
            self.dtype = v.dtype
            levels = self.grid.quantize(v, self.scale, self.zero_point)
            self.codes.append(levels.sub_(self.grid.quant_min).to(torch.uint8))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, k: Any) -> Tensor:
        levels = self.codes[k].to(self.scale.dtype).add_(self.grid.quant_min)
        x_hat = self.grid.dequantize(levels, self.scale, self.zero_point)
        return saturating_cast(x_hat, self.dtype)


class Storage:
    """Chooses how values are kept, by their size on all data.

    Args:
        lengths: how many samples each batch has.
        kept: bytes that one operator's values may take.
    """

    def __init__(self, lengths: list[int], kept: int = KEPT) -> None:
        self.lengths, self.kept = lengths, kept

    def keep(
        self, compute: Callable[[int], Any], layers: int, quantizer: Quantizer | None = None
    ) -> Batches:
        """The values ``compute(k)`` of all batches.

        Args:
            layers: how many layers would be computed again, were they not stored.
            quantizer: what they have passed last, if it was one.

        Returns:
            A list; ``Integers`` where that is too large and there is a quantizer of up to 8 bits
            with one scale; ``Again`` where few layers are to be computed again.
        """
        first, count = compute(0), len(self.lengths)
        everything = chain([first], map(compute, range(1, count)))
        if (size := self.size(first)) > self.kept:
            if quantizer is not None and Integers.fit(quantizer):
                return Integers(quantizer, everything)
            if layers <= CHAIN and size > self.kept * 2 ** max(layers - 1, 0):
                return Again(compute, count, layers)
        return list(everything)

    def size(self, first: Any) -> int:
        """Bytes of an operator's values on all data, from those of the first batch."""
        tensors = [v for v in tree_leaves(first) if isinstance(v, Tensor)]
        return sum(v.nbytes for v in tensors) * sum(self.lengths) // self.lengths[0]
