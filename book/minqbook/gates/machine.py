"""Layers through the array in Verilog: the same cycles as ``minq.mac.MacArray.trace``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minq.mac import Cycle, MacArray, as_integers
from minqbook.gates.icarus import compiled, simulate

ARRAY = ("element.v", "accumulator.v", "mac_array.v")


class Layer(NamedTuple):
    """What goes through the array: W (N, M), x (B, M), b (N,), all integers."""

    weight: Any
    x: Any
    bias: Any
    zero_point: int = 0  # of the weights

    def words(self, array: MacArray) -> list[int]:
        """As the test bench reads it. A bias enters as an accumulator keeps it."""
        w, x, b = (as_integers(v, "layer")[0] for v in self[:3])
        held = MacArray(1, 1, array.accumulator_bits, array.overflow)
        kept = [held.run([[0]], [0], [value]).accumulators[0] for value in b]
        sizes = [*w.shape, len(x), self.zero_point]
        return [int(v) for part in (sizes, w.flat, x.flat, kept) for v in part]


def run_verilog(
    array: MacArray,
    layers: Sequence[Layer],
    weight_bits: int = 8,
    input_bits: int = 8,
    *,
    input_signed: bool = False,
    zero_point: bool = False,
    dump: Path | None = None,
) -> list[list[Cycle]]:
    """All cycles of layers on the array in Verilog, simulated by Icarus.

    Args:
        array: the machine; each set of its parameters is compiled once.
        layers: at most 64 vectors each; they run one after the other.
        weight_bits: of the weights, which are signed.
        input_bits: of the inputs.
        input_signed: whether inputs go below 0.
        zero_point: whether the array can subtract a weight zero-point.
        dump: where the simulator writes every signal, as a VCD file.

    Returns:
        A list of cycles for each layer.

    Raises:
        RuntimeError: Icarus is missing, or stopped.
    """
    words = [word for layer in layers for word in layer.words(array)]
    program = compiled(
        "test_array",
        (*ARRAY, "sequencer.v", "test_array.v"),
        ROWS=array.rows,
        COLUMNS=array.columns,
        WEIGHT_BITS=weight_bits,
        INPUT_BITS=input_bits,
        ACC_BITS=array.accumulator_bits,
        INPUT_SIGNED=int(input_signed),
        SATURATE=int(array.overflow == "saturate"),
        DOUBLE_BUFFER=int(array.double_buffer),
        ZERO_POINT=int(zero_point),
    )
    result, cycles = [], []
    for line in simulate(program, words, dump):
        if line == "end":
            result.append(cycles)
            cycles = []
        else:
            cycles.append(_cycle(line, layers[len(result)]))
    return result


def _cycle(line: str, layer: Layer) -> Cycle:
    """A printed line as the model says it."""
    index, load, *rest = ([int(v) for v in part.split()] for part in line.split("|"))
    loading = (load[0], load[1], load[2]) if load else None
    if not rest[0]:
        return Cycle(index[0], loading)
    (vector, n0, n1, m0, m1), *numbers = rest
    products, before, after, overflow = (np.array(v) for v in numbers)
    return Cycle(
        index[0],
        loading,
        vector,
        (n0, n1),
        (m0, m1),
        np.asarray(layer.x)[vector, m0:m1],
        products.reshape(n1 - n0, m1 - m0),
        before,
        after,
        overflow.astype(bool),
    )


def differences(found: Iterable[Cycle], expected: Iterable[Cycle]) -> list[str]:
    """Where two traces differ, cycle by cycle and field by field; [] where they agree.

    >>> cycles = list(MacArray(1, 1).trace([[2]], [3]))
    >>> differences(cycles, cycles), differences(cycles[:1], cycles)
    ([], ['1 cycles, expected 2'])
    """
    found, expected = list(found), list(expected)
    if len(found) != len(expected):
        return [f"{len(found)} cycles, expected {len(expected)}"]
    return [
        f"cycle {one.index}: {name} is {a}, expected {b}"
        for one, other in zip(found, expected, strict=True)
        for name, a, b in zip(Cycle._fields, one, other, strict=True)
        if not np.array_equal(np.asarray(a), np.asarray(b))
    ]
