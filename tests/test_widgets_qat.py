"""Descent and RangePull in Python: what they send, show and refuse."""

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

from minq.affine import scale_zero_point
from minqbook.widgets import Descent, RangePull

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4)).astype("f4")
T = (0.7 * X + RNG.normal(0, 0.3, X.shape)).astype("f4")


def test_descent_sends_what_the_loss_needs():
    w = Descent(X, T)
    for weight in (-1.0, 0.3, w.optimum):
        xx, xt, tt = w.moments
        loss = np.mean((weight * X.astype(float) - T.astype(float)) ** 2)
        assert xx * weight**2 - 2 * xt * weight + tt == pytest.approx(loss, rel=1e-12)
    best = np.linalg.lstsq(X.astype(float).reshape(-1, 1), T.astype(float).ravel(), rcond=None)[0]
    assert w.optimum == pytest.approx(best[0], rel=1e-12)
    assert w.limit == pytest.approx(1.6 * best[0]) and w.start == pytest.approx(-0.96 * best[0])
    assert repr(Descent(X, T, start=0.25, limit=1, bits=2)) == (
        "Descent(bits=2, rate=0.1, gradient='straight-through', start=0.25, step=0)"
    )
    assert Descent([1.0, -1.0], [1.0, 1.0]).limit == 1  # the best weight is 0


@pytest.mark.parametrize(
    ("arguments", "traits", "says"),
    [
        ((X, T[:3]), {}, "one shape"),
        ((0 * X, T), {}, "all zero"),
        ((X, T * np.nan), {}, "target"),
        ((X, T), {"bits": 1}, "from 2 to 8"),
        ((X, T), {"rate": 3.0}, "from 0.001 to 2"),
        ((X, T), {"step": 121}, "from 0 to 120"),
        ((X, T), {"limit": 1.0, "start": -1.5}, "1.25 times the limit"),
        ((X, T), {"limit": float("nan")}, "limit must be"),
        ((X, T), {"gradient": "best"}, "best"),
    ],
)
def test_descent_refuses(arguments, traits, says):
    with pytest.raises((ValueError, traitlets.TraitError), match=says):
        Descent(*arguments, **traits)


def test_range_pull_starts_at_min_max():
    w = RangePull(X, 3)
    s, z = scale_zero_point(float(X.min()), float(X.max()), 3)
    assert (w.scale, w.zero_point) == (pytest.approx(float(s)), int(z))
    assert np.frombuffer(w.data, "<f4").tolist() == X.ravel().tolist()
    w.bits = 2  # the zero-point stays on the grid
    assert 0 <= w.zero_point <= 3
    signed = RangePull(X, 4, signed=True)
    assert signed.zero_point == 0 and signed.scale * 8 >= np.abs(X).max() * (7 / 8)
    assert repr(RangePull(X, scale=0.5, zero_point=3)) == (
        "RangePull(bits=4, scale=0.5, zero_point=3, signed=False)"
    )


@pytest.mark.parametrize(
    ("data", "traits", "says"),
    [
        (0 * X, {}, "all zero"),
        (X * np.inf, {}, "data"),
        (np.ones(10_001), {}, "at most 10,000"),
        (X, {"bits": 9}, "from 2 to 8"),
        (X, {"scale": 0.0}, "scale must be"),
        (X, {"zero_point": 16}, "from 0 to 15 at 4 bits"),
        (X, {"signed": True, "zero_point": 1}, "zero_point 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_range_pull_refuses(data, traits, says):
    with pytest.raises((ValueError, traitlets.TraitError), match=says):
        RangePull(data, **traits)


def test_text_stands_for_the_picture():
    for w in (Descent(X, T), RangePull(X)):
        assert w._repr_mimebundle_()[0]["text/plain"] == f"{w!r}\n{w.alt}"
