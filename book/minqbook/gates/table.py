"""What is counted: elements, arrays, requantizers, floats, and how often their gates switch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minq.mac import accumulator_bits
from minqbook.gates import activity
from minqbook.gates.yosys import INTEGER, synthesize
from minqbook.tables.files import Cell, Table

BITS = (2, 3, 4, 6, 8, 16)
PRODUCTS = 1152
"""A sum of so many products is what the narrower accumulators are safe for: 3 x 3 x 128."""
FLOATS = {"float32": (8, 23, 1), "bfloat16": (8, 7, 1), "fp8_e4m3": (4, 3, 0)}


def safe(weight_bits: int, input_bits: int) -> int:
    """Bits of an accumulator that ``PRODUCTS`` products of any numbers cannot overflow.

    >>> safe(8, 8), safe(4, 8), safe(2, 2)
    (27, 23, 14)
    """
    return accumulator_bits(PRODUCTS, weight_bits, input_bits)


def cells() -> Iterator[Cell]:
    """All that is counted, the quick first."""

    def cell(unit: str, w: int = 0, x: int = 0, a: int = 0, variant: str = "") -> Cell:
        return {"unit": unit, "weight_bits": w, "input_bits": x, "acc_bits": a, "variant": variant}

    for w in BITS:
        for x in BITS:
            for a in sorted({32, safe(w, x)}):
                yield cell("element", w, x, a)
    for b in BITS:
        yield cell("element", b, b, 32, "zero-point")
    for name in FLOATS:
        yield cell(name)
    for b in BITS[:-1]:
        yield cell("switching", b, b, 32)
    for name in FLOATS:
        yield cell("switching", variant=name)
    for name in ("float32", "bfloat16"):
        yield cell(name, variant="flush")
    for b in (4, 8):
        yield cell("requantize", x=b)
    for b in BITS:
        for a in (32, safe(b, b)):
            yield cell("array 8 x 8", b, b, a)
        yield cell("array 8 x 8", b, b, 32, "zero-point")


def measure(cell: Cell, command: str | None = None) -> dict[str, Any]:
    """The numbers of one cell.

    Args:
        cell: one of ``cells``.
        command: which Yosys.

    Returns:
        Cells, gates by what they are for, flip-flops and depth; or toggles of a net's bits for each
        multiply-add.
    """
    if cell["unit"] == "switching":
        name = cell["variant"]
        plain = cell | {"unit": name or "element", "variant": ""}
        circuit = synthesize(*unit(plain), parameters(plain), command=command, netlist=True)
        return activity.measure(circuit.netlist, cell["weight_bits"], name)
    return synthesize(*unit(cell), parameters(cell), command=command).record()


def unit(cell: Cell) -> tuple[str, tuple[str, ...]]:
    """The module of a cell, and its sources."""
    if cell["unit"] == "requantize":
        return "requantize", ("element.v", "requantize.v")
    return ("float_mac", ("float.v",)) if cell["unit"] in FLOATS else ("mac_array", INTEGER)


def parameters(cell: Cell) -> dict[str, int]:
    """Of the module of a cell."""
    if cell["unit"] in FLOATS:
        values = zip(("EXPONENT", "FRACTION", "INFINITE"), FLOATS[cell["unit"]], strict=True)
        return dict(values) | {"FLUSH": int(cell["variant"] == "flush")}
    if cell["unit"] == "requantize":
        return {"BITS": cell["input_bits"]}
    side = 8 if "array" in cell["unit"] else 1
    return {
        "ROWS": side,
        "COLUMNS": side,
        "WEIGHT_BITS": cell["weight_bits"],
        "INPUT_BITS": cell["input_bits"],
        "ACC_BITS": cell["acc_bits"],
        "ZERO_POINT": int(cell["variant"] == "zero-point"),
    }


TABLE = Table(cells, measure)
