"""The same network in floats, for comparison: the same steps, memory and loops, other numbers.

Weights are those on their grids, as real numbers; activations are not rounded. What a table is on
integers calls the C library here.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, fx

from minq import graph
from minq.deploy.c import CNetwork
from minq.deploy.c.constants import CArray
from minq.deploy.c.emit import Emitter, weight_rows
from minq.deploy.c.lower import Lowering
from minq.deploy.c.steps import Call
from minq.deploy.c.views import Array
from minq.deploy.c.write import write
from minq.deploy.integer import IntegerNetwork

BASE = """\
#include <float.h>
#include <math.h>

/* What becomes of a sum: a factor, and the ends of a ReLU, one or one for each channel */
typedef struct {
    float factor;
    const float *low, *high;
    int32_t each;
} rescaling;

static float clip(float y, const rescaling *r, int32_t channel)
{
    const int32_t c = r->each ? channel : 0;
    y *= r->factor;
    return y < r->low[c] ? r->low[c] : y > r->high[c] ? r->high[c] : y;
}
"""

FUNCTIONS = {
    "rescale": """\
static void rescale_S(const float *x, float *y, int32_t n, int32_t channels, const rescaling *r)
{
    for (int32_t i = 0; i < n; i += channels)
        for (int32_t c = 0; c < channels; c++)
            y[i + c] = clip(x[i + c], r, c);
}
""",
    "add": """\
static void add_S(const float *a, const float *b, float *y, int32_t n, int32_t channels,
                  const rescaling *r)
{
    for (int32_t i = 0; i < n; i += channels)
        for (int32_t c = 0; c < channels; c++)
            y[i + c] = clip(a[i + c] + b[i + c], r, c);
}
""",
    "gelu": """\
static void gelu_S(const float *x, float *y, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
}
""",
    "tanh": """\
static void tanh_S(const float *x, float *y, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        y[i] = tanhf(x[i]);
}
""",
    "softmax": """\
static void softmax_S(const float *x, float *y, int32_t rows, int32_t width, float factor)
{
    for (int32_t row = 0; row < rows; row++, x += width, y += width) {
        float most = x[0], total = 0;
        for (int32_t i = 1; i < width; i++)
            most = x[i] > most ? x[i] : most;
        for (int32_t i = 0; i < width; i++)
            total += y[i] = expf(factor * (x[i] - most));
        for (int32_t i = 0; i < width; i++)
            y[i] /= total;
    }
}
""",
    "layer_norm": """\
static void layer_norm_S(const float *x, float *y, int32_t rows, int32_t width, float eps,
                         const float *gamma, const float *beta)
{
    for (int32_t row = 0; row < rows; row++, x += width) {
        float mean = 0, variance = 0;
        for (int32_t i = 0; i < width; i++)
            mean += x[i] / width;
        for (int32_t i = 0; i < width; i++)
            variance += (x[i] - mean) * (x[i] - mean) / width;
        const float factor = 1 / sqrtf(variance + eps);
        for (int32_t i = 0; i < width; i++)
            *y++ = (x[i] - mean) * factor * gamma[i] + beta[i];
    }
}
""",
}


def to_float_c(net: IntegerNetwork, q: fx.GraphModule, folder: Path) -> CNetwork:
    """As ``minq.to_c``, in single precision.

    Args:
        net: the network on integers.
        q: the simulation that it comes from.
        folder: where the files go.
    """
    low = Lowering(net.program, net.one_sample()).run()
    return write(folder, "network", low, "memory", FloatEmitter(net, q, low))


class FloatEmitter(Emitter):
    """Single precision in place of integers."""

    def __init__(self, net: IntegerNetwork, q: fx.GraphModule, low: Lowering) -> None:
        super().__init__()
        behind = {n.target: n for n in q.graph.nodes if n.op == "call_module"}
        self.operators = {node: graph.op(behind[name].args[0]) for name, node in net.places.items()}
        self.scales = {a.name: grid.scale for a, grid in low.inputs if grid is not None}
        for name, node in net.places.items():
            self.scales[node] = q.get_submodule(name).scale_zero_point()[0].detach().double()
        for call in low.calls:
            if call.kind in ("add", "rescale") and call.rounding is not None:
                for array, scale in zip(call.reads, call.rounding.real.scales, strict=True):
                    self.scales.setdefault(array.name, scale)
            if call.rounding is not None:
                self.scales.setdefault(call.writes.name, call.rounding.grid.scale)
            if call.kind in ("join", "max_pool"):
                self.scales.setdefault(call.writes.name, self.scales[call.reads[0].name])

    def base(self) -> str:
        return BASE

    def ctype(self, array: Array) -> str:
        return "int32_t" if array.where == "input" and self._is_index(array) else "float"

    def short(self, array: Array) -> str:
        return "i32" if self.ctype(array) == "int32_t" else "f"

    def _is_index(self, array: Array) -> bool:
        return array.name not in self.scales

    def bytes(self, array: Array) -> int:
        return 4 * array.size

    def patch(self, call: Call) -> str:
        return "float"

    def store(self, rounds: bool) -> str:
        return r"clip(\1, r, \2)" if rounds else r"\1"

    def given(self) -> dict[str, str]:
        return {"a": "float", "least": "-FLT_MAX"}

    def _floats(self, name: str, values: Tensor) -> str:
        return self.array(name, "float", values.double().flatten().tolist())

    def weight(self, call: Call) -> tuple[str, str]:
        real = self._real(call) / self.scales[call.reads[0].name]
        w: Tensor = call.module.weight  # type: ignore[union-attr, assignment]
        w = w * real.reshape(-1, *[1] * (w.ndim - 1))
        return self._floats(f"{call.name}_weight", weight_rows(call, w)), "f"

    def bias(self, call: Call) -> str:
        layer = call.module
        assert layer is not None
        unfolded = layer.bias + layer.zero * layer.weight.long().flatten(1).sum(1)
        return self._floats(f"{call.name}_bias", unfolded * self._real(call).flatten())

    def _real(self, call: Call) -> Tensor:
        """s_w s_x of a layer."""
        assert call.rounding is not None, f"{call.name} has no quantizer behind it"
        return call.rounding.real.scales[0]

    def function(self, call: Call, w: str = "", stored: bool = True, kind: str = "") -> str:
        kind = kind or call.kind
        if kind not in FUNCTIONS:
            return super().function(call, w, stored, kind)
        self.functions.setdefault(f"{kind}_f", FUNCTIONS[kind].replace("_S(", "_f("))
        return f"{kind}_f"

    def _rounding(self, call: Call) -> tuple:
        if call.rounding is None:
            return ()
        real, name = call.rounding.real, call.writes.name
        factor = self._factor(call) / getattr(call.module, "factor", 1)
        ends = [real.low.clamp(min=-3e38).flatten(), real.high.clamp(max=3e38).flatten()]
        each = int(max(len(v) for v in ends) > 1)
        ends = [v.expand(self._channels(call)) if each and len(v) == 1 else v for v in ends]
        low, high = self._floats(f"{name}_low", ends[0]), self._floats(f"{name}_high", ends[1])
        fields = f"{factor:.9e}f, {low}, {high}, {each}"
        return (self.struct("rescaling", f"{name}_rescaling", fields),)

    def _channels(self, call: Call) -> int:
        y = call.writes
        return y.shape[1] if y.channels_last else y.shape[-1]

    def _factor(self, call: Call) -> float:
        """Of a product of two tensors, as 1 / sqrt(d): it is a part of its scale."""
        if call.kind != "matmul":
            return 1.0
        a, b = (self.scales[x.name] for x in call.reads)
        return float(self._real(call) / (a * b))

    def _window(self, call: Call) -> str:
        call.numbers["zero"] = 0
        return super()._window(call)

    def _resample(self, call: Call) -> list[str]:
        call.numbers["zero"] = 0
        return super()._resample(call)

    def _matmul(self, call: Call) -> list[str]:
        call.numbers["zeros"] = (0, 0)
        return super()._matmul(call)

    def _join(self, call: Call) -> list[str]:
        if call.numbers["level"] is not None:
            call.numbers["level"] = 0
        return super()._join(call)

    def _rescale(self, call: Call) -> list[str]:
        sizes = call.writes.size, self._channels(call)
        rest = (*self._pointers(call), *sizes, *self._rounding(call))
        return self._line(self.function(call), *rest)

    def _table(self, call: Call) -> list[str]:
        function = self.function(call, kind=self.operators[call.writes.name])
        return self._line(function, *self._pointers(call), call.writes.size)

    def _lookup(self, call: Call) -> list[str]:
        rows: Tensor = call.module.weight  # type: ignore[union-attr, assignment]
        values = self._floats(f"{call.name}_rows", rows * self.scales[call.writes.name])
        rest = (call.reads[0].size, rows.shape[1:].numel(), values)
        return self._line(self.function(call), *self._pointers(call), *rest)

    def _softmax(self, call: Call) -> list[str]:
        width = call.numbers["width"]
        factor = call.module.scale / self.scales[call.reads[0].name]  # type: ignore[union-attr]
        rest = (call.writes.size // width, width, f"{float(factor):.9e}f")
        return self._line(self.function(call), *self._pointers(call), *rest)

    def _layer_norm(self, call: Call) -> list[str]:
        width, m = call.numbers["width"], call.module
        assert m is not None
        unit, step = m.multipliers, self.scales[call.writes.name]
        one = 2.0 ** -unit.shift.double() * step
        gamma = (unit.values[0] * one * 2.0**24).expand(width) if unit.values[0].ndim == 0 else (
            unit.values[0] * one * 2.0**24)  # fmt: skip
        beta = (unit.offset * one).broadcast_to(gamma.shape)
        eps = float(m.epsilon / 4.0**m.up * (self.scales[call.reads[0].name] / width) ** 2)
        arrays = self._floats(f"{call.name}_gamma", gamma), self._floats(f"{call.name}_beta", beta)
        rest = (call.writes.size // width, width, f"{eps:.9e}f", *arrays)
        return self._line(self.function(call), *self._pointers(call), *rest)

    def constant(self, array: Array) -> None:
        assert array.values is not None
        values = array.values.double() * self.scales[array.name]
        self.arrays.append(CArray(self.name(array), "float", values.flatten().tolist()))
