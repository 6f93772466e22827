"""Granularity in Python: its scales against a plain loop, what travels, what is refused."""

import math

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

from minqbook.widgets import Granularity


def layer(channels=7, shape=(1, 5, 5), seed=0):
    """Channels over four orders of magnitude; one dead, one exactly zero, one of one sign."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(channels, *shape)) * np.logspace(0, -3, channels).reshape(-1, 1, 1, 1)
    w[2] = 0
    w[3] *= 1e-6
    w[4] = np.abs(w[4])
    return w.astype(np.float32)


def naive(x, bits, granularity, group, symmetric):
    """Each piece by itself, by the definition: (scale, x_hat) of every piece, in order."""
    length = math.prod(x.shape[1:])
    size = {"tensor": x.size, "channel": length, "group": group}[granularity]
    rows = [x.ravel()] if granularity == "tensor" else x.reshape(len(x), -1)
    n, p = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    found = []
    for row in rows:
        for start in range(0, len(row), size):
            piece = [float(v) for v in row[start : start + size]]
            low, high = min(*piece, 0.0), max(*piece, 0.0)
            scale = max(low / n, high / p) if symmetric else (high - low) / (p - n)
            scale = scale or 1.0
            z = 0 if symmetric else min(max(round(n - low / scale), n), p)
            found.append(
                (scale, [scale * (min(max(round(v / scale) + z, n), p) - z) for v in piece])
            )
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("granularity", "group", "shape"),
    [
        ("tensor", 1, ()),
        ("channel", 1, (7,)),
        ("group", 8, (7, 4)),  # 8 + 8 + 8 + 1
        ("group", 25, (7, 1)),
        ("group", 1, (7, 25)),
    ],
)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equals_a_plain_loop(bits, granularity, group, shape, symmetric):
    x = layer()
    how = dict(bits=bits, granularity=granularity, group=group, symmetric=symmetric)
    w = Granularity(x, **how)
    expected = naive(x, **how)
    assert w.grid[0].shape == shape and w.x_hat.shape == x.shape
    np.testing.assert_allclose(np.ravel(w.grid[0]), [s for s, _ in expected], rtol=1e-14)
    flat = [v for _, piece in expected for v in piece]
    np.testing.assert_allclose(w.x_hat.ravel(), flat, rtol=1e-14, atol=0)


def test_packs_and_prints():
    x = layer()
    w = Granularity(x)
    assert np.frombuffer(w.weights, "<f4").tolist() == x.ravel().tolist() and w.channels == 7
    assert repr(w) == (
        "Granularity(shape=(7, 1, 5, 5), bits=4, granularity='tensor', group=8, symmetric=True)"
    )
    assert w._repr_mimebundle_()[0]["text/plain"] == f"{w!r}\n{w.alt}"
    assert w.dead.tolist() == [False, False, True, True, False, False, False]
    assert w.channel == 6  # the smallest one that is not dead
    assert Granularity(x, channel=2).channel == 2
    assert Granularity(x[:, :, :1, :1]).group == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(weights=np.zeros((3, 4))), "all zero"),
        (dict(weights=np.ones(4)), "channels first"),
        (dict(weights=np.full((2, 2), np.nan)), "NaN"),
        (dict(weights=np.ones((0, 3))), "empty"),
        (dict(weights=np.ones((1001, 100))), "at most 100,000"),
        (dict(weights=layer(), bits=1), "bits must be from 2 to 8"),
        (dict(weights=layer(), group=26), "from 1 to 25"),
        (dict(weights=layer(), group=0), "from 1 to 25"),
        (dict(weights=layer(), channel=7), "from 0 to 6"),
        (dict(weights=layer(), channel=-1), "from 0 to 6"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        Granularity(**arguments)


def test_bad_types_are_refused():
    with pytest.raises(TypeError, match="floating point"):
        Granularity(np.ones((2, 2), int))
    for change in (dict(granularity="row"), dict(scale_bits=8), dict(order="random")):
        with pytest.raises(traitlets.TraitError):
            Granularity(layer(), **change)
