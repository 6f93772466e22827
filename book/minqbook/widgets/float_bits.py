"""Numbers bit by bit: float32, bfloat16, float16, two FP8 formats, INT8 and INT4."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import traitlets

from minq import floats
from minq.grid import integer_grid
from minqbook.widgets.base import Widget, within

FORMATS: dict[str, Any] = {
    "float32": floats.FloatFormat("float32", 8, 23, "ieee"),
    "bfloat16": floats.FloatFormat("bfloat16", 8, 7, "ieee"),
    "float16": floats.FloatFormat("float16", 5, 10, "ieee"),
    "FP8 E4M3": floats.E4M3,
    "FP8 E5M2": floats.E5M2,
    "INT8": 8,
    "INT4": 4,
}
"""A float format, or the bits of a signed integer."""


class FloatBits(Widget):
    """A number's bits, to be turned over one by one, and the number in other formats.

    number: what is shown at first, rounded to ``format``. format: a key of ``FORMATS``, in which
    the bits are shown. The reader's number stays what it is when another format is chosen, and that
    one shows its nearest value; ``origin`` is the format in which it was last given, ``code`` its
    bits there.

    ``result()`` has what the page computes.

    >>> w = FloatBits(0.1, "FP8 E4M3")
    >>> w
    FloatBits(format='FP8 E4M3', value=0.101562, origin='float32', code=1036831949)
    >>> w.result()["bits"], w.result()["kind"], w.result()["below"], w.result()["above"]
    ('00011101', 'normal', 0.09375, 0.109375)

    Raises ValueError for a number that float32 does not hold, and for a code beyond its format's.
    """

    format = traitlets.Enum(list(FORMATS), "float32").tag(sync=True)
    origin = traitlets.Enum(list(FORMATS), "float32").tag(sync=True)
    code = traitlets.Int(0).tag(sync=True)
    shown = ("format", "value", "origin", "code")

    def __init__(
        self,
        number: float = 0.1,
        format: str = "float32",
        *,
        alt: str = "The bits of a number in rows of switches, by sign, exponent and mantissa; the "
        "ranges of seven formats on a logarithmic line with the number on it; and the number's "
        "neighbours in the chosen format.",
        **traits: Any,
    ) -> None:
        if "code" not in traits:
            traits["code"] = _encode(float(number), FORMATS[traits.get("origin", "float32")])
            if math.isfinite(number) and abs(number) > FORMATS["float32"].largest:
                raise ValueError(f"number {number} is too large for float32, which ends at 3.4e38")
        super().__init__(format=format, alt=alt, **traits)

    @property
    def value(self) -> float:
        """The number in the chosen format."""
        return self.result()["value"]

    def result(self) -> dict[str, Any]:
        """What the page shows, see ``convert``."""
        return convert(self.format, self.origin, self.code)

    @traitlets.validate("code")
    def _check_code(self, proposal: Any) -> int:
        return within(proposal, 0, 2 ** _bits(FORMATS[self.origin]) - 1, f" in {self.origin}")


def convert(format: str, origin: str, code: int) -> dict[str, Any]:
    """The number of a code of one format, in another.

    given, the code's number; value, the nearest of ``format``; code and bits of that; kind: zero,
    subnormal, normal, infinity, NaN or integer; below and above, its neighbours (the largest
    number's is None, or infinity where the format has one).

    >>> convert("INT4", "INT8", 0b1111_1001)["bits"]  # -7
    '1001'
    """
    given, kind = _decode(code, FORMATS[origin]), FORMATS[format]
    if format != origin:
        code = _encode(given, kind)
    value = _decode(code, kind)
    below, above = (_neighbour(value, kind, way) for way in (-1, 1))
    return {
        "given": given,
        "value": value,
        "code": code,
        "bits": f"{code:0{_bits(kind)}b}",
        "kind": _kind(value, kind),
        "below": below,
        "above": above,
    }


def _bits(kind: Any) -> int:
    return kind if isinstance(kind, int) else kind.bits


def _decode(code: int, kind: Any) -> float:
    if isinstance(kind, int):
        return float(code - (2**kind if code >> (kind - 1) else 0))
    return float(floats.decode(np.array(code), kind))


def _encode(x: float, kind: Any) -> int:
    """The code of the number next to x; beyond the largest it is that one, unless x is infinite."""
    if isinstance(kind, int):
        n, p = integer_grid(kind, signed=True)
        k = 0 if math.isnan(x) else round(min(max(x, n), p))
        return k % 2**kind
    size = kind.exponent_bits + kind.mantissa_bits
    if math.isnan(x):
        return 2**size - 1
    sign = 2**size if math.copysign(1, x) < 0 else 0
    if math.isinf(x) and kind.special == "ieee":
        return sign + 2**size - 2**kind.mantissa_bits
    u = abs(floats.fake_quantize_float([min(max(x, -1e300), 1e300)], kind).item())
    e = max(math.frexp(u)[1] - 1, 1 - kind.bias) if u else 1 - kind.bias
    return (
        sign + (e + kind.bias - 1) * 2**kind.mantissa_bits + int(u / 2 ** (e - kind.mantissa_bits))
    )


def _neighbour(value: float, kind: Any, way: int) -> float | None:
    """The next number up (way 1) or down (-1); None beyond the ends, and of what is no number."""
    if math.isnan(value):
        return None
    if isinstance(kind, int):
        n, p = integer_grid(kind, signed=True)
        return value + way if n <= value + way <= p else None
    code, half = _encode(abs(value), kind), 2 ** (kind.bits - 1)
    outward = value == 0 or (value > 0) == (way > 0)
    if outward and code + 1 >= half:
        return None
    size = _decode(code + 1 if outward else code - 1, kind)
    if math.isnan(size) or math.isinf(value) and outward:
        return None
    return math.copysign(size, way if value == 0 else value)


def _kind(value: float, kind: Any) -> str:
    if isinstance(kind, int):
        return "integer"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity"
    if value == 0:
        return "zero"
    return "normal" if abs(value) >= 2.0 ** (1 - kind.bias) else "subnormal"
