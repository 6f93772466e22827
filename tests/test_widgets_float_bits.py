"""FloatBits in Python: codes and neighbours are those of NumPy and ml_dtypes; what it refuses."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("anywidget")

from minqbook.widgets import FloatBits
from minqbook.widgets.float_bits import convert

TYPES = {
    "float32": (np.float32, np.uint32),
    "bfloat16": (ml_dtypes.bfloat16, np.uint16),
    "float16": (np.float16, np.uint16),
    "FP8 E4M3": (ml_dtypes.float8_e4m3fn, np.uint8),
    "FP8 E5M2": (ml_dtypes.float8_e5m2, np.uint8),
}
SPECIAL = [0.0, -0.0, 1.0, -2.5, 1e-45, -1e-40, 65520.0, 3.4e38, math.inf, -math.inf, math.nan]


def codes(name, sample=150):
    """All codes of a small format; of a large one the ends of its fields and a sample."""
    bits = np.iinfo(TYPES[name][1]).bits
    if bits == 8:
        return list(range(256))
    ends = {k + d for k in (2 ** (bits - 1), *(2**j for j in range(bits))) for d in (-1, 0, 1)}
    drawn = np.random.default_rng(0).integers(0, 2**bits, sample).tolist()
    return sorted({c for c in ends if c < 2**bits} | set(drawn))


def same(a, b):
    return a == b and math.copysign(1, a) == math.copysign(1, b) or math.isnan(a) and math.isnan(b)


@pytest.mark.parametrize("name", TYPES)
def test_values_and_neighbours(name):
    kind, whole = TYPES[name]
    for code in codes(name):
        found = convert(name, name, code)
        x = whole(code).view(kind)
        assert same(found["value"], float(x)) and found["bits"].endswith(f"{code:b}")
        if math.isnan(x):
            assert found["kind"] == "NaN" and found["below"] is found["above"] is None
            continue
        for way, key in ((1, "above"), (-1, "below")):
            with np.errstate(all="ignore"):
                beyond = float(
                    np.nextafter(x, kind(way * math.inf if name != "FP8 E4M3" else way * 448))
                )
            if name == "FP8 E4M3" and float(x) == way * 448 or math.isinf(x) and float(x) * way > 0:
                assert found[key] is None
            else:
                assert found[key] == beyond, (code, key)
        tiny = float(ml_dtypes.finfo(kind).smallest_normal)
        sizes = {"zero": x == 0, "infinity": math.isinf(x), "normal": tiny <= abs(x) < math.inf}
        assert found["kind"] == next((k for k, v in sizes.items() if v), "subnormal")


@pytest.mark.parametrize("name", TYPES)
def test_another_format_shows_the_nearest(name):
    kind, whole = TYPES[name]
    largest = float(ml_dtypes.finfo(kind).max)
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=60) * 2.0 ** rng.integers(-30, 20, 60)
    for x in np.float32([*SPECIAL, *drawn]):
        found = FloatBits(float(x), name).result()
        held = x if np.isinf(x) and name != "FP8 E4M3" else np.clip(x, -largest, largest)
        want = held.astype(kind)
        assert same(found["value"], float(want)), x
        assert math.isnan(x) or found["code"] == int(want.view(whole))


@pytest.mark.parametrize("bits", [4, 8])
def test_integers(bits):
    for code in range(2**bits):
        found = convert(f"INT{bits}", f"INT{bits}", code)
        value = int(np.int8(np.uint8(code << (8 - bits)).view(np.int8) >> (8 - bits)))
        assert found["value"] == value and found["kind"] == "integer"
        assert found["above"] == (value + 1 if value < 2 ** (bits - 1) - 1 else None)
        assert found["below"] == (value - 1 if value > -(2 ** (bits - 1)) else None)
    for x, want in ((2.5, 2), (3.5, 4), (1e9, 2 ** (bits - 1) - 1), (-1e9, -(2 ** (bits - 1)))):
        assert FloatBits(x, f"INT{bits}").value == want
    assert FloatBits(math.nan, f"INT{bits}").value == 0


@pytest.mark.parametrize(
    "arguments, settings, words",
    [
        ((1e39,), {}, "too large for float32"),
        ((), {"code": 2**32}, "from 0 to 4294967295 in float32"),
        ((), {"code": 16, "origin": "INT4"}, "from 0 to 15 in INT4"),
        ((1.0, "float64"), {}, "float64"),
    ],
)
def test_it_refuses(arguments, settings, words):
    import traitlets

    with pytest.raises((ValueError, traitlets.TraitError), match=words):
        FloatBits(*arguments, **settings)
