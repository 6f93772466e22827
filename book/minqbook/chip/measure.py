"""Flash, memory and instructions of the small networks on a microcontroller, for chip.json.

Instructions are counted by QEMU: with ``-icount shift=0`` its clock goes on by a nanosecond for
each, and the board's timer, which the program reads before and after, ticks at 25 MHz. A real chip
takes more than one cycle for some of them, and waits for its flash.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

import minq
from minq.simulate import activation_quantizers
from minqbook import zoo
from minqbook.chip import toolchain
from minqbook.chip.floats import to_float_c

CHIPS = ("Cortex-M3", "Cortex-M4F")
"""Without and with a floating-point unit."""

FORMATS: dict[str, dict[str, Any]] = {
    "INT8": {},
    "INT4": {"weights": 4, "per_channel": True},
    "float": {},
}
"""What ``minq.ptq`` is told of each; the counts depend on nothing else that it could be told."""


def cells() -> Iterator[dict[str, Any]]:
    """Each network on each chip in each format."""
    for network, chip, numbers in product(zoo.NAMES, CHIPS, FORMATS):
        yield {"network": network, "chip": chip, "numbers": numbers}


@cache
def networks(name: str, bits: str) -> tuple[Any, minq.deploy.IntegerNetwork]:
    """The simulation of a small network, and it on integers."""
    q = minq.ptq(zoo.load(name), zoo.calibration_set(name, 8), rounding="nearest",
                 weight_range="min_max", activation_range="min_max", progress=False,
                 **FORMATS[bits])  # fmt: skip
    return q, minq.to_integer(q)


def unrounded(q: Any) -> Any:
    """The simulation with quantized weights and activations as they are, as in floats."""
    q = copy.deepcopy(q)
    for quantizer in activation_quantizers(q).values():
        quantizer.off()
    return q


def cell(given: dict[str, Any]) -> dict[str, Any]:
    """One network on one chip, for one sample of the test set."""
    if said := toolchain.chip_missing():
        raise RuntimeError(f"{said}; on Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi "
                           "qemu-system-arm")  # fmt: skip
    name, numbers, chip = given["network"], given["numbers"], toolchain.CHIPS[given["chip"]]
    q, net = networks(name, numbers)
    x = zoo.test_set(name, 1)[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = to_float_c(net, q, folder) if numbers == "float" else minq.to_c(net, folder)
        program = toolchain.build(files, folder / "made", chip)
        flash, ram = toolchain.sizes(program)
        (first,) = files.inputs
        found = toolchain.run(files, program, [first.quantize(x)], chip)
    with torch.no_grad():
        answers = unrounded(q)(x) if numbers == "float" else net(x)
    expected = [y.double() for y in tree_leaves(answers)]
    away = [
        float((spec.real(y) - z).abs().max() / z.abs().max())
        for spec, y, z in zip(files.outputs, found.outputs[0], expected, strict=True)
    ]
    return {
        "flash": flash,
        "constants": files.constant_bytes,
        "ram": ram,
        "arena": files.arena_bytes,
        "stack": found.stack[0],
        "instructions": found.ticks[0] * toolchain.TICK,
        "away": round(max(away), 6),
    }


def loop(chip: toolchain.Chip, rounds: int, folder: Path) -> int:
    """How many instructions are counted for a loop of two, run so many times."""
    main = f"""\
#include "board.h"
int main(void)
{{
    uint32_t n = {rounds};
    board_begin();
    __asm__ volatile("1: subs %0, %0, #1\\n bne 1b" : "+r"(n) : : "cc");
    board_end();
    return 0;
}}
"""
    program = toolchain.compiled(main, folder, chip, ("-O2",))
    return toolchain.executed(program, chip, b"")[1][0][0] * toolchain.TICK
