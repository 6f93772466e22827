"""The bias shift in a browser: measured and computed alike, and both are those of Python."""

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import affine
from minqbook.widgets import BiasShift
from minqbook.widgets.bundle import bundle

WORDS = "root => root.querySelector('.mq-means').textContent"


def layer(channels=6, kernel=9, rows=60, depthwise=True, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(channels, kernel)) * np.exp(rng.normal(size=(channels, 1)))
    x = np.abs(rng.normal(1, 1, size=(rows, channels, kernel) if depthwise else (rows, kernel)))
    return tuple(np.float32(a) for a in (weight, x, rng.normal(size=channels)))


def outputs(w):
    """y and y_hat of all chosen channels, (N, channels), in float64."""
    weight, bias, x = (a.astype(float) for a in w.arrays)
    how = "nck,ck->nc" if x.ndim == 3 else "nk,ck->nc"
    return (np.einsum(how, x, v[w.channels]) + bias[w.channels] for v in (weight, w.w_hat))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_shift_is_pythons(js, depthwise, bits, per_channel):
    w = BiasShift(
        *layer(depthwise=depthwise), channels=[5, 0, 3], bits=bits, per_channel=per_channel
    )
    packed = np.frombuffer(w.data, "<f4").astype(float).tolist()
    source = bundle("bias_shift.js") + "\nexport { unpackLayer, roundWeights, shiftOf };"
    call = """(m, [data, sizes, channels, depthwise, bits, perChannel]) => {
        const P = m.unpackLayer(data, sizes, channels, depthwise);
        const hat = m.roundWeights(P, bits, perChannel);
        return [[...hat], channels.map((_, i) => ({ ...m.shiftOf(P, i, hat), y: 0, yHat: 0 }))];
    }"""
    hat, found = js(source, call, [packed, w.sizes, w.channels, depthwise, bits, per_channel])
    assert hat == w.w_hat.ravel().tolist()
    y, y_hat = outputs(w)
    for g, a, b, shift, share in zip(found, y.T, y_hat.T, w.shift, w.relative, strict=True):
        slack = 1e-13 * (np.abs(a).max() + np.abs(b).max())
        assert (g["mean"], g["meanHat"]) == pytest.approx((a.mean(), b.mean()), abs=slack)
        assert g["measured"] == pytest.approx(b.mean() - a.mean(), abs=slack)
        assert g["computed"] == pytest.approx(g["measured"], abs=slack)  # eq. (25)
        assert g["computed"] == pytest.approx(shift, abs=slack)
        assert sum(g["terms"]) == pytest.approx(shift, abs=slack)
        assert g["share"] == pytest.approx(share, rel=1e-9, abs=1e-12)


def test_shift_is_that_of_the_library(js):
    pytest.importorskip("torch")
    from minq.ptq.bias import output_shift

    w = BiasShift(*layer(depthwise=False), bits=3)
    weight, _, x = (a.astype(float) for a in w.arrays)
    np.testing.assert_allclose(w.shift, output_shift(w.w_hat - weight, x.mean(0)), atol=1e-12)


def assert_shows(widget, w):
    settle(widget)
    shown, at = readouts(widget), w.channels.index(w.channel)
    y, y_hat = outputs(w)
    shift = (y_hat - y).mean(0)
    share = 100 * shift[at] ** 2 / ((y_hat - y)[:, at] ** 2).mean()
    assert number(shown["E[ŷ] − E[y]"]) == pytest.approx(shift[at], rel=6e-4, abs=1e-9)
    assert shown["ΔW E[x]"] == shown["E[ŷ] − E[y]"]
    share_shown = number(shown["shift, share of MSE"].lstrip("< "))
    assert share_shown == pytest.approx(share, rel=0.06, abs=0.1)
    fixed = y_hat - shift if w.corrected else y_hat
    own, everywhere = (float(affine.sqnr(*p)) for p in ((y[:, at], fixed[:, at]), (y, fixed)))
    assert number(shown["SQNR of this channel"]) == pytest.approx(own, rel=6e-3, abs=0.01)
    assert number(shown["SQNR of all channels"]) == pytest.approx(everywhere, rel=6e-3, abs=0.01)
    # The two lines of the means stand as far apart as the means, and meet when corrected.
    u, v = widget.evaluate("""root => [...root.querySelectorAll('.mq-means path')].slice(0, 2)
        .map(p => +p.getAttribute('d').match(/M([-\\d.]+)/)[1])""")
    if w.corrected:
        assert u == pytest.approx(v, abs=0.11) and "no shift" in widget.evaluate(WORDS)
    else:
        assert np.sign(round(v - u, 1)) in (0, np.sign(shift[at]))
    assert not widget.broken_text()


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("width", [800, 375])
def test_controls(browser, tmp_path, depthwise, width):
    w = BiasShift(*layer(depthwise=depthwise), channels=[4, 2, 5, 0])
    with stage(browser, tmp_path, w, width=width, dark=width < 400) as widget:
        assert_shows(widget, w)
        for key, w.bits in (("Home", 2), ("ArrowRight", 3), ("End", 8), ("ArrowLeft", 7)):
            widget.slider("Bits").press(key)
            assert_shows(widget, w)
        for at, channel in enumerate(w.channels):
            w.channel = channel
            widget.slider("Channel").set(at)
            assert_shows(widget, w)
            assert widget.slider("Channel").spoken == str(w.channel)
        widget.click("Correct the bias")
        w.corrected = True
        assert_shows(widget, w)
        widget.root.get_by_role("radio", name="channel", exact=True).check(force=True)
        w.per_channel = True
        assert_shows(widget, w)
        widget.click("Correct the bias")
        w.corrected = False
        assert_shows(widget, w)
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_pointing_at_a_channel_picks_it(browser, tmp_path):
    w = BiasShift(*layer(), channels=[4, 2, 5, 0], channel=0)
    with stage(browser, tmp_path, w) as widget:
        strip = widget.root.locator("svg").nth(2)
        strip.scroll_into_view_if_needed()
        box = strip.bounding_box()
        widget.root.page.mouse.move(box["x"] + 40 + (box["width"] - 48) * 1.5 / 4, box["y"] + 90)
        w.channel = 2
        assert_shows(widget, w)
        assert widget.slider("Channel").spoken == "2"


@pytest.mark.parametrize(
    "weight", [[[1.0]], [[1e-30, 2e-30]], [[9.0, 0.0], [0.1, 0.0], [0.0, 0.0]]], ids=str
)
@pytest.mark.parametrize("rows", [1, 7])
def test_odd_layers(browser, tmp_path, weight, rows):
    w = BiasShift(weight, np.arange(1.0, 1 + rows * len(weight[0])).reshape(rows, -1) / 3, bits=2)
    with stage(browser, tmp_path, w, width=320) as widget:
        for _ in range(2):
            for at in range(len(weight)):
                if len(weight) > 1:
                    widget.slider("Channel").set(at)
                for key in ("Home", "End"):
                    widget.slider("Bits").press(key)
                    settle(widget)
                    assert not widget.broken_text()
            widget.click("Correct the bias")


def test_speed(browser, tmp_path, measure):
    w = BiasShift(*layer(28, 9, 300), bits=2)
    with stage(browser, tmp_path, w) as widget:
        times = sorted(widget.slider("Bits").set(b)["frame_ms"] for b in (3, 4, 5, 6, 7, 8))
        measure("bias-shift", bits_ms=times[3], bits_worst=times[-1])
        assert times[0] < 100
