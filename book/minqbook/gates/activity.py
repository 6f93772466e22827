"""How often the gates of a unit switch while it computes a real layer: counted, not measured.

The gates that Yosys made are computed one by one, with the weights and inputs of a trained layer,
one multiply-add a cycle along the sums of the layer. What is counted is how many outputs of gates
and flip-flops differ from one cycle to the next. The energy of CMOS goes with that number, times
what each output drives, times the voltage squared; so this is an estimate of proportions. It leaves
out the clock, wires, leakage, and the glitches of slow gates: those grow with depth, so a real
multiplier does worse.
"""

from __future__ import annotations

from functools import cache
from graphlib import TopologicalSorter
from typing import Any

import ml_dtypes
import numpy as np

from minq.affine import quantize, scale_zero_point

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


def measure(netlist: dict[str, Any], bits: int, name: str) -> dict[str, Any]:
    """Outputs that differ from cycle to cycle, for each multiply-add.

    Args:
        netlist: of an element or a multiply-add of floats, as ``run`` takes it.
        bits: of weights and inputs, if they are integers.
        name: of a float format, else "".

    Returns:
        How many toggle.
    """
    w, x = operands(bits, name)
    toggled, _ = run(netlist, w, x)
    return {"toggles": round(toggled / w.size, 1)}


def run(netlist: dict[str, Any], w: np.ndarray, x: np.ndarray) -> tuple[int, list[int]]:
    """Let the products of each row of w and x through an element, or a multiply-add of floats.

    Args:
        netlist: of ``mac_array`` with one element, or of ``float_mac``.
        w: words, (sums, products).
        x: as many.

    Returns:
        How many outputs of gates and flip-flops differed from one cycle to the next, and the word
        on the port ``after`` at the end of each row.
    """
    step, flip_flops, watched = _compiled(netlist)
    ports = {k: v["bits"] for k, v in netlist["ports"].items()}
    size = 1 + max(b for bits in _bits(netlist) for b in bits if isinstance(b, int))
    value = [0] * size
    weights = ports.get("weights") or ports["weight"]
    for port in ("load", "load_row", "compute", "enable"):
        _put(value, ports.get(port, []), 1)
    flat_w, flat_x = ([int(v) for v in a.flat] for a in (w, x))
    count, sums = 0, []
    before = [0] * len(watched)
    _put(value, weights, flat_w[0])
    for k in range(-1, len(flat_w)):  # the next weight enters while one is multiplied
        _put(value, weights, flat_w[min(k + 1, len(flat_w) - 1)])
        _put(value, ports["x"], flat_x[max(k, 0)])
        _put(value, ports["first"], int(k % w.shape[1] == 0))
        step(value)
        now = [value[b] for b in watched]
        if k > 0:
            count += sum(map(int.__ne__, now, before))
        before = now
        if (k + 1) % w.shape[1] == 0 and k >= 0:
            after = ports["after"]
            sums.append(sum(_get(value, b) << i for i, b in enumerate(after)))
        held = [value[d] if _get(value, e) else value[q] for d, e, q in flip_flops]
        for (_, _, q), v in zip(flip_flops, held, strict=True):
            value[q] = v
    return count, sums


def _put(value: list[int], bits: list[Any], word: int) -> None:
    for i, b in enumerate(bits):
        value[b] = word >> i & 1


def _get(value: list[int], bit: Any) -> int:
    return value[bit] if isinstance(bit, int) else int(bit == "1")


def _bits(netlist: dict[str, Any]) -> list[list[Any]]:
    """The nets of all ports and connections."""
    cells = (bits for c in netlist["cells"].values() for bits in c["connections"].values())
    return [*cells, *(p["bits"] for p in netlist["ports"].values())]


_GATE = {
    "$_AND_": "{A} & {B}",
    "$_NAND_": "({A} & {B}) ^ 1",
    "$_OR_": "{A} | {B}",
    "$_NOR_": "({A} | {B}) ^ 1",
    "$_XOR_": "{A} ^ {B}",
    "$_XNOR_": "{A} ^ {B} ^ 1",
    "$_NOT_": "{A} ^ 1",
    "$_MUX_": "{B} if {S} else {A}",
}


def _compiled(netlist: dict[str, Any]) -> tuple[Any, list[tuple[Any, Any, Any]], list[int]]:
    """A function that computes all gates in order, the flip-flops (D, E, Q), and all outputs."""
    gates, flip_flops = {}, []
    for cell in netlist["cells"].values():
        pin = {k: v[0] for k, v in cell["connections"].items()}
        if cell["type"] in _GATE:
            gates[pin["Y"]] = cell["type"], pin
        elif cell["type"] in ("$_DFF_P_", "$_DFFE_PP_"):
            flip_flops.append((pin["D"], pin.get("E", "1"), pin["Q"]))
        else:
            raise ValueError(f"a cell of a kind that is not known here: {cell['type']}")
    needs = {y: [b for k, b in pin.items() if k != "Y"] for y, (_, pin) in gates.items()}
    order = [y for y in TopologicalSorter(needs).static_order() if y in gates]
    name = lambda bit: f"v[{bit}]" if isinstance(bit, int) else str(int(bit == "1"))  # noqa: E731
    lines = ["def step(v):"]
    for y in order:
        kind, pin = gates[y]
        lines.append(f" v[{y}] = " + _GATE[kind].format(**{k: name(b) for k, b in pin.items()}))
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    return scope["step"], flip_flops, [*order, *(q for *_, q in flip_flops)]
