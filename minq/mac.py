r"""The multiply-accumulate array: figures 1 and 2 of the paper as a model one can run and question.

R x C processing elements compute y = W x + b, eq. (1). Each holds one weight, and an accumulator
at the end of each row adds up what its row multiplies:

    C_{n,m} = W_{n,m} x_m,        A_n = b_n + \sum_m C_{n,m}

W has N outputs and M inputs, so the array sees it in T_r T_c tiles, T_r = ceil(N / R) and
T_c = ceil(M / C); B input vectors pass through each tile. **The machine, cycle by cycle:**

- Tiles come in the order "for each row of tiles, for each column of tiles".
- Loading: one cycle writes the weights of one array row. A tile that uses r rows takes r cycles.
- Computing: one cycle takes one input vector's slice of C values to all rows at once; every element
  multiplies, and each row's sum of products is added to A_n of that vector. All of it happens
  within the cycle: no pipeline, no skew, and inputs always arrive in time.
- A_n starts at the bias. One partial sum per row and vector waits in an accumulator memory (R B
  words) until the next tile of that row comes; after the last it leaves, requantized.
- ``double_buffer``: each element has a second weight register, and the next tile is loaded while
  this one computes. The tile after that waits for the slower of the two.

Shapes follow torch's linear layer: weight (N, M), x (M,) or (B, M), results (N,) or (B, N). All
numbers are integers. The integer arithmetic itself (products, zero-points, requantization) is in
``minq.intmath``, joules per operation are in ``minq.energy``; both are importable from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from minq._checks import Array, check_count
from minq.energy import (
    ACCESS_PJ,
    ADD_PJ,
    MULTIPLY_PJ,
    access_energy,
    add_energy,
    multiply_energy,
)
from minq.grid import integer_grid
from minq.intmath import (
    ZeroPointTerms,
    fixed_point_multiplier,
    fold_zero_points,
    int_matmul,
    layer_sizes,
    linear_operands,
    requantize,
    zero_point_operations,
    zero_point_terms,
)

__all__ = [
    "ACCESS_PJ", "ADD_PJ", "MEMORY", "MULTIPLY_PJ", "Cycle", "LayerCost", "MacArray", "MacResult",
    "MatmulShape", "ZeroPointTerms", "access_energy", "accumulator_bits", "accumulator_bits_of",
    "add_energy", "bits_for", "conv_as_matmul", "fixed_point_multiplier", "fold_zero_points",
    "int_matmul", "layer_cost", "multiply_energy", "requantize", "zero_point_operations",
    "zero_point_terms",
]  # fmt: skip

# --- The array ------------------------------------------------------------------------------------


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
    """An array of ``rows`` x ``columns`` processing elements (the module says how it works).

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

        weight: (N, M) integers. x: (M,) or (B, M) integers. bias: (N,) integers, or None for 0.

        Wrapping is reduction modulo 2^a, so wrapping once at the end gives what wrapping in every
        cycle gives, and only final sums need to fit. Saturation depends on the order: it clamps
        after each cycle, so every partial sum needs to fit. ``bits_needed`` counts accordingly.

        Raises TypeError or ValueError for operands that are not integers, are empty, do not fit
        each other, or whose exact sums could exceed 2^62.
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


# --- How wide must an accumulator be? -------------------------------------------------------------


def bits_for(low: int, high: int) -> int:
    """The smallest two's complement width that holds ``low`` and ``high``.

    >>> bits_for(-128, 127), bits_for(0, 128), bits_for(0, 0)
    (8, 9, 1)
    """
    return 1 + max((v if v >= 0 else ~v).bit_length() for v in (int(low), int(high)))


def accumulator_bits(
    n_inputs: int,
    weight_bits: int = 8,
    activation_bits: int = 8,
    *,
    weight_signed: bool = True,
    activation_signed: bool = False,
    bias: int = 0,
) -> int:
    """Bits that no weights and inputs of these widths can overflow: K times the extreme products.

    ``bias``: the largest magnitude it may have. Since each product's range contains 0, the bound
    holds for every partial sum, in any order. Grows by one bit each time K doubles.

    >>> accumulator_bits(1), accumulator_bits(64 * 3 * 3), accumulator_bits(576, weight_bits=4)
    (16, 26, 22)
    """
    k, bias = check_count(n_inputs, "n_inputs"), abs(int(bias))
    w = integer_grid(weight_bits, signed=weight_signed)
    x = integer_grid(activation_bits, signed=activation_signed)
    corners = [p * q for p in w for q in x]
    return bits_for(k * min(corners) - bias, k * max(corners) + bias)


def accumulator_bits_of(
    weight: Array,
    activation_bits: int = 8,
    *,
    activation_signed: bool = False,
    bias: Array | None = None,
) -> int:
    """Bits that no input can overflow, given these weights: the worst input of every output row.

    weight: (N, M) integers. The largest sum pairs positive weights with the largest input and
    negative weights with the smallest; it also bounds every partial sum.

    >>> accumulator_bits_of([[1, -2, 3]], activation_bits=8), accumulator_bits(3)
    (11, 18)
    """
    low, high = integer_grid(activation_bits, signed=activation_signed)
    w, _, b, _ = linear_operands(weight, np.full(np.shape(weight)[-1:], max(high, -low)), bias)
    positive, negative = np.maximum(w, 0).sum(1), np.minimum(w, 0).sum(1)
    smallest, largest = positive * low + negative * high, positive * high + negative * low
    return bits_for((b + smallest).min(), (b + largest).max())


# --- A whole layer --------------------------------------------------------------------------------

MEMORY = {"weights": "dram", "bias": "dram", "inputs": "sram_1m", "outputs": "sram_1m",
          "partial_sums": "sram_8k"}  # fmt: skip
"""Where each kind of data lives unless ``layer_cost`` is told otherwise. Fit is not checked."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs. ``bytes`` by kind of data; ``energy`` in joules by kind of work."""

    macs: int
    cycles: int
    utilisation: float
    bytes: dict[str, int]
    energy: dict[str, float]

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    @property
    def total_energy(self) -> float:
        return sum(self.energy.values())


def layer_cost(
    n_outputs: int,
    n_inputs: int,
    batch: int = 1,
    array: MacArray | None = None,
    *,
    groups: int = 1,
    weight_bits: int = 8,
    activation_bits: int = 8,
    floating: bool = False,
    weight_zero_point: bool = False,
    memory: Mapping[str, str] | None = None,
) -> LayerCost:
    """Cycles, traffic and energy of a layer: ``groups`` products of (N, M) with B vectors in turn.

    For integers any weight_bits and activation_bits; FP32 is weight_bits=32, activation_bits=32,
    floating=True (and 16 likewise), accumulated in 32-bit floats.

    Energy counts one multiplication and one addition, as wide as the accumulator, for each useful
    product; one requantization (a 32-bit multiplication and an addition) for each integer output;
    what a weight zero-point adds, if there is one; every word moved, from where ``MEMORY`` says,
    changed by ``memory``. Left out are clocks, wires, control, leakage and idle elements, so
    compare with it, and do not predict a chip.

    >>> fp32, int8 = (layer_cost(256, 256, weight_bits=b, activation_bits=b, floating=b == 32)
    ...               for b in (32, 8))
    >>> fp32.bytes["weights"] / int8.bytes["weights"]
    4.0
    """
    array, groups = array or MacArray(), check_count(groups, "groups")
    n, m, batch = layer_sizes(n_outputs, n_inputs, batch)
    unknown = set(memory or {}) - set(MEMORY)
    if unknown:
        raise ValueError(f"memory has {sorted(unknown)}; it may only name {', '.join(MEMORY)}")
    if floating and weight_zero_point:
        raise ValueError("floating-point weights have no zero-point; pass floating=False")
    wide = 32 if floating else array.accumulator_bits
    multiply = multiply_energy(weight_bits, activation_bits, floating=floating)
    add = add_energy(wide, floating=floating)
    width = {"weights": weight_bits, "bias": wide, "inputs": activation_bits, "partial_sums": wide,
             "outputs": activation_bits}  # fmt: skip
    bits = {k: groups * words * width[k] for k, words in array.traffic(n, m, batch).items()}

    macs, cycles, outputs = groups * n * m * batch, groups * array.cycles(n, m, batch), n * batch
    scale_once = multiply_energy(32, 32) + add
    extra = zero_point_operations(n, m, batch)
    energy = {
        "multiply": macs * multiply,
        "add": macs * add,
        "requantize": 0.0 if floating else groups * outputs * scale_once,
        "zero_point": weight_zero_point * groups
        * (extra["additions"] * add + extra["multiplications"] * multiply_energy(32, 32)),
    }  # fmt: skip
    energy |= {k: access_energy(v, {**MEMORY, **(memory or {})}[k]) for k, v in bits.items()}
    sizes = {k: math.ceil(v / 8) for k, v in bits.items()}
    return LayerCost(macs, cycles, macs / (array.rows * array.columns * cycles), sizes, energy)


class MatmulShape(NamedTuple):
    """A convolution as matrix products: pass ``**shape._asdict()`` to ``layer_cost``."""

    n_outputs: int  # of one group
    n_inputs: int  # of one group: channels x kernel height x kernel width
    batch: int  # images x output pixels
    groups: int


def conv_as_matmul(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    input_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    batch: int = 1,
) -> MatmulShape:
    """A 2-D convolution unrolled (im2col): every output pixel is one input vector of patches.

    Overlapping patches repeat pixels, so "inputs" then counts each pixel once for each patch that
    holds it. A depthwise convolution (groups = in_channels) has M = kernel area and N = 1: it fills
    one row of the array.

    >>> conv_as_matmul(64, 128, 3, 56, padding=1)
    MatmulShape(n_outputs=128, n_inputs=576, batch=3136, groups=1)
    >>> depthwise = conv_as_matmul(64, 64, 3, 56, padding=1, groups=64)
    >>> round(layer_cost(**depthwise._asdict()).utilisation, 3)    # 9 of 256 elements
    0.035
    """
    c_in, c_out = check_count(in_channels, "in_channels"), check_count(out_channels, "out_channels")
    groups, pixels, area = check_count(groups, "groups"), check_count(batch, "batch"), 1
    if c_in % groups or c_out % groups:
        raise ValueError(f"groups={groups} must divide in_channels={c_in}, out_channels={c_out}")
    names = ("kernel_size", "input_size", "stride", "dilation")
    for axis in (0, 1):
        pair = (v if isinstance(v, int) else v[axis]
                for v in (kernel_size, input_size, stride, dilation))  # fmt: skip
        k, size, step, spread = map(check_count, pair, names)
        pad = padding if isinstance(padding, int) else padding[axis]
        room = size + 2 * pad - spread * (k - 1) - 1
        if pad < 0 or room < 0:
            raise ValueError(
                f"a kernel of {k} with dilation {spread} does not fit into an input of {size} "
                f"with padding {pad}; padding must be 0 or more"
            )
        pixels *= room // step + 1
        area *= k
    return MatmulShape(c_out // groups, c_in // groups * area, pixels, groups)
