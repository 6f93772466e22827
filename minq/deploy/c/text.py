"""The text of the two files."""

from __future__ import annotations

from collections.abc import Sequence

from minq.deploy.c.arena import Placed
from minq.deploy.c.emit import Emitter, shape_of
from minq.deploy.c.lower import Lowering
from minq.deploy.c.steps import Call
from minq.deploy.c.views import Array


def files(
    name: str, low: Lowering, calls: Sequence[Call], plan: Sequence[Placed], emitter: Emitter
) -> tuple[str, str]:
    """name.c and name.h."""
    emitter.taken = {emitter.name(a) for call in calls for a in (*call.reads, call.writes)}
    body = _body(calls, plan, emitter)  # first, since it finds what constants there are
    for array in dict.fromkeys(a for c in calls for a in c.reads if a.where == "constant"):
        emitter.constant(array)
    size = max((p.end for p in plan), default=0)
    return _source(name, low, emitter, body, size), _header(name, low, emitter, size)


def _body(calls: Sequence[Call], plan: Sequence[Placed], emitter: Emitter) -> str:
    """Where results lie, then a call for each step."""
    lives, lines = {p.name: p for p in plan}, []
    for array in dict.fromkeys(c.writes for c in calls):
        if (p := lives.get(array.name)) is not None:
            lines.append(f"{emitter.pointer(array)} /* steps {p.first} to {p.last} */")
    for k, call in enumerate(calls):
        reads = ", ".join(map(shape_of, call.reads))
        into = shape_of(call.writes)
        lines += ["", f"    /* {k}: {call.name}, {reads} to {into} */", *emitter.call(call)]
    return "\n".join(lines).strip("\n")


def _source(name: str, low: Lowering, emitter: Emitter, body: str, size: int) -> str:
    functions = "\n".join([emitter.base(), *emitter.functions.values()])
    constants = "\n".join([*map(str, emitter.arrays), *emitter.structs.values()])
    memory = (
        f"/* All results, each in its place while it is needed */\n"
        f"static union {{\n    int64_t align;\n    uint8_t bytes[{size}];\n}} arena;\n"
        f"typedef char arena_is_as_planned"
        f"[sizeof(arena) >= {name.upper()}_ARENA_BYTES &&\n"
        f"    sizeof(arena) < {name.upper()}_ARENA_BYTES + 8 ? 1 : -1];\n"
    ) * bool(size)
    return (
        f"/* {name}.c, written by minq: a quantized network on integers alone.\n"
        f"   Numbers of a pixel lie side by side, (height, width, channels). */\n\n"
        f'#include "{name}.h"\n\n{functions}\n/* --- Constants --- */\n\n{constants}\n\n'
        f"/* --- The network --- */\n\n{memory}\n{_signature(name, low, emitter)}\n"
        f"{{\n{body}\n}}\n"
    )


def _signature(name: str, low: Lowering, emitter: Emitter) -> str:
    """void name(const uint8_t *x, int8_t *y)"""
    inputs = [f"const {emitter.ctype(a)} *{emitter.name(a)}" for a, _ in low.inputs]
    outputs = [f"{emitter.ctype(a)} *{emitter.name(a)}" for a, _ in low.outputs]
    return f"void {name}({', '.join([*inputs, *outputs])})"


def _header(name: str, low: Lowering, emitter: Emitter, size: int) -> str:
    big, constants = name.upper(), sum(a.bytes for a in emitter.arrays)
    lines = [
        f"/* {name}.h, written by minq: a quantized network on integers alone.",
        f"   Constants have {constants:,} bytes, the arena {size:,}. */",
        "",
        f"#ifndef {big}_H",
        f"#define {big}_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define {big}_ARENA_BYTES {size}",
    ]
    for array, grid in low.inputs:
        ends = None if grid is None else grid.integers
        rule = "token ids" if ends is None else (
            f"clamp(round(v / scale) + zero point, {ends[0]}, {ends[1]})")  # fmt: skip
        lines += ["", f"/* Input {array.name}: {shape_of(array)}, {rule} */"]
        scale, zero = (None, 0) if grid is None else (grid.scale, int(grid.zero_point))
        lines += _numbers(big, array, scale, zero)
    for array, real in low.outputs:
        lines += ["", f"/* Output {array.name}: {shape_of(array)}, scale (y - zero point) */"]
        lines += _numbers(big, array, real.scales[0], real.zeros[0])
    declared = f"{_signature(name, low, emitter)};"
    lines += ["", _USE.replace("NAME", big), _C_IN_CPP.replace("DECLARED", declared), "#endif", ""]
    return "\n".join(lines)


_USE = """\
/* From inputs to outputs, which must not overlap. Nothing is allocated; the stack holds some
   hundred bytes. All calls share one static arena of NAME_ARENA_BYTES bytes, so no call may
   interrupt another. Weights are static const: they stay in flash. Arrays need no other
   alignment than their type has, and the code runs in either byte order. */"""

_C_IN_CPP = """\
#ifdef __cplusplus
extern "C" {
#endif
DECLARED
#ifdef __cplusplus
}
#endif
"""


def _numbers(big: str, array: Array, scale, zero: int) -> list[str]:
    start = f"#define {big}_{array.name.upper()}"
    lines = [f"{start}_SIZE {array.size}"]
    if scale is not None and scale.numel() == 1:
        lines += [f"{start}_SCALE {float(scale)!r}", f"{start}_ZERO_POINT ({zero})"]
    return lines
