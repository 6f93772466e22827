"""NumberGrids in Python: what it computes, sends and refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("anywidget")

from minqbook.widgets import NumberGrids
from minqbook.widgets.number_grids import GRIDS

TYPES = {
    "INT4": (np.int8, 7),
    "INT8": (np.int8, 127),
    "FP4 E2M1": (ml_dtypes.float4_e2m1fn, 6),
    "FP8 E4M3": (ml_dtypes.float8_e4m3fn, 448),
    "FP8 E5M2": (ml_dtypes.float8_e5m2, 57344),
}


def values(size=200, seed=0):
    return np.float32(np.random.default_rng(seed).standard_t(3, size))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("reach", [1.0, 0.3])
def test_it_quantizes_as_ml_dtypes_does(name, block, reach):
    w = NumberGrids({"a": values()}, format=name, block=block, reach=reach)
    found, (kind, largest) = w.result(), TYPES[name]
    clipped = 0
    for start in range(0, 200, block or 200):
        x = values().astype(float)[start : start + (block or 200)]
        s = reach * np.abs(x).max() / largest
        low = -largest - 1 if name.startswith("INT") else -largest
        u = np.clip(x / s, low, largest)
        u = np.rint(u) if name.startswith("INT") else u
        want = u.astype(kind).astype(float) * s
        np.testing.assert_allclose(found["x_hat"][start : start + len(x)], want, rtol=1e-12)
        clipped += (np.abs(x / s) > largest + 1e-6).sum()
    assert found["clipped"] == clipped / 200 and (clipped > 0) == (reach < 1)
    assert found["bits"] == (4 if "4" in name[:4] else 8) + 16 / (block or 200)


def test_mxfp4_is_one_of_them():
    from minq.floats import mx_fake_quantize

    w = NumberGrids({"a": values()}, format="FP4 E2M1", block=32, powers=True)
    x = values().astype(float)
    np.testing.assert_array_equal(w.result()["x_hat"], mx_fake_quantize(x, block=32))
    assert w.result()["bits"] == 4.25


def test_what_travels():
    w = NumberGrids({"a": values(), "b": values(9, 1)}, tensor=1)
    assert w.sizes == [200, 9] and len(w.data) == 4 * 209
    assert np.array_equal(np.frombuffer(w.data, "<f4")[200:], values(9, 1))
    assert "tensor=1" in repr(w)


@pytest.mark.parametrize(
    "data, settings, words",
    [
        ({}, {}, "empty"),
        ({"a": [np.nan]}, {}, "NaN"),
        ({"a": [0.0]}, {}, "all zero"),
        ({str(k): np.ones(20_000) for k in range(3)}, {}, "more than 50,000"),
        ({"a": [1.0]}, {"tensor": 1}, "from 0 to 0"),
        ({"a": [1.0]}, {"reach": 0.0}, "reach must be"),
        ({"a": [1.0]}, {"zoom": 9}, "from 0 to 8"),
        ({"a": [1.0]}, {"shown_block": 1}, "from 0 to 0"),
    ],
)
def test_it_refuses(data, settings, words):
    with pytest.raises(ValueError, match=words):
        NumberGrids(data, **settings)
