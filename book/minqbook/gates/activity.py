"""How often the gates of a unit switch while it computes a real layer: counted, not measured.

The netlist that Yosys made is simulated by Icarus without delays, with the weights and inputs of a
trained layer, one multiply-add a cycle along the sums of the layer. What is counted is how many bits
of its nets differ from one cycle to the next. The energy of CMOS goes with that number, times what
each net drives, times the voltage squared; so this is an estimate of proportions. It leaves out the
clock, wires, leakage, and the glitches that delays would add: those grow with depth, so a real
multiplier does worse.
"""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minq.affine import quantize, scale_zero_point
from minqbook.gates.icarus import compiled, simulate

LAYER = "blocks.6.expand"
"""A 1 x 1 convolution of EfficientNet-Lite0 with 80 inputs."""
SUMS = 6


@cache
def layer() -> tuple[np.ndarray, np.ndarray]:
    """Weights and inputs, each (SUMS, 80): as many outputs at as many places of a photo."""
    import torch
    from sklearn.datasets import load_sample_image

    from minqbook.zoo import efficientnet_lite0, efficientnet_lite0_weights

    weights = {k: torch.from_numpy(v) for k, v in efficientnet_lite0_weights().items()}
    photo = load_sample_image("china.jpg")[101:325, 208:432]
    image = torch.from_numpy((photo.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
    inputs: dict[str, Any] = {}
    efficientnet_lite0(image, weights, inputs)
    w = weights[f"{LAYER}.weight"].numpy().reshape(480, 80)
    x = inputs[LAYER][0].reshape(80, -1).T.numpy()
    return w[:: len(w) // SUMS][:SUMS], x[:: len(x) // SUMS][:SUMS]


def operands(bits: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The layer as a unit reads it, as words: integers of ``bits`` bits, or floats of a format."""
    w, x = layer()
    if not name:
        s_w, _ = scale_zero_point(w.min(), w.max(), bits, signed=True, symmetric=True)
        s_x, z_x = scale_zero_point(x.min(), x.max(), bits)
        return quantize(w, s_w, 0, bits, signed=True), quantize(x, s_x, z_x, bits)
    if name == "float32":
        return w.astype(np.float32).view(np.uint32), x.astype(np.float32).view(np.uint32)
    if name == "bfloat16":
        return tuple(v.astype(ml_dtypes.bfloat16).view(np.uint16) for v in (w, x))  # type: ignore
    return tuple(  # the largest number becomes the largest of E4M3
        (v / np.abs(v).max() * 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8) for v in (w, x)
    )  # type: ignore


def measure(bits: int, name: str, command: str | None = None) -> dict[str, Any]:
    """Bits of nets that differ from cycle to cycle, for each multiply-add.

    Args:
        bits: of weights and inputs, if they are integers.
        name: of a float format, else "".
        command: which Yosys.

    Returns:
        How many toggle, and how many nets there are.
    """
    from minqbook.gates import table
    from minqbook.gates.yosys import synthesize

    cell = {"unit": name or "element", "weight_bits": bits, "input_bits": bits, "acc_bits": 32}
    cell["variant"] = ""
    circuit = synthesize(
        *table.unit(cell), command=command, netlist=True, **table.parameters(cell)
    )
    w, x = operands(bits, name)
    first = np.arange(w.shape[1]) == 0
    words = np.stack(np.broadcast_arrays(w, x, first), -1).astype(np.int64)
    with tempfile.TemporaryDirectory(prefix="minq-activity-") as folder:
        netlist, dump = Path(folder, "netlist.v"), Path(folder, "dump.vcd")
        netlist.write_text(circuit.netlist)
        bench = "test_activity_float" if name else "test_activity"
        width = 8 * w.itemsize if name else bits
        program = compiled(bench, (netlist, "test_stream.v", f"{bench}.v"), BITS=width)
        simulate(program, words.flat, dump)
        toggled, nets = toggles(dump.read_text())
    return {"toggles": round(toggled / w.size, 1), "nets": nets}


def toggles(dump: str) -> tuple[int, int]:
    """Bits that change in a VCD file between known values, without the clock; and how many bits.

    >>> toggles("$var wire 2 ! a $end $enddefinitions $end #0 b00 ! #1 b11 ! #2 b1 !")
    (3, 2)
    """
    head, _, body = dump.partition("$enddefinitions $end")
    width = {
        code: int(bits)
        for bits, code, name in re.findall(r"\$var \w+ (\d+) (\S+) (\S+)", head)
        if name != "clk"
    }
    held: dict[str, str] = {}
    count = 0
    changes = re.finditer(r"b([01xz]+) (\S+)|(?<=\s)([01xz])(\S+)", body)
    for change in changes:
        vector, one, scalar, other = change.groups()
        code, value = (one, vector) if one else (other, scalar)
        if code not in width:
            continue
        value = value.rjust(width[code], value[0] if value[0] in "xz" else "0")
        known = zip(held.get(code, ""), value, strict=False)
        count += sum({a, b} == {"0", "1"} for a, b in known)
        held[code] = value
    return count, sum(width.values())
