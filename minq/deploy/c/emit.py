"""Steps as C text: their constants, their calls, the functions they call."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from minq.deploy.c import kernels
from minq.deploy.c.arena import SCRATCH
from minq.deploy.c.constants import C_TYPES, WEIGHT_TYPES, CArray, Rescaling, short, weights
from minq.deploy.c.steps import Call
from minq.deploy.c.views import DEPTH, Array, in_memory

WORDS = {
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
    "extern", "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict",
    "return", "short", "signed", "sizeof", "static", "struct", "switch", "typedef", "union",
    "unsigned", "void", "volatile", "while",
    "alignas", "alignof", "and", "asm", "bool", "catch", "class", "compl", "constexpr", "decltype",
    "delete", "explicit", "export", "false", "friend", "mutable", "namespace", "new", "noexcept",
    "not", "nullptr", "operator", "or", "private", "protected", "public", "template", "this",
    "throw", "true", "try", "typeid", "typename", "using", "virtual", "xor",
    "window", "rescaling", "copying", "arena", "lower", "upper", "requantize",
}  # fmt: skip
"""What C, C++ or our own text means otherwise."""


def shape_of(array: Array) -> str:
    """32 x 32 x 3, as it lies in memory, without the batch."""
    shape = array.shape
    if array.channels_last:
        shape = (shape[0], *shape[2:], shape[1])
    return " x ".join(map(str, shape[1:] if shape[0] == 1 and len(shape) > 1 else shape))


def weight_rows(call: Call, w: Tensor) -> Tensor:
    """A layer's weights as its function reads them: a row for each output, or for each tap."""
    if call.kind == "depthwise":
        return w.permute(2, 3, 0, 1).flatten(0, 1).flatten(1)
    return (w.permute(0, 2, 3, 1) if w.ndim == 4 else w).flatten(1)


class Emitter:
    """Collects what the calls need, and gives the text of each."""

    def __init__(self, rounding: str = "half_even") -> None:
        self.rounding = rounding
        self.places: dict[str, int] = {}  # name of a result -> its offset in the arena
        self.arrays: list[CArray] = []
        self.functions: dict[str, str] = {}  # name -> code
        self.structs: dict[str, str] = {}  # name -> its line
        self.taken: set[str] = set()  # names of results, which would hide a constant's
        self._shared: dict[tuple, str] = {}

    def base(self) -> str:
        """What stands before all functions."""
        base = kernels.BASE
        for word, text in zip(("$how", "$odd", "$upper"), kernels.TIES[self.rounding], strict=True):
            base = base.replace(word, text)
        return base

    # --- types and names --------------------------------------------------------------------------

    def ctype(self, array: Array) -> str:
        return C_TYPES[array.dtype]

    def short(self, array: Array) -> str:
        """Of the type, for names of functions."""
        return short(C_TYPES[array.dtype])

    def bytes(self, array: Array) -> int:
        return array.bytes

    def store(self, rounds: bool) -> str:
        """What becomes of a layer's sums."""
        return kernels.STORES[rounds]

    def name(self, array: Array) -> str:
        return array.name + "_" * (array.name in WORDS)

    def pointer(self, array: Array) -> str:
        """A line that says where a result lies in the arena."""
        ctype, at = self.ctype(array), self.places[array.name]
        return f"    {ctype} *const {self.name(array)} = (void *)(arena.bytes + {at});"

    # --- constants --------------------------------------------------------------------------------

    def array(self, name: str, ctype: str, values: Iterable[int]) -> str:
        """A constant array; one that is there already is not written again."""
        values = list(values)
        key = (ctype, tuple(values))
        if len(values) > 4 or key not in self._shared:
            name = f"ONE_{len(self._shared)}" if len(values) == 1 else self._free(name)
            self.arrays.append(CArray(name, ctype, values))
            self._shared[key] = name
        return self._shared[key]

    def rescaling(self, name: str, r: Rescaling) -> str:
        """The struct of a requantization, as a compound of arrays."""
        fields = [
            ("multiplier", "int32_t", r.multipliers[0]),
            ("shift", "uint8_t", r.shift),
            *([("offset", "int64_t", r.offset)] if any(r.offset) else []),
            ("low", "int32_t", r.low),
            ("high", "int32_t", r.high),
        ]
        if len(r.multipliers) == 2:
            fields.insert(1, ("multiplier2", "int32_t", r.multipliers[1]))
        names = [(f, self.array(f"{name}_{f}", ctype, values)) for f, ctype, values in fields]
        parts = [f".{f} = {v}" for f, v in names]
        parts += [f".zero = {r.zero}"]
        flags = zip(("each", "each_offset", "each_bound"), r.each, strict=True)
        parts += [f".{flag} = 1" for flag, each in flags if each]
        return self.struct("rescaling", f"{name}_rescaling", ", ".join(parts))

    def _free(self, name: str) -> str:
        return self._free(f"{name}_") if name in self.taken else name

    def struct(self, kind: str, name: str, fields: str) -> str:
        """The address of a constant struct."""
        name = self._free(name)
        line = f"static const {kind} {name} = {{{fields}}};"
        self.structs[name] = "\n".join(textwrap.wrap(line, 116, subsequent_indent="    "))
        return f"&{name}"

    def weight(self, call: Call) -> tuple[str, str]:
        """The array of a layer's weights, a row for each output, and how they are stored."""
        w: Tensor = call.module.weight  # type: ignore[union-attr, assignment]
        kind, values = weights(weight_rows(call, w))
        return self.array(f"{call.name}_weight", WEIGHT_TYPES[kind], values), kind

    def bias(self, call: Call) -> str:
        values: Tensor = call.module.bias  # type: ignore[union-attr, assignment]
        return self.array(f"{call.name}_bias", "int32_t", values.tolist())

    # --- calls ------------------------------------------------------------------------------------

    def call(self, call: Call) -> list[str]:
        """The lines of a step."""
        ways: dict[str, Callable[[Call], list[str]]] = {
            "linear": self._linear, "conv2d": self._conv2d, "depthwise": self._depthwise,
            "matmul": self._matmul, "resample": self._resample, "max_pool": self._max_pool,
            "rescale": self._rescale, "add": self._rescale, "table": self._table,
            "lookup": self._lookup, "softmax": self._softmax, "layer_norm": self._layer_norm,
            "join": self._join,
        }  # fmt: skip
        return ways[call.kind](call)

    def function(self, call: Call, w: str = "", stored: bool = True, kind: str = "") -> str:
        """The name of the function for a call's types; its code is written once."""
        kind = kind or call.kind
        types = [("y", call.writes)] if kind == "fill" else [("x", call.reads[0])]
        if kind in ("matmul", "add"):
            types.append(("z", call.reads[1]))
        if kind != "fill":
            types.append(("y", call.writes))
        given = {k: self.ctype(a) for k, a in types}
        if w:
            given |= {"w": WEIGHT_TYPES[w], "W": w, "p": self.patch(call)}
        given |= self.given()
        shorts, end = [self.short(a) for _, a in types], "_sum" * (not stored)
        given["store"] = f"store_{shorts[-1]}{end}"
        given["filters"] = f"filters_{short(given['p'])}_{w}_{shorts[-1]}{end}" if w else ""
        suffix = "_".join([*shorts[:-1], *([w] if w else []), shorts[-1]]) + end
        name = f"{kind}_{suffix}"
        if name not in self.functions:
            self._before(kind, given, stored)
            self.functions[name] = kernels.code(kind, given, suffix, self.store(stored))
        return name

    def given(self) -> dict[str, str]:
        """Types beside those of inputs, outputs and weights."""
        return {}

    def patch(self, call: Call) -> str:
        """The type of the numbers that a layer gathers before it multiplies."""
        narrow = call.reads[0].dtype.itemsize <= 2
        return "int16_t" if narrow else self.ctype(call.reads[0])

    def scratch(self, call: Call) -> int:
        """Bytes of a call's patch."""
        return call.scratch * (2 if self.patch(call) == "int16_t" else 4)

    def _before(self, kind: str, types: dict[str, str], stored: bool) -> None:
        """What a function itself calls."""
        w = types.get("W", "")
        text = kernels.FUNCTIONS[kind]
        if "const window" in text:
            self.functions.setdefault("window", kernels.WINDOW)
        if kind == "move":
            self.functions.setdefault("copying", kernels.COPYING)
        if kind in ("softmax", "layer_norm"):
            self.functions.setdefault("divide", kernels.DIVIDE)
        if kind == "layer_norm":
            self.functions.setdefault("integer_sqrt", kernels.SQRT)
        if w == "i4":
            self.functions.setdefault("weight_i4", kernels.WEIGHT_I4)
        if "filters_S" in text:
            dot = kernels.fill(kernels.DOT_I4 if w == "i4" else kernels.DOT, types)
            self.functions.setdefault(re.findall(r"dot_\w+", dot)[0], dot)
        for part, called in (("store", ("store", "filters")), ("filters", ("filters",))):
            if any(f"{c}_S" in text for c in called):
                end = types[part].partition("_")[2]
                code = kernels.code(part, types, end, self.store(stored))
                self.functions.setdefault(types[part], code)

    def _line(self, function: str, *arguments: Any) -> list[str]:
        text, lines = f"    {function}(", []
        for k, argument in enumerate(arguments):
            word = str(argument) + (");" if k == len(arguments) - 1 else ", ")
            if len(text) + len(word) > 110 and text.strip():
                lines.append(text.rstrip())
                text = " " * 8
            text += word
        return [*lines, text]

    def _rounding(self, call: Call) -> tuple:
        """The last argument of a layer, where it rounds."""
        if call.rescaling is None:
            return ()
        return (self.rescaling(call.writes.name, call.rescaling),)

    def _pointers(self, call: Call) -> tuple:
        return tuple(map(self.name, (*call.reads, call.writes)))

    def _layer(self, call: Call, *between: Any, end: tuple) -> list[str]:
        weight, kind = self.weight(call)
        bias = self.bias(call)
        function = self.function(call, kind, call.rescaling is not None)
        rest = (*between, weight, bias, *end, *self._rounding(call))
        return self._line(function, *self._pointers(call), *rest)

    def _linear(self, call: Call) -> list[str]:
        n = call.numbers
        return self._layer(call, self._patch(call), end=(n["rows"], n["inputs"], n["outputs"]))

    def _conv2d(self, call: Call) -> list[str]:
        return self._layer(call, self._patch(call), end=(self._window(call),))

    def _patch(self, call: Call) -> str:
        """Where it lies in the arena."""
        at = self.places[call.writes.name + SCRATCH]
        return f"(void *)(arena.bytes + {at})"

    def _depthwise(self, call: Call) -> list[str]:
        return self._layer(call, self._patch(call), end=(self._window(call),))

    def _window(self, call: Call) -> str:
        n = call.numbers
        fields = [*n["size"], *n["out"], *n["kernel"], *n["stride"], *n["dilation"], *n["pad"],
                  n["groups"], n["zero"]]  # fmt: skip
        return self.struct("window", f"{call.name}_window", ", ".join(map(str, fields)))

    def _max_pool(self, call: Call) -> list[str]:
        return self._line(self.function(call), *self._pointers(call), self._window(call))

    def _matmul(self, call: Call) -> list[str]:
        n, function = call.numbers, self.function(call, stored=call.rescaling is not None)
        sizes = (n["stack"], n["rows"], n["columns"], n["inner"], *n["zeros"])
        return self._line(function, *self._pointers(call), *sizes, *self._rounding(call))

    def _resample(self, call: Call) -> list[str]:
        n, function = call.numbers, self.function(call, stored=call.rescaling is not None)
        size = ", ".join(map(str, (*n["size"], *n["out"])))
        none = ", 0" * 10
        window = self.struct("window", f"{call.name}_window", f"{size}{none}")
        arguments: list[Any] = [window, n["zero"]]
        for word, axis in zip("yx", n["axes"], strict=True):
            factors = [f for row in axis.factors for f in row]
            arguments += [
                self.array(f"{call.name}_start_{word}", "int16_t", axis.start),
                self.array(f"{call.name}_factor_{word}", "int32_t", factors),
                axis.taps,
            ]
        return self._line(function, *self._pointers(call), *arguments, *self._rounding(call))

    def _rescale(self, call: Call) -> list[str]:
        assert call.rescaling is not None
        sizes = (call.writes.size, call.rescaling.channels)
        rest = (*self._pointers(call), *sizes, *self._rounding(call))
        return self._line(self.function(call), *rest)

    def _table(self, call: Call) -> list[str]:
        ctype = C_TYPES[call.writes.dtype]
        values = self.array(f"{call.name}_values", ctype, call.module.table.tolist())  # type: ignore
        rest = (call.writes.size, values, call.numbers["low"])
        return self._line(self.function(call), *self._pointers(call), *rest)

    def _lookup(self, call: Call) -> list[str]:
        rows: Tensor = call.module.weight  # type: ignore[union-attr, assignment]
        ctype = C_TYPES[call.writes.dtype]
        values = self.array(f"{call.name}_rows", ctype, rows.flatten().tolist())
        rest = (call.reads[0].size, rows.shape[1:].numel(), values)
        return self._line(self.function(call), *self._pointers(call), *rest)

    def _softmax(self, call: Call) -> list[str]:
        width, m = call.numbers["width"], call.module
        table = self.array(f"{call.name}_exponential", "int32_t", m.table.tolist())  # type: ignore
        rest: tuple[Any, ...] = (call.writes.size // width, width, table, len(m.table) - 1)  # type: ignore
        rest += (m.multiplier, m.shift)  # type: ignore[union-attr]
        rest += self._rounding(call)
        return self._line(self.function(call), *self._pointers(call), *rest)

    def _layer_norm(self, call: Call) -> list[str]:
        width, m = call.numbers["width"], call.module
        rest: tuple[Any, ...] = (call.writes.size // width, width, m.zero, int(m.center), m.up)  # type: ignore
        rest += (f"INT64_C({m.epsilon})", *self._rounding(call))  # type: ignore[union-attr]
        return self._line(self.function(call), *self._pointers(call), *rest)

    def _join(self, call: Call) -> list[str]:
        y, lines = self.name(call.writes), []
        if (level := call.numbers["level"]) is not None:
            lines += self._line(self.function(call, kind="fill"), y, call.writes.size, level)
        for array, nest, start, into in call.numbers["moves"]:
            part = Call("move", call.name, [array], call.writes)  # fill has no input
            nest = [(1, 0, 0)] * (DEPTH - len(nest)) + nest
            columns = [", ".join(map(str, column)) for column in zip(*nest, strict=True)]
            fields = f"{{{'}, {'.join(columns)}}}"
            copying = self.struct("copying", f"{call.name}_copying_{len(lines)}", fields)
            x = self.name(array) + (f" + {start}" if start else "")
            to = y + (f" + {into}" if into else "")
            lines += self._line(self.function(part), x, to, copying)
        return lines

    # --- text -------------------------------------------------------------------------------------

    def constant(self, array: Array) -> None:
        """A tensor that does not depend on the input."""
        assert array.values is not None
        values = array.values
        if array.values.shape == array.shape:
            values = in_memory(array.values, array.channels_last)
        found = CArray(self.name(array), C_TYPES[array.dtype], values.flatten().tolist())
        self.arrays.append(found)
