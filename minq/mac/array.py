"""The machine itself: it runs a layer, tells what happens in each cycle, and counts.

How it works, cycle by cycle, is said in ``minq.mac``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from minq._checks import Array, check_count
from minq.mac.products import int_matmul, layer_sizes, linear_operands
from minq.mac.widths import bits_for


class Cycle(NamedTuple):
    """What happened in one cycle of ``MacArray.trace``; what did not happen is None."""

    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs
    loading: tuple[int, int, int] | None  # (n, start, stop): W[n, start:stop] enters its array row
    vector: int | None = None  # which input vector, 0..B-1
    rows: tuple[int, int] | None = None  # outputs of the computing tile, start and stop
    columns: tuple[int, int] | None = None  # its inputs
    x: np.ndarray | None = None  # (c,)
    products: np.ndarray | None = None  # (r, c), C_{n,m}
    before: np.ndarray | None = None  # (r,), A_n
    after: np.ndarray | None = None  # (r,)
    overflow: np.ndarray | None = None  # (r,) bool: the sum did not fit the accumulator


class MacResult(NamedTuple):
    """What the accumulators hold at the end, beside what they should hold."""

    accumulators: Array  # (B, N) int64
    exact: Array  # (B, N) int64, W x + b with unlimited width
    bits_needed: int  # the smallest accumulator for which this run never overflows harmfully

    @property
    def overflowed(self) -> Array:
        """(B, N) bool: the outputs that are wrong."""
        return self.accumulators != self.exact


@dataclass(frozen=True)
class MacArray:
    """An array of ``rows`` x ``columns`` processing elements (``minq.mac`` says how it works).

    An accumulator of a bits holds [-2^(a-1), 2^(a-1) - 1]. Beyond that, "wrap" keeps the lowest a
    bits (two's complement) and "saturate" stays at the end of the range, in every cycle.

    >>> array = MacArray(rows=2, columns=2, accumulator_bits=8)
    >>> array.run([[100, 100, -100]], [1, 1, 1]).accumulators    # 200 wraps, and wraps back
    array([100])
    >>> MacArray(2, 2, 8, "saturate").run([[100, 100, -100]], [1, 1, 1]).accumulators
    array([27])
    >>> array.cycles(n_outputs=4, n_inputs=4, batch=8)
    40
    """

    rows: int = 16
    columns: int = 16
    accumulator_bits: int = 32
    overflow: str = "wrap"
    double_buffer: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "accumulator_bits"):
            check_count(getattr(self, name), name)
        if not 2 <= self.accumulator_bits <= 48:
            raise ValueError(f"accumulator_bits must be 2 to 48, not {self.accumulator_bits}")
        if self.overflow not in ("wrap", "saturate"):
            raise ValueError(f'overflow must be "wrap" or "saturate", not {self.overflow!r}')

    def _fit(self, value: np.ndarray) -> np.ndarray:
        """``value`` as an accumulator keeps it."""
        half = 2 ** (self.accumulator_bits - 1)
        if self.overflow == "saturate":
            return np.clip(value, -half, half - 1)
        return ((value + half) & (2 * half - 1)) - half  # value mod 2^a, in [-2^(a-1), 2^(a-1))

    def _tiles(self, n: int, m: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return [
            ((i, min(i + self.rows, n)), (j, min(j + self.columns, m)))
            for i in range(0, n, self.rows)
            for j in range(0, m, self.columns)
        ]

    def trace(self, weight: Array, x: Array, bias: Array | None = None) -> Iterator[Cycle]:
        """The machine one cycle at a time, for sizes one can look at. Takes what ``run`` takes.

        >>> for cycle in MacArray(2, 2).trace([[1, 2, 3]], [4, 5, 6], bias=[7]):
        ...     print(cycle.index, cycle.loading, cycle.products, cycle.after)
        0 (0, 0, 2) None None
        1 None [[ 4 10]] [21]
        2 (0, 2, 3) None None
        3 None [[18]] [39]
        """
        w, x, b, _ = linear_operands(weight, x, bias)
        return self._trace(w, np.atleast_2d(x), b)

    def _trace(self, w: np.ndarray, x: np.ndarray, b: np.ndarray) -> Iterator[Cycle]:
        acc = np.tile(self._fit(b), (len(x), 1))  # (B, N)
        tiles = self._tiles(*w.shape)
        loads = [[(n, *columns) for n in range(*rows)] for rows, columns in tiles]
        works = [[(tile, v) for v in range(len(x))] for tile in tiles]
        if self.double_buffer:  # tile i + 1 is loaded while tile i computes
            phases = list(zip([*loads, []], [[], *works], strict=True))
        else:
            pairs = zip(loads, works, strict=True)
            phases = [phase for load, work in pairs for phase in ((load, []), ([], work))]
        steps = (step for phase in phases for step in zip_longest(*phase))
        for index, (load, work) in enumerate(steps):
            if work is None:
                yield Cycle(index, load)
                continue
            (rows, columns), v = work
            r, c = slice(*rows), slice(*columns)
            products, before = w[r, c] * x[v, c], acc[v, r].copy()  # C_{n,m}
            total = before + products.sum(1)  # eq. (1): A_n + sum_m C_{n,m}
            acc[v, r] = after = self._fit(total)
            yield Cycle(
                index, load, v, rows, columns, x[v, c], products, before, after, total != after
            )

    def run(self, weight: Array, x: Array, bias: Array | None = None) -> MacResult:
        """A = b + W x, eq. (3), as accumulators of this width compute it, for sizes of any kind.

        Wrapping is reduction modulo 2^a, so wrapping once at the end gives what wrapping in every
        cycle gives, and only final sums need to fit. Saturation depends on the order: it clamps
        after each cycle, so every partial sum needs to fit. ``bits_needed`` counts accordingly.

        Args:
            weight: integers, (N, M).
            x: integers, (M,) or (B, M).
            bias: integers, (N,), or None for 0.

        Returns:
            The accumulators, what they would be without overflow, and the bits that takes.

        Raises:
            TypeError, ValueError: for operands that are not integers, are empty, do not fit each
                other, or whose exact sums could exceed 2^62.
        """
        w, x, b, back = linear_operands(weight, x, bias)
        if self.overflow == "wrap":
            exact = int_matmul(x, w.T) + b  # eq. (3)
            acc, low, high = self._fit(exact), exact.min(), exact.max()
        else:
            exact = np.broadcast_to(b, (*x.shape[:-1], len(b)))
            acc, low, high = self._fit(exact), exact.min(), exact.max()
            for m in range(0, w.shape[1], self.columns):
                c = slice(m, m + self.columns)
                row_sum = int_matmul(x[..., c], w[:, c].T)
                acc, exact = self._fit(acc + row_sum), exact + row_sum
                low, high = min(low, exact.min()), max(high, exact.max())
        return MacResult(back(acc), back(exact), bits_for(low, high))

    def cycles(self, n_outputs: int, n_inputs: int, batch: int = 1) -> int:
        """Cycles for a whole layer, in closed form; r is the number of rows a tile uses.

        Each tile loads for r cycles and computes for B:  cycles = T_c (N + T_r B).
        With double buffering a tile takes max(B, r), and what it cannot overlap is the first load
        and the last computation:  cycles = sum over tiles of max(B, r)  +  min(B, r of the first).

        Args:
            n_outputs: N.
            n_inputs: M.
            batch: B, the number of input vectors.

        Returns:
            Cycles.
        """
        n, m, batch = layer_sizes(n_outputs, n_inputs, batch)
        t_r, t_c = math.ceil(n / self.rows), math.ceil(m / self.columns)
        if not self.double_buffer:
            return t_c * (n + t_r * batch)
        first, last = min(self.rows, n), n - (t_r - 1) * self.rows
        return t_c * ((t_r - 1) * max(batch, first) + max(batch, last)) + min(batch, first)

    def utilisation(self, n_outputs: int, n_inputs: int, batch: int = 1) -> float:
        """Useful multiplications / (R C cycles): the share of the array that does work."""
        macs = n_outputs * n_inputs * batch
        return macs / (self.rows * self.columns * self.cycles(n_outputs, n_inputs, batch))

    def traffic(self, n_outputs: int, n_inputs: int, batch: int = 1) -> dict[str, int]:
        """Words that move between the array and its memories.

        Weights enter once (the array is weight-stationary); inputs once for each row of tiles; a
        partial sum is written and read back between two tiles of one row: 2 (T_c - 1) N B words.

        Args:
            n_outputs: N.
            n_inputs: M.
            batch: B, the number of input vectors.

        Returns:
            Words of "weights", "bias", "inputs", "partial_sums" and "outputs".
        """
        n, m, batch = layer_sizes(n_outputs, n_inputs, batch)
        t_r, t_c = math.ceil(n / self.rows), math.ceil(m / self.columns)
        return {
            "weights": n * m,
            "bias": n,
            "inputs": t_r * m * batch,
            "partial_sums": 2 * (t_c - 1) * n * batch,
            "outputs": n * batch,
        }
