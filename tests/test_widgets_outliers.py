"""OutlierMap in Python: what it computes, sends and refuses."""

import numpy as np
import pytest

pytest.importorskip("anywidget")

from minq.affine import fake_quantize, scale_zero_point, sqnr
from minq.ranges import grouped
from minqbook.widgets import OutlierMap

TOKENS = ["[CLS]", "a", "cat", "[SEP]"]


def activations(seed=0):
    x = np.random.default_rng(seed).normal(size=(4, 24))
    x[0, 5] = 150
    return x


@pytest.mark.parametrize("groups", [1, 2, 24])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_it_quantizes_as_the_library_does(bits, groups):
    w = OutlierMap({"sum": activations()}, TOKENS, bits=bits, groups=groups)
    x = w.values[0].astype(float)
    scale, zero_point = scale_zero_point(*grouped(x, groups), bits)
    x_hat = fake_quantize(x, scale, zero_point, bits, axis=1)
    found = w.result()
    np.testing.assert_array_equal(found["x_hat"], x_hat)
    assert found["sqnr"] == pytest.approx(sqnr(x, x_hat))
    per_token = sorted(sqnr(a, b) for a, b in zip(x, x_hat, strict=True))
    assert found["typical"] == pytest.approx(per_token[2])
    mean = np.mean((x - x_hat) ** 2)
    assert found["rounding"] + found["clipping"] == pytest.approx(mean)
    assert found["rounding"] <= scale.max() ** 2 / 4


def test_clipping_costs_the_giant_and_pays_for_the_others():
    w = OutlierMap({"sum": activations()}, TOKENS)
    before = w.result()
    assert before["clipped"] == 0 == before["clipping"]
    w.clip = 0.03
    after = w.result()
    assert after["clipping"] > 100 and after["x_hat"].max() == pytest.approx(4.5, rel=0.02)
    assert after["typical"] > before["typical"] + 20 and after["sqnr"] < before["sqnr"]
    assert after["levels"] >= before["levels"]


def test_the_largest_value_is_picked_and_float16_travels():
    w = OutlierMap({"a": activations(1) / 50, "b": activations()}, TOKENS, tensor=1)
    assert (w.token, w.channel) == (0, 5)
    assert np.array_equal(np.frombuffer(w.data, "<f2").reshape(2, 4, 24), w.values)
    np.testing.assert_allclose(w.values[1], activations(), rtol=2**-11)
    assert len(w.data) == 2 * 2 * 96
    one, other = (w._repr_mimebundle_()[0]["text/plain"] for _ in range(2))
    assert one == other and len(one.split("\n")[1]) > 60


@pytest.mark.parametrize(
    "tensors, settings, words",
    [
        ({}, {}, "empty"),
        ({"a": activations(), "b": np.ones((4, 3))}, {}, "one shape"),
        ({"a": np.ones(4)}, {}, "one shape"),
        ({"a": np.ones((3, 24))}, {}, "4 tokens are named"),
        ({"a": np.full((4, 24), 1e6)}, {}, "beyond float16"),
        ({"a": np.full((4, 24), np.nan)}, {}, "NaN"),
        ({str(k): np.ones((4, 9000)) for k in range(3)}, {}, "more than"),
        ({"a": activations()}, {"groups": 25}, "from 1 to 24"),
        ({"a": activations()}, {"bits": 3}, "from 4 to 16"),
        ({"a": activations()}, {"clip": 0.0}, "of the range"),
        ({"a": activations()}, {"channel": 24}, "from 0 to 23"),
        ({"a": activations()}, {"tensor": 1}, "from 0 to 0"),
    ],
)
def test_it_refuses(tensors, settings, words):
    with pytest.raises(ValueError, match=words):
        OutlierMap(tensors, TOKENS, **settings)
