"""What a whole layer costs on the array: cycles, traffic and energy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from minq._checks import check_count
from minq.mac.array import MacArray
from minq.mac.energy import access_energy, add_energy, multiply_energy
from minq.mac.products import layer_sizes, zero_point_operations

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

    Energy counts one multiplication and one addition, as wide as the accumulator, for each useful
    product; one requantization (a 32-bit multiplication and an addition) for each integer output;
    what a weight zero-point adds, if there is one; every word moved, from where ``MEMORY`` says,
    changed by ``memory``. Left out are clocks, wires, control, leakage and idle elements, so
    compare with it, and do not predict a chip.

    Args:
        n_outputs: N.
        n_inputs: M.
        batch: B.
        array: by default that of chapter 2.
        groups: how many such products there are.
        weight_bits: any number for integers; FP32 is 32 for both and ``floating`` (16 likewise),
            accumulated in 32-bit floats.
        activation_bits: of inputs and outputs.
        floating: whether numbers are floats.
        weight_zero_point: whether weights have one.
        memory: where "weights", "bias", "inputs", "partial_sums" or "outputs" are, if not where
            ``MEMORY`` says.

    Returns:
        The cost, with bytes and joules by kind.

    Raises:
        TypeError, ValueError: for sizes that are no counts, kinds of memory that are not known, and
            floats with a zero-point.

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
