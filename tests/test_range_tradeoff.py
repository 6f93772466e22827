"""RangeTradeoff in Python: its range, its grid, what travels, what is refused."""

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

from minqbook.widgets import RangeTradeoff

WEIGHTS = np.random.default_rng(0).standard_t(4, size=(20, 30)).astype(np.float32)


def test_starts_at_min_max_and_packs_the_data():
    w = RangeTradeoff(WEIGHTS, bits=3)
    assert (w.low, w.high) == (float(WEIGHTS.min()), float(WEIGHTS.max()))
    assert np.frombuffer(w.data, "<f4").tolist() == WEIGHTS.ravel().tolist()
    assert repr(w) == f"RangeTradeoff(bits=3, low={w.low:.6g}, high={w.high:.6g}, symmetric=False)"
    assert w._repr_mimebundle_()[0]["text/plain"] == f"{w!r}\n{w.alt}"
    relu = np.maximum(WEIGHTS, 0)
    assert RangeTradeoff(relu).low == 0 and RangeTradeoff(-relu).high == 0


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("data", [WEIGHTS, np.abs(WEIGHTS), -np.abs(WEIGHTS)], ids=["+-", "+", "-"])
def test_the_grid_covers_the_range(data, symmetric, bits):
    """Nothing inside the range errs by more than half a step; asymmetric ends move by as much."""
    w = RangeTradeoff(data, bits=bits, symmetric=symmetric)
    scale, zero_point = w.grid
    slack = 0.5 if symmetric else 1.0
    x = data.ravel().astype(np.float64)
    assert np.abs(w.x_hat - x).max() <= slack * scale * (1 + 1e-6)
    assert len(np.unique(w.x_hat)) <= 2**bits
    levels = w.x_hat / scale
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)
    if symmetric:
        assert zero_point == 0
        widest = float(np.abs(data).max())
        assert (w.low, w.high) == (-widest if data.min() < 0 else 0.0, widest)
        steps = 2 ** (bits - 1) - 1 if data.min() < 0 else 2**bits - 1
        assert scale == pytest.approx(widest / steps, rel=1e-12)
    else:
        assert scale == pytest.approx((w.high - w.low) / (2**bits - 1), rel=1e-12)


def test_a_range_can_be_given_and_set():
    w = RangeTradeoff(WEIGHTS, low=-1.0, high=2.0, bits=2)
    assert w.grid == (1.0, 1) and set(w.x_hat) == {-1.0, 0.0, 1.0, 2.0}
    w.symmetric = True  # the wider half counts, as on the page
    assert w.grid == (2.0, 0)
    assert RangeTradeoff(WEIGHTS, low=-1.0, high=2.0, symmetric=True).low == -2.0
    w.set_state({"low": -0.5, "high": 0.5, "symmetric": False})
    assert w.grid[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(data=np.zeros(4)), "all zero"),
        (dict(data=[1.0, float("nan")]), "NaN"),
        (dict(data=[]), "empty"),
        (dict(data=np.ones(20_001)), "at most 20,000"),
        (dict(data=WEIGHTS, bits=1), "bits must be from 2 to 8"),
        (dict(data=WEIGHTS, bits=9), "bits must be from 2 to 8"),
        (dict(data=WEIGHTS, low=0.5), "must contain 0"),
        (dict(data=WEIGHTS, low=0.0, high=0.0), "must contain 0"),
        (dict(data=WEIGHTS, high=1e4), "1.25 times the data"),
        (dict(data=WEIGHTS, high=float("nan")), "must contain 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        RangeTradeoff(**arguments)


def test_bad_changes_are_refused():
    w = RangeTradeoff(WEIGHTS)
    for name, value in [("low", 0.1), ("high", -0.1), ("low", -np.inf), ("high", np.nan)]:
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            setattr(w, name, value)
    with pytest.raises(ValueError, match="from 2 to 8"):
        w.bits = 16
    with pytest.raises(traitlets.TraitError):
        w.reveal = "yes"
    with pytest.raises(TypeError, match="floating point"):
        RangeTradeoff(np.arange(4))
